"""A very long prompt through the bundled architecture: time, memory, and the time for each further token.

    python benchmarks/long_context.py                          # quill's decoder, up to 131,072 tokens, bfloat16
    python benchmarks/long_context.py --cache int8             # keys and values of 8 bits
    python benchmarks/long_context.py --lengths 1024 8192
    python benchmarks/long_context.py --error                  # what 8 bits cost, on held-out stories

The model reads the start of one and the same text at each length, in chunks, with positions scaled by YaRN, and then
writes on. Memory is the most that the process has had at once so far, so lengths are read in growing order. What it
writes past the context that it was trained for makes no sense; time and memory do not depend on that.
"""

import argparse
import math
import resource
import statistics
import sys
import time

import torch

import diptych
from diptych.evaluate.text import evaluation_documents
from diptych.text.cache import CacheSettings
from diptych.text.reader import CHUNK, Part, Reader
from diptych.text.runner import TextRequest
from diptych.text.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="quill")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 8192, 32768, 131072])
    parser.add_argument("--tokens", type=int, default=9, help="written after each prompt; the first is not timed alone")
    parser.add_argument("--chunk", type=int, default=CHUNK)
    parser.add_argument("--cache", choices=["int8"], help="keys and values in 8 bits [as the model computes]")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--error", action="store_true", help="how 8 bits change what the model says of stories")
    arguments = parser.parse_args()
    if arguments.error:
        print_errors(arguments.model)
        return

    model = diptych.load(arguments.model, dtype=arguments.dtype)
    longest = max(arguments.lengths) + arguments.tokens
    model = model.stretched(longest) if longest > model.config.context else model
    settings = CacheSettings(dtype=arguments.cache or "")
    text = torch.randint(3, model.tokenizer.size, (max(arguments.lengths),), generator=torch.Generator().manual_seed(1))
    size = sum(weight.numel() for weight in model.decoder.parameters())
    print(f"{arguments.model}, {size / 1e6:.1f} M parameters, {arguments.dtype}, ", end="")
    print(
        f"{torch.get_num_threads()} threads, chunks of {arguments.chunk} tokens; {megabytes():,.0f} MB before the first"
    )
    print("| tokens | prompt, s | tokens/s | each further token, ms | keys and values, MB | peak memory, MB |")
    print("|---|---|---|---|---|---|")
    for length in sorted(arguments.lengths):
        runner = model.runner(chunk=arguments.chunk, cache=settings)
        request = TextRequest(text[:length].tolist(), Settings(max_tokens=arguments.tokens, temperature=0.0))
        job = runner.admit(request)
        seconds = []
        while not job.is_done:
            start = time.perf_counter()
            runner.advance([job])
            seconds.append(time.perf_counter() - start)
        further = 1000 * statistics.median(seconds[1:])
        row = [f"{length:,}", f"{seconds[0]:.2f}", f"{length / seconds[0]:,.0f}", f"{further:.1f}"]
        row += [f"{runner.cache_bytes / 1e6:,.0f}", f"{megabytes():,.0f}"]
        print(f"| {' | '.join(row)} |", flush=True)


def print_errors(name: str, stories: int = 40, together: int = 16) -> None:
    """Stories are read a few tokens at a time, so that nearly all attention is over what the cache holds."""
    documents, _ = evaluation_documents("tinystories")
    print("| computed in | cache | bits per byte | mean divergence from float32, nats a token |")
    print("|---|---|---|---|")
    exact: list[torch.Tensor] = []
    for dtype, cache in (("float32", ""), ("float32", "int8"), ("bfloat16", ""), ("bfloat16", "int8")):
        model = diptych.load(name, dtype=dtype)
        nats, size, divergence, count = 0.0, 0, 0.0, 0
        for number, text in enumerate(documents[:stories]):
            ids = model.prompt_ids(text)[: model.config.context]
            reader = Reader(model.decoder, settings=CacheSettings(cache))
            slot = reader.cache.reserve()
            parts = [ids[start : start + together] for start in range(0, len(ids) - 1, together)]
            told = torch.cat([reader.read([Part(slot, part, len(part))])[0] for part in parts])[: len(ids) - 1]
            told = told.log_softmax(-1)
            if len(exact) == number:
                exact.append(told)
            divergence += float((exact[number].exp() * (exact[number] - told)).sum())
            count += len(told)
            nats -= float(told[range(len(told)), ids[1:]].sum())
            size += len(b"".join(map(model.tokenizer.token_bytes, ids[1:])))
        row = [dtype, cache or dtype, f"{nats / math.log(2) / size:.4f}", f"{divergence / count:.1e}"]
        print(f"| {' | '.join(row)} |", flush=True)


def megabytes() -> float:
    """The most memory that the process has had at once."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


if __name__ == "__main__":
    main()
