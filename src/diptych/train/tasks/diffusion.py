"""Training the denoiser and its text encoder on latents of composed scenes."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diptych.core.files import atomic_file
from diptych.core.precision import choose
from diptych.core.randomness import generator, normal
from diptych.core.tokenizer import Tokenizer
from diptych.core.weights import load_into, read_config
from diptych.data import scenes
from diptych.data.licences import SCENES
from diptych.data.rendered import SceneData, cache_directory, render
from diptych.data.trouble import Trouble
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.encoders import EncoderConfig, TextEncoder, encode_prompts
from diptych.image.model import ImageModel
from diptych.image.objective import WEIGHTINGS, noise_prediction_loss
from diptych.image.path import Path as NoisePath
from diptych.image.path import path_named
from diptych.image.runner import ImageRequest, ImageRunner
from diptych.image.unet import UNet, UNetConfig
from diptych.train.card import About, earlier_stage
from diptych.train.outline import Outline, channels_last
from diptych.train.recipe import Recipe
from diptych.train.start import Start

CHOICE, NOISE, TIMES, WORDS, DROPPED = 1, 2, 3, 4, 5  # streams of randomness
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Data(SceneData):
    """[data]: scenes and how they become latents.

    Args:
        autoencoder: checkpoint directory of the trained autoencoder, or of a painter that has one.
        captions: of the vocabulary's training.
        vocab_size: tokens of the prompts' vocabulary.
    """

    autoencoder: str
    captions: int = 8000
    vocab_size: int = 512


@dataclass(frozen=True)
class Model:
    """[model]: the path, how noise levels are weighted against each other (`objective.WEIGHTINGS`), the share of
    captions left out (for guidance), and the sizes of the two networks. `depth` is the one dial: what it comes to is
    written into the others when the recipe is read (see `train.dial`); 0 is none."""

    depth: int = 0
    path: str = "ddpm-cosine"
    weighting: str = "simple"
    caption_dropout: float = 0.1
    unet: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"model.caption_dropout must be at least 0 and below 1, not {self.caption_dropout}")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"model.weighting must be one of {', '.join(WEIGHTINGS)}, not '{self.weighting}'")


class DiffusionBatch(NamedTuple):
    """latents and noise (B, C, h, w), times (B,), tokens and mask (B, S)."""

    latents: Tensor
    noise: Tensor
    times: Tensor
    tokens: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Captions:
    """What scenes are called, in a wording that changes from epoch to epoch."""

    truth: list[scenes.Scene]
    seed: int

    def __call__(self, index: int, epoch: int) -> str:
        draw = generator(seed=self.seed, sample=index, step=epoch, stream=WORDS)
        return scenes.random_caption(self.truth[index], draw)


@dataclass(frozen=True)
class Latents:
    """Latents in an order of its own for each epoch, with captions, noise and noise levels.

    Args:
        latents: (N, C, h, w); the first `total` are trained on.
        dropout: share of captions left out.
        end: the path's least time.
        length: the most tokens of a caption.
    """

    latents: np.ndarray
    captions: Captions
    total: int
    batch_size: int
    seed: int
    dropout: float
    end: float
    tokenizer: Tokenizer
    length: int

    def batch(self, step: int, rows: range) -> DiffusionBatch:
        seed, size, here = self.seed, self.batch_size, slice(rows.start, rows.stop)
        places = range(step * size, (step + 1) * size)[here]
        orders = {
            epoch: generator(seed=seed, step=epoch, stream=CHOICE).permutation(self.total)
            for epoch in {place // self.total for place in places}
        }
        chosen = [(int(orders[place // self.total][place % self.total]), place // self.total) for place in places]
        is_dropped = (generator(seed=seed, step=step, stream=DROPPED).random(size) < self.dropout)[here]
        prompts = ["" if drop else self.captions(*one) for one, drop in zip(chosen, is_dropped, strict=True)]
        tokens, mask = encode_prompts(self.tokenizer, prompts, self.length)
        latents = torch.from_numpy(self.latents[[index for index, _ in chosen]]).float()
        # One time in each of `size` equal parts: the loss of a step varies less.
        parts = (np.arange(size) + generator(seed=seed, step=step, stream=TIMES).random(size)) / size
        times = torch.from_numpy(self.end + (1 - self.end) * parts)[here]
        noise = normal((size, *latents.shape[1:]), seed=seed, step=step, stream=NOISE)[here]
        return DiffusionBatch(latents, noise, times, tokens, mask)

    def troubles(self) -> list[Trouble]:
        return []


class DiffusionTask:
    unit = "pictures"
    remarks = ()

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data = recipe.section("data", Data)
        settings = recipe.section("model", Model)
        self.settings = settings
        self.device, self.compute = choose()
        with recipe.checking("data", "autoencoder"):
            autoencoder = trained_autoencoder(self.data.autoencoder)
        autoencoder.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        encoder_sizes = {"vocab_size": self.data.vocab_size} | recipe.sizes("model.encoder", EncoderConfig)
        unet_sizes = {"channels": autoencoder.config.latent_channels} | recipe.sizes("model.unet", UNetConfig)
        with recipe.checking("model"):
            path_named(settings.path)
            width = EncoderConfig.from_dict(encoder_sizes).width
            unet_config = UNetConfig.from_dict({"context_width": width} | unet_sizes)
        multiple = autoencoder.config.downsampling << (len(unet_config.widths) - 1)
        if self.data.size < 1 or self.data.size % multiple:
            with recipe.checking("data", "size"):
                raise ValueError(f"data.size must be a multiple of {multiple}, not {self.data.size}")
        start = Start.of(recipe, "encoder", "unet")
        rendered = render(self.data.seed, self.data.scenes, self.data.size)
        self.truth = rendered.truth
        self.captions = Captions(self.truth, self.data.seed)
        words = [self.captions(index, 0) for index in range(min(self.data.captions, self.data.scenes))]
        with recipe.checking("data", "vocab_size"):
            tokenizer = start.tokenizer() if start else Tokenizer.train(words, self.data.vocab_size)
        encoder_config = EncoderConfig.from_dict(encoder_sizes | {"vocab_size": tokenizer.size})
        torch.manual_seed(recipe.run.seed)
        encoder, unet = TextEncoder(encoder_config), UNet(unet_config)
        if start:
            start.check("encoder", encoder_config.to_dict(), free=("length",))
            start.check("unet", unet_config.to_dict())
            start.fill(encoder, "encoder.")
            start.fill(unet, "unet.")
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.ModuleDict = nn.ModuleDict({"encoder": encoder, "unet": unet}).to(self.device)
        self.painter = ImageModel(
            recipe.name,
            encoder=encoder,
            unet=unet,
            autoencoder=autoencoder,
            tokenizer=tokenizer,
            path=settings.path,
            size=self.data.size,
        )
        self.latents = latents_of(autoencoder, rendered.pictures, rendered.key, self.compute)

    @property
    def networks(self) -> list[nn.Module]:
        return [self.painter.encoder, self.painter.unet]

    @property
    def source(self) -> "Latents":
        run, path = self.recipe.run, self.painter.path
        return Latents(
            self.latents,
            self.captions,
            self.data.scenes - self.data.held_out,
            run.batch,
            run.seed,
            self.settings.caption_dropout,
            path.end,
            self.painter.tokenizer,
            self.painter.encoder.config.length,
        )

    def count(self, batch: DiffusionBatch) -> int:
        return len(batch.latents)

    def loss(self, batch: DiffusionBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        context = self.painter.encoder(batch.tokens, batch.mask)
        loss, each = noise_prediction_loss(
            self.painter.unet,
            self.painter.path,
            batch.latents,
            batch.noise,
            batch.times,
            context,
            batch.mask,
            weighting=self.settings.weighting,
        )
        half = len(each) // 2
        if not half:
            return loss, {}
        return loss, {"loss_low_noise": each[:half].mean().item(), "loss_high_noise": each[half:].mean().item()}

    def validate(self) -> dict[str, float]:
        """Loss on pictures that training never sees, with fixed noise and one time for each picture, evenly spread."""
        held_out = range(self.data.scenes - self.data.held_out, self.data.scenes)
        painter, count = self.painter, self.data.held_out
        times = torch.linspace(painter.path.end, painter.path.start, count, device=self.device)
        order = torch.from_numpy(generator(seed=0, stream=TIMES).permutation(count))
        noise = normal((count, *painter.latent_shape), seed=0, stream=NOISE).to(self.device)
        latents = torch.from_numpy(self.latents[held_out.start :]).float().to(self.device)
        losses = []
        with torch.autocast(self.device.type, self.compute, enabled=self.compute != torch.float32):
            for rows in torch.arange(count).split(32):
                condition = painter.encode([self.truth[held_out[int(row)]].caption() for row in rows])
                losses.append(
                    noise_prediction_loss(
                        painter.unet,
                        painter.path,
                        latents[rows],
                        noise[rows],
                        times[order[rows]],
                        condition.context,
                        condition.mask,
                    )[1]
                )
        return {"noise_loss": torch.cat(losses).mean().item()}

    def rank(self, figures: dict[str, float]) -> float:
        return figures["noise_loss"]

    def sample(self, directory: Path, step: int) -> None:
        """Held-out scenes, painted from the same seeds at every time, so that sheets compare."""
        chosen = [scene for scene in scenes.held_out_scenes() if (scene.animal, scene.worn) == ("cat", "sunglasses")][
            :1
        ]
        chosen += scenes.held_out_scenes()[:: len(scenes.held_out_scenes()) // SHOWN]
        runner: ImageRunner = self.painter.runner()
        jobs = [runner.admit(ImageRequest(scene.caption(), seed=k)) for k, scene in enumerate(chosen[:SHOWN])]
        with torch.autocast(self.device.type, self.compute, enabled=self.compute != torch.float32):
            while not jobs[0].is_done:
                runner.advance(jobs)
        size = self.data.size
        sheet = Image.new("RGB", (size * SHOWN // 2, size * 2))
        for place, job in enumerate(jobs):
            sheet.paste(runner.finish(job).image, (size * (place % (SHOWN // 2)), size * (place // (SHOWN // 2))))
        sheet.save(directory / f"step-{step:08d}.png")

    def about(self) -> About:
        shape = " x ".join(map(str, self.painter.latent_shape[::-1]))
        return About(
            made=f"A latent diffusion model: it paints pictures of {self.data.size} x {self.data.size} pixels from a "
            f"sentence. A U-Net predicts the noise in latents of {shape} numbers on the path {self.settings.path}, "
            "looking at the prompt through a text encoder trained with it; an autoencoder, trained before, reads the "
            "picture off the latents. The weights of all three are kept as bfloat16.",
            example="pictures",
            data=f"{self.data.scenes - self.data.held_out:,} scenes composed by `diptych.data.scenes` (seed "
            f"{self.data.seed}), captioned in a fresh wording at every sight, {self.settings.caption_dropout:.0%} of "
            f"the captions left out; {self.data.held_out:,} more of the same kind validate. One combination of "
            "animal, thing worn, place and time in twenty is held out of all of them, so that what the model makes "
            "of the unseen can be counted (`diptych evaluate`).",
            sources=SCENES,
            figures={"noise_loss": "mean squared error of the predicted noise, evenly over times; 1 knows nothing"},
            limits=(
                f"It knows {len(scenes.ANIMALS)} animals ({', '.join(scenes.ANIMALS)}), what they may wear "
                f"({', '.join(scenes.WORN[1:])}), {len(scenes.PLACES)} places ({', '.join(scenes.PLACES)}) and "
                f"{len(scenes.TIMES)} times of day ({', '.join(scenes.TIMES)}), one of each a picture. Any other word "
                "means nothing to it, and it paints something all the same.",
                f"A prompt has at most {self.painter.encoder.config.length - 2} tokens of short English sentences.",
                "Edges are soft, and now and then a thing that was asked for is missing or of another kind.",
            ),
        )

    def save(self, directory: Path, card: str) -> None:
        """What the painter was built on comes last in its card."""
        if self.recipe.run.init_from:
            card += earlier_stage("The stage before", self.recipe.run.init_from)
        card += earlier_stage("Its autoencoder", self.data.autoencoder)
        self.painter.save(directory, card)


def latents_of(autoencoder: Autoencoder, pictures: np.ndarray, key: str, compute: torch.dtype) -> np.ndarray:
    """Latents (N, C, h, w) float16 of pictures (N, 3, H, W) uint8, from the cache or encoded now.

    The cache's name depends on the pictures' key and on the autoencoder's weights.
    """
    digest = hashlib.sha256(key.encode())
    for tensor in autoencoder.state_dict().values():
        digest.update(tensor.float().cpu().numpy().tobytes())
    path = cache_directory() / f"latents-{digest.hexdigest()[:16]}.npy"
    if not path.is_file():
        device = autoencoder.shift.device
        parts = []
        for start in range(0, len(pictures), 64):
            part = torch.from_numpy(pictures[start : start + 64].copy()).to(device).float() / 127.5 - 1
            with torch.no_grad(), torch.autocast(device.type, compute, enabled=compute != torch.float32):
                parts.append(
                    autoencoder.encode(part.contiguous(memory_format=torch.channels_last)).half().cpu().numpy()
                )
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate(parts), allow_pickle=False)
    latents: np.ndarray = np.load(path, allow_pickle=False)
    return latents


def trained_autoencoder(directory: str) -> Autoencoder:
    """The frozen autoencoder of a checkpoint, which may be a painter's."""
    if not Path(directory).is_dir():
        raise ValueError(
            f"there is no autoencoder at '{directory}'; 'diptych train recipes/autoencoder.toml' makes one"
        )
    config = read_config(directory)
    if not isinstance(config.get("autoencoder"), dict):
        raise ValueError(f"'{directory}' is not a checkpoint with an autoencoder")
    autoencoder = Autoencoder(AutoencoderConfig.from_dict(config["autoencoder"]))
    load_into(autoencoder, directory, "autoencoder." if config.get("panel") == "image" else "")
    return autoencoder.requires_grad_(False).eval()


