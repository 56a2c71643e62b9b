"""Speculation changes how many calls a text takes, and nothing else: texts are compared with those made without it.

Everything is float32, where rounding is too small to turn a draw of these seeds.
"""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from diptych.core.tokenizer import Tokenizer
from diptych.text.decoder import Decoder
from diptych.text.model import TextModel
from diptych.text.record import Speculated
from diptych.text.runner import TextRequest, TextRunner
from diptych.text.settings import Settings
from diptych.text.speculation import NgramLookup, Unfinished, drafter_of


@pytest.fixture(scope="module")
def near(model, config):
    """A draft model that is often right: the weights of the model itself, disturbed."""
    decoder = Decoder(config)
    decoder.load_state_dict(model.decoder.state_dict())
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return TextModel("near", decoder.eval(), model.tokenizer)


class Planned:
    """Drafts what it is told to: a known text, wrong at every third place."""

    name = "planned"

    def __init__(self, tokens):
        self.tokens = tokens

    def draft(self, texts):
        drafts = []
        for text in texts:
            start = len(text.ids) - len(text.request.prompt_ids)
            places = range(start, min(start + text.count, len(self.tokens)))
            drafts.append([self.tokens[place] if place % 3 != 2 else 17 for place in places])
        return drafts

    def forget(self, slot):
        pass


SETTINGS = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 1.0},
    "controlled": {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.02},
    "penalised": {"temperature": 0.9, "repetition_penalty": 1.4, "frequency_penalty": 0.3, "min_tokens": 30},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("speculate", ["ngram", "near", "itself"])
def test_the_text_is_the_same_with_and_without(model, near, speculate, settings):
    """Every token, and what its step says of it."""
    drafter = {"ngram": "ngram", "near": near, "itself": model}[speculate]
    for seed in range(4):
        made = [
            model.generate("The cat saw the cat saw the", seed=seed, max_tokens=45, **settings, speculate=one)
            for one in (None, drafter)
        ]
        plain, speculated = (generation.result() for generation in made)
        assert speculated.tokens == plain.tokens
        assert (speculated.text, speculated.finish_reason) == (plain.text, plain.finish_reason)
        for one, other in zip(made[0].steps, made[1].steps, strict=True):
            assert one.drawn_probability == pytest.approx(other.drawn_probability, rel=1e-3)
        assert speculated.speculation.calls <= len(plain.tokens)


def test_a_model_that_drafts_for_itself_is_always_right(model):
    """It draws with the same numbers: each call yields all that was drafted and one token more."""
    result = model.generate("The cat", seed=3, max_tokens=21, temperature=1.0, speculate=model, draft_tokens=4).result()
    assert result.speculation == Speculated("tiny", drafted=16, accepted=16, calls=5, tokens=21)
    assert (result.speculation.acceptance_rate, result.speculation.tokens_per_call) == (1.0, 4.2)


def test_what_was_wrongly_drafted_leaves_no_trace(model):
    """A drafter that is wrong at known places: the count is exact, the text is unharmed."""
    plain = model.generate("Once", seed=2, max_tokens=30, temperature=1.0).result()
    assert 17 not in plain.tokens
    assert len(plain.tokens) == 30
    runner = TextRunner(model.decoder, model.tokenizer, drafter=Planned(plain.tokens))
    request = TextRequest(model.prompt_ids("Once"), Settings(max_tokens=30, temperature=1.0), seed=2, draft_tokens=4)
    job = runner.admit(request)
    while not job.is_done:
        runner.advance([job])
    result = runner.finish(job)
    assert result.tokens == plain.tokens
    # Token 0 comes with the prompt; each later call gives those up to the next wrong place, and what is right there.
    assert (result.speculation.calls, result.speculation.accepted) == (11, 19)


