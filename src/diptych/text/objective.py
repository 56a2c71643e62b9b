"""What training the decoder minimises, and what it is judged by: how well each next token was foreseen."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core.estimate import Estimate, ratio
from diptych.core.tokenizer import Tokenizer
from diptych.text.decoder import Decoder

IGNORED = -100


class TokenBatch(Protocol):
    """Four int64 tensors (B, T), as `data.packing.Batch`: targets are -100 where there is none, segments number the
    documents of a row."""

    @property
    def tokens(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def segments(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...


def document_mask(segments: Tensor) -> Tensor:
    """segments (B, T) -> bool (B, 1, T, T): a token sees itself and the earlier tokens of its own document."""
    is_same = segments[:, :, None] == segments[:, None, :]
    return is_same.tril()[:, None]


def count_targets(batch: TokenBatch) -> int:
    """Positions with a target: what `next_token_loss` is the mean over, and a part's weight in a larger batch."""
    return int((batch.targets != IGNORED).sum())


def next_token_loss(decoder: torch.nn.Module, batch: TokenBatch) -> tuple[Tensor, dict[str, float]]:
    """Mean of -log p(target) over real targets, in nats, float32.

    A batch split in parts keeps its gradient when each part's loss is weighted by its `count_targets` over the sum.
    """
    logits = decoder(batch.tokens, positions=batch.positions, mask=document_mask(batch.segments))
    targets = batch.targets.flatten()
    total = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum")
    count = (targets != IGNORED).sum()
    loss = total / count.clamp(min=1)
    return loss, {"loss": float(loss.detach()), "tokens": float(count)}


@torch.no_grad()
def token_log_probabilities(decoder: Decoder, tokens: Sequence[int], context: int) -> Tensor:
    """log p(token | those before it) for each token but the first: (len(tokens) - 1,), float32, on the CPU.

    Dropout is off. Past `context` tokens, windows overlap by half, so that every token sees at least half a context
    before it.
    """
    device = next(decoder.parameters()).device
    ids = torch.tensor(tokens, dtype=torch.int64, device=device)
    scores: list[Tensor] = []
    scored = 1  # tokens that need no score any more
    start = 0
    was_training = decoder.training
    decoder.eval()
    while scored < len(ids):
        window = ids[start : start + context + 1]
        logits = decoder(window[None, :-1])[0]
        log_p = F.log_softmax(logits, dim=-1).gather(-1, window[1:, None])[:, 0]
        scores.append(log_p[scored - start - 1 :].cpu())
        scored = start + len(window)
        start = scored - 1 - context // 2
    decoder.train(was_training)
    return torch.cat(scores) if scores else torch.empty(0)


def bits_per_byte(
    decoder: Decoder, tokenizer: Tokenizer, documents: Sequence[str], context: int, max_documents: int | None = None
) -> Estimate:
    """Bits that the model needs for whole documents, their ends included, over the documents' UTF-8 bytes.

    Comparable across tokenizers. The interval is over documents, `count` their number.
    """
    chosen = [text for text in documents if text][:max_documents]
    if not chosen:
        raise ValueError("there is no document to score")
    tokens = ([tokenizer.begin, *tokenizer.encode(text), tokenizer.end] for text in chosen)
    scores = (token_log_probabilities(decoder, ids, context) for ids in tokens)  # side by side is no faster on a CPU
    bits = [-float(score.double().sum()) / math.log(2) for score in scores]
    return ratio(bits, [len(text.encode()) for text in chosen])
