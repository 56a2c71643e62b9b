"""The two towers, their checkpoint, and how well they match."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.core.tokenizer import Tokenizer
from diptych.image.contrast import contrastive_loss, equal_captions
from diptych.image.encoders import EncoderConfig, encode_prompts
from diptych.image.matching import first_right, measure_matching, zero_shot
from diptych.image.pairing import Pairing, PairingConfig, PairingModel

CAPTIONS = ["a cat", "a dog at night", "a fox in the snow", "a cat"]


def make(loss: str = "softmax") -> PairingModel:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(CAPTIONS * 3, 290)
    encoder = EncoderConfig(tokenizer.size, width=16, num_layers=1, num_heads=2, length=32)
    config = PairingConfig(dimensions=12, size=16, widths=(8, 16), loss=loss, encoder=encoder)
    network = Pairing(config)
    with torch.no_grad():
        for parameter in network.parameters():  # blocks start as nothing
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.05)
    return PairingModel("tiny", network.eval(), tokenizer)


@pytest.fixture(scope="module")
def model() -> PairingModel:
    return make()


def make_clip() -> PairingModel:
    """With CLIP's own towers."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(CAPTIONS * 3, 290)
    sizes = {"width": 16, "hidden": 24, "num_layers": 1, "num_heads": 2, "projection": 12}
    picture = {**sizes, "size": 16, "patch": 8}
    caption = {**sizes, "vocab_size": tokenizer.size, "length": 32, "end": tokenizer.end}
    values = {"dimensions": 12, "size": 16, "picture_tower": picture, "caption_tower": caption}
    return PairingModel("tiny", Pairing(PairingConfig.from_dict(values)).eval(), tokenizer)


def test_clips_towers_come_back_as_they_were(pictures: np.ndarray, tmp_path: Path) -> None:
    model = make_clip()
    model.save(tmp_path / "model", "card")
    again = PairingModel.load(tmp_path / "model", device="cpu")
    assert again.network.config == model.network.config
    found = again.similarities(pictures, CAPTIONS)
    torch.testing.assert_close(found, model.see(pictures) @ model.read(CAPTIONS).T)
    assert found.shape == (4, 4)
    assert found.std() > 0.01
    torch.testing.assert_close(found[:, 0], found[:, 3])  # it is the same caption


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)


def test_both_towers_end_on_the_unit_sphere(model: PairingModel, pictures: np.ndarray) -> None:
    for points in (model.see(pictures), model.read(CAPTIONS)):
        assert points.shape == (4, 12)
        torch.testing.assert_close(points.norm(dim=-1), torch.ones(4))