def build(recipe: Recipe) -> DiffusionTask:
    return DiffusionTask(recipe)


def _network_sizes(recipe: Recipe, otherwise: dict[str, Any]) -> tuple[EncoderConfig, UNetConfig]:
    """What [model] comes to; `otherwise` is of the U-Net, where the recipe does not set it."""
    data = recipe.section("data", Data)
    encoder_sizes = {"vocab_size": data.vocab_size} | recipe.sizes("model.encoder", EncoderConfig)
    with recipe.checking("model"):
        encoder = EncoderConfig.from_dict(encoder_sizes)
        unet_sizes = {"context_width": encoder.width} | otherwise | recipe.sizes("model.unet", UNetConfig)
        return encoder, UNetConfig.from_dict(unet_sizes)


def filled_in(recipe: Recipe) -> dict[str, Any]:
    """[model.unet] and [model.encoder], whole but for what the autoencoder and the vocabulary decide."""
    encoder, unet = (config.to_dict() for config in _network_sizes(recipe, {}))
    given = recipe.sizes("model.unet", UNetConfig)
    return {
        "unet": {key: value for key, value in unet.items() if key in given or key not in ("channels", "context_width")},
        "encoder": {key: value for key, value in encoder.items() if key != "vocab_size"},
    }


class _Middling(NoisePath):
    """A path on which every noise level is the middle one: a plan knows shapes and no numbers."""

    def coefficients(self, times: Tensor) -> tuple[Tensor, Tensor]:
        half = torch.full_like(times, 0.5**0.5, dtype=torch.float32)
        return half, half


