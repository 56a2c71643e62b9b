"""A hub id becomes a folder where there is a network, and a line that says what to do where there is none."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

import diptych
from diptych.interop import hub


@pytest.mark.parametrize(
    ("name", "expected"),
    [("org/name", True), ("Qwen/Qwen3-0.6B", True), ("quill", False), ("./org/name", False), ("a/b/c", False)],
)
def test_what_may_be_an_id(name, expected):
    assert hub.is_id(name) is expected


def test_a_path_into_a_folder_that_is_here_is_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with pytest.raises(ValueError, match="unknown model 'runs/gone'"):
        diptych.load("runs/gone")


def test_an_id_is_fetched_without_code_or_pickles_and_opened(published, monkeypatch):
    asked = {}

    def snapshot(id, **settings):
        asked.update(settings, id=id)
        return str(published("llama-3"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert diptych.load("org/llama", "cpu", "float32").config.num_layers == 3
    assert asked["id"] == "org/llama"
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in asked["allow_patterns"])


def test_of_a_painter_the_folders_of_its_parts_are_fetched(tmp_path, monkeypatch):
    """Its index is looked for first, and alone: what lies beside it may be whole models in one file."""
    (tmp_path / "model_index.json").write_text("{}")
    asked = []

    def snapshot(id, **settings):
        asked.append(settings)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert hub.fetch("org/painter") == tmp_path
    assert asked[0] == {"allow_patterns": ["model_index.json"]}
    names = [
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt",
        "v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin",
        "safety_checker/model.safetensors", "unet/model.onnx",
    ]  # fmt: skip
    told = {"allow_patterns": asked[1]["allow_patterns"], "ignore_patterns": asked[1]["ignore_patterns"]}
    assert list(huggingface_hub.utils.filter_repo_objects(names, **told)) == names[:4]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.ckpt", "is a pickle, which may hold code that runs when it is opened"),
        ("pytorch_model.bin", "is a pickle, which may hold code"),
        ("sd.safetensors", "without the settings that they belong to: a model is a folder"),
        ("notes.txt", "is a file; a model is a folder"),
    ],
)
def test_a_file_is_no_model_and_the_way_out_is_told(file, message, tmp_path):
    (tmp_path / file).write_bytes(b"...")
    with pytest.raises(ValueError, match=message):
        diptych.load(str(tmp_path / file))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError, "'hf download org/name --local-dir DIR' fetches it"),
        (RepositoryNotFoundError, "there is no model 'org/name'"),
        (GatedRepoError, "accept it at https://huggingface.co/org/name"),
    ],
)
def test_what_cannot_be_fetched_says_what_to_do(error, message, monkeypatch):
    def snapshot(id, **settings):
        raise error.__new__(error)  # they are made from the hub's answer

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(ValueError) as caught:
        diptych.load("org/name")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
