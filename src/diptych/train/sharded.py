"""Tensors of a checkpoint on disk, in safetensors files, whatever the number of processes that write and read them.

One process writes a file like any other. Several write what each of them holds, with torch's distributed checkpoints,
whose reader takes the one file, too.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diptych.core.weights import save_tensors
from diptych.train.ranks import Ranks

Tensors = dict[str, Tensor]
OF_ONE = "tensors.safetensors"


def write_tensors(tensors: Tensors, folder: Path, ranks: Ranks) -> None:
    """Write into `folder`, each process what it holds. The safetensors headers say which piece of what it is.

    Raises:
        OSError: where the disk refuses.
    """
    plain = {name: value.detach().contiguous() for name, value in tensors.items()}
    if ranks.mesh is None:
        folder.mkdir()
        save_tensors({name: value.cpu() for name, value in plain.items()}, folder / OF_ONE)
        return
    # One process does without what this imports: torch's compiler, which takes a second.
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _quiet():
            save(plain, storage_writer=writer)
    except CheckpointException as error:  # torch wraps what each process met
        cause = next(iter(error.failures.values()))[0]
        raise cause from None


@torch.no_grad()
def read_tensors(tensors: Tensors, folder: Path) -> None:
    """Fill the tensors given from `folder`, whatever the number of processes that wrote it and that read it.

    Raises:
        ValueError: in one line, for what is damaged or lacks one of them or a part of one.
    """
    file = folder / OF_ONE
    if not dist.is_initialized() and file.is_file():
        try:
            with safe_open(file, framework="pt") as opened:
                for name, tensor in tensors.items():
                    tensor.copy_(opened.get_tensor(name))
        except SafetensorError as error:
            raise _damaged(folder, error, OF_ONE) from error
        return
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    try:
        with _quiet():
            # Where a file is gone torch reads what the others have, and leaves the rest of a tensor as it is.
            there = reader.read_metadata().state_dict_metadata
            for name, tensor in tensors.items():
                chunks = getattr(there.get(name), "chunks", ())
                if sum(math.prod(chunk.sizes) for chunk in chunks) < tensor.numel():
                    raise _damaged(folder, f"it lacks {name}, or a part of it")
            load(dict(tensors), storage_reader=reader, no_dist=not dist.is_initialized())
    except SafetensorError as error:
        raise _damaged(folder, error) from error
    except CheckpointException as error:
        raise _damaged(folder, next(iter(error.failures.values()))[0]) from error


def _damaged(folder: Path, why: object, file: str = "") -> ValueError:
    instead = f"without '{folder.parent}' the run goes on from the checkpoint before"
    return ValueError(f"'{folder / file}' is damaged: {why}; {instead}")


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns that one process is alone, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield
