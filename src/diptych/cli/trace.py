"""`diptych trace`: look at a recorded generation without the model that made it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli import UsageError, frame
from diptych.cli.trace_words import words

if TYPE_CHECKING:
    from diptych.core.trace import Trace

app = frame.application("Look at a generation that --trace recorded.")
File = Annotated[Path, typer.Argument(help="A trace that 'diptych image --trace' or 'diptych text --trace' wrote.")]
MOST = 100
app.command()(words)


@app.command()
def film(
    file: File,
    out: Annotated[Path | None, typer.Option(help="The filmstrip to write (.png). [FILE.png]")] = None,
    webp: Annotated[Path | None, typer.Option(help="The moving picture to write (.webp). [beside the strip]")] = None,
    pictures: Annotated[int, typer.Option(help="Pictures in the strip, evenly spread over the steps.")] = 8,
    sample: Annotated[int, typer.Option(help="Which picture of 'image -n', from 1.")] = 1,
) -> None:
    """Make a filmstrip and an animated WebP of an image trace."""
    if not 2 <= pictures <= MOST:
        raise UsageError(f"pictures must be from 2 to {MOST}, not {pictures}")
    out = frame.output(out or file.with_suffix(".png"), ".png") or out
    assert out is not None
    webp = frame.output(webp or out.with_suffix(".webp"), ".webp") or webp
    assert webp is not None
    from diptych.core.trace import Trace
    from diptych.image.film import filmstrip, save_moving, save_strip, side_by_side
    from diptych.image.photo import to_picture

    recorded = Trace.load(file)
    if recorded.panel != "image":
        raise ValueError(f"'{file}' is a text trace, a film is made of an image trace; 'diptych trace show' shows both")
    if not {"preview", "preview_noisy"} <= set(recorded.arrays) or not len(recorded):
        raise ValueError(f"'{file}' holds no pictures to make a film of")
    count = recorded.arrays["preview"].shape[1]
    if not 1 <= sample <= count:
        raise UsageError(f"sample must be from 1 to {count}, the pictures in '{file}', not {sample}")
    steps = len(recorded)
    chosen = frame.spread(range(steps), pictures)
    rows = [[to_picture(step[sample - 1]) for step in recorded.arrays[name]] for name in ("preview_noisy", "preview")]
    captions = [frame.step_caption(recorded.facts, index) for index in chosen]
    names = ("the noisy picture", "the network's guess of the finished one")
    strip = filmstrip([[row[index] for index in chosen] for row in rows], captions, names)
    save_strip(strip, out)
    save_moving(side_by_side(rows), webp)
    print(f"{out}: {len(chosen)} of {steps} steps, {strip.width} x {strip.height}\n{webp}: all {steps} steps, moving")


@app.command()
def show(
    file: File,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line: the settings, then the steps.")] = False,
) -> None:
    """Print the steps of a trace: the odds of a text, the noise levels of a picture."""
    from diptych.core.trace import Trace

    recorded = Trace.load(file)
    if json:
        about = {"panel": recorded.panel, "model": recorded.model, "settings": recorded.settings}
        frame.json_line({"type": "trace", **about})
        for index, facts in enumerate(recorded.facts):
            frame.json_line({"type": "step", "index": index, **facts, **_numbers(recorded, index)})
        return
    try:
        _show_text(recorded) if recorded.panel == "text" else _show_image(recorded)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'{file}' is not a whole trace: it lacks {error}") from error


def _show_text(recorded: "Trace") -> None:
    from diptych.cli.odds_table import heading, row
    from diptych.text.record import Candidate

    print(heading())
    arrays = {name: array.tolist() for name, array in recorded.arrays.items()}
    for index, facts in enumerate(recorded.facts):
        token, probability, odds = (arrays[name][index] for name in ("tokens", "probability", "drawn_probability"))
        rows = zip(
            arrays["candidate_tokens"][index],
            facts["candidates"],
            arrays["candidate_probability"][index],
            arrays["candidate_odds"][index],
            strict=True,
        )
        candidates = [Candidate(*values) for values in rows]
        leading = len(candidates)
        if all(candidate.token != token for candidate in candidates):
            candidates.append(Candidate(token, facts["piece"], probability, odds))
        print(row(index, token, probability, odds, arrays["entropy"][index], candidates, leading))
    text = "".join(facts["text"] for facts in recorded.facts)
    print(f"\n{recorded.settings.get('prompt', '')}{text}")
    print(f"\n{len(recorded)} steps of {recorded.model}, seed {recorded.settings.get('seed')}")


def _show_image(recorded: "Trace") -> None:
    print(f"{'step':>5} {'sigma':>8} {'alpha':>8} {'log snr':>8} {'noise':>7} {'guidance':>9}")
    for index, facts in enumerate(recorded.facts):
        log_snr = "∞" if facts["log_snr"] is None else f"{facts['log_snr']:.2f}"
        push = f"{100 * facts['guidance_push']:.1f} %"
        share = f"{100 * frame.noise_share(facts):.1f} %"
        print(f"{index + 1:>5} {facts['sigma']:>8.4f} {facts['alpha']:>8.4f} {log_snr:>8} {share:>7} {push:>9}")
    shown = ("prompt", "negative_prompt", "seed", "sampler", "nodes", "guidance_scale", "count")
    also = ("picture", "strength", "mask", "outpaint", "to_prompt", "to_seed", "share", "turns", "enlarge", "weaker")
    facts = {key: _source(recorded.settings.get(key)) for key in (*shown, *also)}
    about = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items() if value not in ("", None))
    print(f"\n{len(recorded)} steps of {recorded.model}: {about}")


def _source(value: Any) -> Any:
    """A file that a picture began from is told by its path."""
    return value["path"] if isinstance(value, dict) and "path" in value else value


def _numbers(recorded: "Trace", index: int) -> dict[str, Any]:
    """The small arrays' rows: pictures are left to the film."""
    return {name: array[index].tolist() for name, array in recorded.arrays.items() if array[index].numel() <= 2000}
