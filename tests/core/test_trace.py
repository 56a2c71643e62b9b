"""A trace comes back whole, or is refused in one line."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.core.trace import FORMAT, Trace, stack


@pytest.fixture
def trace() -> Trace:
    arrays = {
        "noisy": torch.randn(3, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0)),
        "preview": torch.arange(3 * 12, dtype=torch.uint8).view(3, 1, 3, 2, 2),
        "turned": torch.arange(12).view(4, 3).T,
    }
    facts = [{"index": index, "sigma": 1.0 / (1 + index), "text": "é 🦊"} for index in range(3)]
    return Trace("image", "brush", {"prompt": "a cat", "seed": 2**63 - 1, "nodes": None}, arrays, facts)


def described(trace: Trace, **changes) -> dict[str, str]:
    about = {"panel": trace.panel, "model": trace.model, "settings": trace.settings, "facts": trace.facts} | changes
    return {"format": FORMAT, "trace": json.dumps({key: value for key, value in about.items() if value is not ...})}


def assert_refused(path):
    with pytest.raises(ValueError, match="trace") as caught:
        Trace.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trace_comes_back_whole(trace, tmp_path):
    trace.save(tmp_path / "cat.trace")
    again = Trace.load(tmp_path / "cat.trace")
    assert (again.panel, again.model, again.settings) == (trace.panel, trace.model, trace.settings)
    assert again.facts == trace.facts
    assert len(again) == 3
    assert again.arrays.keys() == trace.arrays.keys()
    for name, array in trace.arrays.items():
        assert again.arrays[name].dtype == array.dtype
        assert torch.equal(again.arrays[name], array)
    assert load_file(tmp_path / "cat.trace").keys() == trace.arrays.keys()  # what other tools read


def test_infinities_become_null_because_json_has_none(tmp_path):
    facts = [{"log_snr": math.inf, "all": [math.nan, 1.0], "deep": {"x": -math.inf}}]
    Trace("image", "brush", {}, {}, facts).save(tmp_path / "a.trace")
    assert Trace.load(tmp_path / "a.trace").facts == [{"log_snr": None, "all": [None, 1.0], "deep": {"x": None}}]


def test_a_trace_without_steps_is_a_trace(tmp_path):
    Trace("text", "quill", {"prompt": ""}, {"odds": stack([])}).save(tmp_path / "a.trace")
    assert len(Trace.load(tmp_path / "a.trace")) == 0


def test_stack_puts_the_step_first():
    assert stack([torch.zeros(2), torch.ones(2)]).tolist() == [[0, 0], [1, 1]]


def test_arrays_that_share_memory_are_saved_apart(tmp_path):
    """Two views of one tensor: safetensors alone refuses them."""
    base = torch.arange(6.0)
    Trace("text", "quill", {}, {"a": base, "b": base.view(6, 1)}, [{}] * 6).save(tmp_path / "a.trace")
    assert torch.equal(Trace.load(tmp_path / "a.trace").arrays["b"].flatten(), base)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_a_truncated_trace_is_refused(trace, tmp_path, kept):
    path = tmp_path / "cat.trace"
    trace.save(path)
    path.write_bytes(path.read_bytes()[:kept])
    assert_refused(path)


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    assert_refused(tmp_path / "nothing.trace")
    assert_refused(tmp_path)
    (tmp_path / "photo.trace").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert_refused(tmp_path / "photo.trace")
    save_file({"weight": torch.ones(2)}, tmp_path / "model.trace")
    assert_refused(tmp_path / "model.trace")
    save_file({"weight": torch.ones(2)}, tmp_path / "later.trace", metadata={"format": "diptych-trace-999"})
    assert_refused(tmp_path / "later.trace")


@pytest.mark.parametrize(
    "changes",
    [
        {"panel": "sound"},
        {"panel": ...},
        {"model": 3},
        {"settings": ...},
        {"settings": []},
        {"facts": []},
        {"facts": 3},
        {"facts": None},
        {"facts": [1, 2, 3]},
        {"facts": {"a": 1, "b": 2, "c": 3}},
    ],
)
def test_a_description_that_does_not_fit_is_refused(trace, tmp_path, changes):
    path = tmp_path / "a.trace"
    save_file({"noisy": trace.arrays["noisy"]}, path, metadata=described(trace, **changes))
    assert_refused(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "null"])
def test_a_description_that_is_no_json_object_is_refused(tmp_path, text):
    save_file({}, tmp_path / "a.trace", metadata={"format": FORMAT, "trace": text})
    assert_refused(tmp_path / "a.trace")


def test_an_array_of_another_length_is_refused(trace, tmp_path):
    path = tmp_path / "a.trace"
    save_file({"noisy": torch.ones(2, 4)}, path, metadata=described(trace))
    assert_refused(path)


def test_a_trace_is_not_written_where_there_is_no_folder(trace, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        trace.save(tmp_path / "nowhere" / "a.trace")
