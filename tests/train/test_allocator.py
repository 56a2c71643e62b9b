"""Memory that a step has freed stays with the process, where the C library can do that."""

import platform
import subprocess
import sys

CODE = """
import sys
import torch
from diptych.train.allocator import keep_freed_memory
from diptych.train.meter import resident_bytes

if sys.argv[1] == "keep" and not keep_freed_memory():
    print("cannot")
    sys.exit()
before = resident_bytes()
for _ in range(3):
    held = torch.ones(2**24)
    del held
print(resident_bytes() - before)
"""


def test_freed_memory_is_kept_only_when_asked() -> None:
    kept, given = (
        subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True).stdout.strip()
        for how in ("keep", "give")
    )
    if kept == "cannot":
        assert platform.libc_ver()[0] != "glibc"
        return
    assert int(kept) > 0.9 * 2**26
    assert int(given) < 0.5 * 2**26
