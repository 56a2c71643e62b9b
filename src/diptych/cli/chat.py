"""`diptych chat`: talk with a model; what it says streams, and a line that begins with / is for the program itself.

At a terminal there is line editing and a history; in a pipe each line is one message, and the first error ends it.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli import UsageError, frame

if TYPE_CHECKING:
    from diptych.core.generation import Generation
    from diptych.text.model import TextModel
    from diptych.text.record import TextResult, TextStep

FORMAT = "diptych-conversation-1"
LARGEST = 16_000_000  # bytes of a saved conversation
COMMANDS = {
    "/help": ("", "this list"),
    "/system": ("TEXT", "tell the model how to behave; without TEXT, no longer"),
    "/set": ("NAME=VALUE", "change a setting, such as temperature=0.5"),
    "/settings": ("", "show the settings"),
    "/odds": ("on|off", "show for each token the candidates it was drawn from"),
    "/save": ("FILE", "keep the conversation"),
    "/load": ("FILE", "go on with a conversation that was kept"),
    "/retry": ("", "have the last message answered again"),
    "/undo": ("", "forget the last message and its answer"),
    "/clear": ("", "forget all but the system prompt"),
    "/exit": ("", "leave; so does Ctrl-D"),
}


def chat(
    model: Annotated[str, typer.Argument(help="A bundled model or a checkpoint directory.")] = "quill",
    adapter: frame.Adapter = None,
    system: Annotated[str, typer.Option(help="Tell the model how to behave.")] = "",
    load: Annotated[Path | None, typer.Option(help="Go on with a conversation that was kept.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of a setting; may be given again.")
    ] = None,
    seed: frame.Seed = None,
    device: frame.Device = None,
    dtype: frame.Dtype = None,
) -> None:
    """Talk with a model: a line is a message, Ctrl-C stops an answer, /help lists what else there is."""
    is_at_terminal = sys.stdin.isatty() and frame.is_terminal(sys.stdout)
    talk = Chat(frame.text_model(model, device, dtype, adapter), is_at_terminal=is_at_terminal)
    with frame.settings():
        if seed is not None:
            talk.set(f"seed={seed}")
        for setting in set_ or []:
            talk.set(setting)
        if load:
            talk.load(str(load))
        if system:
            talk.system(system)
    frame.say(talk.greeting())
    for line in _typed() if is_at_terminal else sys.stdin:
        try:
            if talk.line(line.rstrip("\r\n")):
                return
        except (ValueError, OSError) as error:
            if not is_at_terminal:
                raise UsageError(str(error)) from error
            frame.say(" ".join(str(error).split()))


def _typed() -> Iterator[str]:
    """Lines as they are typed. Ctrl-C drops what is typed, Ctrl-D ends. The history is its owner's alone to read."""
    from platformdirs import user_state_path
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory

    folder = user_state_path("diptych")
    folder.mkdir(parents=True, exist_ok=True)
    history = folder / "chat-history"
    os.close(os.open(history, os.O_CREAT | os.O_RDWR, 0o600))
    words = WordCompleter(list(COMMANDS), sentence=True)
    session: PromptSession[str] = PromptSession(
        "> ", history=FileHistory(history), completer=words, complete_while_typing=False
    )
    while True:
        try:
            yield session.prompt()
        except KeyboardInterrupt:
            frame.say("(Ctrl-D leaves)")
        except EOFError:
            return


