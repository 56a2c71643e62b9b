"""Code that is compiled once a machine: Python to machine code by Numba, kept in the user's cache folder.

What is kept is an object file, as a C compiler would write it, under a name made of all that decides it: the sources,
the compiler and the processor. LLVM puts it into memory in a tenth of a second, without Numba, which takes half a
gigabyte to compile it: in a process of its own, with which that goes.
"""

import ctypes
import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from diptych.core.files import write_atomically
from diptych.core.memory import forget_library

SOURCES = (
    "machine_code.py",
    "lanes.py",
    "attention_lanes.py",
    "row_plan.py",
    "row_math.py",
    "short_bfloats.py",
    "short_attention.py",
    "byte_attention.py",
    "nibble_products.py",
    "row_attention.py",
    "row_kernel.py",
)
_owners: list[Any] = []  # of the code in memory
_making = threading.Lock()


@dataclass(frozen=True)
class Compiled:
    """Args: run: `row_kernel.run`; keep, read: `short_bfloats.keep_rows` and `read_rows`."""

    run: Callable[[int, int, int], int]
    keep: Callable[..., int]
    read: Callable[..., int]


@cache
def is_here() -> bool:
    """Whether code can be compiled: not every system has Numba, nor a Python that can be started again."""
    is_able = sys.byteorder == "little" and sys.maxsize > 2**32 and bool(sys.executable)
    return is_able and all(map(find_spec, ("numba", "llvmlite")))


@cache
def multiplies_bfloats() -> bool:
    """Whether the processor, as LLVM knows it, multiplies pairs of bfloat16."""
    import llvmlite.binding as llvm

    return bool(llvm.get_host_cpu_features().get("avx512bf16"))


def compiled() -> Compiled:
    """What is compiled, as machine code. Python's lock is free while it runs."""
    with _making:  # once, whoever asks meanwhile
        return _compiled()


@cache
def _compiled() -> Compiled:
    import llvmlite
    import llvmlite.binding as llvm

    machine, processor = _machine()
    about = f"{llvmlite.__version__} {machine.triple} {processor} {sys.version}"
    code, names = _kept(about, _made_apart)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _owners.append(engine)
    forget_library("libllvmlite")  # 40 MB
    counts = (3, 12, 10)  # of arguments
    found = zip(map(engine.get_function_address, names.split()), counts, strict=True)
    return Compiled(*(_function(address, count) for address, count in found))


def _function(address: int, count: int) -> Callable[..., int]:
    call = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * count)(address)
    result, trouble = ctypes.c_int64(), ctypes.c_void_p()  # Numba's way to return; neither says anything here
    _owners.extend((result, trouble))
    where = ctypes.addressof(result), ctypes.addressof(trouble)
    return lambda *arguments: int(call(*where, *arguments))


def _machine() -> tuple[Any, dict[str, str]]:
    """What LLVM makes code for: this processor, in its own words, too."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    processor = {"cpu": llvm.get_host_cpu_name(), "features": llvm.get_host_cpu_features().flatten()}
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(**processor, opt=3, reloc="pic", codemodel="jitdefault"), processor


def kernels_folder() -> Path:
    """Where what is compiled is kept."""
    return Path(os.environ.get("DIPTYCH_CACHE") or user_cache_path("diptych")) / "kernels"


def _kept(about: str, make: Callable[[], tuple[bytes, str]]) -> tuple[bytes, str]:
    """What was made before on such a machine; made now, if there is nothing or it is damaged."""
    digest = hashlib.sha256(about.encode())
    for source in SOURCES:
        digest.update(Path(__file__).with_name(source).read_bytes())
    folder = kernels_folder()
    path = folder / f"row-{digest.hexdigest()[:16]}.o"
    with suppress(OSError, ValueError):
        check, kept = path.read_bytes().split(b"\n", 1)
        if check == hashlib.sha256(kept).hexdigest().encode():
            function, code = kept.split(b"\n", 1)
            return code, function.decode()
    code, name = make()
    with suppress(OSError):  # where nothing can be kept, it is made each time
        folder.mkdir(parents=True, exist_ok=True)
        kept = name.encode() + b"\n" + code
        write_atomically(path, hashlib.sha256(kept).hexdigest().encode() + b"\n" + kept)
    return code, name


def _made_apart() -> tuple[bytes, str]:
    """The object file, and the name of its function, from another process."""
    print("diptych: compiling for this processor, once ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "diptych.core.machine_code"]
    home = str(Path(__file__).parents[2])  # so that it is this diptych that compiles, wherever it was imported from
    paths = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    made = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | {"PYTHONPATH": paths})
    name, code = made.stdout.split(b"\n", 1)
    return code, name.decode()


def _object_file() -> tuple[bytes, str]:
    """The same in this one."""
    import llvmlite.binding as llvm
    from numba import njit, types

    from diptych.core.row_kernel import run
    from diptych.core.short_bfloats import keep_rows, read_rows

    names, modules = [], []
    for function in (run, keep_rows, read_rows):
        about = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        made = njit(types.int64(*[types.int64] * function.py_func.__code__.co_argcount), **about)(function.py_func)
        code = made.inspect_llvm(made.signatures[0])
        defined = re.search(r"^define [^@\n]*@([^(]+)\(", code, re.MULTILINE)
        assert defined is not None
        names.append(defined[1])
        modules.append(llvm.parse_assembly(code))
    for other in modules[1:]:
        modules[0].link_in(other)
    return _machine()[0].emit_object(modules[0]), " ".join(names)


if __name__ == "__main__":
    code, name = _object_file()
    sys.stdout.buffer.write(name.encode() + b"\n" + code)
