"""Checkpoints: what is saved comes back; what is damaged is refused in one line; the old one outlives a failed save."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diptych.core import weights
from diptych.core.tokenizer import Tokenizer

CONFIG = {"panel": "text", "width": 8, "name": "größe 🦊"}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    fill = torch.Generator().manual_seed(1)
    return {
        "wide.weight": torch.randn(5, 3, generator=fill),
        "wide.bias": torch.randn(5, generator=fill).bfloat16(),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "turned": torch.randn(4, 6, generator=fill).T,
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def assert_refused(directory, match, read=weights.read_tensors):
    with pytest.raises(ValueError, match=match) as caught:
        read(directory)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)


def test_a_checkpoint_comes_back_whole(tensors, tmp_path):
    tokenizer = Tokenizer.train(["a cat"], 258)
    weights.save(tmp_path / "model", CONFIG, tensors, tokenizer=tokenizer, card="# A model\n")
    assert weights.read_config(tmp_path / "model") == CONFIG
    assert_same(weights.read_tensors(tmp_path / "model"), tensors)
    assert Tokenizer.load(tmp_path / "model" / "tokenizer.json").encode("a cat") == tokenizer.encode("a cat")
    files = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert_same(load_file(tmp_path / "model" / "model.safetensors"), tensors)  # what other tools read


@pytest.mark.parametrize("shard_bytes", [1, 24, 64, 100])
def test_a_sharded_checkpoint_comes_back_whole_and_keeps_its_limit(tensors, tmp_path, shard_bytes):
    weights.save(tmp_path / "model", CONFIG, tensors, shard_bytes=shard_bytes)
    assert_same(weights.read_tensors(tmp_path / "model"), tensors)
    index = json.loads((tmp_path / "model" / weights.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    for name in set(index["weight_map"].values()):
        shard = load_file(tmp_path / "model" / name)
        assert all(index["weight_map"][key] == name for key in shard)
        assert sum(tensor.nbytes for tensor in shard.values()) <= shard_bytes or len(shard) == 1
    assert not (tmp_path / "model" / weights.WEIGHTS).exists()


def test_a_save_that_fails_leaves_the_old_checkpoint(tensors, tmp_path, monkeypatch):
    weights.save(tmp_path / "model", CONFIG, tensors)

    def no_space(*_args, **_settings):
        raise OSError("no space left")

    monkeypatch.setattr(weights, "save_file", no_space)
    with pytest.raises(OSError, match="no space"):
        weights.save(tmp_path / "model", {"panel": "image"}, {"other": torch.ones(1)})
    assert weights.read_config(tmp_path / "model") == CONFIG
    assert_same(weights.read_tensors(tmp_path / "model"), tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_config_that_json_cannot_hold_leaves_the_old_checkpoint(tensors, tmp_path):
    weights.save(tmp_path / "model", CONFIG, tensors)
    with pytest.raises(TypeError):
        weights.save(tmp_path / "model", {"device": torch.device("cpu")}, tensors)
    assert weights.read_config(tmp_path / "model") == CONFIG


def test_tensors_are_read_one_at_a_time(tensors, tmp_path):
    """The first tensor of a sharded checkpoint comes although the last shard is gone: nothing is read ahead."""
    weights.save(tmp_path / "model", CONFIG, tensors, shard_bytes=24)
    max((tmp_path / "model").glob("model-*.safetensors")).unlink()
    one_by_one = weights.iterate_tensors(tmp_path / "model")
    assert next(one_by_one)[0] in tensors
    with pytest.raises(ValueError, match="is missing"):
        list(one_by_one)


@pytest.mark.parametrize("kept", [0, 4, 8, 40, -1])
def test_a_truncated_file_is_refused(tensors, tmp_path, kept):
    weights.save(tmp_path / "model", CONFIG, tensors)
    file = tmp_path / "model" / weights.WEIGHTS
    file.write_bytes(file.read_bytes()[:kept])
    assert_refused(tmp_path / "model", "is damaged or not a safetensors file")


@pytest.mark.parametrize("foreign", [b"\x80\x04\x95pickle", b"{}", b"\xff" * 64, b"PK\x03\x04" + bytes(60)])
def test_a_foreign_file_is_refused(tensors, tmp_path, foreign):
    weights.save(tmp_path / "model", CONFIG, tensors)
    (tmp_path / "model" / weights.WEIGHTS).write_bytes(foreign)
    assert_refused(tmp_path / "model", "is damaged or not a safetensors file")


def test_a_missing_file_is_named(tensors, tmp_path):
    assert_refused(tmp_path / "model", "it has no config.json", weights.read_config)
    weights.save(tmp_path / "model", CONFIG, tensors)
    (tmp_path / "model" / weights.WEIGHTS).unlink()
    assert_refused(tmp_path / "model", "model.safetensors is missing")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b'"quill"'])
def test_a_config_that_is_not_a_json_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    assert_refused(tmp_path, "config.json", weights.read_config)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": 3}}', b'{"weight_map": {}}'],
)
def test_an_index_that_is_not_one_is_refused(tmp_path, content):
    (tmp_path / weights.INDEX).write_bytes(content)
    assert_refused(tmp_path, "index.json")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "deep/secret.safetensors", ".."])
def test_a_shard_outside_the_directory_is_never_opened(tmp_path, name):
    model = tmp_path / "model"
    (model / "deep").mkdir(parents=True)
    for place in (tmp_path, model / "deep"):
        save_file({"a": torch.ones(1)}, place / "secret.safetensors")
    (model / weights.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert_refused(model, "is missing|index.json")


def test_load_into_fills_a_module_and_keeps_its_dtype(tmp_path):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    halves = {f"net.{name}": tensor.bfloat16() for name, tensor in source.state_dict().items()}
    weights.save(tmp_path, CONFIG, halves | {"other.weight": torch.ones(1)})
    weights.load_into(target, tmp_path, prefix="net.")
    for name, tensor in target.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, halves[f"net.{name}"].float())


def test_load_into_names_what_does_not_fit(tmp_path):
    module = nn.Linear(3, 2)
    right = module.state_dict()

    def fill(directory):
        weights.load_into(module, directory)

    weights.save(tmp_path, CONFIG, {"weight": right["weight"]})
    assert_refused(tmp_path, "it lacks 'bias'", fill)
    weights.save(tmp_path, CONFIG, dict(right) | {"scale": torch.ones(2)})
    assert_refused(tmp_path, "it has 'scale', which the model has not", fill)
    weights.save(tmp_path, CONFIG, dict(right) | {"weight": torch.ones(2, 4)})
    assert_refused(tmp_path, r"'weight' is \(2, 4\), the model needs \(2, 3\)", fill)


def test_a_checkpoint_whose_replacement_was_killed_half_way_is_read_and_replaced(tmp_path):
    """Between the two renames the old folder lies aside: reading finds it, and so does the next writing."""
    directory = tmp_path / "model"
    weights.save(directory, {"number": 1}, {"a": torch.zeros(2)})
    aside = tmp_path / ".model.old"
    directory.rename(aside)
    assert weights.read_config(directory) == {"number": 1}
    directory.rename(aside)
    weights.save(directory, {"number": 2}, {"a": torch.ones(2)})
    assert weights.read_config(directory) == {"number": 2}
    assert not aside.exists()
