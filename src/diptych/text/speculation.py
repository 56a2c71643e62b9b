"""Speculative decoding: cheap guesses at what comes next, which the network reads several at a time.

The idea is Leviathan et al. 2023 and Chen et al. 2023: a drafter proposes a few tokens, one call of the network gives
the logits after each of them, and those that the network agrees with stand. They accept a token with probability
min(1, p / q) and draw again from what is left of p, so that the text keeps its distribution.

Here it keeps every token. A draw is the inverse of the cumulative distribution of the network's own odds at a number
that seed, sample and step fix: it depends on the text before it and on nothing else. So the runner draws at each
drafted place as it always does, from the network's logits there, and goes on to the next place as long as the token
that it drew is the one that was drafted; the first that differs stands, and what was read after it is taken back.
Whatever was drafted, each token is the one that would have been drawn without: at every seed, and with every control,
penalty and constraint, since they are given the same logits and the same text. Drafts decide how many tokens a call
yields, not which.

This holds as far as logits do not depend on how many places are read together. They do in the last bits (in bfloat16,
the third digit): sums are taken in another order. A draw that falls that close to the border of two tokens can come out
on its other side, as it can between batches of different sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from diptych.core.tokenizer import Tokenizer
from diptych.text.constraint import Constraint, forbidden
from diptych.text.odds import odds, row
from diptych.text.reader import Part, Reader

if TYPE_CHECKING:
    from diptych.text.model import TextModel
    from diptych.text.runner import TextRequest

NGRAM = "ngram"
LONGEST = 3  # tokens that a lookup compares at most


@dataclass(frozen=True)
class Unfinished:
    """A text to guess on.

    Args:
        slot: no other unfinished text's.
        ids: its prompt and all that was drawn.
        count: how many tokens are of use.
        constraint: of the text as far as it was drawn; not to be moved on.
    """

    slot: int
    request: "TextRequest"
    ids: list[int]
    count: int
    constraint: Constraint | None = None


class Drafter(Protocol):
    """What guesses."""

    name: str

    def draft(self, texts: Sequence[Unfinished]) -> list[list[int]]:
        """What each text may go on with: `count` tokens or fewer."""
        ...

    def forget(self, slot: int) -> None:
        """The text in this slot is finished."""
        ...


def drafter_of(speculate: "str | TextModel", tokenizer: Tokenizer) -> Drafter:
    """ "ngram", or a model that writes with the same tokens as `tokenizer`. Raises: ValueError for any other."""
    if isinstance(speculate, str):
        if speculate != NGRAM:
            raise ValueError(f"speculate must be '{NGRAM}' or a text model, not '{speculate}'")
        return NgramLookup()
    theirs = speculate.tokenizer
    is_same = theirs.size == tokenizer.size and theirs.specials == tokenizer.specials
    if not is_same or any(theirs.token_bytes(id) != tokenizer.token_bytes(id) for id in range(tokenizer.size)):
        raise ValueError(
            f"'{speculate.name}' cannot draft: its tokenizer is another than that of the model it is to help"
        )
    return DraftModel(speculate)


@dataclass
class _Seen:
    """Where each short run of tokens was followed by another, the last time: run -> place of what followed."""

    followers: dict[tuple[int, ...], int] = field(default_factory=dict)
    length: int = 1  # places below it are noted

    def note(self, ids: list[int]) -> None:
        for place in range(self.length, len(ids)):
            for size in range(1, min(LONGEST, place) + 1):
                self.followers[tuple(ids[place - size : place])] = place
        self.length = len(ids)

    def follower(self, ids: list[int]) -> int | None:
        """The place after the latest earlier run like the text's last tokens, as many of them as have one."""
        runs = (tuple(ids[-size:]) for size in range(min(LONGEST, len(ids)), 0, -1))
        return next((self.followers[run] for run in runs if run in self.followers), None)


