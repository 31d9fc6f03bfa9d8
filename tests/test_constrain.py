"""Constrained answers always parse, healed prompts go on where they should: over any vocabulary, drafted or not."""

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from temaki.base import keys
from temaki.base.errors import GenerationError
from temaki.formats import open as opener
from temaki.generate import heal, text
from temaki.generate.config import SamplingConfig
from temaki.generate.constrain import ANY_JSON, Choice, Regex, Schema, Shape, Vocabulary
from temaki.generate.engine import Engine
from temaki.generate.executor import Answer, Saved, Work
from temaki.generate.lookup import Lookup
from temaki.generate.text import Asking, Completion, Ends
from temaki.tokens.bpe import from_merges
from temaki.tokens.tokenizer import Tokenizer

END = "<|endoftext|>"
MERGES = [(b"t", b"r"), (b"u", b"e"), (b"tr", b"ue"), (b'"', b":"), (b"a", b"b"), (b"ab", b"c"), (b"{", b'"')]
BPE = from_merges(MERGES, (END, "<|x|>"))
END_ID = BPE.special[END]
PADDED = BPE.size + 5
"""A model may have more ids than its tokenizer."""


class Random:
    """Logits are a random function of all ids that a slot has read; `logits` may say otherwise."""

    whole = False

    def __init__(self, vocabulary: int, slots: int = 2, room: int = 300):
        self.vocabulary, self.slots, self.room = vocabulary, slots, room
        self.held: dict[int, list[int]] = {}
        self.marks: dict[int, int] = {}

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return keys.generator(0, "logits", *ids).normal(0, 3, self.vocabulary).astype(np.float32)

    def run(self, work: Sequence[Work], hidden: bool = False) -> Answer:
        found = []
        for each in work:
            for i, id in enumerate(each.ids.tolist()):
                self.held[each.slot].append(id)
                if each.want == "all" or (each.want == "last" and i == len(each.ids) - 1):
                    found.append(self.logits(self.held[each.slot]))
        return Answer(np.array(found, np.float32).reshape(-1, self.vocabulary))

    def open(self, slot: int, source: Any = None) -> None:
        self.held[slot] = []

    def mark(self, slots: Sequence[int]) -> None:
        self.marks |= {slot: len(self.held[slot]) for slot in slots}

    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        for slot, count in zip(slots, keep, strict=True):
            del self.held[slot][self.marks.pop(slot) + count :]

    def fork(self, source: int, target: int) -> None:
        self.held[target] = list(self.held[source])

    def save(self, slot: int) -> Saved:
        return Saved(len(self.held[slot]), {"ids": np.array(self.held[slot])})

    def load(self, slot: int, saved: Saved) -> None:
        self.held[slot] = saved.content["ids"].tolist()

    def close(self, slot: int) -> None:
        self.held.pop(slot, None)


class Table(Random):
    """Logits by the last id alone: log of the probabilities in a table; what is not there is out."""

    def __init__(self, tokenizer: Tokenizer, after: dict[int, dict[int, float]]):
        super().__init__(tokenizer.size)
        self.after = after

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        found = np.full(self.vocabulary, -30.0, np.float32)
        for id, p in self.after.get(ids[-1], {}).items():
            found[id] = np.log(p)
        return found


@lru_cache
def words(tokenizer: Tokenizer = BPE) -> Vocabulary:
    return Vocabulary(tokenizer, PADDED, (END_ID,))


def answers(shape: Shape, prompts: Sequence[str] = ("x",), most: int = 60, **asked: Any) -> list[Completion]:
    asking = Asking(constraint=shape, ends=Ends((END_ID,), (END_ID,)), **asked)
    return text.complete(Random(PADDED), BPE, prompts, SamplingConfig(max_tokens=most), asking=asking)


# ---- always parses

ATOM = st.sampled_from(["a", "b", "ab", "[a-c]", "é", "日", r"\d", r"\.", "/", '"', r"[^a]", "x{2,3}"])
PATTERN = st.recursive(
    ATOM,
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})")
        | inner.map(lambda one: f"(?:{one})?")
        | inner.map(lambda one: f"(?:{one}){{1,2}}")
    ),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None)
@given(PATTERN, st.integers(0, 99))
def test_what_a_regular_expression_asks_for_is_what_comes(pattern: str, seed: int) -> None:
    (found,) = answers(Regex(pattern), seed=seed)
    assert found.done == "stop", found
    assert re.fullmatch(pattern, found.text), (pattern, found.text)


