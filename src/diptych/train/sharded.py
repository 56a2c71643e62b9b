"""Tensors that lie over several processes, on disk: torch's distributed checkpoints, in safetensors files."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from diptych.train.ranks import Ranks

Tensors = dict[str, Tensor]


def write_tensors(tensors: Tensors, folder: Path, ranks: Ranks) -> None:
    """Write into `folder`, each process what it holds. The safetensors headers say which piece of what it is.

    Raises:
        OSError: where the disk refuses.
    """
    plain = {name: value.detach().contiguous() for name, value in tensors.items()}
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _quiet():
            save(plain, storage_writer=writer, no_dist=ranks.mesh is None)
    except CheckpointException as error:  # torch wraps what each process met
        cause = next(iter(error.failures.values()))[0]
        raise cause from None


def read_tensors(tensors: Tensors, folder: Path) -> None:
    """Fill the tensors given from `folder`, whatever the number of processes that wrote it and that read it."""
    with _quiet():
        reader = HuggingFaceStorageReader(str(folder))
        load(dict(tensors), storage_reader=reader, no_dist=not dist.is_initialized())


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns that one process is alone, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield
