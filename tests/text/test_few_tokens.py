"""Against the same decoder in torch, which computes each operation of its own and knows nothing of tables."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.core import row_plan as at
from diptych.core.lora import Adapter, LoraSettings
from diptych.core.quantised import Int4Linear
from diptych.core.trace import Trace
from diptych.models import open_model
from diptych.text import assembly, few_tokens
from diptych.text.cache import CacheSettings
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.few_tokens import MOST, FewTokens, suits
from diptych.text.reader import Part, Reader

SEGMENT = at.SEGMENT
LLAMA = DecoderConfig(
    vocab_size=97,
    width=80,  # rows that end within a block of lanes
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    hidden=136,
    context=600,
    has_qk_norm=False,
)
GPT2 = replace(
    LLAMA,
    num_kv_heads=6,
    position="learned",
    norm="layer",
    is_gated=False,
    activation="gelu-tanh",
    has_qkv_bias=True,
    has_output_bias=True,
    has_feed_forward_bias=True,
)
SWITCHES = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "qwen3": replace(LLAMA, has_qk_norm=True, head_dim=64, num_heads=4, ties_embeddings=False),
    "qwen2": replace(LLAMA, has_qkv_bias=True, width=64, hidden=64),
    "one head of keys": replace(LLAMA, num_kv_heads=1, head_dim=20),
    "caps": replace(LLAMA, attention_softcap=5.0, logit_softcap=3.0),
    "no positions": replace(LLAMA, position="none", activation="relu2", is_gated=False),
    "gelu": replace(LLAMA, activation="gelu", norm="layer"),
    "relu": replace(LLAMA, activation="relu", norm_eps=1e-3),
}

IN_GROUPS = {  # rows of whole groups of 32 are kept in 4 bits; of some matrices rows are left after the last 64
    "llama": replace(LLAMA, width=96, hidden=224, head_dim=32),
    "gpt2": replace(GPT2, width=96, hidden=224),
    "qwen3": replace(LLAMA, width=64, has_qk_norm=True, head_dim=64, hidden=128, ties_embeddings=False, vocab_size=112),
    "rows that do not divide": replace(LLAMA, width=96, hidden=144),
}


def decoder_of(config: DecoderConfig, dtype: torch.dtype, bits: int | None = None) -> Decoder:
    """Random weights large enough for distributions that are not flat; biases and norms are random, too."""
    generator = torch.Generator().manual_seed(7)
    decoder = Decoder(config).eval().requires_grad_(False)
    for name, parameter in decoder.named_parameters():
        draws = torch.randn(parameter.shape, generator=generator)
        is_gain = "norm" in name and name.endswith("weight")
        parameter.copy_(1 + 0.2 * draws if is_gain else draws * (2 / parameter.shape[-1] ** 0.5))
    if bits:
        assembly._quantise(decoder, bits, dtype, "cpu")
    return decoder.to(dtype)


def in_torch(decoder: Decoder, cache: str = "") -> Reader:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_tokens, "suits", lambda *_: False)
        return Reader(decoder, settings=CacheSettings(cache))


def compiled(decoder: Decoder, cache: str = "") -> Reader:
    reader = Reader(decoder, settings=CacheSettings(cache))
    assert isinstance(reader._few_tokens, FewTokens)
    return reader


def read_on(reader: Reader, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """The logits after each of the tokens, which come one at a time after a prompt."""
    slot = reader.cache.reserve(len(prompt))
    reader.read([Part(slot, prompt)])
    return torch.cat([reader.read([Part(slot, [token])])[0] for token in tokens])


def furthest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in deviations of the logits."""
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("config", SWITCHES.values(), ids=SWITCHES)
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize(("cache", "bound"), [("", 2e-5), ("int8", 4e-3)])
def test_logits_are_those_of_torch_in_float32(
    config: DecoderConfig, bits: int | None, cache: str, bound: float
) -> None:
    """In a cache of 8 bits a number may be rounded the other way."""
    decoder = decoder_of(config, torch.float32, bits)
    tokens = [token * 31 % 97 for token in range(12)]
    found, expected = (read_on(one, [5, 6, 7], tokens) for one in (compiled(decoder, cache), in_torch(decoder, cache)))
    assert furthest(found, expected) < bound


