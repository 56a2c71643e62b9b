"""Models that transformers wrote compute here what they compute there, and the other way round."""

import json
import subprocess
import sys

import pytest
import torch
from transformers.models.auto import AutoModelForCausalLM, AutoTokenizer

import diptych
from diptych.core import weights
from diptych.interop.folder import write_folder

TEXTS = [
    "Once upon a time there was a cat on a beach. It wore 12345 sunglasses,don't you?",
    " two  spaces\n\n\ttab \r\n e\u0301 é ﬁ ½",
    "👩‍👩‍👧‍👦 🦊 中文 العربية हिन्दी ไทย \x00\u2028\u3000",
]


def imported_by_opening(*directories):
    """The modules that a fresh process has after it has opened these models."""
    opening = "import json, sys, diptych; [diptych.load(name, 'cpu') for name in sys.argv[1:]]"
    words = [sys.executable, "-c", f"{opening}; print(json.dumps(list(sys.modules)))", *map(str, directories)]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def test_opening_a_model_imports_nothing_of_the_other_panel(published, tiny_quill, tiny_brush):
    """Of the house, or published: neither panel's users wait for the other, nor for Pillow where nothing is painted."""
    text = imported_by_opening(tiny_quill, published("llama-3"))
    assert "diptych.text.model" in text
    assert not [name for name in text if name.startswith(("diptych.image", "PIL"))]
    image = imported_by_opening(tiny_brush)
    assert "diptych.image.model" in image
    assert not [name for name in image if name.startswith("diptych.text")]


def there(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@torch.no_grad()
def test_logits_are_equal(each):
    model, other = diptych.load(str(each), "cpu", "float32"), there(each)
    tokens = torch.randint(model.tokenizer.size, (2, 96), generator=torch.Generator().manual_seed(1))
    logits = other(tokens).logits
    assert logits.std() > 0.3
    torch.testing.assert_close(model.decoder(tokens), logits, rtol=0, atol=1e-4)


def test_64_greedy_tokens_are_identical(each):
    model, other = diptych.load(str(each), "cpu", "float32"), there(each)
    prompt = model.prompt_ids(TEXTS[0])
    made = model.generate(prompt, max_tokens=64, temperature=0).result().tokens
    row = torch.tensor([prompt])
    settings = {"attention_mask": torch.ones_like(row), "max_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    expected = other.generate(row, **settings)
    assert len(made) == 64
    assert made == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_are_identical(each, text):
    model, other = diptych.load(str(each), "cpu", "float32"), AutoTokenizer.from_pretrained(each)
    ids = model.prompt_ids(text)
    assert ids == other(text)["input_ids"]
    assert model.tokenizer.decode(ids) == other.decode(ids, skip_special_tokens=True)
    assert model.tokenizer.end == other.eos_token_id


@torch.no_grad()
def test_what_is_exported_computes_the_same_there(each, tmp_path):
    """And opens here again as it was."""
    model = diptych.load(str(each), "cpu", "float32")
    write_folder(model, tmp_path / "exported")
    other, tokenizer = there(tmp_path / "exported"), AutoTokenizer.from_pretrained(tmp_path / "exported")
    tokens = torch.arange(96)[None] % model.tokenizer.size
    torch.testing.assert_close(other(tokens).logits, there(each)(tokens).logits, rtol=0, atol=1e-6)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == model.prompt_ids(text)
    again = diptych.load(str(tmp_path / "exported"), "cpu", "float32")
    assert again.config == model.config
    assert torch.equal(again.decoder(tokens), model.decoder(tokens))
    assert again.tokenizer.ends == model.tokenizer.ends


def test_the_architecture_is_kept(each, tmp_path):
    """Of several that compute the same, Llama and Mistral without windows, the more usual one is written."""
    name = write_folder(diptych.load(str(each), "cpu", "float32"), tmp_path / "exported")
    assert name in (json.loads((each / "config.json").read_text())["architectures"][0], "LlamaForCausalLM")


def test_shards_are_read(published, tmp_path):
    whole = diptych.load(str(published("llama-3")), "cpu", "float32")
    there(published("llama-3")).save_pretrained(tmp_path, max_shard_size="20KB")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((published("llama-3") / file).read_bytes())
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    sharded = diptych.load(str(tmp_path), "cpu", "float32")
    for name, tensor in whole.decoder.state_dict().items():
        assert torch.equal(sharded.decoder.state_dict()[name], tensor)


def test_weights_saved_without_the_head_open_without_their_prefix(published, tmp_path):
    """As GPT-2 itself lies on the hub, with the masks that it carries."""
    for file in published("gpt-2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = {k.removeprefix("transformer."): v for k, v in weights.read_tensors(tmp_path).items()}
    tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 128, 128).tril() for layer in range(3)}
    weights.save(tmp_path / "bare", weights.read_config(tmp_path), tensors)
    (tmp_path / "bare" / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    bare, whole = (diptych.load(str(path), "cpu", "float32") for path in (tmp_path / "bare", published("gpt-2")))
    tokens = torch.arange(50)[None]
    assert torch.equal(bare.decoder(tokens), whole.decoder(tokens))


@torch.no_grad()
def test_a_model_of_the_house_is_opened_there(tmp_path):
    quill = diptych.load("quill", "cpu", "float32")
    assert write_folder(quill, tmp_path / "quill") == "StableLmForCausalLM"
    ids = quill.prompt_ids(TEXTS[0])
    assert AutoTokenizer.from_pretrained(tmp_path / "quill")(TEXTS[0])["input_ids"] == ids
    tokens = torch.tensor([ids])
    torch.testing.assert_close(there(tmp_path / "quill")(tokens).logits, quill.decoder(tokens), rtol=0, atol=1e-4)
