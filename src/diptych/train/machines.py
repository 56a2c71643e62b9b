"""Accelerators that a plan can be made for, by the numbers of their makers' data sheets.

Peaks are of dense products (sheets often print those of sparse ones, which are twice as high), with sums in float32.
Links are those between devices of one machine, one direction. Makers do not publish such numbers for Apple's chips, so
they are not in the table; `--on this` measures them.
"""

import re
from dataclasses import dataclass

from diptych.core.spelling import nearest, unknown

GIB, MIB, TERA, GIGA = 2**30, 2**20, 1e12, 1e9

# What eager PyTorch reaches of the peaks: large products about 0.7 (Chowdhery et al. 2022, app. B, and the training
# reports since then come to 0.38-0.57 of the peak for whole steps, in which products are not all), copies about 0.8.
PRODUCTS, COPIES = 0.7, 0.8
LAUNCH = (
    8e-6  # seconds of Python, autograd and dispatch for one operation: small models wait for it, not for the device
)
NETWORK = 50 * GIGA  # bytes a second between machines: 400 Gb/s a device, as in the reference designs of their makers
IN_A_MACHINE = 8  # devices
CONTEXT = 840 * MIB  # of the driver and the kernels, on each device (torch 2.11 with CUDA 13 on an H200)
EMPTY_CONTEXT = 527 * MIB  # of it, before anything is computed
WORKSPACES = 3 * 32 * MIB  # of cuBLAS: for what goes forward, for what goes back, and for what is recorded
SLACK = 0.08  # of what passes: blocks that torch's caching allocator keeps in pieces that do not fit
USABLE = 0.95  # of the memory, for other programs and for batches that are a little larger


@dataclass(frozen=True)
class Machine:
    """One kind of accelerator.

    Args:
        memory: bytes that its driver reports.
        bfloat16, float32: FLOP/s of dense products.
        bandwidth: bytes a second of its memory.
        link: bytes a second to the devices beside it.
        watts: of the board at full load.
    """

    name: str
    memory: int
    bfloat16: float
    float32: float
    bandwidth: float
    link: float
    watts: float

    def seconds(self, flops: float, moved: float) -> float:
        """Of one operation, by the slower of its two roofs (Williams et al. 2009)."""
        return max(flops / (PRODUCTS * self.bfloat16), moved / (COPIES * self.bandwidth))

    def lane(self, devices: int) -> float:
        """Bytes a second of the slowest link between so many devices."""
        return self.link if devices <= IN_A_MACHINE else min(self.link, NETWORK)


def _machine(
    name: str, mebibytes: int, bfloat16: float, float32: float, bandwidth: float, link: float, watts: float
) -> Machine:
    """In the units of the sheets: TFLOP/s, GB/s and W."""
    memory = mebibytes * MIB
    return Machine(name, memory, bfloat16 * TERA, float32 * TERA, bandwidth * GIGA, link * GIGA, watts)


MACHINES = {
    machine.name: machine
    for machine in (
        # NVIDIA Blackwell architecture technical brief, HGX B200; NVLink 5, 1.8 TB/s both ways
        _machine("B200", 183359, 2250, 75, 7700, 900, 1000),
        # NVIDIA H200 data sheet, SXM; NVLink 4, 900 GB/s both ways
        _machine("H200", 143771, 989, 67, 4800, 450, 700),
        # NVIDIA H100 data sheet, SXM
        _machine("H100", 81559, 989, 67, 3350, 450, 700),
        # NVIDIA A100 data sheet, SXM; NVLink 3, 600 GB/s both ways
        _machine("A100-80", 81920, 312, 19.5, 2039, 300, 400),
        _machine("A100-40", 40960, 312, 19.5, 1555, 300, 400),
        # NVIDIA L40S data sheet; PCIe 4.0 x16, 64 GB/s both ways
        _machine("L40S", 46068, 362, 91.6, 864, 32, 350),
        # NVIDIA L4 data sheet; PCIe 4.0 x16
        _machine("L4", 23034, 121, 30.3, 300, 32, 72),
        # NVIDIA RTX Blackwell GPU architecture, app. A; PCIe 5.0 x16
        _machine("RTX-5090", 32607, 209.5, 104.8, 1792, 64, 575),
        # NVIDIA Ada GPU architecture, app. A; PCIe 4.0 x16
        _machine("RTX-4090", 24564, 165.2, 82.6, 1008, 32, 450),
        # NVIDIA Ampere GA102 GPU architecture, app. A; PCIe 4.0 x16
        _machine("RTX-3090", 24576, 71, 35.6, 936, 32, 350),
        # AMD Instinct MI300X data sheet; Infinity Fabric, 7 links of 128 GB/s both ways
        _machine("MI300X", 196592, 1307, 163.4, 5300, 448, 750),
    )
}
THIS = "this"


def read_machines(words: str) -> tuple[int, Machine]:
    """ "8 x H100" -> 8 and the H100; a number alone before the name is not needed for one.

    Raises:
        ValueError: a machine that is not in the table, or none of it.
    """
    found = re.fullmatch(r"\s*(?:(\d+)\s*[x×*]?\s+|(\d+)\s*[x×*]\s*)?(\S.*?)\s*", words)
    devices = int((found and (found[1] or found[2])) or 1) if found else 0
    name = found[3] if found else words
    plain = {_plain(known): known for known in MACHINES} | {"a100": "A100-80"}
    if _plain(name) not in plain:
        said = unknown("machine", name, ["this", *MACHINES], guess=nearest(name.upper(), MACHINES))
        raise ValueError(f"{said}, as in '8 x H100'")
    if devices < 1:
        raise ValueError(f"'{words}' must be at least one device")
    return devices, MACHINES[plain[_plain(name)]]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]|gib?$|gb$|sxm|nvidia|geforce", "", name.lower())
