"""Checkpoints of one process and of several are one kind of thing: each reads the other's."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from diptych.core.allocator import give_back
from diptych.train.meter import forget_most_held, most_held
from diptych.train.ranks import ALONE
from diptych.train.sharded import read_tensors, write_tensors

TWO = """
import torch, torch.distributed as dist
from pathlib import Path
from types import SimpleNamespace
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from diptych.train.sharded import write_tensors

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
halves = distribute_tensor(torch.arange(12.0).view(4, 3), mesh, [Shard(0)])
write_tensors({"a": halves}, Path("part"), SimpleNamespace(mesh=mesh))
dist.barrier()  # neither leaves while the other may still have something to say
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote, half of a tensor each."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "part").mkdir()
    (folder / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "two.py"]
    home = {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=os.environ | home, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder / "part"


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


def test_what_two_processes_wrote_is_read_by_one(of_two: Path) -> None:
    found = torch.zeros(4, 3)
    read_tensors({"a": found}, of_two)
    assert torch.equal(found, torch.arange(12.0).view(4, 3))


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda first, last: os.truncate(first, first.stat().st_size - 5), "incomplete metadata"),
        (lambda first, last: first.write_bytes(b"x" * 200), "header too large"),
        (lambda first, last: first.unlink(), "it lacks a, or a part of it"),
        (lambda first, last: last.unlink(), "it lacks a, or a part of it"),
    ],
)
def test_of_what_several_wrote_nothing_may_be_damaged_or_gone(
    harm: Callable[[Path, Path], object], why: str, of_two: Path, tmp_path: Path
) -> None:
    """torch alone would read what is left, and the rest would be as it was before."""
    shutil.copytree(of_two, tmp_path / "step-8" / "part")
    first, last = sorted((tmp_path / "step-8" / "part").iterdir())
    harm(first, last)
    with pytest.raises(ValueError, match=rf"part' is damaged: [^\n]*{why}[^\n]*; without '.*step-8' the run goes on"):
        read_tensors({"a": torch.zeros(4, 3)}, tmp_path / "step-8" / "part")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not say what was held at most")
@pytest.mark.parametrize("is_turned", [False, True])
def test_one_process_copies_what_lies_in_another_order_and_no_more(tmp_path: Path, is_turned: bool) -> None:
    """Plans count on it (`Footprint.saving`)."""
    mib = 2**20
    tensors = {f"{number}": torch.ones(16, 1024, 32, 32) for number in range(2)}
    if is_turned:
        tensors = {name: one.contiguous(memory_format=torch.channels_last) for name, one in tensors.items()}
    give_back()  # what another test of this process freed would be copied into, and not be seen
    assert forget_most_held()
    before = most_held()
    write_tensors(tensors, tmp_path / "part", ALONE)
    assert (tmp_path / "part" / "tensors.safetensors").stat().st_size > 128 * mib
    assert most_held() - before == pytest.approx(128 * mib if is_turned else 0, abs=24 * mib)