LEAF = st.sampled_from(
    [
        {"type": "integer", "minimum": -3, "maximum": 12}, {"type": "boolean"}, {"type": "null"},
        {"enum": ["red", 'a"b', 3, None, {"k": [1]}]}, {"const": "日"}, {"type": "string", "maxLength": 3},
        {"type": "string", "pattern": "^[ab]{1,3}$"},
    ]
)  # fmt: skip
SCHEMA = st.recursive(
    LEAF,
    lambda inner: (
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 2))
        | st.builds(
            lambda a, b, required: {
                "type": "object", "properties": {"a": a, "é": b}, "required": required, "additionalProperties": False,
            },
            inner, inner, st.sampled_from([[], ["a"], ["a", "é"]]),
        )
        | st.lists(inner, min_size=1, max_size=2).map(lambda several: {"anyOf": several})
    ),
    max_leaves=4,
)  # fmt: skip


def accepts(schema: dict[str, Any], found: Any) -> bool:
    """JSON Schema, as far as these tests go: an independent reader."""
    if "anyOf" in schema:
        return any(accepts(each, found) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return any(type(found) is type(each) and found == each for each in schema.get("enum", [schema.get("const")]))
    match schema["type"]:
        case "integer":
            return type(found) is int and schema["minimum"] <= found <= schema["maximum"]
        case "boolean":
            return type(found) is bool
        case "null":
            return found is None
        case "string":
            fits = re.search(schema.get("pattern", ""), found) if type(found) is str else None
            return fits is not None and len(found) <= schema.get("maxLength", 99)
        case "array":
            return type(found) is list and len(found) <= schema["maxItems"] and all(
                accepts(schema["items"], each) for each in found
            )  # fmt: skip
        case _:
            known = schema["properties"]
            return (
                type(found) is dict
                and set(schema["required"]) <= set(found) <= set(known)
                and all(accepts(known[name], value) for name, value in found.items())
            )


@settings(max_examples=40, deadline=None)
@given(SCHEMA, st.integers(0, 99))
def test_what_a_schema_asks_for_is_what_comes(schema: dict[str, Any], seed: int) -> None:
    (found,) = answers(Schema(json.dumps(schema)), seed=seed, most=250)
    assert found.done == "stop", found
    assert accepts(schema, json.loads(found.text)), (schema, found.text)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=4), st.integers(0, 99))
def test_a_choice_is_made(texts: list[str], seed: int) -> None:
    (found,) = answers(Choice(tuple(texts)), seed=seed)
    assert found.done == "stop"
    assert found.text in texts


def test_an_answer_that_is_cut_begins_like_a_match_and_says_so() -> None:
    for seed in range(6):
        (found,) = answers(ANY_JSON, seed=seed, most=5)
        if found.done == "stop":
            assert isinstance(json.loads(found.text), dict)
        else:
            assert found.done == "length"
            assert found.text.startswith("{")
            assert len(found.ids) == 5


def test_masks_are_those_of_brute_force() -> None:
    """Over texts of a, b and c up to a length that decides: an id may come if some match goes on from it."""
    pattern, letters = r"(ab|ba*c){1,2}b?", "abc"
    matches = [m for n in range(9) for m in map("".join, product(letters, repeat=n)) if re.fullmatch(pattern, m)]
    vocabulary = words()
    plain = {id: token.decode() for id, token in enumerate(vocabulary.tokens) if token and set(token) <= set(b"abc")}
    seen = 0
    for path in product(plain, repeat=2):
        matcher, said = vocabulary.constraint(Regex(pattern)).matcher(), ""
        for id in path:
            mask = matcher.mask()
            going = {other for other, token in plain.items() if any(m.startswith(said + token) for m in matches)}
            assert set(np.flatnonzero(mask)) - {END_ID} == going
            assert mask[END_ID] == (said in matches)
            assert len(mask) == PADDED
            seen += 1
            if id not in going:
                with pytest.raises(GenerationError, match="does not allow"):
                    matcher.advance(id)
                break
            copied = matcher.copy()
            matcher.advance(id)
            assert np.array_equal(copied.mask(), mask)
            said += plain[id]
            assert matcher.done == (said in matches and not any(m != said and m.startswith(said) for m in matches))
            if matcher.done:
                break
    assert seen > 20


def test_ends_and_special_tokens_and_padding() -> None:
    matcher = words().constraint(Regex("(a|<\\|x\\|>)*")).matcher()
    mask = matcher.mask()
    assert mask[END_ID]
    assert not mask[BPE.special["<|x|>"]]
    assert not mask[BPE.size :].any()
    assert not Vocabulary(BPE, PADDED, ()).constraint(Regex("a*")).matcher().mask()[END_ID]
    assert words().constraint(Regex("")).matcher().done
    (found,) = answers(Regex(""))
    assert (found.text, found.done, len(found.ids)) == ("", "stop", 0)


