"""What a stranger's template may do: Jinja's immutable sandbox, narrowed to what chat templates use, and an allowance.

The sandbox keeps a template from Python itself; it does not keep it from writing for ever. So values are metered where
they are made: none grows past `LARGEST` characters and entries, all work together is counted, and what could grow in
one leap (a product, a padding, a replacement) is measured before it is made. As no value is too large, nothing that is
done with one takes long; and passes of loops are counted one by one.
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

LARGEST = 10_000_000  # characters and entries of one value, and of what is written
WORK = 100_000_000  # of all values together that one rendering makes
ENTRY = 10  # what a number or an entry of a list counts for
STEP = 100  # what a call or one pass of a loop counts for, at least
SECONDS = 5.0
FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length"),
    *("list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe", "select", "selectattr", "sort"),
    *("string", "title", "trim", "unique", "upper"),
)
OF_TEXT = (
    *("capitalize", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isdigit", "islower"),
    *("isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix"),
    *("replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip"),
    *("title", "upper"),
)
METHODS: dict[type, tuple[str, ...]] = {
    str: OF_TEXT,
    dict: ("get", "items", "keys", "values"),
    list: ("count", "index"),
    tuple: ("count", "index"),
}


class _Names(Namespace):
    """Jinja's namespace without names of Python's own, and without a text that could be long."""

    def __init__(*args: Any, **entries: Any) -> None:
        for name in dict(*args[1:], **entries):
            _Names._check(name)
        Namespace.__init__(*args, **entries)

    def __setitem__(self, name: str, value: Any) -> None:
        _Names._check(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"

    @staticmethod
    def _check(name: Any) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise SecurityError(f"a namespace may not hold {name!r}")


class _Generation(Extension):
    """`{% generation %}`: marks what the model says, for training on it alone; it writes nothing itself."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Metering(NodeTransformer):
    """Puts a meter wherever a template makes a value or goes round; calls, filters and operators have theirs already.

    Literals too: a list of two lists of two lists, and so on, is small in memory and endless when it is written.
    """

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.recursive:
            raise SecurityError("a chat template may not loop recursively")
        self.generic_visit(node)
        length = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _filter(node.iter, "paced", nodes.Const(length))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node.nodes[0], "concatenated", *node.nodes[1:])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, "metered") if isinstance(node.arg, nodes.Slice) else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, "metered") if node.ctx == "load" else node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, "metered")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, "metered")


def _filter(node: nodes.Node, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """What one rendering may use, and how much of it is left."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=self.metered
        )
        self._left = WORK
        self._end = time.monotonic() + SECONDS
        self.filters = {name: self._metered_filter(self.filters[name]) for name in FILTERS}
        self.filters |= {"join": self._join, "replace": self._replace, "tojson": self._tojson}
        self.filters |= {"paced": self._paced, "concatenated": self._concatenated, "metered": self.metered}
        self.globals = {name: self.globals[name] for name in ("range", "cycler", "joiner")}
        self.globals |= {"dict": lambda *args, **entries: dict(*args, **entries), "namespace": _Names}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def check(self, size: float) -> None:
        if size > LARGEST:
            raise SecurityError(f"it makes a value of more than {LARGEST:,} characters")

    def spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0 or time.monotonic() > self._end:
            raise SecurityError("it asks for more work than a conversation can need")

    def metered(self, value: Any) -> Any:
        size = _size(value)
        self.check(size)
        self.spend(size)
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, LoopContext | Macro | Cycler | Joiner | Namespace | Undefined):
            return super().is_safe_attribute(obj, attr, value)
        return any(attr in names for kind, names in METHODS.items() if isinstance(obj, kind))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"it may not read '{attribute}' of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        run = super().wrap_str_format(value)
        if run is None or value.__name__ != "format":
            return None

        def format(*args: Any, **entries: Any) -> str:
            self._check_format(value.__self__, "{", (*args, *entries.values()))
            return run(*args, **entries)

        return format

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        itself = getattr(__obj, "__self__", None)
        if isinstance(itself, str) and __obj.__name__ == "replace":
            return __self._replace(itself, *args)  # kwargs are what a loop adds
        if isinstance(itself, str) and __obj.__name__ == "join":
            return __self._join(args[0] if args else (), itself)
        __self.spend(STEP)
        return __self.metered(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            is_small = isinstance(left, int | float) and isinstance(right, int | float) and abs(right) <= 64
            self.check(0 if is_small and abs(left) < 2**32 else math.inf)
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, "%", right if isinstance(right, tuple) else (right,))
        elif operator == "*":
            repeats, values = sorted((left, right), key=lambda side: not isinstance(side, int))
            self.check(_size(values) * repeats if isinstance(repeats, int) and repeats > 0 else 0)
        return self.metered(super().call_binop(context, operator, left, right))

    def _metered_filter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            return self.metered(list(self._paced(result)) if isinstance(result, Iterator) else result)

        return run

    def _paced(self, values: Iterable[Any], length: int = 0) -> Iterator[Any]:
        for value in values:
            self.spend(STEP + length)
            yield value

    def _concatenated(self, *values: Any) -> str:
        return self._joined(map(str, values))

    def _joined(self, pieces: Iterable[str]) -> str:
        length, kept = 0, []
        for piece in pieces:
            length += len(piece)
            self.check(length)
            kept.append(piece)
        self.spend(length)
        return "".join(kept)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        if indent is not None and (indent if isinstance(indent, int) else len(indent)) > 16:
            raise SecurityError("tojson indents by at most 16 spaces")
        coder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self._joined(coder.iterencode(value))

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = -1) -> str:
        text, old, new = str(text), str(old), str(new)
        self.check(len(text) + text.count(old) * len(new))
        return str(self.metered(text.replace(old, new, -1 if count is None else count)))

    def _join(self, values: Iterable[Any], between: Any = "", attribute: str | int | None = None) -> str:
        found = list(values) if attribute is None else list(map(make_attrgetter(self, attribute), values))
        self.check(_size(found) + len(found) * len(str(between)))
        return str(self.metered(str(between).join(map(str, found))))

    def _check_format(self, text: str, sign: str, values: Iterable[Any]) -> None:
        if re.search(r"\d{4}|\*|\{[^{}]*\{", text):
            raise SecurityError("a chat template may not write fields of such a width")
        self.check(len(text) + text.count(sign) * (1000 + sum(map(_size, values))))


def _size(value: Any) -> int:
    """Characters and entries of a value written out; it stops counting past `LARGEST`."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return 1 + value.bit_length() // 3
    size, waiting = 0, [value]
    while waiting and size <= LARGEST:
        one = waiting.pop()
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, Mapping):
            waiting.extend(one.keys())
            waiting.extend(one.values())
        elif isinstance(one, Iterable) and not isinstance(one, Iterator | range | Undefined | LoopContext):
            waiting.extend(one)
        size += ENTRY
    return size


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