@pytest.mark.parametrize("config", SWITCHES.values(), ids=SWITCHES)
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("cache", ["", "int8"])
def test_in_bfloat16_they_are_nearer_to_float32_than_torchs(
    config: DecoderConfig, bits: int | None, cache: str
) -> None:
    """The same weights, widened to float32, say what both should be."""
    narrow, wide = (decoder_of(config, torch.bfloat16, bits) for _ in range(2))
    wide.float()
    tokens = [token * 31 % 97 for token in range(12)]
    exact = read_on(in_torch(wide), [5, 6, 7], tokens)
    found, theirs = (read_on(one, [5, 6, 7], tokens) for one in (compiled(narrow, cache), in_torch(narrow, cache)))
    difference, torchs = (found - exact).square().mean(), (theirs - exact).square().mean()
    assert 0 < difference < torchs


@pytest.mark.parametrize("config", IN_GROUPS.values(), ids=IN_GROUPS)
def test_in_4_bits_they_are_nearer_to_float32_than_torchs(config: DecoderConfig) -> None:
    narrow, wide = (decoder_of(config, torch.bfloat16, 4) for _ in range(2))
    assert any(isinstance(module, Int4Linear) for module in narrow.modules())
    wide.float()
    tokens = [token * 31 % 97 for token in range(12)]
    exact = read_on(in_torch(wide), [5, 6, 7], tokens)
    found, theirs = (read_on(one, [5, 6, 7], tokens) for one in (compiled(narrow), in_torch(narrow)))
    difference, torchs = (found - exact).square().mean(), (theirs - exact).square().mean()
    assert 0 < difference < torchs / 2


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("cache", ["", "int8"])
def test_a_long_text_is_read_in_segments_from_a_cache_that_grows(kind: str, cache: str) -> None:
    """Positions on both sides of a segment's end, over growths of the cache, beside another text, and after tokens
    were taken back."""
    decoder = decoder_of(replace(LLAMA, has_qk_norm=True, context=2 * SEGMENT), getattr(torch, kind))
    readers = compiled(decoder, cache), in_torch(decoder, cache)
    prompt = [token * token % 97 for token in range(SEGMENT - 6)]
    for reader in readers:
        reader.read([Part(reader.cache.reserve(3), [1, 2, 3])])
        reader.read([Part(reader.cache.reserve(len(prompt)), prompt)])
    found: list[list[torch.Tensor]] = [[], []]
    for count in range(270):
        for reader, logits in zip(readers, found, strict=True):
            logits += reader.read([Part(1, [count % 97])])
            if count % 50 == 0:
                logits += reader.read([Part(0, [count % 89])])
            if count == 100:
                reader.cache.truncate(1, SEGMENT - 4)
    ours, theirs = (torch.cat(logits) for logits in found)
    assert readers[0].cache.lengths == readers[1].cache.lengths == [9, SEGMENT + 165]
    assert furthest(ours, theirs) < (0.1 if kind == "bfloat16" else 4e-3 if cache else 2e-5)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("cache", ["", "int8"])
