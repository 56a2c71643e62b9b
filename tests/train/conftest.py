"""What the tasks need of the world: stand-ins for the sprites, a small text, and a cache that goes away."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from diptych.data import sprites
from diptych.train.loop import train
from diptych.train.recipe import Recipe, read_recipe
from diptych.train.run import RunDirectory
from diptych.train.tasks import build

RECIPES: dict[str, str] = {}

RECIPES["autoencoder"] = """
[run]
objective = "autoencoder"
steps = 4
batch = 4
average = 0.5
workers = 0

[model]
latent_channels = 4
widths = [8, 16]
decoder_blocks = 1

[data]
scenes = 24
held_out = 8
size = 32
"""

RECIPES["diffusion"] = """
[run]
objective = "diffusion"
steps = 3
batch = 4
average = 0.5
workers = 0

[model]
path = "ddpm-linear"

[model.unet]
widths = [32]
has_attention = [true]
head_dim = 16

[model.encoder]
width = 32
num_layers = 1
num_heads = 2

[data]
autoencoder = "AUTOENCODER"
scenes = 24
held_out = 8
size = 32
vocab_size = 300
"""

RECIPES["classifier"] = """
[run]
objective = "classifier"
steps = 3
batch = 4
average = 0.5
workers = 0

[model]
size = 16
widths = [8, 16]
weights = { worn = 2.0 }

[data]
scenes = 24
held_out = 8
size = 32
fresh = 60
"""

RECIPES["contrastive"] = """
[run]
objective = "contrastive"
steps = 3
batch = 4
average = 0.5

[model]
dimensions = 16
size = 16
widths = [8, 16]

[model.encoder]
width = 32
num_layers = 1
num_heads = 2

[data]
scenes = 24
held_out = 8
size = 32
vocab_size = 300
"""

RECIPES["next-token"] = """
[run]
objective = "next-token"
steps = 3
batch = 2
average = 0.5
workers = 0

[model]
depth = 1
context = 48
dropout = 0.1

[model.overrides]
width = 32
num_heads = 2
num_kv_heads = 1
head_dim = 16
hidden = 48

[data]
vocab_size = 300
validation_documents = 3
validation_share = 0.2

[data.mix]
"TALES" = 1.0

[optimizer]
name = "muon"
"""

# Larger, for plans, which need no data.
TALE = """
[run]
objective = "next-token"
steps = 2
batch = 24
workers = 0
sample_every = 0

[model]
depth = 2
context = 256
overrides = { width = 256, num_heads = 4, num_kv_heads = 4, hidden = 768 }

[data]
mix = { "tale.txt" = 1 }
vocab_size = 300
validation_documents = 1
"""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, kernels: Callable[[Path], Path]) -> Iterator[Path]:
    """A data folder with a disc of its own colour for every sprite, and tales; a cache beside it."""
    folder = tmp_path_factory.mktemp("world")
    for style, side in (("3d", 128), ("flat", 72)):
        place = folder / (sprites.FLUENT if style == "3d" else sprites.TWEMOJI)
        place.mkdir()
        rows = []
        for n, name in enumerate(sprites.SPRITES.values()):
            sprite = Image.new("RGBA", (side, side))
            ImageDraw.Draw(sprite).ellipse((4, 4, side - 5, side - 5), fill=(40 + 13 * n, 240 - 11 * n, side, 255))
            file = f"{n}.png" if style == "3d" else f"{name}.png"
            sprite.save(place / file)
            rows.append(f"{file}\t{name}\tstand-ins\n")
        (place / "names.tsv").write_text("".join(rows), encoding="utf-8")
    animals = ("cat", "dog", "fox", "frog", "bear", "pig")
    tales = [
        f"Once upon a time there was a {one} that lived by the sea with a {other}. Every day the {one} went to the "
        f"beach to look for shells, and the {other} stayed at home. One evening the {one} did not come back. The "
        f"{other} was afraid, took a lamp, and found the {one} asleep under a tree."
        for one in animals
        for other in animals
        if one != other
    ]
    (folder / "tales.txt").write_text("<|endoftext|>".join(tales))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPTYCH_DATA", str(folder))
        patch.setenv("DIPTYCH_CACHE", str(kernels(folder / "cache")))
        yield folder


@pytest.fixture(scope="session")
def recipe_texts() -> dict[str, str]:
    """The recipes of this file, with AUTOENCODER and TALES for what they read."""
    return RECIPES


@pytest.fixture(scope="session")
def finished(world: Path) -> Callable[[str], RunDirectory]:
    """finished("diffusion"): the run of that recipe of this file, trained once a session."""
    runs: dict[str, RunDirectory] = {}

    def run_of(objective: str) -> RunDirectory:
        if objective not in runs:
            folder = world / objective
            folder.mkdir()
            autoencoder = run_of("autoencoder") if objective == "diffusion" else None
            recipe = _written(folder, objective, world, autoencoder)
            runs[objective] = RunDirectory(folder / "run")
            train(recipe, build(recipe), runs[objective], lambda progress: None)
        return runs[objective]

    return run_of


@pytest.fixture
def recipe(world: Path, tmp_path: Path, finished: Callable[[str], RunDirectory]) -> Callable[..., Recipe]:
    """recipe("diffusion", "run.steps=1"): that recipe of this file, written down and read."""

    def read(objective: str, *overrides: str) -> Recipe:
        autoencoder = finished("autoencoder") if objective == "diffusion" else None
        return _written(tmp_path, objective, world, autoencoder, *overrides)

    return read


@pytest.fixture
def tale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe TALE, written into a folder that is the working one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "tale.toml"
    path.write_text(TALE)
    return path


def _written(folder: Path, objective: str, world: Path, autoencoder: RunDirectory | None, *overrides: str) -> Recipe:
    text = RECIPES[objective].replace("TALES", str(world / "tales.txt"))
    path = folder / "tiny.toml"
    path.write_text(text.replace("AUTOENCODER", str(autoencoder.model) if autoencoder else ""))
    return read_recipe(path, list(overrides))
