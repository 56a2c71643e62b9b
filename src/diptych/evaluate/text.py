"""How well a text model foresees text that it did not learn from: bits per byte over whole documents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.core.estimate import Estimate
from diptych.data import corpora
from diptych.text.model import TextModel
from diptych.text.objective import bits_per_byte

SPLIT_SEED = 11  # the seed of `[data]` in the recipes here


@dataclass(frozen=True)
class TextReport:
    """Args: held_out: whether the documents are the part of a corpus that the recipes keep out of training."""

    model: str
    on: str
    held_out: bool
    score: Estimate
    num_available: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "on": self.on,
            "held_out": self.held_out,
            "bits_per_byte": self.score.value,
            "interval": self.score.interval and list(self.score.interval),
            "documents": self.score.count,
            "documents_available": self.num_available,
        }


def evaluation_documents(on: str) -> tuple[list[str], bool]:
    """The documents to score, and whether they are held out: a corpus's validation side, or all of a `.txt` file.

    Raises:
        ValueError: an unknown corpus, a file that is missing or no text, or nothing in it to score.
    """
    if on in corpora.CORPORA:
        return corpora.train_and_validation(on, SPLIT_SEED)[1], True
    return corpora.documents(on), False


def evaluate_text(model: TextModel, on: str, *, max_documents: int | None = 200) -> TextReport:
    """Bits a byte of the first `max_documents` documents of a corpus's held-out side or of a file.

    Raises:
        ValueError: as `evaluation_documents`, or `max_documents` below 1.
    """
    if max_documents is not None and max_documents < 1:
        raise ValueError(f"the number of documents must be at least 1, not {max_documents}")
    documents, held_out = evaluation_documents(on)
    score = bits_per_byte(model.decoder, model.tokenizer, documents, model.config.context, max_documents)
    return TextReport(model.name, on if on in corpora.CORPORA else Path(on).name, held_out, score, len(documents))