class Chat:
    """A conversation in progress and what is done with each line.

    Args:
        is_at_terminal: Ctrl-C stops an answer instead of everything.
    """

    def __init__(self, model: "TextModel", *, is_at_terminal: bool = False) -> None:
        self.model, self.is_at_terminal = model, is_at_terminal
        self.messages: list[dict[str, Any]] = []
        self.chosen: dict[str, Any] = {}  # settings that differ from the usual; a seed is that of the first answer
        self.shows_odds = False
        self.left_out = 0  # of the oldest messages, at the last answer
        self._answers = 0
        self._format = model.chat_format

    def greeting(self) -> str:
        name = self.model.name
        if self.model.chat_template is None:
            return (
                f"{name} was never taught to chat: it goes on writing where your text ends. /help lists the commands."
            )
        return f"{name} listens. /help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves."

    def line(self, line: str) -> bool:
        """Do what a line says; whether it was the last.

        Raises:
            ValueError: what cannot be done, in one line.
        """
        if not line.strip():
            return False
        if not line.startswith("/"):
            self._answer([*self.messages, {"role": "user", "content": line}])
            return False
        command, _, rest = line.strip().partition(" ")
        if command not in COMMANDS:
            from diptych.core.spelling import unknown

            raise unknown("command", command, COMMANDS)
        if command == "/exit":
            return True
        getattr(self, command.removeprefix("/"))(rest.strip())
        return False

    def help(self, _: str = "") -> None:
        for name, (argument, about) in COMMANDS.items():
            frame.say(f"{f'{name} {argument}':<17} {about}")

    def system(self, text: str) -> None:
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *rest] if text else rest

    def set(self, setting: str) -> None:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise ValueError(f"a setting is changed with NAME=VALUE, not '{setting}'")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        self._take({name: value})

    def settings(self, _: str = "") -> None:
        for name, value in (self._defaults() | self.chosen).items():
            frame.say(f"{name} = {'fresh each time' if value is None else json.dumps(value, ensure_ascii=False)}")

    def odds(self, word: str) -> None:
        if word not in ("on", "off"):
            raise ValueError(f"/odds takes on or off, not '{word}'")
        self.shows_odds = word == "on"

    def save(self, name: str) -> None:
        from diptych.core.files import output_path, write_atomically

        if not name:
            raise ValueError("/save needs the name of a file")
        kept = {"format": FORMAT, "model": self.model.name, "settings": self.chosen, "messages": self.messages}
        write_atomically(output_path(name), (json.dumps(kept, ensure_ascii=False, indent=2) + "\n").encode())
        frame.say(f"{name}: {len(self.messages)} messages")

    def load(self, name: str) -> None:
        """All of a kept conversation, or nothing of it."""
        kept = read_conversation(Path(name))
        self._take(kept["settings"])
        self.messages, self.left_out = kept["messages"], 0
        frame.say(f"{name}: {len(self.messages)} messages with {kept['model']}")

    def retry(self, _: str = "") -> None:
        self._answer(self.messages[: self._last_turn() + 1])

    def undo(self, _: str = "") -> None:
        self.messages = self.messages[: self._last_turn()]

    def clear(self, _: str = "") -> None:
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def _last_turn(self) -> int:
        """Where the last message of the person is."""
        places = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        if not places:
            raise ValueError("nothing has been said yet")
        return places[-1]

    def _defaults(self) -> dict[str, Any]:
        """Every setting by its name; None is what is drawn or left to the template."""
        from diptych.text.settings import Settings

        usual = Settings.named(self.model.defaults).to_dict()
        return {**usual, "seed": None, **dict.fromkeys(self._format.template.variables)}

    def _take(self, settings: dict[str, Any]) -> None:
        """Settings by their names, each checked before any is taken."""
        from diptych.core.randomness import check_seed
        from diptych.core.spelling import unknown
        from diptych.text.settings import Settings, listed

        known = self._defaults()
        for name in settings:
            if name not in known:
                raise unknown("setting", name, known)
        chosen = self.chosen | settings
        Settings.named({name: value for name, value in chosen.items() if name in listed()})
        check_seed(chosen.get("seed"))
        self.chosen = chosen

    def _answer(self, messages: list[dict[str, Any]]) -> None:
        """Have the last message answered; what came before Ctrl-C stays."""
        context = self.model.config.context
        settings, variables = dict(self.chosen), {}
        for name in self._format.template.variables:
            if name in settings:
                variables[name] = settings.pop(name)
        if settings.get("seed") is not None:
            settings["seed"] += self._answers
        room = min(settings.get("max_tokens", self._defaults()["max_tokens"]), context // 2)
        ids, kept = self._format.fitted(messages, context - room, variables=variables)
        left_out = len(messages) - len(kept)
        if left_out > self.left_out:
            frame.say(f"(the context of {context} tokens is full: the oldest {left_out} messages are left out)")
        self.left_out = left_out
        generation = self.model.generate(ids, **settings)
        try:
            (self._show_odds if self.shows_odds else self._stream)(generation)
        except KeyboardInterrupt:
            if not self.is_at_terminal:
                raise
            frame.say("(stopped)")
        result = generation.stop()
        self._answers += 1
        self.messages = [*messages, {"role": "assistant", "content": result.text}]

    def _stream(self, generation: "Generation[TextStep, TextResult]") -> None:
        try:
            for step in generation:
                sys.stdout.write(step.text)
                sys.stdout.flush()
        finally:
            sys.stdout.write("\n")
            sys.stdout.flush()

    def _show_odds(self, generation: "Generation[TextStep, TextResult]") -> None:
        from diptych.cli.odds_table import heading, row

        print(heading())
        for step in generation:
            print(row(step.index, step.token, step.probability, step.drawn_probability, step.entropy, step.candidates))
            sys.stdout.flush()
        print(f"\n{generation.result().text}")


def read_conversation(path: Path) -> dict[str, Any]:
    """A conversation that `/save` kept: its model, settings and messages.

    Raises:
        ValueError: in one line, for anything else.
    """
    from diptych.text.conversation import checked

    if not path.is_file():
        raise ValueError(f"there is no conversation at '{path}'")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"'{path}' has more than {LARGEST:,} bytes: that is no conversation")
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}") from error
    if not isinstance(kept, dict) or kept.get("format") != FORMAT:
        raise ValueError(f"'{path}' is not a conversation of this version ({FORMAT})")
    kinds = {"model": str, "settings": dict, "messages": list}
    for name, kind in kinds.items():
        if not isinstance(kept.get(name), kind):
            raise ValueError(f"'{path}' is not a whole conversation: its {name} is missing or of another kind")
    try:
        return kept | {"messages": checked(kept["messages"]) if kept["messages"] else []}
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error
