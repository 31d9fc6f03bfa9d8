"""`temaki chat` as a user meets it: real processes, pipes and terminals, wrong words, Ctrl-C."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from temaki.checkpoint import native
from temaki.cli import main
from temaki.model import build
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig
from temaki.tokens import files
from temaki.tokens.bpe import from_merges
from temaki.tokens.chat import ChatTemplate

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SAID = "日🙂é"
"""No byte of it comes twice."""
ENDLESS = "🍣 "
TOKENIZER = from_merges([], ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))


def parrot(
    folder: Path,
    said: str,
    end: bool,
    context: int = 120,
    template: bool = True,
    advice: Mapping[str, Any] | None = None,
) -> Path:
    """A model folder that answers each chat with `said`, once or without end: the last id alone tells the next."""
    size = TOKENIZER.size + TOKENIZER.size % 2
    block = BlockConfig(mixer=AttentionConfig(heads=1))
    config = DecoderConfig(vocabulary=TOKENIZER.size, width=size, depth=1, pattern=(block,), tied=False)
    model = build.build(config)
    chain = [TOKENIZER.encode_list("\n")[0], *TOKENIZER.encode_list(said)]
    after = [*chain[1:], TOKENIZER.special["<|im_end|>"] if end else chain[1]]
    with torch.no_grad():
        model.embedding.zero_()
        model.embedding[:, : TOKENIZER.size] = torch.eye(TOKENIZER.size)
        model.head.weight.zero_()
        for here, there in zip(chain, after, strict=True):
            model.head.weight[there, here] = 9.0
    weights = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    assert "blocks.0.mixer.out" in weights
    tokenizer = folder.parent / f"{folder.name}-tokenizer"
    files.save(TOKENIZER, tokenizer)
    if template:
        ChatTemplate(CHATML).save(tokenizer)
    settings: dict[str, Any] = {
        "model": {
            "kind": "decoder", "vocabulary": TOKENIZER.size, "width": size, "depth": 1, "tied": False,
            "pattern": [{"mixer": {"kind": "attention", "heads": 1}}], "context": context,
        }
    }  # fmt: skip
    settings |= {"generation": dict(advice)} if advice is not None else {}
    native.write(folder, settings, weights, tokenizer)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    parrot(folder / "parrot", SAID, end=True)
    parrot(folder / "endless", ENDLESS, end=False, context=8000)
    parrot(folder / "mute", SAID, end=True, template=False)
    advice = {"temperature": 0.0, "top_k": 7, "stop": [TOKENIZER.encode_list(SAID)[-1]]}
    parrot(folder / "advised", SAID, end=True, advice=advice)
    (folder / "plain.jinja").write_text(CHATML, encoding="utf-8")
    (folder / "broken.jinja").write_text("{% for %}", encoding="utf-8")
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"}


def chat(*words: str, where: Path, lines: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "temaki", "chat", *words],
        cwd=where, env=environment(), capture_output=True, timeout=120, check=False, input=lines,
    )  # fmt: skip
    found = subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
    assert found.returncode == code, found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    return found


Chat = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    """The same in this process, which has loaded torch already."""

    def run(*words: str, lines: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["temaki", "chat", *words])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        with pytest.raises(SystemExit) as left:
            main.main()
        said = capsys.readouterr()
        assert left.value.code == code, said.out + said.err
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    return run


def test_lines_from_a_pipe_are_answered_in_turn(place: Path, here: Chat) -> None:
    lines = "hello\n\n  \n/system be kind\n//sent with a slash\n/undo\nonce more\n/clear\n/help\n/exit\nnot read\n"
    found = chat("parrot", "--temperature", "0", "--json", where=place, lines=lines.encode())
    said = [json.loads(line) for line in found.stdout.splitlines()]
    assert [each["message"] for each in said] == ["hello", "/sent with a slash", "once more"]
    assert {each["answer"] for each in said} == {SAID}
    assert {each["done"] for each in said} == {"stop"}
    assert {each["tokens"] for each in said} == {len(SAID.encode())}
    assert "/undo" in found.stderr
    plain = here("parrot", "--temperature", "0", lines=b"one\ntwo without an end of line")
    assert plain.stdout == f"{SAID}\n{SAID}\n"
    assert "> " not in plain.stdout


def test_one_message_and_what_was_read(here: Chat) -> None:
    found = here("parrot", "--once", "hi", "--temperature", "0")
    assert found.stdout == f"{SAID}\n"
    assert "temperature 0.0" in found.stderr
    two = here("parrot", "--json", "--temperature", "0", lines=b"hi\nho\n")
    first, second = (json.loads(line)["read"] for line in two.stdout.splitlines())
    new = "<|im_end|>\n<|im_start|>user\nho<|im_end|>\n<|im_start|>assistant\n"  # all else was read or drawn before
    drawn = len(SAID.encode())
    assert second == len(TOKENIZER.encode(new, TOKENIZER.special)) + drawn
    assert first == second - len(TOKENIZER.encode("<|im_end|>\n", TOKENIZER.special))


def test_a_chat_is_saved_and_its_settings_change(place: Path, here: Chat) -> None:
    lines = "/system be brief\nhi\n/settings\n/settings max_tokens=2 temperature=0\nho\n/save saved.json\n"
    found = here("parrot", "--temperature", "0", lines=lines.encode())
    assert "temperature 0.0" in found.stderr
    assert "max_tokens 2" in found.stderr
    assert "(saved to saved.json)" in found.stderr
    saved = json.loads((place / "saved.json").read_text(encoding="utf-8"))
    assert [each["role"] for each in saved["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert saved["messages"][2]["content"] == SAID
    assert saved["settings"]["max_tokens"] == 2
    assert "saved.json exists already" in here("parrot", lines=b"/save saved.json\n", code=1).stderr
    assert "/save FILE" in here("parrot", lines=b"/save\n", code=1).stderr
    assert "top_p" in here("parrot", lines=b"/settings top_p=7\n", code=1).stderr
    wrong = here("parrot", lines=b"/nothing\n/settings temperature 0\n/settings temperature\nhi\n", code=1)
    assert wrong.stdout == f"{SAID}\n"
    assert "there is no command /nothing" in wrong.stderr
    assert "temperature 0" in wrong.stderr
    assert "a setting is KEY=VALUE" in wrong.stderr


def test_drafts_change_nothing_in_a_chat_and_torch_stays_away(
    place: Path, here: Chat, fresh: Callable[[str], str]
) -> None:
    lines = b"hi\nho\n/undo\nho\n"
    wanted = here("parrot", "--temperature", "0", lines=lines).stdout
    assert here("parrot", "--temperature", "0", "--propose", "lookup", lines=lines).stdout == wanted
    assert here("parrot", "--temperature", "0", "--executor", "torch", lines=lines).stdout == wanted
    code = (
        "import sys; from temaki.cli import main\n"
        f"sys.argv = ['temaki', 'chat', {str(place / 'parrot')!r}, '--once', 'hi', '--temperature', '0']\n"
        "try: main.main()\n"
        "except SystemExit as left: assert left.code == 0\n"
        "print('torch' in sys.modules)"
    )
    assert fresh(code).splitlines() == [SAID, "False"]


def test_a_long_chat_forgets_its_beginning_and_goes_on(here: Chat) -> None:
    lines = "".join(f"{'word ' * 6}{i}\n" for i in range(9))
    found = here("parrot", "--temperature", "0", "--max-tokens", "12", lines=lines.encode())
    assert found.stdout == f"{SAID}\n" * 9


@pytest.mark.parametrize(
    ("words", "lines", "code", "said"),
    [
        (["nowhere"], b"", 1, ["nowhere", "allowed: a path, or smollm2"]),
        (["smollm"], b"", 1, ["did you mean smollm2"]),
        (["mute"], b"x\n", 1, ["no chat template", "temaki generate", "--template"]),
        (["mute", "--template", "broken.jinja"], b"", 1, ["template is wrong in line 1"]),
        (["mute", "--template", "gone.jinja"], b"", 1, ["gone.jinja"]),
        (["parrot", "--temperature", "-1"], b"", 2, ["temperature"]),
        (["parrot", "--max-tokens", "0"], b"", 2, ["max_tokens"]),
        (["parrot", "--context", "1"], b"", 1, ["found: 1 ids", "2 or more"]),
        (["parrot", "--once", "w" * 100], b"", 1, ["found: 119 ids, and 60 for the answer", "allowed: 120 ids"]),
        (["parrot"], b"/nothing\n", 1, ["/nothing", "/help", "/exit"]),
        (["parrot"], b"fine\n\xff\xfe\n", 1, ["not UTF-8 at byte 0"]),
        (["parrot", "--wrong"], b"", 2, ["--wrong"]),
        ([], b"", 2, ["'model'"]),
    ],
    ids=lambda value: "-".join(value)[:30] if isinstance(value, list) else None,
)
def test_what_goes_wrong_is_said(here: Chat, words: list[str], lines: bytes, code: int, said: list[str]) -> None:
    found = here(*words, lines=lines, code=code)
    for each in said:
        assert each in found.stderr


def test_what_its_makers_advise_holds_where_the_user_says_nothing(here: Chat) -> None:
    found = here("advised", "--once", "hi", "--json")
    assert "temperature 0.0, top_p 0.9, top_k 7" in found.stderr
    said = json.loads(found.stdout)
    assert said["done"] == "stop"
    assert said["tokens"] == len(SAID.encode()) - 1  # its own stop id
    assert said["answer"] == SAID[:-1] + "\ufffd"
    assert "temperature 0.5" in here("advised", "--once", "hi", "--temperature", "0.5").stderr


def test_a_template_can_be_given(here: Chat) -> None:
    found = here("mute", "--template", "plain.jinja", "--once", "hi", "--temperature", "0")
    assert found.stdout == f"{SAID}\n"


class Terminal:
    """A process whose input, output and errors are one terminal."""

    def __init__(self, *words: str, where: Path):
        self.seen = b""
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "temaki", "chat", *words],
            cwd=where, env=environment(), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        )  # fmt: skip
        os.close(slave)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Read until `text` comes; what was before it is dropped."""
        until, wanted = time.monotonic() + seconds, text.encode()
        while wanted not in self.seen:
            assert time.monotonic() < until, f"no {text!r} in {self.seen[-500:]!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 65536)
        self.seen = self.seen[self.seen.index(wanted) + len(wanted) :]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, and an empty line: a signal just before the wait for a key is seen only when a key comes."""
        self.process.send_signal(signal.SIGINT)
        self.type("\n")

    def ended(self) -> int:
        """The process's code, when it has ended; what it still writes is read."""
        until = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < until:
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 65536)
                except OSError:  # the other side is closed
                    break
        return self.process.wait(30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(request: pytest.FixtureRequest, place: Path) -> Iterator[Terminal]:
    found = Terminal(*request.param, "--temperature", "0", where=place)
    yield found
    found.close()


@pytest.mark.parametrize("terminal", [["endless", "--max-tokens", "4000"]], indirect=True)
def test_ctrl_c_stops_the_answer_and_a_second_one_leaves(terminal: Terminal) -> None:
    terminal.wait_for("> ")
    terminal.type("go\n")
    terminal.wait_for("🍣 🍣 ")
    terminal.interrupt()
    terminal.wait_for("(stopped)")
    terminal.wait_for("> ")
    terminal.type("again\n")
    terminal.wait_for("🍣 🍣 ")
    terminal.interrupt()
    terminal.wait_for("(stopped)")
    terminal.wait_for("> ")
    terminal.interrupt()
    assert terminal.ended() == 0


@pytest.mark.parametrize("terminal", [["parrot"]], indirect=True)
def test_on_a_terminal_errors_are_said_and_the_chat_goes_on(terminal: Terminal) -> None:
    terminal.wait_for("> ")
    terminal.type("/wrong\n")
    terminal.wait_for("there is no command /wrong")
    terminal.wait_for("> ")
    terminal.interrupt()
    terminal.wait_for("once more")
    terminal.wait_for("> ")
    terminal.type("w" * 200 + "\n")
    terminal.wait_for("error: the message and the system text do not fit")
    terminal.wait_for("> ")
    terminal.type("你好 🙂\n")
    terminal.wait_for(SAID)
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.ended() == 0


def test_an_interrupt_stops_an_answer_into_a_pipe_and_the_next_line_is_answered(place: Path) -> None:
    words = ["endless", "--temperature", "0", "--max-tokens", "4000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "temaki", "chat", *words],
        cwd=place, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"go\nand on\n")
    process.stdin.close()
    for _ in range(2):
        assert process.stdout.read(50)
        process.send_signal(signal.SIGINT)
        while process.stdout.read(1) != b"\n":
            pass
    rest = process.stdout.read()
    assert process.wait(60) == 0
    assert rest == b""
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read().count(b"(stopped)") == 2


def test_one_message_that_is_interrupted_is_not_a_success(place: Path) -> None:
    words = ["endless", "--temperature", "0", "--max-tokens", "4000", "--once", "go"]
    process = subprocess.Popen(
        [sys.executable, "-m", "temaki", "chat", *words],
        cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(50)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
