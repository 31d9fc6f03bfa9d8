"""Laws of a chat as ids, of what a template ends its turns with, and of reading only what is new."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from temaki.base.errors import GenerationError, TokenizerError
from temaki.generate import conversation as conversation_module
from temaki.generate import remembering as remembering_module
from temaki.generate.config import SamplingConfig
from temaki.generate.conversation import Conversation, end_of_turn
from temaki.generate.engine import Engine
from temaki.generate.executor import Work
from temaki.generate.remembering import Remembering
from temaki.generate.request import Request
from temaki.generate.text import Reply
from temaki.generate.torch_executor import TorchExecutor
from temaki.model import build
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig, S4DConfig
from temaki.tokens.bpe import from_merges
from temaki.tokens.chat import ChatTemplate

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m.content }}]</s>{% endfor %}"
)
TOKENIZER = from_merges([], ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>"))
END = TOKENIZER.special["<|im_end|>"]

MIXERS = {
    "attention": (AttentionConfig(heads=4, kv_heads=2),),
    "s4d": (S4DConfig(states=8),),
    "hybrid": (AttentionConfig(heads=2), S4DConfig(states=8)),
    "window": (AttentionConfig(heads=2, window=7), AttentionConfig(heads=2)),
}
PREFIXED = {"prefix": (AttentionConfig(heads=4, mask="prefix"),)}


def executor(mixer: str, room: int = 200, dtype: torch.dtype = torch.float64) -> TorchExecutor:
    pattern = tuple(BlockConfig(mixer=each) for each in {**MIXERS, **PREFIXED}[mixer])
    made = DecoderConfig(vocabulary=TOKENIZER.size, width=16, depth=2, pattern=pattern, init="cs336")
    return TorchExecutor(build.build(made, 5, dtype), 1, room, spare=room)


# ---- messages and their ids


def test_the_ids_are_the_rendered_chat_with_the_answers_beginning():
    chat = Conversation(ChatTemplate(CHATML), TOKENIZER, 1000, system="be kind")
    chat.ask("hello <|im_end|> \U0001f642")
    chat.answered("yes")
    chat.ask("and?")
    found = chat.ids(10)
    assert found.dtype == np.int32
    assert TOKENIZER.decode(found) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello <|im_end|> \U0001f642<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (found == END).sum() == 4  # the one in the message is text
    assert chat.ends.front == ()
    assert chat.ends.stop == (END,)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    turns=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8),
    last=st.integers(0, 60),
    context=st.integers(60, 400),
    answer=st.integers(1, 60),
    system=st.none() | st.integers(0, 20),
)
def test_the_longest_end_of_the_chat_that_fits_is_kept(turns, last, context, answer, system):
    told = None if system is None else "s" * system
    chat = Conversation(ChatTemplate(CHATML), TOKENIZER, context, system=told)
    for asked, said in turns:
        chat.ask("q" * asked)
        chat.answered("a" * said)
    chat.ask("l" * last)

    def whole(first: int) -> np.ndarray:
        before = [] if told is None else [{"role": "system", "content": told}]
        messages = [*before, *chat.turns[2 * first :]]
        return chat.template.encode(TOKENIZER, chat.template.render(messages, prompt=True)).ids

    fitting = [first for first in range(len(turns) + 1) if len(whole(first)) + answer <= context]
    if fitting:
        assert chat.ids(answer).tolist() == whole(fitting[0]).tolist()
        assert chat.messages[-1]["content"] == "l" * last
    else:
        with pytest.raises(GenerationError, match=rf"(?s){len(whole(len(turns)))} ids, and {answer} .*{context} ids"):
            chat.ids(answer)


def test_undo_and_clear_take_back_also_what_was_forgotten():
    chat = Conversation(ChatTemplate(CHATML), TOKENIZER, 150, system="s")
    for i in range(5):
        chat.ask(f"question {i}")
        chat.ids(20)
        chat.answered(f"answer {i}")
    assert chat.forgotten > 0
    kept = chat.turns[:-2]
    chat.undo()
    assert (chat.turns, chat.forgotten) == (kept, 0)
    chat.clear()
    chat.undo()
    assert chat.messages == [{"role": "system", "content": "s"}]


def test_what_a_template_ends_an_answer_with():
    assert end_of_turn(ChatTemplate(CHATML), TOKENIZER) == (END, None)
    assert end_of_turn(ChatTemplate(PLAIN), TOKENIZER) == (None, "\nUser:")
    assert end_of_turn(ChatTemplate(STRICT), TOKENIZER) == (TOKENIZER.special["</s>"], None)
    assert end_of_turn(ChatTemplate("{{ messages[0].content }}"), TOKENIZER) == (None, None)
    assert end_of_turn(ChatTemplate("{{ raise_exception('never') }}"), TOKENIZER) == (None, None)
    chat = Conversation(ChatTemplate(CHATML), TOKENIZER, 100, stop=(0, END))
    assert chat.ends.stop == (0, END)


def test_a_template_that_refuses_the_system_text_says_so():
    chat = Conversation(ChatTemplate(STRICT), TOKENIZER, 100, system="x")
    chat.ask("y")
    with pytest.raises(TokenizerError, match="no system"):
        chat.ids(1)


# ---- reading only what is new


@pytest.mark.parametrize("mixer", MIXERS)
def test_remembering_changes_no_logit_and_reads_what_is_new(mixer):
    draw = np.random.default_rng(4)
    fresh, kept = executor(mixer), Remembering(executor(mixer))
    row = draw.integers(0, TOKENIZER.size, 30).astype(np.int32)
    before = 0
    for keep, more in [(0, 5), (35, 9), (44, 1), (40, 12), (41, 3), (20, 30), (0, 3), (3, 60), (62, 0)]:
        row = np.concatenate([row[:keep] if keep else row, draw.integers(0, TOKENIZER.size, more).astype(np.int32)])
        found = []
        for each in (fresh, kept):
            each.open(0)
            for start in range(0, len(row) - 4, 7):
                part = each.run([Work(0, row[start : min(start + 7, len(row) - 4)], "none")])
                assert part.logits.shape == (0, TOKENIZER.size)
            parts = [each.run([Work(0, row[-4:-3], "last")]).logits, each.run([Work(0, row[-3:], "all")]).logits]
            assert [len(part) for part in parts] == [1, 3]
            found.append(np.concatenate(parts))
            each.close(0)
        assert np.abs(found[0] - found[1]).max() <= 1e-10 * np.abs(found[0]).max()
        assert kept.read - before <= len(row)
        before = kept.read


@pytest.mark.parametrize("mixer", [*MIXERS, *PREFIXED])
def test_a_chat_that_goes_on_reads_each_id_once(mixer):
    """All anew where a prompt is a prefix: it is another one, and its ids see each other both ways."""
    chat = Conversation(ChatTemplate(CHATML), TOKENIZER, 190)
    kept, chosen = Remembering(executor(mixer)), SamplingConfig(max_tokens=8, temperature=0)
    for question in ("one", "two \U0001f642", "three"):
        chat.ask(question)
        ids = chat.ids(8)
        (alone,) = [Reply(executor(mixer), TOKENIZER, ids, chosen, ends=chat.ends)]
        before, wanted = kept.read, "".join(alone)
        reply = Reply(kept, TOKENIZER, ids, chosen, ends=chat.ends)
        assert "".join(reply) == wanted
        if mixer in PREFIXED:
            assert kept.read - before == len(ids) + len(reply.completion.ids) - 1
        elif before:  # of the answer before, only what a letter made of several ids may have changed is read again
            assert kept.read - before < len(ids)
        chat.answered(reply.completion.text)
    kept.forget()
    assert kept.inner.state.lengths == [0]  # type: ignore[attr-defined]


def test_a_prompt_that_was_read_costs_one_id_and_chunks_nothing():
    kept = Remembering(executor("attention"))
    ids = np.arange(100, dtype=np.int32)
    for prompt, read in [(ids, 100), (ids, 1), (np.concatenate([ids, ids[:9]]), 9), (ids[:50], 50)]:
        before = kept.read
        engine = Engine(kept, chunk=16)
        engine.submit(Request(ids=prompt, sampling=SamplingConfig(max_tokens=1)))
        while engine.step():
            pass
        assert kept.read - before == read


def test_an_interrupt_in_a_forward_leaves_nothing_half_read(monkeypatch):
    inner = executor("hybrid")
    kept = Remembering(inner)
    ids = np.arange(20, dtype=np.int32)
    kept.open(0)
    wanted = kept.run([Work(0, ids, "last")]).logits
    kept.close(0)

    def broken(work, hidden=False):
        whole(work, hidden)
        raise KeyboardInterrupt

    whole = inner.run
    monkeypatch.setattr(inner, "run", broken)
    kept.open(0)
    with pytest.raises(KeyboardInterrupt):
        kept.run([Work(0, np.concatenate([ids, ids]), "last")])
    monkeypatch.undo()
    kept.close(0)
    assert inner.state.lengths == [0]
    kept.open(0)
    assert np.array_equal(kept.run([Work(0, ids, "last")]).logits, wanted)


@pytest.mark.parametrize("step", ["rewind", "mark"])
def test_an_interrupt_while_going_back_leaves_nothing_that_is_not_known(monkeypatch, step):
    inner = executor("attention")
    kept, ids = Remembering(inner), np.arange(20, dtype=np.int32)
    kept.open(0)
    kept.run([Work(0, ids, "last")])
    usual = getattr(inner, step)

    def broken(*asked):
        usual(*asked)
        raise KeyboardInterrupt

    monkeypatch.setattr(inner, step, broken)
    kept.open(0)
    with pytest.raises(KeyboardInterrupt):
        kept.run([Work(0, ids[:12], "last")])
    monkeypatch.undo()
    kept.open(0)
    alone = executor("attention")
    alone.open(0)
    assert np.array_equal(
        kept.run([Work(0, ids[::-1].copy(), "last")]).logits, alone.run([Work(0, ids[::-1].copy(), "last")]).logits
    )


def test_what_a_remembering_executor_cannot_do_is_said():
    kept = Remembering(executor("attention", room=10))
    with pytest.raises(GenerationError, match="source"):
        kept.open(0, np.arange(3))
    kept.open(0)
    with pytest.raises(GenerationError, match=r"(?s)11.*10 ids"):
        kept.run([Work(0, np.arange(11, dtype=np.int32), "last")])
    for wrong in (lambda: kept.fork(0, 0), lambda: kept.load(0, kept.save(0))):
        with pytest.raises(GenerationError, match="remembering"):
            wrong()


@pytest.mark.parametrize("module", [conversation_module, remembering_module])
def test_the_engine_room_loads_no_torch(fresh, module):
    assert fresh(f"import sys, {module.__name__}; print('torch' in sys.modules)").strip() == "False"
    assert doctest.testmod(module).failed == 0