def outline(recipe: Recipe) -> Outline:
    """Where the autoencoder is not trained yet, one of the usual sizes is assumed."""
    data, settings = recipe.section("data", Data), recipe.section("model", Model)
    has_autoencoder = (Path(data.autoencoder) / "config.json").is_file()
    with recipe.checking("data", "autoencoder"):
        known = read_config(data.autoencoder).get("autoencoder", {}) if has_autoencoder else {}
        latent = AutoencoderConfig.from_dict(known)
    encoder, unet = _network_sizes(recipe, {"channels": latent.latent_channels})
    shape = (unet.channels, data.size // latent.downsampling, data.size // latent.downsampling)
    path = _Middling("middling", True, np.log, np.exp)

    def batch(rows: int) -> DiffusionBatch:
        tokens = torch.zeros(rows, encoder.length, dtype=torch.int64)
        latents, times = torch.randn(rows, *shape), torch.full((rows,), 0.5, dtype=torch.float64)
        return DiffusionBatch(latents, torch.randn_like(latents), times, tokens, torch.ones_like(tokens).bool())

    def loss(model: nn.ModuleDict, batch: DiffusionBatch) -> Tensor:
        context = model["encoder"](batch.tokens, batch.mask)
        noisy = (batch.latents, batch.noise, batch.times, context, batch.mask)
        return noise_prediction_loss(model["unet"], path, *noisy, weighting=settings.weighting)[0]

    with torch.device("meta"):
        frozen = sum(tensor.numel() * 4 for tensor in Autoencoder(latent).state_dict().values())
    missing = f"no autoencoder at '{data.autoencoder}' yet: one of {latent.latent_channels} channels is assumed"
    return Outline(
        make=lambda: nn.ModuleDict({"encoder": TextEncoder(encoder), "unet": channels_last(UNet(unet))}),
        networks=lambda model: [model["encoder"], model["unet"]],
        batch=batch,
        loss=loss,
        unit=DiffusionTask.unit,
        validate=lambda model: loss(model, batch(32)),
        validations=data.held_out / 32,
        beside=frozen,
        remarks=() if has_autoencoder else (missing,),
    )
