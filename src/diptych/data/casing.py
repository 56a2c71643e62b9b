"""Stories that lost their capitals or their borders, restored by statistics of stories that kept both.

Two small models are learned from stories written as they should be: `Casing` knows how each word is written in the
middle of a sentence (names, "I", "TV") and which positions ask for a capital; `Openings` tells the first paragraph of
a story from any other (naive Bayes over the first words). Both say when they are not sure, so that the caller can
leave a doubtful story out.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

SPEECH = frozenset(
    (
        *("said", "asked", "replied", "shouted", "cried", "exclaimed", "yelled", "whispered", "answered", "called"),
        *("says", "added", "told", "sang", "explained", "responded", "growled", "barked", "meowed", "roared"),
        *("begged", "agreed"),
    )
)
NAMING = frozenset({("name", "is"), ("name", "was"), ("is", "called"), ("was", "called")})
DETERMINERS = frozenset(
    ("a", "an", "the", "his", "her", "my", "your", "our", "their", "this", "that", "some", "any", "no", "every", "one")
)
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


class Casing:
    """How words are written in the middle of a sentence, and where a sentence begins."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Learns from `texts` written in the wanted style (straight quotes, one paragraph a line)."""
        alone: dict[str, Counter[str]] = defaultdict(Counter)
        after: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        known: set[str] = set()
        for text in texts:
            for word, previous, begins in _words(text):
                known.add(word.lower())
                if not begins:
                    alone[word.lower()][word] += 1
                    after[previous, word.lower()][word] += 1
        self._known = frozenset(known)
        self._alone = {lower: forms.most_common(1)[0][0] for lower, forms in alone.items()}
        self._after = {
            pair: forms.most_common(1)[0][0]
            for pair, forms in after.items()
            if forms.total() >= 3 and len(alone[pair[1]]) > 1
        }

    def restore(self, text: str) -> str:
        """`text` in lower case -> the same text with capitals where the learned style has them."""
        names = self._names(text)
        pieces: list[str] = []
        end = 0
        for match, (word, previous, begins) in zip(WORD.finditer(text), _words(text), strict=True):
            if word in names and previous not in DETERMINERS:
                form = word.capitalize()
            else:
                stem, mark, ending = word.partition("'s")
                form = self._after.get((previous, word)) or self._alone.get(word) or ""
                form = form or self._alone.get(stem, stem) + mark + ending
            if begins:
                form = form[0].upper() + form[1:]
            pieces += (text[end : match.start()], form)
            end = match.end()
        return "".join(pieces) + text[end:]

    def _names(self, text: str) -> frozenset[str]:
        """Words that this text itself shows to be names, with their possessives.

        Either it introduces them ("a dog named bolt"), or they are new words that begin sentences and also stand
        inside one, and never follow an article or the like.
        """
        found: set[str] = set()
        at_start: Counter[str] = Counter()
        inside: Counter[str] = Counter()
        determined: set[str] = set()
        before = ("", "")
        ends = [min(match.end(), len(text) - 1) for match in WORD.finditer(text)]
        for place, (word, previous, begins) in enumerate(_words(text)):
            stem = word.partition("'s")[0]
            usual = self._alone.get(stem)
            if word not in DETERMINERS:
                is_named = before[1] == "named" or (before[1] == "called" and stem not in self._known)
                is_introduced = before in NAMING and (usual is None or text[ends[place]] in '.,!"')
                if is_named or is_introduced:
                    found.add(word)
            if usual is None and stem not in self._known:
                (at_start if begins else inside)[stem] += 1
                if previous in DETERMINERS:
                    determined.add(stem)
            before = (before[1], word)
        found |= {stem for stem in at_start if inside[stem] and stem not in determined and len(stem) > 1}
        return frozenset(found | {name + "'s" for name in found})


def _words(text: str) -> Iterable[tuple[str, str, bool]]:
    """Each word, the lower-case word before it in its sentence ("" at its start), and whether a sentence begins.

    A word begins a sentence at the start of a line, after ". ! ?", and after an opening quote, unless that quote goes
    on with what was said before ('"Yes," said Tom, "we can."'). After '!"' or '?"' a speech verb near by means
    that the sentence goes on.
    """
    end, previous, is_open, is_continued = 0, "", False, False
    matches = list(WORD.finditer(text))
    for index, match in enumerate(matches):
        gap = text[end : match.start()]
        begins = index == 0
        for position, mark in enumerate(gap):
            if mark == "\n":
                begins, is_open, is_continued = True, False, False
            elif mark == '"':
                is_open = not is_open
                if is_open:
                    begins = begins or not is_continued
                else:
                    before = gap[:position].rstrip()[-1:]
                    is_continued = before == ","
                    if before in "!?" and before:
                        following = {later.group().lower() for later in matches[index : index + 4]}
                        begins = not following & SPEECH
                        is_continued = not begins
                    else:
                        begins = before == "."
            elif mark in ".!?":
                begins = True
                if not is_open:
                    is_continued = False
        yield match.group(), "" if begins else previous, begins
        previous, end = match.group().lower(), match.end()


class Openings:
    """Tells the first paragraph of a story from the others by its first words (naive Bayes, add-one smoothing)."""

    def __init__(self, stories: Iterable[Sequence[str]], words: int = 10) -> None:
        """`stories`: each a sequence of its paragraphs."""
        self._words = words
        self._counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for paragraphs in stories:
            for index, paragraph in enumerate(paragraphs):
                self._counts[index == 0].update(self._features(paragraph))
        self._vocabulary = len(self._counts[0] | self._counts[1])

    def score(self, paragraph: str) -> float:
        """Log-odds (nats) that `paragraph` opens a story, before any prior."""
        later, first = self._counts
        total = 0.0
        for feature in self._features(paragraph):
            total += math.log((first[feature] + 1) / (first.total() + self._vocabulary))
            total -= math.log((later[feature] + 1) / (later.total() + self._vocabulary))
        return total

    def _features(self, paragraph: str) -> list[str]:
        words = re.findall(r'[\w\']+|"', paragraph.lower())[: self._words]
        return [" ".join(words[:2]), " ".join(words[:3]), *dict.fromkeys(words)]
