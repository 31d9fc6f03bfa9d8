"""Pre-tokenizers of tokenizer.json <-> our patterns.

There a regular expression is Oniguruma's, here one of the `regex` package. The two agree on what the field's patterns
are made of; an expression that uses more is refused, so that none is read with another meaning.
"""

from typing import Any

import regex

from temaki.base.errors import TokenizerError
from temaki.tokens import hf_fields, split

CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
)
"""The pattern of that name without what Oniguruma reads otherwise: counted possessives, and `$` at each line."""

ALIASES = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    CL100K: "cl100k",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+": (
        "llama3"
    ),
}
"""Expressions that are written otherwise than ours and cut alike."""

_KANA_HAN = r"\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff"
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
"""The Splits of DeepSeek V3, one after another: numbers, kana and Han, then what lies between them."""
IN_ONE = (
    rf"\p{{N}}{{1,3}}|[{_KANA_HAN}]+|[!-/:-@\[-`{{-~][A-Za-z]+"
    rf"|[^\r\n\p{{L}}\p{{P}}\p{{S}}\p{{N}}{_KANA_HAN}]?(?:(?![{_KANA_HAN}])[\p{{L}}\p{{M}}])+"
    rf"| ?(?:(?![{_KANA_HAN}])[\p{{P}}\p{{S}}])+[\r\n]*|\s*[\r\n]+|\s+(?![^\s\p{{N}}{_KANA_HAN}])|\s+"
)
"""The same as one expression: where a step would end a piece, so does this."""

_PROPERTY = r"\\[pP]\{\^?(?!(?i:word|xdigit)\})[A-Za-z]+\}"
_ESCAPED = rf"""{_PROPERTY}|\\[sSdrnt\\.|?*+()\[\]{{}}^$/'"-]"""
_PLAIN = r"[^\\\[\]&~|-]"
_ANY_CASE = r"\(\?i:(?:(?!(?i:i|ss|st|ff|fl))[A-Za-z' |]|\[(?:(?!(?i:i))[A-Za-z' ])+\])*\)(?!\??[*+{]|\(\?i)"
_SAFE = regex.compile(
    rf"(?:{_ESCAPED}|{_ANY_CASE}|\(\?[:!=]|\((?!\?)|\)|[?*+]|\{{\d+(?:,\d*)?\}}"
    rf"|\[\^?(?:{_ESCAPED}|{_PLAIN}|{_PLAIN}-{_PLAIN})+\]|[^\\\[\](){{}}?*+.^$])*"
)
"""What Oniguruma and `regex` read alike: literals, classes without operations, groups, quantifiers, lookahead; without
regard to case only letters that fold to one letter each."""
_COUNTED = regex.compile(r"\{\d+(?:,\d*)?\}\+|\{\d+\}\?")
"""A counted repetition that gives nothing back, or is lazy: to Oniguruma it is a repetition, or an option, of one."""

PROBES = ("", "aA1 \n\t!+_\u00e9\u0301\u4f60\u0663\u2028")
"""Where an expression that can match nothing is likely to: the engines go on from there differently."""


def read(found: object) -> str:
    """The pattern, by name or as an expression, of a byte-level pre-tokenizer. Raises TokenizerError."""
    steps = hf_fields.flattened(found, "pre_tokenizer", "pretokenizers")
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise TokenizerError(
            "the pre-tokenizer is not byte-level",
            found=" then ".join(step["type"] for step in steps) or "none",
            allowed="ByteLevel, alone or after Split or Digits",
        )
    last = steps[-1]
    hf_fields.only(last, "ByteLevel", add_prefix_space=[False], trim_offsets=[True, False], use_regex=[True, False])
    if "add_prefix_space" not in last:
        raise TokenizerError("ByteLevel does not say add_prefix_space", allowed="false")
    kinds = [step["type"] for step in steps[:-1]]
    uses_regex = last.get("use_regex", True)
    if not kinds and uses_regex:
        return "gpt2"
    if kinds == ["Digits"] and uses_regex:
        hf_fields.only(steps[0], "Digits", individual_digits=[True])
        if steps[0].get("individual_digits") is True:
            return "smollm"
    if kinds == ["Split"] and not uses_regex:
        return _split(steps[0])
    if kinds == ["Split"] * len(DEEPSEEK) and not uses_regex and steps[:-1] == list(map(_cut, DEEPSEEK)):
        return IN_ONE
    raise TokenizerError(
        "this sequence of pre-tokenizers is not supported",
        found=" then ".join([*kinds, f"ByteLevel with use_regex {uses_regex}"]),
        allowed="ByteLevel; Digits (each alone) then ByteLevel; one Split, or DeepSeek's three, then ByteLevel with "
        "use_regex false",
    )


def write(pattern: str) -> dict[str, Any]:
    """The pre-tokenizer of a pattern. Raises TokenizerError for an expression that may mean something else there."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if pattern == "gpt2":
        return level
    if pattern == "smollm":
        return {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]}
    if pattern == IN_ONE:
        return {"type": "Sequence", "pretokenizers": [*map(_cut, DEEPSEEK), {**level, "use_regex": False}]}
    expression = CL100K if pattern == "cl100k" else split.named(pattern).expression
    if pattern not in split.PATTERNS:
        _check(expression)
    return {"type": "Sequence", "pretokenizers": [_cut(expression), {**level, "use_regex": False}]}


def _cut(expression: str) -> dict[str, Any]:
    """The step whose matches are pieces, and what lies between them too."""
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def _split(step: dict[str, Any]) -> str:
    hf_fields.only(step, "Split", pattern=[hf_fields.ANY], behavior=["Isolated", "Removed"], invert=[False, True])
    said = hf_fields.part(step.get("pattern"), "Split.pattern")
    expression = said.get("Regex")
    if said.keys() != {"Regex"} or not isinstance(expression, str):
        raise TokenizerError("Split.pattern is no regular expression", found=f"{said!r:.80}", allowed="Regex")
    known = {pattern.expression: name for name, pattern in split.PATTERNS.items()} | ALIASES
    name = known.get(expression)
    manner = (step.get("behavior"), step.get("invert"))
    if manner != ("Isolated", False) and (manner != ("Removed", True) or name is None):
        raise TokenizerError(
            "Split keeps other parts of the text than its matches",
            found=f"behavior {manner[0]}, invert {manner[1]}",
            allowed="Isolated, false; for a known pattern also Removed, true",
        )
    if name is None:
        _check(expression)
    return name or expression


def _check(expression: str) -> None:
    """Refuse an expression that the two engines may read differently. Raises TokenizerError."""
    if not _SAFE.fullmatch(expression) or _COUNTED.search(expression):
        raise TokenizerError(
            "the split pattern may mean another thing to another engine",
            found=expression[:200],
            allowed="literals, plain classes, \\p{..}, \\s, \\d, groups, quantifiers, lookahead",
        )
    split.Splitter(expression)
    for probe in (*PROBES, expression):
        if any(match.start() == match.end() for match in regex.finditer(expression, probe)):
            raise TokenizerError("the split pattern matches where there is nothing", found=expression[:200])
