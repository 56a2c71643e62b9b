"""The decoders that others publish: what each calls its settings and its tensors in a Hugging Face directory.

An architecture is a row of data. What all have in common stands once; a row says only what is its own. To add one whose
mathematics the decoder already has is to add a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Windows = Literal["none", "all", "switched", "by layer"]

SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden": "intermediate_size",
    "context": "max_position_embeddings",
    "ties_embeddings": "tie_word_embeddings",
    "activation": "hidden_act",
}
RMS = SIZES | {"norm_eps": "rms_norm_eps"}

# Modules of the decoder; what their weights and biases are called follows from it. "{}" is the layer's number.
NAMES = {
    "embedding": "model.embed_tokens",
    "blocks.{}.attention_norm": "model.layers.{}.input_layernorm",
    "blocks.{}.attention.query": "model.layers.{}.self_attn.q_proj",
    "blocks.{}.attention.key": "model.layers.{}.self_attn.k_proj",
    "blocks.{}.attention.value": "model.layers.{}.self_attn.v_proj",
    "blocks.{}.attention.output": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.attention.query_norm": "model.layers.{}.self_attn.q_norm",
    "blocks.{}.attention.key_norm": "model.layers.{}.self_attn.k_norm",
    "blocks.{}.feed_forward_norm": "model.layers.{}.post_attention_layernorm",
    "blocks.{}.feed_forward.gate": "model.layers.{}.mlp.gate_proj",
    "blocks.{}.feed_forward.up": "model.layers.{}.mlp.up_proj",
    "blocks.{}.feed_forward.down": "model.layers.{}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Args:
        name: in the "architectures" of config.json.
        keys: setting of `DecoderConfig` -> key of config.json.
        fixed: settings that it has always so; other decoders are not of this architecture.
        absent: what a key of config.json that is left out stands for.
        spellings: other spellings of keys -> that of `keys`.
        only: keys of config.json of which one value alone is supported.
        windows: how layers get a sliding window: never; all of them; all if switched on; by "layer_types".
        names: module of the decoder -> module there.
        prefix: of the names there, which checkpoints of the network without its head leave out.
        fused: there one tensor holds several of ours, in order.
        transposed: modules there whose weights are (in, out).
        expert_keys: setting of `ExpertsConfig` -> key of config.json, where layers have experts.
        expert_names: what is stacked in an `Experts` -> tensor there; the second "{}" is the expert's number.
    """

    name: str
    model_type: str
    keys: Mapping[str, str] = field(default_factory=lambda: RMS)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)
    spellings: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    windows: Windows = "none"
    names: Mapping[str, str] = field(default_factory=lambda: NAMES)
    prefix: str = "model."
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    expert_keys: Mapping[str, str] = field(default_factory=dict)
    expert_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_rotary(self) -> bool:
        return "position" not in self.fixed


