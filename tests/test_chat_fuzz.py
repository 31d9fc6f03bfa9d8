"""Random templates over every operator, filter and method: no letter of a message passes for the template's."""

import random
import re

import pytest

from temaki.base.errors import TokenizerError
from temaki.tokens import chat

MESSAGES = [
    {"role": "юзер", "content": "  Привет мир\nещё Раз ё Ф  ", "Ключ": ["один", "Два", {"три": "ЧЕТЫРЕ"}]},
    {"role": "assistant", "content": "да,Нет;ДА да", "Ключ": [], "n": 3},
]
"""All letters of messages are Cyrillic, all of templates Latin: whose a letter is can be seen from itself."""

ATOMS = [
    "messages[0].content", "messages[0]['content']", "messages[1].content", "messages[0].role",
    "messages[0]['Ключ']", "messages[0]", "messages", "'lit'", "' A b,c;d '", "'-'", "'да'", "''",
    "[messages[0].content, 'x', messages[1].content]",
    "{'k': messages[1].content, messages[0].role: 'v'}", "(messages[0].content, 'y')", "1", "2.5", "true", "none",
    "nothing", "'%s <t>'", "'{} {} {a}'", "'{0}|{0}'", "messages[1].n", "x", "y",
]  # fmt: skip
FILTERS = [
    "trim", "upper", "lower", "title", "capitalize", "string", "list", "first", "last", "reverse", "join", "join('-')",
    "join(messages[0].role)", "join(', ', attribute='content')", "replace('а', 'Z')", "replace('A', messages[0].role)",
    "replace('', '.')", "length", "tojson", "tojson(indent=2)", "indent(2)", "indent(2, true)", "center(20)",
    "truncate(7)", "truncate(7, true, '..')", "default('d')", "default(messages[0].role, true)", "format('q', a=1)",
    "format(messages[0].content)", "urlencode", "wordcount", "sort", "unique | list", "map('upper') | list",
    "map(attribute='content') | join", "select | list", "reject('none') | list", "batch(2) | list", "slice(2) | list",
    "max", "min", "items | list", "dictsort", "int", "float", "abs", "round", "sum", "count", "d('e')",
    "attr('content')",
    "selectattr('role') | map(attribute='role') | list", "groupby('role')", "filesizeformat",
    "map('trim') | join('+')",
]  # fmt: skip
METHODS = [
    "strip()", "lstrip()", "rstrip('з ')", "strip('A ')", "split()", "split(',')", "split('а', 1)", "rsplit(None, 1)",
    "splitlines()", "partition(' ')", "rpartition('ё')", "replace('а', '<s>')", "replace('l', messages[0].role)",
    "upper()", "lower()", "title()", "capitalize()", "swapcase()", "casefold()", "startswith('П')", "find('а')",
    "join(['a', messages[0].content])", "join(messages[0].content)", "removeprefix('  ')", "removesuffix('да')",
    "center(30)", "ljust(30)", "rjust(30)", "zfill(30)", "expandtabs()", "format('a', 'b', a=messages[0].content)",
    "format(messages[0].content, 1, a=2)", "format_map({'a': messages[1].content})", "count('а')", "isupper()",
    "get('content')", "get('no', messages[0].role)", "items()", "keys()", "values()", "index('да')", "copy()",
]  # fmt: skip


TEXTS = [
    *(atom for atom in ATOMS if atom[0] == "'" or atom.endswith(("content", "content']", "role"))),
    "messages[0]['Ключ'][0]", "x", "y",
]  # fmt: skip
OF_TEXTS = [
    *("trim", "upper", "lower", "title", "capitalize", "string", "first", "last", "reverse", "join", "join('-')"),
    *("join(messages[0].role)", "replace('а', 'Z')", "replace('A', messages[0].role)", "replace('', '.')", "tojson"),
    *("indent(2)", "indent(2, true)", "center(20)", "truncate(7)", "truncate(7, true, '..')", "default('d')"),
    *(
        "urlencode",
        "map('upper') | join",
        "list | join(' ')",
        "batch(2) | first | join",
        "sort | join",
        "unique | join",
    ),
]
METHODS_OF_TEXTS = [
    *METHODS[:4], "split()[0]", "split('а', 1)[-1]", "splitlines()[0]", "partition(' ')[2]", "rpartition('ё')[0]",
    *METHODS[11:18], *METHODS[20:30], "split(',') | join('+')", "rsplit(None, 1) | last",
]  # fmt: skip


