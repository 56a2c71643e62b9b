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
