"""Training the denoiser and its text encoder on latents of captioned pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diptych.core.precision import choose
from diptych.core.randomness import generator, normal
from diptych.core.spelling import unknown
from diptych.core.tokenizer import Tokenizer
from diptych.core.weights import digest, read_config
from diptych.data import scenes
from diptych.data.embeddings import Embeddings, embeddings_of
from diptych.data.latents import LatentSource, bucket_latents
from diptych.data.picture_source import Tokenize
from diptych.data.training_pictures import PictureData, training_pictures
from diptych.data.trouble import Trouble, Troubles
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig, trained_autoencoder
from diptych.image.condition import Condition
from diptych.image.encoders import EncoderConfig, TextEncoder, encode_prompts, encoder_sizes_of, trained_encoder
from diptych.image.model import ImageModel
from diptych.image.networks import NETWORKS, make_network
from diptych.image.objective import denoising_objective, times_named, weighting_named
from diptych.image.path import path_named
from diptych.image.prediction import prediction_named
from diptych.image.prompts import OwnPrompter
from diptych.image.runner import ImageRequest, ImageRunner
from diptych.image.validation import denoising_loss, latents_of, predictions_each
from diptych.train.card import About, earlier_stages
from diptych.train.outline import Chore, Outline, beside, channels_last
from diptych.train.recipe import Recipe
from diptych.train.samples import save_pictures
from diptych.train.start import Start

NOISE, TIMES = 2, 3  # streams of randomness
SHOWN = 8
WORDS = {
    "noise": "the noise",
    "image": "the clean picture",
    "v": "v, some of the noise less some of the picture,",
    "velocity": "the direction from the picture to the noise",
    "edm": "what the noisy picture itself does not tell",
}
OF_SCENES = (
    " Captions had a fresh wording at every sight. One combination of animal, thing worn, place and time in twenty is "
    "held out of all scenes, so that what the model makes of the unseen can be counted (`diptych evaluate`)."
)
KNOWN = (
    f"It knows {len(scenes.ANIMALS)} animals ({', '.join(scenes.ANIMALS)}), what they may wear "
    f"({', '.join(scenes.WORN[1:])}), {len(scenes.PLACES)} places ({', '.join(scenes.PLACES)}) and "
    f"{len(scenes.TIMES)} times of day ({', '.join(scenes.TIMES)}), one of each a picture. Any other word means "
    "nothing to it, and it paints something all the same."
)


@dataclass(frozen=True, kw_only=True)
class Data(PictureData):
    """[data]: pictures and how they become latents.

    Args:
        mirror: whether half of the pictures are seen mirrored, where no caption names a side.
        autoencoder: checkpoint directory of the trained autoencoder, or of a painter that has one.
        text_encoder: checkpoint directory of a pairing, or of a painter, whose text encoder is taken as it is: its
            weights rest, and what it makes of each caption is kept in the cache. For pictures of one's own, as a scene
            has a fresh wording at each sight; "" trains a text encoder with the denoiser.
        captions: of the vocabulary's training.
        vocab_size: tokens of the prompts' vocabulary.
    """

    autoencoder: str
    mirror: bool = False
    text_encoder: str = ""
    captions: int = 8000
    vocab_size: int = 512


@dataclass(frozen=True)
class Model:
    """[model]: how the denoiser is trained, and the sizes of the two networks.

    Args:
        network: which kind of denoiser, see `networks.NETWORKS`; its sizes are in the table of that name.
        depth: the one dial of a U-Net: what it comes to is written into the others when the recipe is read (see
            `train.dial`); 0 is none.
        path: how noise is added, see `path.PATHS`.
        prediction: what the network says, see `prediction.TARGETS`.
        weighting: how noise levels count against each other, see `objective.WEIGHTINGS`.
        times: which of them are seen how often, see `objective.TIMES`.
        caption_dropout: the share of captions left out (for guidance).
    """

    network: str = "unet"
    depth: int = 0
    path: str = "ddpm-cosine"
    prediction: str = "noise"
    weighting: str = "simple"
    times: str = "uniform"
    caption_dropout: float = 0.1
    unet: dict[str, Any] = field(default_factory=dict)
    dit: dict[str, Any] = field(default_factory=dict)
    mmdit: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"model.caption_dropout must be at least 0 and below 1, not {self.caption_dropout}")
        if self.network not in NETWORKS:
            raise unknown("model.network", self.network, NETWORKS)
        for kind in NETWORKS:
            if kind != self.network and getattr(self, kind):
                raise ValueError(f"model.{kind} does not go with the network '{self.network}'")
        if self.depth and self.network != "unet":
            raise ValueError(
                f"model.depth is a U-Net's; the sizes of '{self.network}' are set in [model.{self.network}]"
            )
        for key, read in READ.items():
            try:
                read(getattr(self, key))
            except ValueError as error:
                raise ValueError(f"model.{key} '{getattr(self, key)}': {error}") from error
        prediction_named(self.prediction).check(path_named(self.path))


NAMES = {"unet": "A U-Net", "dit": "A transformer over patches", "mmdit": "A transformer over words and patches"}
READ = {"path": path_named, "prediction": prediction_named, "weighting": weighting_named, "times": times_named}


class DiffusionBatch(NamedTuple):
    """latents and noise (B, C, h, w), times and their alpha and sigma (B,), words and mask (B, S). Words are tokens
    (B, S), int64, or where the text encoder rests what it makes of them, (B, S, width) float32."""

    latents: Tensor
    noise: Tensor
    times: Tensor
    alpha: Tensor
    sigma: Tensor
    words: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Noised:
    """Latents with noise and noise levels.

    Args:
        times: name of the distribution of noise levels.
    """

    source: LatentSource
    batch_size: int
    seed: int
    path: str
    times: str

    def batch(self, step: int, rows: range) -> DiffusionBatch:
        size, here = self.batch_size, slice(rows.start, rows.stop)
        found = self.source.batch(step, rows)
        # One time in each of `size` equal parts: the loss of a step varies less.
        parts = (np.arange(size) + generator(seed=self.seed, step=step, stream=TIMES).random(size)) / size
        path = path_named(self.path)
        times = times_named(self.times)(path, torch.from_numpy(parts))[here]
        noise = normal((size, *found.latents.shape[1:]), seed=self.seed, step=step, stream=NOISE)[here]
        return DiffusionBatch(found.latents, noise, times, *path.coefficients(times), found.tokens, found.mask)

    def troubles(self) -> Sequence[Trouble]:
        return self.source.troubles()


class DiffusionTask:
    unit = "pictures"
    is_splittable = True

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data = recipe.section("data", Data)
        settings = recipe.section("model", Model)
        self.settings = settings
        self.device, self.compute = choose()
        with recipe.checking("data", "autoencoder"):
            autoencoder = trained_autoencoder(self.data.autoencoder)
        autoencoder.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        kind = settings.network
        encoder_config, network_config = _network_sizes(recipe, {"channels": autoencoder.config.latent_channels})
        multiple = autoencoder.config.downsampling * network_config.multiple
        if self.data.size < 1 or self.data.size % multiple:
            with recipe.checking("data", "size"):
                raise ValueError(f"data.size must be a multiple of {multiple}, not {self.data.size}")
        start = Start.of(recipe, "encoder", kind)
        troubles = Troubles()
        with recipe.checking("data"):
            self.pictures = training_pictures(self.data, multiple=multiple, batch=recipe.run.batch, troubles=troubles)
        train = self.pictures.train
        torch.manual_seed(recipe.run.seed)
        if self.data.text_encoder:
            encoder, tokenizer = trained_encoder(self.data.text_encoder)
        else:
            words = [train.caption(index) for index in range(min(self.data.captions, len(train)))]
            with recipe.checking("data", "vocab_size"):
                tokenizer = start.tokenizer() if start else Tokenizer.train(words, self.data.vocab_size)
            encoder_config = replace(encoder_config, vocab_size=tokenizer.size)
            encoder = TextEncoder(encoder_config)
        network = make_network(kind, network_config.to_dict())
        if start:
            start.check("encoder", encoder_config.to_dict(), free=("length",))
            known = NETWORKS[kind][0]
            start.check(kind, network_config.to_dict(), read=lambda found: known.from_dict(found).to_dict())
            if not self.data.text_encoder:
                start.fill(encoder, "encoder.")
            start.fill(network, f"{kind}.")
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.ModuleDict = nn.ModuleDict({"encoder": encoder, kind: network}).to(self.device)
        self.encoder, self.tokenizer = encoder, tokenizer
        self.prompter = OwnPrompter(encoder, tokenizer)
        self.painter = ImageModel(
            recipe.name,
            prompter=self.prompter,
            network=network,
            autoencoder=autoencoder,
            path=settings.path,
            prediction=settings.prediction,
            size=self.data.size,
        )
        self.latents = bucket_latents(
            autoencoder,
            train,
            self.pictures.buckets,
            self.compute,
            has_mirrored=self.data.mirror,
            troubles=troubles,
        )
        tokenize = partial(encode_prompts, tokenizer, length=encoder_config.length, cuts=True)
        self.words: Tokenize = self._embeddings() if self.data.text_encoder else tokenize
        self.held_out_latents = latents_of(autoencoder, self.pictures.held_out.pictures)
        self.remarks: tuple[str, ...] = tuple(filter(None, [str(troubles)]))

    @property
    def networks(self) -> list[nn.Module]:
        return [self.painter.network] if self.data.text_encoder else [self.encoder, self.painter.network]

    def _embeddings(self) -> Embeddings:
        """Of all captions that training sees."""
        train = self.pictures.train

        def encode(captions: list[str]) -> tuple[Tensor, Tensor]:
            return self.prompter.encode(captions, cuts=True)

        key = f"{digest(self.encoder.state_dict())} {self.encoder.config.length} {self.tokenizer.to_json()}"
        return embeddings_of(encode, key, (train.caption(index) for index in range(len(train))))

    @property
    def source(self) -> Noised:
        run = self.recipe.run
        source = LatentSource(
            self.pictures.train,
            self.pictures.buckets,
            self.latents,
            batch=run.batch,
            seed=run.seed,
            mirrors=self.data.mirror,
            tokenize=self.words,
            caption_dropout=self.settings.caption_dropout,
        )
        return Noised(source, run.batch, run.seed, self.settings.path, self.settings.times)

    def count(self, batch: DiffusionBatch) -> int:
        return len(batch.latents)

    def loss(self, batch: DiffusionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        context = batch.words if self.data.text_encoder else self.encoder(batch.words, batch.mask)
        denoiser = self.painter.denoiser
        loss, each = denoising_objective(
            denoiser.network,
            denoiser.prediction,
            denoiser.path,
            batch.latents,
            batch.noise,
            batch.times,
            Condition(context, batch.mask),
            coefficients=(batch.alpha, batch.sigma),
            weighting=self.settings.weighting,
        )
        half = len(each) // 2
        if not half:
            return loss, {}
        return loss, {"loss_low_noise": each[:half].mean(), "loss_high_noise": each[half:].mean()}

    def validate(self) -> dict[str, float]:
        """Loss by noise level on pictures that training never sees, in float32, with fixed noise and times."""
        painter = self.painter
        condition = painter.encode(self.pictures.held_out.captions, cuts=True)
        return denoising_loss(painter.denoiser, self.held_out_latents, condition).figures("noise_loss")

    def rank(self, figures: dict[str, float]) -> float:
        return figures["noise_loss"]

    def sample(self, directory: Path, step: int) -> None:
        """Held-out scenes or captions, painted from the same seeds at every time, so that sheets compare."""
        prompts = self._prompts()
        runner: ImageRunner = self.painter.runner()
        jobs = [runner.admit(ImageRequest(prompt, seed=k)) for k, prompt in enumerate(prompts)]
        with torch.autocast(self.device.type, self.compute, enabled=self.compute != torch.float32):
            while not jobs[0].is_done:
                runner.advance(jobs)
        save_pictures(directory, step, [runner.finish(job).image for job in jobs], prompts)

    def _prompts(self) -> list[str]:
        if self.pictures.truth is None:
            most = self.encoder.config.length - 2
            captions = self.pictures.held_out.captions
            short = (text for text in captions if 0 < len(self.tokenizer.encode(text.lower())) <= most)
            return list(islice(short, SHOWN)) or [""]
        held_out = scenes.held_out_scenes()
        famous = [scene for scene in held_out if (scene.animal, scene.worn) == ("cat", "sunglasses")][:1]
        chosen = famous + held_out[:: len(held_out) // SHOWN]
        return [scene.caption() for scene in chosen[:SHOWN]]

    def about(self) -> About:
        shape = " x ".join(map(str, self.painter.latent_shape[::-1]))
        together = "before" if self.data.text_encoder else "with"
        return About(
            made=f"A latent diffusion model: it paints pictures of {self.data.size} x {self.data.size} pixels from a "
            f"sentence. {NAMES[self.settings.network]} predicts {WORDS[self.painter.denoiser.prediction.word]} of "
            f"latents of {shape} numbers on the path {self.settings.path}, looking at the prompt through a text "
            f"encoder trained {together} it; an autoencoder, trained before, reads the picture off the latents. The "
            "weights of all three are kept as bfloat16.",
            example="pictures",
            data=f"{self.pictures.about} {self.settings.caption_dropout:.0%} of the captions were left out."
            + (OF_SCENES if self.pictures.truth else ""),
            sources=self.pictures.sources,
            figures={
                "noise_loss/level-": "the same in a tenth of the times, from nearly clean (01) to nearly static (10)",
                "noise_loss": "mean squared error of the noise, as predicted or implied by what is, evenly over times; "
                "1 is to guess none",
            },
            limits=(
                KNOWN if self.pictures.truth else "It knows what its pictures show, and of that what captions name.",
                f"A prompt has at most {self.encoder.config.length - 2} tokens of short English sentences.",
                "Edges are soft, and now and then a thing that was asked for is missing or of another kind.",
            ),
        )

    def save(self, directory: Path, card: str) -> None:
        """What the painter was built on comes last in its card."""
        if self.recipe.run.init_from:
            card += earlier_stages(self.recipe.run.init_from)
        for part in (self.data.text_encoder, self.data.autoencoder):
            if part and part != self.recipe.run.init_from:
                card += earlier_stages(part)
        self.painter.save(directory, card)


def build(recipe: Recipe) -> DiffusionTask:
    return DiffusionTask(recipe)


def _network_sizes(recipe: Recipe, otherwise: dict[str, Any]) -> tuple[EncoderConfig, Any]:
    """What [model] comes to; `otherwise` is of the denoiser, where the recipe does not set it."""
    data, kind = recipe.section("data", Data), recipe.section("model", Model).network
    network = NETWORKS[kind][0]
    encoder_sizes = {"vocab_size": data.vocab_size} | recipe.sizes("model.encoder", EncoderConfig)
    if data.text_encoder:
        with recipe.checking("data", "text_encoder"):
            if not data.pictures:
                raise ValueError("data.text_encoder needs data.pictures: a scene has a fresh wording at each sight")
            if len(encoder_sizes) > 1:
                raise ValueError("data.text_encoder brings its own sizes; [model.encoder] must be left out")
            encoder_sizes = encoder_sizes_of(data.text_encoder)
    with recipe.checking("model"):
        encoder = EncoderConfig.from_dict(encoder_sizes)
        sizes = {"context_width": encoder.width} | otherwise | recipe.sizes(f"model.{kind}", network)
        return encoder, network.from_dict(sizes)


def filled_in(recipe: Recipe) -> dict[str, Any]:
    """The denoiser's table and [model.encoder], whole but for what the autoencoder and the vocabulary decide."""
    kind = recipe.section("model", Model).network
    encoder, network = (config.to_dict() for config in _network_sizes(recipe, {}))
    given = recipe.sizes(f"model.{kind}", NETWORKS[kind][0])
    decided = {"channels", "context_width"} - given.keys()
    return {
        kind: {key: value for key, value in network.items() if key not in decided},
        "encoder": {key: value for key, value in encoder.items() if key != "vocab_size"},
    }


