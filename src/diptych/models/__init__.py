"""The bundled models, and finding a model by name."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.image.model import ImageModel
    from diptych.text.model import TextModel

HERE = Path(__file__).parent


def bundled() -> dict[str, Path]:
    """Name -> checkpoint directory of the models that come with the package."""
    return {path.parent.name: path.parent for path in sorted(HERE.glob("*/config.json"))}


def find(name: str) -> tuple[Path, dict[str, Any]]:
    """The directory and the config of a model named by a bundled name or a path.

    Raises:
        ValueError: nothing of that name; the message lists the known.
    """
    from diptych.core.files import recover_directory
    from diptych.core.spelling import unknown
    from diptych.core.weights import read_config

    directory = bundled().get(name, Path(name))
    recover_directory(directory)
    if not directory.is_dir():
        raise unknown("model", name, [*bundled(), "a checkpoint directory"])
    return directory, read_config(directory)


def open_model(name: str, *, device: str | None = None, dtype: str | None = None) -> "TextModel | ImageModel":
    """Load a model of either panel; see `diptych.load`."""
    directory, config = find(name)
    if config.get("panel") == "text":
        from diptych.text.model import TextModel

        return TextModel.load(directory, device=device, dtype=dtype)
    if config.get("panel") == "image":
        from diptych.image.model import ImageModel

        return ImageModel.load(directory, device=device, dtype=dtype)
    if config.get("panel") == "judge":
        raise ValueError(
            f"'{name}' neither writes nor paints: it reads off a picture what is on it, and works inside "
            "`diptych evaluate MODEL --on scenes`"
        )
    raise ValueError(f"'{directory}' is not a model of a panel: its config.json says panel {config.get('panel')!r}")
