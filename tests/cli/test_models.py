import json

import torch
from safetensors.torch import save_file

from diptych.cli.models import count_parameters
from diptych.core.lora import Adapter, LoraSettings
from diptych.interop.peft import write_adapter
from diptych.models import bundled
from diptych.text.model import TextModel


def test_the_header_alone_tells_the_number_of_parameters(tmp_path):
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    assert count_parameters(tmp_path / "a.safetensors") == 22


def test_models_are_listed_with_what_they_do(diptych, monkeypatch, tiny_quill, tiny_brush):
    models = {"quill": tiny_quill, "brush": tiny_brush}
    monkeypatch.setattr("diptych.models.bundled", lambda: models)
    run = diptych("models")
    assert run.status == 0
    assert "writes, 4096 tokens in view" in run.out
    assert "paints 32 x 32 pictures" in run.out
    rows = [json.loads(line) for line in diptych("models", "--json").out.splitlines()]
    assert [(row["name"], row["panel"]) for row in rows] == [("quill", "text"), ("brush", "image")]
    assert all(row["parameters"] > 1000 for row in rows)


def test_bundled_models_can_be_listed(diptych):
    run = diptych("models")
    assert run.status == 0
    assert all(name in run.out for name in bundled())


def test_a_model_goes_out_and_comes_back(diptych, folder, tiny_quill):
    """Exported, opened as it is there, imported: the same text each time, and nothing is overwritten."""
    assert diptych("models", "export", tiny_quill, "--to", "hf", "--out", "theirs").out.startswith("theirs: Qwen3")
    assert diptych("models", "import", "theirs", "--out", "ours").status == 0
    settings = ("--temperature", 0, "--max-tokens", 9, "--dtype", "float32")
    texts = {diptych("text", "Once", "--model", model, *settings).out for model in (tiny_quill, "theirs", "ours")}
    assert len(texts) == 1
    again = diptych("models", "import", "theirs", "--out", "ours")
    assert (again.status, again.err) == (2, "diptych: 'ours' exists already; name a new folder\n")


def test_what_cannot_go_out_or_in_is_said_in_one_line(diptych, folder, tiny_quill, tiny_brush):
    for words, message in [
        (("export", tiny_quill, "--to", "gguf"), "unknown layout 'gguf'"),
        (("export", tiny_brush), "paints pictures"),
        (("import", tiny_quill), "is no Hugging Face directory; it opens as it is"),
        (("import", "gone"), "unknown model 'gone'"),
        (("import", "org/name"), "'hf download org/name --local-dir DIR' fetches it"),
    ]:
        run = diptych("models", *words, "--out", "out")
        assert run.status > 0
        assert message in run.err
        assert run.err.count("\n") == 1
    assert not (folder / "out").exists()


def test_an_adapter_is_written_with_and_merged(diptych, folder, tiny_quill):
    """Beside the model and in its weights it writes the same, and not what the model writes without it."""
    model = TextModel.load(tiny_quill, device="cpu", dtype="float32")
    torch.manual_seed(4)
    adapter = Adapter.fresh(model.decoder, LoraSettings())
    for layer in adapter.layers.values():
        torch.nn.init.normal_(layer.b, std=0.1)
    write_adapter(adapter, model.config, folder / "poet", base="tiny-quill", card="# poet\n")
    settings = ("--temperature", 0, "--max-tokens", 9, "--dtype", "float32")
    bare = diptych("text", "Once", "--model", tiny_quill, *settings).out
    beside = diptych("text", "Once", "--model", tiny_quill, "--adapter", "poet", *settings).out
    assert diptych("models", "merge", tiny_quill, "poet", "--out", "merged").status == 0
    merged = diptych("text", "Once", "--model", "merged", *settings).out
    assert (merged == beside, beside == bare) == (True, False)
    assert (folder / "merged" / "README.md").read_text().startswith("# merged\n\nThe model tiny-quill with the adapter")
    run = diptych("models", "merge", tiny_quill, tiny_quill, "--out", "other")
    assert (run.status, run.err.count("\n")) == (1, 1)
    assert "is not an adapter: it has no adapter_config.json" in run.err
