"""`diptych score`: how likely a model holds a text that is there, token by token."""

import math
import sys
from typing import Annotated

import typer

from diptych.cli import frame


def score(
    text: Annotated[str, typer.Argument(help="The text; - reads it from standard input.")],
    model: Annotated[str, typer.Option(help="A bundled model or a checkpoint directory.")] = "quill",
    num_candidates: Annotated[int, typer.Option(help="How many of the likeliest tokens each token has beside it.")] = 8,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line: the tokens, then the sum.")] = False,
    device: frame.Device = None,
    dtype: frame.Dtype = None,
) -> None:
    """Say how likely a model holds a text, token by token, and what it would rather have written."""
    from diptych.cli.odds_table import heading, row
    from diptych.cli.text import step_facts

    text = sys.stdin.read() if text == "-" else text
    reader = frame.text_model(model, device, dtype)
    with frame.settings():
        steps = reader.read(text, num_candidates=num_candidates)
    if not json:
        print(heading(is_given=True))
    log_probability, scored, count = 0.0, "", 0
    for step in steps:
        log_probability, scored, count = log_probability + step.log_probability, scored + step.text, count + 1
        if json:
            frame.json_line(step_facts(step))
        else:
            chances = step.probability, step.probability, step.entropy
            print(row(step.index, step.token, *chances, step.candidates, num_candidates, is_given=True))
    bits_per_byte = -log_probability / math.log(2) / max(1, len(scored.encode()))
    if json:
        sums = {"log_probability": log_probability, "bits_per_byte": bits_per_byte}
        known = {name: value if math.isfinite(value) else None for name, value in sums.items()}
        frame.json_line({"type": "score", "text": text, "model": reader.name, "tokens": count, **known})
    else:
        sides = math.exp(-log_probability / count)
        print(f"\n{count} tokens, log-probability {log_probability:.2f} nats: {bits_per_byte:.3f} bits a byte,")
        print(f"each token as surprising as a throw of a fair die with {sides:.1f} sides")
