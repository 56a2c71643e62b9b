"""Code that is compiled once a machine: Python to machine code by Numba, kept in the user's cache folder.

What is kept is an object file, as a C compiler would write it, under a name made of all that decides it: the sources,
the compiler and the processor. LLVM puts it into memory in a tenth of a second, without Numba, which takes half a
gigabyte to compile it: in a process of its own, with which that goes.
"""

import atexit
import ctypes
import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from platformdirs import user_cache_path

from diptych.core.files import write_atomically
from diptych.core.memory import forget_library

_owners: list[Any] = []  # of the code in memory
_loading = threading.Lock()
_PREFIX = "diptych_"  # of names that only what is compiled here has


class Function(NamedTuple):
    """A function of `diptych.core`; its arguments, so many, and its result are int64."""

    module: str
    name: str
    arguments: int


@dataclass(frozen=True)
class Library:
    """What is compiled together.

    Args:
        name: of the file in which it is kept.
        sources: the modules that decide what it does.
    """

    name: str
    functions: tuple[Function, ...]
    sources: tuple[str, ...]


_EVERYWHERE = ("machine_code", "lanes", "attention_lanes", "row_plan", "row_math")
ROWS = Library(
    "row",
    (
        Function("row_kernel", "run", 3),
        Function("short_bfloats", "keep_rows", 12),
        Function("short_bfloats", "read_rows", 10),
    ),
    (
        *_EVERYWHERE,
        "short_bfloats",
        "short_attention",
        "byte_attention",
        "nibble_products",
        "row_attention",
        "row_kernel",
    ),
)
_OF_MANY = (*_EVERYWHERE, "share_plan", "shares", "tile_units", "tiles", "score_lanes", "flash_plan", "flash_kernel")
MANY = Library(
    "many",
    (Function("flash_kernel", "attend_heads", 1), Function("sweep_kernel", "sweep", 1)),
    (*_OF_MANY, "sweep_plan", "sweep_lanes", "sweep_kernel"),
)
GRADIENTS = Library(  # as long to compile as the other half; who does not train has no need of it
    "gradients",
    (Function("flash_gradients", "differentiate_heads", 1), Function("product_kernel", "multiply_turned", 1)),
    (*_OF_MANY, "flash_gradients", "product_plan", "product_kernel"),
)
LIBRARIES = {library.name: library for library in (ROWS, MANY, GRADIENTS)}
_HOLDERS = {function.name: library for library in LIBRARIES.values() for function in library.functions}
_making = {name: threading.Lock() for name in LIBRARIES}
_made: dict[str, dict[str, Callable[..., int]]] = {}


@cache
def is_here() -> bool:
    """Whether code can be compiled: not every system has Numba, nor a Python that can be started again."""
    is_able = sys.byteorder == "little" and sys.maxsize > 2**32 and bool(sys.executable)
    return is_able and all(map(find_spec, ("numba", "llvmlite")))


@cache
def features() -> dict[str, bool]:
    """What the processor has, as LLVM knows it."""
    import llvmlite.binding as llvm

    features = dict(llvm.get_host_cpu_features())
    forget_library("libllvmlite")  # 40 MB
    return features


def multiplies_bfloats() -> bool:
    """Whether the processor multiplies pairs of bfloat16."""
    return features().get("avx512bf16", False)


def multiplies_tiles() -> bool:
    """Whether it multiplies matrices of bfloat16, too, that lie in registers of their own (AMX)."""
    return multiplies_bfloats() and all(features().get(name, False) for name in ("amx-tile", "amx-bf16"))


def compiled(library: Library) -> dict[str, Callable[..., int]]:
    """Its functions by name, as machine code: functions of `ctypes`, in which Python's lock is free."""
    if library.name not in _made and not _path(library).is_file():
        _tell()
    return _ready(library)


def begin(libraries: Sequence[Library]) -> None:
    """Compile what was never compiled here, beside all that a program does before it needs that; nothing waits for it,
    nor is a failure told before it does."""

    def work(library: Library) -> None:
        with suppress(Exception):
            _ready(library)

    for library in libraries:
        threading.Thread(target=work, args=(library,), daemon=True).start()


def of_many(learns: bool) -> list[Library]:
    """What computations on many rows need; with `learns` their gradients, too."""
    return [MANY, GRADIENTS] if learns else [MANY]


def function_of(name: str) -> Callable[..., int]:
    """One function, by its name."""
    return compiled(_HOLDERS[name])[name]


def compile_beside(libraries: Sequence[Library]) -> None:
    """Have several libraries ready, in the time of the one that takes longest."""
    if missing := [library for library in libraries if library.name not in _made]:
        with ThreadPoolExecutor(len(missing)) as pool:
            list(pool.map(compiled, missing))


