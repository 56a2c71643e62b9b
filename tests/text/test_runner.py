from dataclasses import replace

import pytest
import torch

from diptych.core.positions import KINDS, RopeScaling
from diptych.core.trace import Trace
from diptych.text.decoder import Decoder
from diptych.text.runner import TextRequest, TextRunner
from diptych.text.settings import Settings, listed
from diptych.text.writer import Writer


def written(model, request):
    runner = model.runner()
    job = runner.admit(request)
    while not job.is_done:
        runner.advance([job])
    return runner.finish(job)


def test_a_text_comes_out_the_same_alone_and_in_company(model):
    """Five jobs that enter at different moments and leave at different moments, against each of them alone."""
    prompts = ["Once", "The cat saw a dog and said", "A", "hello hello hello", "fox"]
    requests = [
        TextRequest(model.prompt_ids(prompt), Settings(max_tokens=8 + 3 * index, temperature=1.0), index % 2, index)
        for index, prompt in enumerate(prompts)
    ]
    runner = TextRunner(model.decoder, model.tokenizer)
    jobs, results, moment = {}, {}, 0
    while len(results) < len(requests):
        if moment % 3 == 0 and moment // 3 < len(requests):
            jobs[moment // 3] = runner.admit(requests[moment // 3])
        runner.advance(list(jobs.values())[::-1])
        for index in [index for index, job in jobs.items() if job.is_done]:
            results[index] = runner.finish(jobs.pop(index))
        moment += 1
    for index, request in enumerate(requests):
        assert results[index].tokens == written(model, request).tokens


@pytest.mark.parametrize("scaling", [None, *KINDS])
def test_a_prompt_read_in_chunks_goes_on_as_one_read_whole(model, scaling):
    """Against the decoder that reads it at once; other texts of the call are further on, or shorter than a chunk."""
    scaling = scaling and RopeScaling(scaling, 4.0, 16)
    decoder = Decoder(replace(model.config, rope_scaling=scaling)).eval()
    decoder.load_state_dict(model.decoder.state_dict())
    prompts = [[3 + 7 * place % 250 for place in range(length)] for length in (40, 7, 23, 16)]
    runner = TextRunner(decoder, model.tokenizer, chunk=8)
    jobs = [runner.admit(TextRequest(prompt, Settings(num_candidates=3))) for prompt in prompts]
    for job, step in zip(jobs, runner.advance(jobs[:2]) + runner.advance(jobs[2:]), strict=True):
        logits = decoder(torch.tensor([job.request.prompt_ids]))[0, -1].detach()
        expected = logits.double().softmax(-1).topk(3)
        assert [one.token for one in step.candidates[:3]] == expected.indices.tolist()
        assert [one.probability for one in step.candidates[:3]] == pytest.approx(expected.values.tolist(), rel=1e-3)
    with pytest.raises(ValueError, match="chunk must be a whole number of tokens >= 1, not 0"):
        TextRunner(decoder, model.tokenizer, chunk=0)


def test_one_seed_one_text(model):
    first, again, other = (model.generate("Once", seed=seed, max_tokens=20).result() for seed in (5, 5, 6))
    assert first.tokens == again.tokens != other.tokens


def test_greedy_writing_follows_the_most_probable_token(model):
    """Against reading the whole text again, without a cache, for every token."""
    result = model.generate("The cat", temperature=0, max_tokens=15).result()
    ids = model.prompt_ids("The cat")
    for token in result.tokens:
        assert token == int(model.decoder(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)


def test_steps_report_the_models_own_distribution(model):
    generation = model.generate("The cat", temperature=0.7, top_k=5, max_tokens=6, seed=2, num_candidates=4)
    ids = model.prompt_ids("The cat")
    for index, step in enumerate(generation):
        probability = model.decoder(torch.tensor([ids]))[0, -1].double().softmax(-1).detach()
        assert step.index == index
        assert step.probability == pytest.approx(float(probability[step.token]), rel=1e-3)
        assert step.entropy == pytest.approx(float(-(probability * probability.log()).sum()), rel=1e-3)
        leading = [candidate.token for candidate in step.candidates[:4]]
        assert leading == probability.topk(4).indices.tolist()
        assert step.token in [candidate.token for candidate in step.candidates]
        ids.append(step.token)
    assert generation.result().tokens == ids[-len(generation.steps) :]


@pytest.mark.parametrize("seed", range(6))
def test_pieces_of_the_steps_are_the_text(model, seed):
    """A random model writes bytes that break inside characters: what is shown never has to be taken back."""
    generation = model.generate("🦊 é", temperature=2.0, max_tokens=40, seed=seed)
    result = generation.result()
    assert "".join(step.text for step in generation.steps) == result.text == model.tokenizer.decode(result.tokens)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_character_appears_when_its_bytes_are_whole(cut):
    data = "a🦊é–z".encode()
    writer = Writer(())
    pieces = [writer.write(data[:cut], is_last=False), writer.write(data[cut:], is_last=True)]
    assert "".join(pieces) == data.decode()
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_is_shown_as_such_at_the_end():
    writer = Writer(())
    assert writer.write("🦊".encode()[:2], is_last=False) == ""
    assert writer.write(b"", is_last=True) == "\ufffd"


@pytest.mark.parametrize(
    ("pieces", "stop", "text"),
    [
        (["one ", "EN", "D two"], ("END",), "one "),
        (["one ", "EN", "E", "ND"], ("END",), "one EN"),
        (["aaaa", "ab", "c"], ("aab",), "aaa"),
        (["x", "y", "z"], ("yz", "xyz"), ""),
        (["one EN"], ("END",), "one EN"),
        (["ab", "cd"], ("bcx", "d"), "abc"),
    ],
)
def test_a_stop_text_is_never_shown(pieces, stop, text):
    """Whatever tokens it is spread over; what only began like it is shown after all."""
    writer, shown = Writer(stop), ""
    for index, piece in enumerate(pieces):
        shown += writer.write(piece.encode(), is_last=index == len(pieces) - 1)
        if writer.has_stopped:
            break
    assert shown == text
    assert writer.has_stopped == any(ending in "".join(pieces) for ending in stop)


def test_a_stop_text_ends_the_generation(model):
    whole = model.generate("Once", seed=3, max_tokens=40, temperature=0.9).result()
    stop = whole.text[6:9]
    result = model.generate("Once", seed=3, max_tokens=40, temperature=0.9, stop=stop).result()
    assert result.finish_reason == "stop"
    assert result.text == whole.text[: whole.text.index(stop)]


def test_the_context_ends_a_text(model):
    context = model.config.context
    prompt = [model.tokenizer.begin] + [20] * (context - 4)
    request = TextRequest(prompt, Settings(max_tokens=1000, temperature=0.0))
    result = written(model, request)
    assert result.finish_reason in ("length", "stop")
    assert len(result.tokens) <= 4
    assert len(written(model, TextRequest(prompt[:-1], Settings(min_tokens=5))).tokens) == 5


def test_a_prompt_that_fills_the_context_is_refused_before_work(model):
    for count in (64, 65):
        with pytest.raises(ValueError, match=f"the prompt has {count} tokens and fills the model's context of 64"):
            model.generate([20] * count)


@pytest.mark.parametrize(
    ("prompt_ids", "seed", "message"), [([], 0, "the prompt is empty"), ([1], -1, "seed must be a whole number")]
)
def test_wrong_requests_are_named(prompt_ids, seed, message):
    with pytest.raises(ValueError, match=message):
        TextRequest(prompt_ids, seed=seed)


def test_unknown_token_ids_are_refused(model):
    with pytest.raises(ValueError, match="prompt token ids must be whole numbers from 0 to"):
        model.generate([5, model.tokenizer.size])
    with pytest.raises(ValueError, match="logit_bias token ids must be whole numbers from 0 to"):
        model.generate([5], logit_bias={model.tokenizer.size: 1})


def test_a_cancelled_job_frees_its_place(model):
    runner = model.runner()
    for seed in range(5):
        job = runner.admit(TextRequest([5, 6], seed=seed))
        step = runner.advance([job])[0]
        result = runner.finish(job)
        assert (result.finish_reason, result.text) == ("cancelled", step.text)
        assert job.slot == 0
    with pytest.raises(ValueError, match="cannot be advanced"):
        runner.advance([job])


def test_a_trace_holds_every_step(model, tmp_path):
    steered = {"stop": "zzz", "logit_bias": {30: 2}, "constraint": {"regex": "[a-z ]+"}}
    result = model.generate("The fox", seed=9, max_tokens=12, **steered).result()
    result.trace.save(tmp_path / "fox.trace")
    trace = Trace.load(tmp_path / "fox.trace")
    assert trace.arrays["tokens"].tolist() == result.tokens
    assert trace.arrays["candidate_tokens"].shape == (len(result.tokens), 8)
    assert "".join(fact["text"] for fact in trace.facts) == result.text
    assert (trace.settings["prompt"], trace.settings["seed"], trace.settings["stop"]) == ("The fox", 9, ["zzz"])
    chosen = {name: trace.settings[name] for name in listed()}
    again = TextRequest(trace.settings["prompt_ids"], Settings.named(chosen), trace.settings["seed"])
    assert written(model, again).tokens == result.tokens


def test_a_text_does_not_end_before_min_tokens(model):
    """A bias that makes the end certain: it comes first where it is allowed, and not before."""
    end = model.tokenizer.end
    for min_tokens in (0, 1, 7):
        tokens = model.generate("Once", seed=1, min_tokens=min_tokens, logit_bias={end: 1e4}).result().tokens
        assert (len(tokens), tokens[-1]) == (min_tokens + 1, end)
        assert end not in tokens[:-1]


def test_log_probabilities_are_those_of_the_model(model):
    """Whatever the controls: of the drawn token and of the most probable, against `score`."""
    generation = model.generate("The cat", seed=2, max_tokens=9, temperature=0.3, top_k=5, num_candidates=3)
    tokens = generation.result().tokens
    prompt = model.prompt_ids("The cat")
    for step in generation.steps:
        before = [*prompt, *tokens[: step.index]]
        for one in [step.candidates[0], step.candidates[2]]:
            assert one.log_probability == pytest.approx(float(model.score([*before, one.token])[-1]), abs=1e-4)
        assert step.log_probability == pytest.approx(float(model.score([*before, step.token])[-1]), abs=1e-4)
