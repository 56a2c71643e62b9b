"""Adapters of PEFT's compute here what they compute there, and the other way round."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers.models.auto import AutoModelForCausalLM

import diptych
from diptych.core.lora import Adapter, LoraSettings
from diptych.interop.folder import write_folder
from diptych.interop.peft import load_adapter, read_adapter, write_adapter

TOKENS = torch.arange(48)[None] + 3
ATTENTION = ("query", "key", "value", "output")
# Kind, our targets, PEFT's for the same.
CASES = [
    ("llama-3", ("query", "value"), ["q_proj", "v_proj"]),
    ("llama-biased", (), "all-linear"),
    ("qwen-2.5", (), "all-linear"),
    ("qwen-3", ("gate", "up", "down"), ["gate_proj", "up_proj", "down_proj"]),
    ("mistral", ("output",), ["o_proj"]),
    ("gpt-2", ATTENTION, ["attn.c_attn", "attn.c_proj"]),
    ("gpt-2", ("key", "up"), ["c_attn", "c_fc"]),
    ("llama-3", ("head", "query"), ["lm_head", "q_proj"]),
]
pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT reads it
]


def there(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def shaken(adapter: torch.nn.Module) -> None:
    """B is not zero any more."""
    torch.manual_seed(5)
    for name, parameter in adapter.named_parameters():
        if name.endswith((".b", "lora_B.default.weight")):
            torch.nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize(("kind", "targets", "_"), CASES)
@pytest.mark.parametrize("use_rslora", [False, True])
@torch.no_grad()
def test_peft_computes_the_same_with_ours(published, tmp_path, kind, targets, _, use_rslora):
    model = diptych.load(str(published(kind)), "cpu", "float32")
    bare = model.decoder(TOKENS)
    adapter = Adapter.fresh(model.decoder, LoraSettings(rank=3, alpha=5.0, targets=targets, use_rslora=use_rslora))
    shaken(adapter)
    write_adapter(adapter, model.config, tmp_path / "poet", base=str(published(kind)))
    model.add_adapter("poet", adapter)
    model.use_adapter("poet")
    ours = model.decoder(TOKENS)
    assert (ours - bare).abs().max() > 0.1
    other = PeftModel.from_pretrained(there(published(kind)), tmp_path / "poet").eval()
    torch.testing.assert_close(ours, other(TOKENS).logits, rtol=0, atol=1e-4)
    model.use_adapter(None)
    load_adapter(model, tmp_path / "poet", "again")
    model.use_adapter("again")
    torch.testing.assert_close(model.decoder(TOKENS), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "_", "targets"), CASES)
@torch.no_grad()
def test_we_compute_the_same_with_pefts(published, tmp_path, kind, _, targets):
    patterns = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"self_attn.v_proj": 9}}
    own = patterns if targets == "all-linear" or "v_proj" in targets else {}  # PEFT wants a use for each
    settings = LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", **own)
    other = get_peft_model(there(published(kind)), settings).eval()
    shaken(other)
    other.save_pretrained(tmp_path / "poet", save_embedding_layers=False)
    model = diptych.load(str(published(kind)), "cpu", "float32")
    assert load_adapter(model, tmp_path / "poet") == "poet"
    model.use_adapter("poet")
    torch.testing.assert_close(model.decoder(TOKENS), other(TOKENS).logits, rtol=0, atol=1e-4)
    write_adapter(model.adapters["poet"], model.config, tmp_path / "again")
    again = PeftModel.from_pretrained(there(published(kind)), tmp_path / "again").eval()
    torch.testing.assert_close(again(TOKENS).logits, other(TOKENS).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_an_adapter_of_the_bundled_model_opens_beside_its_export(tmp_path):
    quill = diptych.load("quill", "cpu", "float32")
    write_folder(quill, tmp_path / "quill")
    adapter = Adapter.fresh(quill.decoder, LoraSettings(rank=2))
    shaken(adapter)
    write_adapter(adapter, quill.config, tmp_path / "poet")
    assert json.loads((tmp_path / "poet" / "adapter_config.json").read_text())["target_modules"] == [
        *("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    ]
    load_adapter(quill, tmp_path / "poet")
    quill.use_adapter("poet")
    other = PeftModel.from_pretrained(there(tmp_path / "quill"), tmp_path / "poet").eval()
    ours = quill.decoder(TOKENS)
    torch.testing.assert_close(other(TOKENS).logits, ours, rtol=0, atol=1e-3 * float(ours.abs().max()))


def test_adapters_are_switched_by_name_and_merged(published, tmp_path):
    model = diptych.load(str(published("llama-3")), "cpu", "float32")
    prompt = model.prompt_ids("Once upon a time")
    made = {}
    for name, seed in (("poet", 1), ("clerk", 2)):
        torch.manual_seed(seed)
        adapter = Adapter.fresh(model.decoder, LoraSettings())
        for layer in adapter.layers.values():
            torch.nn.init.normal_(layer.b, std=0.5)
        write_adapter(adapter, model.config, tmp_path / name)
        load_adapter(model, tmp_path / name)

    def write() -> list[int]:
        return model.generate(prompt, temperature=0, max_tokens=12).result().tokens

    made[None] = write()
    for name in ("poet", "clerk"):
        model.use_adapter(name)
        made[name] = write()
    assert len(set(map(tuple, made.values()))) == 3
    for name in ("poet", None, "clerk", "poet"):
        model.use_adapter(name)
        assert write() == made[name]
    model.use_adapter("poet", strength=0.0)
    assert write() == made[None]
    model.merge_adapter("clerk")
    assert write() == made["clerk"]
    assert list(model.adapters) == ["poet"]
    with pytest.raises(ValueError, match="unknown adapter 'poett'; did you mean 'poet'"):
        model.use_adapter("poett")
    with pytest.raises(ValueError, match="has an adapter 'poet' already"):
        load_adapter(model, tmp_path / "poet")


@torch.no_grad()
def test_an_adapter_stands_beside_a_model_in_8_bits_and_is_not_merged_into_it(published, tmp_path):
    """What it adds is exact: the error is that of the model alone."""
    whole, small = (diptych.load(str(published("llama-3")), "cpu", "float32", bits=bits) for bits in (None, 8))
    adapter = Adapter.fresh(whole.decoder, LoraSettings())
    shaken(adapter)
    write_adapter(adapter, whole.config, tmp_path / "poet")
    errors = []
    for name in (None, "poet"):
        for model in (whole, small):
            if name:
                load_adapter(model, tmp_path / name)
            model.use_adapter(name)
        errors.append(float((whole.decoder(TOKENS) - small.decoder(TOKENS)).std()))
    assert errors[1] < 3 * errors[0]
    before = small.decoder(TOKENS)
    with pytest.raises(ValueError, match="is no matrix of plain numbers"):
        small.merge_adapter("poet")
    small.use_adapter("poet")
    assert torch.equal(small.decoder(TOKENS), before)


@pytest.fixture
def kept(published, tmp_path):
    """An adapter directory that fits, and the decoder's settings."""
    model = diptych.load(str(published("llama-3")), "cpu", "float32")
    adapter = Adapter.fresh(model.decoder, LoraSettings(rank=2, targets=("query",)))
    write_adapter(adapter, model.config, tmp_path / "poet")
    return tmp_path / "poet", model.config


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported, only 'LORA'"),
        ({"use_dora": True}, "use_dora True is not supported, only False"),
        ({"bias": "all"}, "bias 'all' is not supported, only 'none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save ['lm_head'] is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' changes the model"),
        ({"alpha_pattern": {"q.*": 3}}, "alpha_pattern names modules by 'q.*', which is no ending of a name"),
        ({"r": "many"}, "r must be a number, not 'many'"),
        ({"r": 3}, "A and B of 'model.layers.0.self_attn.q_proj' are (2, 32) and (32, 2), the model needs (3, 32)"),
        ({"lora_alpha": 0}, "adapter.alpha must be a finite number > 0, not 0"),
    ],
)
def test_what_is_more_than_lora_is_refused_by_name(kept, about, message):
    directory, config = kept
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | about))
    with pytest.raises(ValueError) as error:
        read_adapter(directory, config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        ((f"{FIRST}.lora_A.weight", f"{FIRST}.lora_embedding_A"), "lora_embedding_A', which is no part of LoRA"),
        ((f"{FIRST}.lora_A.weight", None), "lacks the other half of 'model.layers.0.self_attn.q_proj'"),
        ((f"{FIRST}.", FIRST.replace("q_proj", "x_proj") + "."), "adapts 'model.layers.0.self_attn.x_proj', which"),
        ((f"{FIRST}.", FIRST.replace("layers.0", "layers.9") + "."), "adapts 'model.layers.9.self_attn.q_proj', which"),
    ],
)
def test_tensors_that_do_not_fit_are_named(kept, renamed, message):
    directory, config = kept
    path, (before, after) = directory / "adapter_model.safetensors", renamed
    tensors = {key if after is None else key.replace(before, after): value for key, value in load_file(path).items()}
    tensors.pop(before, None)
    save_file(tensors, path)
    with pytest.raises(ValueError) as error:
        read_adapter(directory, config)
    assert message in str(error.value)


def test_damaged_and_missing_files_are_one_line(kept):
    directory, config = kept
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors' is damaged"):
        read_adapter(directory, config)
    path.unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is missing \(a pickle is never opened\)"):
        read_adapter(directory, config)
    with pytest.raises(ValueError, match=r"is not an adapter: it has no adapter_config\.json"):
        read_adapter(directory.parent, config)
