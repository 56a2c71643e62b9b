"""Training the decoder to predict the next token of a mixture of corpora."""

import math
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.experts import active_parameters
from diptych.core.lora import Adapter, LoraSettings
from diptych.core.precision import choose
from diptych.core.randomness import check_seed
from diptych.core.tokenizer import BEGIN, END, SMALLEST_VOCABULARY, Tokenizer
from diptych.data.mix import labels, read_mix
from diptych.data.packing import Batch, Mixture, MixtureSource
from diptych.data.shelf import is_shelved
from diptych.data.tokenised import packed, vocabulary
from diptych.data.trouble import Troubles
from diptych.interop.configs import architecture_for
from diptych.interop.peft import write_adapter
from diptych.text.chat_template import read_template
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.model import TextModel
from diptych.text.objective import TOGETHER, bits_per_byte, count_targets, next_token_loss
from diptych.train.card import About, earlier_stages
from diptych.train.outline import Chore, Outline, beside
from diptych.train.recipe import Recipe
from diptych.train.samples import save_texts
from diptych.train.start import Start

PROMPTS = ("Once upon a time", "One day, a little", "Tom and Lily")
SPLITS = ("documents", "end")
FREE = ("dropout", "context", "rope_theta", "rope_scaling")  # settings of a decoder that its weights do not depend on


@dataclass(frozen=True)
class Data:
    """[data]: `mix` weighs corpora against each other; the first one named is the one whose validation is watched.

    Args:
        mix: corpus name, path or `hf:` name (see `corpora.read`) -> weight. What a corpus named before has too is left
            out.
        vocab_size: tokens of the vocabulary, trained on the same mixture.
        split: what is held out of a corpus: "documents", by a hash of each and where the corpus holds out nothing
            itself, or "end", the last part of its text, for a corpus that is one long document.
        validation_documents: scored at each validation, of each corpus.
        validation_share: of the documents, or of the characters, that are held out.
        validation_overlap: share of a context that the windows over a long document have in common: what a token has
            at least before it. 0 reads a document once and is twice as quick as a half; the figures are higher.
        seed: of the split and of the packing.
    """

    mix: dict[str, float]
    vocab_size: int = 4096
    split: str = "documents"
    validation_documents: int = 100
    validation_share: float = 0.02
    validation_overlap: float = 0.5
    seed: int = 11

    def __post_init__(self) -> None:
        if not self.mix:
            raise ValueError("data.mix must name at least one corpus")
        for name, weight in self.mix.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"data.mix must weigh '{name}' by a finite number > 0, not {weight}")
        check_seed(self.seed)
        if self.split not in SPLITS:
            raise ValueError(f"data.split must be one of {', '.join(SPLITS)}, not '{self.split}'")
        if not 0 <= self.validation_overlap < 1:
            raise ValueError(f"data.validation_overlap must be at least 0 and below 1, not {self.validation_overlap}")
        if self.validation_documents < 1:
            raise ValueError(f"data.validation_documents must be at least 1, not {self.validation_documents}")


@dataclass(frozen=True)
class Model:
    """[model]: `depth` is the one dial; `overrides` sets what else `DecoderConfig` has by hand. An adapter has the
    sizes of the model that it is for, and rows of `context` tokens at most."""

    depth: int | None = None
    context: int = 512
    dropout: float = 0.0
    overrides: dict[str, Any] = field(default_factory=dict)


def decoder_sizes(recipe: Recipe, vocab_size: int) -> DecoderConfig:
    """What [model] comes to."""
    settings = recipe.section("model", Model)
    if "adapter" in recipe.tables:
        return _adapted_sizes(recipe, settings)
    if settings.depth is None:
        raise ValueError(f"{recipe.path}: [model] lacks 'depth'")
    overrides = {"dropout": settings.dropout} | recipe.sizes("model.overrides", DecoderConfig)
    with recipe.checking("model"):
        if twice := sorted({"vocab_size", "context"} & set(overrides)):
            raise ValueError(f"{twice[0]} has a key of its own; model.overrides may not hold it")
        return DecoderConfig.from_depth(settings.depth, vocab_size, settings.context, **overrides)


def _adapted_sizes(recipe: Recipe, settings: Model) -> DecoderConfig:
    """Those of the model that an adapter is for."""
    with recipe.checking("adapter"):
        if not recipe.run.init_from:
            raise ValueError("an adapter is for a model that there is: name it in run.init_from")
        if settings != Model(context=settings.context):
            raise ValueError("the sizes are those of run.init_from: [model] may set the context, and nothing else")
    start = Start(recipe, "decoder")
    with recipe.checking("run", "init_from"):
        sizes = DecoderConfig.from_dict(start.config["decoder"])
        architecture_for(sizes)  # whose names the adapter is kept by
    is_fixed = sizes.position == "learned"
    return replace(sizes, dropout=0.0, context=sizes.context if is_fixed else min(settings.context, sizes.context))


