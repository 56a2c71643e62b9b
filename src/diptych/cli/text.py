"""`diptych text`: write on from a prompt; the text streams as it comes, with --odds or --explain also how it comes."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli import UsageError, frame
from diptych.cli.text_settings import given, takes_settings
from diptych.text.settings import Settings

if TYPE_CHECKING:
    from diptych.core.generation import Generation
    from diptych.text.record import TextResult, TextStep

EXPLAINED = 64  # candidates that a telling needs at least


@takes_settings
def text(
    prompt: Annotated[str, typer.Argument(help="What the text goes on from.")],
    model: Annotated[str, typer.Option(help="A bundled model, a checkpoint directory, or a hub id.")] = "quill",
    adapter: frame.Adapter = None,
    seed: frame.Seed = None,
    n: Annotated[int, typer.Option("--n", "-n", help="How many texts, over one reading of the prompt.")] = 1,
    speculate: Annotated[
        str | None, typer.Option(help="Guess tokens ahead, for speed: ngram, or a smaller model with the same tokens.")
    ] = None,
    draft_tokens: Annotated[int, typer.Option(help="How many tokens are guessed at a time.")] = 4,
    cache: frame.CacheDtype = None,
    sinks: Annotated[
        int, typer.Option(help="First tokens kept while the text goes on past the context; 4 will do. 0 ends it there.")
    ] = 0,
    odds: Annotated[bool, typer.Option("--odds", help="For each token, the candidates it was drawn from.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line: the steps, then the result.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Tell in plain language how the text comes.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Keep every step in this file (.trace).")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the text to this file.")] = None,
    device: frame.Device = None,
    dtype: frame.Dtype = None,
    bits: frame.Bits = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the model first; it may pay on a GPU.")] = False,
    **settings: Any,
) -> None:
    """Write on from a prompt, token by token. Settings that are left out are as the model's authors want them."""
    form = frame.one_of(odds=odds, json=json, explain=explain)
    if form in ("odds", "explain") and n != 1:
        raise UsageError(f"--{form} tells of one text, not of {n}: leave out --n")
    out, trace = frame.output(out), frame.output(trace, ".trace")
    chosen = given(settings)
    leading = chosen.get("num_candidates", Settings.num_candidates)
    if form == "explain":
        chosen["num_candidates"] = max(EXPLAINED, leading)
    writer = frame.text_model(model, device, dtype, adapter, bits=bits, compile=compile)
    drafter = speculate if speculate in (None, "ngram") else frame.text_model(str(speculate), device, dtype)
    used = frame.seed_or_fresh(seed)
    from diptych.text.cache import CacheSettings

    with frame.settings():
        generation = writer.generate(
            prompt,
            seed=used,
            n=n,
            speculate=drafter,
            draft_tokens=draft_tokens,
            cache=CacheSettings(cache or "", sinks),
            **chosen,
        )
    frame.tell_fresh_seed(seed, used)
    if form == "odds":
        _show_odds(generation, prompt, leading)
    elif form == "json":
        _show_json(generation, prompt)
    elif form == "explain":
        from diptych.cli.explain_text import explain_text

        explain_text(generation, prompt, writer.tokenizer.size)
    else:
        _stream(generation, prompt, n)
    results = generation.results()
    _tell_speculation(results)
    if out:
        from diptych.core.files import write_atomically

        for path, result in zip(_numbered(out, n), results, strict=True):
            write_atomically(path, f"{prompt}{result.text}\n".encode())
            frame.say(f"{path}: {len(result.tokens)} tokens after the prompt, seed {used}")
    if trace:
        for path, result in zip(_numbered(trace, n), results, strict=True):
            result.trace.save(path)
            frame.say(f"{path}: {len(result.tokens)} steps; 'diptych trace show {path}' shows them")


def _stream(generation: "Generation[TextStep, TextResult]", prompt: str, n: int) -> None:
    """The first text as it comes; the others, which come at the same time, below it when all have ended."""
    try:
        sys.stdout.write((_heading(1, n) if n > 1 else "") + prompt)
        sys.stdout.flush()
        for step in generation:
            if step.sample == 0:
                sys.stdout.write(step.text)
                sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
    for number, result in enumerate(generation.results()[1:], 2):
        print(f"\n{_heading(number, n)}{prompt}{result.text}")


def _heading(number: int, n: int) -> str:
    return frame.bold(f"[{number} of {n}]") + "\n"


def _numbered(path: Path, n: int) -> list[Path]:
    """`path` itself for one text, path-1, path-2, ... for several."""
    return [path] if n == 1 else [path.with_stem(f"{path.stem}-{number}") for number in range(1, n + 1)]


def _tell_speculation(results: "list[TextResult]") -> None:
    done = [result.speculation for result in results if result.speculation]
    if done:
        drafted, accepted = sum(one.drafted for one in done), sum(one.accepted for one in done)
        rate = sum(one.tokens for one in done) / sum(one.calls for one in done)
        share = f"{accepted / drafted:.0%}" if drafted else "none"
        frame.say(f"speculation ({done[0].drafter}): {share} of {drafted} guesses came true, {rate:.2f} tokens a call")


def _show_odds(generation: "Generation[TextStep, TextResult]", prompt: str, leading: int) -> None:
    from diptych.cli.odds_table import heading, row

    print(heading())
    for step in generation:
        chances = step.probability, step.drawn_probability, step.entropy
        print(row(step.index, step.token, *chances, step.candidates, leading))
        sys.stdout.flush()
    print(f"\n{prompt}{generation.result().text}")


def step_facts(step: "TextStep") -> dict[str, Any]:
    """A step for a program; what has no chance at all has no log of it."""
    return {"type": "step", **asdict(step), "log_probability": step.log_probability if step.probability else None}


def _show_json(generation: "Generation[TextStep, TextResult]", prompt: str) -> None:
    for step in generation:
        frame.json_line(step_facts(step))
    for result in generation.results():
        frame.json_line(
            {
                "type": "result",
                "prompt": prompt,
                "text": result.text,
                "tokens": result.tokens,
                "finish_reason": result.finish_reason,
                "seed": result.seed,
                "settings": result.settings,
                "speculation": result.speculation and result.speculation.to_dict(),
            }
        )
