"""What is asked of settings from outside before they are used: their names, and whether numbers are numbers."""

import math
from collections.abc import Collection, Iterable
from typing import Any

from diptych.core.spelling import unknown


def is_whole(value: Any) -> bool:
    """True is no number here, though Python counts it as one."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A finite one, whole or not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_keys(what: str, entries: Collection[str], known: Iterable[str], required: Iterable[str] = ()) -> None:
    """Raises: ValueError for an entry that is not known, or for what is required and is not there."""
    names = list(known)
    for key in entries:
        if key not in names:
            raise unknown(f"{what} setting", str(key), names)
    missing = [key for key in required if key not in entries]
    if missing:
        raise ValueError(f"{what} settings lack {', '.join(missing)}")
