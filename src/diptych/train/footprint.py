"""The footprint of a training step: what it keeps, computes and moves, found by going through it on fake tensors.

Fake tensors have shapes and no numbers, so a step of a model of any size takes a second and no memory. Every storage
is noted when it comes and when it goes: the peak is the sum that was largest, exact to the byte, and each byte is
known by the part of the step that made it. Real tensors leave the same footprint, and those of a small step leave it
in less time than torch takes to import what fake ones need (`is_small`).
"""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_iter

from diptych.core.experts import active_parameters
from diptych.train.averages import LENGTHS
from diptych.train.meter import Watch, flops_of
from diptych.train.optimizers import gradient_square, make_optimizers, move
from diptych.train.outline import Outline, drawing_nothing, most_operations, numbers_of
from diptych.train.ranks import ALONE, blocks_of
from diptych.train.recipe import OptimizerSettings
from diptych.train.step import prepare

# What a byte is kept for, in the order in which a step makes it; the first stay from step to step.
STAYING = ("weights", "optimizer", "averages")
KINDS = (*STAYING, "batch", "activations", "gradients", "update", "validation")


class Work(NamedTuple):
    """One operation: floating-point operations of products, and bytes read and written."""

    flops: float
    moved: float


@dataclass(frozen=True)
class Footprint:
    """Args:
    rows: of the part of a step that was gone through.
    parameters: numbers in the model; of which a token passes through `active`, where there are experts.
    kept: bytes that stay between steps, by kind (weights, optimizer, averages), and of all gradients.
    step, update, validation: bytes at the peak of each, by kind.
    part: the operations of forward and backward of one part; of the forward alone they are the first `forward`.
    optimizing: the operations of the update.
    validating: floating-point operations of a validation.
    block: bytes of the weights of the largest block.
    checkpoint: bytes of a checkpoint.
    saving: bytes that pass while one process saves the run: safetensors takes numbers where they are, unless they lie
        in another order than in a file; the finished model, in bfloat16, is a copy, and the weights wait beside their
        averages meanwhile.
    """

    rows: int
    parameters: int
    active: int
    kept: dict[str, int]
    step: dict[str, int]
    update: dict[str, int]
    validation: dict[str, int]
    part: tuple[Work, ...]
    forward: int
    optimizing: tuple[Work, ...]
    validating: float
    block: int
    checkpoint: int
    saving: int

    @property
    def peak(self) -> dict[str, int]:
        """Bytes at the moment at which the most are kept, by kind."""
        return max(self.step, self.update, self.validation, key=lambda kinds: sum(kinds.values()))

    @property
    def passing(self) -> int:
        """Bytes at the peak that are gone between steps."""
        return sum(self.peak.values()) - self.staying

    @property
    def stepping(self) -> int:
        """The same of a step alone."""
        return max(sum(self.step.values()), sum(self.update.values())) - self.staying

    @property
    def staying(self) -> int:
        return sum(self.kept[kind] for kind in STAYING)

    @property
    def flops(self) -> float:
        """Of forward and backward of one part."""
        return sum(work.flops for work in self.part)


class Ledger(Watch):
    """Notes every storage that comes and goes, and every operation, while it is switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = KINDS[0]
        self.live: Counter[str] = Counter()
        self.total = self.most = 0
        self.peak: dict[str, int] = {}
        self.work: list[Work] = []
        self._known: set[int] = set()

    def begin(self, kind: str) -> None:
        """From here on, storages are made for `kind`."""
        self.kind = kind

    def measure(self) -> None:
        """Forget the peak and the operations so far."""
        self.most, self.peak, self.work = self.total, dict(self.live), []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:  # .item(): a fake tensor has no number to tell
            return 1.0 if args[0].is_floating_point() else 1
        result = func(*args, **kwargs)
        made = [tensor for tensor in tree_iter(result) if isinstance(tensor, Tensor)]
        for tensor in made:
            self._note(tensor.untyped_storage())
        if made and not func.is_view and not func.overloadpacket.__name__.startswith("empty"):
            read = [tensor for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)]
            self.work.append(
                Work(flops_of(func, args, kwargs, result), sum(_bytes(tensor) for tensor in [*read, *made]))
            )
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live[self.kind] += size
        self.total += size
        if self.total > self.most:
            self.most, self.peak = self.total, dict(self.live)
        weakref.finalize(storage, self._gone, key, size, self.kind)

    def _gone(self, key: int, size: int, kind: str) -> None:
        self._known.discard(key)
        self.live[kind] -= size
        self.total -= size


def is_small(outline: Outline, rows: int) -> bool:
    """Whether a step of so many rows takes real tensors some tenths of a second: 0.1 TFLOP, were each of the model's
    numbers met by each of the batch's."""
    return numbers_of(outline) * rows <= 2**16 and most_operations(outline) * rows <= 1e11


