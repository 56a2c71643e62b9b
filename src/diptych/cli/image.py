"""`diptych image`: paint a picture from a prompt; the picture carries how it was made, and --like makes it again."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli import UsageError, frame
from diptych.cli.image_easel import Easel, Watch
from diptych.cli.image_frames import PER_SECOND, USUAL, paint_frames, place
from diptych.cli.image_grid import paint_grid
from diptych.cli.image_like import again, facts_of, model_again, tell_differences
from diptych.cli.image_lora import loras_again, loras_of, wear
from diptych.cli.image_save import described, save
from diptych.cli.image_settings import checked, enlarged, interval_of, margins_of, measured, several, source_of
from diptych.cli.image_variations import DISTANCE, paint_variations

if TYPE_CHECKING:
    from diptych.core.generation import Generation
    from diptych.image.record import ImageResult, ImageStep

SEVERAL = {"frames": paint_frames, "grid": paint_grid, "variations": paint_variations}
GUIDANCE, FROM, MORE, SHOW = "Guidance", "From a picture", "Several pictures", "Output"
STEP_FACTS = ("index", "total", "sigma", "alpha", "log_snr", "noise_share", "guidance_push")


def image(
    prompt: Annotated[str | None, typer.Argument(help="What to paint; may be left out with --like.")] = None,
    size: Annotated[str | None, typer.Option(help="Width x height in pixels, like 192x128. [the model's]")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels across.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels down.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps from static to picture. [the model's]")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="How a step is taken: dpm++-2m, unipc, heun, ... [the model's]")
    ] = None,
    nodes: Annotated[
        str | None, typer.Option(help="Noise levels: karras, sgm-uniform, ... [the sampler's own]")
    ] = None,
    seed: frame.Seed = None,
    model: Annotated[str | None, typer.Option(help="A bundled model or a checkpoint directory. [brush]")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:SCALE]", help="Paint with a LoRA, at this strength; more than once for several."),
    ] = None,
    device: frame.Device = None,
    dtype: frame.Dtype = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="How far to follow the prompt; 1 is unguided. [the model's]", rich_help_panel=GUIDANCE),
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What to keep away from.", rich_help_panel=GUIDANCE)] = None,
    weaker: Annotated[
        str | None, typer.Option(help="A worse model to keep away from instead.", rich_help_panel=GUIDANCE)
    ] = None,
    interval: Annotated[
        str | None,
        typer.Option(
            "--guidance-interval",
            metavar="LOW,HIGH",
            help="Guide between these noise levels sigma / alpha only.",
            rich_help_panel=GUIDANCE,
        ),
    ] = None,
    rescale: Annotated[
        float | None,
        typer.Option(help="0..1, take back the contrast that guidance adds; 0.7 will do.", rich_help_panel=GUIDANCE),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Pull in the numbers past this share (dynamic thresholding); 0.995 will do.", rich_help_panel=GUIDANCE
        ),
    ] = None,
    parallel: Annotated[
        float | None,
        typer.Option(
            help="0..1, keep so much of the push that burns colours (adaptive projected guidance). [1]",
            rich_help_panel=GUIDANCE,
        ),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(help="The longest push, as a share of the estimate's length.", rich_help_panel=GUIDANCE),
    ] = None,
    momentum: Annotated[
        float | None,
        typer.Option(help="-1..1, add so much of the pushes before; -0.5 steadies.", rich_help_panel=GUIDANCE),
    ] = None,
    true_guidance: Annotated[
        float | None,
        typer.Option(help="For models that only imitate guidance: the real one.", rich_help_panel=GUIDANCE),
    ] = None,
    begin: Annotated[
        Path | None,
        typer.Option("--from", help="Begin from this picture instead of static.", rich_help_panel=FROM),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="0..1, how much of it is painted anew. [0.6; with a mask 1]", rich_help_panel=FROM),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Paint only where this picture is white; the rest stays.", rich_help_panel=FROM),
    ] = None,
    outpaint: Annotated[
        str | None,
        typer.Option(
            metavar="SIDES", help="Paint around it: pixels, or left=32,right=64 (top, bottom).", rich_help_panel=FROM
        ),
    ] = None,
    enlarge: Annotated[
        float | None,
        typer.Option(help="Paint, enlarge so many times, paint over once more.", rich_help_panel=FROM),
    ] = None,
    enlarge_strength: Annotated[
        float | None, typer.Option(help="0..1, how much of it that second time. [0.3]", rich_help_panel=FROM)
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Paint this picture again; other options change it.", rich_help_panel=FROM),
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", help="How many, painted together. [1]", rich_help_panel=MORE)
    ] = None,
    variations: Annotated[
        int | None,
        typer.Option(help="So many pictures near the one of --like or --from.", rich_help_panel=MORE),
    ] = None,
    distance: Annotated[
        float | None, typer.Option(help=f"0..1, how near the variations are. [{DISTANCE}]", rich_help_panel=MORE)
    ] = None,
    to_prompt: Annotated[
        str | None, typer.Option(help="Go on the way from the prompt to this one.", rich_help_panel=MORE)
    ] = None,
    to_seed: Annotated[
        int | None, typer.Option(help="Go on the way from the seed to this one.", rich_help_panel=MORE)
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="0..1, one picture, so far on that way.", rich_help_panel=MORE)
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help=f"Pictures all along it, as a film. [{USUAL}]", rich_help_panel=MORE)
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help=f"Frames a second of the film. [{PER_SECOND:g}]", rich_help_panel=MORE)
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=A,B,...",
            help="A labelled picture of many: steps=10,20 and, given twice, a second setting down the side.",
            rich_help_panel=MORE,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The picture to write (.png); a film is .webp, .gif or a folder. [named after prompt and seed]",
            rich_help_panel=SHOW,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Keep every step, with maps of the words, here (.trace).", rich_help_panel=SHOW),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Tell in plain language how the picture comes.", rich_help_panel=SHOW)
    ] = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a line: the steps, then the result.", rich_help_panel=SHOW),
    ] = False,
    preview: Annotated[
        bool, typer.Option(help="Show the picture as it comes, where the terminal can.", rich_help_panel=SHOW)
    ] = True,
) -> None:
    """Paint a picture from a prompt, from static or from a picture, step by step."""
    form = frame.one_of(explain=explain, json=json)
    trace = frame.output(trace, ".trace")
    given: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative,
        "steps": steps,
        "guidance_scale": guidance,
        "true_guidance_scale": true_guidance,
        "guidance_rescale": rescale,
        "guidance_interval": None if interval is None else interval_of(interval),
        "guidance_threshold": threshold,
        "guidance_parallel": parallel,
        "guidance_limit": limit,
        "guidance_momentum": momentum,
        "weaker": weaker,
        "sampler": sampler,
        "nodes": nodes,
        "seed": seed,
        "count": count,
        **measured(size, width, height),
        "picture": None if begin is None else source_of(begin),
        "strength": strength,
        "mask": None if mask is None else source_of(mask),
        "outpaint": None if outpaint is None else margins_of(outpaint),
        "to_prompt": to_prompt,
        "to_seed": to_seed,
        "share": share,
    }
    given = {name: value for name, value in given.items() if value is not None}
    given |= several(variations, distance, frames, fps, grid, given) | enlarged(enlarge, enlarge_strength)
    if "prompt" in given.get("grid", {}):
        given.setdefault("prompt", given["grid"]["prompt"][0])
    before, chosen, wanted, loras = None, None, given, loras_of(lora or [])
    if like is not None:
        before = facts_of(like)
        model = model or model_again(before["model"], "--model", like)
        is_same = not given and not lora and dtype in (None, before.get("dtype"))
        wanted, chosen = again(before, given, like, is_same=is_same)
        loras = loras or loras_again(before, like)
        dtype = dtype or before.get("dtype")
    elif "prompt" not in given:
        raise UsageError("missing argument 'prompt': say what to paint, or name a picture with --like")
    kind = checked(wanted)
    if (trace or explain) and (kind or (trace and "enlarge" in wanted and wanted.get("count", 1) != 1)):
        raise UsageError(f"--{'trace' if trace else 'explain'} is of one painting; leave out --{kind or 'enlarge'}")
    out = place(out, wanted["frames"]) if kind == "frames" else frame.output(out, ".png")
    frame.begin_compiling(device, dtype)
    painter = frame.image_model(model or "brush", device, dtype)
    wear(painter, loras)
    worse = frame.image_model(wanted["weaker"], device, dtype) if "weaker" in wanted else None
    if before is not None:
        tell_differences(before, painter.name)
    is_fresh = wanted.get("seed") is None
    wanted["seed"] = frame.seed_or_fresh(wanted.get("seed"))
    easel = Easel(painter, wanted, worse)
    watch = _watch(form, easel, has_preview=preview, is_fresh=is_fresh)
    started = time.perf_counter()
    paths, facts, said = SEVERAL[kind](easel, out, watch) if kind else _one(easel, chosen, out, trace, watch)
    seconds = time.perf_counter() - started - easel.waited
    if form == "json":
        images = [str(path) for path in paths]
        frame.json_line({"type": "result", "images": images, "seed": facts["seed"], "settings": facts})
        return
    for path in paths[:-1]:
        print(path)
    print(f"{paths[-1]}: {said}, {seconds:.1f} s")


def _one(
    easel: Easel, chosen: int | None, out: Path | None, trace: Path | None, watch: Watch
) -> tuple[list[Path], dict[str, Any], str]:
    """One painting, of one picture or several: the files, how they were made, and a line about them.

    Args:
        chosen: which picture of several to keep; None is all.
    """
    recording = {"words": trace is not None}
    painted = easel.paint(easel.begin(**recording), watch, **recording)
    kept = range(len(painted.images)) if chosen is None else [chosen]
    paths = save([painted.images[number] for number in kept], [painted.facts[number] for number in kept], out)
    if trace:
        painted.result.trace.save(trace)
        steps = len(painted.result.steps)
        frame.say(f"{trace}: {steps} steps; 'diptych trace film {trace}' makes a film of them")
    return paths, painted.result.settings, described(painted.images[0], painted.result.settings, len(paths))


def _watch(form: str | None, easel: Easel, *, has_preview: bool, is_fresh: bool) -> Watch:
    """What runs each generation, showing it as it was asked for; a fresh seed is told when the first one begins."""
    waiting = [easel.wanted["seed"]] if is_fresh else []

    def watch(generation: "Generation[ImageStep, ImageResult]", name: str) -> None:
        while waiting:
            frame.tell_fresh_seed(None, waiting.pop())
        if form == "explain":
            from diptych.cli.explain_image import explain_image

            explain_image(generation, easel.wanted, name)
        elif form == "json":
            for step in generation:
                about = {"type": "step"} | ({"of": name} if name else {})
                frame.json_line(about | {fact: getattr(step, fact) for fact in STEP_FACTS})
        else:
            from diptych.cli.preview import watching

            with watching(has_preview=has_preview, name=name) as show:
                for step in generation:
                    show(step)

    return watch
