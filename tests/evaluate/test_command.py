"""`diptych evaluate`: the right figures for the right model, one clear line for every wrong pair."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.cli import main
from diptych.core import weights
from diptych.core.tokenizer import Tokenizer
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.encoders import EncoderConfig
from diptych.image.pairing import Pairing, PairingConfig, PairingModel
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.model import TextModel

STORY = "Once upon a time a cat sat by the sea and looked at the sun. " * 5


@pytest.fixture
def writer(tmp_path: Path) -> str:
    torch.manual_seed(4)
    tokenizer = Tokenizer.train([STORY], 280, ["<|begin|>", "<|end|>"])
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "hidden": 24}
    decoder = Decoder(DecoderConfig(vocab_size=tokenizer.size, context=32, **sizes))
    TextModel("tiny", decoder, tokenizer).save(tmp_path / "writer")
    return str(tmp_path / "writer")


@pytest.fixture
def painter(tmp_path: Path) -> str:
    """Enough of a checkpoint to be known as one that paints."""
    weights.save(tmp_path / "painter", {"panel": "image"}, {"a": torch.zeros(1)})
    return str(tmp_path / "painter")


def test_a_text_model_on_a_file(writer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    assert main(["evaluate", writer, "--on", str(tmp_path / "story.txt"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["documents"] == 1
    assert facts["bits_per_byte"] > 0
    assert main(["evaluate", writer, "--on", str(tmp_path / "story.txt")]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"tiny on story.txt: {facts['bits_per_byte']:.3f} bits per byte")


def test_a_text_model_on_passkeys_by_length_and_depth(writer: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", writer, "--on", "passkey", "--documents", "5"]
    assert main([*arguments, "--lengths", "250,400", "--rope-scaling", "ntk", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [facts["lengths"][length]["asked"] for length in ("250", "400")] == [5, 5]
    assert main([*arguments, "--lengths", "300"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "tiny, context 32: hidden numbers found, by the tokens of the text."
    assert said[1].startswith("300 tokens: 0.0 % (0 of 5; 95 % interval 0.0 to ")
    assert said[1].endswith("(past the context, positions as they are)")
    assert [line.split("  ")[1] for line in said[2:]] == [
        f"depth {band} to {end}"
        for band, end in (("0.0", "0.2"), ("0.2", "0.4"), ("0.4", "0.6"), ("0.6", "0.8"), ("0.8", "1.0"))
    ]
    assert main([*arguments, "--lengths", "five"]) == 2
    assert "--lengths must be whole numbers of tokens, like 512,4096, not 'five'" in capsys.readouterr().err
    assert main(["evaluate", writer, "--on", "story.txt", "--lengths", "64"]) == 2
    assert "--lengths, --rope-scaling and --cache are for a model that writes, --on passkey" in capsys.readouterr().err


@pytest.fixture
def stranger(tmp_path: Path) -> str:
    weights.save(tmp_path / "stranger", {"kind": "sculptor"}, {"a": torch.zeros(1)})
    return str(tmp_path / "stranger")


@pytest.fixture
def autoencoder(tmp_path: Path) -> str:
    torch.manual_seed(4)
    network = Autoencoder(AutoencoderConfig(latent_channels=4, widths=(8, 16), decoder_blocks=1))
    config = {"kind": "autoencoder", "name": "tiny", "size": 32, "autoencoder": network.config.to_dict()}
    weights.save(tmp_path / "autoencoder", config, network.state_dict())
    return str(tmp_path / "autoencoder")


@pytest.fixture
def pairing(tmp_path: Path) -> str:
    torch.manual_seed(4)
    tokenizer = Tokenizer.train([STORY], 280)
    encoder = EncoderConfig(tokenizer.size, width=16, num_layers=1, num_heads=2, length=32)
    config = PairingConfig(dimensions=8, size=16, widths=(8, 16), encoder=encoder)
    PairingModel("tiny", Pairing(config), tokenizer).save(tmp_path / "pairing")
    return str(tmp_path / "pairing")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures of other sizes than the models', three of them readable, with captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, size in (("cat", (40, 40)), ("sea", (64, 36)), ("sun", (33, 50))):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name}\n")
    (folder / "torn.jpg").write_bytes(b"no picture")
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    """The facts and the words of one evaluation, which a second one repeats to the last digit."""
    outputs = []
    for options in (["--json"], ["--json"], []):
        assert main(["evaluate", *words, *options]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    return json.loads(outputs[0]), outputs[2]


def test_a_painter_on_a_folder(tiny_brush: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, said = evaluated(capsys, str(tiny_brush), "--on", str(photos))
    assert (facts["model"], facts["pictures"], facts["dtype"]) == ("tiny-brush", 3, "float32")
    assert [level["count"] for level in facts["noise_loss"]["levels"]] == [3] * 10
    low, high = facts["noise_loss"]["interval"]
    assert low < facts["noise_loss"]["value"] < high
    assert facts["autoencoder"]["ssim"]["count"] == 3
    assert f"all noise levels            {facts['noise_loss']['value']:.4f} (95 % interval " in said
    assert re.search(r"skipped 1 of 4: \S*torn\.jpg: ", said)
    assert "PSNR in dB" in said


def test_an_autoencoder_on_a_folder(autoencoder: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, said = evaluated(capsys, autoencoder, "--on", str(photos))
    assert facts["autoencoder"].keys() == {"psnr_db", "ssim", "absolute_error"}
    assert f"SSIM of luminance    {facts['autoencoder']['ssim']['value']:.4f} (95 % interval " in said
    assert "noise_loss" not in facts


def test_a_pairing_on_a_folder(pairing: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, said = evaluated(capsys, pairing, "--on", str(photos))
    assert facts["pairing"]["picture_to_caption"]["asked"] == 3
    assert "by chance 1 of 3" in said
    (photos / "cat.txt").unlink()
    assert main(["evaluate", pairing, "--on", str(photos)]) == 1
    assert "has pictures without a caption" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "options", "status", "message"),
    [
        ("writer", ["--on", "scenes"], 2, "writes text, it does not paint; evaluate it --on a .txt file or one of"),
        ("painter", ["--on", "tinystories"], 2, "does not write, so it cannot be evaluated on 'tinystories'"),
        ("judge", ["--on", "tinystories"], 2, "does not write"),
        ("judge", ["--on", "scenes", "--sheet", "a.png"], 2, "'judge' does not paint"),
        ("writer", ["--on", "nowhere.txt"], 1, "'nowhere.txt' is missing"),
        ("writer", ["--on", "nowhere.txt", "--documents", "0"], 2, "invalid value for '--documents'"),
        ("painter", ["--on", "scenes", "--steps", "0"], 2, "steps must be a whole number from 1"),
        ("painter", ["--on", "scenes", "--guidance", "nan"], 2, "guidance_scale must be a finite number"),
        ("painter", ["--on", "scenes", "--seed", "-1"], 2, "seed must be"),
        ("painter", ["--on", "scenes", "--sheet", "no/such/a.png"], 2, "'no/such' does not exist"),
        ("painter", ["--on", "scenes", "--sheet", "a.gif"], 2, "must end in .png"),
        ("painter", ["--on", ".", "--sheet", "a.png"], 2, "nothing is painted of '.'; use --on scenes"),
        ("autoencoder", ["--on", "tinystories"], 2, "'tinystories'; use --on scenes or a folder of pictures"),
        ("autoencoder", ["--on", "scenes", "--sheet", "a.png"], 2, "autoencoder' does not paint"),
        ("autoencoder", ["--on", "scenes", "--dtype", "bfloat16"], 2, "is measured in float32 alone"),
        ("autoencoder", ["--on", ".", "--device", "abacus"], 2, "device 'abacus' is not on this machine"),
        ("pairing", ["--on", "nowhere"], 2, "'nowhere'; use --on scenes or a folder of pictures"),
        ("judge", ["--on", "."], 2, "cannot be evaluated on '.'; use --on scenes"),
        ("stranger", ["--on", "scenes"], 1, "names none of text, image, judge, autoencoder, pairing"),
        ("brusch", ["--on", "scenes"], 1, "unknown model 'brusch'"),
        ("writer", [], 2, "'--on'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    model: str,
    options: list[str],
    status: int,
    message: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = model if model in ("judge", "brusch") else request.getfixturevalue(model)
    assert main(["evaluate", name, *options]) == status
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