def test_two_tokens_of_equal_bytes_are_both_allowed() -> None:
    vocabulary = Vocabulary(BPE, PADDED, (END_ID,))
    vocabulary.tokens[BPE.size] = b"ab"
    mask = vocabulary.constraint(Regex("abc?")).matcher().mask()
    assert mask[BPE.size]
    assert mask[BPE.id(b"ab")]


# ---- alone = together = drafted


def test_constrained_answers_are_the_same_alone_together_and_drafted() -> None:
    shape = Schema('{"type":"array","items":{"enum":["abab","abc","true"]},"minItems":2,"maxItems":4}')
    prompts, asking = ["x", "ab", "yy"], Asking(constraint=shape, ends=Ends((END_ID,), (END_ID,)), branches=2, seed=3)
    chosen = SamplingConfig(max_tokens=90)
    together = text.complete(Random(PADDED, slots=4), BPE, prompts, chosen, asking=asking)
    assert {each.done for each in together} == {"stop"}
    assert len({each.text for each in together}) > 2
    drafted = Engine(Random(PADDED, slots=4), proposer=Lookup(), draft=5)
    again = text.complete(drafted, BPE, prompts, chosen, asking=asking)
    assert [(each.text, each.ids.tolist(), each.done) for each in again] == [
        (each.text, each.ids.tolist(), each.done) for each in together
    ]
    assert sum(drafted.spoken.drafted)
    for prompt, wanted in zip(prompts, together[::2], strict=True):
        assert text.complete(Random(PADDED), BPE, [prompt], chosen, asking=asking)[0].text == wanted.text


def test_a_stop_string_in_the_middle_of_a_draft_cuts_ids_and_logprobs_as_plain_decoding_does() -> None:
    plain = from_merges([], (END,))
    letters = [plain.id(bytes([c])) for c in b"abcd"]

    class Round(Random):
        def logits(self, ids: Sequence[int]) -> np.ndarray:
            after = letters[(letters.index(ids[-1]) + 1) % 4] if ids[-1] in letters else letters[0]
            return 30 * np.eye(self.vocabulary, dtype=np.float32)[after]

    chosen = SamplingConfig(max_tokens=40, temperature=0, stop=("bcdab",))
    asking = Asking(logprobs=1, ends=Ends((), ()))
    (wanted,) = text.complete(Round(plain.size), plain, ["abcdabcd"], chosen, asking=asking)
    engine = Engine(Round(plain.size), proposer=Lookup(), draft=7)
    (found,) = text.complete(engine, plain, ["abcdabcd"], chosen, asking=asking)
    assert wanted.text == "a"
    assert (found.text, found.done, found.ids.tolist()) == (wanted.text, "stop", wanted.ids.tolist())
    assert wanted.logprobs is not None
    assert found.logprobs is not None
    assert len(found.logprobs.drawn) == len(wanted.ids) == 6
    assert engine.spoken.ids_per_pass > 2


