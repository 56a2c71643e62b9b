"""How hard the machine works: its measured peak, the floating-point operations of a step, and the memory in use.

The share of the peak is what is called model FLOPs utilisation (Chowdhery et al. 2022, appendix B), with two
differences: the peak is measured on this machine instead of read off a data sheet, and the operations of a step are
counted instead of estimated, so that convolutions and attention count as what they are.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from diptych.core.allocator import give_back

SIZES = (256, 512, 1024, 2048, 4096, 8192)
LONG_ENOUGH = 0.01  # seconds of one product: larger matrices would not be faster
ATTENTION = tuple(
    f"_scaled_dot_product_{kernel}"
    for kernel in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
)
GROUPED = ("group_products", "group_outer")


class Meter:
    """What one process's steps take of the machine.

    Use: `with meter.counting(): loss, backward`, in every step; the first one is counted, the others pass untouched.

    Args:
        device, dtype: where and in which format the products of the model are computed.
        peak: FLOP/s; measured unless given.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, peak: float | None = None) -> None:
        self.device = device
        self.peak = measured_peak(device, dtype) if peak is None else peak
        self.flops: int | None = None  # of a step, once one was counted

    @contextmanager
    def counting(self) -> Iterator[None]:
        if self.flops is not None:
            yield
            return
        with FlopCounter() as counter:
            yield
        self.flops = counter.flops

    def share_of_peak(self, seconds: float) -> float | None:
        """The share of the peak that steps of so many seconds reach; None while no step was counted.

        It is rarely above 0.6, and where other programs take turns on the machine the peak is what was left of it.
        """
        if not self.flops or not self.peak or seconds <= 0:
            return None
        return self.flops / seconds / self.peak

    def memory(self) -> int:
        """Bytes, see `resident_bytes`."""
        return resident_bytes(self.device)


def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """FLOP/s of the fastest of some products of square matrices, the largest of them made for `seconds`; 0.0 if it
    cannot multiply.

    The matrices hold noise, since zeros cost a GPU less power and so flatter it, from a generator of their own: no
    draw of the run changes. What they took goes back to the system.
    """
    best = _fastest(device, dtype, seconds)
    give_back()
    if device.type == "cuda":  # nor are they what the run held at its peak
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return best


def _fastest(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    chance, best = torch.Generator(device).manual_seed(0), 0.0
    for size in SIZES:
        try:
            left = torch.randn(size, size, device=device, generator=chance).to(dtype)
            right = torch.randn(size, size, device=device, generator=chance).to(dtype)
            _timed(left, right)  # the first product of a kind sets things up
            once = _timed(left, right)
        except RuntimeError:  # no product in this format here, or no memory left for larger ones
            return best
        best = max(best, 2 * size**3 / once)
        if once > LONG_ENOUGH:
            break
    began = time.perf_counter()  # not before: setting up a GPU's library may take longer than all of this
    while time.perf_counter() - began < seconds:
        best = max(best, 2 * size**3 / _timed(left, right))
    return best


def _timed(left: Tensor, right: Tensor) -> float:
    wait: Callable[[], Any] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(
        left.device.type, lambda: None
    )
    wait()
    began = time.perf_counter()
    torch.mm(left, right)
    wait()
    return max(time.perf_counter() - began, 1e-9)


class Watch(TorchDispatchMode):
    """Sees every operation inside a `with` block, of what runs uncompiled."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch's switch: True has torch's compiler imported, two seconds at each start, to keep it away from here."""
        return False


class FlopCounter(Watch):
    """Adds up the floating-point operations of the products inside a `with` block, forward and backward.

    The formulas are those of `torch.utils.flop_counter`, and its counter is not used for two reasons: it takes
    operations apart to find products inside, so that other kernels run than without it, and it knows no attention on
    the CPU. Here each operation runs as it is: no result changes by a bit. It costs about a tenth of a millisecond an
    operation. What checkpointing computes twice counts twice; a compiled model runs uncompiled while it is counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.flops += flops_of(func, args, kwargs or {}, result)
        return result


def flops_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Operations of a dispatched operation, if it is a product: by torch's own formulas, and by ours for experts
    (`core.grouped`) and for attention, of which torch's leave out the CPU's and, before 2.13, refuse a GPU's whose
    queries share keys."""
    packet = getattr(func, "overloadpacket", None)
    name = getattr(packet, "__name__", "")
    if name in ATTENTION:
        return 2 * _attention_product(*args[:3])
    if name.removesuffix("_backward") in ATTENTION:
        return 5 * _attention_product(*args[1:4])
    if name == "flash":
        return 2 * _attention_product(*args[:3], is_causal=args[4])
    if name == "flash_backward":
        return 5 * _attention_product(*args[1:4], is_causal=args[6])
    if name == "turned_product":
        return 2 * int(args[0].numel() * args[1].shape[1])
    if name in GROUPED:  # each row with one matrix, whichever that is
        return 2 * int(args[0].numel() * result.shape[-1])
    formula = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=result)) if formula else 0


def _attention_product(query: Tensor, key: Tensor, value: Tensor, *, is_causal: Any = False) -> int:
    """Operations of one of attention's products of (B, heads, S, head_dim): forward has two of them, backward five
    (the scores again, and the gradients of the odds, the values, the queries and the keys).

    Args:
        is_causal: later keys are left out, not only hidden.
    """
    batch, heads, length, width = query.shape
    pairs = length * (length + 1) // 2 if is_causal else length * key.shape[-2]
    return 2 * batch * heads * pairs * (width + value.shape[-1]) // 2


def resident_bytes(device: torch.device | None = None) -> int:
    """Memory in use: the most that CUDA's allocator held, else what this process holds in RAM; 0 where nobody says.

    Off Linux it is the most that the process held so far. Worker processes are not counted.
    """
    if device is not None and device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    return most_held()


def forget_most_held() -> bool:
    """From here on, `most_held` counts anew, from what is held now. Returns: whether the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def most_held() -> int:
    """The most memory that this process has held so far, in bytes; 0 where nobody says.

    Where the system keeps a high-water mark of the program alone, that one: what getrusage says begins with the memory
    of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
