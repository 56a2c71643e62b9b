"""A recipe with everything that a run will use, and where each value came from, as TOML that can be read again."""

import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from diptych.core.lora import LoraSettings
from diptych.core.spelling import unknown
from diptych.train.recipe import Recipe
from diptych.train.tasks import TASKS


def shown(recipe: Recipe) -> str:
    """The resolved recipe, what the task fills in among it, each line with its origin as a comment.

    Raises:
        ValueError: for what the task refuses in its sections.
    """
    if recipe.run.objective not in TASKS:
        raise unknown("objective", recipe.run.objective, TASKS)
    task = importlib.import_module(TASKS[recipe.run.objective])
    tables = recipe.resolved()
    for name, cls in (("model", task.Model), ("data", task.Data)):
        tables[name] = asdict(recipe.section(name, cls))
    if "adapter" in tables:
        tables["adapter"] = asdict(recipe.section("adapter", LoraSettings))
    tables["model"] |= task.filled_in(recipe) if hasattr(task, "filled_in") else {}
    blocks = (block for name, table in tables.items() for block in _blocks(recipe, name, table))
    return "\n".join("\n".join(lines) + "\n" for lines in blocks)


def _blocks(recipe: Recipe, section: str, table: dict[str, Any]) -> Iterator[list[str]]:
    """The lines of a section, then those of the tables in it."""
    plain = {key: value for key, value in table.items() if value is not None and not isinstance(value, dict)}
    texts = {key: f"{_key(key)} = {_value(value)}" for key, value in plain.items()}
    width = min(48, max(map(len, texts.values()), default=0))
    heading = "[" + ".".join(map(_key, section.split("."))) + "]"
    if texts or section in recipe.resolved():
        yield [heading, *(f"{text:<{width}}  # {recipe.origin(section, key)}" for key, text in texts.items())]
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _blocks(recipe, f"{section}.{key}", value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)  # strings, numbers and booleans are written alike in JSON and TOML
