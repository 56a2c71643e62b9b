import io
import json
import re
import stat
from pathlib import Path

import pytest
import torch
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from diptych.cli.chat import COMMANDS, Chat, read_conversation
from diptych.core.tokenizer import Tokenizer
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.model import TextModel

FIRST = {"role": "user", "content": "Once upon"}


@pytest.fixture(scope="module")
def model(tiny_quill) -> TextModel:
    return TextModel.load(tiny_quill, device="cpu", dtype="float32")


@pytest.fixture
def say(diptych, tiny_quill, monkeypatch):
    """Lines of a pipe -> what came of them."""

    def run(*lines: str, options: tuple[object, ...] = ("--set", "max_tokens=12", "--seed", 5)):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return diptych("chat", tiny_quill, "--dtype", "float32", *options)

    return run


def answer(model: TextModel, messages: list[dict[str, str]], seed: int) -> str:
    return model.chat(messages, max_tokens=12, seed=seed).result().text


def test_each_line_of_a_pipe_is_answered_with_all_before_it_in_mind(say, model):
    first = answer(model, [FIRST], 5)
    messages = [FIRST, {"role": "assistant", "content": first}, {"role": "user", "content": "a cat"}]
    run = say("Once upon", "", "a cat")
    assert (run.status, run.out) == (0, f"{first}\n{answer(model, messages, 6)}\n")
    assert run.err.startswith("tiny-quill was never taught to chat: it goes on writing where your text ends.")


def test_a_conversation_is_kept_and_gone_on_with(say, model, folder):
    say("/system A story.", "Once upon", "/set temperature=0.5", "/save kept.json", "/exit", "never read")
    kept = read_conversation(folder / "kept.json")
    assert [message["role"] for message in kept["messages"]] == ["system", "user", "assistant"]
    assert kept["settings"] == {"max_tokens": 12, "seed": 5, "temperature": 0.5}
    again = say("/save again.json", options=("--load", "kept.json"))
    assert "kept.json: 3 messages with tiny-quill\n" in again.err
    assert (folder / "again.json").read_bytes() == (folder / "kept.json").read_bytes()


def test_undo_clear_and_system_change_what_the_model_is_given(say, folder):
    say(*("Once", "a cat", "/undo", "/system Be brief.", "/save a.json", "/clear", "/save b.json"))
    contents = [message["content"] for message in read_conversation(folder / "a.json")["messages"]]
    assert (contents[:2], len(contents)) == (["Be brief.", "Once"], 3)
    assert read_conversation(folder / "b.json")["messages"] == [{"role": "system", "content": "Be brief."}]


def test_retry_draws_another_answer_to_the_same(say, model, folder):
    run = say("Once upon", "/retry", "/save a.json")
    assert run.out == f"{answer(model, [FIRST], 5)}\n{answer(model, [FIRST], 6)}\n"
    assert len(read_conversation(folder / "a.json")["messages"]) == 2


def test_odds_have_a_row_a_token(say):
    rows = say("/odds on", "Once upon", options=("--set", "max_tokens=4", "--seed", 5)).out.splitlines()
    assert [int(line[:3]) for line in rows if "→" in line and line[:3].strip().isdigit()] == [1, 2, 3, 4]


