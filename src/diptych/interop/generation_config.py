"""generation_config.json: how a model's authors want it sampled, and which tokens end a text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.core import weights
from diptych.core.tokenizer import Tokenizer

FILE = "generation_config.json"
# Theirs -> ours, and what a setting that is left out stands for where others are given.
SETTINGS: dict[str, tuple[str, float]] = {
    "temperature": ("temperature", 1.0),
    "top_k": ("top_k", 0),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
    "repetition_penalty": ("repetition_penalty", 1.0),
}


def read(directory: Path) -> dict[str, Any]:
    """The file of a directory; {} where there is none."""
    path = directory / FILE
    return weights.read_object(path) if path.is_file() else {}


def defaults(about: Mapping[str, Any]) -> dict[str, float]:
    """The settings of `TextModel.generate` that a generation_config.json asks for; {} if it asks for none.

    Raises:
        ValueError: a setting that is no number.
    """
    if about.get("do_sample") is False:
        return {"temperature": 0}
    given = {name: about[name] for name in SETTINGS if about.get(name) is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{FILE}: '{name}' must be a number, not {value!r}")
    return {ours: given.get(theirs, absent) for theirs, (ours, absent) in SETTINGS.items()} if given else {}


def ends(about: Mapping[str, Any], config: Mapping[str, Any]) -> list[int]:
    """Ids that end a text: those of generation_config.json, else those of config.json."""
    found = about.get("eos_token_id", config.get("eos_token_id"))
    return [id for id in (found if isinstance(found, list) else [found]) if isinstance(id, int)]


def written(tokenizer: Tokenizer, chosen: Mapping[str, float]) -> dict[str, Any]:
    """The generation_config.json of a model with these defaults."""
    ids = [tokenizer.end, *sorted(tokenizer.ends - {tokenizer.end})]
    about = {"bos_token_id": tokenizer.begin, "eos_token_id": ids if len(ids) > 1 else ids[0]}
    if chosen.get("temperature") == 0:
        return {**about, "do_sample": False}
    found = {theirs: chosen[ours] for theirs, (ours, _) in SETTINGS.items() if ours in chosen}
    return {**about, **({"do_sample": True, **found} if found else {})}
