"""Whole painters that diffusers wrote paint here what they paint there."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)
from tests.interop.painters import KINDS, TRAINED, write_painter

import diptych
from diptych.image.model import ImageModel

# diffusers asks numpy for what numpy will not do for long.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PROMPT, NEGATIVE = "a red fox wearing a hat, on the beach", "a blurry dog"


@pytest.fixture(scope="session")
def painters(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Kind -> the pipeline, and the folder it is saved in; written once."""
    made: dict[str, tuple[Any, Path]] = {}

    def painter(kind: str) -> tuple[Any, Path]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = write_painter(kind, folder), folder / "whole"
        return made[kind]

    return painter


def opened(folder: Path) -> ImageModel:
    model = diptych.load(str(folder), device="cpu", dtype="float32")
    assert isinstance(model, ImageModel)
    return model


def noise_for(model: ImageModel, height: int, width: int, count: int = 1) -> torch.Tensor:
    down = model.autoencoder.config.downsampling
    shape = (count, model.latent_shape[0], height // down, width // down)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def their_picture(pipeline: Any, noise: torch.Tensor, **settings: Any) -> np.ndarray:
    """(N, H, W, 3), 0..1. Flux takes its noise packed."""
    if isinstance(pipeline, diffusers.FluxPipeline):
        noise = pipeline._pack_latents(noise, *noise.shape)
        settings.setdefault("max_sequence_length", 512)
    found: np.ndarray = pipeline(latents=noise, output_type="np", **settings).images
    return found


def our_picture(model: ImageModel, noise: torch.Tensor, **settings: Any) -> np.ndarray:
    result = model.generate(noise=noise, count=len(noise), **settings).result()
    found: np.ndarray = (model.decode(result.latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_finished_picture_is_the_same(painters: Any, kind: str) -> None:
    """10 steps with guidance from the same noise, not square: the authors' own scheduler, as it was saved."""
    pipeline, folder = painters(kind)
    model = opened(folder)
    noise = noise_for(model, 16, 24)
    told: dict[str, Any] = {"guidance_scale": 4.0, "negative_prompt": NEGATIVE}
    if kind.startswith("flux"):
        told = {"guidance_scale": 3.0}
    theirs = their_picture(pipeline, noise, prompt=PROMPT, num_inference_steps=10, height=16, width=24, **told)
    ours = our_picture(model, noise, prompt=PROMPT, steps=10, height=16, width=24, **told)
    assert theirs.std() > 0.05
    assert np.abs(ours - theirs).max() < 1e-4


def test_flux_takes_true_guidance_too(painters: Any) -> None:
    pipeline, folder = painters("flux-dev")
    model = opened(folder)
    noise = noise_for(model, 16, 16)
    told = {"guidance_scale": 3.0, "negative_prompt": NEGATIVE}
    theirs = their_picture(pipeline, noise, prompt=PROMPT, num_inference_steps=4, height=16, width=16,
                           true_cfg_scale=2.5, **told)  # fmt: skip
    ours = our_picture(model, noise, prompt=PROMPT, steps=4, height=16, width=16, true_guidance_scale=2.5, **told)
    assert np.abs(ours - theirs).max() < 1e-4


def test_no_negative_prompt_is_what_each_pipeline_makes_of_it(painters: Any) -> None:
    """Nothing said is the empty prompt in Stable Diffusion, and zeros in SDXL."""
    for kind in ("sd-1", "sdxl"):
        pipeline, folder = painters(kind)
        model = opened(folder)
        noise = noise_for(model, 16, 16, count=2)
        theirs = their_picture(
            pipeline, noise, prompt=PROMPT, num_inference_steps=4, height=16, width=16, num_images_per_prompt=2
        )
        ours = our_picture(model, noise, prompt=PROMPT, steps=4, height=16, width=16,
                           guidance_scale={"sd-1": 7.5, "sdxl": 5.0}[kind])  # fmt: skip
        assert np.abs(ours - theirs).max() < 1e-4


SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "ddim to the clean picture": (DDIMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}),
    "zero terminal snr": (
        DDIMScheduler,
        {"clip_sample": False, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True,
         "prediction_type": "v_prediction"},
    ),
    "euler": (EulerDiscreteScheduler, {}),
    "euler trailing": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "euler karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "heun": (HeunDiscreteScheduler, {}),
    "lms": (LMSDiscreteScheduler, {}),
    "dpm++ 2m": (DPMSolverMultistepScheduler, {}),
    "dpm++ 2m karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "dpm++ 2m to the first step": (DPMSolverMultistepScheduler, {"final_sigmas_type": "sigma_min"}),
    "dpm++ 2m heun, leading": (DPMSolverMultistepScheduler, {"solver_type": "heun", "timestep_spacing": "leading"}),
    "unipc": (UniPCMultistepScheduler, {}),
    "deis": (DEISMultistepScheduler, {}),
}  # fmt: skip


# Its last step is of first order there in runs of fewer than 15 steps, here where it leads to the clean picture.
FIRST_ORDER_AT_THE_END = "dpm++ 2m to the first step"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_that_opens_paints_the_same(painters: Any, name: str, tmp_path: Path) -> None:
    pipeline, folder = painters("sd-1")
    for part in folder.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "scheduler").unlink()
    kind, settings = SCHEDULERS[name]
    scheduler = kind(**TRAINED, **settings)
    scheduler.save_pretrained(tmp_path / "scheduler")
    before, pipeline.scheduler = pipeline.scheduler, scheduler
    try:
        model = opened(tmp_path)
        noise = noise_for(model, 16, 16)
        told: dict[str, Any] = {"prompt": PROMPT, "guidance_scale": 3.0, "height": 16, "width": 16}
        theirs = their_picture(pipeline, noise, num_inference_steps=10, **told)
        assert np.abs(our_picture(model, noise, steps=10, **told) - theirs).max() < (
            1e-3 if name == FIRST_ORDER_AT_THE_END else 1e-4
        )
    finally:
        pipeline.scheduler = before