@pytest.mark.parametrize(
    ("group", "head_dim", "cap"),
    [(1, 64, 0), (2, 128, 0), (3, 64, 0), (4, 64, 2), (5, 64, 0), (8, 64, 0), (3, 72, 2), (5, 8, 0), (3, 20, 0)],
)
def test_queries_of_a_group_see_whole_and_broken_segments(
    group: int, head_dim: int, cap: float, cache: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to one key more and one less than whole lanes, fours and segments. In torch the same weights are float32, and
    keys and values those that ours has kept. What is left is how exactly they are multiplied: in bytes by steps of
    2^-15 of the largest number of a block, in bfloat16, which itself rounds by 2^-9, by two halves."""
    bound = 2**-12 if cache else 2**-14 if kind == "bfloat16" else 2**-17
    sizes = {"width": 64, "hidden": 64, "num_heads": 2 * group, "head_dim": head_dim, "context": 2 * SEGMENT}
    config = replace(LLAMA, num_layers=1, position="none", attention_softcap=cap, **sizes)
    decoder, wide = decoder_of(config, getattr(torch, kind)), decoder_of(config, getattr(torch, kind)).float()
    for length in (14, 15, 16, 30, SEGMENT - 2, SEGMENT - 1, SEGMENT, SEGMENT + 15, 2 * SEGMENT - 1):
        prompt = [place * place % 97 for place in range(length)]
        ours, exact = compiled(decoder, cache), in_torch(wide, cache)
        for reader in (ours, exact):
            reader.read([Part(reader.cache.reserve(length), prompt)])
        found = ours.read([Part(0, [7])])[0]
        for kept, copy in ((ours.cache.keys[0], exact.cache.keys[0]), (ours.cache.values[0], exact.cache.values[0])):
            copy.grow(1, kept.length)
            parts = kept.parts if cache else [kept.read([0], torch.tensor([0]), kept.length)]
            with torch.inference_mode():
                for part, its in zip(parts, copy.parts, strict=True):
                    its[:, :, : kept.length] = part
            monkeypatch.setattr(copy, "write_run", lambda *_: None)
        expected = exact.read([Part(0, [7])])[0]
        assert (found - expected).square().mean().sqrt() < bound * expected.std()


@pytest.mark.parametrize("scaling", ["linear", "ntk", "dynamic", "yarn", "llama3"])
def test_scaled_positions(scaling: str) -> None:
    about = {"kind": scaling, "factor": 4.0}
    about |= {"original_context": 16} if scaling in ("dynamic", "yarn", "llama3") else {}
    config = DecoderConfig.from_dict(LLAMA.to_dict() | {"rope_scaling": about})
    decoder = decoder_of(config, torch.float32)
    tokens = [token * 31 % 97 for token in range(40)]
    found, expected = (read_on(one, [5, 6, 7], tokens) for one in (Reader(decoder), in_torch(decoder)))
    assert furthest(found, expected) < 2e-5


def test_sums_do_not_depend_on_how_many_threads_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, tokens = decoder_of(SWITCHES["qwen3"], torch.bfloat16), list(range(40))
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr("diptych.text.few_tokens.num_threads", lambda threads=threads: threads)
        found.append(read_on(Reader(decoder), [5, 6, 7], tokens))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_texts_written_in_threads_of_the_program_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.text.few_tokens.num_threads", lambda: 2)
    decoders = [decoder_of(config, torch.float32) for config in (LLAMA, GPT2, SWITCHES["qwen3"])]
    alone = [read_on(Reader(decoder), [1, 2], list(range(60))) for decoder in decoders]
    found: dict[int, torch.Tensor] = {}

    def write(place: int) -> None:
        found[place] = read_on(Reader(decoders[place]), [1, 2], list(range(60)))

    threads = [threading.Thread(target=write, args=(place,)) for place in range(len(decoders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[place], logits) for place, logits in enumerate(alone))


def test_a_row_has_no_tensor_but_the_decoders_own() -> None:
    """What is changed in place is read changed; what is exchanged for another tensor is read by torch from then on."""
    decoder = decoder_of(LLAMA, torch.float32)
    reader, before = Reader(decoder), read_on(Reader(decoder), [5], [6])
    down = decoder.blocks[0].feed_forward.down
    down.weight.mul_(0.5)
    after = read_on(reader, [5], [6])
    assert not torch.equal(before, after)
    assert furthest(after, read_on(in_torch(decoder), [5], [6])) < 2e-5
    down.weight = torch.nn.Parameter(down.weight * 2, requires_grad=False)
    assert reader._few_tokens is not None
    assert not reader._few_tokens.takes([1])
    assert furthest(read_on(reader, [5], [6]), before) < 2e-5


def test_an_adapter_is_seen_while_it_is_attached() -> None:
    decoder = decoder_of(LLAMA, torch.float32)
    adapter = Adapter.fresh(decoder, LoraSettings(rank=2))
    for layer in adapter.layers.values():
        torch.nn.init.normal_(layer.b, generator=torch.Generator().manual_seed(1))
    reader, without = Reader(decoder), read_on(Reader(decoder), [5], [6])
    adapter.attach(decoder)
    attached = read_on(reader, [5], [6])
    assert furthest(attached, read_on(in_torch(decoder), [5], [6])) == 0
    adapter.detach()
    assert torch.equal(read_on(reader, [5], [6]), without)
    assert furthest(attached, without) > 0.1


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        ({"windows": (0, 8)}, {}),
        ({"experts": {"num_experts": 2, "top_k": 1, "hidden": 16}}, {}),
        ({"windows": (0, 8)}, {"dtype": "int8"}),
        ({}, {"sinks": 4}),
        ({}, {"dtype": "int8", "sinks": 4}),
    ],
    ids=str,
)
def test_what_is_no_plain_transformer_over_a_whole_cache_is_left_to_torch(overrides: dict, settings: dict) -> None:
    decoder = Decoder(DecoderConfig.from_dict(LLAMA.to_dict() | overrides)).eval()
    assert Reader(decoder, settings=CacheSettings(**settings))._few_tokens is None


@pytest.mark.parametrize("kind", ["float64", "float16"])
def test_so_are_other_numbers(kind: str) -> None:
    assert Reader(decoder_of(LLAMA, getattr(torch, kind)))._few_tokens is None


def test_so_are_4_bits_that_are_not_packed_and_compiled_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    config = IN_GROUPS["llama"]
    assert Reader(decoder_of(config, torch.float32, 4))._few_tokens is None
    unpacked = replace(config, hidden=200)  # rows that do not come in sixteens
    assert Reader(decoder_of(unpacked, torch.bfloat16, 4))._few_tokens is None
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("diptych.core.quantised.is_packed_by_halves", lambda: False)
        assert Reader(decoder_of(config, torch.bfloat16, 4))._few_tokens is None
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
        assert Reader(decoder_of(config, torch.bfloat16, 4))._few_tokens is None
    decoder = decoder_of(LLAMA, torch.float32)
    cache = Reader(decoder).cache
    assert suits(decoder, cache)
    decoder.blocks[0]._compiled_call_impl = decoder.blocks[0].forward  # as compile() leaves it
    assert not suits(decoder, cache)


def test_quill_writes_the_same_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Greedy, in float32: through the whole of `generate`, with its record."""
    traces = []
    for is_compiled in (True, False):
        if not is_compiled:
            monkeypatch.setattr("diptych.text.few_tokens.suits", lambda *_: False)
        quill = open_model("quill", device="cpu", dtype="float32")
        result = quill.generate("Once upon a time", temperature=0, max_tokens=150).result()
        path = tmp_path / f"{is_compiled}.trace"
        result.trace.save(path)
        traces.append((result.tokens, Trace.load(path).arrays["probability"]))
    (ours, probability), (theirs, expected) = traces
    assert ours == theirs
    torch.testing.assert_close(probability, expected, rtol=1e-4, atol=1e-6)


def ways_on(reader: Reader, steps: list[dict[int, list[int]]]) -> dict[int, torch.Tensor]:
    """The logits after each token of texts of different lengths, which go on by so many tokens in each call; text 1
    begins far enough to have two segments of keys."""
    found: dict[int, list[torch.Tensor]] = {}
    for text, count in enumerate((3, SEGMENT + 14, 11, 1, 20)):
        reader.read([Part(reader.cache.reserve(count), [(text + place * place) % 97 for place in range(count)])])
    for step in steps:
        parts = [Part(text, tokens, wanted=len(tokens)) for text, tokens in step.items()]
        for part, logits in zip(parts, reader.read(parts), strict=True):
            found.setdefault(part.slot, []).append(logits)
    return {text: torch.cat(logits) for text, logits in found.items()}


TOKENS = {text: [(7 * text + 31 * place) % 97 for place in range(6)] for text in range(5)}
TOGETHER = {
    "side by side": [{text: tokens[place : place + 1] for text, tokens in TOKENS.items()} for place in range(6)],
    "several of each": [{text: tokens[place : place + 3] for text, tokens in TOKENS.items()} for place in (0, 3)],
    "more and fewer": [{0: TOKENS[0], 1: TOKENS[1][:2], 2: TOKENS[2]}, {1: TOKENS[1][2:], 3: TOKENS[3], 4: TOKENS[4]}],
}
WIDE = {  # rows of whole blocks are multiplied in tiles
    "llama": replace(LLAMA, width=128, hidden=192),
    "gpt2": replace(GPT2, width=64, hidden=256, num_heads=4, num_kv_heads=4),
    "qwen3": replace(LLAMA, width=64, has_qk_norm=True, head_dim=64, num_heads=3, num_kv_heads=1, hidden=128),
    "caps": replace(
        LLAMA, width=192, hidden=144, attention_softcap=5.0, logit_softcap=3.0, ties_embeddings=False, vocab_size=112
    ),
    "rows that end within a block": LLAMA,
    "rows that are not packed together": IN_GROUPS["llama"],
}


@pytest.mark.parametrize("steps", TOGETHER.values(), ids=TOGETHER)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "8 bits", "4 bits"])
@pytest.mark.parametrize("cache", ["", "int8"])
@pytest.mark.parametrize("config", WIDE.values(), ids=WIDE)
def test_a_token_gets_the_same_bits_alone_and_among_others(
    config: DecoderConfig, cache: str, kind: str, steps: list
) -> None:
    bits = int(kind[0]) if kind.endswith("bits") else None
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    decoder = decoder_of(config, dtype, bits)
    alone = [{text: [token]} for text, tokens in TOKENS.items() for token in tokens]
    expected, found = (ways_on(compiled(decoder, cache), calls) for calls in (alone, steps))
    assert all(torch.equal(found[text], logits) for text, logits in expected.items())
    theirs = ways_on(in_torch(decoder, cache), alone)
    bound = 0.2 if dtype == torch.bfloat16 else 1e-2 if cache else 1e-4
    assert all(furthest(found[text], logits) < bound for text, logits in theirs.items())