ROWS = (
    Architecture(
        "LlamaForCausalLM",
        "llama",
        keys=RMS
        | {
            "has_qkv_bias": "attention_bias",
            "has_output_bias": "attention_bias",
            "has_feed_forward_bias": "mlp_bias",
        },
        fixed={"has_qk_norm": False},
        absent={"attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-6},
    ),
    Architecture(
        "MistralForCausalLM",
        "mistral",
        fixed={"has_qk_norm": False},
        absent={"sliding_window": 4096, "rms_norm_eps": 1e-6},
        windows="all",
    ),
    Architecture(
        "Qwen2ForCausalLM",
        "qwen2",
        fixed={"has_qk_norm": False, "has_qkv_bias": True},
        absent={"sliding_window": 4096, "rms_norm_eps": 1e-6},
        windows="by layer",
    ),
    Architecture(
        "Qwen3ForCausalLM",
        "qwen3",
        keys=RMS | {"has_qkv_bias": "attention_bias", "has_output_bias": "attention_bias"},
        fixed={"has_qk_norm": True},
        absent={"attention_bias": False, "head_dim": 128, "sliding_window": 4096, "rms_norm_eps": 1e-6},
        windows="by layer",
    ),
    Architecture(
        "MixtralForCausalLM",
        "mixtral",
        fixed={"has_qk_norm": False},
        absent={"rope_theta": 1e6, "rms_norm_eps": 1e-5, "router_aux_loss_coef": 0.001},
        windows="all",
        expert_keys={
            "num_experts": "num_local_experts",
            "top_k": "num_experts_per_tok",
            "hidden": "intermediate_size",
        },
        expert_names={
            "router": "model.layers.{}.block_sparse_moe.gate.weight",
            "gate": "model.layers.{}.block_sparse_moe.experts.{}.w1.weight",
            "up": "model.layers.{}.block_sparse_moe.experts.{}.w3.weight",
            "down": "model.layers.{}.block_sparse_moe.experts.{}.w2.weight",
        },
    ),
    Architecture(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        keys=RMS | {"has_qkv_bias": "attention_bias", "has_output_bias": "attention_bias"},
        fixed={"has_qk_norm": True},
        absent={
            "attention_bias": False,
            "sliding_window": 4096,
            "rms_norm_eps": 1e-6,
            "norm_topk_prob": False,
            "mlp_only_layers": [],
            "decoder_sparse_step": 1,
            "router_aux_loss_coef": 0.001,
        },
        spellings={"num_local_experts": "num_experts"},
        windows="switched",
        expert_keys={
            "num_experts": "num_experts",
            "top_k": "num_experts_per_tok",
            "hidden": "moe_intermediate_size",
            "normalises": "norm_topk_prob",
        },
        expert_names={
            "router": "model.layers.{}.mlp.gate.weight",
            "gate": "model.layers.{}.mlp.experts.{}.gate_proj.weight",
            "up": "model.layers.{}.mlp.experts.{}.up_proj.weight",
            "down": "model.layers.{}.mlp.experts.{}.down_proj.weight",
        },
    ),
    Architecture(
        "GPT2LMHeadModel",
        "gpt2",
        keys={
            "vocab_size": "vocab_size",
            "width": "n_embd",
            "num_layers": "n_layer",
            "num_heads": "n_head",
            "hidden": "n_inner",
            "context": "n_positions",
            "ties_embeddings": "tie_word_embeddings",
            "activation": "activation_function",
            "norm_eps": "layer_norm_epsilon",
        },
        fixed={
            "position": "learned",
            "norm": "layer",
            "is_gated": False,
            "has_qk_norm": False,
            "has_qkv_bias": True,
            "has_output_bias": True,
            "has_feed_forward_bias": True,
        },
        absent={"tie_word_embeddings": True, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
        only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        names={
            "embedding": "transformer.wte",
            "position_embedding": "transformer.wpe",
            "blocks.{}.attention_norm": "transformer.h.{}.ln_1",
            "blocks.{}.attention.output": "transformer.h.{}.attn.c_proj",
            "blocks.{}.feed_forward_norm": "transformer.h.{}.ln_2",
            "blocks.{}.feed_forward.up": "transformer.h.{}.mlp.c_fc",
            "blocks.{}.feed_forward.down": "transformer.h.{}.mlp.c_proj",
            "norm": "transformer.ln_f",
            "head": "lm_head",
        },
        prefix="transformer.",
        fused={
            "transformer.h.{}.attn.c_attn": (
                "blocks.{}.attention.query",
                "blocks.{}.attention.key",
                "blocks.{}.attention.value",
            )
        },
        transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    ),
    Architecture(
        "StableLmForCausalLM",
        "stablelm",
        keys=SIZES | {"norm_eps": "layer_norm_eps", "has_qkv_bias": "use_qkv_bias"},
        fixed={"norm": "layer", "has_qk_norm": False},
        absent={"use_qkv_bias": False, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
        only={"qk_layernorm": False, "use_parallel_residual": False},
    ),
)
ARCHITECTURES = {row.name: row for row in ROWS}