def open_early(device: str | None, dtype: str | None) -> None:
    """What was compiled here before, for a CPU in bfloat16, in memory before torch is and a model: LLVM, 40 MB, is gone
    again when they come."""
    if is_for(device, dtype) and _path(MANY).is_file():
        _ready(MANY)


def is_for(device: str | None, dtype: str | None) -> bool:
    """Whether what MANY has may be needed there, as far as can be said without torch."""
    return device in (None, "cpu") and dtype in (None, "bfloat16") and is_here() and multiplies_bfloats()


def _ready(library: Library) -> dict[str, Callable[..., int]]:
    with _making[library.name]:  # once, whoever asks meanwhile
        if library.name not in _made:
            code = _kept(_path(library), partial(_made_apart, library))
            with _loading:
                _made[library.name] = _loaded(library, code)
        return _made[library.name]


def _loaded(library: Library, code: bytes) -> dict[str, Callable[..., int]]:
    import llvmlite.binding as llvm

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine()[0])
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _owners.append(engine)
    forget_library("libllvmlite")  # 40 MB
    long = ctypes.c_int64
    return {
        function.name: ctypes.CFUNCTYPE(long, *[long] * function.arguments)(
            engine.get_function_address(_PREFIX + function.name)
        )
        for function in library.functions
    }


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


def _path(library: Library) -> Path:
    """Where a library is kept: under what decides it."""
    digest = hashlib.sha256(_about().encode())
    for source in library.sources:
        digest.update(Path(__file__).with_name(f"{source}.py").read_bytes())
    return kernels_folder() / f"{library.name}-{digest.hexdigest()[:16]}.o"


@cache
def _about() -> str:
    """The compiler and the processor."""
    import llvmlite

    with _loading:
        machine, processor = _machine()
    return f"{llvmlite.__version__} {machine.triple} {processor} {sys.version}"


def _kept(path: Path, make: Callable[[], bytes]) -> bytes:
    """What was made before on such a machine; made now, if there is nothing or it is damaged."""
    with suppress(OSError, ValueError):
        check, code = path.read_bytes().split(b"\n", 1)
        if check == hashlib.sha256(code).hexdigest().encode():
            return code
    code = make()
    with suppress(OSError):  # where nothing can be kept, it is made each time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, hashlib.sha256(code).hexdigest().encode() + b"\n" + code)
    return code


@cache
def _tell() -> None:
    print("diptych: compiling for this processor, once ...", file=sys.stderr, flush=True)


def _made_apart(library: Library) -> bytes:
    """The object file, from another process, which ends with this one."""
    command = [sys.executable, "-m", "diptych.core.machine_code", library.name]
    home = str(Path(__file__).parents[2])  # so that it is this diptych that compiles, wherever it was imported from
    paths = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}) as process:
        atexit.register(process.kill)
        code, _ = process.communicate()
        atexit.unregister(process.kill)
    if process.returncode:
        raise RuntimeError(f"compiling for this processor failed: '{' '.join(command)}' says why")
    return code


def _object_file(library: Library) -> bytes:
    """The same in this one."""
    import llvmlite.binding as llvm
    from numba import njit, types

    whole = llvm.parse_assembly("")
    for function in library.functions:
        source = getattr(import_module(f"diptych.core.{function.module}"), function.name).py_func
        about = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        made = njit(types.int64(*[types.int64] * function.arguments), **about)(source)
        code = made.inspect_llvm(made.signatures[0])
        defined = re.search(r"^define [^@\n]*@([^(]+)\(", code, re.MULTILINE)
        assert defined is not None
        for part in (code, _entry(function, defined[1])):
            whole.link_in(llvm.parse_assembly(part))
    made_code: bytes = _machine()[0].emit_object(whole)
    return made_code


def _entry(function: Function, compiled: str) -> str:
    """What calls a function as Numba compiled it, which gives its result, and what went wrong, through pointers: here
    nothing does."""
    kinds, given = (
        ", ".join(["i64"] * function.arguments),
        "".join(f", i64 %{place}" for place in range(function.arguments)),
    )
    return f"""
        declare i32 @{compiled}(ptr, ptr, {kinds})

        define i64 @{_PREFIX}{function.name}({kinds}) {{
            %result = alloca i64
            %trouble = alloca ptr
            call i32 @{compiled}(ptr %result, ptr %trouble{given})
            %found = load i64, ptr %result
            ret i64 %found
        }}
    """


if __name__ == "__main__":
    sys.stdout.buffer.write(_object_file(LIBRARIES[sys.argv[1]]))
