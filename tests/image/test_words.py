"""Maps of words: against attention worked out by hand, and against what the picture loses with a word."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diptych
from diptych.core import attention as core_attention
from diptych.core.attention import Attention, attend
from diptych.core.tokenizer import Tokenizer
from diptych.core.trace import Trace
from diptych.image import joint
from diptych.image import words as recorder
from diptych.image.condition import Condition
from diptych.image.dit import DiT, DiTConfig
from diptych.image.mmdit import MMDiT, MMDiTConfig
from diptych.image.model import ImageModel
from diptych.image.path import Node
from diptych.image.record import ImageResult
from diptych.image.runner import ImageRequest
from diptych.image.unet import UNet, UNetConfig
from diptych.image.word_maps import WordMaps, centre, figures
from diptych.image.words import Watch, WordAttention, grid_of, of_words, resized, watching, words_in

PROMPT = "a dog in a forest, at night"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shares_of(attention: WordAttention) -> Tensor:
    found = attention.shares()
    assert found is not None
    return found


class Looker(nn.Module):
    """Places of two grids look at a context, as in a network with two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = Attention(8, 2, context_width=6)
        self.coarse = Attention(8, 4, num_kv_heads=2, context_width=6, has_qk_norm=True)
        self.among = Attention(8, 2)  # looks at no words

    def forward(self, fine: Tensor, coarse: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        seen = self.among(fine) + self.fine(fine, context=context, mask=mask[:, None, None, :])
        small: Tensor = self.coarse(coarse, context=context, mask=mask[:, None, None, :])
        return seen.mean(1) + small.mean(1)


def by_hand(attention: Attention, x: Tensor, context: Tensor, mask: Tensor) -> np.ndarray:
    """softmax(q k / sqrt(D)) in float64, one head after the other: (N, S)."""
    found = np.zeros((len(x), len(context)))
    for head in range(attention.num_heads):
        shared = head * attention.num_kv_heads // attention.num_heads
        rows = [slice(one * attention.head_dim, (one + 1) * attention.head_dim) for one in (head, shared)]
        q, k = (x @ attention.query.weight[rows[0]].T).double(), (context @ attention.key.weight[rows[1]].T).double()
        if attention.query_norm is not None:
            q, k = (one / (one.square().mean(-1, keepdim=True) + 1e-6).sqrt() for one in (q, k))
        odds = np.exp((q @ k.T).numpy() / math.sqrt(attention.head_dim)) * mask.numpy()
        found += odds / odds.sum(-1, keepdims=True) / attention.num_heads
    return found


@torch.no_grad()
def test_a_map_is_the_attention_of_each_layer_meaned_on_one_grid() -> None:
    """Only of the rows that are watched: the third of three pictures and then the first."""
    torch.manual_seed(0)
    network = Looker()
    fine, coarse, context = random(3, 6 * 4, 8), random(3, 3 * 2, 8, seed=1), random(3, 5, 6, seed=2)
    mask = torch.tensor([[True] * 5, [True] * 5, [True, True, True, False, False]])
    third, first = Watch([("hat", (1, 2)), ("cat", (0,))]), Watch([("fox", (4,))])
    with watching(network, (6, 4), 5, [(slice(2, 3), third), (slice(1, 2), None), (slice(0, 1), first)]):
        network(fine, coarse, context, mask)

    def expected(row: int) -> np.ndarray:
        large = by_hand(network.fine, fine[row], context[row], mask[row]).T.reshape(5, 6, 4)
        small = by_hand(network.coarse, coarse[row], context[row], mask[row]).T.reshape(1, 5, 3, 2)
        grown = F.interpolate(torch.from_numpy(small), size=(6, 4), mode="bilinear")[0].numpy()
        mean: np.ndarray = (large + grown) / 2
        return mean

    assert third.seen is not None
    assert first.seen is not None
    assert third.seen.shape == (1, 2, 6, 4)
    hat, cat = expected(2)[1] + expected(2)[2], expected(2)[0]
    assert np.allclose(third.seen[0].numpy(), np.stack([hat, cat]), atol=1e-3)  # float16
    assert np.allclose(first.seen[0].numpy(), expected(0)[[4]], atol=1e-3)


def test_words_among_other_keys_have_their_part_of_what_goes_to_words() -> None:
    """Joint attention: places look at each other, too; what they give to words is shared out among the words."""
    q, k = random(2, 4, 6, 8), random(2, 4, 3 + 6, 8, seed=1)
    attention = WordAttention((3, 2), 3, torch.arange(2))
    attention.add(q, k)
    odds = ((q @ k.mT) / math.sqrt(8)).softmax(-1)[..., :3].mean(1)  # (2, 6, 3)
    expected = (odds / odds.sum(-1, keepdim=True)).mT.reshape(2, 3, 3, 2)
    assert torch.allclose(shares_of(attention), expected, atol=1e-6)


def test_a_long_row_of_places_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = random(1, 2, 64, 4), random(1, 2, 5, 4, seed=1)
    mask = torch.rand(1, 1, 64, 5, generator=torch.Generator().manual_seed(2)) < 0.8
    mask[..., 0] = True
    found = []
    for most in (1 << 24, 2 * 5 * 3):
        monkeypatch.setattr(recorder, "MOST_SCORES", most)
        attention = WordAttention((8, 8), 5, torch.arange(1))
        attention.add(q, k, mask)
        found.append(shares_of(attention))
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize(
    ("places", "size", "grid"),
    [(64, (16, 16), (8, 8)), (15, (9, 5), (5, 3)), (6, (12, 8), (3, 2)), (2, (9, 5), (2, 1)), (7, (16, 16), None)],
)
def test_places_lie_on_the_grid_that_strides_leave(places: int, size: tuple[int, int], grid: Any) -> None:
    assert grid_of(places, size) == grid


@pytest.mark.parametrize("size", [(3, 5), (8, 8), (13, 6), (2, 9)])
def test_shares_on_another_grid_still_add_up(size: tuple[int, int]) -> None:
    maps = random(2, 5, 6, 6).softmax(1)
    assert torch.allclose(resized(maps, size).sum(1), torch.ones(2, *size), atol=1e-5)


def test_a_map_of_a_large_picture_is_kept_small() -> None:
    attention = WordAttention((200, 100), 3, torch.arange(1))
    attention.add(random(1, 1, 200 * 100, 4), random(1, 1, 3, 4))
    assert shares_of(attention).shape == (1, 3, 50, 25)


NETWORKS: list[Callable[[], nn.Module]] = [
    lambda: UNet(UNetConfig(channels=4, widths=(32, 64), has_attention=(True, True), head_dim=32, context_width=16)),
    lambda: DiT(DiTConfig(channels=4, num_heads=2, width=32, num_layers=2, context_width=16)),
    lambda: DiT(DiTConfig(channels=4, num_heads=2, width=32, num_layers=2, context_width=16, prompt="tokens")),
    lambda: MMDiT(
        MMDiTConfig(channels=4, num_heads=2, head_dim=16, joint_layers=3, dual_layers=(1,), context_width=16)
    ),
    lambda: MMDiT(
        MMDiTConfig(
            channels=4,
            num_heads=2,
            head_dim=16,
            joint_layers=2,
            single_layers=2,
            ends_words=False,
            context_width=16,
            positions="rotary",
            axes=(4, 6, 6),
        )
    ),
]


@pytest.mark.parametrize("make", NETWORKS, ids=["unet", "dit-cross", "dit-tokens", "mmdit", "flux"])
@torch.no_grad()
def test_in_every_network_the_maps_are_of_the_attention_that_it_uses(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the queries and keys that reach the kernel, caught on their way."""
    torch.manual_seed(1)
    network = make()
    for parameter in network.parameters():
        if not parameter.any():  # what training starts at zero would leave later layers unseen
            nn.init.normal_(parameter, std=0.1)
    words = 5
    caught: list[Tensor] = []

    def catch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
        is_joint = q.shape[2] == k.shape[2] == words + 24
        if is_joint or k.shape[2] == words:
            scores = (q @ k.mT / math.sqrt(q.shape[-1])).double()
            odds = (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(-1)
            odds = odds[..., words if is_joint else 0 :, :words].mean(1).mT
            side = {96: (8, 12), 24: (4, 6)}[odds.shape[-1]]
            caught.append(odds.unflatten(-1, side))
        return attend(q, k, v, mask, *rest, **named)

    for place in (core_attention, joint):
        monkeypatch.setattr(place, "attend", catch)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    tokens: list[recorder.Word] = [(str(place), (place,)) for place in range(words)]
    watch = Watch(tokens)
    with watching(network, (8, 12), words, [(slice(0, 1), None), (slice(1, 2), watch)]):
        network(random(2, 4, 8, 12), torch.tensor([0.3, 0.7]), random(2, words, 16, seed=1), mask)
    finest = max((one.shape[-2:] for one in caught), key=math.prod)
    assert len(caught) >= 2
    whole = sum(F.interpolate(one, size=finest, mode="bilinear") for one in caught)
    assert isinstance(whole, Tensor)
    assert watch.seen is not None
    assert torch.allclose(watch.seen.double(), (whole / whole.sum(1, keepdim=True))[1:], atol=1e-3)


@torch.no_grad()
def test_all_tokens_together_are_one(tiny: ImageModel) -> None:
    """At each place, whatever the length of the prompts; hidden places of the context get nothing."""
    condition = tiny.encode([PROMPT, "a cat"])
    assert condition.mask is not None
    length = condition.context.shape[1]
    tokens = [(str(place), (place,)) for place in range(length)]
    watch = Watch(tokens)
    with watching(tiny.network, tiny.latent_shape[1:], length, [(slice(0, 2), watch)]):
        tiny.denoiser(random(2, *tiny.latent_shape), [Node(0.5, 0.8, 0.6)] * 2, condition)
    assert watch.seen is not None
    assert watch.seen.shape == (2, length, 4, 4)  # attention is at half of the latents' 8 x 8
    assert torch.allclose(watch.seen.float().sum(1), torch.ones(2, 4, 4), atol=5e-3)
    assert not watch.seen.float().mean((2, 3))[~condition.mask].any()


def test_watching_changes_no_bit_and_leaves_no_hook(tiny: ImageModel) -> None:
    settings: dict[str, Any] = {"steps": 3, "seed": 4, "count": 2}
    plain = tiny.generate(PROMPT, **settings).result()
    watched = tiny.generate(PROMPT, **settings, words=True).result()
    assert torch.equal(plain.latents, watched.latents)
    assert plain.settings == watched.settings
    assert plain.words is None
    assert "words" not in plain.trace.arrays
    assert not any(module._forward_pre_hooks for module in tiny.network.modules())


def test_who_does_not_ask_pays_nothing(tiny: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "lookers", lambda network: pytest.fail("hooks without a watch"))
    tiny.generate(PROMPT, steps=1, seed=4).result()


@pytest.mark.parametrize(
    "settings",
    [{"guidance_scale": 1.0}, {"guidance_scale": 6.0}, {"guidance_interval": (0.3, 2.0)}, {"sampler": "heun"}],
)
def test_the_maps_are_of_the_prompt_alone_and_of_every_picture(tiny: ImageModel, settings: dict[str, Any]) -> None:
    """The first call sees the same noise whatever follows, so its maps are those without guidance."""
    plain = tiny.generate(PROMPT, steps=4, seed=1, count=3, guidance_scale=1.0, words=True).result()
    result = tiny.generate(PROMPT, steps=4, seed=1, count=3, words=True, **settings).result()
    assert plain.words is not None
    assert result.words is not None
    assert result.words.words == ("a", "dog", "in", "a", "forest", "at", "night")
    assert result.words.maps.shape == (7 if "sampler" in settings else 4, 3, 7, 4, 4)
    assert torch.allclose(result.words.maps[0], plain.words.maps[0], atol=2e-3)
    third = tiny.generate(PROMPT, steps=4, seed=1, first_sample=2, words=True, **settings).result()
    assert third.words is not None
    assert torch.allclose(result.words.maps[:, 2:], third.words.maps, atol=5e-3)


def test_in_company_only_the_job_that_asked_is_watched(tiny: ImageModel) -> None:
    """Other prompts, sizes, guidance and times of entry change its maps by rounding alone."""
    wanted = ImageRequest(PROMPT, steps=4, seed=5, count=2, words=True)
    alone = tiny.generate(PROMPT, steps=4, seed=5, count=2, words=True).result().words
    runner = tiny.runner()
    jobs = [
        runner.admit(ImageRequest("a cat", steps=3, seed=1)),
        runner.admit(ImageRequest("a beach", steps=6, seed=2, height=32, words=True)),
    ]
    runner.advance(jobs)
    jobs.insert(1, runner.admit(wanted))
    results: dict[int, ImageResult] = {}
    while len(results) < 3:
        runner.advance([job for job in jobs if not job.is_done])
        results |= {place: runner.finish(job) for place, job in enumerate(jobs) if job.is_done}
    assert results[0].words is None
    among, flat = results[1].words, results[2].words
    assert alone is not None
    assert among is not None
    assert flat is not None
    assert torch.allclose(alone.maps, among.maps, atol=5e-3)
    assert flat.maps.shape == (6, 1, 2, 2, 4)


def test_between_two_prompts_the_words_of_the_nearer_one_are_watched(tiny: ImageModel) -> None:
    for share, words in ((0.4, ("a", "cat")), (0.6, ("a", "dog", "at", "night"))):
        arc = tiny.generate("a cat", to_prompt="a dog at night", share=share, steps=1, seed=1, words=True).result()
        assert arc.words is not None
        assert arc.words.words == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a cat, a dog; and (perhaps) a fox!", ["a", "cat", "a", "dog", "and", "perhaps", "a", "fox"]),
        ("the well-known artist's t-shirt", ["the", "well-known", "artist's", "t-shirt"]),
        ("- a - 3 é naïve 'x' 🦊 --", ["a", "3", "é", "naïve", "x"]),
        ("🦊 ...", []),
    ],
)
def test_tokens_are_put_together_to_words(text: str, words: list[str]) -> None:
    """The bytes of a word's tokens are the word, but for the space before it and what is written against it."""
    tokenizer = Tokenizer.train(["a cat and a dog in a forest at night", "é"], 290)
    ids = tokenizer.encode(text)
    found = words_in(text, tokenizer.spans(text), first=1)
    assert [word for word, _ in found] == words
    for word, places in found:
        assert list(places) == list(range(places[0], places[-1] + 1))
        spelled = b"".join(tokenizer.token_bytes(ids[place - 1]) for place in places).decode()
        assert spelled.strip(" ") == word


def test_a_prompt_is_split_as_its_encoder_reads_it(tiny: ImageModel) -> None:
    """Small letters, no space at its ends; places count the token that begins every prompt."""
    found = tiny.prompter.words("  A Cat on a BEACH ")
    assert [word for word, _ in found] == ["a", "cat", "on", "a", "beach"]
    assert found == tiny.prompter.words("a cat on a beach")
    assert found[0][1] == (1,)
    assert tiny.prompter.words("a (cat:1.3) on (a (beach:2):0.8)") == found


def test_words_are_the_sums_of_their_tokens() -> None:
    maps = random(2, 6, 3, 3).softmax(1)
    found = of_words(maps, [("a", (1,)), ("hat", (2, 3, 5))])
    assert torch.allclose(found[:, 1], maps[:, 2] + maps[:, 3] + maps[:, 5])
    assert of_words(maps, []).shape == (2, 0, 3, 3)


def test_the_centre_is_where_the_mass_is() -> None:
    maps = torch.full((3, 4, 8), 0.1)
    maps[0, 0, 7] = 0.5  # one place, right above
    maps[1, 3, :4] = 0.5  # half of the lowest row
    found = centre(maps)
    assert torch.allclose(found, torch.tensor([[7.5 / 8, 0.5 / 4], [2 / 8, 3.5 / 4], [0.5, 0.5]]), atol=1e-4)


def test_the_numbers_of_a_word_are_those_of_its_maps() -> None:
    maps = torch.zeros(3, 2, 2, 2, 2)
    maps[:, 1, 1, 0, 0] = torch.tensor([0.2, 0.4, 0.6])
    rows = figures(WordMaps(("a", "hat"), maps.half()), 1, 1, range(1, 3))
    assert [row.get("index") for row in rows] == [1, 2, None]
    assert [row["share"] for row in rows] == pytest.approx([0.1, 0.15, 0.125], abs=1e-3)
    assert all(row["centre"] == [0.25, 0.25] and row["word"] == "hat" for row in rows)


def test_a_trace_keeps_the_maps(tiny: ImageModel, tmp_path: Any) -> None:
    result = tiny.generate("a cat and a cat", steps=3, seed=1, count=2, words=True).result()
    result.trace.save(tmp_path / "cat.trace")
    kept = WordMaps.of(Trace.load(tmp_path / "cat.trace"))
    assert result.words is not None
    assert kept.words == result.words.words
    assert torch.equal(kept.maps, result.words.maps)
    assert kept.maps.dtype == torch.float16
    assert kept.names == ["a", "cat", "and", "a (2)", "cat (2)"]
    assert kept.places(["Cat"]) == [1, 4]
    assert torch.allclose(kept.map("cat", 1), kept.maps[:, 1, [1, 4]].float().sum(1).mean(0))
    assert float(kept.shares().sum(-1).max()) < 1
    assert kept.centres().shape == (3, 2, 5, 2)
    with pytest.raises(ValueError, match="unknown word 'dog'"):
        kept.map("dog")


BREAKS: list[Callable[[Trace], Any]] = [
    lambda trace: trace.arrays.pop("words"),
    lambda trace: trace.settings.pop("words"),
    lambda trace: trace.settings.update(words=["a"]),
    lambda trace: trace.settings.update(words=[1, 2]),
    lambda trace: trace.settings.update(words="ac"),
    lambda trace: trace.arrays.update(words=trace.arrays["words"][0]),
    lambda trace: trace.arrays.update(words=trace.arrays["words"].int()),
    lambda trace: trace.arrays.update(words=trace.arrays["words"] * float("nan")),
    lambda trace: trace.arrays.update(words=trace.arrays["words"] - 1),
    lambda trace: trace.arrays.update(words=trace.arrays["words"][..., :0]),
]


@pytest.mark.parametrize("broken", BREAKS)
def test_maps_that_cannot_be_are_refused(tiny: ImageModel, broken: Callable[[Trace], Any]) -> None:
    trace = tiny.generate("a cat", steps=2, seed=1, words=True).result().trace
    broken(trace)
    with pytest.raises(ValueError, match=r"^(holds no maps|is not a whole trace)"):
        WordMaps.of(trace)


@pytest.mark.parametrize(
    ("prompt", "thing"),
    [
        ("a fox wearing a top hat in a forest at night", "hat"),
        ("a cat wearing sunglasses on a beach at sunset", "sunglasses"),
        ("a rabbit wearing a crown in the snow", "crown"),
    ],
)
@torch.inference_mode()
def test_a_word_that_is_hidden_changes_the_picture_where_its_map_lies(prompt: str, thing: str) -> None:
    """Against cause and effect, on the bundled model: the network is asked again with the word masked out. What it says
    then differs most where the word was looked at from, and no other word's map tells these places as well."""
    brush = diptych.load("brush")
    generation = brush.generate(prompt, steps=12, seed=3, count=2, guidance_scale=1.0, words=True)
    step = next(step for step in generation if step.index == 3)
    assert step.words is not None
    node, condition = [Node(0.0, step.alpha, step.sigma)] * 2, brush.encode([prompt]).repeat(2)
    words = brush.prompter.words(prompt)
    (own,) = (place for place, (word, _) in enumerate(words) if word == thing)
    assert condition.mask is not None
    hidden = condition.mask.clone()
    hidden[:, list(words[own][1])] = False
    without = brush.denoiser(step.noisy, node, Condition(condition.context, hidden))
    change = (without - brush.denoiser(step.noisy, node, condition)).abs().mean(1, keepdim=True)
    change = F.adaptive_avg_pool2d(change, step.words.shape[-2:])
    for changed, maps in zip(change, step.words.float(), strict=True):
        rows = torch.cat((changed.flatten()[None], maps.flatten(1)))
        likeness = torch.corrcoef(rows)[0, 1:]
        assert int(likeness.argmax()) == own
        assert likeness[own] > 0.6
