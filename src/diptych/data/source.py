"""Where batches come from: a function of the step, so that a run resumes at any step without replaying the data."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from diptych.data.trouble import Trouble

BatchT = TypeVar("BatchT", bound=tuple[Tensor, ...], covariant=True)


class Source(Protocol[BatchT]):
    """Batches as named tuples of CPU tensors. A source goes to worker processes, so it pickles, and large arrays in it
    are mapped from disk.

    A step has `run.batch` rows. `rows` asks for some of them: every split of a step's rows into ranges gives the same
    rows, which is what gradient accumulation and data parallelism stand on.
    """

    def batch(self, step: int, rows: range) -> BatchT:
        """These rows of the batch of `step` (from 0); a pure function of its arguments."""
        ...

    def troubles(self) -> Sequence[Trouble]:
        """What was found broken and replaced since the last call."""
        ...
