"""`diptych evaluate`: figures on data that a model did not learn from."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli import UsageError, frame

if TYPE_CHECKING:
    from diptych.core.share import Share
    from diptych.evaluate.pictures import PictureReport
    from diptych.evaluate.scenes import SceneReport
    from diptych.image.model import ImageModel
    from diptych.text.model import TextModel

app = frame.application()
SCENES = "scenes"
PASSKEY = "passkey"
KINDS = ("text", "image", "judge", "autoencoder", "pairing")  # panels, and parts of a panel
MEASURED = "float32"  # figures are measured in this unless asked for otherwise
CORPORA = "tinystories, african_storybook_en, fairytaleqa, chilit, tinyshakespeare"


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A bundled model (brush, quill, judge) or a checkpoint directory.")],
    on: Annotated[
        str,
        typer.Option(
            help=f"'{SCENES}' or a folder of pictures; for text a corpus ({CORPORA}), a .txt file, or '{PASSKEY}': "
            "numbers hidden in filler."
        ),
    ],
    seed: Annotated[int, typer.Option(help="Of the first prompt's pictures; the next prompts count up.")] = 1,
    steps: Annotated[int, typer.Option(help="Steps for each picture.")] = 30,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 5.0,
    documents: Annotated[int, typer.Option(min=1, help="The most documents to score; passkeys of each length.")] = 200,
    lengths: Annotated[
        str | None, typer.Option(metavar="N,N", help="Tokens of the texts with a passkey. [the model's context]")
    ] = None,
    rope_scaling: Annotated[
        str | None, typer.Option(help="Past the context: linear, ntk, dynamic, yarn or llama3. [none]")
    ] = None,
    cache: frame.CacheDtype = None,
    sheet: Annotated[Path | None, typer.Option(help="Put all that was painted on this PNG, misses in red.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of words.")] = False,
    device: frame.Device = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, ... [painting: the fastest here; measuring: float32]")
    ] = None,
    bits: frame.Bits = None,
) -> None:
    """Measure a model on data that it did not learn from: bits per byte of text; pictures of held-out scenes and the
    denoising loss; what an autoencoder keeps; which caption belongs to which picture."""
    from diptych.interop.published import is_pipeline, is_published
    from diptych.models import find

    directory, config = find(model)
    kind = "text" if is_published(config) else str(config.get("panel") or config.get("kind"))
    kind = "image" if is_pipeline(directory) else kind
    _check(model, kind, on, sheet, dtype)
    if (lengths or rope_scaling or cache) and (kind != "text" or on != PASSKEY):
        raise UsageError(f"--lengths, --rope-scaling and --cache are for a model that writes, --on {PASSKEY}")
    if bits is not None and kind != "text":
        raise UsageError("--bits is for a model that writes")
    sheet = frame.output(sheet, ".png")
    if kind == "text" and on == PASSKEY:
        reader = frame.text_model(model, device, dtype or MEASURED, bits=bits)
        facts, words = _passkeys(reader, _lengths(lengths), documents, seed, rope_scaling, cache)
    elif kind == "text":
        facts, words = _text(frame.text_model(model, device, dtype or MEASURED, bits=bits), on, documents)
    elif kind == "judge":
        facts, words = _judge(directory)
    elif kind == "image" and on == SCENES:
        from diptych.image.guidance import Guidance
        from diptych.image.runner import ImageRequest

        with frame.settings():
            ImageRequest("any", steps=steps, guidance=Guidance(guidance), seed=seed)
        painter = frame.image_model(model, device, dtype)
        measured = frame.image_model(model, device, dtype or MEASURED)
        facts, words = _scenes(painter, measured, seed, steps, guidance, sheet)
    else:
        facts, words = _pictures(model, directory, kind, on, device, dtype or MEASURED)
    if json:
        frame.json_line(facts)
    else:
        print(words)


def _check(model: str, kind: str, on: str, sheet: Path | None, dtype: str | None) -> None:
    """Refuse what does not go together, before anything is loaded."""
    if kind not in KINDS:
        raise ValueError(f"'{model}' cannot be evaluated: its config.json names none of {', '.join(KINDS)}")
    if kind == "text" and on == SCENES:
        raise UsageError(f"'{model}' writes text, it does not paint; evaluate it --on a .txt file or one of {CORPORA}")
    if kind == "judge" and on != SCENES:
        raise UsageError(f"'{model}' does not write, so it cannot be evaluated on '{on}'; use --on {SCENES}")
    if kind != "text" and on != SCENES and not Path(on).is_dir():
        raise UsageError(
            f"'{model}' does not write, so it cannot be evaluated on '{on}'; use --on {SCENES} or a folder of pictures"
        )
    if sheet and kind != "image":
        raise UsageError(f"--sheet shows what was painted, and '{model}' does not paint")
    if sheet and on != SCENES:
        raise UsageError(f"--sheet shows what was painted, and nothing is painted of '{on}'; use --on {SCENES}")
    if dtype not in (None, MEASURED) and kind not in ("text", "image"):
        raise UsageError(f"'{model}' is measured in {MEASURED} alone; --dtype is for models that write or paint")


Result = tuple[dict[str, Any], str]  # for a program, for a reader


def _text(model: "TextModel", on: str, documents: int) -> Result:
    from diptych.evaluate.text import evaluate_text

    report = evaluate_text(model, on, max_documents=documents)
    kind = "held-out documents" if report.held_out else "documents"
    said = report.score.told(3, f"of {report.num_available} {kind}").replace(" (", " bits per byte (", 1)
    return report.to_dict(), f"{report.model} on {report.on}: {said}"


def _passkeys(
    model: "TextModel", lengths: list[int], texts: int, seed: int, rope_scaling: str | None, cache: str | None
) -> Result:
    from diptych.evaluate.passkeys import BANDS, evaluate_passkeys
    from diptych.text.cache import CacheSettings

    with _progress("reading") as watch:
        report = evaluate_passkeys(
            model,
            lengths or [model.config.context],
            texts=texts,
            seed=seed,
            rope_scaling=rope_scaling,
            cache=CacheSettings(cache or ""),
            watch=watch,
        )
    lines = [f"{report.model}, context {report.context}: hidden numbers found, by the tokens of the text."]
    for length, bands in report.found.items():
        past = f" (past the context, positions {rope_scaling or 'as they are'})" if length > report.context else ""
        lines.append(f"{length:,} tokens: {report.total(length)}{past}")
        lines += _table(
            {f"depth {band / BANDS:.1f} to {(band + 1) / BANDS:.1f}": one for band, one in enumerate(bands)}
        )
    return report.to_dict(), "\n".join(lines)


def _lengths(said: str | None) -> list[int]:
    parts = [part.strip() for part in (said or "").split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--lengths must be whole numbers of tokens, like 512,4096, not '{said}'")
    return [int(part) for part in parts]


def _judge(directory: Path) -> Result:
    from diptych.evaluate.judge import measure_judge, open_judge

    accuracy = measure_judge(open_judge(directory))
    lines = [f"The judge read {accuracy.num_pictures} fresh real scenes, half of them held-out combinations. Right:"]
    lines += _table({"all": accuracy.mean, **accuracy.by_attribute})
    return accuracy.to_dict(), "\n".join(lines)


def _pictures(model: str, directory: Path, kind: str, on: str, device: str | None, dtype: str) -> Result:
    from diptych.core.precision import choose
    from diptych.evaluate.pictures import evaluate_autoencoder, evaluate_painter, evaluate_pairing

    with frame.settings():
        choose(device, dtype)
    if kind == "image":
        with _progress("measuring"):
            report = evaluate_painter(frame.image_model(model, device, dtype), on)
    elif kind == "autoencoder":
        with _progress("measuring"):
            report = evaluate_autoencoder(directory, on, device=device)
    else:
        from diptych.image.pairing import PairingModel

        report = evaluate_pairing(PairingModel.load(directory, device=device), on)
    return report.to_dict(), "\n".join(_measured(report))


def _scenes(
    painter: "ImageModel", measured: "ImageModel", seed: int, steps: int, guidance: float, sheet: Path | None
) -> Result:
    """`painter` and `measured` are the same weights, in the dtype for painting and in the one for figures."""
    from diptych.evaluate.judge import card_accuracy, measure_judge, open_judge
    from diptych.evaluate.pictures import evaluate_painter
    from diptych.evaluate.scenes import evaluate_scenes, save_sheet

    judge = open_judge()
    with _progress("painting") as watch:
        report = evaluate_scenes(painter, judge, seed=seed, steps=steps, guidance_scale=guidance, watch=watch)
    if sheet:
        save_sheet(report, sheet)
    facts, lines = report.to_dict(), [_summary(report)]
    try:
        with _progress("measuring"):
            accuracy = measure_judge(judge)
            figures = evaluate_painter(measured, SCENES)
    except ValueError as error:
        card = card_accuracy()
        facts |= {"judge": {"measured": False, **card}, "noise_loss": None, "autoencoder": None}
        lines.append(
            f"The judge itself and the denoising loss could not be measured here: {error}. The judge's card says "
            f"{100 * card['mean']:.1f} % right on {card['pictures']} fresh real scenes."
        )
    else:
        found = figures.to_dict()
        facts |= {"judge": {"measured": True, **accuracy.to_dict()}, "dtype": found["dtype"]}
        facts |= {"noise_loss": found["noise_loss"], "autoencoder": found["autoencoder"]}
        lines.append(f"The judge itself, on {accuracy.num_pictures} fresh real scenes, is right in {accuracy.mean}.")
        lines += _measured(figures)
    if sheet:
        facts["sheet"] = str(sheet)
        lines.append(f"{sheet}: all {len(report.painted)} pictures, with what was missed")
    return facts, "\n".join(lines)


def _measured(report: "PictureReport") -> list[str]:
    """What was measured on pictures, each figure with its interval and its number of samples."""
    where = "held-out scenes" if report.on == SCENES else f"pictures of {report.on}"
    lines = [f"{report.model} on {report.num_pictures} {where}, in {report.dtype}."]
    if report.loss:
        lines.append("Denoising loss (mean squared error of the predicted noise; 1 is no idea):")
        lines.append(f"  {'all noise levels':<26}  {report.loss.overall.told(4, 'pictures')}")
        for level in report.loss.levels:
            noise = "log SNR {:6.2f} to {:6.2f}".format(*level.log_snr)
            lines.append(f"  {noise:<26}  {level.loss.told(4, 'predictions')}")
    if kept := report.fidelity:
        lines += [
            "Autoencoder (pictures written down and read back):",
            f"  PSNR in dB           {kept.psnr_db.told(2, 'pictures')}",
            f"  SSIM of luminance    {kept.ssim.told(4, 'pictures')}",
        ]
    if found := report.matching:
        lines.append(f"The first choice is right (by chance 1 of {report.num_pictures}):")
        lines += _table({"its caption": found.to_caption, "its picture": found.to_picture})
        if found.by_attribute:
            lines.append("Told apart by captions alone, without having been trained to:")
            lines += _table(found.by_attribute)
    return [*lines, *([report.skipped] if report.skipped else [])]


def _summary(report: "SceneReport") -> str:
    count, prompts = len(report.painted), len({picture.prompt for picture in report.painted})
    lines = [f"{report.model} painted {prompts} held-out prompts, {count} pictures. Named attributes found:"]
    lines += _table({"all": report.total, **report.by_attribute})
    missed = [picture for picture in report.painted if picture.misses]
    lines.append(f"Missed in {len(missed)} of {count} pictures{':' if missed else '.'}")
    for picture in missed:
        what = ", ".join(f"no {picture.named[name]} (saw {seen})" for name, seen in picture.misses.items())
        lines.append(f"  {picture.prompt}, seed {picture.seed}, picture {picture.sample + 1}: {what}")
    return "\n".join(lines)


def _table(shares: "dict[str, Share]") -> list[str]:
    width = max(map(len, shares))
    return [f"  {name:<{width}}  {share}" for name, share in shares.items()]


@contextmanager
def _progress(what: str) -> Iterator[Callable[[float, int], None] | None]:
    """A bar on standard error that goes when the work is done; nothing in a pipe."""
    if not frame.is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
