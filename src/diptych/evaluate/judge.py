"""The bundled judge, and how far it can be trusted: its own readings of fresh real scenes, whose truth is known."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.core.precision import choose
from diptych.core.share import Share
from diptych.core.weights import load_into, read_config
from diptych.data.fresh import FRESH, fresh_scenes
from diptych.image.judge import Judge, JudgeConfig
from diptych.models import bundled


@dataclass(frozen=True)
class Accuracy:
    """How often a judge is right: by attribute, and all attributes together."""

    by_attribute: dict[str, Share]
    num_pictures: int

    @property
    def mean(self) -> Share:
        shares = self.by_attribute.values()
        return Share(sum(share.found for share in shares), sum(share.asked for share in shares))

    def to_dict(self) -> dict[str, Any]:
        parts = {name: share.to_dict() for name, share in self.by_attribute.items()}
        return {"pictures": self.num_pictures, "mean": self.mean.to_dict(), "by_attribute": parts}


def open_judge(directory: str | Path | None = None, *, device: str | None = None) -> Judge:
    """A judge from its checkpoint directory, the bundled one for None; it computes in float32.

    Raises:
        ValueError: not a judge's checkpoint, or one that is damaged.
    """
    if directory is None:
        if "judge" not in bundled():
            raise ValueError("the bundled judge is missing from this installation; make one with recipes/judge.toml")
        directory = bundled()["judge"]
    config = read_config(directory)
    if config.get("panel") != "judge" or not isinstance(config.get("judge"), dict):
        raise ValueError(f"'{directory}' is not a judge's checkpoint: its config.json needs panel \"judge\"")
    try:
        judge = Judge(JudgeConfig.from_dict(config["judge"]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"'{directory}/config.json': {error}") from error
    load_into(judge, directory)
    return judge.to(choose(device)[0]).eval()


def measure_judge(judge: Judge, count: int = 200, seed: int = FRESH) -> Accuracy:
    """The judge's readings of `count` fresh scenes against their truth. Raises ValueError as `fresh_scenes`."""
    drawn = list(fresh_scenes(count, seed))
    said = judge.read_pictures([picture for _, picture in drawn])
    pairs = [(words, scene) for words, (scene, _) in zip(said, drawn, strict=True)]
    names = judge.config.heads
    right = {name: sum(words[name] == getattr(scene, name) for words, scene in pairs) for name in names}
    return Accuracy({name: Share(found, count) for name, found in right.items()}, count)


def card_accuracy() -> dict[str, Any]:
    """What was measured when the bundled judge was made: share right by attribute, mean, number of pictures."""
    accuracy = read_config(bundled()["judge"]).get("accuracy")
    if not isinstance(accuracy, dict):
        raise ValueError("the bundled judge's config.json does not say how accurate it is")
    return accuracy
