"""`diptych image`: paint a picture from a prompt; the picture carries how it was made, and --like makes it again."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli import UsageError, frame

if TYPE_CHECKING:
    from diptych.core.generation import Generation
    from diptych.image.runner import ImageResult, ImageStep

DEFAULTS: dict[str, Any] = {
    "negative_prompt": "",
    "steps": 30,
    "guidance_scale": 5.0,
    "sampler": "dpm++-2m",
    "nodes": None,
    "count": 1,
}
NEEDED = ("prompt", "negative_prompt", "seed", "sampler", "nodes", "steps", "guidance_scale", "model")


def image(
    prompt: Annotated[str | None, typer.Argument(help="What to paint; may be left out with --like.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to keep away from.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps from static to picture. [30]")] = None,
    guidance: Annotated[float | None, typer.Option(help="How far to follow the prompt; 1 is unguided. [5]")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="dpm++-2m, unipc, euler, heun, ...: see docs/samplers.md. [dpm++-2m]")
    ] = None,
    nodes: Annotated[
        str | None, typer.Option(help="Noise levels: karras, uniform, sigmas:9,3,1, ... [the sampler's own]")
    ] = None,
    seed: frame.Seed = None,
    count: Annotated[int | None, typer.Option("-n", help="How many pictures, painted together. [1]")] = None,
    out: Annotated[Path | None, typer.Option(help="The picture to write (.png). [named after prompt and seed]")] = None,
    trace: Annotated[Path | None, typer.Option(help="Keep every step in this file (.trace).")] = None,
    like: Annotated[Path | None, typer.Option(help="Paint this picture again; other options change it.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Tell in plain language how the picture comes.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line: the steps, then the result.")] = False,
    model: Annotated[str | None, typer.Option(help="A bundled model or a checkpoint directory. [brush]")] = None,
    preview: Annotated[bool, typer.Option(help="Show the picture as it comes, where the terminal can.")] = True,
    device: frame.Device = None,
    dtype: frame.Dtype = None,
) -> None:
    """Paint a picture from a prompt, from static, step by step."""
    form = frame.one_of(explain=explain, json=json)
    out, trace = frame.output(out, ".png"), frame.output(trace, ".trace")
    given: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative,
        "steps": steps,
        "guidance_scale": guidance,
        "sampler": sampler,
        "nodes": nodes,
        "seed": seed,
        "count": count,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if like is not None:
        before = _facts(like)
        model = model or _model_of(before, like)
        is_same = not given and dtype in (None, before.get("dtype"))
        wanted, chosen = _again(before, given, is_same=is_same)
        dtype = dtype or before.get("dtype")
    elif prompt is None:
        raise UsageError("missing argument 'prompt': say what to paint, or name a picture with --like")
    else:
        before, chosen = None, None
        wanted = DEFAULTS | given
    painter = frame.image_model(model or "brush", device, dtype)
    if before is not None:
        _tell_differences(before, painter.name)
    wanted["seed"] = frame.seed_or_fresh(wanted.get("seed"))
    with frame.settings():
        generation = painter.generate(**wanted)
    if before is None:
        frame.tell_fresh_seed(seed, wanted["seed"])
    started = time.perf_counter()
    if form == "explain":
        from diptych.cli.explain_image import explain_image

        explain_image(generation, wanted)
    elif form == "json":
        _show_json(generation)
    else:
        from diptych.cli.preview import watching

        with watching(has_preview=preview) as watch:
            for step in generation:
                watch(step)
    result = generation.result()
    seconds = time.perf_counter() - started
    kept = range(len(result.images)) if chosen is None else [chosen]
    paths = _save(result, list(kept), out)
    if trace:
        result.trace.save(trace)
        frame.say(f"{trace}: {len(result.steps)} steps; 'diptych trace film {trace}' makes a film of them")
    if form == "json":
        images = [str(path) for path in paths]
        frame.json_line({"type": "result", "images": images, "seed": result.seed, "settings": result.settings})
        return
    about = result.settings
    size = f"{result.image.width} x {result.image.height}"
    how = f"{size}, seed {result.seed}, {about['steps']} steps of {about['sampler']}, {seconds:.1f} s"
    for path in paths[:-1]:
        print(path)
    print(f"{paths[-1]}: {how}" if len(paths) == 1 else f"{paths[-1]}: {len(paths)} pictures, each {how}")


def _facts(like: Path) -> dict[str, Any]:
    """How the picture was made; all that repeating it needs is there."""
    from diptych.image.photo import read_facts

    facts = read_facts(like)
    lacking = [name for name in NEEDED if name not in facts]
    if lacking or facts.get("has_own_noise") or facts.get("is_whole") is False:
        why = f"it does not say its {lacking[0]}" if lacking else "it was not painted from its seed alone"
        raise ValueError(f"'{like}' cannot be painted again: {why}")
    return facts


def _model_of(facts: dict[str, Any], like: Path) -> str:
    """A bundled model's name; what a picture says is never taken for a path."""
    from diptych.models import bundled

    if facts["model"] not in bundled():
        who = f"'{like}' was painted by '{facts['model']}'"
        raise ValueError(f"{who}, which is not bundled; name its folder with --model")
    return str(facts["model"])


