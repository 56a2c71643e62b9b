"""Counting what a painter painted, with a painter whose pictures are real scenes: the truth is known."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.core.tokenizer import Tokenizer
from diptych.data import scenes
from diptych.evaluate.judge import open_judge
from diptych.evaluate.scenes import SceneReport, evaluate_scenes, held_out_prompts, save_sheet
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.encoders import EncoderConfig, TextEncoder
from diptych.image.model import ImageModel
from diptych.image.prompts import OwnPrompter
from diptych.image.runner import ImageRequest, ImageRunner
from diptych.image.unet import UNet, UNetConfig

RealScenes = list[tuple[dict[str, str], Image.Image]]


@dataclass
class Job:
    request: ImageRequest
    done: int = 0

    @property
    def is_done(self) -> bool:
        return self.done == self.request.steps


class Copyist:
    """Paints by handing out pictures by prompt; counts who worked beside whom."""

    name = "copyist"

    def __init__(self, pictures: dict[str, Image.Image]) -> None:
        self.pictures = pictures
        self.beside: list[int] = []
        self.requests: list[ImageRequest] = []

    def runner(self) -> ImageRunner:
        return cast(ImageRunner, self)

    def admit(self, request: ImageRequest) -> Job:
        self.requests.append(request)
        return Job(request)

    def advance(self, jobs: Sequence[Job]) -> list[Any]:
        self.beside.append(len(jobs))
        for job in jobs:
            job.done += 1
        return [SimpleNamespace(index=job.done - 1, total=job.request.steps) for job in jobs]

    def finish(self, job: Job) -> Any:
        return SimpleNamespace(images=[self.pictures[job.request.prompt]] * job.request.count)


def caption(truth: dict[str, str]) -> str:
    return scenes.Scene(**truth).caption()


def evaluated(asked_and_painted: dict[str, Image.Image], **settings: Any) -> tuple[Copyist, SceneReport]:
    painter = Copyist(asked_and_painted)
    return painter, evaluate_scenes(painter, open_judge(), prompts=list(asked_and_painted), steps=3, **settings)


def test_a_painter_that_paints_what_it_is_told_scores_everything(real_scenes: RealScenes) -> None:
    _, report = evaluated({caption(truth): picture for truth, picture in real_scenes})
    named = sum(5 - (truth["worn"] == "nothing") for truth, _ in real_scenes)
    assert (report.total.found, report.total.asked) == (2 * named, 2 * named)
    assert {name: share.value for name, share in report.by_attribute.items()} == dict.fromkeys(scenes.ATTRIBUTES, 1.0)
    assert not any(picture.misses for picture in report.painted)


def test_every_attribute_that_differs_is_a_miss_and_no_other(real_scenes: RealScenes) -> None:
    """Each prompt is answered with the next scene's picture: what should be missed is known from the two truths."""
    truths = [truth for truth, _ in real_scenes]
    pictures = [picture for _, picture in real_scenes]
    others = [*truths[1:], truths[0]]
    _, report = evaluated(dict(zip(map(caption, truths), [*pictures[1:], pictures[0]], strict=True)), pictures_each=1)
    for one, asked, shown in zip(report.painted, truths, others, strict=True):
        named = {name: value for name, value in asked.items() if value != "nothing"}
        assert one.named == named
        assert one.misses == {name: shown[name] for name, value in named.items() if shown[name] != value}
    missed = sum(len(one.misses) for one in report.painted)
    assert report.total.asked - report.total.found == missed > 0
    assert sum(share.asked for share in report.by_attribute.values()) == report.total.asked


def test_what_a_prompt_does_not_name_is_not_asked(real_scenes: RealScenes) -> None:
    truth, picture = real_scenes[0]
    _, report = evaluated({f"a {truth['animal']}": picture})
    assert report.by_attribute.keys() == {"animal"}
    assert (report.total.found, report.total.asked) == (2, 2)


def test_prompts_are_painted_side_by_side_and_the_seeds_count_up(real_scenes: RealScenes) -> None:
    told: list[tuple[float, int]] = []
    pictures = {caption(truth): picture for truth, picture in real_scenes[:5]}
    painter, report = evaluated(pictures, seed=40, together=2, watch=lambda done, total: told.append((done, total)))
    assert painter.beside == [2] * 6 + [1] * 3
    assert [request.seed for request in painter.requests] == [40, 41, 42, 43, 44]
    assert [(one.seed, one.sample) for one in report.painted[:3]] == [(40, 0), (40, 1), (41, 0)]
    assert told[-1] == (5, 5)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_prompt_without_anything_known_is_refused_before_painting() -> None:
    painter = Copyist({})
    with pytest.raises(ValueError, match="'something nice' names nothing"):
        evaluate_scenes(painter, open_judge(), prompts=["something nice"])
    assert not painter.requests


