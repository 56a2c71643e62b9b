"""Which device and which number format: what is fast on this machine, unless the caller says otherwise."""

import torch

from diptych.core.spelling import unknown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

# Asked once, since compiled code cannot ask.
CPU_MULTIPLIES_BFLOAT16 = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """For statistics and losses: lower precisions become float32, float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_autocast(x: torch.Tensor) -> torch.Tensor:
    """x in autocast's dtype where autocast is on: what adds up over layers is then kept in it, at half the memory."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype == torch.float32:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def fast_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def multiplies_bfloat16_fast(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware: on a CPU without AVX512-BF16 or AMX they are slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return CPU_MULTIPLIES_BFLOAT16
    return False


def choose(device: str | None = None, dtype: str | None = None) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype of computation.

    Raises:
        ValueError: for a device that this machine lacks or a dtype that is not one of DTYPES.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if device is None:
        chosen = fast_device()
    else:
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(
                f"device '{device}' is not on this machine; allowed here: {', '.join(_devices())}"
            ) from error
    if dtype is not None:
        return chosen, DTYPES[dtype]
    return chosen, torch.bfloat16 if multiplies_bfloat16_fast(chosen) else torch.float32


def _devices() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
