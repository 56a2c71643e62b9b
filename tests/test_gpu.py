"""Texts and pictures on a GPU: those of the CPU within rounding, though the networks are replayed recordings there."""

from pathlib import Path

import numpy as np
import pytest

from diptych.image.model import ImageModel
from diptych.text.cache import CacheSettings
from diptych.text.model import TextModel

pytestmark = pytest.mark.gpu
STORY = "Once upon a time there was a cat"


@pytest.mark.parametrize("kept", ["", "int8"])
def test_texts_are_those_of_the_cpu(tiny_quill: Path, recorded: list[int], kept: str) -> None:
    """Greedy, over a growth of the cache; several side by side, and one of them alone."""
    about = {"temperature": 0.0, "max_tokens": 300, "min_tokens": 300, "cache": CacheSettings(kept)}
    here, there = (TextModel.load(tiny_quill, device=device, dtype="float32") for device in ("cuda", "cpu"))
    ours, theirs = (model.generate(STORY, **about).result() for model in (here, there))
    assert recorded[0] > 250
    shared = next((i for i, pair in enumerate(zip(ours.tokens, theirs.tokens, strict=True)) if len({*pair}) > 1), 300)
    assert shared > (280 if not kept else 40)  # a tie may fall otherwise, and then all that follows
    for step, other in zip(first_steps(here, about), first_steps(there, about), strict=False):
        if step.token != other.token:
            break
        assert step.probability == pytest.approx(other.probability, abs=2e-3)
    several = here.generate(STORY, seed=2, n=3, max_tokens=40).results()
    alone = here.generate(STORY, seed=2, first_sample=1, max_tokens=40).result()
    assert several[1].text[:20] == alone.text[:20]


def first_steps(model: TextModel, about: dict[str, object]) -> list[object]:
    return list(model.generate(STORY, **(about | {"max_tokens": 40, "min_tokens": 40})))


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_in_few_bits_write(tiny_quill: Path, bits: int) -> None:
    model = TextModel.load(tiny_quill, device="cuda", bits=bits)
    assert len(model.generate(STORY, seed=1, max_tokens=20, min_tokens=20).result().tokens) == 20


def test_speculation_changes_no_token(tiny_quill: Path) -> None:
    model = TextModel.load(tiny_quill, device="cuda", dtype="float32")
    plain = model.generate(STORY, temperature=0, max_tokens=60).result()
    guessed = model.generate(STORY, temperature=0, max_tokens=60, speculate="ngram", draft_tokens=3).result()
    assert guessed.tokens == plain.tokens


def test_pictures_are_those_of_the_cpu(tiny_brush: Path, recorded: list[int]) -> None:
    about = {"seed": 3, "steps": 8, "guidance_scale": 3.0}
    here, there = (ImageModel.load(tiny_brush, device=device, dtype="float32") for device in ("cuda", "cpu"))
    ours, again, theirs = (
        np.asarray(model.generate("a cat at night", **about).result().image, np.int16) for model in (here, here, there)
    )
    assert recorded[0] >= 8
    assert np.abs(ours - theirs).mean() < 1
    assert np.abs(ours - again).max() <= 1
    words = here.generate("a cat at night", words=True, **about).result()
    assert np.abs(np.asarray(words.image, np.int16) - ours).max() <= 1