def test_jobs_with_and_without_speculation_share_a_batch(model, near):
    """They begin at different moments and move by one step each; each text is the one that it is alone."""
    prompts = ["Once", "The cat saw a dog and said", "hello hello hello", "fox"]
    requests = [
        TextRequest(model.prompt_ids(prompt), Settings(max_tokens=20 + index), seed=index, draft_tokens=3 * (index % 2))
        for index, prompt in enumerate(prompts)
    ]
    runner, results, jobs = model.runner(speculate=near), {}, {}
    for moment in range(60):
        if moment % 5 == 0 and moment // 5 < len(requests):
            jobs[moment // 5] = runner.admit(requests[moment // 5])
        assert len(runner.advance(list(jobs.values()))) == len(jobs)
        for index in [index for index, job in jobs.items() if job.is_done]:
            results[index] = runner.finish(jobs.pop(index))
    for index, request in enumerate(requests):
        plain = model.runner()
        job = plain.admit(replace(request, draft_tokens=0))
        while not job.is_done:
            plain.advance([job])
        assert results[index].tokens == job.tokens
        assert (results[index].speculation is None) == (index % 2 == 0)


@pytest.mark.parametrize("chunk", [1, 3])
def test_drafts_may_be_longer_than_a_chunk_of_the_prompt(model, chunk):
    settings = Settings(max_tokens=25, temperature=1.0)
    request = TextRequest(model.prompt_ids("The cat saw"), settings, seed=1, draft_tokens=6)
    runner = TextRunner(model.decoder, model.tokenizer, chunk=chunk, drafter=drafter_of(model, model.tokenizer))
    job = runner.admit(request)
    while not job.is_done:
        runner.advance([job])
    plain = model.generate("The cat saw", seed=1, max_tokens=25, temperature=1.0).result()
    assert runner.finish(job).tokens == plain.tokens


def test_a_finished_text_is_forgotten_by_its_drafter(model, near):
    """One slot of the draft model is enough for many texts, one after another."""
    drafter = drafter_of(near, model.tokenizer)
    runner = TextRunner(model.decoder, model.tokenizer, drafter=drafter)
    for seed in range(3):
        job = runner.admit(TextRequest([5, 6], Settings(max_tokens=9, temperature=1.0), seed=seed, draft_tokens=2))
        while not job.is_done:
            runner.advance([job])
        runner.finish(job)
        assert len(drafter._reader.cache.lengths) == 1
        assert drafter._reader.cache.lengths == [0]


def test_several_samples_with_speculation_are_those_without(model, near):
    plain = model.generate("The cat", n=3, seed=1, max_tokens=25, temperature=1.0).results()
    drafted = model.generate("The cat", n=3, seed=1, max_tokens=25, temperature=1.0, speculate=near).results()
    assert [result.tokens for result in drafted] == [result.tokens for result in plain]
    assert all(result.speculation.tokens_per_call > 1 for result in drafted)


def test_a_draft_model_reads_the_prompt_of_several_texts_once(model, near):
    shapes = []
    watch = near.decoder.register_forward_pre_hook(lambda _, arguments: shapes.append(tuple(arguments[0].shape)))
    try:
        model.generate("The cat", n=3, seed=1, max_tokens=4, temperature=1.0, speculate=near, draft_tokens=1).results()
    finally:
        watch.remove()
    assert shapes[:2] == [(1, len(model.prompt_ids("The cat"))), (3, 1)]


def test_the_distribution_is_the_models_own(model, config):
    """Chi-square of 4,000 texts of four tokens from a vocabulary of three (a bias leaves no others), drafted by a model
    with other weights, against the probability of each of the 81 texts, which the decoder gives without drawing."""
    torch.manual_seed(1)
    decoder = Decoder(config).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    draft = TextModel("another", decoder, model.tokenizer)
    prompt, vocabulary, count = [60], [40, 50, 70], 4000
    settings = Settings(
        max_tokens=4, temperature=2.0, min_p=0, logit_bias=dict.fromkeys(vocabulary, 80.0), num_candidates=1
    )
    runner = model.runner(slots=count, speculate=draft)
    jobs = [
        runner.admit(TextRequest(prompt, settings, seed=7, sample=sample, draft_tokens=3)) for sample in range(count)
    ]
    for _ in range(4):
        runner.advance(jobs)
    results = [runner.finish(job) for job in jobs]
    share = sum(result.speculation.accepted for result in results) / sum(
        result.speculation.drafted for result in results
    )
    assert 0.2 < share < 0.8

    texts = torch.tensor(list(itertools.product(vocabulary, repeat=4)))
    with torch.no_grad():
        logits = model.decoder(torch.cat((torch.full((81, 1), 60), texts[:, :-1]), dim=1))[..., vocabulary]
    places = (texts[..., None] == torch.tensor(vocabulary)).int().argmax(-1, keepdim=True)
    chances = (logits.double() / 2.0).softmax(-1).gather(-1, places)[..., 0].prod(-1)  # (81,)
    assert float(chances.sum()) == pytest.approx(1.0)
    drawn = Counter(tuple(result.tokens) for result in results)
    seen = torch.tensor([drawn[tuple(text)] for text in texts.tolist()], dtype=torch.float64)
    assert seen.sum() == count
    expected = chances * count
    is_rare = expected < 5  # counted as one
    seen, expected = (torch.cat((x[~is_rare], x[is_rare].sum()[None])) for x in (seen, expected))
    freedom = len(seen) - 1
    assert freedom > 20
    assert abs(float(((seen - expected) ** 2 / expected).sum()) - freedom) < 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(
    ("text", "count", "drafted"),
    [
        ([1, 2, 3, 4, 9, 1, 2, 3], 3, [4, 9, 1]),  # the longest run that stood there before
        ([1, 2, 3, 4, 5, 2, 3, 6, 1, 2, 3], 2, [4, 5]),  # three tokens say more than the later two
        ([1, 2, 7, 1, 2, 8, 1, 2], 1, [8]),  # of equal runs the latest
        ([5, 6, 5, 6, 5], 4, [6, 5, 6, 5]),  # a period shorter than the draft
        ([4, 4], 3, [4, 4, 4]),
        ([1, 2, 3], 4, []),
        ([7], 4, []),
    ],
)
def test_ngrams_propose_what_followed_before(text, count, drafted):
    """The same whether the text was seen at once or as it grew."""
    request = TextRequest([1])
    assert NgramLookup().draft([Unfinished(0, request, text, count)]) == [drafted]
    growing = NgramLookup()
    for length in range(1, len(text)):
        growing.draft([Unfinished(0, request, text[:length], count)])
    assert growing.draft([Unfinished(0, request, text, count)]) == [drafted]


def test_a_slot_that_is_used_again_remembers_nothing():
    lookup, request = NgramLookup(), TextRequest([1])
    assert lookup.draft([Unfinished(0, request, [1, 2, 3, 1], 1)]) == [[2]]
    lookup.forget(0)
    assert lookup.draft([Unfinished(0, request, [5, 6, 1], 1)]) == [[]]


def test_a_draft_model_with_a_shorter_context_stops_there(model, config):
    torch.manual_seed(1)
    short = Decoder(type(config).from_dict(config.to_dict() | {"context": 16})).eval()
    draft = TextModel("short", short, model.tokenizer)
    settings = {"seed": 4, "max_tokens": 40, "temperature": 1.0}
    for prompt in ("The cat", list(range(20, 40))):
        made = [model.generate(prompt, **settings, speculate=one).result().tokens for one in (draft, None)]
        assert made[0] == made[1]


def test_the_context_holds_with_drafts(model):
    """Drafts are never read past its end: the last tokens are the ones written without."""
    prompt = [model.tokenizer.begin] + [20, 21] * (model.config.context // 2 - 4)
    plain, drafted = (
        model.generate(prompt, temperature=0, max_tokens=100, speculate=one).result().tokens for one in (None, "ngram")
    )
    assert drafted == plain


def test_other_drafters_are_refused_in_a_line(model, config):
    other = Tokenizer.train(["another text"], model.tokenizer.size - 5)
    stranger = TextModel("stranger", Decoder(config), other)
    with pytest.raises(ValueError, match="'stranger' cannot draft: its tokenizer is another than that of the model"):
        model.generate("Once", speculate=stranger)
    with pytest.raises(ValueError, match="speculate must be 'ngram' or a text model, not 'ngrams'"):
        model.generate("Once", speculate="ngrams")
    with pytest.raises(ValueError, match="draft_tokens must be a whole number from 0 to 64, not 65"):
        model.generate("Once", speculate="ngram", draft_tokens=65)
    with pytest.raises(ValueError, match="draft_tokens must be 0, not 2: this runner has nothing to draft with"):
        model.runner().admit(TextRequest([5], draft_tokens=2))
