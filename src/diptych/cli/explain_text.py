"""A text's generation told in plain language while it happens: how sure each word was, and what was drawn.

Tokens that were nearly certain are folded into one line; the others get a sentence that says what made them hard.
"""

import math
import textwrap
from typing import TYPE_CHECKING

from diptych.cli import frame

if TYPE_CHECKING:
    from diptych.core.generation import Generation
    from diptych.text.record import TextResult, TextStep

END = "<|end|>"
SURE = 0.9  # from here on a token is told in passing
EXPLAINED = 64  # candidates that a step should carry to be told well
FOLDED = 8  # sure tokens in one line at most
ORDINALS = ("", "the likeliest", "its 2nd choice", "its 3rd choice")


def explain_text(generation: "Generation[TextStep, TextResult]", prompt: str, vocabulary: int) -> None:
    """Tell a generation on standard output, then show what it wrote.

    Args:
        vocabulary: how many pieces the model knows.
    """
    teller = TextTeller(prompt)
    tell(opening(vocabulary))
    for step in generation:
        for line in teller.line(step):
            tell(line)
    result = generation.result()
    for line in teller.closing(result):
        tell(line)
    print(f"\n{prompt}{result.text}")


def tell(line: str) -> None:
    """Print a line, folded; a number and its % stay together."""
    for part in textwrap.wrap(line.replace(" %", "\xa0%"), min(frame.columns(), 100), subsequent_indent="  "):
        print(part.replace("\xa0", " "), flush=True)


def opening(vocabulary: int) -> str:
    return (
        f"The model writes one piece at a time: a word, a part of one or a mark. It reads all that stands there, gives "
        f"each of the {vocabulary:,} pieces that it knows a chance to come next, and one is drawn by these chances, "
        f"like a lot from a hat. Then it reads again, with the new piece at the end."
    )


class TextTeller:
    """Turns steps into sentences; remembers what was just told, so that the next sentence can refer to it."""

    def __init__(self, prompt: str) -> None:
        self.written = prompt
        self.sure: list[tuple[str, float]] = []
        self.before: float | None = None  # entropy of the last piece
        self.hardest = (0.0, "")
        self.entropies: list[float] = []
        self.likeliest = 0
        self.last = ""  # the piece drawn last

    def line(self, step: "TextStep") -> list[str]:
        """What is to be said of a step; nothing yet for one that is nearly certain."""
        drawn = next(candidate for candidate in step.candidates if candidate.token == step.token)
        rank = step.candidates.index(drawn) + 1
        self.entropies.append(step.entropy)
        self.likeliest += rank == 1
        self.last = drawn.text
        before, self.before = self.before, step.entropy
        lines = []
        if rank == 1 and step.probability >= SURE and self.entropies[1:]:
            self.sure.append((drawn.text, step.probability))
            if len(self.sure) == FOLDED:
                lines = self._folded()
            self.written += step.text
            return lines
        lines = self._folded()
        if step.entropy > self.hardest[0]:
            self.hardest = (step.entropy, tail(self.written))
        lines.append(self._told(step, rank, drawn.text, before))
        self.written += step.text
        return lines

    def _told(self, step: "TextStep", rank: int, piece: str, before: float | None) -> str:
        first = step.candidates[0]
        chance, name = percent(step.probability), quoted(piece)
        if rank == 1 and step.probability >= 0.5:
            what = f"it gave {name} {chance} and took it{_raised(step)}"
        elif rank == 1:
            what = f"{hard(step, before)}; the likeliest, {name} with {chance}, was drawn{_raised(step)}"
        else:
            place = ORDINALS[rank] if rank < len(ORDINALS) else f"its {rank}th choice"
            if rank > EXPLAINED:
                place = f"a choice after its first {EXPLAINED}"
            what = (
                f"{hard(step, before)}; {quoted(first.text)} was likeliest with {percent(first.probability)}, but the "
                f"draw fell on {place}, {name} with {chance}{_raised(step)}"
            )
        return f"After {quoted(tail(self.written))} {what}."

    def _folded(self) -> list[str]:
        if not self.sure:
            return []
        names = ", ".join(quoted(name) for name, _ in self.sure)
        lowest, highest = min(p for _, p in self.sure), max(p for _, p in self.sure)
        range_ = percent(highest) if percent(lowest) == percent(highest) else f"{percent(lowest)} to {percent(highest)}"
        line = f"  then {names} almost by {'itself' if len(self.sure) == 1 else 'themselves'} ({range_})."
        self.sure = []
        return [line]

    def closing(self, result: "TextResult") -> list[str]:
        lines = self._folded()
        if result.finish_reason == "stop" and self.last == END:
            lines.append("It ended by itself: the piece that it drew last means 'the end'.")
        elif result.finish_reason == "stop" and result.settings["constraint"] and not result.settings["stop"]:
            lines.append("It ended there because it is whole: nothing can follow that the constraint allows.")
        elif result.finish_reason == "constraint":
            lines.append("It ended there unfinished: the constraint lets nothing follow.")
        elif result.finish_reason == "stop":
            lines.append("It ended there because the next piece would have completed a text given with --stop.")
        else:
            is_limit = len(result.tokens) >= result.settings["max_tokens"]
            why = "the limit set with --max-tokens" if is_limit else "all that the model can keep in view"
            lines.append(f"It was cut off after {len(result.tokens)} pieces, {why}.")
        count = len(self.entropies)
        sides = math.exp(sum(self.entropies) / count)
        hardest, where = math.exp(self.hardest[0]), self.hardest[1]
        most = f", most of all after {quoted(where)} ({hardest:.0f} sides)" if where else ""
        lines.append(
            f"Of {count} pieces, {self.likeliest} were the likeliest; on the whole it was as unsure as a fair die with "
            f"{sides:.1f} sides{most}."
        )
        lines.append(_controls(result))
        return lines


