"""What a field or column that should hold a document may hold instead."""

from collections.abc import Iterator

from diptych.data.trouble import Troubles

FIELD = "text"  # unless another is named


def take(value: object, wrong: str | None, where: str, troubles: Troubles) -> Iterator[str]:
    """The document, where it is one: a text that is not only white space. `wrong` is what is known to be broken.

    An empty text is whole, as many data sets have them, but there is nothing to learn from it.
    """
    if wrong is None:
        value, wrong = _as_text(value)
    if wrong is not None:
        troubles.skip(where, wrong)
        return
    troubles.saw()
    if isinstance(value, str) and value.strip():
        yield value


def _as_text(value: object) -> tuple[object, str | None]:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8"), None
        except UnicodeDecodeError as error:
            return None, f"is not UTF-8 text: {error.reason} at byte {error.start}"
    if value is None:
        return None, "is null, not text"
    if not isinstance(value, str):
        return None, f"is {_called(value)}, not text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return None, f"holds half of a character: {error.reason} at {error.start}"
    return value, None


def _called(value: object) -> str:
    """A value as JSON calls its kind."""
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"of type {type(value).__name__}")
