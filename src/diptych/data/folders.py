"""Where data lies: one folder, named by the environment variable DIPTYCH_DATA, with a folder for each collection."""

import os
from pathlib import Path


def root() -> Path:
    """The folder that DIPTYCH_DATA names; `ValueError` if it is unset or not a folder."""
    value = os.environ.get("DIPTYCH_DATA", "")
    if not value:
        raise ValueError("DIPTYCH_DATA is not set: let it name the folder that holds the data")
    path = Path(value)
    if not path.is_dir():
        raise ValueError(f"DIPTYCH_DATA must name a folder, and {value!r} is none")
    return path


def folder(name: str) -> Path:
    """The folder of one collection under `root()`; `ValueError` if it is missing."""
    path = root() / name
    if not path.is_dir():
        raise ValueError(f"DIPTYCH_DATA ({root()}) has no folder {name!r}")
    return path
