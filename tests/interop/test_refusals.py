"""What cannot be opened is refused in one line that names it and says what is allowed."""

import json
import math
import shutil

import pytest
import torch
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers

import diptych
from diptych.core import weights
from diptych.core.positions import RopeScaling
from diptych.interop.configs import ARCHITECTURES, architecture_for, decoder_config
from diptych.interop.folder import write_folder
from diptych.text.decoder import DecoderConfig
from diptych.text.model import TextModel


@pytest.fixture
def changed(published, tmp_path):
    """`changed("llama-3", vocab_size=7)`: a copy of a model whose config.json says so; None leaves a key out."""

    def change(kind, **entries):
        directory = tmp_path / kind
        shutil.copytree(published(kind), directory)
        config = json.loads((directory / "config.json").read_text()) | entries
        kept = {key: value for key, value in config.items() if value is not None}
        (directory / "config.json").write_text(json.dumps(kept))
        return directory

    return change


def assert_refused(directory, *parts):
    with pytest.raises(ValueError) as caught:
        diptych.load(str(directory), "cpu", "float32")
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(directory), *parts):
        assert part in message


def test_an_architecture_that_is_not_known_is_named_with_those_that_are(changed):
    assert_refused(changed("llama-3", architectures=["MambaForCausalLM"]), "'MambaForCausalLM'", *ARCHITECTURES)


@pytest.mark.parametrize("names", [None, [], "LlamaForCausalLM", [3]])
def test_a_config_without_an_architecture_is_refused(changed, names):
    assert_refused(changed("llama-3", architectures=names), "names no architecture", "LlamaForCausalLM")