def hard(step: "TextStep", before: float | None) -> str:
    """How open the next piece was, in comparison with the piece before it, whose entropy was `before`."""
    sides = math.exp(step.entropy)
    count, reached = 0, 0.0
    for candidate in step.candidates[:EXPLAINED]:
        if reached >= 0.5:
            break
        reached += candidate.probability
        count += 1
    noun = "words" if step.candidates[0].text.startswith(" ") else "pieces"
    if reached < 0.5:
        share = f"more than {count} {noun} share half of the odds"
    elif count == 1:
        share = "one choice has half of the odds"
    else:
        share = f"{count} {noun} share half of the odds"
    if before is None:
        how = "many ways lead on" if sides > 8 else "a few ways lead on"
    elif step.entropy > before + 0.7:
        how = "the next one was harder"
    elif step.entropy < before - 0.7:
        how = "the next one was easier"
    else:
        how = "it was about as open" if sides > 3 else "there was little doubt"
    return f"{how}: {share}, as unsure as a fair die with {max(2, round(sides))} sides"


def _controls(result: "TextResult") -> str:
    """What the settings did to the chances, for all steps together."""
    settings = result.settings
    parts = []
    if settings["temperature"] == 0:
        parts.append("temperature 0 left nothing to chance: the likeliest piece was always taken")
    elif settings["temperature"] < 1:
        parts.append(f"temperature {settings['temperature']:g} made likely pieces likelier still before each draw")
    elif settings["temperature"] > 1:
        parts.append(f"temperature {settings['temperature']:g} evened the chances out before each draw")
    if settings["top_k"]:
        parts.append(f"top-k let only the {settings['top_k']} likeliest into the hat")
    if settings["top_p"] < 1:
        parts.append(f"top-p let only the likeliest in that together have {100 * settings['top_p']:g} %")
    if settings["min_p"] > 0:
        parts.append(f"min-p kept out what had less than {100 * settings['min_p']:g} % of the likeliest's chance")
    if settings["typical_p"] < 1:
        share = f"{100 * settings['typical_p']:g} %"
        parts.append(f"typical-p let only those nearest to the expected surprise in that together have {share}")
    if settings["repetition_penalty"] != 1 or settings["presence_penalty"] or settings["frequency_penalty"]:
        parts.append("penalties changed the chances of what already stood there")
    if settings["logit_bias"]:
        parts.append("some pieces had a bias")
    if settings["constraint"]:
        parts.append("only what the constraint allows could come")
    start = "; ".join(parts) or "the chances were used just as the model gave them"
    return f"{start[:1].upper()}{start[1:]}. Seed {settings['seed']} fixed the draws: it gives the same text again."


def _raised(step: "TextStep") -> str:
    """Said when the controls changed the drawn token's chance by a quarter or more."""
    if step.probability <= 0 or step.drawn_probability / step.probability < 1.25:
        return ""
    return f" (the settings had raised that to {percent(step.drawn_probability)})"


def percent(probability: float) -> str:
    value = 100 * probability
    if value >= 99.95:
        return "100 %"
    if value >= 9.95:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.1 else "less than 0.1 %"


def quoted(piece: str) -> str:
    """A piece for a reader: in quotes, or the name of what cannot be seen."""
    if piece == END:
        return "the sign for 'the end'"
    if piece.strip(" ") == "":
        return "a space" if piece else "nothing"
    if piece.strip() == "":
        return "a new line"
    return f"'{''.join(letter if letter.isprintable() else '�' for letter in ' '.join(piece.split()))}'"


def tail(written: str, words: int = 4) -> str:
    """The last few words, where the next piece is put."""
    return " ".join(written.split()[-words:])
