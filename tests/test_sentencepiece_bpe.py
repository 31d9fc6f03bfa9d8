"""SentencePiece BPE: ids and text against the `sentencepiece` package and a readable twin; tokenizer.json; laws."""

import gzip
import io
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nasty
from temaki.base.errors import TokenizerError
from temaki.formats import convert, proof
from temaki.formats import tokenizer as opener
from temaki.tokens import files, hf_json, sentencepiece
from temaki.tokens.chat import ChatTemplate
from temaki.tokens.frame import Frame
from temaki.tokens.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Model, Normalizer, Piece
from temaki.tokens.sentencepiece_bpe import SentencePieceBpe
from temaki.tokens.tokenizer import Dropout, Sampling

BARE = {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "llama": {"byte_fallback": True, "split_digits": True, "allow_whitespace_only_pieces": True, **BARE},
    "no prefix": {"add_dummy_prefix": False, **BARE},
    "user-defined": {"byte_fallback": True, "user_defined_symbols": ["<x>", "the", "\u0120", "=="]},
    "across words": {"split_by_whitespace": False, "byte_fallback": True},
    "suffix": {"treat_whitespace_as_suffix": True},
}
CORPUS = [
    "the cat sat on the mat, and the other cats sat there; 1234 of them, don't you think so?",
    "\u00fcber caff\u00e8 nai\u0308ve \u4f60\u597d\u4e16\u754c\uff0c\u4e16\u754c\u4f60\u597d \U0001f600",
    "    if x == y:  # ====\n        return    z",
    "she said that this and that were there, then left the theatre with others",
] * 6


@cache
def trained(kind: str) -> Model:
    package = pytest.importorskip("sentencepiece", reason="the sentencepiece package trains the models")
    content = io.BytesIO()
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=content,
        model_type="bpe",
        vocab_size=420 if KINDS[kind].get("byte_fallback") else 150,
        minloglevel=2,
        **KINDS[kind],
    )
    return sentencepiece.read(content.getvalue())


def oracle(model: Model) -> Any:
    package = pytest.importorskip("sentencepiece", reason="the sentencepiece package is the oracle")
    return package.SentencePieceProcessor(model_proto=sentencepiece.write(model))


