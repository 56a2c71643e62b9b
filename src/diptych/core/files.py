"""Writing so that a reader never sees half a file: write beside, flush to disk, rename, flush the folder."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def output_path(path: str | Path) -> Path:
    """`path` as a Path, checked at the door: its folder must exist and it must not be a folder itself.

    Raises:
        ValueError: in one line that names the folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"the output folder '{path.parent}' does not exist; create it or choose another")
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder; name a file to write")
    return path


def flush_directory(path: Path) -> None:
    """Make renames inside `path` survive a power cut (POSIX: fsync of the directory itself)."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it becomes `path` in one rename. What the system
    refuses to write is said of `path`: an OSError that has its name."""
    path = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        with _named(path, temporary):
            yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
        flush_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block ends well, it takes the place of `path`.

    A folder cannot be replaced in one rename, so the old one is moved aside first: at every moment either the old or
    the new folder is whole under `path`, or the old one is under `.<name>.old`, from where `recover_directory` puts it
    back before the next reading or writing. What the system refuses to write is said of `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_directory(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        with _named(path, temporary):
            yield temporary
        put_in_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(finished: Path, path: Path) -> None:
    """A folder that is written becomes `path`, flushed to disk before, as `atomic_directory` says."""
    aside = path.parent / f".{path.name}.old"
    for file in finished.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~_umask())  # safetensors makes its files readable by their owner alone
            with file.open("rb") as written:
                os.fsync(written.fileno())
        else:
            flush_directory(file)
    finished.chmod(0o777 & ~_umask())
    flush_directory(finished)
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    os.replace(finished, path)
    flush_directory(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def recover_directory(path: str | Path) -> None:
    """Put back what `atomic_directory` moved aside if it was killed between its two renames."""
    path = Path(path)
    aside = path.parent / f".{path.name}.old"
    if not path.exists() and aside.exists():
        os.replace(aside, path)


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """An OSError of the temporary file or folder, or of no file, as when a disk is full, is one of `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not str(error.filename or temporary).startswith(str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
