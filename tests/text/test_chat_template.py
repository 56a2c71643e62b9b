import pytest

from diptych.text.chat_template import LONGEST, ChatTemplate
from diptych.text.sandbox import LARGEST

MESSAGES = [{"role": "user", "content": "hi"}]
GROWING = "{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{{% set ns.x = {grown} %}}{{% endfor %}}"
TOO_LARGE = f"it makes a value of more than {LARGEST:,} characters"
TOO_LONG = "it asks for more work than a conversation can need"


def refusal(source: str) -> str:
    with pytest.raises(ValueError) as error:
        ChatTemplate(source).render(MESSAGES)
    message = str(error.value)
    assert message.startswith("the chat template ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ messages|map(attribute='__class__')|list }}",
        "{{ messages|attr('__class__') }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ '{0[__class__]}'.format('') }}",
        "{{ '{a.__class__}'.format_map({'a': 1}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ dict.__class__ }}",
        "{{ namespace.mro() }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ self.__init__ }}",
        "{{ range(3).__reduce__() }}",
        "{% for m in messages %}{{ loop.__class__ }}{% endfor %}",
        "{% macro f() %}{{ caller }}{% endmacro %}{{ f.__call__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages.pop() }}",
        "{{ (5).to_bytes(9, 'big') }}",
        "{{ 'a'.encode() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    ],
)
def test_a_template_gets_no_further_than_the_conversation(source):
    refusal(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}a{% endfor %}{% endfor %}", TOO_LONG),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else '' }}{% endmacro %}{{ f(60) }}", TOO_LONG),
        ("{% set x %}{% for i in range(99999) %}" + "a" * 99_999 + "{% endfor %}{% endset %}", TOO_LONG),
        ("{% for i in range(999) %}" + "a" * 99_999 + "{% endfor %}", TOO_LARGE),
        ("{{ 'a' * 10**9 }}", TOO_LARGE),
        ("{{ 10**9 * [0] }}", TOO_LARGE),
        ("{{ 10**10**10 }}", TOO_LARGE),
        (GROWING.format(start="'aa'", grown="ns.x ~ ns.x"), TOO_LARGE),
        (GROWING.format(start="'aa'", grown="ns.x + ns.x"), TOO_LARGE),
        (GROWING.format(start="'aa'", grown="ns.x.replace('a', ns.x)"), TOO_LARGE),
        (GROWING.format(start="'aa'", grown="ns.x|replace('a', ns.x)"), TOO_LARGE),
        (GROWING.format(start="'aa'", grown="ns.x.join(ns.x)"), TOO_LARGE),
        (GROWING.format(start="'aa'", grown="ns.x|join(ns.x)"), TOO_LARGE),
        (GROWING.format(start="'aa'", grown="'%s%s' % (ns.x, ns.x)"), TOO_LARGE),
        (GROWING.format(start="'aa'", grown="'{0}{0}'.format(ns.x)"), TOO_LARGE),
        (GROWING.format(start="[1]", grown="[ns.x, ns.x]"), TOO_LARGE),
        (GROWING.format(start="[1]", grown="(ns.x, ns.x)"), TOO_LARGE),
        (GROWING.format(start="[1]", grown="ns.x + ns.x"), TOO_LARGE),
        (GROWING.format(start="1", grown="{'a': ns.x, 'b': ns.x}"), TOO_LARGE),
        (GROWING.format(start="1", grown="dict(a=ns.x, b=ns.x)"), TOO_LARGE),
        ("{% set a = 'a' * 9999999 %}{% for i in range(99999) %}{% set b = a[1:] %}{% endfor %}", TOO_LONG),
        ("{{ '%99999d' % 1 }}", "fields of such a width"),
        ("{{ '%*d' % (10**9, 1) }}", "fields of such a width"),
        ("{{ '{:>{}}'.format(1, 10**9) }}", "fields of such a width"),
        ("{{ messages|tojson(indent=10**9) }}", "tojson indents by at most 16"),
        ("{{ 'a'.center(10**9) }}", "it may not read 'center' of a str"),
        ("{{ 'a'|center(10**9) }}", "No filter named 'center'"),
        ("{{ lipsum(n=10**9) }}", "'lipsum' is undefined"),
        ("{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}", "recursion"),
        (" " * (LONGEST + 1), f"at most {LONGEST} are read"),
    ],
)
def test_endless_work_and_endless_texts_are_refused(source, reason):
    assert reason in refusal(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "the chat template cannot be read: Expected an expression, got 'end of statement block' (line 1)"),
        ("{{ a.b.c }}", "the chat template refuses the conversation: 'a' is undefined"),
        ("{{ 1 + none }}", "the chat template refuses the conversation: TypeError: unsupported operand"),
        ("{{ raise_exception('No\nsystem') }}", "the chat template refuses the conversation: No system"),
    ],
)
def test_a_broken_template_says_what_is_wrong(source, message):
    assert refusal(source).startswith(message)


def test_an_allowance_is_for_one_rendering():
    """What one conversation used is not missing for the next."""
    template = ChatTemplate("{% for i in range(400) %}{% for j in range(1000) %}{% endfor %}{% endfor %}a")
    assert [template.render(MESSAGES) for _ in range(3)] == ["a"] * 3


def test_a_long_conversation_is_within_the_allowance():
    """A million words in a thousand messages, each looked at by every message once."""
    messages = [{"role": "user", "content": "a cat " * 1000}] * 1000
    text = ChatTemplate("{% for m in messages[::-1] %}{{ '<|x|>' ~ m.content|trim + '\n' }}{% endfor %}").render(
        messages
    )
    assert len(text) == 1000 * (5 + 5999 + 1)
