"""Checkpoints of both panels with tiny random networks: real in every part, made once a session, no data needed."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Engine

from diptych.core import graphs, together
from diptych.core.machine_code import GRADIENTS, MANY, ROWS, compile_beside, is_here, kernels_folder
from diptych.core.tokenizer import Tokenizer
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.encoders import EncoderConfig, TextEncoder
from diptych.image.model import ImageModel
from diptych.image.prompts import OwnPrompter
from diptych.image.unet import UNet, UNetConfig
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.model import TextModel


def pytest_configure() -> None:
    """What is tested is what a CPU does, also where there is a GPU, unless the tests of one are asked for. Two tests
    run at a time: threads of a command that wait leave their core to the other instead of asking again and again."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not os.environ.get("DIPTYCH_TEST_GPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU is visible; `make test-gpu` shows it"))


class Again:
    """Stands in for `graphs.Graphs` where there is no GPU: after the direct calls a function is kept with its inputs,
    and what is run from then on is the function that was kept, on those inputs, with new numbers in them."""

    def __init__(self, device: torch.device, *, is_on: bool = True, direct: int = graphs.DIRECT) -> None:
        self.is_on, self.direct = is_on, direct
        self.kept, self.calls = dict[Any, Any](), dict[Any, int]()

    def call(self, name: Any, function: Callable[..., Any], *inputs: torch.Tensor | None) -> Any:
        if not self.is_on:
            return function(*inputs)
        key = (name, *(one if one is None else (one.shape, one.dtype) for one in inputs))
        self.calls[key] = self.calls.get(key, 0) + 1
        if self.calls[key] <= self.direct:
            return function(*inputs)
        first, kept = self.kept.setdefault(key, (function, [one if one is None else one.clone() for one in inputs]))
        for old, new in zip(kept, inputs, strict=True):
            if old is not None:
                old.copy_(new)
        return first(*kept)


WORDS = ["Once upon a time there was a cat on a beach at sunset. It wore sunglasses.", "🦊 é ö"]
# How text is cut before it is tokenised, from the tokenizer.json of each.
AFTER_NUMBERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + AFTER_NUMBERS
QWEN_PIECES = LLAMA_3_PIECES.replace("{1,3}", "")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny networks are slower on several threads, much slower where other work keeps the cores busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def kernels() -> Callable[[Path], Path]:
    """kernels(FOLDER): a new cache folder that has what this session compiled, so that other processes need not."""
    # Before a test looks at standard error, where a line tells of it.
    compile_beside([ROWS] * is_here() + [MANY, GRADIENTS] * together.IS_HERE)
    made = kernels_folder()

    def cache_at(folder: Path) -> Path:
        if made.is_dir():
            shutil.copytree(made, folder / "kernels")
        return folder

    return cache_at


@pytest.fixture
def disk() -> Callable[[], AbstractContextManager[Callable[[], None]]]:
    """`with disk() as fill`: from `fill()` on it is full. The limit on a file's size stands for that: writing fails in
    the middle of a file, with what the system says."""

    @contextmanager
    def until_then() -> Iterator[Callable[[], None]]:
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, unlimited[1]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            signal.signal(signal.SIGXFSZ, handler)

    return until_then


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a recording was replayed."""
    replays = [0]
    replay = graphs._Recorded.replay

    def counted(self: graphs._Recorded, inputs: graphs.Inputs) -> object:
        replays[0] += 1
        return replay(self, inputs)

    monkeypatch.setattr(graphs._Recorded, "replay", counted)
    return replays


@pytest.fixture(scope="session")
def recordings() -> type[Again]:
    return Again


@pytest.fixture(autouse=True)
def _freed_memory_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that runs in this process would change the rest of the session."""
    monkeypatch.setattr("diptych.core.allocator.keep_freed_memory", lambda: False)


