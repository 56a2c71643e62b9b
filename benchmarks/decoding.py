"""Writing beside its peers: tokens a second at batch 1, and what a token, a prompt and an open model cost.

    python benchmarks/decoding.py 12m 135m 1b --models models --llama ../peers/bin/python

The models have random weights in three shapes (a 12 M toy, SmolLM-135M, Llama-3.2-1B) and are written to `--models`
where they are not there; transformers reads the same files. `--llama` is an interpreter whose environment has
llama-cpp-python and gguf; without it llama.cpp is left out. Every run is a process of its own on `--threads` threads;
the sides take turns, and a figure is the median of `--times` runs.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHAPES = {
    "12m": {"width": 320, "num_layers": 8, "num_heads": 5, "num_kv_heads": 5, "hidden": 864, "vocab_size": 4096},
    "135m": {"width": 576, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3, "hidden": 1536, "vocab_size": 49152},
    "1b": {"width": 2048, "num_layers": 16, "num_heads": 32, "num_kv_heads": 8, "hidden": 8192, "vocab_size": 128256},
}
NEW = {"12m": 200, "135m": 60, "1b": 24}  # tokens that a run writes
KINDS = {16: "bf16", 8: "q8_0", 4: "q4_0"}  # llama.cpp's


def write_model(folder: Path, shape: str) -> None:
    """A checkpoint of random weights with a tokenizer of made-up tokens."""
    import torch
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, pre_tokenizers

    from diptych.core.tokenizer import Tokenizer
    from diptych.interop.folder import write_folder
    from diptych.text.decoder import Decoder, DecoderConfig
    from diptych.text.model import TextModel

    sizes = SHAPES[shape]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = itertools.product(letters, letters)
    triples = ((first + second, third) for first, second, third in itertools.product(letters, repeat=3))
    merges = list(itertools.islice(itertools.chain(pairs, triples), int(sizes["vocab_size"]) - 258))
    tokens = ["<|begin|>", "<|end|>", *letters, *(first + second for first, second in merges)]
    engine = Engine(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges))
    engine.pre_tokenizer, engine.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    engine.add_special_tokens(tokens[:2])
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = DecoderConfig.from_dict(sizes | {"head_dim": 64, "context": 4200, "has_qk_norm": False, "norm_eps": 1e-5})
    write_folder(TextModel(shape, Decoder(config), Tokenizer(engine)), folder)


def run(python: str, *arguments: str, threads: int) -> Any:
    """The figure of one side, or its figures; what it remarks is printed."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [python, str(HERE / "decoders.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
    *remarks, figures = done.stdout.splitlines()
    print(*(f"  {remark}\n" for remark in remarks), sep="", end="", flush=True)
    return json.loads(figures)


def compare(times: int, sides: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Runs of all sides in turn; the medians."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in list(sides.items()) * times:
        found[name].append(side())
        print(f"  {name}: {found[name][-1]:.4g}", flush=True)
    return {name: statistics.median(values) for name, values in found.items()}


def measure(shape: str, options: argparse.Namespace) -> None:
    folder, new = str(options.models / shape), str(NEW[shape])

    def side(*arguments: str, python: str = sys.executable) -> Callable[[], float]:
        return lambda: run(python, *arguments, threads=options.threads)

    sides = {"transformers bfloat16": side("transformers", folder, new)}
    for bits in (16, 8, 4):
        sides[f"diptych {bits} bits"] = side("diptych", folder, new, str(bits))
        if options.compile and bits != 4:
            sides[f"diptych {bits} bits, compiled"] = side("diptych", folder, new, str(bits), "1")
        if options.llama:
            sides[f"llama.cpp {KINDS[bits]}"] = side("llama_cpp", folder, new, KINDS[bits], python=options.llama)
    print(f"{shape}: tokens a second after a prompt of 64, batch 1")
    medians = compare(options.times, sides)
    for name, figure in medians.items():
        print(f"| {shape} | {name} | {figure:.1f} | {figure / medians['transformers bfloat16']:.2f} |")
    if shape == "135m":
        print("cost of a token at position 4,000 over that at 100, keys and values in bfloat16 and in 8 bits")
        both = [run(sys.executable, "positions", folder, "48", threads=options.threads) for _ in range(options.times)]
        print(f"| {shape} |", *(f"{statistics.median(ratios):.2f} |" for ratios in zip(*both, strict=True)))
        print("tokens a second of 16 texts and of 1, the whole runner")
        rates = compare(options.times, {rows: side("batch", folder, "24", rows) for rows in ("1", "16")})
        print(f"| {shape} | {rates['1']:.1f} | {rates['16']:.1f} | {rates['16'] / rates['1']:.2f} |")
    if shape == "1b":
        print("a prompt of 512, over the machine's rate for square matrices of 2,048 in bfloat16")
        print(f"| {shape} | {compare(options.times, {'share': side('prefill', folder, '512')})['share']:.2f} |")
        print("peak memory over the weights")
        print(f"| {shape} | {compare(1, {'ratio': side('loading', folder)})['ratio']:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--llama", help="interpreter with llama-cpp-python and gguf")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which takes minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.threads} threads")
    for shape in options.shapes:
        if not (options.models / shape).is_dir():
            write_model(options.models / shape, shape)
        measure(shape, options)


if __name__ == "__main__":
    main()
