"""A conversation becomes the same token ids as in transformers, wherever the template lies."""

import json
import shutil

import pytest
from transformers.models.auto import AutoTokenizer

import diptych
from diptych.interop.folder import bring_in, write_folder

HEADERS = (  # in the manner of Llama 3
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (  # in the manner of Qwen
    "{%- for message in messages %}\n{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' }}\n{%- endif %}"
)
INSTRUCTIONS = (  # in the manner of Llama 2 and Mistral
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"llama-3": HEADERS, "qwen-3": CHATML, "llama-2": INSTRUCTIONS, "mistral": INSTRUCTIONS}
CONVERSATION = [
    {"role": "user", "content": "Once upon a time,  who wore\n\nsunglasses? 🦊 e\u0301 "},
    {"role": "assistant", "content": "A cat on a beach."},
    {"role": "user", "content": "中文?"},
]


@pytest.fixture(params=TEMPLATES)
def chatty(request, published, tmp_path):
    directory = tmp_path / request.param
    shutil.copytree(published(request.param), directory)
    (directory / "chat_template.jinja").write_text(TEMPLATES[request.param], encoding="utf-8")
    return directory


def ids_there(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=False)


def ids_here(directory):
    return diptych.load(str(directory), "cpu", "float32").chat_format.ids(CONVERSATION, add_generation_prompt=True)


def test_ids_are_identical(chatty):
    assert ids_here(chatty) == ids_there(chatty)


def test_import_and_export_keep_the_template(chatty, tmp_path):
    bring_in(chatty, tmp_path / "ours")
    write_folder(diptych.load(str(tmp_path / "ours")), tmp_path / "theirs")
    assert ids_here(tmp_path / "ours") == ids_here(tmp_path / "theirs") == ids_there(tmp_path / "theirs")
    assert ids_there(tmp_path / "theirs") == ids_there(chatty)


@pytest.mark.parametrize(
    "form", [CHATML, [{"name": "tools", "template": HEADERS}, {"name": "default", "template": CHATML}]]
)
def test_a_template_in_tokenizer_config_is_found(published, tmp_path, form):
    shutil.copytree(published("qwen-3"), tmp_path / "qwen")
    beside = tmp_path / "qwen" / "tokenizer_config.json"
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"chat_template": form}))
    assert diptych.load(str(tmp_path / "qwen")).chat_template == CHATML
    assert ids_here(tmp_path / "qwen") == ids_there(tmp_path / "qwen")