def test_settings_and_help_list_everything(say):
    run = say("/settings", "/help")
    assert {"max_tokens = 12", "seed = 5", "temperature = 0.8", "stop = []"} <= set(run.err.splitlines())
    assert all(any(line.startswith(f"{name} ") for line in run.err.splitlines()) for name in COMMANDS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sytem x", "unknown command '/sytem'; did you mean '/system'?"),
        ("/set temperatur=1", "unknown setting 'temperatur'; did you mean 'temperature'?"),
        ("/set temperature=-1", "temperature must be a finite number >= 0, not -1"),
        ("/set temperature=warm", "temperature must be a finite number >= 0, not 'warm'"),
        ("/set seed=-1", "seed must be a whole number from 0 to"),
        ("/set temperature", "a setting is changed with NAME=VALUE, not 'temperature'"),
        ("/odds maybe", "/odds takes on or off, not 'maybe'"),
        ("/retry", "nothing has been said yet"),
        ("/undo", "nothing has been said yet"),
        ("/save", "/save needs the name of a file"),
        ("/save no/a.json", "the output folder 'no' does not exist"),
        ("/load a.json", "there is no conversation at 'a.json'"),
        ("cat " * 5000, "the prompt has "),
    ],
)
def test_in_a_pipe_the_first_error_ends_it_in_one_line(say, folder, line, message):
    run = say(line, "Once", options=())
    assert (run.status, run.out) == (2, "")
    assert run.err.splitlines()[1].startswith(f"diptych: {message}")
    assert run.err.count("\n") == 2
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "x"}, "is not a conversation of this version"),
        ({"messages": None}, "its messages is missing or of another kind"),
        ({"messages": [{"role": "root", "content": "a"}]}, "message 1 of the conversation: unknown role 'root'"),
        ({"messages": [{"role": "user", "content": 1}]}, "message 1 of the conversation must have a content"),
        ({"settings": {"temperature": "hot"}}, "temperature must be a finite number"),
        ({"settings": {"x": 1}}, "unknown setting 'x'"),
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(model, folder, changed, message):
    whole = {"format": "diptych-conversation-1", "model": "m", "settings": {"top_k": 3}, "messages": [FIRST]}
    (folder / "a.json").write_text(json.dumps(whole | changed))
    talk = Chat(model)
    with pytest.raises(ValueError, match=message):
        talk.load("a.json")
    assert (talk.messages, talk.chosen) == ([], {})


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_file_that_is_not_json_is_one_line(folder, text):
    (folder / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"'a.json' is not") as error:
        read_conversation(Path("a.json"))
    assert "\n" not in str(error.value)


def test_ctrl_c_stops_the_answer_and_keeps_what_came(model, capsys):
    talk = Chat(model, is_at_terminal=True)
    talk.set("seed=5")

    def interrupted(generation):
        for step, _ in zip(generation, range(5), strict=False):
            print(step.text, end="")
        raise KeyboardInterrupt

    talk._stream = interrupted
    talk.line("Once upon")
    said = model.chat([FIRST], max_tokens=5, seed=5).result().text
    assert talk.messages[-1]["role"] == "assistant"
    assert said.startswith(talk.messages[-1]["content"])
    assert capsys.readouterr().err == "(stopped)\n"


def test_a_full_context_drops_the_oldest_turns_and_says_so(capsys):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a cat"], 262)
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "hidden": 16}
    small = TextModel("small", Decoder(DecoderConfig(vocab_size=tokenizer.size, context=64, **sizes)), tokenizer)
    talk = Chat(small)
    talk.system("Rule.")
    talk.set("max_tokens=8")
    talk.set("seed=1")
    for number in range(8):
        talk.line(f"number {number} of these")
    told = capsys.readouterr().err
    dropped = re.findall(r"\(the context of 64 tokens is full: the oldest (\d+) messages are left out\)", told)
    assert len(dropped) >= 4
    assert [int(number) % 2 for number in dropped] == [0] * len(dropped)
    assert len(talk.messages) == 1 + 16  # none is forgotten


def test_at_a_terminal_lines_are_edited_and_remembered_and_errors_do_not_end_it(
    diptych, tiny_quill, folder, monkeypatch
):
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("diptych.cli.frame.is_terminal", lambda stream: True)
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text(
            "/systemm x\r" + "/set max_tokenz=3\x7f\x7f\x7fs=3\r" + "half typed\x03" + "Once\r" + "/save a.json\r\x04"
        )
        run = diptych("chat", tiny_quill, "--dtype", "float32")
    assert run.status == 0
    assert "unknown command '/systemm'" in run.err
    assert "(Ctrl-D leaves)" in run.err
    kept = read_conversation(folder / "a.json")
    assert (kept["settings"], kept["messages"][0]["content"]) == ({"max_tokens": 3}, "Once")
    history = folder / "state" / "diptych" / "chat-history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+Once" in history.read_text()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True