def outline(recipe: Recipe) -> Outline:
    """Where the autoencoder is not trained yet, one of the usual sizes is assumed."""
    data, settings = recipe.section("data", Data), recipe.section("model", Model)
    has_autoencoder = (Path(data.autoencoder) / "config.json").is_file()
    with recipe.checking("data", "autoencoder"):
        known = read_config(data.autoencoder).get("autoencoder", {}) if has_autoencoder else {}
        latent = AutoencoderConfig.from_dict(known)
    kind = settings.network
    encoder, network = _network_sizes(recipe, {"channels": latent.latent_channels})
    shape = (network.channels, data.size // latent.downsampling, data.size // latent.downsampling)
    is_frozen = bool(data.text_encoder)
    path, prediction = path_named(settings.path), prediction_named(settings.prediction)

    def batch(rows: int) -> DiffusionBatch:
        words = torch.zeros(rows, encoder.length, dtype=torch.int64)
        mask = torch.ones_like(words).bool()
        if is_frozen:
            words = torch.zeros(rows, encoder.length, encoder.width)
        latents, times = torch.randn(rows, *shape), torch.full((rows,), 0.5, dtype=torch.float64)
        half = torch.full((rows,), 0.5**0.5)  # a plan knows shapes and no numbers
        return DiffusionBatch(latents, torch.randn_like(latents), times, half, half, words, mask)

    def loss(model: nn.ModuleDict, batch: DiffusionBatch) -> Tensor:
        context = batch.words if is_frozen else model["encoder"](batch.words, batch.mask)
        noisy = (batch.latents, batch.noise, batch.times, Condition(context, batch.mask))
        known = (batch.alpha, batch.sigma)
        objective = denoising_objective(
            model[kind], prediction, path, *noisy, coefficients=known, weighting=settings.weighting
        )
        return objective[0]

    def paint(model: nn.ModuleDict) -> None:
        """A step of the pictures that a run shows, each with its prompt and without."""
        device, compute = choose()
        with torch.autocast(device.type, compute, enabled=compute != torch.float32):
            loss(model, beside(model, batch(2 * SHOWN)))

    with torch.device("meta"):
        frozen = sum(tensor.numel() * 4 for tensor in Autoencoder(latent).state_dict().values())
    missing = f"no autoencoder at '{data.autoencoder}' yet: one of {latent.latent_channels} channels is assumed"
    return Outline(
        make=lambda: nn.ModuleDict(
            {
                "encoder": TextEncoder(encoder).requires_grad_(not is_frozen),
                kind: channels_last(make_network(kind, network.to_dict())),
            }
        ),
        networks=lambda model: [model[kind]] if is_frozen else [model["encoder"], model[kind]],
        batch=batch,
        loss=loss,
        unit=DiffusionTask.unit,
        validation=Chore(
            lambda model: loss(model, beside(model, batch(32))),
            pieces=data.held_out * predictions_each(data.held_out) / 32,
        ),
        sampling=Chore(paint, pieces=ImageRequest.steps),
        data=data.held_out * 3 * data.size**2,
        beside=frozen,
        remarks=() if has_autoencoder else (missing,),
    )
