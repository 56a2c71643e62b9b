"""Training the decoder to predict the next token of a mixture of corpora."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.core.precision import choose
from diptych.core.randomness import check_seed
from diptych.core.tokenizer import Tokenizer
from diptych.data import corpora
from diptych.data.packing import Batch, Mixture, pack, with_borders
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.model import TextModel
from diptych.text.objective import bits_per_byte, count_targets, next_token_loss
from diptych.train.card import About
from diptych.train.recipe import Recipe
from diptych.train.start import Start

PROMPTS = ("Once upon a time", "One day, a little", "Tom and Lily")
FREE = ("dropout", "context", "rope_theta")  # settings of a decoder that its weights do not depend on


@dataclass(frozen=True)
class Data:
    """[data]: `mix` weighs corpora against each other; the first one named is the one whose validation is watched.

    Args:
        mix: corpus name or path -> weight.
        vocab_size: tokens of the vocabulary, trained on the same mixture.
        validation_documents: scored at each validation, of each corpus.
        validation_share: of the documents of corpora that hold nothing out themselves.
        seed: of the split and of the packing.
    """

    mix: dict[str, float]
    vocab_size: int = 4096
    validation_documents: int = 100
    validation_share: float = 0.02
    seed: int = 11

    def __post_init__(self) -> None:
        if not self.mix:
            raise ValueError("data.mix must name at least one corpus")
        for name, weight in self.mix.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"data.mix must weigh '{name}' by a finite number > 0, not {weight}")
        check_seed(self.seed)
        if self.validation_documents < 1:
            raise ValueError(f"data.validation_documents must be at least 1, not {self.validation_documents}")


@dataclass(frozen=True)
class Model:
    """[model]: `depth` is the one dial; `overrides` sets what else `DecoderConfig` has by hand."""

    depth: int
    context: int = 512
    dropout: float = 0.0
    overrides: dict[str, Any] = field(default_factory=dict)


def in_proportion(texts: dict[str, list[str]], weights: dict[str, float]) -> Iterator[str]:
    """Documents of each corpus up to its weight's share of characters, so that the vocabulary suits what is read."""
    per_weight = min(
        sum(map(len, texts[name])) / weight for name, weight in weights.items() if weight == max(weights.values())
    )
    for name, weight in weights.items():
        left = per_weight * weight
        for text in texts[name]:
            if left <= 0:
                break
            left -= len(text)
            yield text


class NextTokenTask:
    unit = "tokens"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data = recipe.section("data", Data)
        settings = recipe.section("model", Model)
        overrides = {"dropout": settings.dropout} | recipe.sizes("model.overrides", DecoderConfig)
        with recipe.checking("model"):
            if twice := sorted({"vocab_size", "context"} & set(overrides)):
                raise ValueError(f"{twice[0]} has a key of its own; model.overrides may not hold it")
            sizes = DecoderConfig.from_depth(settings.depth, self.data.vocab_size, settings.context, **overrides)
        start = Start.of(recipe, "decoder")
        if start:
            is_narrower = sizes.hidden < start.config["decoder"].get("hidden", 0)
            start.check("decoder", sizes.to_dict(), (*FREE, "hidden") if is_narrower else FREE)
        parts = {
            name: corpora.train_and_validation(name, self.data.seed, self.data.validation_share)
            for name in self.data.mix
        }
        self.held_out = {name: part[1] for name, part in parts.items()}
        texts = in_proportion({name: part[0] for name, part in parts.items()}, self.data.mix)
        with recipe.checking("data", "vocab_size"):
            self.tokenizer = start.tokenizer() if start else Tokenizer.train(texts, self.data.vocab_size)
        packed = [
            pack(with_borders(self.tokenizer, part[0]), settings.context, self.data.seed) for part in parts.values()
        ]
        self.mixture = Mixture(packed, list(self.data.mix.values()))
        self.device, self.compute = choose()
        torch.manual_seed(recipe.run.seed)
        self.model: Decoder = Decoder(sizes).to(self.device)
        if start and is_narrower:
            start.fill_narrower(self.model, sizes.hidden)
        elif start:
            start.fill(self.model)

    def batch(self, step: int) -> Batch:
        batch = self.mixture.batch(step, self.recipe.run.batch, self.recipe.run.seed)
        return Batch(*(part.to(self.device) for part in batch))

    def count(self, batch: Batch) -> int:
        return count_targets(batch)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        loss, _ = next_token_loss(self.model, batch)
        return loss, {}

    def validate(self) -> dict[str, float]:
        """Bits a byte of whole held-out documents of each corpus, in float32."""
        figures: dict[str, float] = {}
        for name, texts in self.held_out.items():
            if texts:
                context, most = self.model.config.context, self.data.validation_documents
                score = bits_per_byte(self.model, self.tokenizer, texts, context, most)
                figures |= score.figures(f"bits_per_byte/{Path(name).stem}")
        return figures

    def sample(self, directory: Path, step: int) -> None:
        """A page of text: the same prompts and seeds at every time, so that pages compare."""
        model = TextModel(self.recipe.name, self.model, self.tokenizer)
        pages = []
        for prompt in PROMPTS:
            told = model.generate(prompt, max_tokens=150, temperature=0.7, seed=1).result().text
            pages.append(f"{prompt}{told}")
        (directory / f"step-{step:08d}.txt").write_text("\n\n---\n\n".join(pages) + "\n")

    def about(self) -> About:
        config, mix = self.model.config, self.data.mix
        shares = ", ".join(f"{Path(name).stem} {weight / sum(mix.values()):.0%}" for name, weight in mix.items())
        return About(
            made=f"A language model: a decoder-only transformer of {config.num_layers} layers, width {config.width}, "
            f"and a byte-level vocabulary of {self.tokenizer.size:,} tokens. It writes on from a beginning, one token "
            "after the other. The weights are kept as bfloat16.",
            example=f"rows of {config.context} tokens",
            data=f"Shares of the tokens read: {shares}. Documents were cleaned to one written style and divided into "
            "training and validation whole.",
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

    def save(self, directory: Path, card: str) -> None:
        TextModel(self.recipe.name, self.model, self.tokenizer).save(directory, card, dtype=torch.bfloat16)


def build(recipe: Recipe) -> NextTokenTask:
    return NextTokenTask(recipe)
