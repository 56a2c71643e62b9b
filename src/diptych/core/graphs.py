"""CUDA graphs: on a GPU, what is computed again with the same shapes is launched as one.

A small model's step is hundreds of kernels of a few microseconds each, and launching them from Python takes several
times as long as running them. A graph keeps the launches, with the addresses that they were made with (Gray 2019,
"Getting Started with CUDA Graphs"): the inputs are copied to where it reads them, and the whole is launched at once. On
other devices each call is the function itself.
"""

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Inputs = tuple[Tensor | None, ...]
DIRECT = 2  # calls of a kind that are made directly: libraries and compilers set themselves up in the first
MOST = 32  # graphs that are kept, those used last


class Graphs:
    """Calls functions; on a CUDA device a function that was called with such inputs before is recorded, then replayed.

    A recorded function does what it did when it was recorded, whatever Python would do now: it may depend on its
    inputs, on tensors that stay where they are, and on the device's random numbers, which follow `torch.manual_seed`
    as ever. It must not wait for the device. Where it does, it is called directly from then on, with a warning. Inside
    autocast all calls are direct: what that has cast is kept until its end, and a recording would read it for longer.

    Args:
        is_on: off, every call is direct.
        direct: how many calls of a kind are made directly before one is recorded.
    """

    def __init__(self, device: torch.device, *, is_on: bool = True, direct: int = DIRECT) -> None:
        self.is_on = is_on and device.type == "cuda"
        self._direct = direct
        self._device = device
        self._calls: Counter[Hashable] = Counter()
        self._graphs: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._pool: Any = None

    def call(self, name: Hashable, function: Callable[..., Result], *inputs: Tensor | None) -> Result:
        """function(*inputs).

        Args:
            name: of the function, with all that it depends on beside the inputs' shapes.

        Returns:
            What the function gave. Tensors in it are written over by the next call of the same kind.
        """
        if not self.is_on or torch.is_autocast_enabled(self._device.type):
            return function(*inputs)
        key = (name, *(one if one is None else (one.shape, one.stride(), one.dtype) for one in inputs))
        if key not in self._graphs:
            self._calls[key] += 1
            if self._calls[key] <= self._direct:
                return self._beside(function, inputs)
            try:
                self._graphs[key] = self._record(function, inputs)
            except RuntimeError as error:
                self.is_on = False
                reason = str(error).splitlines()[0]
                warnings.warn(f"the GPU is told each operation by itself, which is slower: {reason}", stacklevel=2)
                return function(*inputs)
            if len(self._graphs) > MOST:
                self._calls.pop(self._graphs.popitem(last=False)[0])
        self._graphs.move_to_end(key)
        found: Result = self._graphs[key].replay(inputs)
        return found

    def _beside(self, function: Callable[..., Result], inputs: Inputs) -> Result:
        """A direct call on a stream of its own, as torch asks for before a recording: what autograd keeps of a stream
        must not be of the one that everything else runs on."""
        here, beside = torch.cuda.current_stream(self._device), _stream(self._device)
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            result = function(*inputs)
        here.wait_stream(beside)
        return result

    def _record(self, function: Callable[..., Any], inputs: Inputs) -> "_Recorded":
        kept = [one if one is None else one.clone() for one in inputs]
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=_stream(self._device)):
                result = function(*kept)
        except RuntimeError:
            torch.cuda.set_stream(here)  # which torch leaves undone
            self._end_recording()
            raise
        self._pool = graph.pool()
        return _Recorded(graph, [one for one in kept if one is not None], result)

    def _end_recording(self) -> None:
        """After a recording that failed the device's random numbers are still those of a recording, and fail outside of
        one, until another has ended."""
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=_stream(self._device)):
            torch.zeros(1, device=self._device)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all: what was freed on a stream is kept for that stream."""
    return torch.cuda.Stream(device)


class _Recorded:
    """A graph, the inputs that it reads and the result that it writes."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: list[Tensor], result: Any) -> None:
        self._graph, self._inputs, self._result = graph, inputs, result

    def replay(self, inputs: Inputs) -> Any:
        if self._inputs:
            torch._foreach_copy_(self._inputs, [one for one in inputs if one is not None])
        self._graph.replay()
        return self._result
