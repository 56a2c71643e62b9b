"""Which pictures a step has: a function of the seed and the step, one bucket a batch.

Each bucket is read as an endless row of epochs, every epoch in an order of its own, and cut into batches. What does not
fill a batch at the end of an epoch opens the bucket's first batch in the next one: after E epochs no picture was seen
more than E times, and none less but for those that wait for a batch, fewer than a batch in each bucket, which were seen
E - 1 times. In which order the buckets take their turns within an epoch is drawn, too, in proportion to what they hold.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from diptych.core.randomness import generator

CHOICE, TURNS = 1, 8  # streams of randomness


@dataclass(frozen=True)
class BucketOrder:
    """Args:
    counts: pictures in each bucket, at least 1.
    batch: pictures in a step.
    """

    counts: tuple[int, ...]
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"every bucket must hold a picture, not {list(self.counts)}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}")

    def steps(self, epochs: int) -> int:
        """Steps in the first `epochs` epochs: every bucket's full batches."""
        return sum(self._begun(epochs))

    def at(self, step: int) -> tuple[int, int]:
        """The bucket of a step (from 0) and the place of its first row in that bucket's endless reading."""
        epoch = step * self.batch // sum(self.counts)  # not too late: `steps` rounds down
        while self.steps(epoch + 1) <= step:
            epoch += 1
        turn = step - self.steps(epoch)
        bucket, earlier = self._turns(epoch)
        return int(bucket[turn]), (self._begun(epoch)[int(bucket[turn])] + int(earlier[turn])) * self.batch

    def member(self, bucket: int, place: int) -> tuple[int, int]:
        """(which of the bucket's pictures, how often it was seen before) at a place of its endless reading."""
        sight, place = divmod(place, self.counts[bucket])
        return int(_permutation(self.counts[bucket], self.seed, bucket, sight)[place]), sight

    def _begun(self, epoch: int) -> list[int]:
        """Batches of each bucket before an epoch."""
        return [count * epoch // self.batch for count in self.counts]

    def _turns(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        begun, ended = self._begun(epoch), self._begun(epoch + 1)
        return _turns(tuple(end - begin for begin, end in zip(begun, ended, strict=True)), self.seed, epoch)


@lru_cache(maxsize=64)
def _permutation(size: int, seed: int, bucket: int, epoch: int) -> np.ndarray:
    return generator(seed=seed, sample=bucket, step=epoch, stream=CHOICE).permutation(size)


@lru_cache(maxsize=4)
def _turns(batches: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """For each step of an epoch: its bucket, and how many batches of that bucket come before it in the epoch."""
    bucket = np.repeat(np.arange(len(batches)), batches)
    earlier = np.concatenate([np.arange(count) for count in batches])
    generator(seed=seed, step=epoch, stream=TURNS).shuffle(bucket)
    order = np.argsort(bucket, kind="stable")
    turns = np.empty_like(earlier)
    turns[order] = earlier
    return bucket, turns
