"""The threads that run compiled kernels: the one that calls, and helpers that sleep while there is nothing to do.

A helper that has just worked waits a fraction of a millisecond for more, as between two tokens; then it sleeps, and the
next call wakes it. No call waits for a helper that is late: shares go to whoever takes them.
"""

import threading
from collections.abc import Callable

import numpy as np
import torch

from diptych.core import row_plan as at
from diptych.core.machine_code import compiled


class Crew:
    """Args: run: `row_kernel.run`, as machine code."""

    def __init__(self, run: Callable[[int, int, int], int]) -> None:
        self._run = run
        # On a line of memory of its own.
        self._memory = np.zeros(at.CONTROL + 8, np.int64)
        self._control = self._memory.ctypes.data + -self._memory.ctypes.data % 64
        self._turn = threading.Lock()
        self._awake: list[bool] = [True]  # of each thread; the first calls
        self._wake: list[threading.Semaphore] = [threading.Semaphore(0)]

    def run(self, plan: int, threads: int) -> None:
        """Go through a plan with up to so many threads."""
        with self._turn:
            while len(self._awake) < threads:
                self._hire()
            for thread in range(1, threads):
                if not self._awake[thread]:
                    self._awake[thread] = True
                    self._wake[thread].release()
            self._run(self._control, plan, 0)

    def _hire(self) -> None:
        thread = len(self._awake)
        self._awake.append(False)
        self._wake.append(threading.Semaphore(0))
        threading.Thread(target=self._help, args=(thread,), name=f"diptych-{thread}", daemon=True).start()

    def _help(self, thread: int) -> None:
        while True:
            self._wake[thread].acquire()
            self._run(self._control, 0, thread)
            self._awake[thread] = False


_crews: list[Crew] = []
_hiring = threading.Lock()


def crew() -> Crew:
    """The one of this process."""
    with _hiring:
        if not _crews:
            _crews.append(Crew(compiled()))
        return _crews[0]


def num_threads() -> int:
    """As many as torch has."""
    return torch.get_num_threads()
