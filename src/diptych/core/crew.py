"""The threads that run compiled kernels: the one that calls, and helpers that sleep while there is nothing to do.

A helper that has just worked waits a fraction of a millisecond for more, as between two tokens; then it sleeps, and the
next call wakes it. No call waits for a helper that is late: shares go to whoever takes them.
"""

import atexit
import os
import threading
from collections.abc import Callable

import numpy as np
import torch

from diptych.core import row_plan as at
from diptych.core.machine_code import ROWS, compiled


class Crew:
    """Args: run: `row_kernel.run`, as machine code."""

    def __init__(self, run: Callable[[int, int, int], int]) -> None:
        self._run = run
        # On a line of memory of its own.
        self._memory = np.zeros(at.CONTROL + 8, np.int64)
        spare = -self._memory.ctypes.data % 64
        self._control, self._stopped = self._memory.ctypes.data + spare, spare // 8 + at.STOPPED
        self._turn = threading.Lock()
        self._helpers: list[threading.Thread] = []
        self._awake: list[bool] = []
        self._wake: list[threading.Semaphore] = []
        atexit.register(self._dismiss)  # before what they run in is taken out of memory

    def run(self, plan: int, threads: int) -> None:
        """Go through a plan with up to so many threads."""
        with self._turn:
            while len(self._helpers) < threads - 1:
                self._hire()
            for helper in range(threads - 1):
                if not self._awake[helper]:
                    self._awake[helper] = True
                    self._wake[helper].release()
            self._run(self._control, plan, 0)

    def _hire(self) -> None:
        number = len(self._helpers)
        self._awake.append(False)
        self._wake.append(threading.Semaphore(0))
        helper = threading.Thread(target=self._help, args=(number,), name=f"diptych helper {number}", daemon=True)
        helper.start()
        self._helpers.append(helper)

    def _help(self, number: int) -> None:
        while not self._memory[self._stopped]:
            self._wake[number].acquire()
            self._run(self._control, 0, 1 + number)
            self._awake[number] = False

    def _dismiss(self) -> None:
        self._memory[self._stopped] = 1
        for number, helper in enumerate(self._helpers):  # Ctrl-C may have come while the last one was hired
            self._wake[number].release()
            helper.join()


_crews: list[Crew] = []
_hiring = threading.Lock()
if hasattr(os, "register_at_fork"):  # a copy of the process has no helpers
    os.register_at_fork(after_in_child=_crews.clear)


def crew() -> Crew:
    """The one of this process."""
    with _hiring:
        if not _crews:
            _crews.append(Crew(compiled(ROWS)["run"]))
        return _crews[0]


def num_threads() -> int:
    """As many as torch has."""
    return torch.get_num_threads()
