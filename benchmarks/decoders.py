"""One side of a comparison of `decoding.py`, in a process of its own: prints its figure as its last line.

It is imported by the interpreters of other environments (llama.cpp's), so nothing is imported at the top that they
may lack.
"""

import itertools
import json
import statistics
import struct
import sys
import time
from pathlib import Path
from typing import Any

PROMPT, WARM = 64, 4  # tokens read before, and written before counting begins


def prompt(count: int) -> list[int]:
    """Tokens without a pattern: quadratic residues."""
    return [100 + place * place % 3989 for place in range(1, count + 1)]


def rate(times: list[float]) -> float:
    """Tokens a second, by the median step after the first few."""
    return 1 / statistics.median(times[WARM:])


class Clock:
    """A streamer of transformers that notes when each token comes."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def put(self, _: Any) -> None:
        self.moments.append(time.perf_counter())

    def end(self) -> None:
        pass


def transformers(folder: str, new: int) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    clock = Clock()
    ids = torch.tensor([prompt(PROMPT)], device=device)
    model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, streamer=clock)
    return rate([later - sooner for sooner, later in itertools.pairwise(clock.moments[1:])])  # the prompt comes first


def written(model: Any, count: int, new: int) -> list[float]:
    """Seconds of each step after the first, greedy, through the whole of `generate`."""
    steps = model.generate(prompt(count), temperature=0, max_tokens=new, min_tokens=new, num_candidates=1)
    moments = [time.perf_counter() for _ in steps]
    return [later - sooner for sooner, later in itertools.pairwise(moments)]


def diptych(folder: str, new: int, bits: int, compiles: bool = False) -> float:
    """Any number of bits but 8 and 4 is bfloat16."""
    import diptych

    kept = bits if bits in (8, 4) else None
    model: Any = diptych.load(folder, dtype="bfloat16", bits=kept, compile=compiles)
    if compiles:
        started = time.perf_counter()
        written(model, PROMPT, 8)
        print(f"compiled in {time.perf_counter() - started:.0f} s")
    return rate(written(model, PROMPT, new))


def positions(folder: str, new: int) -> list[float]:
    """What a token costs at position 4,000 over what it costs at 100, with keys and values in bfloat16 and in 8 bits.
    Texts at both places, with their caches of both kinds, are written in turn, a token each, so that all see the same
    machine."""
    import diptych
    from diptych.text.cache import CacheSettings

    model: Any = diptych.load(folder, dtype="bfloat16")
    texts, times = {}, {}
    for kind, place in itertools.product(("", "int8"), (100, 4000)):
        about = {"max_tokens": new + 1, "min_tokens": new + 1, "num_candidates": 1, "cache": CacheSettings(kind)}
        texts[kind, place] = iter(model.generate(prompt(place - new // 2), temperature=0, **about))
        next(texts[kind, place])
        times[kind, place] = list[float]()
    for _ in range(new):
        for which, text in texts.items():
            started = time.perf_counter()
            next(text)
            times[which].append(time.perf_counter() - started)
    ratios = []
    for kind in ("", "int8"):
        near, far = (1 / rate(times[kind, place]) for place in (100, 4000))
        name = kind or "bfloat16"
        print(f"{name}: {1e3 * near:.2f} ms at 100, {1e3 * far:.2f} ms at 4,000, {far / near:.2f}")
        ratios.append(far / near)
    return ratios


def batch(folder: str, new: int, rows: int) -> float:
    """Tokens a second of all rows together."""
    import diptych
    from diptych.text.runner import TextRequest
    from diptych.text.settings import Settings

    model: Any = diptych.load(folder, dtype="bfloat16")
    runner = model.runner(rows)
    how = Settings(temperature=0, max_tokens=new, min_tokens=new, num_candidates=1)
    jobs = [runner.admit(TextRequest([7 + row, *prompt(PROMPT)], how)) for row in range(rows)]
    times = []
    for _ in range(new):
        started = time.perf_counter()
        runner.advance(jobs)
        times.append(time.perf_counter() - started)
    return rows * rate(times)


def prefill(folder: str, count: int) -> float:
    """The share of the machine's bfloat16 matrix rate at which a prompt is read; the two take turns."""
    import torch

    import diptych
    from diptych.text.reader import Part, Reader

    model: Any = diptych.load(folder, dtype="bfloat16")
    embedding = model.decoder.embedding.weight.numel()
    products = 2 * count * (sum(one.numel() for one in model.decoder.parameters()) - embedding) + 2 * embedding
    square = torch.randn(2048, 2048).bfloat16()
    reading, multiplying = [], []
    for _ in range(5):
        reader = Reader(model.decoder)
        slot = reader.cache.reserve(count)
        started = time.perf_counter()
        reader.read([Part(slot, prompt(count))])
        reading.append(time.perf_counter() - started)
        started = time.perf_counter()
        for _ in range(20):
            square @ square
        multiplying.append((time.perf_counter() - started) / 20)
    here, ceiling = products / min(reading), 2 * 2048**3 / min(multiplying)
    print(f"{min(reading):.2f} s, {here / 1e9:.0f} of {ceiling / 1e9:.0f} GFLOP/s")
    return here / ceiling


