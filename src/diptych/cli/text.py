"""`diptych text`: write on from a prompt; the text streams as it comes, with --odds or --explain also how it comes."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diptych.cli import frame

if TYPE_CHECKING:
    from diptych.core.generation import Generation
    from diptych.text.runner import TextResult, TextStep

CANDIDATES = 8


def text(
    prompt: Annotated[str, typer.Argument(help="What the text goes on from.")],
    model: Annotated[str, typer.Option(help="A bundled model or a checkpoint directory.")] = "quill",
    max_tokens: Annotated[int, typer.Option(help="The most tokens (words or parts of words) to write.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest; 1 draws as the model says.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest only; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest that reach this probability together.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Draw from those at least this share as likely as the likeliest.")
    ] = 0.05,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, tokens already there become less likely.")] = 1.0,
    seed: frame.Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the writing; may be given again.")] = None,
    odds: Annotated[bool, typer.Option("--odds", help="For each token, the candidates it was drawn from.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line: the steps, then the result.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Tell in plain language how the text comes.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Keep every step in this file (.trace).")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the text to this file.")] = None,
    device: frame.Device = None,
    dtype: frame.Dtype = None,
) -> None:
    """Write on from a prompt, token by token."""
    form = frame.one_of(odds=odds, json=json, explain=explain)
    out, trace = frame.output(out), frame.output(trace, ".trace")
    writer = frame.text_model(model, device, dtype)
    used = frame.seed_or_fresh(seed)
    with frame.settings():
        generation = writer.generate(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=used,
            stop=stop or [],
            num_candidates=64 if form == "explain" else CANDIDATES,
        )
    frame.tell_fresh_seed(seed, used)
    if form == "odds":
        _show_odds(generation, prompt)
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


def _show_odds(generation: "Generation[TextStep, TextResult]", prompt: str) -> None:
    from diptych.cli.odds_table import heading, row

    print(heading())
    for step in generation:
        print(row(step.index, step.token, step.probability, step.drawn_probability, step.entropy, step.candidates))
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