def test_a_random_scheduler_is_ours_by_name(painters: Any, tmp_path: Path) -> None:
    """Its noise is drawn otherwise here, so pictures differ; the sampler and its nodes are those that were meant."""
    _, folder = painters("sd-1")
    for part in folder.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "scheduler").unlink()
    diffusers.EulerAncestralDiscreteScheduler(**TRAINED).save_pretrained(tmp_path / "scheduler")
    model = opened(tmp_path)
    assert (model.habits.sampler, model.habits.nodes) == ("euler-ancestral", "linspace")
    assert model.generate(PROMPT, steps=3, seed=1, height=16, width=16).result().image.size == (16, 16)


def test_weights_in_brackets_and_long_prompts(painters: Any) -> None:
    """A weight of 1 is no weight; another moves the picture; a long prompt is read in windows, its beginning alike."""
    _, folder = painters("sd-1")
    model = opened(folder)
    plain, one = model.encode(["a red fox"]), model.encode(["a (red:1.0) fox"])
    assert torch.equal(plain.context, one.context)
    more = model.encode(["a (red:1.5) fox"]).context
    empty = model.encode([""]).context
    changed = (more - plain.context).abs().amax(-1)[0] > 1e-5
    reds = len(model.prompter.towers[0].vocabulary.encode("red"))  # type: ignore[attr-defined]
    start = 1 + len(model.prompter.towers[0].vocabulary.encode("a"))  # type: ignore[attr-defined]
    assert changed.nonzero().flatten().tolist() == list(range(start, start + reds))
    assert torch.allclose(more[:, changed] - empty[:, changed], 1.5 * (plain.context - empty)[:, changed], atol=1e-5)
    long = ", ".join(["a red fox on a beach"] * 12)
    found = model.encode([long])
    assert found.context.shape[1] == 77 * 2
    result = model.generate(long, negative_prompt="a dog", steps=2, seed=1, height=16, width=16).result()
    assert np.asarray(result.image).std() > 0


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", {"_class_name": "KandinskyPipeline"}, "unknown pipeline 'KandinskyPipeline'"),
        ("scheduler/scheduler_config.json", {"_class_name": "PlasmaScheduler"}, "unknown scheduler 'PlasmaScheduler'"),
        ("scheduler/scheduler_config.json", {"skip_prk_steps": False}, "'skip_prk_steps' is supported only as True"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "wavy"}, "unknown beta_schedule 'wavy'"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "'thresholding' is supported only as False"),
        ("scheduler/scheduler_config.json", {"prediction_type": "score"}, "unknown prediction_type 'score'"),
        ("unet/config.json", {"sample_size": None}, "must say the side of its latents as sample_size"),
        ("unet/config.json", {"in_channels": 9}, "in_channels"),
        ("vae/config.json", {"latent_channels": 8}, "vae' does not fit its config.json: 'encoder.conv_out.weight'"),
    ],
)
def test_what_is_not_done_is_refused_in_one_line(
    painters: Any, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    _, folder = painters("sd-1")
    place = tmp_path / "whole"
    place.mkdir()
    for part in folder.iterdir():
        (place / part.name).symlink_to(part)
    changed = place / file
    if "/" in file:
        changed.parent.unlink()
        changed.parent.mkdir()
        for one in (folder / file).parent.iterdir():
            (changed.parent / one.name).symlink_to(one)
    entries = json.loads(changed.read_text())
    changed.unlink()
    changed.write_text(json.dumps(entries | change))
    with pytest.raises(ValueError, match=message) as caught:
        opened(place)
    assert "\n" not in str(caught.value)


def test_a_folder_that_lacks_a_part_is_named(painters: Any, tmp_path: Path) -> None:
    _, folder = painters("sd-1")
    for part in folder.iterdir():
        if part.name != "vae":
            (tmp_path / part.name).symlink_to(part)
    with pytest.raises(ValueError, match="is not a whole pipeline: its folder vae is missing"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["sd-2", "sdxl", "sd-3"])
def test_the_denoising_loss_is_measured_whatever_the_network_wants_to_know(painters: Any, kind: str) -> None:
    """As of the house's own: about 1 for a network that knows nothing, and the same digits again."""
    model = opened(painters(kind)[1])
    pictures = np.random.default_rng(0).integers(0, 256, (3, 3, model.height, model.width), dtype=np.uint8)
    first, again = (model.noise_loss(pictures, ["a red fox", "a dog", ""]) for _ in range(2))
    assert first == again
    assert 0.1 < first.overall.value < 10