@pytest.mark.parametrize(
    ("cache", "kind", "size"), [("int8", "float32", 16), ("int8", "bfloat16", 16), ("", "bfloat16", 64)]
)
def test_bits_of_a_token_are_those_that_the_cache_makes_of_its_numbers(cache: str, kind: str, size: int) -> None:
    """To the last bit, those of a head that is all 0 among them. What both begin with lies in the kernel's memory."""
    config, dtype = replace(LLAMA, num_layers=1, position="none", head_dim=size), getattr(torch, kind)
    decoder = decoder_of(config, dtype)
    decoder.blocks[0].attention.value.weight[:size] = 0
    reader = compiled(decoder, cache)
    reader.read([Part(reader.cache.reserve(3), [5, 6, 7])])
    reader.read([Part(0, [11])])
    heads = config.num_kv_heads
    assert reader._few_tokens is not None
    memory, address = reader._few_tokens._room, int(reader._few_tokens._plans[0, at.PROJECTED])
    first = (address - memory.ctypes.data) // 4 + config.num_heads * size
    projected = torch.from_numpy(np.array(memory[first : first + 2 * heads * size])).view(2, 1, heads, size).to(dtype)
    for kept, numbers in zip((reader.cache.keys[0], reader.cache.values[0]), projected, strict=True):
        assert numbers.any()
        before = [part.clone() for part in kept.parts]
        kept.write_at(torch.tensor([0]), torch.tensor([3]), numbers)
        assert all(torch.equal(part, other) for part, other in zip(kept.parts, before, strict=True))


