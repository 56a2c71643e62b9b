"""Checkpoints of one process and of several are one kind of thing: each reads the other's. What several write is read
by one in `test_ranks`."""

import os
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from diptych.train.ranks import ALONE
from diptych.train.sharded import read_tensors, write_tensors


def made() -> dict[str, torch.Tensor]:
    kernel = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    return {"a/kernel": kernel, "a/step": torch.tensor(7.0), "b": torch.randn(5, 2, dtype=torch.float64)}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_one_process_wrote_is_read_by_it_and_by_torchs_reader_for_several(tmp_path: Path) -> None:
    wanted = made()
    write_tensors(wanted, tmp_path / "part", ALONE)
    again = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    layout = again["a/kernel"].stride()
    read_tensors(again, tmp_path / "part")
    several = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    load(dict(several), storage_reader=HuggingFaceStorageReader(str(tmp_path / "part")), no_dist=True)
    for name, tensor in wanted.items():
        assert torch.equal(again[name], tensor)
        assert torch.equal(several[name], tensor)
    assert again["a/kernel"].stride() == layout


def test_a_damaged_file_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "step-8").mkdir()
    write_tensors(made(), tmp_path / "step-8" / "part", ALONE)
    with pytest.raises(ValueError, match=r"tensors.safetensors' is damaged: .* c; without '.*step-8' the run"):
        read_tensors(made() | {"c": torch.zeros(2)}, tmp_path / "step-8" / "part")
    os.truncate(tmp_path / "step-8" / "part" / "tensors.safetensors", 100)
    with pytest.raises(ValueError, match=r"tensors.safetensors' is damaged: [^\n]+; without '[^\n]+$"):
        read_tensors(made(), tmp_path / "step-8" / "part")
