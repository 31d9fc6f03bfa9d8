"""Sources and the held-out share: nothing lost, nothing doubled, always the same."""

import hashlib
import os
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from temaki.base.errors import ConfigError, DataError
from temaki.corpus import sources
from temaki.corpus.sources import Document

laws = settings(derandomize=True, deadline=None, max_examples=150)


def write(root: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


# ---- the standard library --------------------------------------------------------------------------------


def test_the_standard_library_is_all_its_source_but_tests_and_what_was_installed():
    source = sources.standard_library()
    documents = list(source)
    ids = [document.id for document in documents]
    root = Path(sysconfig.get_path("stdlib"))
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {
        "os.py",
        "json/decoder.py",
        "encodings/utf_8.py",
        "encodings/cp1252.py",
        "pydoc_data/topics.py",
        "idlelib/editor.py",
    } <= set(ids)
    out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert not [id for id in ids if out & set(id.split("/")[:-1])]
    assert all((root / id).suffix == ".py" for id in ids)
    for document in documents[::40]:
        assert document.text.encode() == (root / document.id).read_bytes()
    assert sum(len(document.text) for document in documents) > 5_000_000
    assert len(ids) + sum(source.skipped.values()) == len(source.paths)


def test_the_share_of_the_standard_library_is_decided_by_each_text_alone():
    documents = list(sources.standard_library())
    train, held = sources.held_out(documents, 0.1)
    for document in documents:
        digest = hashlib.sha256(document.text.encode()).digest()
        below = int.from_bytes(digest[:8], "big") / 2**64 < 0.1
        assert (document in held) == below
        assert (document in train) != below
    assert [document.id for document in held] == sorted(document.id for document in held)


# ---- folders ---------------------------------------------------------------------------------------------

FOLDER = {
    "b.txt": b"b\r\n\r",
    "a/z.md": "é了\ufeff".encode(),
    "a.txt": b"\xef\xbb\xbfbom",
    "a/y": b"y",
    "latin.txt": b"caf\xe9",
    "picture.png": b"\x89PNG\0",
    "utf16.txt": "ab".encode("utf-16-le"),
    "empty.txt": b"",
    ".hidden": b"no",
    ".git/config": b"no",
    "a/.secret/x.txt": b"no",
}


def test_a_folder_is_its_text_files_in_order_byte_for_byte(tmp_path):
    source = sources.files(write(tmp_path / "corpus", FOLDER))
    for _ in range(2):
        documents = list(source)
        assert [document.id for document in documents] == ["a.txt", "a/y", "a/z.md", "b.txt"]
        assert [document.text.encode() for document in documents] == [FOLDER[d.id] for d in documents]
        assert source.skipped == {"empty": 1, "not UTF-8": 1, "binary": 2}
    assert source.name == "corpus"


def test_errors_can_be_replaced_in_a_folder(tmp_path):
    source = sources.files(write(tmp_path, FOLDER), errors="replace")
    texts = {document.id: document.text for document in source}
    assert texts["latin.txt"] == "caf\ufffd"
    assert "picture.png" not in texts
    assert source.skipped == {"empty": 1, "binary": 2}


def test_links_do_not_loop(tmp_path):
    write(tmp_path, {"a/one.txt": b"one"})
    try:
        os.symlink(tmp_path, tmp_path / "a" / "up", target_is_directory=True)
        os.symlink("self.txt", tmp_path / "self.txt")
        os.symlink(tmp_path / "a" / "one.txt", tmp_path / "two.txt")
    except OSError:
        pytest.skip("this system makes no links")
    assert [document.id for document in sources.files(tmp_path)] == ["a/one.txt", "two.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_what_is_no_regular_file_is_left_alone(tmp_path):
    write(tmp_path, {"one.txt": b"one"})
    os.mkfifo(tmp_path / "pipe")
    assert [document.id for document in sources.files(tmp_path)] == ["one.txt"]
    with pytest.raises(DataError, match="neither"):
        sources.files(tmp_path / "pipe")


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname == "Darwin", reason="names are text there")
def test_a_name_that_is_not_utf8_becomes_one_that_can_be_hashed(tmp_path):
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))).write_bytes(b"text")
    (document,) = sources.files(tmp_path)
    assert document.id == "caf\\udce9.txt"
    assert 0 <= sources.fraction(document.text) < 1


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_source_goes_on_where_it_stopped(tmp_path, kind):
    if kind == "folder":
        path = write(tmp_path, FOLDER)
    else:
        path = tmp_path / "one.txt"
        path.write_text("a<|endoftext|>b<|endoftext|><|endoftext|>c<|endoftext|>d", encoding="utf-8")
    whole = list(sources.files(path))
    assert len(whole) == 4
    for taken in range(5):
        source = sources.files(path)
        iterator = iter(source)
        first = [next(iterator) for _ in range(taken)]
        assert first + list(sources.files(path, start=source.position)) == whole