def loading(folder: str) -> float:
    """Peak memory of opening a model and writing with it, over the size of its weights."""
    import resource

    import diptych

    started = time.perf_counter()
    model: Any = diptych.load(folder, dtype="bfloat16")
    seconds = time.perf_counter() - started
    written(model, PROMPT, 3)
    weights = sum(one.nbytes for one in model.decoder.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"opened in {seconds:.1f} s; {peak / 1e9:.2f} GB for {weights / 1e9:.2f} GB of weights")
    return peak / weights


def llama_cpp(folder: str, new: int, kind: str) -> float:
    import llama_cpp as lib  # type: ignore[import-not-found]

    path = gguf_file(Path(folder), kind)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    about = lib.llama_context_default_params()
    about.n_ctx, about.n_threads, about.n_threads_batch = 512, 2, 2
    context = lib.llama_init_from_model(model, about)

    def feed(tokens: list[int]) -> None:
        kept = (lib.llama_token * len(tokens))(*tokens)  # the batch only points at it
        if lib.llama_decode(context, lib.llama_batch_get_one(kept, len(tokens))):
            raise RuntimeError("llama_decode failed")

    feed(prompt(PROMPT))
    times = []
    for token in prompt(new):
        started = time.perf_counter()
        feed([token])
        times.append(time.perf_counter() - started)
    return rate(times)


PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


def gguf_file(folder: Path, kind: str) -> Path:
    """The checkpoint as llama.cpp reads it, written once. Rotary pairs are not reordered: speed does not see them."""
    import gguf  # type: ignore[import-not-found]
    import numpy as np

    path = folder / f"{kind}.gguf"
    if path.exists():
        return path
    about = json.loads((folder / "config.json").read_text())
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = {name: one for name, one in json.loads(data[8 : 8 + length]).items() if name != "__metadata__"}
    writer = gguf.GGUFWriter(str(path.with_suffix(".part")), "llama")
    writer.add_context_length(about["max_position_embeddings"])
    writer.add_embedding_length(about["hidden_size"])
    writer.add_block_count(about["num_hidden_layers"])
    writer.add_feed_forward_length(about["intermediate_size"])
    writer.add_head_count(about["num_attention_heads"])
    writer.add_head_count_kv(about["num_key_value_heads"])
    writer.add_rope_freq_base(about.get("rope_theta") or about["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(about["head_dim"])
    writer.add_layer_norm_rms_eps(about["rms_norm_eps"])
    writer.add_vocab_size(about["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    qtype = gguf.GGMLQuantizationType[kind.upper()]
    for name, one in header.items():
        start, end = one["data_offsets"]
        halves = np.frombuffer(data, np.uint16, (end - start) // 2, 8 + length + start)
        value = (halves.astype(np.uint32) << 16).view(np.float32).reshape(one["shape"])
        if name in WHOLE:
            there = WHOLE[name]
        else:
            layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            there = f"blk.{layer}.{PARTS[part]}.weight"
        if value.ndim == 1:
            writer.add_tensor(there, value)
        else:
            writer.add_tensor(there, gguf.quants.quantize(value, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").rename(path)
    return path


SIDES = {one.__name__: one for one in (transformers, diptych, positions, batch, prefill, loading, llama_cpp)}

if __name__ == "__main__":
    name, folder, *rest = sys.argv[1:]
    print(SIDES[name](folder, *(int(one) if one.isdigit() else one for one in rest)))