@pytest.mark.parametrize(
    ("kind", "entries", "message"),
    [
        ("llama-3", {"quantization_config": {"quant_method": "gptq"}}, "quantised (quantization_config, 'gptq')"),
        ("llama-3", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is supported only as 1.0, not 0.5"),
        ("llama-3", {"rope_parameters": {"rope_type": "longrope"}}, "unknown rope_type 'longrope'"),
        ("llama-3", {"rope_parameters": {"full_attention": {}}}, "one table of settings for all layers"),
        ("llama-3", {"rope_parameters": {"rope_type": "yarn"}}, "factor"),
        ("llama-3", {"hidden_act": "quick_gelu"}, "unknown activation ('hidden_act') 'quick_gelu'"),
        ("llama-3", {"hidden_size": None}, "it has no 'hidden_size'"),
        ("llama-3", {"num_hidden_layers": "3"}, "'num_hidden_layers' must be a whole number >= 1, not '3'"),
        ("llama-3", {"rms_norm_eps": "small"}, "'rms_norm_eps' must be a number, not 'small'"),
        ("llama-3", {"attention_bias": 1}, "'attention_bias' must be true or false, not 1"),
        ("llama-3", {"num_key_value_heads": 3}, "num_heads (4) must be a multiple of num_kv_heads (3)"),
        ("gpt-2", {"scale_attn_by_inverse_layer_idx": True}, "'scale_attn_by_inverse_layer_idx' is supported only as"),
        ("mistral", {"sliding_window": 0}, "'sliding_window' must be a whole number >= 1, not 0"),
        ("qwen-2.5-long", {"layer_types": ["linear_attention"] * 3}, "'layer_types' must be 3 of"),
    ],
)
def test_a_setting_that_is_not_supported_is_named(changed, kind, entries, message):
    assert_refused(changed(kind, **entries), message)


WRONG = (None, "", "x", -1, 0, 2**31, 10**30, math.inf, math.nan, 0.5, True, [], [1], [[]], {}, {"a": 1})


def test_whatever_a_config_says_it_is_taken_or_refused_in_one_line(each):
    """And at once: no number in it makes lists of its size."""
    config = json.loads((each / "config.json").read_text())
    deep = [key for key, value in config.items() if isinstance(value, dict)]
    changes = [{key: value} for key in [*config, "rope_scaling", "quantization_config"] for value in WRONG]
    changes += [{key: config[key] | {inner: value}} for key in deep for inner in config[key] for value in WRONG]
    messages = []
    for change in changes:
        try:
            decoder_config(config | change)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > len(changes) / 8
    assert all(message.isprintable() for message in messages)


@pytest.mark.parametrize(
    ("kind", "key"), [("llama-3", "hidden_size"), ("qwen-3-moe", "num_local_experts"), ("gpt-2", "n_layer")]
)
@pytest.mark.parametrize("size", [9000, 2**40, 10**30])
def test_sizes_that_no_tensor_has_are_refused_before_room_is_made_for_them(changed, kind, key, size):
    assert_refused(changed(kind, **{key: size}))


def test_a_tensor_that_is_missing_left_over_or_misshapen_is_named_as_it_is_called_there(changed):
    directory = changed("llama-3")
    right = weights.read_tensors(directory)
    config = weights.read_config(directory)
    name = "model.layers.1.mlp.up_proj.weight"
    wrong = [
        ({k: v for k, v in right.items() if k != name}, f"lacks '{name}'"),
        (
            right | {"model.layers.1.mlp.scale": torch.ones(1)},
            "it has 'model.layers.1.mlp.scale', which the model has not",
        ),
        (right | {name: torch.ones(48, 31)}, f"'{name}' is (48, 31), the model needs (48, 32)"),
    ]
    for number, (tensors, message) in enumerate(wrong):
        weights.save(directory.parent / f"{number}", config, tensors)
        shutil.copy(directory / "tokenizer.json", directory.parent / f"{number}")
        assert_refused(directory.parent / f"{number}", message)


def test_a_head_beside_a_tied_embedding_must_be_the_embedding(changed):
    """Old checkpoints have it twice; one that differs would be dropped silently."""
    directory = changed("llama-3.2")
    tensors, config = weights.read_tensors(directory), weights.read_config(directory)
    embedding = tensors["model.embed_tokens.weight"].clone()
    for head, is_same in ((embedding, True), (embedding + 1, False)):
        weights.save(directory.parent / "with-head", config, tensors | {"lm_head.weight": head})
        shutil.copy(directory / "tokenizer.json", directory.parent / "with-head")
        if is_same:
            assert diptych.load(str(directory.parent / "with-head")).config.ties_embeddings
        else:
            assert_refused(directory.parent / "with-head", "tie_word_embeddings")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_refused_with_the_reason_and_the_way_out(changed, file):
    directory = changed("llama-3")
    (directory / "model.safetensors").rename(directory / file)
    assert_refused(directory, file, "a pickle", "save_pretrained")


def test_a_vocabulary_that_is_missing_or_of_another_kind_is_refused(changed):
    directory = changed("llama-3")
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.model").write_bytes(b"sentencepiece")
    assert_refused(directory, "tokenizer.json", "save_pretrained")
    engine = Engine(models.WordLevel({"cat": 0}, unk_token="cat"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").unlink()
    assert_refused(directory, "WordLevel")


def test_a_vocabulary_larger_than_the_network_is_refused(changed):
    directory = changed("llama-3.2", vocab_size=12)
    tensors, config = weights.read_tensors(directory), weights.read_config(directory)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:12].clone()
    shutil.copy(directory / "tokenizer.json", directory.parent)
    weights.save(directory, config, tensors)
    shutil.move(directory.parent / "tokenizer.json", directory)
    assert_refused(directory, "tokens, the decoder only 12")


def test_a_decoder_that_nobody_else_has_is_not_exported(tmp_path, tiny_quill):
    """The message says what the nearest architecture would do otherwise."""
    quill = TextModel.load(tiny_quill)
    quill.decoder.config = quill.config = DecoderConfig.from_dict(quill.config.to_dict() | {"logit_softcap": 30.0})
    with pytest.raises(ValueError, match=r"nearest is Qwen3ForCausalLM, but there logit_softcap is 0\.0, here 30\.0$"):
        write_folder(quill, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ntk_scaling_is_written_as_the_theta_that_it_is(tmp_path, tiny_quill):
    longer = TextModel.load(tiny_quill).stretched(8192, "ntk")
    write_folder(longer, tmp_path / "out")
    again = diptych.load(str(tmp_path / "out"))
    assert (again.config.context, again.config.rope_scaling) == (8192, None)
    tokens = torch.arange(200)[None]
    torch.testing.assert_close(again.decoder.float()(tokens), longer.decoder.float()(tokens))


@pytest.mark.parametrize(
    ("architecture", "switches"),
    [
        ("LlamaForCausalLM", {"has_qk_norm": False}),
        ("LlamaForCausalLM", {"has_qk_norm": False, "activation": "gelu-tanh", "windows": (0, 0)}),
        ("MistralForCausalLM", {"has_qk_norm": False, "windows": (7, 7)}),
        ("Qwen2ForCausalLM", {"has_qk_norm": False, "has_qkv_bias": True}),
        ("Qwen3ForCausalLM", {"windows": (7, 0), "dropout": 0.1}),
        ("Qwen3ForCausalLM", {"rope_theta": 5e5, "has_qkv_bias": True, "has_output_bias": True}),
        ("StableLmForCausalLM", {"has_qk_norm": False, "norm": "layer", "has_qkv_bias": True}),
        ("Qwen3ForCausalLM", {"rope_scaling": RopeScaling("yarn", 2.0, 32, beta_fast=20.0)}),
        ("Qwen3ForCausalLM", {"rope_scaling": RopeScaling("dynamic", 2.0, 32)}),
        ("Qwen3ForCausalLM", {"rope_scaling": RopeScaling("linear", 2.0)}),
    ],
)
def test_switches_find_the_architecture_that_has_them(architecture, switches):
    sizes = {"vocab_size": 9, "width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    config = DecoderConfig(**sizes, hidden=48, context=64, **switches)
    row, written = architecture_for(config)
    assert row.name == architecture
    again = decoder_config(json.loads(json.dumps(written)))
    assert any(again.windows) == any(config.windows)
