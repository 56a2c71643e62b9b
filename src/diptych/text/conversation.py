"""A conversation as a model reads it: messages, through the model's chat template, to token ids.

The template writes special tokens to mark who speaks. Someone who writes such a token's name inside a message must not
thereby end the message and speak for another: in what messages say, names of special tokens are spelled out, not
obeyed. They are broken by a mark before the template sees them; the mark is a token of its own in a copy of the
vocabulary, and is left out of the ids. A message without such a name is encoded exactly as transformers does it.

What a template marks by plain text alone ("[INST]" of Llama 2) can be imitated in plain text; no encoding can tell.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Engine

from diptych.core.spelling import unknown
from diptych.core.tokenizer import Tokenizer
from diptych.text.chat_template import ChatTemplate

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
MARK = "\ufdd0"  # Unicode keeps this one out of all texts
# For a model that was never taught to chat: one text without roles. An answer goes on where the text before it ends,
# everything else begins a new line.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if not loop.first and message.role != 'assistant' %}{{ '\n' }}{% endif %}{{ message.content }}"
    "{% endfor %}"
)


class ChatFormat:
    """How one model is spoken to.

    Args:
        template: source of its chat template; None for a model that has none, which is given one plain text.

    Raises:
        ValueError: the template cannot be read.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(PLAIN if template is None else template)
        names = sorted((name for name in tokenizer.specials if len(name) > 1), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names)) or "(?!)")

    def text(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The conversation as the template writes it; arguments as of `ids`."""
        return self._render(messages, **options).replace(MARK, "")

    def ids(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Token ids of a conversation, begin and all other special tokens included.

        Args:
            messages: dicts with a role (one of `ROLES`) and a content, oldest first; tool calls and what else a
                template reads may come with them as JSON values.
            tools: JSON schemas of what the model may call.
            variables: what else the template reads (`template.variables`), such as {"enable_thinking": False}.
            add_generation_prompt: end where the assistant is to speak.

        Raises:
            ValueError: a message that is none, or a conversation that the template refuses.
        """
        text = self._render(messages, **options)
        if MARK not in text:
            return self.tokenizer.encode(text, obey_specials=True)
        return [id for id in self._marking.encode(text, add_special_tokens=False).ids if id != self._mark]

    def fitted(
        self, messages: Sequence[Mapping[str, Any]], longest: int, **options: Any
    ) -> tuple[list[int], list[Message]]:
        """Ids of as much of a conversation as `longest` tokens hold, and the messages that are in them.

        The oldest turns go first, each a user's message with all up to the next; a system prompt and the last turn
        stay, however long.
        """
        kept = checked(messages)
        head = next((place for place, one in enumerate(kept) if one["role"] not in ROLES[:2]), len(kept))
        while True:
            ids = self.ids(kept, **options)
            turns = [place for place in range(head + 1, len(kept)) if kept[place]["role"] == "user"]
            if len(ids) <= longest or not turns:
                return ids, kept
            kept = kept[:head] + kept[turns[0] :]

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        given = {"tools": list(tools) if tools else None} | dict(variables or {})
        tokens = {"bos_token": self.tokenizer.begin, "eos_token": self.tokenizer.end if self.tokenizer.ends else None}
        return self.template.render(
            [
                {key: value if key == "role" else self._marked(value) for key, value in message.items()}
                for message in checked(messages)
            ],
            **{name: self._marked(value) for name, value in given.items()},
            **{name: self.tokenizer.piece(id) for name, id in tokens.items() if id is not None},
            add_generation_prompt=add_generation_prompt,
        )

    def _marked(self, value: Any) -> Any:
        """A JSON value, copied, in whose texts every special token's name is broken by a mark."""
        if isinstance(value, str):
            text = value.replace(MARK, "\ufffd")
            while self._special.search(text):  # breaking one name can leave a shorter one whole
                text = self._special.sub(lambda found: found[0][:1] + MARK + found[0][1:], text)
            return text
        if isinstance(value, Mapping):
            return {self._marked(key): self._marked(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(entry) for entry in value]
        return value

    @cached_property
    def _marking(self) -> Engine:
        """The vocabulary, and the mark in it."""
        engine = Engine.from_str(self.tokenizer.to_json())
        engine.add_special_tokens([AddedToken(MARK, special=True, normalized=False)])
        return engine

    @cached_property
    def _mark(self) -> int | None:
        return self._marking.token_to_id(MARK)


def checked(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages, copied.

    Raises:
        ValueError: naming the first that is not one, and what is wrong with it.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError("a conversation must be a list of messages, at least one")
    copies = []
    for number, message in enumerate(messages, start=1):
        where = f"message {number} of the conversation"
        if not isinstance(message, Mapping) or not all(isinstance(key, str) for key in message):
            raise ValueError(f"{where} must be an object with a role and a content, not {type(message).__name__}")
        if message.get("role") not in ROLES:
            raise ValueError(f"{where}: {unknown('role', str(message.get('role')), ROLES)}")
        if not isinstance(message.get("content"), str) and "tool_calls" not in message:
            raise ValueError(f"{where} must have a content, a text")
        try:
            copies.append(json.loads(json.dumps(dict(message), allow_nan=False)))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{where} must hold JSON values alone: {error}") from error
    return copies