# ---- the prompts ------------------------------------------------------------------------------------------------


def test_the_twenty_prompts_are_held_out_and_spread() -> None:
    prompts = held_out_prompts()
    assert prompts[0] == "a cat wearing sunglasses on a beach at sunset"
    assert len(set(prompts)) == 20
    named = [scenes.parse(prompt) for prompt in prompts]
    for words in named:
        full = {"worn": "nothing", "style": "flat"} | words
        assert scenes.is_held_out(scenes.Scene(**full))
    for part, values in scenes.ATTRIBUTES.items():
        said = [words[part] for words in named if part in words]
        assert set(said) == set(values) - {"nothing"}
        assert max(map(said.count, values)) <= -(-20 // (len(values) - (part == "worn")))
    assert sum("style" in words for words in named) == 10
    assert sum("worn" not in words for words in named) <= 2


def test_the_prompts_are_always_the_same_and_their_number_is_checked() -> None:
    assert held_out_prompts() == held_out_prompts(20)
    with pytest.raises(ValueError, match="from 1 to"):
        held_out_prompts(0)


# ---- the sheet --------------------------------------------------------------------------------------------------


def test_the_sheet_shows_every_picture_and_red_only_where_something_was_missed(
    real_scenes: RealScenes, tmp_path: Path
) -> None:
    (first, picture), (second, _) = real_scenes[:2]

    def is_red(prompt: str) -> bool:
        _, report = evaluated({prompt: picture})
        save_sheet(report, tmp_path / "sheet.png", columns=2)
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.width > 2 * picture.width
            below = sheet.crop((0, 8 + picture.height, sheet.width, sheet.height)).convert("RGB")
            return any(colour == (192, 0, 0) for _, colour in below.getcolors(1 << 16) or [])

    assert not is_red(caption(first))
    assert is_red(caption(second))


def test_a_sheet_in_a_folder_that_does_not_exist_is_refused(real_scenes: RealScenes, tmp_path: Path) -> None:
    truth, picture = real_scenes[0]
    _, report = evaluated({caption(truth): picture})
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "no"))):
        save_sheet(report, tmp_path / "no" / "sheet.png")


def test_the_report_as_json_says_what_was_missed(real_scenes: RealScenes) -> None:
    (first, _), (second, other) = real_scenes[:2]
    _, report = evaluated({caption(first): other}, pictures_each=1)
    facts = report.to_dict()
    assert facts["pictures"][0]["misses"]["animal"] == second["animal"]
    assert facts["total"]["asked"] == 5
    assert facts["settings"] == {"seed": 1, "count": 1, "steps": 3, "guidance_scale": 5.0, "sampler": "dpm++-2m"}


# ---- a real painter ---------------------------------------------------------------------------------------------


def test_what_is_judged_is_what_the_model_paints_alone() -> None:
    """A tiny random model: three prompts side by side give the pictures that each gives by itself."""
    torch.manual_seed(5)
    prompts = held_out_prompts(3)
    tokenizer = Tokenizer.train(list(prompts) * 3, 280, ["<|begin|>", "<|end|>"])
    model = ImageModel(
        "tiny",
        prompter=OwnPrompter(
            TextEncoder(EncoderConfig(tokenizer.size, width=16, num_layers=1, num_heads=2, length=64)), tokenizer
        ),
        network=UNet(UNetConfig(channels=4, widths=(32,), has_attention=(True,), head_dim=32, context_width=16)),
        autoencoder=Autoencoder(AutoencoderConfig(latent_channels=4, widths=(8, 8, 8))),
        path="ddpm-linear",
        size=64,
    )
    report = evaluate_scenes(model, open_judge(device="cpu"), prompts=prompts, seed=7, steps=2)
    assert report.model == "tiny"
    for number, prompt in enumerate(prompts):
        alone = model.generate(prompt, seed=7 + number, steps=2, count=2).result().images
        together = [one.image for one in report.painted if one.prompt == prompt]
        for picture, same in zip(alone, together, strict=True):
            difference = np.asarray(picture).astype(int) - np.asarray(same).astype(int)
            assert abs(difference).max() <= 2
