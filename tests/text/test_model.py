import json

import pytest
import torch
import torch._dynamo

from diptych.text.cache import leave_uncompiled
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.model import TextModel
from diptych.text.reader import Part, Reader


def test_a_saved_model_writes_the_same(model, tmp_path):
    model.save(tmp_path / "tiny", card="# tiny\n")
    loaded = TextModel.load(tmp_path / "tiny", device="cpu", dtype="float32")
    assert (loaded.name, loaded.panel, loaded.config) == ("tiny", "text", model.config)
    assert (tmp_path / "tiny" / "README.md").read_text() == "# tiny\n"
    settings = {"seed": 4, "max_tokens": 20}
    assert loaded.generate("Once", **settings).result().tokens == model.generate("Once", **settings).result().tokens


def test_score_agrees_with_the_probabilities_of_writing(model):
    prompt = model.prompt_ids("The cat")
    generation = model.generate("The cat", seed=1, max_tokens=10, temperature=1.0)
    written = generation.result().tokens
    scores = model.score([*prompt, *written])
    assert scores.shape == (len(prompt) + len(written) - 1,)
    probabilities = torch.tensor([step.probability for step in generation.steps])
    torch.testing.assert_close(scores[-len(written) :].exp(), probabilities, rtol=1e-3, atol=1e-6)


def test_a_text_has_a_score_for_each_of_its_tokens(model):
    assert len(model.score("The cat saw")) == len(model.tokenizer.encode("The cat saw"))


@pytest.mark.parametrize("together", [3, 64])
def test_a_text_that_is_read_has_the_steps_that_would_have_drawn_it(model, monkeypatch, together):
    """Against `score`, and against the decoder without a cache; read in pieces or at once."""
    monkeypatch.setattr("diptych.text.model.TOGETHER", together)
    text = "The cat saw a dog 🦊"
    steps = list(model.read(text, num_candidates=4))
    ids = model.prompt_ids(text)
    assert "".join(step.text for step in steps) == text
    assert [step.token for step in steps] == ids[1:]
    torch.testing.assert_close(torch.tensor([step.log_probability for step in steps]), model.score(text))
    probability = torch.softmax(model.decoder(torch.tensor([ids[:-1]]))[0].detach().double(), -1)
    for step, expected in zip(steps, probability, strict=True):
        leading = expected.topk(4)
        assert [one.token for one in step.candidates[:4]] == leading.indices.tolist()
        assert [one.probability for one in step.candidates[:4]] == pytest.approx(leading.values.tolist(), rel=1e-3)
        assert step.entropy == pytest.approx(float(torch.special.entr(expected).sum()), rel=1e-3)


def test_a_text_longer_than_the_context_is_scored_but_not_read(model):
    ids = [20] * 66
    assert len(model.score(ids)) == 65
    assert len(list(model.read(ids[:65]))) == 64
    with pytest.raises(ValueError, match="the text has 66 tokens; the model's context takes at most 64"):
        model.read(ids)


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(model, prompt):
    with pytest.raises(ValueError, match="the prompt is empty"):
        model.generate(prompt)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"panel": "image"}, 'needs panel "text" and a decoder'),
        ({"panel": "text", "decoder": {"width": 8}}, "config.json': decoder settings lack vocab_size"),
    ],
)
def test_other_checkpoints_are_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        TextModel.load(tmp_path)


def test_a_seed_is_named_when_none_is_given(model):
    result = model.generate("Once", max_tokens=5).result()
    again = model.generate("Once", max_tokens=5, seed=result.seed).result()
    assert again.tokens == result.tokens


@pytest.mark.parametrize(
    "settings", [{"temperature": 1.0}, {"temperature": 0.9, "repetition_penalty": 1.3, "stop": "e"}]
)
def test_each_of_several_texts_is_the_one_that_it_is_alone(model, settings):
    """With the same seed and sample; they end at different steps."""
    generation = model.generate("The cat", n=5, seed=8, max_tokens=40, **settings)
    results = generation.results()
    assert len({result.text for result in results}) > 1
    for sample, result in enumerate(results):
        alone = model.generate("The cat", first_sample=sample, seed=8, max_tokens=40, **settings).result()
        assert (result.tokens, result.text, result.finish_reason) == (alone.tokens, alone.text, alone.finish_reason)
        assert result.settings["sample"] == sample
        own = [step for step in generation.steps if step.sample == sample]
        assert [step.index for step in own] == list(range(len(result.tokens)))
        assert "".join(step.text for step in own) == result.text
    assert generation.result() is results[0]


def test_several_texts_read_their_prompt_once(model):
    shapes, decoder = [], model.decoder
    watch = decoder.register_forward_pre_hook(lambda _, arguments: shapes.append(tuple(arguments[0].shape)))
    try:
        model.generate("The cat saw a dog", n=4, seed=1, max_tokens=2, temperature=0.5).results()
    finally:
        watch.remove()
    assert shapes == [(1, len(model.prompt_ids("The cat saw a dog"))), (4, 1)]


@pytest.mark.parametrize("n", [0, -1, 257, 2.0, True])
def test_an_impossible_number_of_texts_is_named(model, n):
    with pytest.raises(ValueError, match=f"n must be a whole number from 1 to 256, not {n}"):
        model.generate("Once", n=n)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_blocks_share_what_is_compiled(monkeypatch):
    """Once for a prompt and once for a token, however many blocks there are; with the logits of the model as it was."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 3)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch.compiler.reset()
    torch.manual_seed(3)
    sizes = {"vocab_size": 97, "width": 32, "num_layers": 6, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
    decoder = Decoder(DecoderConfig(**sizes, hidden=48, context=64)).eval().requires_grad_(False)
    found = []
    for is_compiled in (False, True):
        if is_compiled:
            leave_uncompiled()
            for block in decoder.blocks:
                block.compile(dynamic=True, backend="eager")  # which guards alike and is quick
        reader = Reader(decoder)
        slot = reader.cache.reserve(5)
        found.append([reader.read([Part(slot, tokens)])[0] for tokens in ([5, 6, 7, 8, 9], [10], [11], [12])])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=0, atol=1e-5)
