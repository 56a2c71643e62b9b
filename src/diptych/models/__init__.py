"""The bundled models, and finding a model by name: a bundled one, a directory, or an id on Hugging Face's hub."""

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
    """The directory and the config of a model named by a bundled name, a path or a hub id, which is fetched.

    Raises:
        ValueError: nothing of that name; the message lists the known, or says how a hub id comes here.
    """
    from diptych.core.files import recover_directory
    from diptych.core.spelling import unknown
    from diptych.core.weights import read_config, read_object
    from diptych.interop.hub import fetch, is_id
    from diptych.interop.published import INDEX, is_pipeline

    directory = bundled().get(name, Path(name))
    if directory.is_file():
        raise ValueError(_about_file(directory))
    recover_directory(directory)
    if not directory.is_dir():
        if not is_id(name):
            raise unknown("model", name, [*bundled(), "a checkpoint directory", "an id on the hub (org/name)"])
        directory = fetch(name)
    if is_pipeline(directory):
        return directory, read_object(directory / INDEX)
    return directory, read_config(directory)


def _about_file(path: Path) -> str:
    """Why a file is no model here, and the way out."""
    if path.suffix == ".safetensors":
        return (
            f"'{path}' is a file of weights without the settings that they belong to: a model is a folder. diffusers "
            "makes one of a single file: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR); an "
            "adapter is given beside its model"
        )
    if path.suffix in (".ckpt", ".bin", ".pt", ".pth"):
        return (
            f"'{path}' is a pickle, which may hold code that runs when it is opened, and is never read here. Get the "
            "safetensors files, or have their authors' library write them: "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR)"
        )
    return f"'{path}' is a file; a model is a folder with config.json or model_index.json"


def open_model(
    name: str, *, device: str | None = None, dtype: str | None = None, bits: int | None = None, compile: bool = False
) -> "TextModel | ImageModel":
    """Load a model of either panel; see `diptych.load`."""
    from diptych.interop.published import is_pipeline, is_published

    directory, config = find(name)
    if config.get("panel") == "image" or is_pipeline(directory):
        if bits is not None or compile:
            raise ValueError(f"bits and compile are for models that write; '{name}' paints")
        if is_pipeline(directory):
            from diptych.interop.pipelines import open_pipeline

            return open_pipeline(directory, device=device, dtype=dtype)
        from diptych.image.model import ImageModel

        return ImageModel.load(directory, device=device, dtype=dtype)
    if config.get("panel") == "judge":
        raise ValueError(
            f"'{name}' neither writes nor paints: it reads off a picture what is on it, and works inside "
            "`diptych evaluate MODEL --on scenes`"
        )
    from diptych.interop.folder import open_folder
    from diptych.text.model import TextModel

    if config.get("panel") != "text" and not is_published(config):
        raise ValueError(f"'{directory}' is not a model of a panel: its config.json says panel {config.get('panel')!r}")
    open_text = open_folder if is_published(config) else TextModel.load
    model = open_text(directory, device=device, dtype=dtype, bits=bits)
    if compile:
        model.compile()
    return model