@pytest.mark.parametrize("cache", ["", "int8"])
def test_texts_that_share_a_prompt_go_on_as_if_each_had_read_it(cache: str) -> None:
    decoder, prompt = decoder_of(WIDE["qwen3"], torch.bfloat16), [place * place % 97 for place in range(40)]
    reader = compiled(decoder, cache)
    reader.read([Part(reader.cache.reserve(40), prompt) for _ in range(3)])
    together = [reader.read([Part(slot, [slot + step]) for slot in range(3)]) for step in range(5)]
    for slot in range(3):
        alone = read_on(compiled(decoder, cache), prompt, [slot + step for step in range(5)])
        assert torch.equal(torch.cat([logits[slot] for logits in together]), alone)


def test_of_more_tokens_than_are_few_torch_takes_care() -> None:
    decoder = decoder_of(LLAMA, torch.float32)
    readers, rows = (Reader(decoder, 30), in_torch(decoder)), MOST + 1
    found = []
    for reader in readers:
        for text in range(rows):
            reader.read([Part(reader.cache.reserve(1), [text])])
        found.append([reader.read([Part(text, [2 * text]) for text in range(count)]) for count in (rows, MOST)])
    (many, few), (same, near) = found
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(many, same, strict=True))
    assert all(0 < furthest(ours, theirs) < 2e-5 for ours, theirs in zip(few, near, strict=True))