@cache
def small(fallback: bool = False, ties: bool = False, unused: bool = True, **normalizer: bool) -> Model:
    """A model with every type of piece, some of whose characters are none; scores in no order of length."""
    words = [
        "\u2581",
        "a",
        "b",
        "\u2581a",
        "ab",
        "abc",
        "bc",
        "ba",
        "aba",
        "aa",
        "aaa",
        "\u65e5\u672c",
        "\u65e5",
        "a\u2581",
        "\u2581\u2581",
    ]
    draw = random.Random(3)
    pieces = [Piece("<unk>", 0.0, UNKNOWN), Piece("<s>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL)]
    pieces += [Piece(word, -float(draw.randrange(4 if ties else 1000)), NORMAL) for word in words]
    pieces += [Piece("[x]", 0.0, USER_DEFINED), Piece("[x", 0.0, USER_DEFINED)]
    if unused:
        pieces += [Piece(text, -float(draw.randrange(9)), UNUSED) for text in ("abab", "baa", "ca", "c")]
    if fallback:
        pieces += [Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    return Model(
        tuple(pieces), sentencepiece.BPE, fallback, normalizer=Normalizer(**{"name": "identity", **normalizer})
    )


PARTS = ["a", "b", "c", "ab", "ba", " ", "  ", "\u65e5", "\u672c", "\u00e9", "[x]", "[", "x", "\u2581", "<s>", "zz"]


def mixed(count: int, most: int, seed: int = 8) -> Iterator[str]:
    draw = random.Random(seed)
    for _ in range(count):
        yield "".join(draw.choice(PARTS) for _ in range(draw.randrange(most)))


def agree(ours: SentencePieceBpe, theirs: Any, texts: Iterator[str]) -> None:
    for text in texts:
        ids = ours.encode_list(text)
        assert ids == theirs.encode(text), ascii(text)
        assert ours.decode(ids) == theirs.decode(ids), ascii(text)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_are_sentencepiece_s(kind: str):
    model = trained(kind)
    agree(SentencePieceBpe(model), oracle(model), itertools.chain(proof.texts(400), nasty.texts(400, 2), CORPUS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_ids_are_sentencepiece_s(kind: str):
    model = trained(kind)
    agree(SentencePieceBpe(model), oracle(model), itertools.chain(proof.texts(20_000), nasty.texts(20_000, 2)))


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("unused", [False, True])
@pytest.mark.parametrize("prefix", [False, True])
def test_every_kind_of_piece_is_sentencepiece_s(fallback: bool, ties: bool, unused: bool, prefix: bool):
    for remove in (False, True):
        model = small(fallback, ties, unused, add_dummy_prefix=prefix, remove_extra_whitespaces=remove)
        agree(SentencePieceBpe(model), oracle(model), itertools.chain(mixed(150, 12), mixed(20, 200)))


def test_a_long_chinese_text_is_sentencepiece_s(data: Callable[[str], Path]):
    package = pytest.importorskip("sentencepiece", reason="the sentencepiece package is the oracle")
    text = gzip.decompress(data("zh_novels/xiyouji.txt.gz").read_bytes()).decode()[:150_000]
    content = io.BytesIO()
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()), model_writer=content, model_type="bpe", vocab_size=6000,
        character_coverage=0.98, byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    model = sentencepiece.read(content.getvalue())
    agree(SentencePieceBpe(model), oracle(model), iter([text, *text.splitlines()[:200]]))


@pytest.mark.parametrize("text", ["a" * 100_000, "ab" * 50_000, "a " * 40_000, "[x" * 30_000, "\u65e5" * 50_000])
def test_a_text_without_a_cut_is_sentencepiece_s(text: str):
    for unused in (False, True):
        model = small(True, unused=unused)
        assert SentencePieceBpe(model).encode_list(text) == oracle(model).encode(text)


def test_unused_pieces_that_cannot_arise_cost_nothing():
    model = trained("llama")
    padded = replace(model, pieces=(*model.pieces, *(Piece(f"[PAD{n}]", 0.0, UNUSED) for n in range(3))))
    ours, run = SentencePieceBpe(padded), SentencePieceBpe(padded).run()
    agree(ours, oracle(padded), iter(CORPUS))
    assert run.push(" ".join(CORPUS)).size > 100


def plain(model: Model, text: str) -> list[int]:
    """The readable twin: join the best neighbours, leftmost first, until none are a piece; bytes of what is none."""
    ids = {piece.text: id for id, piece in enumerate(model.pieces) if piece.type == NORMAL}
    symbols = list(" " + text if text else "")
    while True:
        joins = [
            (-model.pieces[ids[a + b]].score, at)
            for at, (a, b) in enumerate(itertools.pairwise(symbols))
            if a + b in ids
        ]
        if not joins:
            break
        at = min(joins)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    first = [piece.type for piece in model.pieces].index(BYTE)
    return [id for each in symbols for id in ([ids[each]] if each in ids else [first + byte for byte in each.encode()])]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab c\u65e5\u00e9", min_size=1, max_size=5), st.integers(-6, 0)), max_size=25),
    st.lists(st.text("ab c\u65e5\u00e9z", max_size=60), max_size=4),
)
def test_the_compiled_one_is_the_readable_twin(words: list[tuple[str, int]], texts: list[str]):
    pieces = [Piece("<unk>", 0.0, UNKNOWN)]
    pieces += [Piece(word, float(score)) for word, score in dict(words).items()]
    pieces += [Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    rules = Normalizer(remove_extra_whitespaces=False, escape_whitespaces=False)
    model = Model(tuple(pieces), sentencepiece.BPE, True, normalizer=rules)
    ours = SentencePieceBpe(model)
    batch = ours.encode_batch(texts)
    wanted = [plain(model, text) for text in texts]
    assert [ours.encode_list(text) for text in texts] == wanted
    assert batch.ids.tolist() == [id for ids in wanted for id in ids]
    assert np.diff(batch.offsets).tolist() == [len(ids) for ids in wanted]


def test_a_batch_is_each_alone():
    ours = SentencePieceBpe(trained("user-defined"))
    texts = [*proof.texts(200), *(text * 3000 for text in CORPUS[:4])]
    for special in ((), ("</s>",)):
        batch = ours.encode_batch([text if number % 2 else text.encode() for number, text in enumerate(texts)], special)
        for number, text in enumerate(texts):
            found = batch.ids[batch.offsets[number] : batch.offsets[number + 1]]
            assert found.tolist() == ours.encode_list(text, special)
    with pytest.raises(TokenizerError, match="text 1"):
        ours.encode_batch(["a", b"\xff"])


@pytest.mark.parametrize("block", [1, 5, 1 << 16])
def test_chunks_do_not_matter(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("temaki.tokens.split.BLOCK", block)
    draw = random.Random(4)
    models = [SentencePieceBpe(small(True, unused=unused)) for unused in (False, True)]
    models += [SentencePieceBpe(trained(kind)) for kind in ("plain", "user-defined", "across words")]
    for number, text in enumerate(itertools.chain(nasty.texts(60, 5, ("[x]", "</s>", "the")), mixed(60, 60))):
        ours = models[number % len(models)]
        places = [0, *sorted(draw.randrange(len(text) + 1) for _ in range(4)), len(text)]
        chunks = [text[begin:end] for begin, end in itertools.pairwise(places)]
        for special in ([], ["</s>"]):
            found = np.concatenate([np.empty(0, np.uint32), *ours.encode_iterable(chunks, special)])
            assert found.tolist() == ours.encode_list(text, special), ascii(text)


def test_a_stream_holds_little():
    ours = SentencePieceBpe(trained("llama"))
    run, text, longest = ours.run(), " ".join(CORPUS), 0
    for at in range(0, len(text), 7):
        run.push(text[at : at + 7])
        longest = max(longest, run._flow.held)  # type: ignore[attr-defined]
    assert longest < 100


def test_streamed_is_decoded():
    draw = random.Random(5)
    for ours in map(SentencePieceBpe, (small(), small(True), trained("llama"), trained("no prefix"))):
        for _ in range(60):
            ids = [draw.randrange(ours.size) for _ in range(draw.randrange(9))]
            stream = ours.stream()
            for _ in range(2):  # it can be used anew
                assert "".join(map(stream.push, ids)) + stream.close() == ours.decode(ids)


def test_a_stream_behind_a_text_keeps_its_first_space(llama: dict[str, Any]):
    for ours in (SentencePieceBpe(trained("llama")), hf_json.parsed(metaspace(llama, "first"))[0]):
        begun, more = ours.encode_list("the cat"), ours.encode_list("the cat sat on")[2:]
        assert ours.encode_list("the cat sat on")[:2] == begun
        for before, said in ((begun, " sat on"), ([1, *begun], " sat on"), ([1], "sat on"), ([], "sat on")):
            stream = ours.stream().behind(before)
            assert "".join(map(stream.push, more)) + stream.close() == said


def test_a_chat_has_the_ids_of_its_text(llama: dict[str, Any]):
    """Cut where learning begins, the text between two special tokens has still one space before it."""
    template = ChatTemplate("{% for m in messages %}{{ '<s>[' + m.role + '] ' + m.content + '</s>' }}{% endfor %}")
    segments = template.render([{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat there"}])
    text = "".join(segment.text for segment in segments)
    for ours in (SentencePieceBpe(trained("llama")), hf_json.parsed(metaspace(llama, "first"))[0]):
        found = template.encode(ours, segments)
        assert ours.decode_bytes(found.ids) == ours.decode_bytes(ours.encode(text, ours.special))
        assert found.ids.tolist()[:4] == ours.encode_list(text, ours.special)[:4]
        assert ours.stream().behind([5]).push(int(found.ids[found.learned.argmax()])) == "s"


def test_special_tokens_come_only_when_asked():
    ours = SentencePieceBpe(trained("llama"))
    assert dict(ours.special) == {"<s>": 1, "</s>": 2}
    assert 2 not in ours.encode_list("a</s>b")
    assert ours.encode_list("a</s>b", ["</s>"]) == [*ours.encode_list("a"), 2, *ours.encode_list("b")]
    assert ours.decode([1, *ours.encode_list("a b")]) == "a b"
    with pytest.raises(TokenizerError, match="unknown special"):
        ours.encode("a", ["<x>"])


def test_joins_are_left_out_at_random():
    ours = SentencePieceBpe(small(unused=False, add_dummy_prefix=False))
    for text in ("abab\u65e5\u672c aba" * 9, "", "ab"):
        letters = [ours.encode_list(letter) for letter in text]
        assert ours.encode(text, noise=Dropout(1, 1, 0.0)).tolist() == ours.encode_list(text)
        if "\u672c" not in text:
            assert ours.encode(text, noise=Dropout(1, 1, 1.0)).tolist() == [id for ids in letters for id in ids]
        for place in range(20):
            found = ours.encode(text, noise=Dropout(7, place, 0.4))
            assert found.tolist() == ours.encode(text, noise=Dropout(7, place, 0.4)).tolist()
    n = 4000
    whole = ours.encode_list("ab")
    kept = sum(ours.encode("ab", noise=Dropout(3, place, 0.3)).tolist() == whole for place in range(n))
    assert abs(kept - 0.7 * n) < 4 * (n * 0.3 * 0.7) ** 0.5
    for noise in (Sampling(1, 1, 0.5), Dropout(1, 1, 1.5), Dropout(1, 1, float("nan"))):
        with pytest.raises(TokenizerError):
            ours.encode("a", noise=noise)


def test_facts_make_the_tokenizer_again(tmp_path: Path):
    plain = SentencePieceBpe(trained("llama"))
    for ours in (plain, hf_json.parsed(theirs_of(plain))[0], SentencePieceBpe(small())):
        again = SentencePieceBpe.of(json.loads(json.dumps(ours.facts())))
        assert again.fingerprint == ours.fingerprint
        files.save(ours, tmp_path)
        assert files.load(tmp_path).fingerprint == ours.fingerprint
        assert again.encode_list("the cat  sat") == ours.encode_list("the cat  sat")


def test_a_model_file_opens_by_its_type(tmp_path: Path):
    model = trained("llama")
    sentencepiece.save(model, tmp_path / "tokenizer.model")
    for place in (tmp_path, tmp_path / "tokenizer.model"):
        found = opener.open(place)
        assert isinstance(found, SentencePieceBpe)
        assert found.encode_list("the cat") == oracle(model).encode("the cat")
    sentencepiece.save(replace(model, type=sentencepiece.WORD), tmp_path / "words.model")
    with pytest.raises(TokenizerError, match="type 3"):
        opener.open(tmp_path / "words.model")


# ---- tokenizer.json -------------------------------------------------------------------------------------------------


def theirs_of(ours: SentencePieceBpe) -> dict[str, Any]:
    """tokenizer.json as `transformers` makes one of such a model: by the `tokenizers` package alone."""
    package = pytest.importorskip("tokenizers", reason="tokenizers, the oracle of tokenizer.json, is missing")
    pieces = ours.model.pieces
    vocab = {piece.text: id for id, piece in enumerate(pieces)}
    splits = [
        (-piece.score, len(piece.text) - cut, piece.text[:cut], piece.text[cut:])
        for piece in pieces
        for cut in range(1, len(piece.text))
        if piece.type == NORMAL and piece.text[:cut] in vocab and piece.text[cut:] in vocab
    ]
    merges = [(left, right) for _, _, left, right in sorted(splits)]
    made = package.Tokenizer(package.models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    n, d = package.normalizers, package.decoders
    made.normalizer = n.Sequence([n.Prepend("\u2581"), n.Replace(" ", "\u2581")])
    made.decoder = d.Sequence([d.Replace("\u2581", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    made.add_special_tokens([package.AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    made.post_processor = package.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return json.loads(made.to_str())


def metaspace(content: dict[str, Any], scheme: str) -> dict[str, Any]:
    """The same as `transformers` 5 makes it: spaces by Metaspace."""
    made = json.loads(json.dumps(content))
    made["normalizer"] = None
    made["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    if scheme == "never":
        made["decoder"]["decoders"].pop()
    return made


@pytest.fixture(scope="module")
def llama() -> dict[str, Any]:
    return theirs_of(SentencePieceBpe(trained("llama")))


def texts() -> Iterator[str]:
    return itertools.chain(proof.texts(400), nasty.texts(400, 3, ("<s>", "</s>", "<unk>")), CORPUS)


@pytest.mark.parametrize("spaces", ["prepend", "first", "never"])
def test_a_tokenizer_json_is_read_as_it_is_meant(spaces: str, llama: dict[str, Any]):
    package = pytest.importorskip("tokenizers", reason="tokenizers, the oracle of tokenizer.json, is missing")
    content = llama if spaces == "prepend" else metaspace(llama, spaces)
    theirs = package.Tokenizer.from_str(json.dumps(content))
    ours, frame = hf_json.parsed(content)
    assert (frame, dict(ours.special)) == (Frame(before=("<s>",)), {"<unk>": 0, "<s>": 1, "</s>": 2})
    for text in texts():
        wanted = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode_list(text, ours.special) == wanted, ascii(text)
        assert frame.around(ours.encode(text, ours.special), ours).tolist() == theirs.encode(text).ids
        assert ours.encode_batch([text.encode()], ours.special).ids.tolist() == wanted
        assert np.concatenate([*ours.encode_iterable(text, ours.special)]).tolist() == wanted
        if "\ufffd" not in theirs.decode(wanted):
            assert ours.decode(wanted) == theirs.decode(wanted), ascii(text)


@pytest.mark.parametrize("source", ["scores", "merges", "first", "spaces as they are", "no prefix"])
def test_a_tokenizer_json_is_written_as_it_is_read(source: str, llama: dict[str, Any], tmp_path: Path):
    transformers = pytest.importorskip("transformers", reason="transformers, the oracle, is missing")
    found = {"merges": llama, "first": metaspace(llama, "first")}
    ours = hf_json.parsed(found[source])[0] if source in found else SentencePieceBpe(trained("llama"))
    assert isinstance(ours, SentencePieceBpe)
    model = ours.model
    if source == "spaces as they are":
        pieces = tuple(replace(piece, text=piece.text.replace("\u2581", " ")) for piece in model.pieces)
        ours = SentencePieceBpe(
            replace(model, pieces=pieces, normalizer=replace(model.normalizer, escape_whitespaces=False))
        )
    if source == "no prefix":
        ours = SentencePieceBpe(replace(model, normalizer=replace(model.normalizer, add_dummy_prefix=False)))
    hf_json.save(ours, tmp_path, Frame(before=("<s>",)))
    again, frame = hf_json.load(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert frame == Frame(before=("<s>",))
    for text in texts():
        wanted = ours.encode_list(text, ours.special)
        assert again.encode_list(text, again.special) == wanted, ascii(text)
        assert theirs(text, add_special_tokens=False).input_ids == wanted, ascii(text)
    assert theirs("the cat").input_ids == [1, *ours.encode_list("the cat")]
    assert proof.same(ours, again)


def test_merges_are_kept_as_they_were_listed(llama: dict[str, Any]):
    """ "aa" + "a" before "a" + "aa" or after it: scores cannot say it, the list can."""
    package = pytest.importorskip("tokenizers", reason="tokenizers, the oracle of tokenizer.json, is missing")
    vocab = {piece: id for id, piece in enumerate(["<unk>", "a", "b", "aa", "aaa", "ba", "baa"])}
    found = set()
    for merges in (
        [("b", "a"), ("a", "aa"), ("aa", "a"), ("a", "a")],
        [("a", "a"), ("aa", "a"), ("a", "aa"), ("b", "a")],
    ):
        made = package.Tokenizer(package.models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True))
        made.decoder = package.decoders.Fuse()
        content = {**json.loads(made.to_str()), "decoder": {"type": "Sequence", "decoders": [
            {"type": "ByteFallback"}, {"type": "Fuse"}]}}  # fmt: skip
        ours = hf_json.parsed(content)[0]
        assert isinstance(ours, SentencePieceBpe)
        assert [(ours.model.pieces[a].text, ours.model.pieces[b].text) for a, b in ours.merges or ()] == merges
        for length in range(1, 9):
            for letters in itertools.product("abc", repeat=length):
                text = "".join(letters)
                assert ours.encode_list(text) == made.encode(text).ids, text
        found.add(tuple(ours.encode_list("baaaab")))
    assert len(found) == 2


def test_of_a_merge_that_is_listed_twice_the_last_place_counts(llama: dict[str, Any]):
    package = pytest.importorskip("tokenizers", reason="tokenizers, the oracle of tokenizer.json, is missing")
    vocab = {piece: id for id, piece in enumerate(["<unk>", "a", "b", "c", "ab", "bc"])}
    merges = [["a", "b"], ["b", "c"], ["a", "b"]]
    model = {**llama["model"], "vocab": vocab, "merges": merges, "byte_fallback": False}
    content = {**llama, "model": model, "normalizer": None, "added_tokens": [], "post_processor": None, "decoder": {
        "type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}}  # fmt: skip
    ours, theirs = hf_json.parsed(content)[0], package.Tokenizer.from_str(json.dumps(content))
    assert ours.encode_list("abc") == theirs.encode("abc").ids == [vocab["a"], vocab["bc"]]


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "pre-tokenizer": (lambda f: f.update(pre_tokenizer={"type": "Metaspace", "split": False}), "Metaspace"),
    "split": (lambda f: f.update(metaspace(f, "first"), pre_tokenizer={"type": "Metaspace"}), "split"),
    "always": (lambda f: f.update(metaspace(f, "always")), "prepend_scheme"),
    "other pre-tokenizer": (lambda f: f.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
    "normalizer": (lambda f: f["normalizer"]["normalizers"].append({"type": "NFKC"}), "NFKC"),
    "other mark": (lambda f: f["normalizer"]["normalizers"][0].update(prepend="_"), "Prepend"),
    "decoder": (lambda f: f["decoder"]["decoders"].pop(), "decoder"),
    "dropout": (lambda f: f["model"].update(dropout=0.1), "dropout"),
    "whole": (lambda f: f["model"].update(ignore_merges=True), "ignore_merges"),
    "unknown": (lambda f: f["model"].update(unk_token="<none>"), "unk_token"),
    "single unknowns": (lambda f: f["model"].update(byte_fallback=False, fuse_unk=False), "fuse_unk"),
    "missing byte": (lambda f: f["model"]["vocab"].update({"zz": f["model"]["vocab"].pop("<0x41>")}), "byte"),
    "strange merge": (lambda f: f["model"]["merges"].append(["a", "qqq"]), "merge"),
    "merge of bytes": (lambda f: f["model"]["merges"].append(["<0x41>", "a"]), "merge"),
    "added in normal form": (lambda f: f["added_tokens"][1].update(normalized=True), "normalized"),
    "added with space": (lambda f: f["added_tokens"][1].update(lstrip=True), "lstrip"),
    "gap": (lambda f: f["model"]["vocab"].update({"qqq": 999}), "no token"),
    "unknown field": (lambda f: f["model"].update(merge_style="x"), "merge_style"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_rebuilt_exactly_is_refused_by_name(wrong: str, llama: dict[str, Any]):
    change, message = WRONG[wrong]
    found = json.loads(json.dumps(llama))
    change(found)
    with pytest.raises(TokenizerError, match=message):
        hf_json.parsed(found)


def test_what_tokenizer_json_cannot_say_is_refused(tmp_path: Path):
    for model in (small(True), small(True, ties=True, unused=False), trained("plain"), trained("user-defined")):
        with pytest.raises(TokenizerError, match="cannot say"):
            hf_json.save(SentencePieceBpe(model), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("to", ["native", "hf", "sentencepiece", "llama2c"])
def test_it_is_converted_with_a_proof(to: str, tmp_path: Path):
    sentencepiece.save(trained("llama"), tmp_path / "m.model")
    done = convert.convert(tmp_path / "m.model", tmp_path / "out", to)
    assert done.texts > 1500
    assert convert.convert(tmp_path / "out", tmp_path / "back", "native").after.kind == "sentencepiece-bpe"


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [Piece("a")],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("u", 0.0, UNKNOWN)],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("")],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("a"), Piece("a")],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("a", float("nan"))],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("a", 0.0, 9)],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("a" * 2000)],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("<0x00>", 0.0, BYTE)],
    ],
)
def test_models_that_cannot_be(pieces: list[Piece]):
    with pytest.raises(TokenizerError):
        SentencePieceBpe(Model(tuple(pieces), sentencepiece.BPE))


def test_facts_and_merges_that_cannot_be():
    told = SentencePieceBpe(small()).facts()
    for merges in (5, [1], [["a", "b"]], [[3, 4]], [[0, 1]], [[3, 99]], [[True, 4]], [[-1, 4]]):
        with pytest.raises(TokenizerError):
            SentencePieceBpe.of({**told, "merges": merges})
    for wrong in ({"pieces": []}, {**told, "more": 1}, {**told, "unknown_is_special": 0}):
        with pytest.raises(TokenizerError, match="describes no"):
            SentencePieceBpe.of(wrong)
    with pytest.raises(TokenizerError, match="BPE"):
        SentencePieceBpe(replace(small(), type=sentencepiece.UNIGRAM))


def test_a_model_of_nothing_knows_nothing():
    tokenizer = SentencePieceBpe(Model((Piece("<unk>", 0.0, UNKNOWN),), sentencepiece.BPE))
    assert tokenizer.encode_list("ab \u65e5") == [0]
    assert tokenizer.encode_list("") == []


def survives(n: int, content: bytes, seed: int) -> None:
    """Every mutant of a model loads and encodes, or is refused with an error of ours."""
    draw = random.Random(seed)
    refused = 0
    for _ in range(n):
        mutant = bytearray(content)
        for _ in range(draw.randrange(1, 5)):
            place = draw.randrange(len(mutant))
            match draw.randrange(3):
                case 0:
                    mutant[place] = draw.randrange(256)
                case 1:
                    del mutant[place : place + draw.randrange(1, 20)]
                case _:
                    mutant[place:place] = draw.randbytes(draw.randrange(1, 5))
        try:
            tokenizer = SentencePieceBpe(sentencepiece.read(bytes(mutant)))
            tokenizer.decode(tokenizer.encode("abab [x] \u65e5\u672c aaa"))
        except TokenizerError:
            refused += 1
    assert n // 10 < refused < n


def test_mutants_of_a_model():
    survives(500, sentencepiece.write(small()), 2)
    survives(500, sentencepiece.write(small(unused=False)), 3)


@pytest.mark.slow
def test_many_mutants_of_a_model():
    survives(50_000, sentencepiece.write(small()), 4)
    survives(50_000, sentencepiece.write(small(unused=False)), 5)


def changed(found: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with one thing in it, anywhere, taken away, doubled or made something else."""
    junk = [None, True, 0, -1, 2**40, 1.5, "", "\u2581", "<s>", [], {}, ["a"], {"type": "BPE"}, "\ud800"]
    if not isinstance(found, dict | list) or not found or draw.random() < 0.15:
        return draw.choice(junk)
    key = draw.choice(list(found) if isinstance(found, dict) else range(len(found)))
    made = found.copy()
    match draw.randrange(8):
        case 0:
            del made[key]
        case 1 if isinstance(made, list):
            made.append(made[key])
        case _:
            made[key] = changed(made[key], draw)
    return made


def jsons_survive(n: int, whole: list[dict[str, Any]], seed: int) -> None:
    """Every mutant of a tokenizer.json is read and encodes, or is refused with an error of ours."""
    draw = random.Random(seed)
    refused = 0
    for number in range(n):
        mutant = changed(whole[number % len(whole)], draw)
        if not isinstance(mutant, dict):  # refused where the file is read
            refused += 1
            continue
        try:
            ours, frame = hf_json.parsed(mutant)
            ours.decode(frame.around(ours.encode("the cat \u65e5", ours.special), ours))
        except TokenizerError:
            refused += 1
    assert n // 3 < refused < n


def tiny(llama: dict[str, Any]) -> list[dict[str, Any]]:
    """Files with few pieces, none of them for bytes."""
    made = json.loads(json.dumps(llama))
    words = ["<unk>", "<s>", "</s>", "\u2581", "t", "h", "e", "th", "the", "\u2581the"]
    made["model"] |= {
        "vocab": {word: id for id, word in enumerate(words)},
        "merges": [["t", "h"], ["th", "e"], ["\u2581", "the"]],
        "byte_fallback": False,
    }
    return [made, metaspace(made, "first")]


def test_mutants_of_a_tokenizer_json(llama: dict[str, Any]):
    jsons_survive(1000, tiny(llama), 6)


@pytest.mark.slow
def test_many_mutants_of_a_tokenizer_json(llama: dict[str, Any]):
    jsons_survive(100_000, tiny(llama), 7)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_model_or_an_error(content: bytes):
    try:
        SentencePieceBpe(sentencepiece.read(content))
    except TokenizerError as error:
        assert str(error)