def _fresh_adapter(recipe: Recipe, decoder: Decoder) -> Adapter:
    """An adapter on a decoder that stays as it is."""
    with recipe.checking("adapter"):
        adapter = Adapter.fresh(decoder.requires_grad_(False).eval(), recipe.section("adapter", LoraSettings))
    adapter.attach(decoder)
    return adapter


class NextTokenTask:
    unit = "tokens"
    is_splittable = True

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data = recipe.section("data", Data)
        sizes = decoder_sizes(recipe, self.data.vocab_size)
        start = Start.of(recipe, "decoder")
        if start:
            is_narrower = sizes.hidden < start.config["decoder"].get("hidden", 0)
            free = (*FREE, "hidden") if is_narrower else FREE
            start.check("decoder", sizes.to_dict(), free, lambda found: DecoderConfig.from_dict(found).to_dict())
        troubles = Troubles()
        with recipe.checking("data", "mix"):
            mix = read_mix(
                list(self.data.mix),
                self.data.seed,
                self.data.validation_share,
                troubles,
                holds_out_end=self.data.split == "end",
            )
        self.repeated = sum(sides.repeated for sides in mix.values())
        repeats = f"{self.repeated} documents repeat others and are left out" if self.repeated else ""
        self.remarks: tuple[str, ...] = tuple(filter(None, (str(troubles), repeats)))
        self.held_out = {name: sides.held_out for name, sides in mix.items()}
        texts = {name: sides.train for name, sides in mix.items()}
        with recipe.checking("data", "vocab_size"):
            self.tokenizer = start.tokenizer() if start else vocabulary(texts, self.data.mix, self.data.vocab_size)
        rows = [packed(self.tokenizer, shelf, sizes.context, self.data.seed) for shelf in texts.values()]
        mixture = Mixture(rows, list(self.data.mix.values()))
        self.source: MixtureSource = MixtureSource(mixture, recipe.run.batch, recipe.run.seed)
        self.device, self.compute = choose()
        torch.manual_seed(recipe.run.seed)
        self.decoder = Decoder(sizes).to(self.device)
        if start and is_narrower:
            start.fill_narrower(self.decoder, sizes.hidden)
        elif start:
            start.fill(self.decoder)
        self.chat_template = read_template(start.directory) if start else None
        self.adapter = _fresh_adapter(recipe, self.decoder).to(self.device) if "adapter" in recipe.tables else None
        self.model: nn.Module = self.decoder if self.adapter is None else self.adapter

    @property
    def networks(self) -> list[nn.Module]:
        return [self.decoder]

    def count(self, batch: Batch) -> int:
        return count_targets(batch)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, figures = next_token_loss(self.decoder, batch)
        return loss, {name: figure for name, figure in figures.items() if name not in ("loss", "tokens")}

    def validate(self) -> dict[str, float]:
        """Bits a byte of whole held-out documents of each corpus, in float32."""
        figures: dict[str, float] = {}
        label = labels(list(self.data.mix))
        for name, texts in self.held_out.items():
            if texts:
                context, most = self.decoder.config.context, self.data.validation_documents
                score = bits_per_byte(
                    self.decoder, self.tokenizer, texts, context, most, overlap=self.data.validation_overlap
                )
                figures |= score.figures(f"bits_per_byte/{label[name]}")
        return figures

    def rank(self, figures: dict[str, float]) -> float:
        return next(iter(figures.values()), 0.0)

    def sample(self, directory: Path, step: int) -> None:
        """A page of text: the same prompts and seeds at every time, so that pages compare."""
        pages = [_page(self.recipe.name, self.decoder, self.tokenizer, prompt) for prompt in PROMPTS]
        save_texts(directory, step, pages, PROMPTS)

    def about(self) -> About:
        config, mix = self.decoder.config, self.data.mix
        label = labels(list(mix))
        left_out = f" {self.repeated} that repeat others were left out." if self.repeated else ""
        shares = ", ".join(f"{label[name]} {weight / sum(mix.values()):.0%}" for name, weight in mix.items())
        made = (
            f"A language model: a decoder-only transformer of {config.num_layers} layers, width {config.width}, "
            f"{self._experts()}"
            f"and a byte-level vocabulary of {self.tokenizer.size:,} tokens. It writes on from a beginning, one token "
            "after the other. The weights are kept as bfloat16."
        )
        if self.adapter is not None:
            made = (
                f"An adapter (LoRA of rank {self.adapter.settings.rank}, in PEFT's format) for a model of "
                f"{config.num_layers} layers, width {config.width}, and {self.tokenizer.size:,} tokens, which it is "
                "used with: `diptych text --model MODEL --adapter HERE`."
            )
        return About(
            made=made,
            example=f"rows of {config.context} tokens",
            data=f"Shares of the tokens read: {shares}. Corpora and plain text were brought to one written style, and "
            f"documents were divided into training and validation whole.{left_out}",
            sources=tuple(mix),
            figures={
                "bits_per_byte/": f"bits for a byte of held-out documents, at most {self.data.validation_documents}; "
                "lower is better"
            },
            limits=(
                "It continues texts like those above, in their language and manner. It has no facts, follows no "
                "instructions and holds no conversation; what it says happened did not.",
                f"It is small and sees at most {config.context} tokens at once: over a page it loses the thread, and "
                "names and things change.",
                "Nothing filters what it writes. What is wrong or unkind in its sources, some of them perhaps a "
                "century old, can come back.",
            ),
        )

    def _experts(self) -> str:
        experts = self.decoder.config.experts
        if not experts:
            return ""
        return (
            f"{experts.num_experts} experts in a layer of which a token passes through {experts.top_k} "
            f"({active_parameters(self.decoder):,} parameters in all), "
        )

    def save(self, directory: Path, card: str) -> None:
        if self.recipe.run.init_from:
            card += earlier_stages(self.recipe.run.init_from)
        if self.adapter is not None:
            write_adapter(self.adapter, self.decoder.config, directory, base=self.recipe.run.init_from, card=card)
            return
        model = TextModel(self.recipe.name, self.decoder, self.tokenizer, chat_template=self.chat_template)
        model.save(directory, card, dtype=torch.bfloat16)


