"""`diptych text`: write on from a prompt; the text streams as it comes, with --odds or --explain also how it comes."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli import frame
from diptych.cli.text_settings import given, takes_settings

if TYPE_CHECKING:
    from diptych.core.generation import Generation
    from diptych.text.record import TextResult, TextStep

EXPLAINED = 64  # candidates that a telling needs at least


@takes_settings
def text(
    prompt: Annotated[str, typer.Argument(help="What the text goes on from.")],
    model: Annotated[str, typer.Option(help="A bundled model or a checkpoint directory.")] = "quill",
    seed: frame.Seed = None,
    odds: Annotated[bool, typer.Option("--odds", help="For each token, the candidates it was drawn from.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line: the steps, then the result.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Tell in plain language how the text comes.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Keep every step in this file (.trace).")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the text to this file.")] = None,
    device: frame.Device = None,
    dtype: frame.Dtype = None,
    **settings: Any,
) -> None:
    """Write on from a prompt, token by token."""
    form = frame.one_of(odds=odds, json=json, explain=explain)
    out, trace = frame.output(out), frame.output(trace, ".trace")
    chosen = given(settings)
    if form == "explain":
        chosen["num_candidates"] = max(EXPLAINED, chosen["num_candidates"])
    writer = frame.text_model(model, device, dtype)
    used = frame.seed_or_fresh(seed)
    with frame.settings():
        generation = writer.generate(prompt, seed=used, **chosen)
    frame.tell_fresh_seed(seed, used)
    if form == "odds":
        _show_odds(generation, prompt, chosen["num_candidates"])
    elif form == "json":
        _show_json(generation, prompt)
    elif form == "explain":
        from diptych.cli.explain_text import explain_text

        explain_text(generation, prompt, writer.tokenizer.size)
    else:
        _stream(generation, prompt)
    result = generation.result()
    if out:
        from diptych.core.files import write_atomically

        write_atomically(out, f"{prompt}{result.text}\n".encode())
        frame.say(f"{out}: {len(result.tokens)} tokens after the prompt, seed {used}")
    if trace:
        result.trace.save(trace)
        frame.say(f"{trace}: {len(result.tokens)} steps; 'diptych trace show {trace}' shows them")


def _stream(generation: "Generation[TextStep, TextResult]", prompt: str) -> None:
    try:
        sys.stdout.write(prompt)
        sys.stdout.flush()
        for step in generation:
            sys.stdout.write(step.text)
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")


def _show_odds(generation: "Generation[TextStep, TextResult]", prompt: str, leading: int) -> None:
    from diptych.cli.odds_table import heading, row

    print(heading())
    for step in generation:
        chances = step.probability, step.drawn_probability, step.entropy
        print(row(step.index, step.token, *chances, step.candidates, leading))
        sys.stdout.flush()
    print(f"\n{prompt}{generation.result().text}")


def _show_json(generation: "Generation[TextStep, TextResult]", prompt: str) -> None:
    for step in generation:
        frame.json_line({"type": "step", **asdict(step)})
    result = generation.result()
    frame.json_line(
        {
            "type": "result",
            "prompt": prompt,
            "text": result.text,
            "tokens": result.tokens,
            "finish_reason": result.finish_reason,
            "seed": result.seed,
            "settings": result.settings,
        }
    )