def _trained(specials: list[str], pieces: pre_tokenizers.PreTokenizer, vocab_size: int = 400) -> Engine:
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pieces
    alphabet = [] if isinstance(pieces, pre_tokenizers.Metaspace) else sorted(pre_tokenizers.ByteLevel.alphabet())
    engine.train_from_iterator(
        WORDS * 3,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return engine


def _byte_level(specials: list[str], pattern: str) -> Engine:
    bytes_of_pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    engine = _trained(specials, pre_tokenizers.Sequence([split, bytes_of_pieces]))
    engine.decoder = decoders.ByteLevel()
    return engine


def _byte_fallback() -> Engine:
    """As SentencePiece has it: after the specials the 256 bytes, then text with "▁" for the space."""
    about = json.loads(_trained([], pre_tokenizers.Metaspace(split=True), 120).to_str())
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *about["model"]["vocab"]]
    about["model"] |= {"vocab": dict(zip(names, range(len(names)), strict=True)), "unk_token": "<unk>"}
    about["model"] |= {"byte_fallback": True, "fuse_unk": True}
    engine = Engine.from_str(json.dumps(about))
    engine.add_special_tokens(["<unk>", "<s>", "</s>"])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    engine.decoder = decoders.Sequence(parts)
    engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return engine


def _gpt2() -> Engine:
    engine = _trained(["<|endoftext|>"], pre_tokenizers.ByteLevel(add_prefix_space=False))
    engine.decoder = decoders.ByteLevel()
    engine.post_processor = processors.ByteLevel(trim_offsets=False)
    return engine


def _llama2() -> Engine:
    engine = _byte_fallback()
    engine.pre_tokenizer = None
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return engine


def _mistral() -> Engine:
    engine = _byte_fallback()
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return engine


def _llama3() -> Engine:
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    engine = _byte_level(names, LLAMA_3_PIECES)
    begins = processors.TemplateProcessing(single=f"{names[0]} $A", special_tokens=[(names[0], 0)])
    engine.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begins])
    return engine


def _qwen() -> Engine:
    engine = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], QWEN_PIECES)
    engine.normalizer = normalizers.NFC()
    engine.add_tokens(["<think>", "</think>"])  # tokens that are text, too
    return engine


@pytest.fixture(scope="session")
def vocabularies() -> dict[str, Engine]:
    """Tiny vocabularies with the rules of published ones."""
    return {
        "gpt2": _gpt2(),
        "llama2": _llama2(),
        "mistral": _mistral(),
        "llama3": _llama3(),
        "qwen": _qwen(),
    }


@pytest.fixture(scope="session")
def tiny_quill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text checkpoint directory: 4,096 tokens of context, a vocabulary of 290."""
    directory = tmp_path_factory.mktemp("models") / "tiny-quill"
    tokenizer = Tokenizer.train(WORDS * 3, 290)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = DecoderConfig(
            vocab_size=tokenizer.size,
            width=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            hidden=48,
            context=4096,
        )
        decoder = Decoder(config).eval()
    with torch.no_grad():  # larger weights than at the start of training: distributions that are not flat
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12)
    TextModel("tiny-quill", decoder, tokenizer).save(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_brush(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image checkpoint directory: pictures of 32 x 32 pixels, latents of 4 x 8 x 8."""
    directory = tmp_path_factory.mktemp("models") / "tiny-brush"
    tokenizer = Tokenizer.train(WORDS * 3, 290)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        parts = (
            TextEncoder(EncoderConfig(vocab_size=tokenizer.size, width=32, num_layers=1, num_heads=2, length=48)),
            UNet(UNetConfig(channels=4, widths=(32,), has_attention=(True,), head_dim=16, context_width=32)),
            Autoencoder(AutoencoderConfig(latent_channels=4, widths=(8, 16), decoder_blocks=1)),
        )
        with torch.no_grad():  # what training starts at zero is given something to say
            for parameter in (parameter for part in parts for parameter in part.eval().parameters()):
                if parameter.ndim > 1 and not parameter.any():
                    parameter.normal_(std=0.05)
    encoder, unet, autoencoder = parts
    model = ImageModel(
        "tiny-brush",
        prompter=OwnPrompter(encoder, tokenizer),
        network=unet,
        autoencoder=autoencoder,
        path="ddpm-linear",
        size=32,
    )
    model.save(directory)
    return directory
