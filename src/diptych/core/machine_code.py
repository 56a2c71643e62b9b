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
from collections.abc import Callable
from contextlib import suppress
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
    "byte_attention.py",
    "nibble_products.py",
    "row_attention.py",
    "row_kernel.py",
)
_owners: list[Any] = []  # of the code in memory


@cache
def is_here() -> bool:
    """Whether code can be compiled: not every system has Numba, nor a Python that can be started again."""
    is_able = sys.byteorder == "little" and sys.maxsize > 2**32 and bool(sys.executable)
    return is_able and all(map(find_spec, ("numba", "llvmlite")))


@cache
def compiled() -> Callable[[int, int, int], int]:
    """`row_kernel.run` as machine code. Python's lock is free while it runs."""
    import llvmlite
    import llvmlite.binding as llvm

    machine, processor = _machine()
    about = f"{llvmlite.__version__} {machine.triple} {processor} {sys.version}"
    code, name = _kept(about, _made_apart)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _owners.append(engine)
    run = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3)(
        engine.get_function_address(name)
    )
    result, trouble = ctypes.c_int64(), ctypes.c_void_p()  # Numba's way to return; neither says anything here
    _owners.extend((result, trouble))
    where = ctypes.addressof(result), ctypes.addressof(trouble)
    forget_library("libllvmlite")  # 40 MB
    return lambda *arguments: int(run(*where, *arguments))


def _machine() -> tuple[Any, dict[str, str]]:
    """What LLVM makes code for: this processor, in its own words, too."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    processor = {"cpu": llvm.get_host_cpu_name(), "features": llvm.get_host_cpu_features().flatten()}
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(**processor, opt=3, reloc="pic", codemodel="jitdefault"), processor


def _kept(about: str, make: Callable[[], tuple[bytes, str]]) -> tuple[bytes, str]:
    """What was made before on such a machine; made now, if there is nothing or it is damaged."""
    digest = hashlib.sha256(about.encode())
    for source in SOURCES:
        digest.update(Path(__file__).with_name(source).read_bytes())
    folder = Path(os.environ.get("DIPTYCH_CACHE") or user_cache_path("diptych")) / "kernels"
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

    signature = types.int64(types.int64, types.int64, types.int64)
    function = njit(signature, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(run.py_func)
    code = function.inspect_llvm(function.signatures[0])
    defined = re.search(r"^define [^@\n]*@([^(]+)\(", code, re.MULTILINE)
    assert defined is not None
    return _machine()[0].emit_object(llvm.parse_assembly(code)), defined[1]


if __name__ == "__main__":
    code, name = _object_file()
    sys.stdout.buffer.write(name.encode() + b"\n" + code)