class NgramLookup:
    """What followed the text's last tokens when they stood there before, in the prompt or in the text itself.

    Prompt lookup decoding (Saxena 2023): free, and often right where a text repeats or quotes.
    """

    name = NGRAM

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    def draft(self, texts: Sequence[Unfinished]) -> list[list[int]]:
        drafts = []
        for text in texts:
            seen = self._seen.setdefault(text.slot, _Seen())
            seen.note(text.ids)
            place = seen.follower(text.ids)
            drafted: list[int] = []
            while place is not None and len(drafted) < text.count:
                # What repeats with a period shorter than the draft goes on into the draft itself.
                ahead = place - len(text.ids)
                drafted.append(text.ids[place] if ahead < 0 else drafted[ahead])
                place += 1
            drafts.append(drafted)
        return drafts

    def forget(self, slot: int) -> None:
        self._seen.pop(slot, None)


@dataclass
class _Draft:
    """A text as the draft model has it: its slot there, and the tokens that were read into it."""

    slot: int
    read: list[int] = field(default_factory=list)


class _Ahead:
    """One draft being written on from its text."""

    def __init__(self, text: Unfinished, draft: _Draft, tokenizer: Tokenizer) -> None:
        self.text, self.draft, self._tokenizer = text, draft, tokenizer
        self.ids = list(text.ids)
        self._constraint = text.constraint.fork() if text.constraint else None

    @property
    def drafted(self) -> list[int]:
        return self.ids[len(self.text.ids) :]

    @property
    def goes_on(self) -> bool:
        has_ended = bool(self.drafted) and self.ids[-1] in self._tokenizer.ends
        is_complete = self._constraint is not None and self._constraint.is_complete
        return len(self.drafted) < self.text.count and not has_ended and not is_complete

    def part(self) -> Part:
        """What the draft model reads next."""
        return Part(self.draft.slot, self.ids[len(self.draft.read) :])

    def write(self, logits: Tensor) -> None:
        """Draw as the text itself will: the same controls at the same u."""
        self.draft.read = list(self.ids)
        request = self.text.request
        written = self.ids[len(request.prompt_ids) :]
        barred = forbidden(self._tokenizer, self._constraint, may_end=len(written) >= request.settings.min_tokens)
        chances = odds(row(logits), request.settings, request.prompt_ids, written, barred)
        token = request.draw(chances, len(written))
        self.ids.append(token)
        if self._constraint:
            self._constraint.accept(token)


class DraftModel:
    """A smaller model that writes ahead, with the text's own controls and its own draws.

    At the same height of two cumulative distributions that are alike stands, more often than not, the same token.
    """

    def __init__(self, model: "TextModel") -> None:
        self.name = model.name
        self._tokenizer, self._context = model.tokenizer, model.config.context
        self._reader = Reader(model.decoder)
        self._drafts: dict[int, _Draft] = {}

    def draft(self, texts: Sequence[Unfinished]) -> list[list[int]]:
        self._begin([text for text in texts if text.slot not in self._drafts])
        drafts = [_Ahead(text, self._caught_up(text), self._tokenizer) for text in texts]
        while going := [one for one in drafts if one.goes_on and len(one.ids) <= self._context]:
            for one, logits in zip(going, self._reader.read([one.part() for one in going]), strict=True):
                one.write(logits[-1, : self._tokenizer.size])
        return [one.drafted for one in drafts]

    def forget(self, slot: int) -> None:
        if draft := self._drafts.pop(slot, None):
            self._reader.cache.release(draft.slot)

    def _begin(self, texts: Sequence[Unfinished]) -> None:
        """Read the prompts; texts that share one read it once."""
        for text in texts:
            self._drafts[text.slot] = _Draft(self._reader.cache.reserve(len(text.request.prompt_ids)))
        readable = [text for text in texts if len(text.request.prompt_ids) <= self._context]
        self._reader.read([Part(self._drafts[text.slot].slot, text.request.prompt_ids) for text in readable])
        for text in readable:
            self._drafts[text.slot].read = list(text.request.prompt_ids)

    def _caught_up(self, text: Unfinished) -> _Draft:
        """Where the text went another way than was drafted, what was read of that way is taken back."""
        draft = self._drafts[text.slot]
        same = 0
        for was, is_now in zip(draft.read, text.ids[:-1], strict=False):  # there is always one to read
            if was != is_now:
                break
            same += 1
        draft.read = draft.read[: self._reader.cache.truncate(draft.slot, same)]
        return draft