def text(draw: random.Random, depth: int) -> str:
    """An expression that is a text, most of the time."""
    if depth == 0:
        return draw.choice(TEXTS)
    inner = text(draw, depth - 1)
    other = text(draw, draw.randrange(depth))
    return [
        f"({inner}) | {draw.choice(OF_TEXTS)}",
        f"(({inner}) | {draw.choice(OF_TEXTS)})",
        f"({inner}).{draw.choice(METHODS_OF_TEXTS)}",
        f"({inner}).{draw.choice(METHODS_OF_TEXTS)}",
        f"(({inner}) ~ ({other}))",
        f"(({inner}) + ({other}))",
        f"({inner}){draw.choice(['[1:]', '[-3:]', '[::-1]', '[1:4]'])}",
        f"(({inner}) * 2)",
        f"([{inner}, {other}] | join({draw.choice(TEXTS)}))",
        f"(({inner}) if ({other}) else ({other}))",
    ][draw.randrange(10)]


def expression(draw: random.Random, depth: int) -> str:
    if draw.random() < 0.8:
        return text(draw, depth)
    if depth == 0:
        return draw.choice(ATOMS)
    inner = expression(draw, depth - 1)
    kind = draw.randrange(11)
    if kind < 3:
        return f"({inner}) | {draw.choice(FILTERS)}"
    if kind < 6:
        return f"({inner}).{draw.choice(METHODS)}"
    other = expression(draw, draw.randrange(depth))
    return [
        f"(({inner}) ~ ({other}))",
        f"(({inner}) + ({other}))",
        f"(({inner}) {draw.choice(['%', '*', '~', '+'])} ({other}))",
        f"({inner}){draw.choice(['[0]', '[1:]', '[-3:]', '[::-1]', '[1:4]', '[-1]'])}",
        f"(({inner}) if ({other}) else ({other}))",
    ][kind - 6]


def template(draw: random.Random) -> str:
    return "{% set x = messages[0].content %}{% set y = 'lat' %}" + _template(draw)


def _template(draw: random.Random) -> str:
    first, second = (f"{{{{ {expression(draw, draw.randint(1, 4))} }}}}" for _ in range(2))
    value = expression(draw, draw.randint(1, 3))
    return [
        f"lit{first}[{second}",
        f"{{% set x = {value} %}}{{% set y %}}s{first}{{% endset %}}{second}{{{{ x ~ y }}}}{{{{ y | trim }}}}",
        f"{{% for x in {value} %}}{{{{ x }}}}{first},{{% endfor %}}",
        f"{{% for x, y in ({value}) | items %}}{{{{ x }}}}={{{{ y }}}}{{% else %}}{second}{{% endfor %}}",
        f"{{% macro f(x, y='d') %}}m{{{{ x }}}}{{{{ y }}}}{first}{{% endmacro %}}{{{{ f({value}) }}}}"
        f"{{{{ f('a', {value}) ~ 'z' }}}}",
        f"{{% filter {draw.choice(['upper', 'trim', 'title', 'indent(3)', 'reverse'])} %}}abc{first}{{% endfilter %}}"
        f"{second}",
        f"{{% macro f() %}}({{{{ caller() }}}}){{% endmacro %}}{{% call f() %}}in{first}{{% endcall %}}{second}",
        f"{{% set n = namespace(x='s', y={value}) %}}{{% for x in 'ab' %}}{{% set n.x = n.x ~ n.y ~ '|' %}}"
        f"{{% endfor %}}{{{{ n.x }}}}{{{{ n.x.split('|')[0] }}}}{second}",
    ][draw.randrange(8)]


def cyrillic(text: str) -> bool:
    return any("\u0400" <= character <= "\u04ff" for character in text)


def check(count: int, seed: int) -> tuple[int, int]:
    """(templates that rendered, those whose text transformers' own rendering confirmed)."""
    transformers = pytest.importorskip("transformers", reason="transformers, the oracle of chat templates, is missing")
    oracle = transformers.utils.chat_template_utils.render_jinja_template
    draw = random.Random(seed)
    rendered = confirmed = 0
    for _ in range(count):
        source = template(draw)
        literals = cyrillic(source.replace("'да'", "").replace("Ключ", ""))
        try:
            segments = chat.ChatTemplate(source).render(MESSAGES)
        except TokenizerError:
            continue
        rendered += 1
        if not literals and "'да'" not in source:
            assert not any(cyrillic(segment.text) for segment in segments if not segment.message), source
        try:
            wanted = oracle([MESSAGES], chat_template=source)[0][0]
        except Exception:  # whatever a template of chance does wrong there
            continue
        letters = re.sub(r"[^a-z]", "", wanted.lower())
        if not any(said in letters for said in ("objectat", "tatcejbo")):  # an address in memory
            assert "".join(segment.text for segment in segments) == wanted, source
            confirmed += 1
    return rendered, confirmed


def test_random_templates():
    rendered, confirmed = check(400, seed=1)
    assert rendered > 150
    assert confirmed > 150


@pytest.mark.slow
def test_many_random_templates():
    rendered, confirmed = check(20_000, seed=2)
    assert rendered > 8_000
    assert confirmed > 8_000
