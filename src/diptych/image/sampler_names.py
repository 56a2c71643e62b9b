"""What samplers are called elsewhere: in the web interfaces ("DPM++ 2M Karras"), in ComfyUI ("dpmpp_2m") and by
diffusers ("DPMSolverMultistepScheduler"). Names only; docs/samplers.md has them as a table.
"""

import re

# As the web interfaces and ComfyUI write them, but for capitals and what stands between words.
KNOWN_AS = {
    "eulera": "euler-ancestral",
    "eulerancestral": "euler-ancestral",
    "dpm2a": "dpm2-ancestral",
    "dpm2ancestral": "dpm2-ancestral",
    "dpm++2m": "dpm++-2m",
    "dpm++2msde": "dpm++-2m-sde",
    "dpm++2msdeheun": "dpm++-2m-sde:kind=heun",
    "dpm++3msde": "dpm++-3m-sde",
    "dpm++sde": "dpm++-sde",
    "dpm++2sa": "dpm++-2s-ancestral",
    "dpm++2sancestral": "dpm++-2s-ancestral",
    **{
        name: name for name in ("ddpm", "ddim", "euler", "heun", "dpm2", "lms", "unipc", "deis", "ipndm", "plms", "lcm")
    },
}

# Ours under the same letters is another: diffusers' settings against those of the authors' code.
EXACTLY = {
    "UniPC": "unipc:order=3,variant=bh1",
    "uni_pc": "unipc:order=3,variant=bh1",
    "uni_pc_bh2": "unipc:order=3",
}

# The web interfaces write the node rule after the sampler.
NODES_AFTER = {
    "karras": "karras",
    "exponential": "exponential",
    "sgmuniform": "sgm-uniform",
    "simple": "simple",
    "beta": "beta",
    "normal": "linspace:between=log",
    "ddimuniform": "leading:offset=1",
    "uniform": "linspace:between=log",
}

# Class names of diffusers: the sampler, and the nodes that the class takes unless its settings say otherwise.
CLASSES: dict[str, tuple[str, str | None]] = {
    "DDPM": ("ddpm", "leading"),
    "DDIM": ("ddim", "leading"),
    "EulerDiscrete": ("euler", "linspace"),
    "EulerAncestralDiscrete": ("euler-ancestral", "linspace"),
    "HeunDiscrete": ("heun", "linspace"),
    "KDPM2Discrete": ("dpm2", "linspace"),
    "KDPM2AncestralDiscrete": ("dpm2-ancestral", "linspace"),
    "LMSDiscrete": ("lms", "linspace"),
    "DPMSolverMultistep": ("dpm++-2m", "sgm-uniform:rounded=true"),
    "DPMSolverSDE": ("dpm++-sde", "linspace"),
    "UniPCMultistep": ("unipc", "sgm-uniform:rounded=true"),
    "DEISMultistep": ("deis", "sgm-uniform:rounded=true,clean=false"),
    "PNDM": ("plms", "leading"),
    "LCM": ("lcm", "lcm"),
    "EDMEuler": ("euler", "karras"),
    "EDMDPMSolverMultistep": ("dpm++-2m", "karras"),
    "FlowMatchEulerDiscrete": ("euler", "linspace"),
    "FlowMatchHeunDiscrete": ("heun", "linspace"),
    "FlowMatchLCM": ("lcm", "linspace"),
    "IPNDM": ("ipndm", None),  # whose nodes are of a path of its own
}


def plain_name(name: str) -> tuple[str, str | None]:
    """Our name for a sampler, as it is where nobody else's is recognised, and the nodes that the name implies."""
    if (of_class := name.removesuffix("Scheduler")) != name and of_class in CLASSES:
        return CLASSES[of_class]
    word, colon, settings = name.partition(":")
    if word in EXACTLY and not colon:
        return EXACTLY[word], None
    joined = re.sub(r"[\s_-]+", "", word.lower()).replace("dpmpp", "dpm++")
    joined = re.sub(r"(gpu|cfg\+\+)$", "", joined) if joined.startswith("dpm++") else joined
    if joined in KNOWN_AS and "-" not in word:
        known = KNOWN_AS[joined]
        return (f"{known}{',' if ':' in known else ':'}{settings}" if colon else known), None
    for ending, nodes in NODES_AFTER.items():
        sampler = joined.removesuffix(ending)
        if sampler != joined and sampler in KNOWN_AS and not colon:
            return KNOWN_AS[sampler], nodes
    return name, None
