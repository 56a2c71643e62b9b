"""What is compiled for the CPU, beside torch: milliseconds of single operations in bfloat16, forward and backward.

    python benchmarks/operations.py
    python benchmarks/operations.py attention --threads 1 --times 50

Each line is one shape: the median of `--times` calls of each way, taken in turns. `blocks` is attention in batches of
matrices that torch multiplies (`core.blocked`; of prompts and pictures `core.long_rows` and `core.many_queries`).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core import blocked, flash, long_rows, many_queries, sweeps
from diptych.core.allocator import keep_freed_memory
from diptych.core.feedforward import ACTIVATIONS
from diptych.core.likelihood import likelihood_of_products

Ways = dict[str, Callable[[], object]]
TOKENS, WIDTH, HIDDEN, VOCABULARY = 4096, 384, 1536, 4096


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def both_ways(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    """Forward and backward, by all inputs."""
    learning = [x.detach().requires_grad_() for x in inputs]
    with torch.no_grad():
        pull = torch.randn_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*learning), learning, pull)


def heads(batch: int, count: int, length: int, width: int) -> Tensor:
    """As a projection leaves them."""
    return numbers(batch, length, count, width).transpose(1, 2)


def beside(
    how: Callable[..., Callable[[], object]],
    inputs: tuple[Tensor, ...],
    torchs: Callable[..., Tensor],
    blocks: Callable[..., Tensor],
    compiled: Callable[..., Tensor],
) -> Ways:
    """Attention in each way that this processor has, called once forward (`partial`) or in `both_ways`."""
    ways = {"torch": torchs, "blocks": blocks} | ({"compiled": compiled} if flash.IS_HERE else {})
    return {name: how(way, *inputs) for name, way in ways.items()}


def attention() -> dict[str, Ways]:
    found: dict[str, Ways] = {}
    for batch, count, shared, length, width in (
        (16, 6, 6, 256, 64),
        (8, 9, 3, 512, 64),
        (2, 8, 8, 2048, 64),
        (1, 8, 2, 4096, 128),
        (256, 4, 4, 64, 32),
    ):
        q, k, v = (heads(batch, number, length, width) for number in (count, shared, shared))
        found[f"{batch} rows of {length}, {count}/{shared} heads of {width}, causal, both ways"] = beside(
            both_ways,
            (q, k, v),
            partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True),
            partial(blocked.blocked_attention, mask=None, is_causal=True),
            partial(flash.flash_attention, mask=None, is_causal=True),
        )
    return found


def prompts() -> dict[str, Ways]:
    found: dict[str, Ways] = {}
    for length, keys in ((512, 512), (2048, 2048), (512, 8192), (512, 32768)):
        q, k, v = heads(1, 9, length, 64), heads(1, 3, keys, 64), heads(1, 3, keys, 64)
        mask = torch.ones(length, keys, dtype=torch.bool).tril(keys - length)[None, None]
        found[f"the last {length} of {keys} tokens, 9/3 heads of 64"] = beside(
            partial,
            (q, k, v),
            partial(F.scaled_dot_product_attention, attn_mask=mask, enable_gqa=True),
            partial(long_rows.attend_long, mask=mask),
            partial(flash.flash_attention, mask=mask, is_causal=True),
        )
    return found


def pictures() -> dict[str, Ways]:
    found: dict[str, Ways] = {}
    for batch, count, length, keys, width in (
        (2, 4, 256, 256, 64),
        (2, 8, 4096, 4096, 40),
        (2, 10, 4096, 4096, 64),
        (2, 8, 4096, 77, 40),
    ):
        q, k, v = heads(batch, count, length, width), heads(batch, count, keys, width), heads(batch, count, keys, width)
        found[f"{batch} pictures of {length} places looking at {keys}, {count} heads of {width}"] = beside(
            partial,
            (q, k, v),
            F.scaled_dot_product_attention,
            many_queries.attend_many,
            partial(flash.flash_attention, mask=None, is_causal=False),
        )
    return found


def passes() -> dict[str, Ways]:
    """What has no product of matrices in it."""
    x, wide, other = numbers(TOKENS, WIDTH), numbers(TOKENS, HIDDEN), numbers(TOKENS, HIDDEN)
    gain, shift = torch.ones(WIDTH), torch.zeros(WIDTH)
    found: dict[str, Ways] = {}
    for name in sweeps.at.BENDS:
        found[f"{name} of {TOKENS} x {HIDDEN}"] = {
            "torch": both_ways(ACTIVATIONS[name], wide),
            "compiled": both_ways(partial(sweeps.bend, name), wide),
        }
    found[f"silu times another factor of {TOKENS} x {HIDDEN}"] = {
        "torch": both_ways(lambda x, times: F.silu(x) * times, wide, other),
        "compiled": both_ways(partial(sweeps.bend, "silu"), wide, other),
    }
    found[f"layer norm of {TOKENS} x {WIDTH}"] = {
        "torch": both_ways(
            lambda x, gain, shift: F.layer_norm(x, (WIDTH,), gain.bfloat16(), shift.bfloat16()), x, gain, shift
        ),
        "compiled": both_ways(lambda *given: sweeps.norm(*given, 1e-5, is_layer=True), x, gain, shift),
    }
    found[f"RMS norm of {TOKENS} x {WIDTH}"] = {
        "torch": both_ways(lambda x, gain: F.rms_norm(x, (WIDTH,), gain.bfloat16(), 1e-5), x, gain),
        "compiled": both_ways(lambda x, gain: sweeps.norm(x, gain, None, 1e-5, is_layer=False), x, gain),
    }
    return found


def loss() -> dict[str, Ways]:
    """Of a vocabulary, with the products of its matrix."""
    x, weight, targets = numbers(TOKENS, WIDTH), numbers(VOCABULARY, WIDTH) / 20, torch.arange(TOKENS)
    name = f"the loss of {TOKENS} tokens of {VOCABULARY}, with the product before it"
    return {
        name: {
            "torch": both_ways(lambda x, weight: F.cross_entropy((x @ weight.T).float(), targets), x, weight),
            "compiled": both_ways(lambda x, weight: likelihood_of_products(x, weight, targets), x, weight),
        }
    }


SUBJECTS = {one.__name__: one for one in (attention, prompts, pictures, passes, loss)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="subject", help=", ".join(SUBJECTS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as a training process does
    if unknown := set(options.subjects) - set(SUBJECTS):
        parser.error(f"no subject {min(unknown)}; there are {', '.join(SUBJECTS)}")
    for subject in options.subjects or SUBJECTS:
        for name, ways in SUBJECTS[subject]().items():
            spent: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(options.times + 2):
                for way, run in ways.items():
                    began = time.perf_counter()
                    run()
                    if number > 1:
                        spent[way].append(1000 * (time.perf_counter() - began))
            print(
                f"{name}:",
                ", ".join(f"{way} {statistics.median(one):.2f} ms" for way, one in spent.items()),
                flush=True,
            )


if __name__ == "__main__":
    main()
