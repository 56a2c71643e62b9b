"""Tiny models with random weights, each written by transformers itself the way that its authors publish it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import Tokenizer as Engine
from transformers import (
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    StableLmConfig,
)
from transformers.models.auto import AutoModelForCausalLM

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
THETA = {"rope_theta": 500000.0, "rope_type": "default"}
LLAMA_3_1 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3_1 |= {"original_max_position_embeddings": 32, "rope_theta": 500000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e6}

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


class Published(NamedTuple):
    """A published kind of model: its settings, and which tiny vocabulary has its rules."""

    config: Callable[..., Any]
    settings: dict[str, Any]
    vocabulary: str
    begin: str | None
    end: str


LLAMA_3 = ("llama3", "<|begin_of_text|>", "<|end_of_text|>")
QWEN = ("qwen", None, "<|endoftext|>")
KINDS = {
    "gpt-2": Published(
        GPT2Config, {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}, "gpt2", *["<|endoftext|>"] * 2
    ),
    "llama-2": Published(LlamaConfig, SIZES | {"num_key_value_heads": 4}, "llama2", "<s>", "</s>"),
    "llama-3": Published(
        LlamaConfig, SIZES | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, *LLAMA_3
    ),
    "llama-3.1": Published(LlamaConfig, SIZES | {"rope_parameters": LLAMA_3_1}, *LLAMA_3),
    "llama-3.2": Published(LlamaConfig, SIZES | {"rope_parameters": LLAMA_3_1, "tie_word_embeddings": True}, *LLAMA_3),
    "llama-biased": Published(
        LlamaConfig, SIZES | {"attention_bias": True, "mlp_bias": True, "head_dim": 16}, *LLAMA_3
    ),
    "mistral": Published(MistralConfig, SIZES | {"sliding_window": 16}, "mistral", "<s>", "</s>"),
    "mistral-nemo": Published(
        MistralConfig, SIZES | {"sliding_window": None, "head_dim": 16}, "mistral", "<s>", "</s>"
    ),
    "qwen-2.5": Published(Qwen2Config, SIZES | {"tie_word_embeddings": True}, *QWEN),
    "qwen-2.5-long": Published(
        Qwen2Config,
        SIZES | {"rope_parameters": YARN, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        *QWEN,
    ),
    "qwen-3": Published(Qwen3Config, SIZES | {"head_dim": 16, "tie_word_embeddings": True}, *QWEN),
    "mixtral": Published(MixtralConfig, SIZES | {"num_local_experts": 4}, "mistral", "<s>", "</s>"),
    "qwen-3-moe": Published(
        Qwen3MoeConfig,
        SIZES | EXPERTS | {"head_dim": 16, "norm_topk_prob": True, "mlp_only_layers": [1]},
        *QWEN,
    ),
    "qwen-3-moe-unnormalised": Published(
        Qwen3MoeConfig, SIZES | EXPERTS | {"sliding_window": 8, "use_sliding_window": True}, *QWEN
    ),
    "stablelm": Published(StableLmConfig, SIZES | {"partial_rotary_factor": 1.0, "use_qkv_bias": True}, *LLAMA_3),
}


def write(kind: str, engine: Engine, directory: Path) -> None:
    """Model and tokenizer of a kind, by transformers' own `save_pretrained`."""
    published = KINDS[kind]
    names = {"bos_token": published.begin, "eos_token": published.end}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine, **{k: name for k, name in names.items() if name})
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = AutoModelForCausalLM.from_config(
            published.config(vocab_size=len(tokenizer), **published.settings, **ids)
        )
        with torch.no_grad():  # distributions that are not flat, norms and biases that are not as at the start
            for name, parameter in model.named_parameters():
                spread, centre = (0.3, 0.0) if parameter.ndim > 1 else (0.1, float("norm" in name or "ln_" in name))
                parameter.normal_(centre, spread)
            model.get_output_embeddings().weight[tokenizer.eos_token_id] = 0  # no text ends early
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, vocabularies: dict[str, Engine]) -> Callable[[str], Path]:
    """`published("llama-3")`: the directory of that model, written when it is first asked for."""
    written: dict[str, Path] = {}

    def directory(kind: str) -> Path:
        if kind not in written:
            written[kind] = tmp_path_factory.mktemp("published") / kind
            write(kind, vocabularies[KINDS[kind].vocabulary], written[kind])
        return written[kind]

    return directory


@pytest.fixture(scope="session", params=KINDS)
def each(request: pytest.FixtureRequest, published: Callable[[str], Path]) -> Path:
    """The directory of every kind in turn."""
    return published(request.param)