def _page(name: str, decoder: Decoder, tokenizer: Tokenizer, prompt: str) -> str:
    model = TextModel(name, decoder, tokenizer)
    return prompt + model.generate(prompt, max_tokens=150, temperature=0.7, seed=1).result().text


def build(recipe: Recipe) -> NextTokenTask:
    return NextTokenTask(recipe)


def filled_in(recipe: Recipe) -> dict[str, Any]:
    """[model.overrides] with everything that the recipe leaves to the dial and to the decoder."""
    if "adapter" in recipe.tables:
        return {}
    sizes = decoder_sizes(recipe, recipe.section("data", Data).vocab_size).to_dict()
    return {
        "overrides": {key: value for key, value in sizes.items() if key not in ("vocab_size", "context", "dropout")}
    }


@cache
def _stand_in(vocab_size: int) -> Tokenizer:
    """A tokenizer of that size that was learned from nothing: bytes, and names for the rest."""
    names = [BEGIN, END, *(f"<{number}>" for number in range(vocab_size - SMALLEST_VOCABULARY))]
    return Tokenizer.train((), vocab_size, names)


WINDOWS = 4  # contexts in a held-out document, as a plan assumes where it does not read them
BYTES = 4  # of a token


def _contexts(data: Data, context: int) -> list[float] | None:
    """How many contexts are read in scoring each document of a validation; None where the corpora are not shelved, for
    a plan neither waits for data nor needs them."""
    ends = data.split == "end"
    if not all(is_shelved(name, data.seed, data.validation_share, holds_out_end=ends) for name in data.mix):
        return None
    mix = read_mix(list(data.mix), data.seed, data.validation_share, Troubles(), holds_out_end=ends)
    new = 1 - data.validation_overlap  # share of a window that the one before it has not read
    chosen = [text for sides in mix.values() for text in islice(sides.held_out, data.validation_documents)]
    lengths = [len(text.encode()) / BYTES / context for text in chosen]
    return [length if length <= 1 else 1 + math.ceil((length - 1) / new) for length in lengths]


def outline(recipe: Recipe) -> Outline:
    data = recipe.section("data", Data)
    sizes = decoder_sizes(recipe, data.vocab_size)

    def make() -> nn.Module:
        return _fresh_adapter(recipe, Decoder(sizes)) if "adapter" in recipe.tables else Decoder(sizes)

    def decoder(model: Any) -> Any:
        return model.network if isinstance(model, Adapter) else model

    def batch(rows: int) -> Batch:
        tokens = torch.randint(sizes.vocab_size, (rows, sizes.context))
        segments = torch.ones(rows, sizes.context, dtype=torch.int64)
        positions = torch.arange(sizes.context).expand(rows, -1).contiguous()
        return Batch(tokens, tokens.clone(), segments, positions)

    contexts, remarks = _contexts(data, sizes.context), tuple[str, ...]()
    if contexts is None:
        documents = data.validation_documents * len(data.mix)
        contexts = [float(WINDOWS)] * documents
        remarks = (f"a validation reads {documents} documents of about {WINDOWS} contexts",)
    longest = max(contexts, default=1.0) if data.split == "documents" else TOGETHER
    rows = max(1, min(int(longest), TOGETHER // sizes.context))

    def validate(model: Any) -> None:
        F.log_softmax(decoder(model)(beside(decoder(model), batch(rows).tokens)), dim=-1)

    return Outline(
        make=make,
        networks=lambda model: [decoder(model)],
        batch=batch,
        loss=lambda model, batch: next_token_loss(decoder(model), batch)[0],
        unit=NextTokenTask.unit,
        units=sizes.context,
        validation=Chore(validate, pieces=sum(contexts) / rows),
        sampling=Chore(
            lambda model: _page("", decoder(model), _stand_in(sizes.vocab_size), PROMPTS[0]), pieces=len(PROMPTS)
        ),
        tensor=sizes.num_kv_heads,
        stream=sizes.context * sizes.width,
        remarks=remarks,
    )
