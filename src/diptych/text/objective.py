"""What training the decoder minimises, and what it is judged by: how well each next token was foreseen."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core.balance import router_losses
from diptych.core.estimate import Estimate, ratio
from diptych.core.experts import experts_of
from diptych.core.likelihood import IGNORED
from diptych.core.tokenizer import Tokenizer
from diptych.text.decoder import Decoder

TOGETHER = 2048  # tokens that are scored at once: more are no faster, and their logits fill the memory


class TokenBatch(Protocol):
    """Four int64 tensors (B, T), as `data.packing.Batch`: targets are -100 where there is none, segments number the
    documents of a row, and are (1, 1) where every row is one document."""

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


def next_token_loss(decoder: torch.nn.Module, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean of -log p(target) over real targets, in nats, float32.

    A batch split in parts keeps its gradient when each part's loss is weighted by its `count_targets` over the sum.
    Where the decoder has experts and trains, the losses on its routers are added; `router_losses` says what of this
    holds for them.

    Returns:
        The loss, and its terms for the log; "loss" is the part of the next token alone.
    """
    is_alone = batch.segments.numel() == 1  # one document a row: the triangle needs no mask
    mask = None if is_alone else document_mask(batch.segments)
    total = decoder(batch.tokens, positions=batch.positions, mask=mask, targets=batch.targets)
    is_real = batch.targets != IGNORED
    count = is_real.sum()
    loss = total / count.clamp(min=1)
    figures = {"loss": loss.detach(), "tokens": count}
    if decoder.training and (layers := experts_of(decoder)):
        added, more = router_losses(layers, is_real.flatten())
        loss, figures = loss + added, figures | more
    return loss, figures


@torch.no_grad()
def token_log_probabilities(decoder: Decoder, tokens: Sequence[int], context: int, *, overlap: float = 0.5) -> Tensor:
    """log p(token | those before it) for each token but the first: (len(tokens) - 1,), float32, on the CPU.

    Dropout is off. Past `context` tokens, windows have `overlap` of a context in common, so that every token sees at
    least so much before it.

    Raises:
        ValueError: an overlap below 0, or of 1 and more.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be at least 0 and below 1, not {overlap}")
    device = next(decoder.parameters()).device
    ids = torch.tensor(tokens, dtype=torch.int64, device=device)
    known = min(int(overlap * context), context - 1)  # targets of a window that the one before it has scored
    was_training = decoder.training
    decoder.eval()
    scores: list[Tensor] = []
    done = 0  # targets that are scored
    if len(ids) > context:
        windows = ids.unfold(0, context + 1, context - known)
        for some in windows.split(max(1, TOGETHER // context)):
            found = _scores(decoder, some)
            scores += [found[0, : 0 if done else known], found[:, known:].flatten()]  # all of a document's first window
            done = sum(map(len, scores))
    if done < len(ids) - 1:  # the rest, with as much before it
        start = max(0, done - known)
        scores.append(_scores(decoder, ids[None, start:])[0, done - start :])
    decoder.train(was_training)
    return torch.cat(scores).cpu() if scores else torch.empty(0)


def _scores(decoder: Decoder, windows: Tensor) -> Tensor:
    """log p of each token of (N, T + 1) but the first: (N, T)."""
    log_p = F.log_softmax(decoder(windows[:, :-1]), dim=-1)
    return log_p.gather(-1, windows[:, 1:, None])[..., 0]


def bits_per_byte(
    decoder: Decoder,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    context: int,
    max_documents: int | None = None,
    *,
    overlap: float = 0.5,
) -> Estimate:
    """Bits that the model needs for whole documents, their ends included, over the documents' UTF-8 bytes.

    Comparable across tokenizers. The interval is over documents, `count` their number; `overlap` as in
    `token_log_probabilities`.
    """
    chosen = [text for text in documents if text][:max_documents]
    if not chosen:
        raise ValueError("there is no document to score")
    tokens = (tokenizer.bordered(tokenizer.encode(text)) for text in chosen)
    scores = (token_log_probabilities(decoder, ids, context, overlap=overlap) for ids in tokens)
    bits = [-float(score.double().sum()) / math.log(2) for score in scores]
    return ratio(bits, [len(text.encode()) for text in chosen])
