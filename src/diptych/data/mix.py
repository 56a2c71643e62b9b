"""The texts of a mixture: each corpus from its shelf, without what a corpus named before it has too."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diptych.data.hub_texts import PREFIX, parse
from diptych.data.repeats import first_met
from diptych.data.shelf import Shelf, Shelves, shelved
from diptych.data.text_files import READERS, path_and_field
from diptych.data.trouble import Troubles

ENOUGH = 10**9  # characters to learn a vocabulary from; more only take longer


def read_mix(
    names: Sequence[str], seed: int, share: float, troubles: Troubles, *, holds_out_end: bool = False
) -> dict[str, Shelves]:
    """What to train on and what is held out, of each corpus. A document is kept where it is met first, so none is
    counted twice, and none is learned from in one corpus and held out in another.

    Raises:
        ValueError: as `shelved`, or where nothing of a corpus is left to train on.
        TooManyBroken: see `troubles`.
    """
    seen: set[bytes] = set()
    mix = {}
    for name in names:
        shelves = shelved(name, seed, share, troubles, holds_out_end=holds_out_end)
        held_out = shelves.held_out.of(first_met(shelves.held_out.hashes_of_words(), seen))
        train = shelves.train.of(first_met(shelves.train.hashes_of_words(), seen))
        before = len(shelves.held_out) + len(shelves.train)
        elsewhere = before - len(held_out) - len(train)
        if not train:
            raise ValueError(
                f"corpus '{name}' has nothing left to train on: of its {before} documents {len(held_out)} are held "
                f"out, and {elsewhere} are in corpora named before it"
            )
        mix[name] = Shelves(train, held_out, shelves.repeated + elsewhere)
    return mix


def in_proportion(texts: Mapping[str, Sequence[str]], weights: Mapping[str, float]) -> Iterator[str]:
    """Documents of each corpus up to its weight's share of characters, so that the vocabulary suits what is read."""
    per_weight = min(
        _num_characters(texts[name]) / weight for name, weight in weights.items() if weight == max(weights.values())
    )
    per_weight = min(per_weight, ENOUGH / sum(weights.values()))
    for name, weight in weights.items():
        left = per_weight * weight
        for text in texts[name]:
            if left <= 0:
                break
            left -= len(text)
            yield text


def _num_characters(texts: Sequence[str]) -> int:
    return texts.num_characters() if isinstance(texts, Shelf) else sum(map(len, texts))


def labels(names: Sequence[str]) -> dict[str, str]:
    """A short word for each corpus, as figures need it: the stem of its path, or all of its name where stems agree."""
    stems = {name: _stem(name) for name in names}
    counts = Counter(stems.values())
    return {name: stem if counts[stem] == 1 else name for name, stem in stems.items()}


def _stem(name: str) -> str:
    if name.startswith(PREFIX):
        return Path(parse(name).path).name
    last = path_and_field(name)[0].name
    return next((last.removesuffix(suffix) for suffix in READERS if last.endswith(suffix)), last)
