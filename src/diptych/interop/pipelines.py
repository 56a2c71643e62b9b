"""Whole published painters: a folder of diffusers, with a part in each of its folders, as one `ImageModel`.

    model_index.json       the class of the pipeline, and of each part
    unet | transformer     the denoiser
    text_encoder, ...      one to three, each with its tokenizer
    vae                    the autoencoder
    scheduler              how noise was added, and how the authors sample

Weights stay mapped from their files until they are used: a text encoder that a prompt does not need takes no memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from diptych.core import weights
from diptych.core.mapped import recast
from diptych.core.precision import choose
from diptych.core.spelling import unknown
from diptych.image.clip import TextTower
from diptych.image.model import Habits, ImageModel
from diptych.image.path import Path as NoisePath
from diptych.image.path import path_named
from diptych.image.published_prompts import PublishedPrompter, T5Reader, TowerReader
from diptych.image.runner import Numbers
from diptych.image.t5 import T5Encoder
from diptych.interop.autoencoders import open_autoencoder
from diptych.interop.denoisers import open_denoiser
from diptych.interop.encoders import open_encoder
from diptych.interop.prompts import open_tokenizer
from diptych.interop.published import INDEX
from diptych.interop.schedules import Schedule, schedule_of


@dataclass(frozen=True)
class Pipeline:
    """One kind of painter.

    Args:
        denoiser: its folder.
        towers: folders of CLIP's text towers; t5: of T5's encoder.
        context, pooled: what of them the denoiser is told, see `PublishedPrompter`.
        skip: last layers of the towers whose work the context does not see, and whether it is normed after that.
        t5_length: tokens that every prompt is filled up to for T5.
        flow_nodes: the node rule that it asks a flow's scheduler for.
        steps, guidance_scale: its habits.
        own_size: side of the latents that it paints where nothing is said; None is the denoiser's sample_size.
        tells_sizes: the denoiser is told the size of the picture in pixels.
        imitates_guidance: the denoiser is told the guidance scale, or needs none.
    """

    denoiser: str
    towers: tuple[str, ...]
    t5: str | None = None
    context: Literal["towers", "t5", "both"] = "towers"
    pooled: Literal["none", "last", "all"] = "none"
    skip: int = 0
    is_normed: bool = True
    t5_length: int = 0
    flow_nodes: str = "linspace"
    steps: int = 50
    guidance_scale: float = 7.5
    own_size: int | None = None
    tells_sizes: bool = False
    imitates_guidance: bool = False


SD = Pipeline("unet", ("text_encoder",))
SDXL = Pipeline(
    "unet",
    ("text_encoder", "text_encoder_2"),
    pooled="last",
    skip=1,
    is_normed=False,
    guidance_scale=5.0,
    tells_sizes=True,
)
SD3 = Pipeline(
    "transformer",
    ("text_encoder", "text_encoder_2"),
    "text_encoder_3",
    context="both",
    pooled="all",
    skip=1,
    is_normed=False,
    t5_length=256,
    steps=28,
    guidance_scale=7.0,
)
FLUX = Pipeline(
    "transformer",
    ("text_encoder",),
    "text_encoder_2",
    context="t5",
    pooled="all",
    t5_length=512,
    flow_nodes="uniform",
    steps=28,
    guidance_scale=3.5,
    own_size=128,
    imitates_guidance=True,
)
# What paints from words, and its other uses of the same parts.
PIPELINES = {
    f"{family}{use}Pipeline": row
    for family, row in (
        ("StableDiffusion", SD),
        ("StableDiffusionXL", SDXL),
        ("StableDiffusion3", SD3),
        ("Flux", FLUX),
    )
    for use in ("", "Img2Img", "Inpaint")
}
FEW_STEPS = 4  # of a Flux that was distilled to need no guidance


def open_pipeline(directory: str | Path, *, device: str | None = None, dtype: str | None = None) -> ImageModel:
    """A painter in a folder of diffusers.

    Raises:
        ValueError: in one line, for a pipeline, a part or a setting that is not known, files that are missing, damaged
            or pickled, a device or dtype that is not here.
    """
    directory = Path(directory)
    chosen_device, chosen_dtype = choose(device, dtype)
    entries = weights.read_object(directory / INDEX)
    name = entries.get("_class_name")
    if name not in PIPELINES:
        raise ValueError(f"'{directory}' cannot be opened: {unknown('pipeline', str(name), PIPELINES)}")
    row = PIPELINES[name]
    schedule = _schedule(directory, row)
    place = {"device": chosen_device, "dtype": chosen_dtype}
    denoiser = open_denoiser(_part(directory, row.denoiser), **place)
    autoencoder = open_autoencoder(_part(directory, "vae"), device=chosen_device, dtype=torch.float32)
    prompter = _prompter(directory, row, entries, denoiser, place)
    for network in (denoiser, autoencoder):
        recast(network, channels_last=True)
    size = row.own_size or _sample_size(directory / row.denoiser)
    is_few = row.imitates_guidance and not denoiser.config.has_guidance  # type: ignore[union-attr]
    return ImageModel(
        directory.resolve().name,
        prompter=prompter,
        network=denoiser,
        autoencoder=autoencoder,
        path=_path(schedule, denoiser),
        prediction=schedule.prediction,
        size=size * autoencoder.config.downsampling,
        habits=Habits(FEW_STEPS if is_few else row.steps, row.guidance_scale, schedule.sampler, schedule.nodes),
        numbers=_numbers(row, denoiser),
        imitates_guidance=row.imitates_guidance,
        starts_whole=schedule.starts_whole,
    )


def _schedule(directory: Path, row: Pipeline) -> Schedule:
    path = _part(directory, "scheduler") / "scheduler_config.json"
    if not path.is_file():
        raise ValueError(f"'{directory}' is not a whole pipeline: scheduler/{path.name} is missing")
    try:
        return schedule_of(weights.read_object(path), flow_nodes=row.flow_nodes)
    except (ValueError, TypeError) as error:
        raise ValueError(f"'{path}' cannot be used: {error}") from error


def _part(directory: Path, name: str) -> Path:
    if not (directory / name).is_dir():
        raise ValueError(f"'{directory}' is not a whole pipeline: its folder {name} is missing")
    return directory / name


def _prompter(
    directory: Path, row: Pipeline, entries: Mapping[str, Any], denoiser: nn.Module, place: dict[str, Any]
) -> PublishedPrompter:
    modules: dict[str, nn.Module] = {}
    towers = []
    for name in row.towers:
        tower = open_encoder(_part(directory, name), **place)
        if not isinstance(tower, TextTower):
            raise ValueError(f"'{directory / name}' is a {type(tower).__name__}, where a text tower of CLIP belongs")
        words = open_tokenizer(_part(directory, name.replace("text_encoder", "tokenizer")))
        towers.append(TowerReader(tower, words, skip=row.skip, is_normed=row.is_normed))
        modules[name] = tower
    t5, silent = None, None
    if row.t5 is not None and entries.get(row.t5, [None])[0] is None:
        silent = (row.t5_length, int(denoiser.config.context_width))  # type: ignore[union-attr,arg-type]
    elif row.t5 is not None:
        encoder = open_encoder(_part(directory, row.t5), **place)
        if not isinstance(encoder, T5Encoder):
            raise ValueError(f"'{directory / row.t5}' is a {type(encoder).__name__}, where T5's encoder belongs")
        t5 = T5Reader(
            encoder, open_tokenizer(_part(directory, row.t5.replace("text_encoder", "tokenizer"))), row.t5_length
        )
        modules[row.t5] = encoder
    return PublishedPrompter(
        modules,
        towers,
        t5,
        silent=silent,
        context=row.context,
        pooled=row.pooled,
        zeroes_empty=bool(entries.get("force_zeros_for_empty_prompt", row.tells_sizes)),
    )


def _sample_size(directory: Path) -> int:
    size = weights.read_config(directory).get("sample_size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"'{directory}/config.json' must say the side of its latents as sample_size, not {size!r}")
    return size


def _path(schedule: Schedule, denoiser: nn.Module) -> Callable[[tuple[int, int]], NoisePath]:
    """By the size of the latents, of which the shift of some flows depends."""
    path, side = path_named(schedule.path), int(denoiser.multiple)  # type: ignore[arg-type]
    return lambda size: path.for_tokens((size[0] // side) * (size[1] // side))


def _numbers(row: Pipeline, denoiser: nn.Module) -> Numbers:
    if row.tells_sizes:  # before cropping, where it was cropped, and now (Podell et al. 2023, sec. 2.2)
        return lambda size, scale: (*size, 0, 0, *size)
    if row.imitates_guidance and denoiser.config.has_guidance:  # type: ignore[union-attr]
        return lambda size, scale: (row.guidance_scale if scale is None else scale,)
    return lambda size, scale: ()