# ---- single files ----------------------------------------------------------------------------------------


def test_a_file_is_one_document_byte_for_byte(tmp_path):
    path = write(tmp_path, {"one.txt": "\ufeffé\r\nx\r\n\n".encode()}) / "one.txt"
    assert list(sources.files(str(path))) == [Document("\ufeffé\r\nx\r\n\n", "one.txt")]


def test_a_file_with_separators_is_several_documents(tmp_path):
    path = write(tmp_path, {"t.txt": "one é<|endoftext|>\ntwo<|endoftext|><|endoftext|>three".encode()}) / "t.txt"
    assert [(document.id, document.text) for document in sources.files(path)] == [
        ("t.txt#0", "one é"),
        ("t.txt#1", "\ntwo"),
        ("t.txt#3", "three"),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"ok\nok\nca\xe9 x", "byte 8, line 3"),
        (b"ok<|endoftext|>\n\xff", "byte 16, line 2"),
        ("é\n了".encode()[:-1], "byte 3, line 2"),
        (b"ab\0", "byte 2, line 1"),
        (b"", "empty"),
        (b"<|endoftext|>", "no text"),
    ],
)
def test_a_file_that_is_no_text_is_refused_with_the_place(tmp_path, content, says):
    path = write(tmp_path, {"bad.txt": content}) / "bad.txt"
    with pytest.raises(DataError, match=says):
        list(sources.files(path))


def test_errors_can_be_replaced_in_a_file(tmp_path):
    path = write(tmp_path, {"bad.txt": b"ca\xe9\0 \xff<|endoftext|>x"}) / "bad.txt"
    assert [document.text for document in sources.files(path, errors="replace")] == ["ca\ufffd\0 \ufffd", "x"]


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such"):
        sources.files(tmp_path / "missing")
    with pytest.raises(DataError, match="no files"):
        sources.files(tmp_path)
    write(tmp_path, {".hidden": b"x"})
    with pytest.raises(DataError, match="no files"):
        sources.files(tmp_path)
    write(tmp_path, {"a.bin": b"\0", "b.txt": b"", "c.txt": b"\xff"})
    with pytest.raises(DataError, match="1 binary, 1 empty, 1 not UTF-8"):
        list(sources.files(tmp_path))
    with pytest.raises(ConfigError, match="ignore"):
        sources.files(tmp_path, errors="ignore")  # type: ignore[arg-type]


# ---- the held-out share ----------------------------------------------------------------------------------

texts = st.text(st.sampled_from("ab 😀é\n\r"), min_size=1, max_size=120)


@laws
@given(st.lists(texts, min_size=1, max_size=12), st.sampled_from([0.01, 0.1, 0.5, 0.99]))
def test_nothing_is_lost_or_doubled(contents, share):
    documents = [Document(text, f"{number}.txt", {"n": str(number)}) for number, text in enumerate(contents)]
    try:
        train, held = sources.held_out(documents, share)
    except DataError:
        assert sum(map(len, contents)) < 8
        return
    assert train
    assert held
    assert (train, held) == sources.held_out(iter(documents), share)
    ids = [document.id for document in train + held]
    assert len(set(ids)) == len(ids)
    for document in documents:
        parts = [d for d in train + held if d.id == document.id or d.id.rpartition("#")[0] == document.id]
        parts.sort(key=lambda part: int(part.id.rpartition("#")[2]) if "#" in part.id else 0)
        assert "".join(part.text for part in parts) == document.text
        assert all(part.meta == document.meta for part in parts)