def footprint(
    outline: Outline,
    rows: int,
    optimizer: OptimizerSettings,
    compute: torch.dtype,
    *,
    parts: int = 1,
    average: float = 0.0,
    snapshots: bool = False,
    recompute: bool = False,
    is_real: bool = False,
) -> Footprint:
    """Go through a step of `parts` parts of `rows` rows each.

    Args:
        compute: as in `Stepper`: the dtype of autocast where it is lower than float32.
        average, snapshots: whether a running average and the two power averages are kept, as in [run].
        recompute: activation checkpointing.
        is_real: on real tensors, on the CPU, instead of fake ones; no random number is used up.
    """
    is_lower = compute in (torch.bfloat16, torch.float16)
    ledger = Ledger()
    with drawing_nothing() if is_real else FakeTensorMode(), ledger:
        model = outline.make()
        ledger.begin("optimizer")
        optimizers = make_optimizers(model, optimizer, compute)
        ledger.begin("averages")
        copies = [
            {name: value.clone() for name, value in model.state_dict().items()}
            for _ in range(bool(average) + len(LENGTHS) * snapshots)
        ]
        kept = {kind: ledger.live[kind] for kind in STAYING}
        prepare(outline.networks(model), recompute=recompute, compile=False, blocks=blocks_of)
        model.train()
        ledger.begin("batch")
        batches = [outline.batch(rows) for _ in range(parts)]
        ledger.measure()
        for batch in batches:
            ledger.work = []
            ledger.begin("activations")
            with _autocast(compute, is_lower):
                loss = outline.loss(model, batch)
            forward = len(ledger.work)
            ledger.begin("gradients")
            loss.backward()
            del loss
        part, step = tuple(ledger.work), ledger.peak
        kept["gradients"] = sum(_bytes(p.grad) for p in model.parameters() if p.grad is not None)
        ledger.begin("update")
        ledger.measure()
        gradient_square(model.parameters(), ALONE)
        move(model.parameters(), optimizers, optimizer.learning_rate, 0.5 if optimizer.clip else 1.0)
        model.zero_grad(set_to_none=True)
        optimizing, update = tuple(ledger.work), ledger.peak
        del batches, batch
        ledger.begin("validation")
        ledger.measure()
        with _swapped(model, bool(average)), torch.no_grad():  # in float32, as a run validates
            outline.validation.piece(model.eval())
        validating, validation = sum(work.flops for work in ledger.work), ledger.peak
        blocks = [block for network in outline.networks(model) for block in blocks_of(network)] or [model]
        staying = [kept[kind] for kind in STAYING]
        numbers = sum(parameter.numel() for parameter in model.parameters())
        turned = sum(p.numel() for p in model.parameters() if not p.is_contiguous()) / numbers
        finished = round(2 * numbers * (1 + turned)) + (kept["weights"] if average else 0)
        result = Footprint(
            rows=rows,
            parameters=numbers,
            active=active_parameters(model),
            kept=kept,
            step=_positive(step),
            update=_positive(update),
            validation=_positive(validation),
            part=part,
            forward=forward,
            optimizing=optimizing,
            validating=validating * outline.validation.pieces,
            block=max(sum(_bytes(parameter) for parameter in block.parameters()) for block in blocks),
            checkpoint=sum(staying),
            saving=max(round(turned * max(staying)), finished),
        )
        del model, optimizers, copies
    return result


@contextmanager
def _swapped(model: nn.Module, is_averaged: bool) -> Iterator[None]:
    """While the averaged weights are in the model, its own are kept beside them."""
    before = {name: value.clone() for name, value in model.state_dict().items()} if is_averaged else {}
    yield
    del before


def _autocast(compute: torch.dtype, is_lower: bool) -> Any:
    return torch.autocast("cpu", compute) if is_lower else nullcontext()


def _positive(kinds: dict[str, int]) -> dict[str, int]:
    return {kind: kinds[kind] for kind in KINDS if kinds.get(kind, 0) > 0}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