# ---- what is wrong is said


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (Regex("(["), r"wrong at character 2: unclosed character class"),
        (Regex("a/b/(["), r"wrong at character 6: unclosed"),
        (Regex(r"(a)\1"), r"wrong at character 4: backreferences are not supported"),
        (Regex("(?=a)b"), r"wrong at character 1: look-around"),
        (Regex(r"\bfoo"), r"the regular expression is wrong: \^, \$ and \\b inside a pattern are not supported"),
        (Regex(r"[^\s\S]"), r"the regular expression matches nothing.*found: nothing can match it"),
        (Regex("\ud800"), r"lone surrogate at character 1"),
        (Choice(()), r"a choice between no texts"),
        (Schema('{\n"type": }'), r"no JSON: .* in line 2, column 9"),
        (Schema("3"), r"a JSON schema is an object"),
        (Schema("false"), r"JSON schema cannot be used: Unsatisfiable"),
        (Schema('{"type":"nope"}'), r"Invalid type: nope"),
        (Schema('{"properties":{"a":false},"type":"object","required":["a"]}'), r"required property 'a' is unsatis"),
        (Schema('{"type":"integer","minimum":5,"maximum":3}'), r"minimum \(5\) is greater than maximum \(3\)"),
        (Schema('{"not":{}}'), r"cannot be used: keys that are not supported: not"),
        (Schema('{"oneOf":[{"type":"integer"},{"type":"number"}]}'), r"oneOf whose parts may accept the same"),
        (Schema('{"$ref":"http://a.b/c"}'), r"a \$ref to another document"),
        (Schema('{"type":"string","pattern":"("}'), r"a pattern is wrong: unclosed group"),
        (Schema("[" * 100_000), r"nested too deeply"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_shape_is_refused(shape: Shape, said: str) -> None:
    with pytest.raises(GenerationError, match=f"(?s){said}"):
        answers(shape)


def test_what_the_vocabulary_cannot_spell_is_refused() -> None:
    narrow = Vocabulary(BPE, PADDED, (END_ID,))
    narrow.tokens[:] = [token if token in (b"a", b"b") else b"" for token in narrow.tokens]
    with pytest.raises(GenerationError, match="matches nothing that this vocabulary can spell"):
        narrow.constraint(Regex("c+"))


def test_what_does_not_go_together_is_refused() -> None:
    asking = Asking(constraint=Regex("a"), heal=1)
    with pytest.raises(GenerationError, match="healed or constrained"):
        text.complete(Random(PADDED), BPE, ["x"], asking=asking)
    with pytest.raises(GenerationError, match="says itself where an answer ends"):
        text.complete(Random(PADDED), BPE, ["x"], SamplingConfig(stop=("b",)), asking=Asking(constraint=Regex("a")))
    with pytest.raises(GenerationError, match=r"(?s)says itself where an answer ends.*min_tokens 2"):
        text.complete(Random(PADDED), BPE, ["x"], SamplingConfig(min_tokens=2), asking=Asking(constraint=Regex("a")))
    with pytest.raises(GenerationError, match=r"(?s)at least one token.*0"):
        text.complete(Random(PADDED), BPE, ["x"], asking=Asking(heal=0))


def test_the_grammar_library_is_loaded_only_when_asked_for(fresh: Callable[[str], str]) -> None:
    code = "import sys, temaki.generate.text; print('llguidance' in sys.modules, 'torch' in sys.modules)"
    assert fresh(code).split() == ["False", "False"]


# ---- token healing


A, B, AB, ABC = (BPE.id(each) for each in (b"a", b"b", b"ab", b"abc"))


def healed(model: Random, prompt: str, back: int | None, most: int = 1, ends: Ends | None = None, **asked: Any) -> Any:
    asking = Asking(heal=back, ends=ends or Ends((END_ID,), (END_ID,)), **asked)
    return text.complete(model, BPE, [prompt], SamplingConfig(temperature=0, max_tokens=most), asking=asking)[0]


def test_a_prompt_that_ends_inside_a_token_goes_on_with_its_rest() -> None:
    x = BPE.id(b"x")
    model = Table(BPE, {END_ID: {AB: 0.9, A: 0.1}, A: {x: 1.0}, AB: {END_ID: 1.0}})
    assert healed(model, "a", None).text == "x"
    found = healed(model, "a", 1)
    assert found.text == "b"
    assert found.ids.tolist() == [AB]
    assert healed(model, "a", 9).text == "b"


def test_stepping_back_several_tokens_passes_through_shorter_ones() -> None:
    """Prompt "xab" as x, ab: two taken away; x may come again alone, then ab or abc; and nothing else."""
    x, y = BPE.id(b"x"), BPE.id(b"y")
    after = {END_ID: {y: 0.9, x: 0.1}, x: {y: 0.6, A: 0.1, ABC: 0.3}, ABC: {y: 1.0}, A: {B: 1.0}}
    found = healed(Table(BPE, after), "xab", 2, most=2)
    assert found.text == "cy"
    assert found.ids.tolist() == [x, ABC, y]
    assert found.done == "length"
    after[x] = {y: 0.6, A: 0.3, ABC: 0.1}
    found = healed(Table(BPE, after | {B: {y: 1.0}}), "xab", 2, most=2)
    assert found.ids.tolist()[:3] == [x, A, B]
    assert found.text.startswith("y")


@settings(max_examples=30, deadline=None)
@given(st.text('abctrue日é{" ', min_size=1, max_size=8), st.integers(1, 3), st.integers(0, 9))
def test_a_healed_answer_begins_with_what_was_taken_away(prompt: str, back: int, seed: int) -> None:
    asking = Asking(heal=back, seed=seed, ends=Ends((END_ID,), ()))
    (found,) = text.complete(Random(BPE.size), BPE, [prompt], SamplingConfig(max_tokens=5), asking=asking)
    ids = np.concatenate([[END_ID], BPE.encode(prompt)])
    taken = heal.retreat(BPE, ids, back, BPE.size)
    said = b"".join(BPE.tokens[id] for id in found.ids)
    assert said.startswith(taken.rest)
    assert said[len(taken.rest) :].decode(errors="replace") == found.text
    assert b"".join(BPE.tokens[id] for id in taken.ids[1:]) + taken.rest == prompt.encode()
    spelled, count = b"", 0
    while len(spelled) < len(taken.rest):
        spelled += BPE.tokens[found.ids[count]]
        count += 1
    count -= len(spelled) > len(taken.rest)  # a token that says more is the answer's first one
    assert found.done == "length"
    assert len(found.ids) - count <= 5


def test_where_nothing_else_agrees_the_answer_is_the_plain_one() -> None:
    """z begins no other token, so r = z is the only candidate."""
    model, ends = Random(BPE.size), Ends((END_ID,), ())
    for seed in range(3):
        asked = [Asking(heal=each, seed=seed, ends=ends, logprobs=0) for each in (None, 1)]
        chosen = SamplingConfig(max_tokens=6)
        plain, other = (text.complete(model, BPE, ["qz"], chosen, asking=each)[0] for each in asked)
        assert other.text == plain.text
        assert other.ids.tolist() == [BPE.id(b"z"), *plain.ids.tolist()]


def test_special_tokens_and_the_first_id_are_never_taken_away() -> None:
    taken = heal.retreat(BPE, np.array([A, END_ID]), 2, BPE.size)
    assert (taken.removed, taken.rest, taken.healing) == (0, b"", None)
    alone = heal.retreat(BPE, np.array([A]), 1, BPE.size)
    assert alone.ids.tolist() == [A]
    assert alone.removed == 0
    masks = heal.retreat(BPE, np.array([END_ID, A]), 1, BPE.size).healing
    assert masks is not None
    mask = masks.matcher().mask()
    assert mask is not None
    assert set(np.flatnonzero(mask)) == {A, AB, ABC}
    with pytest.raises(GenerationError, match="does not agree"):
        masks.matcher().advance(B)


# ---- long prompts


def test_a_long_prompt_is_refused_or_cut_at_its_left() -> None:
    model = Random(BPE.size, room=12)
    chosen, ends = SamplingConfig(max_tokens=4, temperature=0), Ends((END_ID,), ())
    (found,) = text.complete(model, BPE, ["q" * 20 + "wz"], chosen, asking=Asking(cut="left", ends=ends))
    assert found.left_out == 23 - 8
    (wanted,) = text.complete(model, BPE, ["q" * 5 + "wz"], chosen, ends=ends)
    assert found.ids.tolist() == wanted.ids.tolist()
    assert wanted.left_out == 0
    with pytest.raises(GenerationError, match=r"(?s)longer than a slot's room.*23 ids.*12 ids"):
        text.complete(model, BPE, ["q" * 20 + "wz"], chosen, ends=ends)
    with pytest.raises(GenerationError, match="leaves no room"):
        text.complete(model, BPE, ["q" * 20], SamplingConfig(max_tokens=11), asking=Asking(cut="left", ends=ends))


# ---- a real vocabulary


def test_over_a_vocabulary_of_49_thousand_masks_are_small_work_and_answers_parse(smollm2: Path) -> None:
    tokenizer = opener.open(smollm2).tokenizer
    assert tokenizer is not None
    model = Random(49152)
    model.logits = lambda ids: keys.generator(0, "logits", *ids[-3:]).normal(0, 3, 49152).astype(np.float32)  # type: ignore[method-assign]
    schema = (
        '{"type":"object","properties":{"name":{"type":"string","maxLength":9},"age":{"type":"integer","minimum":0,'
        '"maximum":130},"tags":{"type":"array","items":{"enum":["red","blue"]},"maxItems":2}},'
        '"required":["name","age","tags"],"additionalProperties":false}'
    )
    shapes: list[tuple[Shape, Callable[[str], Any]]] = [
        (Schema(schema), lambda said: 0 <= json.loads(said)["age"] <= 130),
        (Regex("[0-9]{3}-[0-9]{4}"), lambda said: re.fullmatch("[0-9]{3}-[0-9]{4}", said)),
        (Regex(r"[a-z]{1,9}@[a-z]{1,9}\.(com|org)"), lambda said: re.fullmatch(r"[a-z]+@[a-z]+\.(com|org)", said)),
        (Choice((" yes", " no", " perhaps")), lambda said: said in (" yes", " no", " perhaps")),
    ]
    for shape, right in shapes:
        asking = Asking(constraint=shape, ends=Ends((), (2,)), branches=2, seed=1)
        for each in text.complete(model, tokenizer, ["x"], SamplingConfig(max_tokens=80), asking=asking):
            assert each.done == "stop"
            assert right(each.text), each.text
