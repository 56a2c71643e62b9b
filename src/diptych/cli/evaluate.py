"""`diptych evaluate`: figures on data that a model did not learn from."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli import UsageError, frame

if TYPE_CHECKING:
    from diptych.evaluate.scenes import SceneReport
    from diptych.evaluate.share import Share
    from diptych.image.model import ImageModel, NoiseLoss
    from diptych.text.model import TextModel

app = frame.application()
SCENES = "scenes"
CORPORA = "tinystories, african_storybook_en, fairytaleqa, chilit, tinyshakespeare"


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A bundled model (brush, quill, judge) or a checkpoint directory.")],
    on: Annotated[str, typer.Option(help=f"'{SCENES}', for models that paint; a corpus ({CORPORA}) or a .txt file.")],
    seed: Annotated[int, typer.Option(help="Of the first prompt's pictures; the next prompts count up.")] = 1,
    steps: Annotated[int, typer.Option(help="Steps for each picture.")] = 30,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 5.0,
    documents: Annotated[int, typer.Option(min=1, help="The most documents to score.")] = 200,
    sheet: Annotated[Path | None, typer.Option(help="Put all that was painted on this PNG, misses in red.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of words.")] = False,
    device: frame.Device = None,
    dtype: frame.Dtype = None,
) -> None:
    """Measure a model: what it paints of held-out scenes, or how well it foresees text that it did not learn."""
    from diptych.models import find

    directory, config = find(model)
    panel = config.get("panel")
    if panel in ("image", "judge") and on != SCENES:
        raise UsageError(f"'{model}' does not write, so it cannot be evaluated on '{on}'; use --on {SCENES}")
    if panel == "text" and on == SCENES:
        raise UsageError(f"'{model}' writes text, it does not paint; evaluate it --on a .txt file or one of {CORPORA}")
    if sheet and panel != "image":
        raise UsageError(f"--sheet shows what was painted, and '{model}' does not paint")
    sheet = frame.output(sheet, ".png")
    if panel == "judge":
        facts, words = _judge(directory)
    elif panel == "image":
        from diptych.image.runner import ImageRequest

        with frame.settings():
            ImageRequest("any", steps=steps, guidance_scale=guidance, seed=seed)
        facts, words = _scenes(frame.image_model(model, device, dtype), seed, steps, guidance, sheet)
    else:
        facts, words = _text(frame.text_model(model, device, dtype), on, documents)
    if json:
        frame.json_line(facts)
    else:
        print(words)


Result = tuple[dict[str, Any], str]  # for a program, for a reader


def _text(model: "TextModel", on: str, documents: int) -> Result:
    from diptych.evaluate.text import evaluate_text

    report = evaluate_text(model, on, max_documents=documents)
    score = report.score
    spread = "95 % interval {:.3f} to {:.3f}, ".format(*score.interval) if score.num_documents > 1 else ""
    kind = "held-out documents" if report.held_out else "documents"
    many = f"{score.num_documents} of {report.num_available} {kind}"
    return report.to_dict(), f"{report.model} on {report.on}: {score.value:.3f} bits per byte ({spread}{many})"


def _judge(directory: Path) -> Result:
    from diptych.evaluate.judge import measure_judge, open_judge

    accuracy = measure_judge(open_judge(directory))
    lines = [f"The judge read {accuracy.num_pictures} fresh real scenes, half of them held-out combinations. Right:"]
    lines += _table({"all": accuracy.mean, **accuracy.by_attribute})
    return accuracy.to_dict(), "\n".join(lines)


def _scenes(model: "ImageModel", seed: int, steps: int, guidance: float, sheet: Path | None) -> Result:
    from diptych.evaluate.judge import card_accuracy, measure_judge, open_judge
    from diptych.evaluate.scenes import evaluate_scenes, held_out_noise_loss, save_sheet

    judge = open_judge()
    with _progress("painting") as watch:
        report = evaluate_scenes(model, judge, seed=seed, steps=steps, guidance_scale=guidance, watch=watch)
    if sheet:
        save_sheet(report, sheet)
    facts, lines = report.to_dict(), [_summary(report)]
    try:
        accuracy = measure_judge(judge)
        losses = held_out_noise_loss(model)
    except ValueError as error:
        card = card_accuracy()
        facts["judge"], facts["noise_loss"] = {"measured": False, **card}, None
        lines.append(
            f"The judge itself and the denoising loss could not be measured here: {error}. The judge's card says "
            f"{100 * card['mean']:.1f} % right on {card['pictures']} fresh real scenes."
        )
    else:
        facts["judge"] = {"measured": True, **accuracy.to_dict()}
        facts["noise_loss"] = [loss._asdict() for loss in losses]
        lines.append(f"The judge itself, on {accuracy.num_pictures} fresh real scenes, is right in {accuracy.mean}.")
        lines += _losses(losses)
    if sheet:
        facts["sheet"] = str(sheet)
        lines.append(f"{sheet}: all {len(report.painted)} pictures, with what was missed")
    return facts, "\n".join(lines)


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


def _losses(losses: "list[NoiseLoss]") -> list[str]:
    head = "Denoising loss on held-out scenes (mean squared error of the predicted noise; 1 is no idea):"
    rows = [f"  log SNR {loss.log_snr:6.2f}   {loss.loss:.4f} ± {loss.standard_error:.4f}" for loss in losses]
    return [head, *rows]


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
