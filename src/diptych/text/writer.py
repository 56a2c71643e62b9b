"""The writer: from the bytes of tokens to text that will not change any more."""

import codecs
from collections.abc import Sequence


class Writer:
    """Bytes of tokens -> text.

    Keeps back a character whose bytes are not all there, and an ending that may turn out to begin a stop text.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.has_stopped = False

    def write(self, data: bytes, *, is_last: bool) -> str:
        """The text that is certain after these bytes; with `is_last`, all that is left."""
        self._held += self._decoder.decode(data, final=is_last)
        found = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.has_stopped = True
            return self._take(min(found))
        return self._take(len(self._held) - (0 if is_last else self._possible_stop()))

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken

    def _possible_stop(self) -> int:
        """Length of the longest ending of the held text that begins a stop text."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
