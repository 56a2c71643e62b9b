"""A recorded generation: every step, enough to replay it without the model and to branch it with the model.

One safetensors file. The leading axis of every array is the step; the facts of the steps, the settings and the model's
name are JSON in the file's metadata. Both panels write the same kind.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diptych.core.files import atomic_file, output_path
from diptych.core.weights import save_tensors

FORMAT = "diptych-trace-1"
Panel = Literal["text", "image"]


@dataclass
class Trace:
    """Args:
    panel: which family made it.
    model: the model's name.
    settings: all that is needed to make it again: prompt, seed and every control; JSON values.
    arrays: name -> tensor (steps, ...), on the CPU.
    facts: one dict of JSON values for each step.
    """

    panel: Panel
    model: str
    settings: dict[str, Any]
    arrays: dict[str, Tensor] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.facts)

    def save(self, path: str | Path) -> None:
        path = output_path(path)
        about = {
            "panel": self.panel,
            "model": self.model,
            "settings": _finite(self.settings),
            "facts": _finite(self.facts),
        }
        arrays = {name: array.detach().cpu().contiguous().clone() for name, array in self.arrays.items()}  # none shared
        with atomic_file(path) as temporary:
            save_tensors(arrays, temporary, metadata={"format": FORMAT, "trace": json.dumps(about, allow_nan=False)})

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Raises: ValueError, in one line, for anything that is not a whole trace."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"there is no trace at '{path}'")
        try:
            with safe_open(path, framework="pt") as opened:
                metadata = opened.metadata() or {}
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"'{path}' is not a trace, or is damaged: {error}") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"'{path}' is a safetensors file, but not a trace of this version ({FORMAT})")
        try:
            about = json.loads(metadata["trace"])
            trace = cls(about["panel"], about["model"], about["settings"], arrays, about["facts"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"'{path}' is not a whole trace: its description cannot be read") from error
        if not trace._is_well_described():
            raise ValueError(f"'{path}' is not a whole trace: its description is not one of a generation")
        if any(array.ndim == 0 or array.shape[0] != len(trace) for array in arrays.values()):
            raise ValueError(f"'{path}' is not a whole trace: its arrays and its {len(trace)} steps do not match")
        return trace

    def _is_well_described(self) -> bool:
        return (
            self.panel in ("text", "image")
            and isinstance(self.model, str)
            and isinstance(self.settings, dict)
            and isinstance(self.facts, list)
            and all(isinstance(facts, dict) for facts in self.facts)
        )


def stack(rows: list[Tensor]) -> Tensor:
    """Rows of equal shape as one array with the step as its leading axis; empty when there is no step."""
    return torch.stack(rows) if rows else torch.empty(0)


def _finite(value: Any) -> Any:
    """JSON has no infinity: a log signal-to-noise ratio of a clean picture is written as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
