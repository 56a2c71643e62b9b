"""A Hugging Face directory: opened as a text model, and written from one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine
from tokenizers import processors

from diptych.core import weights
from diptych.core.precision import choose
from diptych.core.quantised import check_bits
from diptych.core.tokenizer import BESIDE, Tokenizer
from diptych.interop import generation_config
from diptych.interop.configs import architecture_for, architecture_of, decoder_config
from diptych.interop.tensors import decoder_tensors, published_tensors
from diptych.text import chat_template
from diptych.text.assembly import assemble
from diptych.text.model import TextModel


def open_folder(
    directory: str | Path, *, device: str | None = None, dtype: str | None = None, bits: int | None = None
) -> TextModel:
    """The text model in a Hugging Face directory.

    Raises:
        ValueError: an architecture, a setting or a tokenizer that is not supported, and files that are missing, damaged
            or do not fit each other; each by its name.
    """
    directory = Path(directory)
    check_bits(bits)
    chosen_device, chosen_dtype = choose(device, dtype)
    entries = weights.read_config(directory)
    try:
        row, config = architecture_of(entries), decoder_config(entries)
    except ValueError as error:
        raise ValueError(f"'{directory}' cannot be opened: {error}") from error
    _check_files(directory)
    about = generation_config.read(directory)
    tokenizer = Tokenizer.load(directory / "tokenizer.json", generation_config.ends(about, entries))
    tensors = decoder_tensors(directory, config, row)
    decoder = assemble(config, tensors, directory, device=chosen_device, dtype=chosen_dtype, bits=bits)
    name, template, defaults = directory.resolve().name, _chat_template(directory), generation_config.defaults(about)
    try:
        return TextModel(name, decoder, tokenizer, chat_template=template, defaults=defaults)
    except ValueError as error:
        raise ValueError(f"'{directory}' cannot be opened: {error}") from error


def bring_in(directory: str | Path, out: str | Path) -> TextModel:
    """Make a checkpoint of ours from a Hugging Face directory: weights in their dtype, its model card if it has one.

    Raises:
        ValueError: as `open_folder`.
    """
    directory, out = Path(directory), Path(out)
    model = open_folder(directory, device="cpu", dtype=weights.stored_dtype(directory))
    model.name = out.resolve().name
    about = f"# {model.name}\n\nThe published model `{directory.resolve().name}`. Its authors' terms hold for it.\n"
    model.save(out, card_of(directory) or about)
    return model


def card_of(directory: Path) -> str | None:
    """The text of a checkpoint's model card, where it has one."""
    card = directory / "README.md"
    return card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None


def write_folder(model: TextModel, directory: str | Path, card: str | None = None) -> str:
    """Write a directory that transformers opens, whole or not at all; the name of the architecture that it has there.

    Raises:
        ValueError: no architecture there computes what this decoder does; the message says what the nearest lacks.
    """
    row, config = architecture_for(model.config)
    tensors = published_tensors(model.decoder.state_dict(), model.config, row)
    generation = generation_config.written(model.tokenizer, model.defaults)
    config |= {key: generation[key] for key in ("bos_token_id", "eos_token_id")}
    config["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    texts = {
        "tokenizer.json": _rules_of_their_own(model.tokenizer),
        BESIDE: _json(_tokenizer_config(model)),
        generation_config.FILE: _json(generation),
    }
    if model.chat_template is not None:
        texts[chat_template.FILE] = model.chat_template
    weights.save(directory, config, tensors, card=card, texts=texts)
    return row.name


def _check_files(directory: Path) -> None:
    """Say what to do about files that are there in a form that is not read."""
    if not (directory / "tokenizer.json").is_file():
        raise ValueError(
            f"'{directory}' has no tokenizer.json, the one form of a vocabulary that is read. Have transformers write "
            "it: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    if any((directory / name).is_file() for name in (weights.WEIGHTS, weights.INDEX)):
        return
    pickles = sorted(path.name for ending in ("*.bin", "*.pt", "*.pth") for path in directory.glob(ending))
    if pickles:
        raise ValueError(
            f"'{directory}' has its weights only as a pickle ({pickles[0]}), which may hold code that runs when it is "
            "opened. Get the model's safetensors files, or have transformers write them: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)"
        )


def _chat_template(directory: Path) -> str | None:
    """The template's source: of its own file, else of tokenizer_config.json, which may hold several by name."""
    found = chat_template.read_template(directory)
    path = directory / BESIDE
    if found is None and path.is_file():
        listed = weights.read_object(path).get("chat_template")
        if isinstance(listed, list):
            listed = {one.get("name"): one.get("template") for one in listed if isinstance(one, dict)}.get("default")
        found = listed if isinstance(listed, str) else None
    return found


def _rules_of_their_own(tokenizer: Tokenizer) -> str:
    """tokenizer.json that puts what begins a text before it by itself, as others expect of the file."""
    engine = Engine.from_str(tokenizer.to_json())
    if tokenizer.begin is not None and engine.encode("a").ids[:1] != [tokenizer.begin]:
        begin = tokenizer.piece(tokenizer.begin)
        engine.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.begin)]
        )
    return engine.to_str(pretty=True)


def _tokenizer_config(model: TextModel) -> dict[str, Any]:
    tokenizer = model.tokenizer
    names = {"bos_token": tokenizer.begin, "eos_token": tokenizer.end}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.context,
        "clean_up_tokenization_spaces": False,
        **{name: tokenizer.piece(id) for name, id in names.items() if id is not None},
    }


def _json(about: Mapping[str, Any]) -> str:
    return json.dumps(about, ensure_ascii=False, indent=2) + "\n"
