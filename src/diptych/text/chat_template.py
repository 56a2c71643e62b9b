"""Chat templates: the small program that comes with a model and writes a conversation the way the model was trained.

It is Jinja from whoever made the checkpoint, so it runs in a sandbox with an allowance (`text.sandbox`) and is given
plain data alone. What a harmless template writes is, letter for letter, what transformers' `apply_chat_template`
writes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.meta import find_undeclared_variables

from diptych.core.tokenizer import BESIDE
from diptych.core.weights import read_object
from diptych.text.sandbox import Metering, Sandbox

FILE = "chat_template.jinja"  # in a checkpoint
LONGEST = 1_000_000  # characters of a template
STANDARD = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")


class ChatTemplate:
    """A template, compiled once.

    Attributes:
        variables: names that it may read beside the standard ones, such as "enable_thinking".

    Raises:
        ValueError: not a template, or one that asks for what chat templates have no use for.
    """

    def __init__(self, source: str) -> None:
        if len(source) > LONGEST:
            raise ValueError(f"the chat template has {len(source)} characters; at most {LONGEST} are read")
        self.source = source
        sandbox = Sandbox()
        with _refused("the chat template cannot be read"):
            tree = sandbox.parse(source)
            self.variables = sorted(find_undeclared_variables(tree) - set(sandbox.globals) - set(STANDARD))
            self._code = sandbox.compile(Metering().visit(tree).set_environment(sandbox))

    def render(self, messages: list[dict[str, Any]], **variables: Any) -> str:
        """The text of a conversation.

        Args:
            messages: of JSON values alone.
            variables: what else the template may read, JSON values: add_generation_prompt, bos_token, tools, ...

        Raises:
            ValueError: the template refuses the conversation, fails, or asks for more than it may have.
        """
        sandbox = Sandbox()
        written: list[str] = []
        length = 0
        with _refused("the chat template refuses the conversation"):
            template = Template.from_code(sandbox, self._code, sandbox.make_globals(None))
            for piece in template.generate({"tools": None, "documents": None, **variables, "messages": messages}):
                length += len(piece)
                sandbox.check(length)
                written.append(piece)
        return "".join(written)


def read_template(directory: str | Path) -> str | None:
    """The source of a checkpoint's chat template, from its own file or, as older ones have it, tokenizer_config.json.

    Returns:
        None where there is none.

    Raises:
        ValueError: a file that is no text, a template that is none.
    """
    path, beside = Path(directory) / FILE, Path(directory) / BESIDE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"'{path}' is not a text: {error}") from error
    found = read_object(beside).get("chat_template") if beside.is_file() else None
    if isinstance(found, list):  # several by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise ValueError(f"'{beside}': chat_template must be a text, not {type(found).__name__}")
    return found


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Whatever goes wrong in a template is a ValueError of one line."""
    try:
        yield
    except Exception as error:  # a template can raise whatever the values that it touches can
        line = getattr(error, "lineno", None)
        where = f" (line {line})" if line else ""
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        message = getattr(error, "message", None) or str(error)
        raise ValueError(f"{what}: {kind}{' '.join(str(message).split())}{where}") from error
