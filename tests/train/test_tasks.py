"""Every kind of training, from data to a checkpoint that works, at the smallest size that is real in every part."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.core import weights
from diptych.core.positions import RopeScaling
from diptych.core.tokenizer import Tokenizer
from diptych.data import licences, rendered, scenes
from diptych.data.corpora import CORPORA
from diptych.data.mix import in_proportion
from diptych.data.packing import Batch
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.judge import Judge, JudgeConfig
from diptych.image.model import ImageModel
from diptych.text.model import TextModel
from diptych.train.recipe import Recipe
from diptych.train.run import RunDirectory
from diptych.train.tasks import TASKS, build
from diptych.train.tasks.autoencoder import AutoencoderTask
from diptych.train.tasks.autoencoder import outline as outline_of
from diptych.train.tasks.diffusion import DiffusionTask
from diptych.train.tasks.next_token import NextTokenTask

Finished = Callable[[str], RunDirectory]
Read = Callable[..., Recipe]


def same(first: dict[str, Tensor], second: dict[str, Tensor], prefix: str = "") -> bool:
    """Whether `second`, all names after `prefix`, holds the same numbers as `first`."""
    return all(torch.equal(value.float(), second[prefix + name].float()) for name, value in first.items())


# ---- what all have in common -----------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", TASKS)
def test_a_run_leaves_metrics_samples_and_a_model_with_its_card(finished: Finished, objective: str) -> None:
    run = finished(objective)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    figures = {name: value for line in lines for name, value in line.items()}
    assert all(np.isfinite(value) for value in figures.values())
    assert any(name.startswith("validation/") for name in figures)
    assert run.steps()
    assert len(list(run.samples.glob("step-*"))) == 1  # at the end, which comes before the first interval
    files = {path.name for path in run.model.iterdir()}
    has_words = objective in ("next-token", "diffusion", "contrastive")
    assert files == {"config.json", "model.safetensors", "README.md"} | ({"tokenizer.json"} if has_words else set())


@pytest.mark.parametrize("objective", TASKS)
def test_the_card_says_where_the_model_comes_from(finished: Finished, objective: str) -> None:
    card = (finished(objective).model / "README.md").read_text()
    headings = re.findall(r"^#+ .*$", card, re.MULTILINE)
    assert headings[:5] == ["# tiny", "## How it was made", "## Data and licences", "## Validation", "## Limits"]
    for word in ("recipe", "seed", "validation", "licence", f"objective {objective}", "random weights"):
        assert word in card.lower(), word
    source = "tales.txt" if objective == "next-token" else "CC BY 4.0"
    assert source in card.partition("## Data")[2]
    validation = card.partition("## Validation")[2].partition("## Limits")[0]
    rows = [row.split("|") for row in validation.splitlines() if row.startswith("| ")][1:]
    assert rows
    assert all(row[3].strip() for row in rows), "each figure says what it is"
    assert len(re.findall(r"^- ", card.partition("## Limits")[2], re.MULTILINE)) >= 2
    assert re.search(r"(?<![\w.:/}])/\w+/\w", card.replace("https://", "")) is None, "no path of a machine"


@pytest.mark.parametrize("objective", TASKS)
def test_a_batch_is_a_function_of_the_seed_and_the_step(recipe: Read, objective: str) -> None:
    first, second = build(recipe(objective)), build(recipe(objective))
    other = build(recipe(objective, "run.seed=2"))
    rows = range(first.recipe.run.batch)
    first.source.batch(0, rows)
    here, again, elsewhere = (list(task.source.batch(7, rows)) for task in (first, second, other))
    later = list(first.source.batch(8, rows))
    assert all(map(torch.equal, here, again))
    assert not all(map(torch.equal, here, elsewhere))
    assert not all(map(torch.equal, here, later))
    assert same(first.model.state_dict(), second.model.state_dict())
    assert not same(first.model.state_dict(), other.model.state_dict())


@pytest.mark.parametrize("objective", TASKS)
def test_the_rows_of_a_step_are_the_same_however_they_are_divided(recipe: Read, objective: str) -> None:
    """What gradient accumulation and data parallelism stand on. A source travels to worker processes, so it pickles."""

    def plain(batch: Any) -> Any:
        """With the numbers of a row's documents written out, which may be one number for all."""
        return batch._replace(segments=batch.segments.expand_as(batch.tokens)) if isinstance(batch, Batch) else batch

    source = build(recipe(objective, "run.batch=6")).source
    whole = plain(source.batch(3, range(6)))
    travelled = pickle.loads(pickle.dumps(source))
    for parts in ([range(6)], [range(2), range(2, 6)], [range(row, row + 1) for row in range(6)]):
        batches = [plain(travelled.batch(3, rows)) for rows in parts]
        assert all(
            torch.equal(torch.cat(fields), field)
            for fields, field in zip(zip(*batches, strict=True), whole, strict=True)
        )


