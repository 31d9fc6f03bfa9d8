"""Hugging Face folders: logits and greedy tokens are those of `transformers`, in both directions, for every family."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import families
from families import CONTEXT, MODELS, VOCABULARY
from temaki.base.rows import grid, rows
from temaki.formats import hf
from temaki.formats.opened import Opened
from temaki.generate.executor import Work
from temaki.generate.torch_executor import TorchExecutor
from temaki.model.build import Model

transformers = pytest.importorskip("transformers", reason="transformers, the oracle of models, is missing")
every_model = pytest.mark.parametrize("name", MODELS)
PROMPT = 9
DRAWN = 14
FLOAT32 = 2e-5
"""Five times tighter than promised; both sides round, and theirs rounds the angles too."""
FLOAT64 = 6e-6
"""They compute norms, angles and attention in float32 whatever the weights are."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return families.keeper(tmp_path_factory.mktemp("families"))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference of two logits, in parts of the largest."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def logits(model: Model, pieces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return list(model.head.logits(model(rows(pieces))).split([len(piece) for piece in pieces]))


def cached(model: Model, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy ids, each read into a state."""
    executor = TorchExecutor(model, 1, len(prompt) + count)
    executor.open(0)
    found, read = [], list(prompt)
    for _ in range(count):
        answer = executor.run([Work(0, np.array(read, np.int32), "last")])
        read = [int(answer.logits[0].argmax())]
        found += read
    return found


def uncached(model: Model, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy ids, everything read anew for each."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logits(model, [torch.tensor(ids)])[0][-1].argmax()))
    return ids[len(prompt) :]


def drawn(theirs: Any, prompt: Sequence[int], count: int, cache: bool) -> list[int]:
    """Their greedy ids."""
    theirs.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    found = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        use_cache=cache,
        pad_token_id=0,
    )
    return found[0, len(prompt) :].tolist()


@torch.no_grad()
def padded(theirs: Any, pieces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Their logits of pieces in one batch, padded on the left."""
    longest = max(len(piece) for piece in pieces)
    ids = torch.stack([torch.nn.functional.pad(piece, (longest - len(piece), 0)) for piece in pieces])
    mask = torch.stack([torch.arange(longest) >= longest - len(piece) for piece in pieces]).long()
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    found = theirs(ids, attention_mask=mask, position_ids=places).logits
    return [row[longest - len(piece) :] for row, piece in zip(found, pieces, strict=True)]


@dataclass(frozen=True)
class Parity:
    """How near one configuration is."""

    name: str
    logits: float
    """Largest difference of two logits in parts of the largest, float32: a batch, and one padded on the left."""
    greedy: int
    """Equal of `DRAWN`, with a cache and without, theirs with and without."""

    def __str__(self) -> str:
        return f"{self.name:38} {self.logits:.1e}   {self.greedy} of {2 * DRAWN}"


def compared(name: str, theirs: Any, opened: Opened) -> Parity:
    model = opened.model()
    torch.manual_seed(1)
    ids = torch.randint(VOCABULARY, (2, CONTEXT))
    pieces = [torch.randint(VOCABULARY, (n,)) for n in (5, 31, 1, 18)]
    with torch.no_grad():
        whole = relative(model.head.logits(model(grid(ids))), theirs(ids).logits.flatten(0, 1))
    ragged = relative(torch.cat(logits(model, pieces)), torch.cat(padded(theirs, pieces)))
    prompt = ids[0, :PROMPT].tolist()
    pairs = [
        (cached(model, prompt, DRAWN), drawn(theirs, prompt, DRAWN, cache=True)),
        (uncached(model, prompt, DRAWN), drawn(theirs, prompt, DRAWN, cache=False)),
    ]
    return Parity(
        name, max(whole, ragged), sum(a == b for ours, found in pairs for a, b in zip(ours, found, strict=True))
    )


def parity(root: Path) -> Iterator[Parity]:
    """The table of all configurations."""
    find = families.keeper(root)
    for name in MODELS:
        theirs, folder = find(name)
        yield compared(name, theirs, hf.open(folder))


@every_model
def test_logits_and_greedy_tokens_are_those_of_transformers(folders: Any, name: str) -> None:
    theirs, folder = folders(name)
    opened = hf.open(folder)
    assert hf.fits(folder)
    assert opened.warnings == ()
    assert opened.speaking.stop == ((2,) if name[:4] != "gpt2" else (50256,))
    found = compared(name, theirs, opened)
    print(found)
    assert found.logits < FLOAT32
    assert found.greedy == 2 * DRAWN


@pytest.mark.parametrize("name", ["gpt2", "llama llama3", "qwen3", "gemma2", "qwen3_moe"])
def test_in_float64_they_are_nearer(tmp_path: Path, name: str) -> None:
    theirs = families.made(name, torch.float64)
    theirs.save_pretrained(tmp_path / "it")
    model = hf.open(tmp_path / "it").model()
    assert model.head.weight.dtype == torch.float64
    ids = torch.randint(VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = relative(model.head.logits(model(grid(ids))), theirs(ids).logits.flatten(0, 1))
    print(name, found)
    assert found < (1e-12 if name == "gpt2" else FLOAT64)


# ---- back out -------------------------------------------------------------------------------------------------------


@every_model
def test_in_out_in_is_the_identity_and_transformers_opens_what_is_written(
    folders: Any, tmp_path: Path, name: str
) -> None:
    theirs, folder = folders(name)
    before = hf.open(folder)
    hf.write(before, tmp_path / "out")
    after = hf.open(tmp_path / "out")
    assert after.config == before.config
    assert after.speaking == before.speaking
    assert after.facts["architecture"] == before.facts["architecture"]
    same_weights(before, after)
    back, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager", experts_implementation="eager", output_loading_info=True
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(back) is type(theirs)
    ids = torch.randint(VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found, wanted = back(ids).logits, theirs(ids).logits
    if "gemma" in name:  # a gain is read as 1 + what is stored, and leaves as that minus 1
        assert relative(found, wanted) < FLOAT32
    else:
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "mixtral"])
def test_half_precision_goes_in_and_out_to_the_bit(folders: Any, tmp_path: Path, name: str, dtype: Any) -> None:
    theirs, _ = folders(name)
    halves = type(theirs)(theirs.config)
    halves.load_state_dict(theirs.state_dict())
    halves.to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    before = hf.open(tmp_path / "theirs")
    hf.write(before, tmp_path / "ours", dtype=dtype)
    same_weights(before, hf.open(tmp_path / "ours"))
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert back.dtype == getattr(torch, dtype)
    wanted = halves.state_dict()
    assert all(torch.equal(found, wanted[key]) for key, found in back.state_dict().items())


def same_weights(one: Opened, other: Opened) -> None:
    ours, theirs = one.weights(), other.weights()
    assert ours.keys() == theirs.keys()
    for key, weight in ours.items():
        np.testing.assert_array_equal(weight.array(), theirs[key].array(), err_msg=key)


# ---- how files say it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama theta", "llama linear", "llama llama3", "llama yarn, all said", "mixtral"])
def test_old_keys_mean_the_same(folders: Any, tmp_path: Path, name: str) -> None:
    _, folder = folders(name)
    found = json.loads((folder / "config.json").read_text())
    rope = found.pop("rope_parameters")
    found["rope_theta"] = rope.pop("rope_theta")
    found["torch_dtype"] = found.pop("dtype")
    kind = rope.pop("rope_type")
    found["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    (tmp_path / "config.json").write_text(json.dumps(found))
    assert hf.open(tmp_path).config == hf.open(folder).config


def test_mistral_with_windows_by_layer_is_what_their_auto_classes_make_of_it(tmp_path: Path) -> None:
    """They take another family for it; it leaves as one that every version of theirs reads alike."""
    _, told = families.MODELS["mistral, window"]
    kinds = ["sliding_attention", "full_attention"]
    (tmp_path / "config.json").write_text(json.dumps({**told, "model_type": "mistral", "layer_types": kinds}))
    settings = transformers.AutoConfig.from_pretrained(tmp_path, attn_implementation="eager")
    torch.manual_seed(4)
    theirs = transformers.AutoModelForCausalLM.from_config(settings).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").rename(tmp_path / "model.safetensors")
    opened = hf.open(tmp_path)
    assert opened.warnings == ()
    assert compared("mistral, windows by layer", theirs, opened).logits < FLOAT32
    hf.write(opened, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] != "mistral"
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert compared("back", back, opened).logits < FLOAT32


@pytest.mark.parametrize("name", ["gpt2", "qwen3_moe"])
def test_shards_are_one_model(folders: Any, tmp_path: Path, name: str) -> None:
    theirs, folder = folders(name)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    same_weights(hf.open(folder), hf.open(tmp_path / "shards"))


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_the_body_alone_needs_its_head(folders: Any, tmp_path: Path, name: str) -> None:
    """What AutoModel saves has no prefix; it is whole where the head is the embedding's matrix."""
    theirs, folder = folders(name)
    theirs.base_model.save_pretrained(tmp_path / "body")
    if name == "gpt2":
        same_weights(hf.open(folder), hf.open(tmp_path / "body"))
    else:
        with pytest.raises(hf.FormatError, match=r"missing: lm_head\.weight"):
            hf.open(tmp_path / "body").weights()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        for row in parity(Path(place)):
            print(row, flush=True)
