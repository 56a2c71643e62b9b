"""`diptych models`: what comes with the package; other people's checkpoints brought in, one's own handed out."""

import json as json_format
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli import UsageError, frame

if TYPE_CHECKING:
    from diptych.image.model import ImageModel
    from diptych.text.model import TextModel

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
FORMS = ("hf",)

app = frame.application("The models that are here. Without a command: list the bundled ones.")


@app.callback(invoke_without_command=True)
def models(context: typer.Context, json: Json = False) -> None:
    """List the bundled models; 'import' and 'export' exchange checkpoints with other tools."""
    if context.invoked_subcommand:
        if json:
            raise UsageError("--json goes with the list of models alone")
        return
    from diptych.models import bundled

    rows = [_describe(name, directory) for name, directory in bundled().items()]
    if json:
        for row in rows:
            print(json_format.dumps(row, ensure_ascii=False))
        return
    if not rows:
        print("no models are bundled with this installation")
        return
    print(frame.bold(f"{'name':<12} {'panel':<6} {'parameters':>11} {'size':>8}  {'what it does':<38} where"))
    for row in rows:
        size = f"{row['bytes'] / 1e6:.1f} MB"
        parameters = f"{row['parameters'] / 1e6:.1f} M"
        what = f"{row['name']:<12} {row['panel']:<6} {parameters:>11} {size:>8}  {row['about']:<38}"
        print(f"{what} {_near(row['path'])}")


@app.command("import")
def import_(
    model: Annotated[str, typer.Argument(help="A Hugging Face directory, or an id on its hub (org/name).")],
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes, a folder that does not exist yet.")],
) -> None:
    """Make a checkpoint of this project from a published one (docs/open-models.md says which)."""
    _check_new(out)
    from diptych.interop.folder import bring_in
    from diptych.interop.published import is_published
    from diptych.models import find

    directory, config = find(model)
    if not is_published(config):
        raise UsageError(f"'{model}' is no Hugging Face directory; it opens as it is")
    made = bring_in(directory, out)
    size = sum(map(count_parameters, out.glob("*.safetensors"))) / 1e6
    print(f"{out}: {size:.1f} M parameters, {made.config.context} tokens in view; 'diptych text --model {out}' writes")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A bundled model or a checkpoint directory that writes.")],
    out: Annotated[Path, typer.Option(help="Where it goes, a folder that does not exist yet.")],
    to: Annotated[str, typer.Option(help="The layout: hf is what transformers opens.")] = "hf",
) -> None:
    """Write a text model in the layout of other tools."""
    if to not in FORMS:
        from diptych.core.spelling import unknown

        raise UsageError(unknown("layout", to, FORMS))
    _check_new(out)
    from diptych.core.weights import stored_dtype
    from diptych.interop.folder import card_of, write_folder
    from diptych.models import find

    directory, _ = find(model)
    architecture = write_folder(frame.text_model(model, "cpu", stored_dtype(directory)), out, card_of(directory))
    print(f"{out}: {architecture}; AutoModelForCausalLM.from_pretrained opens it")


@app.command()
def merge(
    model: Annotated[str, typer.Argument(help="A bundled model or a checkpoint directory.")],
    adapter: Annotated[Path, typer.Argument(help="A LoRA adapter for it: a folder, for a painter also a file.")],
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes, a folder that does not exist yet.")],
) -> None:
    """Add an adapter to a model's weights: one checkpoint, which is as quick as the model itself."""
    _check_new(out)
    import torch

    from diptych.core.weights import stored_dtype
    from diptych.interop.folder import card_of
    from diptych.interop.published import is_pipeline
    from diptych.models import find

    directory, config = find(model)
    if is_pipeline(directory):
        raise UsageError(f"'{model}' stays in the layout of its authors; 'diptych image --lora' paints with an adapter")
    dtype, is_painter = stored_dtype(directory), config.get("panel") == "image"
    merged = _painter_with(model, adapter) if is_painter else _writer_with(model, adapter, dtype)
    before, merged.name = merged.name, out.resolve().name
    about = f"# {merged.name}\n\nThe model {before} with the adapter `{adapter.resolve().name}` added to its weights."
    card = "\n\n".join(filter(None, (about, card_of(adapter), card_of(directory)))) + "\n"
    merged.save(out, card, dtype=getattr(torch, dtype))
    what = ("image", "paints") if is_painter else ("text", "writes")
    print(f"{out}: {before} with the adapter in its weights; 'diptych {what[0]} --model {out}' {what[1]}")


def _writer_with(model: str, adapter: Path, dtype: str) -> "TextModel":
    from diptych.interop.peft import load_adapter

    writer = frame.text_model(model, "cpu", dtype)
    writer.merge_adapter(load_adapter(writer, adapter))
    return writer


def _painter_with(model: str, adapter: Path) -> "ImageModel":
    from diptych.interop.lora import load_lora

    painter = frame.image_model(model, "cpu", "float32")
    painter.merge_adapter(load_lora(painter, adapter))
    return painter


def _check_new(out: Path) -> None:
    if out.exists():
        raise UsageError(f"'{out}' exists already; name a new folder")


def _describe(name: str, directory: Path) -> dict[str, Any]:
    config = json_format.loads((directory / "config.json").read_text())
    files = sorted(directory.glob("*.safetensors"))
    return {
        "name": name,
        "panel": str(config.get("panel", "?")),
        "parameters": sum(map(count_parameters, files)),
        "bytes": sum(file.stat().st_size for file in files),
        "about": _about(config),
        "path": str(directory),
    }


def count_parameters(file: Path) -> int:
    """Numbers in a safetensors file, from its header alone: 8 bytes of length, then JSON with every tensor's shape."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"'{file}' is damaged or not a safetensors file")
        try:
            header = json_format.loads(opened.read(length))
        except ValueError as error:
            raise ValueError(f"'{file}' is damaged or not a safetensors file") from error
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _about(config: dict[str, Any]) -> str:
    """In a few words, from the config: what the model makes of a prompt."""
    if config.get("panel") == "text":
        context = config.get("decoder", {}).get("context")
        return f"writes, {context} tokens in view" if context else "writes"
    if config.get("panel") == "image":
        size = config.get("size")
        return f"paints {size} x {size} pictures" if size else "paints"
    return "judges scenes" if config.get("panel") == "judge" else ""


def _near(path: str) -> str:
    """The path from here, where that is shorter."""
    try:
        return min(os.path.relpath(path), path, key=len)
    except ValueError:  # another drive
        return path
