"""Folders in the cache that are built once: whole or not there, whoever else builds the same at the same time."""

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from diptych.core.files import atomic_directory
from diptych.data.rendered import cache_directory


def kept(name: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; `build` fills it where it is not there yet.

    The name says what is inside, so nothing is ever replaced: of two that build at once, the second to finish throws
    its own away, and what a third has mapped stays where it is.
    """
    path = cache_directory() / name
    if path.is_dir():
        return path
    own = path.with_name(f".{name}.{secrets.token_hex(4)}")
    with atomic_directory(own) as building:
        build(building)
    try:
        own.rename(path)
    except OSError:
        shutil.rmtree(own)
        if not path.is_dir():
            raise
    return path
