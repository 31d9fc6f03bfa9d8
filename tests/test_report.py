"""Laws of the report: it opens anywhere, quotes what it shows, draws what was measured."""

import base64
import doctest
import hashlib
import json
import math
import os
import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from temaki.cli import progress
from temaki.cli import report as verb
from temaki.report import axis, chart, compare, differences, figures, page, run, runs

VOID = {"meta", "path", "br", "img", "input", "link"}
KNOWN = re.compile(
    "html|head|meta|title|style|body|main|script|header|footer|section|div|span|p|i|b|em|small|strong|h[123]|d[ltd]|"
    "ul|li|figure|figcaption|svg|path|table|thead|tbody|t[rhd]|pre|code|details|summary"
)
HOSTILE = "</pre></div><script>alert('x')</script><img src=http://evil onerror=e()>\"'&amp;\x00\x1b\ud800\u202e"


class Reader(HTMLParser):
    """Reads a page strictly: every tag is known and closed in order, nothing is loaded."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.words, self.attributes, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert KNOWN.fullmatch(tag), f"unknown tag {tag}"
        self.attributes += [(tag, name, value) for name, value in attrs]
        for name, value in attrs:
            assert name not in ("src", "href", "action", "data", "srcset", "poster"), (tag, name)
            assert not name.startswith("on"), (tag, name)
            assert name != "style" or re.fullmatch(r"(left|top|width):[0-9.]+%", value), value
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            assert not re.search(r"https?:|//|url\(|@import|fetch|XMLHttp|import\(", data)
            self.scripts += [data] if self.open[-1] == "script" else []
        else:
            self.words.append(data)

    @property
    def text(self):
        return "\n".join(self.words)

    def charts(self):
        return [json.loads(value) for tag, name, value in self.attributes if name == "data-chart"]


def step(n, **more):
    line = {"kind": "step", "step": n, "loss": 8 / n**0.3, "lr": 1e-3, "grad_norm": 1.0, "tokens": 100 * n}
    return {**line, "seconds": n / 2, "tokens_per_second": 200.0, "peak_share": 0.5, **more}


def check(n, **more):
    return {"kind": "validate", "step": n, "loss": 8.1 / n**0.3, "bits_per_byte": 4 / n**0.3, **more}


START = {"kind": "start", "step": 0, "params": 3_280_128, "flops_per_token": 2e7, "peak_flops": 1.2e11}
END = {"kind": "end", "step": 60, "reason": "finished", "seconds": 30.0}
LINES = [START, *(step(n) for n in range(1, 61)), check(30), check(60), END]
RESULTS = {"bits_per_byte": 1.152, "perplexity": 7.9, "bytes": 1_763_142, "zstd": 1.207, "ppmd": 1.181}
CONFIG = "[model]\nwidth = 256\n[optim]\nlr = 0.002\n[stop]\nsteps = 60\n"


def make(path, lines=LINES, config=CONFIG, results=None, saved=()):
    path.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (path / "config.toml").write_text(config)
    if lines is not None:
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.utime(path / "metrics.jsonl", (1, 1))
    if results is not None:
        (path / "results.json").write_text(json.dumps(results))
    for n in saved:
        place = path / "checkpoints" / f"step-{n:08d}"
        place.mkdir(parents=True)
        files = {
            "model.safetensors": {"bytes": 5_000_000, "sha256": ""},
            "config.toml": {"bytes": 1000, "sha256": ""},
        }
        (place / "manifest.json").write_text(json.dumps({"step": n, "tokens": 9, "healthy": True, "files": files}))
    return path


def report(path):
    return Reader(run.write(path).read_text(encoding="utf-8"))


# ---- the page of a run -----------------------------------------------------------------------------------


def test_a_report_tells_the_whole_run(tmp_path):
    sample = {"prompt": "def f(", "text": "x):\n    return x"}
    machine = {"machine": {"torch": "2.13.0", "threads": 2}}
    lines = [
        START | machine,
        *LINES[1:-1],
        {"kind": "sample", "step": 30, "prompt": "p", "text": "early"},
        END,
    ]
    lines.insert(-1, {"kind": "sample", "step": 60, "prompt": "p", "text": "late"})
    path = make(tmp_path / "first", lines, results=RESULTS | {"samples": [sample]}, saved=[30, 60])
    found = report(path)
    said = [
        *("first", "finished", "3.28M parameters", "width 256", "60 of 60 steps", "1.152", "1.181", "1.207"),
        *("2.5% fewer than PPMd, 4.6% fewer than zstd, measured over 1.76 MB", "6k", "30s", "200/s", "50%"),
        *(
            "def f(",
            "x):\n    return x",
            "early",
            "late",
            "2.13.0",
            "120 GFLOP/s",
            "step-00000060",
            "5 MB",
            CONFIG,
        ),
    ]
    for words in said:
        assert words.lower() in found.text.lower(), words
    assert "nan" not in found.text
    assert f"temaki generate {path.as_posix()}" in found.text
    assert [c["series"][0]["name"] for c in found.charts()][:2] == ["training, as logged", "validation"]


def test_the_policy_lets_our_script_run_and_nothing_else(tmp_path):
    found = report(make(tmp_path / "r"))
    policy = next(value for tag, name, value in found.attributes if tag == "meta" and "default-src" in (value or ""))
    digest = base64.b64encode(hashlib.sha256(found.scripts[0].encode()).digest()).decode()
    assert len(found.scripts) == 1
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_hostile_text_is_shown_and_never_meant(tmp_path):
    """Reader fails on any tag, attribute or address that the text would bring in."""
    machine = {"machine": {HOSTILE: HOSTILE}}
    end = {"kind": "end", "step": 60, "reason": HOSTILE, "message": HOSTILE}
    lines = [
        START | machine,
        *LINES[1:-1],
        {"kind": "sample", "step": 3, "prompt": HOSTILE, "text": HOSTILE},
        end,
    ]
    results = RESULTS | {"samples": [{"prompt": HOSTILE, "text": HOSTILE}], "bits_per_byte": HOSTILE}
    config = "name = '''<script>alert(2)</script>'''"
    path = make(tmp_path / "a <b>&'\"run", lines, config, results)
    (path / "checkpoints" / "step-<script>").mkdir(parents=True)
    found = report(path)
    assert found.text.count("<script>alert('x')</script>") >= 6
    assert "<script>alert(2)</script>" in found.text
    assert "\u2400\u241b?" in found.text, "control characters are shown"
    assert "\x00" not in found.text
    other = Reader(compare.write_comparison([path, path], tmp_path / "out.html").read_text(encoding="utf-8"))
    assert "a <b>&'\"run" in other.text


@pytest.mark.parametrize("lines", [None, [], [START], [START, step(1)], [{"kind": "step"}], [check(4)]])
def test_a_run_that_has_just_begun_has_a_report(tmp_path, lines):
    assert "Loss" in report(make(tmp_path / "r", lines)).text


def test_numbers_that_are_not_finite_are_told_and_not_drawn(tmp_path):
    lines = [*LINES[:20], step(20, loss="nan", grad_norm="inf"), step(21, loss=math.inf), step(22)]
    found = report(make(tmp_path / "r", lines, results=RESULTS | {"bits_per_byte": "nan"}))
    assert "Not finite: loss or gradient norm of 2 logged steps, first 20" in found.text
    assert "no finite figure: nan" in found.text
    loss = found.charts()[0]["series"][0]
    assert loss["x"] == [*range(1, 20), 22]
    drawn = next(value for tag, name, value in found.attributes if name == "d" and value.count("M") == 2)
    assert drawn.count("L") == 18, "the line is broken where the values were not finite"


def test_a_resumed_run_is_drawn_once_and_says_so(tmp_path):
    lines = [*LINES[:41], START | {"step": 30}, *(step(n, loss=5.0) for n in range(31, 51))]
    found = report(make(tmp_path / "r", lines))
    assert "Resumed at step 30." in found.text
    assert "interrupted after step 50" in found.text
    loss = found.charts()[0]["series"][0]
    assert loss["x"] == list(range(1, 51))
    assert loss["y"][30:] == [5.0] * 20
    assert any(tag == "path" and name == "class" and value == "mark m0" for tag, name, value in found.attributes)


def test_a_failed_run_says_what_broke(tmp_path):
    end = {"kind": "end", "step": 12, "reason": "not finite", "message": "blocks.3.ffn"}
    found = report(make(tmp_path / "r", [*LINES[:13], end]))
    assert "ended at step 12: not finite (blocks.3.ffn)" in found.text
    assert "optim.lr=0.001" in found.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([HOSTILE, "nan"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
WORDS = [
    "kind",
    "step",
    "steps",
    "loss",
    "lr",
    "grad_norm",
    "tokens",
    "seconds",
    "tokens_per_second",
    "peak_share",
    "bits_per_byte",
    "params",
    "machine",
]
WORDS += ["to", "decay", "noise_scale", "memory", "grad_norm/a", "weight_norm/a", "update_norm/a"]
KINDS = st.sampled_from(["start", "step", "validate", "sample", "plan", "skip", "spike", "rollback", "resume", "end"])
LINE = st.fixed_dictionaries(
    {"kind": KINDS | JSON, "step": st.integers(-3, 99) | JSON},
    optional={name: st.floats() | JSON for name in [*WORDS[2:], "prompt", "text", "reason", "message"]},
)
RESULT = st.dictionaries(st.sampled_from([*RESULTS, "samples", "params", "train_seconds"]), JSON, max_size=6)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(lines=st.lists(LINE, max_size=12), results=RESULT)
def test_any_lines_and_results_give_a_page(tmp_path, lines, results):
    path = make(tmp_path / "r", lines, results=results)
    found = report(path)
    assert runs.runs(tmp_path)[0].name == "r"
    for drawn in found.charts():
        assert all(math.isfinite(v) for s in drawn["series"] for v in s["x"] + s["y"])
    Reader(compare.write_comparison([path], tmp_path / "out.html").read_text(encoding="utf-8"))


def test_the_report_is_small_however_long_the_run(tmp_path):
    path = make(tmp_path / "r", [START, *(step(n) for n in range(1, 20_000))])
    assert run.write(path).stat().st_size < 250_000


# ---- a run that goes on ----------------------------------------------------------------------------------


def named(n, role, gradient, weight, update):
    return step(n) | {f"grad_norm/{role}": gradient, f"weight_norm/{role}": weight, f"update_norm/{role}": update}


def chart_called(found, word):
    """The chart below the heading that holds a word."""
    titles = [value.split(":")[0] for tag, name, value in found.attributes if tag == "svg" and name == "aria-label"]
    return dict(zip(titles, found.charts(), strict=True))[word]


def test_norms_by_role_noise_and_memory_are_drawn(tmp_path):
    lines = [START, *(named(n, "matrix", 2.0, 50.0, n / 100) | {"noise_scale": 100.0 * n} for n in range(1, 30))]
    lines += [named(n, "head", 1.0, 10.0, 1.0) | {"memory": 3e8 + n} for n in range(30, 40)]
    found = report(make(tmp_path / "r", lines, config=CONFIG + "[batch]\ntokens = 2048\n"))
    update = chart_called(found, "Update by role")
    assert [s["name"] for s in update["series"]] == ["head", "matrix"]
    assert update["series"][1]["y"][0] == pytest.approx(1 / 100 / 50)
    assert set(update["series"][0]["y"]) == {0.1}
    assert chart_called(found, "Gradient norm by role")["series"][1]["y"][0] == 2.0
    noise = chart_called(found, "Gradient noise scale")["series"]
    assert [s["name"] for s in noise] == ["noise scale", "ids a step"]
    assert (noise[0]["y"][-1], set(noise[1]["y"])) == (2900.0, {2048.0})
    assert chart_called(found, "Memory")["series"][0]["y"] == [0.3] * 10
    plain = report(make(tmp_path / "plain"))
    assert "Update by role" not in plain.text
    assert "Memory" not in plain.text


def test_what_guards_did_is_marked_and_told(tmp_path):
    more = [{"kind": "skip", "step": n, "message": f"layer {n}"} for n in range(3, 12)]
    plan = {"kind": "plan", "step": 31, "steps": 60, "decay": 31, "settled": 1.0}
    spike = {"kind": "spike", "step": 40, "loss": 9.0, "message": "7 deviations"}
    found = report(make(tmp_path / "r", [*LINES[:12], *more, *LINES[12:35], plan, *LINES[35:41], spike]))
    looks = [value for tag, name, value in found.attributes if tag == "path" and name == "class" and "mark" in value]
    assert {look: looks.count(look) for look in looks} == {"mark m1": 2, "mark m2": 18, "mark m3": 2}
    for words in (
        "Update left out at step 3: layer 3.",
        "Update left out 4 more times.",
        "Loss spike at step 40: 7 dev",
    ):
        assert words in found.text
    assert "layer 9" not in found.text


def test_what_a_rollback_took_back_is_not_shown(tmp_path):
    """Neither where the loop has cut the log, nor where the lines still stand."""
    back = {"kind": "rollback", "step": 20, "from": 40, "to": 20, "position": 400, "message": "a spike"}
    for name, kept in (("whole", 41), ("cut", 21)):
        lines = [*LINES[:kept], back, *(step(n, loss=1.0) for n in range(21, 31))]
        found = report(make(tmp_path / name, lines))
        assert found.charts()[0]["series"][0]["x"] == list(range(1, 31))
        assert found.charts()[0]["series"][0]["y"][20:] == [1.0] * 10
        assert "Rolled back from step 40 to step 20: a spike." in found.text
        assert "30 of 60 steps" in found.text


def renewing(found):
    return any(tag == "body" and name == "data-renew" for tag, name, _ in found.attributes)


def test_only_a_page_of_a_running_run_loads_itself_anew(tmp_path):
    path = make(tmp_path / "r", LINES[:30])
    os.utime(path / "metrics.jsonl")
    assert renewing(report(path))
    other = make(tmp_path / "done")
    page_of_both = Reader(compare.write_comparison([other, path], tmp_path / "both.html").read_text(encoding="utf-8"))
    assert renewing(page_of_both)
    assert "1 running" in page_of_both.text
    assert not renewing(report(other))
    over = Reader(run.write(path, over=True).read_text(encoding="utf-8"))
    assert not renewing(over)
    assert "interrupted after step 29" in over.text


def test_a_resumed_line_counts_as_a_beginning(tmp_path):
    path = make(
        tmp_path / "r", [*LINES[:31], END | {"step": 30, "reason": "SIGTERM"}, START | {"kind": "resume", "step": 30}]
    )
    assert runs.runs(path)[0].why == "no end line: interrupted"
    assert "Resumed at step 30." in report(path).text


# ---- several runs ----------------------------------------------------------------------------------------


def test_a_comparison_draws_every_run_over_what_it_read(tmp_path):
    one = make(tmp_path / "one", results=RESULTS)
    two = make(tmp_path / "two", [START, *(step(n, tokens=200 * n) for n in range(1, 41)), check(30)])
    found = Reader(compare.write_comparison([one, two], tmp_path / "out.html").read_text(encoding="utf-8"))
    validation, _, _, over_tokens, over_time, *_ = found.charts()
    assert [s["name"] for s in validation["series"]] == ["one", "two"]
    assert [s["x"] for s in validation["series"]] == [[3000, 6000], [6000]]
    assert over_tokens["series"][1]["x"][-1] == 8000
    assert over_time["series"][1]["x"][-1] == 20
    assert {"finished", "stopped", "1.152"} <= set(found.words)


def recipe(lr=0.1, tokens=8, seed=1):
    return f"seed = {seed}\n[optim]\nlr = {lr}\n[batch]\ntokens = {tokens}\n"


def grid(folder, losses, **more):
    """A run a setting: (lr, tokens, seed) -> last validation loss; None: failed."""
    made = []
    for (lr, tokens, seed), loss in losses.items():
        end = END if loss is not None else END | {"reason": "not finite"}
        lines = [START, step(1), step(60), check(60, loss=99.0 if loss is None else loss), end]
        config = recipe(lr=lr, tokens=tokens, seed=seed)
        made.append(make(folder / f"lr{lr}-b{tokens}-s{seed}", lines, config=config))
    return made


def test_recipes_that_differ_are_listed_by_what_differs(tmp_path):
    three = [
        make(tmp_path / n, config=recipe(lr=lr) + more)
        for n, lr, more in (("a", 0.1, ""), ("b", 0.2, ""), ("c", 0.1, "[x]\ny = true\n"))
    ]
    found = Reader(compare.write_comparison(three, tmp_path / "out.html").read_text(encoding="utf-8"))
    words = found.words[found.words.index("What differs") :]
    assert words[1:13] == ["setting", "a", "b", "c", "optim.lr", "0.1", "0.2", "0.1", "x.y", "–", "–", "true"]
    assert "batch.tokens" not in found.words


def test_a_sweep_is_a_map_of_means_with_its_best_and_its_failures(tmp_path):
    losses = {
        (0.1, 8, 1): 2.0,
        (0.1, 8, 2): 2.2,
        (0.1, 32, 1): 2.5,
        (0.1, 32, 2): 2.5,
        (0.02, 8, 1): 3.0,
        (0.02, 32, 1): None,
    }
    found = Reader(compare.write_comparison(grid(tmp_path, losses), tmp_path / "out.html").read_text(encoding="utf-8"))
    cells = found.words[found.words.index("By settings") + 1 :]
    assert cells[:9] == ["optim.lr \\ batch.tokens", "8", "32", "0.02", "3.000", "failed", "0.1", "2.100", "2.500"]
    looks = [value for tag, name, value in found.attributes if tag == "td" and name == "class" and "heat" in value]
    assert [("best" in look, look.split()[1]) for look in looks] == [
        (False, "heat7"),
        (True, "heat0"),
        (False, "heat5"),
    ]
    rows = found.words[found.words.index("Figures") :]
    order = [word for word in rows if re.fullmatch(r"lr.*-s\d", word)]
    assert order[:2] == ["lr0.1-b8-s1", "lr0.1-b8-s2"]
    assert order[5] == "lr0.02-b32-s1", "what failed stands last"


def test_of_many_runs_the_best_have_colours(tmp_path):
    many = grid(tmp_path, {(lr / 100, 8, 1): 3.0 - lr / 20 for lr in range(1, 21)})
    found = Reader(compare.write_comparison(many, tmp_path / "out.html").read_text(encoding="utf-8"))
    validation = found.charts()[0]["series"]
    assert {s["name"] for s in validation} == {f"lr{lr / 100}-b8-s1" for lr in range(13, 21)}
    backs = [value for tag, name, value in found.attributes if tag == "path" and name == "class" and "back" in value]
    assert len(backs) == 12 * len(found.charts())


def test_a_watched_page_is_written_until_no_run_goes_on(tmp_path, monkeypatch, capsys):
    path, other = make(tmp_path / "a", LINES[:20]), make(tmp_path / "b")
    os.utime(path / "metrics.jsonl")
    pages = []

    def sleep(seconds):
        pages.append(Reader((tmp_path / "both.html").read_text(encoding="utf-8")))
        assert seconds >= verb.PAUSE
        with (path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(step(20 + len(pages)) if len(pages) < 3 else END) + "\n")

    monkeypatch.setattr(time, "sleep", sleep)
    verb.report([path, other], tmp_path / "both.html", watch=True)
    assert [renewing(found) for found in pages] == [True] * 3
    assert not renewing(Reader((tmp_path / "both.html").read_text(encoding="utf-8")))
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "both.html")
    assert "a finished" in err

    def stop(seconds):
        raise KeyboardInterrupt

    os.utime(make(tmp_path / "a", LINES[:20]) / "metrics.jsonl")
    monkeypatch.setattr(time, "sleep", stop)
    verb.report([path], None, watch=True)
    assert "the runs go on" in capsys.readouterr().err


def test_the_list_of_runs(tmp_path):
    make(tmp_path / "done", results=RESULTS, saved=[60])
    make(tmp_path / "unmeasured")
    make(tmp_path / "asked", [*LINES[:20], {"kind": "end", "step": 19, "reason": "SIGTERM"}])
    make(tmp_path / "killed", LINES[:20], saved=[10])
    make(tmp_path / "resumed", [*LINES, START | {"step": 60}, step(61)])
    make(tmp_path / "broken", [*LINES[:5], {"kind": "end", "step": 4, "reason": "not finite"}])
    make(tmp_path / "spiked", [*LINES[:5], {"kind": "end", "step": 4, "reason": "spike"}])
    make(tmp_path / "new", None)
    make(tmp_path / "longer", [START, {"kind": "plan", "step": 1, "steps": 90}, *LINES[1:9]])
    os.utime(make(tmp_path / "now", LINES[:20]) / "metrics.jsonl")
    (tmp_path / "no run").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "file").write_text("x")
    found = {info.name: info for info in runs.runs(tmp_path)}
    assert {name: info.state for name, info in found.items()} == {
        "done": "finished",
        "unmeasured": "finished",
        "asked": "stopped",
        "killed": "stopped",
        "resumed": "stopped",
        "broken": "failed",
        "spiked": "failed",
        "new": "new",
        "longer": "stopped",
        "now": "running",
    }
    assert list(found) == sorted(found)
    done, killed = found["done"], found["killed"]
    assert (done.step, done.steps, done.bits_per_byte) == (60, 60, 1.152)
    assert done.loss == pytest.approx(8.1 / 60**0.3)
    assert (killed.step, killed.loss, killed.bits_per_byte) == (19, None, None)
    assert found["longer"].steps == 90
    assert found["asked"].why == "SIGTERM"
    at = tmp_path.as_posix()
    assert done.next == f"temaki generate {at}/done"
    assert found["unmeasured"].next == f"temaki evaluate {at}/unmeasured"
    assert killed.next == f"temaki train {at}/killed --resume auto"
    assert found["broken"].next == f"temaki train {at}/broken/config.toml name=broken-gentler optim.lr=0.001"
    assert runs.runs(tmp_path / "done")[0] == done
    assert runs.runs(tmp_path / "nowhere") == []


def test_a_damaged_run_says_why_and_spoils_nothing(tmp_path):
    make(tmp_path / "no config", config=None)
    make(tmp_path / "bad config", config="a = = 1")
    make(tmp_path / "bad metrics").joinpath("metrics.jsonl").write_bytes(b"\x00\xff\x80 not json\n[1]\n3\n")
    make(tmp_path / "deep metrics").joinpath("metrics.jsonl").write_text("[" * 100_000)
    make(tmp_path / "bad results").joinpath("results.json").write_text("[")
    make(tmp_path / "bad checkpoint", saved=[5]).joinpath("checkpoints/step-00000005/manifest.json").write_text("{")
    make(tmp_path / "no manifest").joinpath("checkpoints/step-00000005").mkdir(parents=True)
    make(tmp_path / "folders", None, None)
    for name in ("config.toml", "metrics.jsonl", "results.json"):
        (tmp_path / "folders" / name).mkdir()
    make(tmp_path / "whole", saved=[60])
    found = {info.name: info for info in runs.runs(tmp_path)}
    why = {
        "no config": "no config.toml",
        "bad config": "config.toml is not TOML",
        "bad metrics": "no readable line",
        "deep metrics": "metrics.jsonl",
        "bad results": "results.json is not JSON",
        "bad checkpoint": "manifest.json is not JSON",
        "no manifest": "no whole checkpoint (step-00000005: no manifest)",
        "folders": "config.toml",
    }
    for name, words in why.items():
        assert found[name].state == "damaged", name
        assert words in found[name].why
        assert words in report(tmp_path / name).text
    assert found["whole"].state == "finished"


def test_one_whole_checkpoint_is_enough(tmp_path):
    path = make(tmp_path / "r", saved=[30])
    (path / "checkpoints" / "step-00000060").mkdir()
    assert runs.runs(path)[0].state == "finished"
    assert "Checkpoint step-00000060 does not count: no manifest." in report(path).text


# ---- charts ----------------------------------------------------------------------------------------------

FINITE = st.floats(-1e12, 1e12, allow_subnormal=False)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(values=st.lists(FINITE, min_size=1, max_size=5), most=st.integers(5, 9), round_out=st.booleans())
def test_axes(values, most, round_out):
    """Ticks ascend by 1, 2 or 5 times a power of ten, lie on the axis, are few and told apart."""
    found = axis.axis(values, most, round_out=round_out)
    slack = 1e-6 * max(abs(value) for value in values)
    assert found.low - slack <= min(values) <= max(values) <= found.high + slack
    assume(max(values) - min(values) > max(slack, axis.TINY))
    gaps = [b - a for a, b in zip(found.ticks, found.ticks[1:], strict=False)]
    assert 2 <= len(found.ticks) <= most + 1 + 2 * round_out
    size = axis.step(found.high - found.low if not round_out else max(values) - min(values), most)
    assert gaps == pytest.approx([size] * len(gaps), rel=1e-4, abs=0)
    assert f"{size:e}"[0] in "125"
    assert float(f"{size:.6e}".split("e")[0]) in (1, 2, 5)
    slack = 1e-6 * (found.high - found.low)
    assert all(found.low - slack <= tick <= found.high + slack for tick in found.ticks)
    assert len(set(axis.labels(found.ticks))) == len(found.ticks)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(values=st.lists(st.floats(1e-200, 1e200), min_size=1, max_size=5), most=st.integers(4, 8))
def test_axes_of_ratios(values, most):
    """All values lie between the first tick and the last; ticks ascend, are few, and told apart."""
    found = axis.log_axis(values, most)
    assert found.low * (1 - 1e-6) <= min(values) <= max(values) <= found.high * (1 + 1e-6)
    assert 2 <= len(found.ticks) <= 2 * most
    assert list(found.ticks) == sorted(set(found.ticks))
    assert len(set(found.names())) == len(found.ticks)
    assert [found.share(tick) for tick in (found.low, found.high)] == pytest.approx([0, 1])


@settings(derandomize=True, deadline=None, max_examples=100)
@given(low=st.integers(-50, 50), size=st.sampled_from([1, 2, 5]), power=st.integers(-9, 9), n=st.integers(2, 8))
def test_labels_say_their_tick(low, size, power, n):
    ticks = [float(f"{(low + i) * size}e{power}") for i in range(n)]
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    for tick, label in zip(ticks, axis.labels(ticks), strict=True):
        plain = label.replace(",", "")
        value = float(plain[:-1]) * units[plain[-1]] if plain[-1] in units else float(plain)
        assert value == pytest.approx(tick, rel=1e-9)


def test_a_line_is_drawn_where_its_values_are():
    points = [(0.0, 4.0), (5.0, 2.0), (10.0, 0.0)]
    found = Reader(chart.lines("A", [chart.Series("a", points)], "x", "y", zero=True))
    path = next(value for tag, name, value in found.attributes if name == "d" and "L" in value)
    assert path == "M0.00 0.00L50.00 50.00L100.00 100.00"
    label = next(value for tag, name, value in found.attributes if name == "aria-label")
    assert label == "A: a from 4 to 0, least 0"


def test_a_few_wild_values_do_not_flatten_the_rest_and_it_is_said():
    points = [(float(i), 1.0 + i % 7) for i in range(300)]
    points[200] = (200.0, 1e9)
    wild = Reader(chart.lines("A", [chart.Series("a", points)], "x", "y"))
    assert wild.charts()[0]["y"][1] < 20
    assert "run out at the top" in wild.text
    tame = Reader(chart.lines("A", [chart.Series("a", points[:200])], "x", "y"))
    assert "run out at the top" not in tame.text


@settings(derandomize=True, deadline=None, max_examples=100)
@given(values=st.lists(st.none() | FINITE, min_size=1, max_size=200), most=st.integers(4, 60))
def test_thinning_keeps_order_ends_and_extremes(values, most):
    points = [(float(i), y) for i, y in enumerate(values)]
    kept = chart.thin(points, most)
    assert set(kept) <= set(points)
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    assert len(kept) <= max(most, 3 * (most // 2))
    finite, left = ([y for _, y in some if y is not None] for some in (points, kept))
    assert bool(finite) == bool(left)
    if finite:
        assert (min(left), max(left)) == (min(finite), max(finite))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(values=st.lists(st.none() | st.floats(-1e6, 1e6), max_size=60), width=st.floats(0, 30))
def test_smoothing_stays_within_what_it_has_seen(values, width):
    points = [(float(i), y) for i, y in enumerate(values)]
    made = chart.smooth(points, width)
    for i, (x, y) in enumerate(made):
        seen = [v for v in values[: i + 1] if v is not None]
        assert x == i
        assert (y is None) == (values[i] is None)
        assert y is None or min(seen) - 1e-6 <= y <= max(seen) + 1e-6
    again = [y for _, y in chart.smooth(points, 1) if y is not None]
    assert again == pytest.approx([y for y in values if y is not None], abs=1e-6)


def test_bars_begin_at_zero():
    found = Reader(chart.bars("B", [chart.Bar("a", 1.0), chart.Bar("b", 4.0)], "bits"))
    assert [value for _, name, value in found.attributes if name == "style"] == [
        "width:25.00%",
        "width:100.00%",
    ]


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("mode", [0, 1])
def test_words_and_lines_stand_out(mode):
    """WCAG 2.1: contrast of at least 4.5 for words and 3 for lines, in light and in dark."""
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", page._asset("page.css").split("@media")[mode]))

    def contrast(a, b):
        low, high = sorted((_luminance(colours[a]), _luminance(colours[b])))
        return (high + 0.05) / (low + 0.05)

    for ground in ("ground", "card"):
        assert min(contrast(word, ground) for word in ("ink", "quiet", "accent", "good")) >= 4.5
        assert min(contrast(f"c{i}", ground) for i in range(6)) >= 3
    assert contrast("warn", "warn-ground") >= 4.5


def test_the_report_loads_no_torch(fresh):
    code = "import sys; from temaki.report import run, runs, compare; print('torch' in sys.modules)"
    assert fresh(code).strip() == "False"


@pytest.mark.parametrize("module", [axis, chart, differences, figures, page, progress, runs])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_figures_never_round_to_another_size():
    assert [figures.short(x) for x in (999.6, 0.0, -1500, 1e15)] == ["1k", "0", "-1.5k", "1000T"]
    assert figures.duration(59.99) == "1m"
    assert figures.size(None) == "–"
