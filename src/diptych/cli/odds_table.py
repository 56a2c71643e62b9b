"""One row a token: what was drawn, how likely it was before and after the controls, and what else could have come."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

from diptych.cli import frame

if TYPE_CHECKING:
    from diptych.text.record import Candidate

BLOCKS = " ▏▎▍▌▋▊▉█"
BAR, TOKEN = 6, 14  # cells
NEGLIGIBLE = 0.001  # what is less likely is not shown beside the drawn token
SIGNS = "# is the rank of the token; 'unsure' is the entropy in nats. A space shows as ·, the end of a line as ⏎."
DRAWN = f"Percent under the whole vocabulary → percent it was drawn with (– is excluded by the controls); {SIGNS}"
GIVEN = f"Percent under the whole vocabulary, given what stands before; {SIGNS}"


def visible(token: str) -> str:
    """A token with its spaces and line ends in sight."""
    shown = token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in shown) or "∅"


def percent(probability: float) -> str:
    """Without the sign: 97, 4.2, 0.3; ~0 for less than a thousandth and – for what cannot come."""
    value = 100 * probability
    if value == 0:
        return "–"
    if value < 0.1:
        return "~0"
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def bar(share: float, width: int = BAR) -> str:
    """A bar of `width` cells for 0..1, in eighths of a cell."""
    eighths = round(min(1.0, max(0.0, share)) * 8 * width)
    full, part = divmod(eighths, 8)
    return ("█" * full + (BLOCKS[part] if part else "")).ljust(width)


def heading(*, is_given: bool = False) -> str:
    legend = "\n".join(textwrap.wrap(GIVEN if is_given else DRAWN, min(frame.columns(), 110)))
    token = "token" if is_given else "drawn"
    title = f"{'':>3}  {token:<{TOKEN}} {'':<{BAR}} {'%':>9} {'#':>3} {'unsure':>6}  also possible"
    return f"{legend}\n\n{frame.bold(title)}"


def row(
    index: int,
    token: int,
    probability: float,
    drawn_probability: float,
    entropy: float,
    candidates: Sequence["Candidate"],
    leading: int = 8,
    *,
    is_given: bool = False,
) -> str:
    """Args:
    candidates: as a step of the text panel has them, the drawn token among them.
    leading: how many of them are the most probable; a drawn token after these has no known rank.
    is_given: the token was not drawn, so it has one percent only.
    """

    def chances(before: float, after: float) -> str:
        return percent(before) if is_given else f"{percent(before)}→{percent(after)}"

    place = next(number for number, candidate in enumerate(candidates) if candidate.token == token)
    rank = f"{place + 1}" if place < leading else f">{leading}"
    drawn = set_cell_size(visible(candidates[place].text), TOKEN)
    numbers = f"{bar(drawn_probability)} {chances(probability, drawn_probability):>9} {rank:>3} {entropy:>6.2f}  "
    room = frame.columns() - 5 - TOKEN - 1 - len(numbers)
    others = ""
    for number, candidate in enumerate(candidates):
        if number == place:
            continue
        if others and max(candidate.probability, candidate.odds) < NEGLIGIBLE:
            break
        cell = f"{visible(candidate.text)} {chances(candidate.probability, candidate.odds)}  "
        if cell_len(others + cell) > room + 2:
            break
        others += cell
    return f"{index + 1:>3}  {frame.bold(drawn)} {numbers}{others}".rstrip()