def _again(before: dict[str, Any], given: dict[str, Any], *, is_same: bool) -> tuple[dict[str, Any], int | None]:
    """The settings to paint with, and which of the pictures to keep (None: all).

    A picture that was painted among others is painted among them again when nothing is changed: how many rows are
    multiplied together can move the last bit of a sum.
    """
    wanted = {name: before[name] for name in (*DEFAULTS, "prompt", "seed") if name in before} | given
    sample, first = int(before.get("sample", 0)), int(before.get("first_sample", before.get("sample", 0)))
    count = int(before.get("count", 1))
    if is_same and count > 1 and first <= sample < first + count:
        which = f"picture {sample - first + 1} of {count} painted together"
        frame.say(f"{which}; all are painted again, to match every bit")
        return wanted | {"first_sample": first}, sample - first
    return wanted | {"first_sample": sample, "count": given.get("count", 1)}, None


def _tell_differences(before: dict[str, Any], name: str) -> None:
    from diptych import __version__

    if before["model"] != name:
        frame.say(f"note: painted by model '{before['model']}' then, by '{name}' now; the pictures will differ")
    if before.get("version") != __version__:
        frame.say(f"note: painted by diptych {before.get('version')} then, {__version__} now; the pictures may differ")


def _save(result: "ImageResult", kept: list[int], out: Path | None) -> list[Path]:
    """Write the pictures, each with how it was made; after Ctrl-C those already written are named."""
    from diptych.image.photo import save_png

    endings = [".png"] if len(kept) == 1 else [f"-{number}.png" for number in range(1, len(kept) + 1)]
    stem = str(out.with_suffix("")) if out else frame.unused(_stem(result.settings), *endings)
    first = result.settings["sample"]
    written: list[Path] = []
    try:
        for number, ending in zip(kept, endings, strict=True):
            path = Path(stem + ending)
            save_png(result.images[number], path, result.settings | {"sample": first + number, "first_sample": first})
            written.append(path)
    except KeyboardInterrupt:
        names = ", ".join(map(str, written))
        raise KeyboardInterrupt(f"interrupted; written: {names}" if names else "") from None
    return written


def _stem(settings: dict[str, Any]) -> str:
    """A file name from the prompt: "a cat, at sunset" with seed 7 is a-cat-at-sunset-7."""
    words = re.sub(r"[^a-z0-9]+", "-", settings["prompt"].lower()).strip("-")[:60].rstrip("-")
    return f"{words or 'picture'}-{settings['seed']}"


def _show_json(generation: "Generation[ImageStep, ImageResult]") -> None:
    names = ("index", "total", "sigma", "alpha", "log_snr", "noise_share", "guidance_push")
    for step in generation:
        frame.json_line({"type": "step", **{name: getattr(step, name) for name in names}})