def test_neighbours_and_padding_change_nothing(model: PairingModel, pictures: np.ndarray) -> None:
    torch.testing.assert_close(model.see(pictures, batch=3)[1:2], model.see(pictures[1:2]), atol=1e-5, rtol=0)
    tokens, mask = encode_prompts(model.tokenizer, ["a cat"], 32)
    words = int(mask.sum())
    cut = model.network.read(tokens[:, :words], mask[:, :words])
    torch.testing.assert_close(model.read(CAPTIONS)[:1], cut, atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_loss_reaches_every_weight_of_both_towers(loss: str, pictures: np.ndarray) -> None:
    """All but the embeddings of tokens that do not occur."""
    model = make(loss)
    network = model.network
    tokens, mask = encode_prompts(model.tokenizer, CAPTIONS, 32)
    seen = network.see(torch.from_numpy(pictures).float() / 127.5 - 1)
    positives = equal_captions(tokens)
    found = contrastive_loss(seen, network.read(tokens, mask), network.log_scale, network.bias, positives, loss=loss)
    found.backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert (network.bias is not None) == (loss == "sigmoid")


def test_a_scale_past_100_is_brought_back_and_can_fall_again(model: PairingModel) -> None:
    network = make().network
    with torch.no_grad():
        network.log_scale.fill_(6.0)
    network.hold_scale()
    assert network.log_scale.exp().item() == pytest.approx(100, rel=1e-5)
    wrong = torch.eye(3)
    contrastive_loss(
        wrong, wrong.roll(1, 0), network.log_scale, None, torch.eye(3, dtype=torch.bool), loss="softmax"
    ).backward()  # type: ignore[no-untyped-call]
    assert network.log_scale.grad is not None
    assert network.log_scale.grad > 0, "pairs that are wrong ask for a smaller scale"
    assert model.network.log_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_a_checkpoint_comes_back_as_it_was(model: PairingModel, pictures: np.ndarray, tmp_path: Path) -> None:
    model.save(tmp_path / "model", "card")
    again = PairingModel.load(tmp_path / "model", device="cpu")
    assert (again.name, again.network.config) == ("tiny", model.network.config)
    torch.testing.assert_close(again.see(pictures), model.see(pictures))
    torch.testing.assert_close(again.read(CAPTIONS), model.read(CAPTIONS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "autoencoder"}, 'needs kind "pairing"'),
        ({"pairing": {"dimension": 3}}, "unknown pairing setting 'dimension'; did you mean 'dimensions'"),
        ({"pairing": {"loss": "softmx"}}, "unknown loss 'softmx'; did you mean 'softmax'"),
        ({"pairing": {"size": 12}}, "pairing size must be a multiple of 8, not 12"),
        ({"pairing": {"widths": [9]}}, "pairing widths must be multiples of 8"),
        ({"pairing": {"dimensions": 0}}, "pairing dimensions must be at least 1, not 0"),
        ({"pairing": {"picture_tower": {"size": 32}}}, r"pairing size \(64\) must be the picture tower's \(32\)"),
        ({"pairing": {"size": 64, "picture_tower": {"size": 64}}}, r"must be each tower's projection \(0\)"),
        ({"pairing": {"caption_tower": {"widths": 3}}}, "unknown tower setting 'widths'; did you mean 'width'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    model: PairingModel, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    model.save(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        PairingModel.load(tmp_path / "model")


def test_a_pictures_caption_may_be_anothers_that_says_the_same() -> None:
    """Query 3's nearest answer is number 0, whose caption is its own."""
    queries = torch.eye(4)
    answers = queries[[0, 2, 1, 3]].clone()
    answers[0] = torch.tensor([0.8, 0, 0, 0.6])
    answers[3] = torch.tensor([0.0, 0, 0, 0.5])
    found = first_right(queries, answers, CAPTIONS)
    assert (found.found, found.asked) == (2, 4)


def test_zero_shot_asks_only_of_pictures_whose_value_can_be_said() -> None:
    classes = torch.eye(2)
    pictures = torch.tensor([[1.0, 0], [0.2, 1], [1, 0], [0, 1]])
    found = zero_shot(pictures, classes, ["hat", "scarf"], ["hat", "scarf", "scarf", "nothing"])
    assert (found.found, found.asked) == (2, 3)


def test_a_class_is_the_mean_of_its_captions(model: PairingModel) -> None:
    both = model.read(["a cat", "a dog at night"]).mean(0)
    (found,) = model.read_classes({"pet": ["a cat", "a dog at night"]})
    torch.testing.assert_close(found, both / both.norm())


def test_the_report_has_counts_and_intervals(model: PairingModel, pictures: np.ndarray) -> None:
    prompts = {"animal": {name: [f"a {name}"] for name in ("cat", "dog", "fox")}}
    truth = {"animal": ["cat", "dog", "fox", "cat"]}
    one, two = (measure_matching(model, pictures, CAPTIONS, truth, prompts) for _ in range(2))
    assert one == two
    assert {"to_caption/low", "to_picture/count", "zero_shot/animal/high"} <= one.figures().keys()
    assert one.to_dict()["picture_to_caption"]["asked"] == 4