@pytest.mark.parametrize("objective", TASKS)
def test_validation_and_samples_are_the_same_for_the_same_weights(recipe: Read, tmp_path: Path, objective: str) -> None:
    task = build(recipe(objective))
    task.model.eval()
    with torch.no_grad():
        assert task.validate() == task.validate()
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            task.sample(tmp_path / folder, 3)
    (first,), (second,) = ((tmp_path / folder).glob("step-*") for folder in ("a", "b"))
    assert first.stem == "step-00000003"
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("objective", TASKS)
def test_a_run_starts_from_the_weights_of_a_finished_model(recipe: Read, finished: Finished, objective: str) -> None:
    """Not one weight is left as it was drawn, and words are read as the finished model reads them."""
    directory = finished(objective).model
    task = build(recipe(objective, f"run.init_from={directory}", "run.seed=5"))
    assert same(task.model.state_dict(), weights.read_tensors(directory))
    assert all(parameter.dtype == torch.float32 for parameter in task.model.parameters())
    if objective == "diffusion":
        assert isinstance(task, DiffusionTask)
        assert task.tokenizer.encode("a cat") == Tokenizer.load(directory / "tokenizer.json").encode("a cat")


def test_a_painter_from_before_its_network_had_a_setting_is_a_start(
    recipe: Read, finished: Finished, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(finished("diffusion").model, directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    del config["unet"]["groups"]
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    task = build(recipe("diffusion", f"run.init_from={directory}"))
    assert same(task.model.state_dict(), weights.read_tensors(directory))


def test_a_run_goes_on_with_longer_texts_and_slower_positions(recipe: Read, finished: Finished, tmp_path: Path) -> None:
    """The weights do not depend on either; and an older checkpoint, which lacks settings that came later, is one."""
    directory = tmp_path / "model"
    shutil.copytree(finished("next-token").model, directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    del config["decoder"]["rope_scaling"], config["decoder"]["position"]
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    scaling = 'model.overrides.rope_scaling={ kind = "yarn", factor = 4, original_context = 16 }'
    task = build(recipe("next-token", f"run.init_from={directory}", "model.context=64", scaling))
    assert isinstance(task, NextTokenTask)
    assert same(task.model.state_dict(), weights.read_tensors(directory))
    assert (task.model.config.context, task.model.config.rope_scaling) == (64, RopeScaling("yarn", 4.0, 16))
    with pytest.raises(ValueError, match=r"unknown key 'factr' in \[model.overrides.rope_scaling\]"):
        build(recipe("next-token", scaling.replace("factor", "factr")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("num_expert = 4", r"unknown key 'num_expert' in \[model.overrides.experts\]; did you mean 'num_experts'"),
        ("num_experts = 4, top_k = 2", r"\[model.overrides.experts\] lacks 'hidden'"),
        ("num_experts = 4, top_k = 5, hidden = 8", r"experts.top_k must be at most num_experts \(4\), not 5"),
        ('num_experts = 4, top_k = "2", hidden = 8', "experts.top_k must be a whole number, not '2'"),
        ("num_experts = 4, top_k = 2, hidden = 8, layers = [1]", r"experts.layers must be below num_layers \(1\)"),
    ],
)
def test_wrong_experts_are_refused_in_one_line(recipe: Callable[..., Recipe], change: str, said: str) -> None:
    chosen = recipe("next-token", f"model.overrides.experts={{ {change} }}")
    with pytest.raises(ValueError, match=said) as refused:
        build(chosen)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("objective", "override", "expected"),
    [
        ("next-token", "model.overrides.hidden=64", "the decoder's hidden is 48 there, 64 here"),
        ("next-token", "model.depth=2", "the decoder's num_layers is 1 there, 2 here"),
        ("next-token", "data.vocab_size=301", "the decoder's vocab_size is 300 there, 301 here"),
        ("autoencoder", "model.latent_channels=8", "the autoencoder's latent_channels is 4 there, 8 here"),
        ("diffusion", "model.unet.head_dim=32", "the unet's head_dim is 16 there, 32 here"),
        ("diffusion", "model.encoder.num_layers=2", "the encoder's num_layers is 1 there, 2 here"),
        ("classifier", "model.widths=[8, 8]", "the judge's widths is [8, 16] there, [8, 8] here"),
        ("contrastive", "model.loss=sigmoid", "the pairing's loss is softmax there, sigmoid here"),
    ],
)
def test_a_model_of_another_size_is_no_start(
    recipe: Read, finished: Finished, objective: str, override: str, expected: str
) -> None:
    directory = finished(objective).model
    with pytest.raises(ValueError, match=re.escape(f"'{directory}' does not fit the recipe: {expected}")) as refused:
        build(recipe(objective, f"run.init_from={directory}", override))
    assert str(refused.value).partition("/tiny.toml")[2].startswith(", [run]: ")
    assert "\n" not in str(refused.value)


def test_a_model_of_another_kind_is_no_start(recipe: Read, finished: Finished, tmp_path: Path) -> None:
    directory = finished("autoencoder").model
    with pytest.raises(ValueError, match=r"\[run\]: '.*model' is not a checkpoint to start from: it has no decoder"):
        build(recipe("next-token", f"run.init_from={directory}"))
    with pytest.raises(ValueError, match=r"\[run\]: unknown model 'nowhere'"):
        build(recipe("next-token", "run.init_from=nowhere"))
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        build(recipe("next-token", f"run.init_from={tmp_path}"))


def test_an_unknown_objective_names_the_nearest(recipe: Read) -> None:
    with pytest.raises(ValueError, match="unknown objective 'next-tokens'; did you mean 'next-token'"):
        build(recipe("next-token", "run.objective=next-tokens"))


@pytest.mark.parametrize(
    ("objective", "override", "expected"),
    [
        ("next-token", "data.mix={}", "data.mix must name at least one corpus"),
        ("next-token", "data.mix={ chilit = 0 }", "data.mix must weigh 'chilit' by a finite number > 0, not 0"),
        ("next-token", "data.vocab_size=100", "vocab_size must be at least 258"),
        ("next-token", "model.depth=0", "[model]: depth must be a whole number >= 1, not 0"),
        ("next-token", "model.dropout=1.0", "[model]: dropout must be a number >= 0 and < 1, not 1.0"),
        ("next-token", "model.overrides.vocab_size=9", "vocab_size has a key of its own"),
        ("next-token", "model.overrides.nrom=rms", "unknown key 'nrom' in [model.overrides]; did you mean 'norm'?"),
        ("autoencoder", "data.size=30", "data.size must be a multiple of 8, not 30"),
        ("autoencoder", "data.seed=-1", "seed must be a whole number from 0 to"),
        ("autoencoder", "data.held_out=24", "data.held_out must be from 1 to below data.scenes (24), not 24"),
        ("autoencoder", "model.widths=[9]", "[model]: autoencoder widths must be multiples of 8, not [9]"),
        ("diffusion", "model.path=ddpm-cosin", "unknown path 'ddpm-cosin'; did you mean 'ddpm-cosine'?"),
        ("diffusion", "model.caption_dropout=1", "model.caption_dropout must be at least 0 and below 1, not 1.0"),
        ("diffusion", "model.unet.widths=[48]", "[model]: U-Net widths must be multiples of 32"),
        ("diffusion", "model.unet.widths=32", "model.unet.widths must be a list, not 32"),
        ("diffusion", "model.encoder.widht=8", "unknown key 'widht' in [model.encoder]; did you mean 'width'?"),
        ("diffusion", "data.autoencoder=nowhere", "there is no autoencoder at 'nowhere'; 'diptych train"),
        ("diffusion", "data.size=36", "data.size must be a multiple of 8, not 36"),
        ("classifier", "model.weights={ hat = 2 }", "model.weights may name animal, worn, place, time, style, not 'ha"),
        ("classifier", "data.blur=9", "data.blur must be from 0 to 3, not 9"),
        ("classifier", "model.size=15", "[model]: judge size must be a multiple of 4, not 15"),
        ("contrastive", "model.size=18", "[model]: pairing size must be a multiple of 4, not 18"),
        ("contrastive", "model.size=64", "data.size must be at least model.size (64), not 32"),
        ("contrastive", "model.loss=hinge", "model.loss must be one of softmax, sigmoid, not 'hinge'"),
        ("contrastive", "model.encoder.widht=8", "unknown key 'widht' in [model.encoder]; did you mean 'width'?"),
        ("contrastive", "run.batch=1", "run.batch must be at least 2: a pair is told from the others of its batch"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_built_says_why_in_one_line(
    recipe: Read, objective: str, override: str, expected: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)) as refused:
        build(recipe(objective, override))
    assert re.match(r".*/tiny\.toml(, line \d+|, \[[a-z.]+\]): ", str(refused.value))
    assert "\n" not in str(refused.value)


# ---- text ------------------------------------------------------------------------------------------------------


def test_the_finished_text_model_writes(finished: Finished) -> None:
    model = TextModel.load(finished("next-token").model, dtype="float32")
    assert (model.name, model.tokenizer.size, model.config.context) == ("tiny", 300, 48)
    result = model.generate("Once upon", max_tokens=5, seed=1).result()
    assert len(result.tokens) == 5 or result.finish_reason == "stop"
    stored = weights.read_tensors(finished("next-token").model)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_the_vocabulary_is_learned_in_the_proportions_of_the_mix() -> None:
    """Twice the weight, twice the characters: of two corpora of one size the lighter one is read to its half."""
    texts = {"heavy": ["h" * 100] * 10, "light": ["l" * 100] * 10}
    read = "".join(in_proportion(texts, {"heavy": 2.0, "light": 1.0}))
    assert (read.count("h"), read.count("l")) == (1000, 500)


def test_training_never_reads_what_validates(recipe: Read) -> None:
    task = build(recipe("next-token"))
    assert isinstance(task, NextTokenTask)
    (held_out,) = ([text.partition(".")[0] for text in texts] for texts in task.held_out.values())
    pages = [
        task.tokenizer.decode(row.tolist()) for step in range(20) for row in task.source.batch(step, range(2)).tokens
    ]
    assert len(held_out) > 2
    assert sum("Once upon a time" in page for page in pages) > 10
    assert not any(opening in page for opening in held_out for page in pages)


def test_a_mixture_of_files_of_every_kind_trains(recipe: Read, world: Path, tmp_path: Path) -> None:
    """Lines of JSON beside plain text: the broken one is counted, what the text has too is left out, and said."""
    tales = [f"Tale {number}. There was a fox that ran to the sea. " + "It ran on. " * number for number in range(40)]
    old = (world / "tales.txt").read_text().split("<|endoftext|>")[:3]
    lines = "\n".join(json.dumps({"story": tale}) for tale in [*tales, *old, None])
    (tmp_path / "more.jsonl").write_text(lines)
    task = build(
        recipe("next-token", f"data.mix={{ '{world / 'tales.txt'}' = 1, '{tmp_path / 'more.jsonl'}#story' = 2 }}")
    )
    assert isinstance(task, NextTokenTask)
    assert task.repeated == 3
    assert task.remarks[0] == f"skipped 1 of 74: {tmp_path / 'more.jsonl'}, line 44: is null, not text"
    assert "3 that repeat others were left out" in task.about().data
    assert {"bits_per_byte/tales", "bits_per_byte/more"} <= task.validate().keys()


# ---- pictures --------------------------------------------------------------------------------------------------


def test_a_recipe_chooses_the_autoencoder_of_stable_diffusion(recipe: Read) -> None:
    """It learns from the task's own batches, and a plan knows it."""
    switches = ("groups=4", "blocks_widen=true", "pads_after=true", 'middle="attention"', "has_latent_convs=true")
    asked = recipe("autoencoder", "model.fold=1", "model.widths=[8,16,16,16]", *(f"model.{one}" for one in switches))
    task = build(asked)
    assert isinstance(task, AutoencoderTask)
    config = task.model.config
    assert (config.downsampling, config.middle, config.has_latent_convs) == (8, "attention", True)
    task.loss(task.source.batch(0, range(2)))[0].backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in task.model.parameters())
    planned = outline_of(asked)
    assert planned.loss(planned.make(), planned.batch(2)).ndim == 0


def test_the_finished_autoencoder_has_latents_of_spread_one(finished: Finished) -> None:
    """Shift and scale are measured on training pictures when the model is saved."""
    config = weights.read_config(finished("autoencoder").model)
    autoencoder = Autoencoder(AutoencoderConfig.from_dict(config["autoencoder"])).eval()
    weights.load_into(autoencoder, finished("autoencoder").model)
    drawn = rendered.render(11, 24, 32).pictures[:16]
    with torch.no_grad():
        latents = autoencoder.encode(torch.from_numpy(drawn.copy()).float() / 127.5 - 1)
    assert latents.shape == (16, 4, 4, 4)
    assert latents.mean((0, 2, 3)).abs().max() < 0.05
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_the_finished_image_model_paints(finished: Finished) -> None:
    model = ImageModel.load(finished("diffusion").model, dtype="float32")
    assert (model.name, model.height, model.latent_shape) == ("tiny", 32, (4, 4, 4))
    result = model.generate("a cat on a beach", steps=2, seed=1).result()
    assert result.image.size == (32, 32)
    autoencoder = weights.read_tensors(finished("autoencoder").model)
    stored = weights.read_tensors(finished("diffusion").model)
    expected = {name: tensor.bfloat16() for name, tensor in autoencoder.items()}
    assert same(expected, stored, "autoencoder."), "the autoencoder stays as it was trained"


def test_a_painter_gives_its_autoencoder_to_the_next_one(recipe: Read, finished: Finished) -> None:
    directory = finished("diffusion").model
    task = build(recipe("diffusion", f"data.autoencoder={directory}"))
    assert isinstance(task, DiffusionTask)
    assert same(task.painter.autoencoder.state_dict(), weights.read_tensors(directory), "autoencoder.")


def test_captions_are_left_out_at_the_rate_asked_for(recipe: Read) -> None:
    """The empty prompt is begin and end: two tokens. Three standard deviations of 400 draws at 0.3 are 0.07."""
    task = build(recipe("diffusion", "model.caption_dropout=0.3", "run.batch=100"))
    assert isinstance(task, DiffusionTask)
    lengths = torch.cat([task.source.batch(step, range(100)).mask.sum(1) for step in range(4)])
    assert (lengths == 2).float().mean().item() == pytest.approx(0.3, abs=0.07)


def test_each_epoch_shows_every_training_scene_once(recipe: Read) -> None:
    task = build(recipe("diffusion"))
    assert isinstance(task, DiffusionTask)
    latents = torch.from_numpy(task.latents.plain[0].values.array.copy()).float()
    for epoch in range(2):
        seen = torch.cat([task.source.batch(step, range(4)).latents for step in range(4 * epoch, 4 * epoch + 4)])
        found = [int((latents - one).abs().flatten(1).sum(1).argmin()) for one in seen]
        assert sorted(found) == list(range(16)), "24 scenes, 8 of them held out"


def test_the_finished_judge_reads(finished: Finished) -> None:
    config = weights.read_config(finished("classifier").model)
    judge = Judge(JudgeConfig.from_dict(config["judge"])).eval()
    weights.load_into(judge, finished("classifier").model)
    (said,) = judge.read(torch.zeros(1, 3, 32, 32))
    assert said.keys() == scenes.ATTRIBUTES.keys()


# ---- drawn scenes ----------------------------------------------------------------------------------------------


def test_scenes_drawn_by_several_processes_are_those_drawn_by_one(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    monkeypatch.setattr(rendered, "CHUNK", 3)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    several = rendered.render(5, 7, 16)
    for index, (picture, scene) in enumerate(zip(several.pictures, several.truth, strict=True)):
        assert scene == scenes.scene_at(5, index)
        assert not scenes.is_held_out(scene)
        expected = np.asarray(scenes.compose(scene, 5, index, 16)).transpose(2, 0, 1)
        assert np.array_equal(picture, expected)


def test_scenes_are_drawn_once(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    first = rendered.render(5, 2, 16)
    monkeypatch.setattr(scenes, "compose", None)
    assert np.array_equal(rendered.render(5, 2, 16).pictures, first.pictures)
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(TypeError):
        rendered.render(6, 2, 16)
    assert len(list(tmp_path.iterdir())) == 1, "what could not be drawn leaves no file"


def test_every_corpus_and_every_sprite_has_a_licence() -> None:
    assert CORPORA.keys() | set(licences.SCENES) == licences.SOURCES.keys()
    assert all(source.title and source.licence for source in licences.SOURCES.values())
    assert licences.source("/srv/me/tales.txt").title == "data of the recipe's author, `tales.txt`"
    assert licences.source("hf:owner/name:small").home == "https://huggingface.co/datasets/owner/name"


def test_samples_are_sheets_of_pictures(recipe: Read, tmp_path: Path) -> None:
    task = build(recipe("diffusion"))
    task.model.eval()
    with torch.no_grad():
        task.sample(tmp_path, 1)
    with Image.open(tmp_path / "step-00000001.png") as sheet:
        assert sheet.size == (4 * 32, 2 * 32)
