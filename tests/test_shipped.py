"""The models that come with the package do what the first page of the README says."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.evaluate.judge import open_judge
from diptych.image.enlarge import enlarge
from diptych.image.model import ImageModel
from diptych.image.runner import ImageRequest
from diptych.text.model import TextModel

PROMPT = "a cat wearing sunglasses on a beach at sunset"


@pytest.fixture(scope="module")
def brush() -> ImageModel:
    return diptych.load("brush")


@pytest.fixture(scope="module")
def quill() -> TextModel:
    return diptych.load("quill")


def test_the_picture_of_the_demo_shows_what_was_asked_for(brush: ImageModel) -> None:
    """Read by the judge, which was trained on composed scenes and never on a painted picture."""
    image = brush.generate(PROMPT, seed=1).result().image
    assert image.size == (128, 128)
    (seen,) = open_judge().read_pictures([image])
    assert {name: seen[name] for name in ("animal", "worn", "place", "time")} == {
        "animal": "cat",
        "worn": "sunglasses",
        "place": "beach",
        "time": "sunset",
    }


def test_brush_paints_over_into_and_from_a_picture(brush: ImageModel) -> None:
    """Read by the judge: at a low strength the picture stays what it was, at a high one the words win; a mask changes
    what lies in it; a second pass at twice the size shows the same thing."""
    cat = brush.generate(PROMPT, seed=1, steps=15).result().image
    fox = "a fox wearing a crown in the snow by day"
    little, much = (
        brush.generate(fox, seed=2, steps=15, picture=cat, strength=strength).result().image for strength in (0.2, 0.8)
    )
    mask = Image.new("L", cat.size, 0)
    mask.paste(255, (0, 0, 128, 64))
    night = brush.generate("a cat wearing sunglasses on a beach at night", seed=3, steps=15, picture=cat, mask=mask)
    large = enlarge(brush, cat, 2, prompt=PROMPT, seed=1, steps=15).result().image
    assert large.size == (256, 256)
    seen = open_judge().read_pictures([little, much, night.result().image, large.resize(cat.size)])
    names = ("animal", "worn", "place", "time")
    assert [tuple(one[name] for name in names) for one in seen] == [
        ("cat", "sunglasses", "beach", "sunset"),
        ("fox", "crown", "snow", "day"),
        ("cat", "sunglasses", "beach", "night"),
        ("cat", "sunglasses", "beach", "sunset"),
    ]


@pytest.fixture
def enough_threads() -> Iterator[None]:
    """On one thread oneDNN divides sums of few rows otherwise than those of many, where the processor has units for
    tiles (AMX): a product of 128 x 512 x 256 is rounded otherwise than of 256 rows, and a picture is another one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if torch.cpu._is_amx_tile_supported() else before)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("enough_threads")
@pytest.mark.parametrize("dtype", ["float32", None])
def test_brush_paints_the_same_alone_and_in_a_batch_of_five(brush: ImageModel, dtype: str | None) -> None:
    """In float32, and in the machine's fast dtype, as users run it: within 2 of 255 a channel."""
    painter = brush if dtype is None else diptych.load("brush", dtype=dtype)
    prompts = ["a dog in a forest", PROMPT, "a fox", "a pig at night", "a lion in the snow"]
    runner = painter.runner()
    jobs = [runner.admit(ImageRequest(prompt, seed=seed, steps=8)) for seed, prompt in enumerate(prompts)]
    while not jobs[0].is_done:
        runner.advance(jobs)
    among = np.asarray(runner.finish(jobs[1]).image, dtype=np.int16)
    alone = np.asarray(painter.generate(PROMPT, seed=1, steps=8).result().image, dtype=np.int16)
    assert np.abs(among - alone).max() <= 2


def test_the_story_is_made_of_words_and_sentences(quill: TextModel) -> None:
    """Known words, sentences of a story's length, no phrase told over and over."""
    text = "Once upon a time" + quill.generate("Once upon a time", seed=1).result().text
    words = re.findall(r"[a-z']+", text.lower())
    assert len(words) >= 60
    assert len(set(words)) / len(words) > 0.35
    sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s", text) if sentence]
    assert 4 <= len(words) / len(sentences) <= 30
    triples = [tuple(words[k : k + 3]) for k in range(len(words) - 2)]
    assert max(map(triples.count, triples)) <= 4


def test_quill_finds_english_likelier_than_the_same_words_shuffled(quill: TextModel) -> None:
    told = "Once upon a time there was a little girl who loved to play in the park with her mom."
    shuffled = "park mom Once in the time little who a her play with upon girl was there to loved a."
    assert quill.score(told).sum() > quill.score(shuffled).sum() + 40
