"""A decoder out of the tensors of a checkpoint, in no more memory than it needs.

It is built without weights; tensors that are mapped from a file become its weights as they are, and only what has to be
another dtype, lie elsewhere or take fewer bits is copied, a matrix at a time.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from diptych.core import weights
from diptych.core.quantised import Int8Linear, QuantisedEmbedding, quantise
from diptych.text.decoder import Decoder, DecoderConfig


def assemble(
    config: DecoderConfig,
    tensors: Iterable[tuple[str, Tensor]],
    source: str | Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    bits: int | None = None,
) -> Decoder:
    """A decoder ready to write.

    Args:
        source: what a message calls the tensors.
        bits: 8 or 4 of each number of the matrices are kept (see `core.quantised`); None keeps all of `dtype`.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    with weights.outline():
        decoder = Decoder(config)
    weights.adopt(decoder, tensors, source)
    if bits is not None:
        _quantise(decoder, bits, dtype, device)
    return decoder.to(device=device, dtype=dtype).eval()


def _quantise(decoder: Decoder, bits: int, dtype: torch.dtype, device: torch.device | str) -> None:
    """The embedding stays in 8 bits: its rows are read one by one, and as the head it decides between close tokens."""
    matrix = Int8Linear(decoder.embedding.weight.detach().to(device), None, dtype)
    decoder.embedding = QuantisedEmbedding(matrix)  # type: ignore[assignment]
    if decoder.head is None:
        decoder.head = matrix
    quantise(decoder, bits, dtype, device)
