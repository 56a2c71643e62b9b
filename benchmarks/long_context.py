"""A very long prompt through the bundled architecture: time, memory, and the time for each further token.

    python benchmarks/long_context.py                          # quill's decoder, up to 131,072 tokens, bfloat16
    python benchmarks/long_context.py --cache int8             # keys and values of 8 bits
    python benchmarks/long_context.py --lengths 1024 8192

The model reads the start of one and the same text at each length, in chunks, with positions scaled by YaRN, and then
writes on. Memory is the most that the process has had at once so far, so lengths are read in growing order. What it
writes past the context that it was trained for makes no sense; time and memory do not depend on that.
"""

import argparse
import resource
import statistics
import sys
import time

import torch

import diptych
from diptych.text.cache import CacheSettings
from diptych.text.reader import CHUNK
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
    arguments = parser.parse_args()

    model = diptych.load(arguments.model, dtype=arguments.dtype)
    model = model.stretched(max(arguments.lengths) + arguments.tokens)
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


def megabytes() -> float:
    """The most memory that the process has had at once."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


if __name__ == "__main__":
    main()
