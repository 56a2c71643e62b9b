"""One side of a comparison of `training.py`, in a process of its own: prints units a second as its last line.

Peers are run as their users run them: nanoGPT with the steps of its train.py, transformers with its `Trainer`,
diffusers with the loop of its `train_text_to_image` example, without the encoders. It is imported by the interpreters
of other environments, so nothing of ours is imported at the top.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WARM, STEPS = (20, 200) if DEVICE == "cuda" else (3, 20)
ROWS, CONTEXT, VOCABULARY = 16, 256, 4096  # of the language models
PICTURES, CHANNELS, SIDE, WORDS, WORD_WIDTH = 32, 8, 16, 24, 256  # of the U-Nets: brush's latents and captions
WIDTHS, BLOCKS = (128, 256), 1


def rate(step: Callable[[], object], units: float) -> float:
    """Units a second, by the median of steps."""
    times = []
    for _ in range(WARM + STEPS):
        started = time.perf_counter()
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return units / statistics.median(times[WARM:])


def nanogpt(folder: str, dtype: str, compiles: str = "") -> float:
    """As its train.py has it; on a GPU float32 products go through TF32 there."""
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    sizes = {"block_size": CONTEXT, "vocab_size": VOCABULARY, "n_layer": 6, "n_head": 6, "n_embd": 384}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = GPT(GPTConfig(**sizes, dropout=0.0, bias=False)).to(DEVICE)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), DEVICE)
    tokens, targets = torch.randint(VOCABULARY, (2, ROWS, CONTEXT), device=DEVICE)
    network = torch.compile(model) if compiles else model

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
            _, loss = network(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return rate(step, ROWS * CONTEXT)


def trainer() -> float:
    from tempfile import TemporaryDirectory

    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )
    rows = torch.randint(VOCABULARY, (ROWS * (WARM + STEPS + 1), CONTEXT))
    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: object, **named: object) -> None:
            ends.append(time.perf_counter())

    with TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=ROWS,
            max_steps=WARM + STEPS + 1,
            bf16=True,
            use_cpu=DEVICE == "cpu",
            optim="adamw_torch_fused",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        data = [{"input_ids": row, "labels": row} for row in rows]
        Trainer(model=model, args=settings, train_dataset=data, callbacks=[Clock()]).train()
    return ROWS * CONTEXT * STEPS / (ends[-1] - ends[-1 - STEPS])


def counted(step: Callable[[], object]) -> float:
    """TFLOP of a step, by the same counter for both sides."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e12


def diffusers() -> float:
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DConditionModel

    accelerator = Accelerator(mixed_precision="bf16", cpu=DEVICE == "cpu")
    network = UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=BLOCKS,
        block_out_channels=WIDTHS,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WORD_WIDTH,
        attention_head_dim=tuple(width // 64 for width in WIDTHS),  # the number of heads, in spite of its name
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    network, optimizer = accelerator.prepare(network, optimizer)
    noising = DDPMScheduler()
    latents = torch.randn(PICTURES, CHANNELS, SIDE, SIDE, device=DEVICE)
    words = torch.randn(PICTURES, WORDS, WORD_WIDTH, device=DEVICE)
    network.train()

    def step() -> None:
        noise, times = torch.randn_like(latents), torch.randint(0, 1000, (PICTURES,), device=DEVICE)
        predicted = network(noising.add_noise(latents, noise, times), times, words, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return told("diffusers", network, step)


def unet() -> float:
    from typing import NamedTuple

    from diptych.core.allocator import keep_freed_memory
    from diptych.image.unet import UNet, UNetConfig
    from diptych.train.optimizers import make_optimizers
    from diptych.train.ranks import ALONE
    from diptych.train.recipe import OptimizerSettings
    from diptych.train.step import Stepper

    class Batch(NamedTuple):
        latents: torch.Tensor
        words: torch.Tensor
        noise: torch.Tensor
        share: torch.Tensor

    class Denoising:
        """A task, as far as the stepper wants one."""

        model = UNet(
            UNetConfig(
                channels=CHANNELS,
                widths=WIDTHS,
                blocks=BLOCKS,
                has_attention=(True,) * len(WIDTHS),
                context_width=WORD_WIDTH,
            )
        )

        def count(self, batch: Batch) -> int:
            return len(batch.latents)

        def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            kept = batch.share.view(-1, 1, 1, 1)
            noisy = kept.sqrt() * batch.latents + (1 - kept).sqrt() * batch.noise
            is_word = torch.ones(batch.words.shape[:2], dtype=torch.bool, device=DEVICE)
            predicted = self.model(noisy, torch.logit(batch.share), batch.words, is_word)
            return F.mse_loss(predicted.float(), batch.noise), {}

    keep_freed_memory()
    task: object = Denoising()
    network = Denoising.model.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the task does
    optimizers = make_optimizers(network, OptimizerSettings(), torch.bfloat16)
    stepper = Stepper(task, optimizers, ALONE, torch.device(DEVICE), torch.bfloat16, 1.0, 1, records=True)  # type: ignore[arg-type]
    latents, words = torch.randn(PICTURES, CHANNELS, SIDE, SIDE), torch.randn(PICTURES, WORDS, WORD_WIDTH)
    shares = torch.rand(PICTURES).clamp(0.01, 0.99)  # noise comes with a batch, from the processes that read
    batches = itertools.cycle([Batch(latents, words, torch.randn_like(latents), shares) for _ in range(8)])
    network.train()
    return told("diptych", network, lambda: stepper([next(batches)], 0, 1e-4))


def told(name: str, network: torch.nn.Module, step: Callable[[], object]) -> float:
    """Pictures a second, with what each side's network is."""
    parameters, operations = sum(p.numel() for p in network.parameters()), counted(step)
    pictures = rate(step, PICTURES)
    effort = pictures / PICTURES * operations
    print(f"{name}: {parameters / 1e6:.1f} M parameters, {operations:.3f} TFLOP a step, {effort:.3f} TFLOP/s")
    return pictures


def loop_share(recipe: str) -> float:
    """Of a run of `diptych train`: the share of the time between the ends of steps in which no loss was computed,
    nothing went backward and no optimizer moved a weight."""
    from diptych.cli import main
    from diptych.train import loop, step

    spent, marks = [0.0], []

    def timed(function: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **named: object) -> object:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent[0] += time.perf_counter() - started

        return run

    def watch(done: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **named: object) -> object:
            marks.append((time.perf_counter(), spent[0]))
            return done(*arguments, **named)

        return run

    step.Stepper._loss = timed(step.Stepper._loss)  # type: ignore[method-assign]
    torch.Tensor.backward = timed(torch.Tensor.backward)  # type: ignore[method-assign]
    torch.optim.AdamW.step = timed(torch.optim.AdamW.step)  # type: ignore[method-assign]
    loop.State.advance = watch(loop.State.advance)  # type: ignore[method-assign]
    main(["train", recipe, "--out", "run-share", "--fresh"])
    (first, before), (last, after) = marks[WARM], marks[-1]
    return 1 - (after - before) / (last - first)


if __name__ == "__main__":
    subjects = {one.__name__: one for one in (nanogpt, trainer, diffusers, unet)}
    print(subjects[sys.argv[1]](*sys.argv[2:]))
