"""scheduler_config.json of a published painter -> the noise path, what is predicted, and how it wants to be sampled.

diffusers keeps all of these in one object of a class for each solver. Here a class is a row: the sampler, and which of
two ways it counts its steps. A setting that is not done here is refused by its key: what opens paints what its authors'
does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diptych.core.spelling import unknown

PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "image"}
BETAS = {"linear": "ddpm-linear", "scaled_linear": "ddpm-scaled-linear", "squaredcos_cap_v2": "ddpm-cosine"}
# Keys that change nothing which we compute, and keys of which some values alone are done; the first is the usual one.
IDLE = (
    "dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range", "variance_type", "lambda_min_clipped",
    "solver_p", "disable_corrector", "time_shift_type", "lower_order_final", "flow_shift", "noise_sampler_seed",
    "timestep_scaling", "skip_prk_steps", "max_shift", "base_shift", "base_image_seq_len", "max_image_seq_len",
    "sigma_min", "sigma_max", "original_inference_steps", "use_karras_sigmas",
)  # fmt: skip
ONLY: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "thresholding": (False,),
    "clip_sample": (False,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,),
    "euler_at_final": (False,),
    "predict_x0": (True,),
    "use_dynamic_shifting": (False, True),
    "invert_sigmas": (False,),
    "shift_terminal": (None,),
    "stochastic_sampling": (False,),
}
RULES = ("use_exponential_sigmas", "use_beta_sigmas")


@dataclass(frozen=True)
class Schedule:
    """How a painter was trained to see noise, and how its authors sample it.

    Args:
        path, sampler, nodes: as `path_named`, `sampler_named` and `nodes_named` read them.
        prediction: one of `denoiser.PREDICTIONS`.
        starts_whole: generation starts from noise of unit variance, and not of the first node's.
    """

    path: str
    prediction: str
    sampler: str
    nodes: str
    starts_whole: bool


@dataclass(frozen=True)
class Row:
    """One class.

    Args:
        sampler: ours.
        counting: how its steps are spread over the trained ones: as "ddim" does (integers, offset), as "euler" does
            (the same, and a line between them), as the "multistep" solvers do (one step more than is taken), or "lcm".
        starts_whole: whatever the spacing; None follows it.
        absent: what a key that is left out stands for, where that is not the usual.
    """

    sampler: str
    counting: Literal["ddim", "euler", "multistep", "lcm"]
    starts_whole: bool | None = True
    absent: tuple[tuple[str, Any], ...] = ()


LINEAR = (("beta_start", 1e-4), ("beta_end", 0.02), ("beta_schedule", "linear"))
ROWS = {
    "DDIMScheduler": Row("ddim", "ddim", absent=(("set_alpha_to_one", True), ("clip_sample", True))),
    "PNDMScheduler": Row("plms", "ddim", absent=(("set_alpha_to_one", False), ("skip_prk_steps", False))),
    "DDPMScheduler": Row("ddpm", "ddim", absent=(("clip_sample", True),)),
    "EulerDiscreteScheduler": Row("euler", "euler", None),
    "EulerAncestralDiscreteScheduler": Row("euler-ancestral", "euler", None),
    "HeunDiscreteScheduler": Row("heun", "euler", None, (("beta_start", 0.00085), ("beta_end", 0.012))),
    "KDPM2DiscreteScheduler": Row("dpm2", "euler", None, (("beta_start", 0.00085), ("beta_end", 0.012))),
    "KDPM2AncestralDiscreteScheduler": Row(
        "dpm2-ancestral", "euler", None, (("beta_start", 0.00085), ("beta_end", 0.012))
    ),
    "LMSDiscreteScheduler": Row("lms", "euler", None),
    "DPMSolverMultistepScheduler": Row("dpm++-2m", "multistep"),
    "DPMSolverSDEScheduler": Row("dpm++-sde", "euler", None, (("beta_start", 0.00085), ("beta_end", 0.012))),
    "UniPCMultistepScheduler": Row("unipc", "multistep"),
    "DEISMultistepScheduler": Row("deis", "multistep"),
    "LCMScheduler": Row(
        "lcm",
        "lcm",
        absent=(("beta_start", 0.00085), ("beta_end", 0.012), ("beta_schedule", "scaled_linear")),
    ),
}
FLOW = {"FlowMatchEulerDiscreteScheduler": "euler", "FlowMatchHeunDiscreteScheduler": "heun"}


def schedule_of(entries: Mapping[str, Any], *, flow_nodes: str = "linspace") -> Schedule:
    """What a scheduler_config.json says.

    Args:
        flow_nodes: the rule that a pipeline of flow matching asks its scheduler for: "linspace", or "uniform" (Flux).

    Raises:
        ValueError: a class that is not known, or a setting that is not done, named.
    """
    name = entries.get("_class_name")
    if name not in ROWS and name not in FLOW:
        raise unknown("scheduler", str(name), [*ROWS, *FLOW])
    if name in FLOW:
        _check(entries)
        return _flow(entries, FLOW[name], flow_nodes)
    row = ROWS[name]
    entries = {**dict(LINEAR), **dict(row.absent), **entries}
    _check(entries)
    if row.sampler == "plms" and not entries["skip_prk_steps"]:
        raise ValueError("'skip_prk_steps' is supported only as True, not False")
    prediction = entries.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise unknown("prediction_type", str(prediction), PREDICTIONS)
    spacing = entries.get("timestep_spacing", "linspace" if row.counting != "ddim" else "leading")
    starts_whole = spacing == "leading" if row.starts_whole is None else row.starts_whole
    return Schedule(
        _path(entries), PREDICTIONS[prediction], _sampler(row, entries), _nodes(row, entries, spacing), starts_whole
    )


def _check(entries: Mapping[str, Any]) -> None:
    known = (
        "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "timestep_spacing",
        "steps_offset", "set_alpha_to_one", "rescale_betas_zero_snr", "final_sigmas_type", "solver_order",
        "algorithm_type", "solver_type", "shift", *RULES, *IDLE, *ONLY,
    )  # fmt: skip
    for key, value in entries.items():
        if key not in known and not key.startswith("_"):
            raise unknown("setting of the scheduler", key, sorted(known))
        if key in ONLY and value not in ONLY[key]:
            shown = " or ".join(map(repr, ONLY[key]))
            raise ValueError(f"'{key}' is supported only as {shown}, not {value!r}")


def _path(entries: Mapping[str, Any]) -> str:
    betas = entries["beta_schedule"]
    if betas not in BETAS:
        raise unknown("beta_schedule", str(betas), BETAS)
    settings = [f"steps={int(entries.get('num_train_timesteps', 1000))}"]
    if betas == "squaredcos_cap_v2":
        settings.append("largest=0")
    else:
        settings += [f"first={float(entries['beta_start'])!r}", f"last={float(entries['beta_end'])!r}"]
    if entries.get("rescale_betas_zero_snr"):
        settings.append("zero_snr=true")
    return f"{BETAS[betas]}:{','.join(settings)}"


def _sampler(row: Row, entries: Mapping[str, Any]) -> str:
    """Ours, with the order and the kind that the class was given."""
    order, kind = entries.get("solver_order", 2), entries.get("solver_type")
    if row.sampler == "dpm++-2m":
        algorithm = entries.get("algorithm_type", "dpmsolver++")
        if algorithm not in ("dpmsolver++", "sde-dpmsolver++") or order not in (1, 2):
            raise ValueError(f"'algorithm_type' {algorithm!r} of 'solver_order' {order!r} is not supported")
        if order == 1:
            return "ddim" if algorithm == "dpmsolver++" else "ddpm"
        return f"dpm++-2m{'-sde' if algorithm != 'dpmsolver++' else ''}:kind={kind or 'midpoint'}"
    if row.sampler == "unipc":
        return f"unipc:order={order},variant={kind or 'bh2'}"
    if row.sampler == "plms" and entries.get("prediction_type") == "v_prediction":
        return "plms:of=v"
    return f"deis:order={order}" if row.sampler == "deis" else row.sampler


def _nodes(row: Row, entries: Mapping[str, Any], spacing: Any) -> str:
    if row.counting == "lcm":
        return f"lcm:origin={int(entries.get('original_inference_steps', 50))}"
    ends_clean = entries.get("final_sigmas_type", "zero") == "zero"
    if row.counting == "ddim" and row.sampler != "ddpm":
        ends_clean = bool(entries.get("set_alpha_to_one"))
    if row.sampler == "deis":  # which has no such setting, and ends where training did
        ends_clean = False
    settings = [] if ends_clean else ["clean=false"]
    if entries.get("use_karras_sigmas"):
        rounded = row.counting == "multistep" and entries["beta_schedule"] != "squaredcos_cap_v2"
        return _rule("karras", [*settings, *(["rounded=true"] if rounded else [])])
    if entries.get("use_exponential_sigmas"):
        return _rule("exponential", settings)
    if entries.get("use_beta_sigmas"):
        return _rule("beta", ["of=sigmas", *settings])
    if spacing == "leading":
        offset = int(entries.get("steps_offset", 0))
        ahead = ["ahead=1"] if row.counting == "multistep" else []
        return _rule("leading", [*([f"offset={offset}"] if offset else []), *ahead, *settings])
    if spacing == "trailing":
        return _rule("trailing", settings)
    if spacing != "linspace":
        raise unknown("timestep_spacing", str(spacing), ("leading", "linspace", "trailing"))
    if row.counting == "multistep":
        return _rule("sgm-uniform", ["rounded=true", *settings])
    return _rule("linspace", [*(["rounded=true"] if row.counting == "ddim" else []), *settings])


def _rule(name: str, settings: list[str]) -> str:
    return f"{name}:{','.join(settings)}" if settings else name


def _flow(entries: Mapping[str, Any], sampler: str, nodes: str) -> Schedule:
    """Flow matching: the shift is part of the path."""
    settings = [f"shift={float(entries.get('shift', 1.0))!r}"]
    if entries.get("use_dynamic_shifting"):
        settings = [
            f"max_shift={float(entries.get('max_shift', 1.15))!r}",
            f"base_shift={float(entries.get('base_shift', 0.5))!r}",
            f"base_tokens={int(entries.get('base_image_seq_len', 256))}",
            f"max_tokens={int(entries.get('max_image_seq_len', 4096))}",
            f"time_shift={entries.get('time_shift_type', 'exponential')}",
        ]
        if nodes == "linspace":
            nodes = "linspace:shifted=once"
    if entries.get("use_karras_sigmas") or any(entries.get(key) for key in RULES):
        chosen = next(key for key in ("use_karras_sigmas", *RULES) if entries.get(key))
        raise ValueError(f"'{chosen}' is supported only as False where noise is added along a flow, not True")
    return Schedule(f"rectified-flow:{','.join(settings)}", "velocity", sampler, nodes, True)
