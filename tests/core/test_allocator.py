"""Memory that a step has freed stays with the process, where the C library can do that."""

import platform
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
import torch
from diptych.core.allocator import keep_freed_memory
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


BESIDE = """
import torch
from diptych.core.allocator import keep_freed_memory
from diptych.train.meter import forget_most_held, most_held, resident_bytes
from diptych.train.state import State

if not keep_freed_memory():
    print("cannot")
    raise SystemExit
model = torch.nn.Linear(2, 2)
state = State(model, [], 0.5, with_snapshots=False)
before = resident_bytes()
held = torch.ones(2**24)
del held
after_steps = resident_bytes() - before
with state.averaged():
    beside = resident_bytes() - before
    held = torch.ones(2**24)
    del held
print(after_steps, beside, resident_bytes() - before)
if forget_most_held():
    print(most_held() - before)
"""


def test_what_is_done_beside_the_steps_neither_finds_what_they_freed_nor_leaves_anything() -> None:
    done = subprocess.run([sys.executable, "-c", BESIDE], capture_output=True, text=True, check=True)
    first, *rest = done.stdout.strip().splitlines()
    if first == "cannot":
        assert platform.libc_ver()[0] != "glibc"
        return
    after_steps, beside, after = map(int, first.split())
    assert after_steps > 0.9 * 2**26
    assert beside < 0.1 * 2**26
    assert after < 0.1 * 2**26
    for forgotten in map(int, rest):  # the most that was held, once it is counted anew
        assert forgotten < 0.1 * 2**26


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


WORKER = """
import torch
from diptych.core.allocator import keep_freed_memory
from diptych.data.reading import read_ahead
from diptych.train.meter import resident_bytes

class Freed:
    def batch(self, step, rows):
        before = resident_bytes()
        held = torch.ones(2**24)
        del held
        return (torch.tensor(resident_bytes() - before),)

    def troubles(self):
        return ()

if __name__ == "__main__":
    if not keep_freed_memory():
        print("cannot")
        raise SystemExit
    ((kept,),) = next(read_ahead(Freed(), range(1), [range(1)], workers=1)).parts
    print(int(kept))
"""


def test_those_that_read_ahead_keep_it_too(tmp_path: Path) -> None:
    program = tmp_path / "reads.py"  # a worker imports what it is given
    program.write_text(WORKER, encoding="utf-8")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True).stdout.strip()
    if done == "cannot":
        assert platform.libc_ver()[0] != "glibc"
        return
    assert int(done) > 0.9 * 2**26
