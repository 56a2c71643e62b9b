"""How much speculation saves: the same texts written with and without it, in turns.

    diptych train recipes/spark.toml
    python benchmarks/speculation.py --draft runs/spark/model

Rows are what guesses, how far, and at which temperature; columns are how many guesses came true, tokens a call of the
network, the time of a token, and how many times as fast that is as the time without. Times are the best of several
rounds. A prompt that repeats itself is where looking up does best; a story of its own is where a draft model does.
"""

import argparse
import time
from collections.abc import Sequence

import torch

import diptych
from diptych.text.model import TextModel
from diptych.text.record import TextResult

PROMPTS = {
    "a song that repeats": "Row, row, row your boat, gently down the stream. " * 4,
    "a new story": "Once upon a time",
}
SEEDS = (1, 2, 3)


def write(
    model: TextModel, prompt: str, temperature: float, speculate: "str | TextModel | None", ahead: int, tokens: int
) -> tuple[float, list[TextResult]]:
    """Seconds a token, and the texts."""
    began = time.perf_counter()
    results = [
        model.generate(
            prompt,
            seed=seed,
            temperature=temperature,
            max_tokens=tokens,
            num_candidates=1,
            speculate=speculate,
            draft_tokens=ahead,
        ).result()
        for seed in SEEDS
    ]
    return (time.perf_counter() - began) / sum(len(result.tokens) for result in results), results


def compare(model: TextModel, drafters: "Sequence[str | TextModel]", prompt: str, rounds: int, tokens: int) -> None:
    print("temperature  guesses by  at a time  came true  tokens/call  ms/token  times as fast  same text")
    for temperature in (0.0, 0.8):
        ways: list[tuple[str | TextModel | None, int]] = [(None, 0)]
        ways += [(drafter, ahead) for drafter in drafters for ahead in (2, 4, 8)]
        best, texts = [float("inf")] * len(ways), [[""]] * len(ways)
        done: list[list[TextResult]] = [[]] * len(ways)
        for _ in range(rounds):
            for place, (drafter, ahead) in enumerate(ways):
                seconds, done[place] = write(model, prompt, temperature, drafter, ahead, tokens)
                best[place] = min(best[place], seconds)
                texts[place] = [result.text for result in done[place]]
        for place, (drafter, ahead) in enumerate(ways):
            if drafter is None:
                print(f"{temperature:11}  {'nobody':10}  {'':36}{best[0] * 1e3:6.2f}")
                continue
            parts = [result.speculation for result in done[place] if result.speculation]
            drafted, accepted = sum(part.drafted for part in parts), sum(part.accepted for part in parts)
            rate = sum(part.tokens for part in parts) / sum(part.calls for part in parts)
            same = sum(one == other for one, other in zip(texts[place], texts[0], strict=True))
            print(
                f"{temperature:11}  {parts[0].drafter:10}  {ahead:9}  {accepted / max(1, drafted):9.0%}  {rate:11.2f}  "
                f"{best[place] * 1e3:8.2f}  {best[0] / best[place]:13.2f}  {same} of {len(SEEDS)}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="quill")
    parser.add_argument("--draft", help="a model with the same tokenizer; without it, looking up alone is measured")
    parser.add_argument("--dtype", help="float32, bfloat16; what is fast here if left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = diptych.load(given.model, dtype=given.dtype)
    drafters = ["ngram", *([diptych.load(given.draft, dtype=given.dtype)] if given.draft else [])]
    dtype = str(model.decoder.embedding.weight.dtype).removeprefix("torch.")
    print(f"{model.name} in {dtype}, {given.threads} threads, torch {torch.__version__}, best of {given.rounds} rounds")
    for name, prompt in PROMPTS.items():
        print(f"\n{name}")
        compare(model, drafters, prompt, given.rounds, given.tokens)


if __name__ == "__main__":
    main()