@pytest.mark.parametrize("count", [1, 7, 8, 30])
def test_documents_are_cut_only_where_they_are_few(count):
    documents = [
        Document("".join(f"line {line} of text {number}\n" for line in range(2_000)), f"name{number}")
        for number in range(count)
    ]
    train, held = sources.held_out(documents, 0.3)
    if count >= 8:
        assert [d for d in documents if sources.fraction(d.text) < 0.3] == held
        assert [d for d in documents if d not in held] == train
        return
    assert {d.id for d in held} == {d.id for d in train + held if sources.fraction(d.text) < 0.3}
    assert "name0#1" in {d.id for d in train + held}
    for part in train + held:
        assert len(part.text) <= 64_000
        assert part.text.endswith("\n")


def test_documents_of_the_same_text_are_on_the_same_side():
    documents = [Document(f"text {number % 10}\n", f"name{number}") for number in range(40)]
    train, held = sources.held_out(documents, 0.3)
    assert train
    assert held
    assert not {document.text for document in train} & {document.text for document in held}


def test_utf_16_is_named_and_never_read_as_something_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffabc".encode("utf-16-le"))
    for errors in ("strict", "replace"):
        with pytest.raises(DataError, match="UTF-16"):
            list(sources.files(path, errors))
    (tmp_path / "b.txt").write_text("b")
    source = sources.files(tmp_path)
    assert [document.text for document in source] == ["b"]
    assert source.skipped == {"UTF-16": 1}


def test_many_documents_are_cut_too_if_one_side_would_be_empty():
    documents = [Document("text of a line\n" * 40, f"{number}") for number in range(9)]
    assert all(sources.fraction(document.text) > 1e-6 for document in documents)
    train, held = sources.held_out(documents, 1e-6)
    (only,) = held
    assert sources.fraction(only.text) == min(sources.fraction(document.text) for document in train + held)


def test_one_large_file_is_cut_into_pieces_of_4_to_64_thousand_characters():
    text = "".join(f"paragraph {number}: " + "word " * (number % 90) + "\n\n" for number in range(8_000))
    train, held = sources.held_out([Document(text, "book.txt")], 0.1)
    lengths = [len(document.text) for document in train + held]
    assert len(lengths) > 50
    assert max(lengths) <= 64_000
    assert sum(length < 4_000 for length in lengths) <= 1  # the last
    assert all(document.text.startswith("paragraph") for document in train + held)
    assert 0.02 < sum(len(document.text) for document in held) / len(text) < 0.25


@laws
@given(texts, st.integers(1, 40))
def test_pieces_are_cut_at_lines_unless_a_line_is_longer_than_the_bound(text, size):
    parts = list(sources.pieces(text, size))
    assert "".join(parts) == text
    assert all(0 < len(part) <= 4 * size for part in parts)
    assert all(len(part) >= size for part in parts[:-1])
    begin = 0
    for part in parts[:-1]:
        begin += len(part)
        if not part.endswith("\n"):
            assert "\n" not in text[begin - 3 * size - 1 : begin]
        if "\n\n" in part[size - 1 :]:
            assert part.index("\n\n", size - 1) == len(part) - 2


def test_a_paragraph_that_ends_in_time_is_kept():
    assert list(sources.pieces("ab\n\ncd\n\n", 4)) == ["ab\n\n", "cd\n\n"]
    assert list(sources.pieces("abc\nd\n\nef", 4)) == ["abc\nd\n\n", "ef"]
    assert list(sources.pieces("\n\n\n\nx", 1)) == ["\n\n", "\n\n", "x"]


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ConfigError, match="share"):
        sources.held_out([Document("text", "a")], share)


@pytest.mark.parametrize("documents", [[], [Document("", "a")], [Document("x", "a")]])
def test_too_little_text_is_refused(documents):
    with pytest.raises(DataError, match="too short"):
        sources.held_out(documents, 0.1)
