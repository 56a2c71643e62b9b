"""Weights in another form than their file's: the same numbers, and the file's pages no longer in memory."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diptych.core import weights
from diptych.core.mapped import recast
from diptych.core.memory import mapped_files


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(64, 256, 3), nn.Linear(512, 512, bias=False))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {name: torch.randn(tensor.shape).bfloat16() for name, tensor in network().state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def opened(folder: Path) -> nn.Module:
    with weights.outline():
        module = network()
    weights.adopt(module, weights.iterate_tensors(folder), folder)
    return module.requires_grad_(False)


def resident(folder: Path) -> int:
    """Kilobytes of the file that are in this process's memory."""
    maps = Path("/proc/self/smaps").read_text()
    of_file = re.findall(rf"{re.escape(str(folder))}/\S*\n(?:[A-Z]\w+:.*\n)*?Rss: +(\d+) kB", maps)
    return sum(map(int, of_file))


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_numbers_are_those_of_the_file(folder: Path, dtype: torch.dtype | None, channels_last: bool) -> None:
    module, plain = opened(folder), opened(folder)
    recast(module, dtype=dtype, channels_last=channels_last)
    for found, wanted in zip(module.parameters(), plain.parameters(), strict=True):
        assert found.dtype == (dtype or torch.bfloat16)
        assert torch.equal(found, wanted.to(found.dtype))
        assert found.is_contiguous(memory_format=torch.channels_last) or found.ndim != 4 or not channels_last
    for _ in range(2):  # what was given back is read again from the file, by whoever still looks at it
        assert torch.equal(opened(folder)[0].weight, plain[0].weight)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what lies where in memory")
def test_pages_that_were_copied_from_are_given_back(folder: Path) -> None:
    module = opened(folder)
    size = sum(tensor.nbytes for tensor in module.parameters()) / 1024
    for parameter in module.parameters():
        parameter.float().sum()  # read
    assert resident(folder) > 0.9 * size
    recast(module, dtype=torch.float32)
    assert resident(folder) < 0.2 * size


def test_memory_that_is_no_file_is_left_alone() -> None:
    module = network()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    kept = [parameter.data for parameter in module.parameters()]
    recast(module, dtype=torch.float64)
    assert all(torch.equal(one, other) for one, other in zip(kept, before, strict=True))
    assert not any(kept[0].data_ptr() in file.place for file in mapped_files())
