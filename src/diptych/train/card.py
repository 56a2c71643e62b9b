"""The model card: what a finished checkpoint is, how it was made, from which data, how good it is and where it ends."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from diptych.core.estimate import with_details
from diptych.data.licences import source
from diptych.train.recipe import Recipe
from diptych.train.run import surroundings

STAGE = "Before it: "  # how the heading of an earlier stage begins


@dataclass(frozen=True)
class About:
    """What only the task knows of its model, for the card.

    Args:
        made: what the model is and does, in a sentence or two.
        example: what one row of a batch is, in the plural: "pictures".
        data: how training and validation data came from the sources.
        sources: names in `data.licences`, or paths of the user's own data.
        figures: how a validation figure's name begins -> what it measures.
        limits: what it cannot do, each a sentence or two.
    """

    made: str
    example: str
    data: str
    sources: tuple[str, ...] = ()
    figures: dict[str, str] = field(default_factory=dict)
    limits: tuple[str, ...] = ()


def model_card(
    recipe: Recipe, about: About, figures: dict[str, float], steps: int, seconds: float, parameters: int
) -> str:
    """The text of a checkpoint's README.md.

    Args:
        figures: of the last validation.
        steps: made in all; seconds: that they took, over all parts of the run.
        parameters: how many numbers were trained.
    """
    sections = [
        f"# {recipe.name}\n\n{about.made}",
        f"## How it was made\n\n{_table(_making(recipe, about, steps, seconds, parameters))}",
        f"## Data and licences\n\n{about.data}\n\n{_sources(about.sources)}",
        f"## Validation\n\n{_figures(about.figures, figures)}",
        f"## Limits\n\n{_list(about.limits)}",
    ]
    return "\n\n".join(sections) + "\n"


def _making(recipe: Recipe, about: About, steps: int, seconds: float, parameters: int) -> dict[str, str]:
    run, optimizer, here = recipe.run, recipe.optimizer, surroundings()
    weights = f"a moving average of the weights, decay {run.average:g}" if run.average else "the last weights"
    threads = f"{here['threads']} thread" + ("s" if here["threads"] != 1 else "")
    return {
        "recipe": f"`{_shown(str(recipe.path))}`, objective {run.objective}",
        "started from": f"the weights of `{_shown(run.init_from)}`" if run.init_from else "random weights",
        "size": f"{parameters:,} parameters trained",
        "steps": f"{steps:,} of {run.batch} {about.example}",
        "seed": str(run.seed),
        "optimizer": f"{optimizer.name}, learning rate {optimizer.learning_rate:g}, "
        f"weight decay {optimizer.weight_decay:g}, warm-up {optimizer.warmup} steps, {optimizer.shape} fall over the "
        f"last {optimizer.decay:.0%} of the steps to {optimizer.final:.0%}",
        "kept": weights,
        "time": f"{_duration(seconds)} in all",
        "machine": f"{here['machine']}, {threads}, torch {here['torch']}, Python {here['python']}, "
        f"diptych {here['diptych']}",
    }


def _sources(names: tuple[str, ...]) -> str:
    lines = ["| source | licence |", "|---|---|"]
    for title, licence, home in map(source, names):
        lines.append(f"| {title}{f' ({home})' if home else ''} | {licence} |")
    return "\n".join(lines)


def _figures(meanings: dict[str, str], figures: dict[str, float]) -> str:
    if not figures:
        return "Nothing was held out: no figure was measured."
    lines = ["| figure | value (95 % interval, samples) | what it is |", "|---|---|---|"]
    for name, figure in with_details(figures).items():
        meaning = next((words for start, words in meanings.items() if name.startswith(start)), "")
        lines.append(f"| {name} | {figure} | {meaning} |")
    return "\n".join(lines)


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _list(entries: tuple[str, ...]) -> str:
    return "\n".join(f"- {entry}" for entry in entries)


def _shown(path: str) -> str:
    """A path for others to read: what lies above the working folder is nobody's business."""
    return Path(path).name if Path(path).is_absolute() or ".." in Path(path).parts else Path(path).as_posix()


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} seconds"
    return f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} hours {minutes % 60} minutes"


def earlier_stages(directory: str | Path) -> str:
    """Sections on the checkpoint that this one was built on, and on those before it, from its own card: how each was
    made and how good it was.

    Empty where the checkpoint has no card.
    """
    card = Path(directory) / "README.md"
    if not card.is_file():
        return ""
    text = card.read_text(encoding="utf-8")
    name = text.partition("\n")[0].removeprefix("# ").strip()
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    own = [f"### {part.strip()}\n" for part in parts if part.startswith(("How it was made", "Validation"))]
    before = [f"\n## {part.strip()}\n" for part in parts if part.startswith(STAGE)]
    return "\n".join([f"\n## {STAGE}{name}\n", *own, *before]) if own else ""
