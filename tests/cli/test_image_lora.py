import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import diptych as package
from diptych.core.lora import Adapter, LoraSettings
from diptych.image.photo import read_facts
from diptych.interop.lora import write_lora


@pytest.fixture
def ink(folder, tiny_brush):
    model = package.load(str(tiny_brush), "cpu", "float32")
    adapter = Adapter.fresh(nn.ModuleDict(model.parts), LoraSettings())
    torch.manual_seed(1)
    for layer in adapter.layers.values():
        nn.init.normal_(layer.b, std=0.5)
    write_lora(adapter, model.parts, folder / "ink.safetensors")
    return "ink.safetensors"


def pixels(path):
    return np.asarray(Image.open(path))


def test_a_picture_is_painted_with_a_lora_and_again(paint, diptych, ink, tiny_brush):
    words = ("--seed", 7, "--steps", 3, "--out")
    assert paint(*words, "bare.png").status == 0
    assert paint(*words, "ink.png", "--lora", ink).status == 0
    assert paint(*words, "half.png", "--lora", f"{ink}:0.5").status == 0
    assert paint(*words, "none.png", "--lora", f"{ink}:0").status == 0
    assert not np.array_equal(pixels("ink.png"), pixels("bare.png"))
    assert not np.array_equal(pixels("ink.png"), pixels("half.png"))
    assert np.array_equal(pixels("none.png"), pixels("bare.png"))
    assert read_facts("half.png")["adapters"] == {ink: 0.5}
    assert diptych("image", "--like", "half.png", "--model", tiny_brush, "--out", "again.png").status == 0
    assert np.array_equal(pixels("again.png"), pixels("half.png"))


def test_a_picture_is_believed_about_its_lora_until_another_is_named(paint, diptych, ink, tiny_brush, folder):
    """What lies at the path now is opened, and only as safetensors; with --lora it is not looked at."""
    again = ("image", "--like", "ink.png", "--model", tiny_brush, "--out", "again.png")
    assert paint("--seed", 7, "--steps", 1, "--lora", ink, "--out", "ink.png").status == 0
    (folder / ink).rename("mine.safetensors")
    gone = diptych(*again)
    assert (gone.status, gone.err) == (2, f"diptych: there is no LoRA file at '{ink}'\n")
    (folder / ink).write_bytes(b"\x80\x04N.")  # a pickle
    assert "is damaged or not a safetensors file" in diptych(*again).err
    assert diptych(*again, "--lora", "mine.safetensors").status == 0
    assert np.array_equal(pixels("again.png"), pixels("ink.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.safetensors"], "there is no LoRA file at 'none.safetensors'"),
        (["ink.safetensors:much"], "--lora is FILE or FILE:SCALE with a finite number, not 'ink.safetensors:much'"),
        (["ink.safetensors", "ink.safetensors:2"], "--lora names 'ink.safetensors' twice"),
    ],
)
def test_what_is_no_lora_is_said(paint, ink, words, message):
    run = paint(*[part for word in words for part in ("--lora", word)])
    assert run.status == 2
    assert message in run.err


def test_a_lora_is_merged_into_a_painter_of_the_house(paint, diptych, ink, folder, tiny_brush):
    run = diptych("models", "merge", tiny_brush, ink, "--out", "inked")
    assert run.status == 0
    assert run.out.endswith("with the adapter in its weights; 'diptych image --model inked' paints\n")
    words = ("--seed", 7, "--steps", 3, "--dtype", "float32", "--out")
    assert diptych("image", "a cat", "--model", "inked", *words, "merged.png").status == 0
    assert paint(*words, "ink.png", "--lora", ink).status == 0
    assert paint(*words, "bare.png").status == 0
    merged, worn, bare = (pixels(f"{name}.png").astype(int) for name in ("merged", "ink", "bare"))
    assert np.abs(merged - worn).mean() < 0.1 * np.abs(worn - bare).mean()
