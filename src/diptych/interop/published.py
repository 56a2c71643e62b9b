"""Whether a folder is as others publish models, and of which panel: read off its files, so that nothing of the other
panel is imported to open it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

INDEX = "model_index.json"  # of a painter, in the layout of diffusers


def is_pipeline(directory: str | Path) -> bool:
    """Whether a folder is a painter of diffusers."""
    return (Path(directory) / INDEX).is_file()


def is_published(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a text model of Hugging Face's kind, not ours."""
    return "panel" not in config and ("architectures" in config or "model_type" in config)
