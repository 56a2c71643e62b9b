"""Reading ahead: batches are made in worker processes while the step before them is computed."""

import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from diptych.core.allocator import keep_freed_memory
from diptych.data.source import Source
from diptych.data.trouble import Trouble

AHEAD = 2  # steps that a worker makes before they are asked for


class Read(NamedTuple):
    """A step's batches, one a part, and what was found broken in making them."""

    parts: list[Any]
    troubles: list[Trouble]


class _Steps(Dataset[Read]):
    """A step's number -> what is read for it. torch's loader sends it to the workers."""

    def __init__(self, source: Source[Any], parts: Sequence[range]) -> None:
        self.source, self.parts = source, list(parts)

    def __getitem__(self, step: int) -> Read:
        return Read([self.source.batch(step, rows) for rows in self.parts], list(self.source.troubles()))


def read_ahead(source: Source[Any], steps: range, parts: Sequence[range], workers: int) -> Iterator[Read]:
    """What each step of `steps` trains on, in order: for each of `parts`, those rows of the step.

    Args:
        workers: processes that read; 0 reads in this one. The batches are the same.
    """
    loader: DataLoader[Read] = DataLoader(
        _Steps(source, parts),
        sampler=steps,
        batch_size=None,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        worker_init_fn=_begin if workers else None,
        # Not forks: this process may hold threads and a device.
        multiprocessing_context="forkserver" if workers else None,
    )
    return iter(loader)


def _as_it_is(read: Read) -> Read:
    return read


def _begin(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; this one is stopped by the one that it reads for. It is to leave that
    one as much of the processor as it can."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
