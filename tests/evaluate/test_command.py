"""`diptych evaluate`: the right figures for the right model, one clear line for every wrong pair."""

import json
from pathlib import Path

import pytest
import torch

from diptych.cli import main
from diptych.core import weights
from diptych.core.tokenizer import Tokenizer
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
    name = request.getfixturevalue(model) if model in ("writer", "painter") else model
    assert main(["evaluate", name, *options]) == status
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
