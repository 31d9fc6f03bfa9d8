"""Shards, packing, loader: nothing lost, nothing leaked, any place reached by seeking."""

import itertools
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from temaki.base.errors import DataError
from temaki.batches import packing, shards
from temaki.batches.loader import Loader
from temaki.batches.shards import Shards, ShardWriter

VOCABULARY = 1000


def made(folder: Path, documents: list[list[int]], vocabulary: int = VOCABULARY, per_file: int = 1 << 28) -> Shards:
    with ShardWriter(folder, vocabulary, 0, "print", per_file) as writer:
        for ids in documents:
            writer.add(np.array(ids, np.uint32), 3 * len(ids))
    return shards.open_shards(folder)


def corpus(seed: int = 0, n: int = 40) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(1, VOCABULARY) for _ in range(draw.randrange(0, 60))] for _ in range(n)]


@settings(max_examples=30, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(1, 999), max_size=20), min_size=1, max_size=12),
    per_file=st.integers(1, 30),
)
def test_shards_give_back_what_was_written(
    documents: list[list[int]], per_file: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = made(tmp_path_factory.mktemp("shards") / "s", documents, per_file=per_file)
    stream = [i for document in documents for i in [0, *document]]
    assert found.read(0, len(found)).tolist() == stream
    assert [found.document(i).tolist() for i in range(len(documents))] == [[0, *document] for document in documents]
    for start in range(0, len(stream), 7):
        assert found.read(start, min(len(stream), start + 5)).tolist() == stream[start : start + 5]
    assert found.manifest.bytes == 3 * sum(map(len, documents))


def test_ids_are_as_narrow_as_the_vocabulary_allows(tmp_path: Path) -> None:
    assert made(tmp_path / "a", [[1, 65535]], 1 << 16).manifest.dtype == "<u2"
    wide = made(tmp_path / "b", [[1, 70000]], (1 << 16) + 1)
    assert wide.manifest.dtype == "<u4"
    assert wide.document(0).tolist() == [0, 1, 70000]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cut"), ShardWriter(tmp_path / "s", 10, 0, "print") as writer:
        writer.add(np.array([1], np.uint32), 1)
        raise RuntimeError("cut")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="no documents"), ShardWriter(tmp_path / "s", 10, 0, "print"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_and_an_existing_folder_are_refused(tmp_path: Path) -> None:
    made(tmp_path / "s", [[1]])
    with pytest.raises(DataError, match="another tokenizer"):
        shards.open_shards(tmp_path / "s", "other")
    with pytest.raises(DataError, match="exists"):
        made(tmp_path / "s", [[1]])


def mutants(folder: Path, count: int, seed: int) -> None:
    """Each damaged copy gives an error of ours that names a path, or exactly the ids that were written."""
    whole = folder / "whole"
    documents = corpus(3, 6)
    original = made(whole, documents)
    wanted = original.read(0, len(original)).tolist()
    names = sorted(path.name for path in whole.iterdir())
    originals = {name: (whole / name).read_bytes() for name in names}
    draw = random.Random(seed)
    refused = 0
    for _ in range(count):
        name = draw.choice(names)
        (whole / name).write_bytes(damaged(originals[name], draw))
        try:
            found = shards.open_shards(whole)
            assert found.manifest == original.manifest
            assert found.read(0, len(wanted)).tolist() == wanted
        except DataError as error:
            refused += 1
            assert str(whole) in str(error)
        (whole / name).write_bytes(originals[name])
    assert refused > count * 0.8
    print(f"{count} mutants: {refused} refused, {count - refused} right")


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A copy with a flipped bit, a cut, an inserted or a repeated stretch, or another JSON value."""
    changed = bytearray(content)
    at = draw.randrange(len(changed))
    match draw.randrange(5):
        case 0:
            changed[at] ^= 1 << draw.randrange(8)
        case 1:
            del changed[at:]
        case 2:
            changed[at:at] = draw.randbytes(draw.randrange(1, 9))
        case 3:
            changed[at:at] = changed[at : at + draw.randrange(1, 50)]
        case _:
            try:
                found = json.loads(content)
            except ValueError:
                del changed[at : at + 1]
                return bytes(changed)
            found[draw.choice(list(found))] = draw.choice([None, -1, 1e999, "x", [], {}, {"a": {"bytes": 1}}, 10**30])
            return json.dumps(found).encode()
    return bytes(changed)


def test_a_thousand_damaged_shards(tmp_path: Path) -> None:
    mutants(tmp_path, 1000, seed=1)


@pytest.mark.slow
def test_a_hundred_thousand_damaged_shards(tmp_path: Path) -> None:
    mutants(tmp_path, 100_000, seed=2)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("ids-00000.bin", "offsets.bin", "manifest.json"):
        made(tmp_path / name, [[1, 2]])
        (tmp_path / name / name).unlink()
        with pytest.raises(DataError, match=name):
            shards.open_shards(tmp_path / name)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), context=st.integers(2, 40))
def test_rows_carry_the_stream_its_cuts_and_its_targets(
    seed: int, context: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    documents = corpus(seed, 30)
    found = made(tmp_path_factory.mktemp("shards") / "s", documents)
    loader = Loader(found, context, seed)
    places = loader.places(0, 5)
    batch = loader.take(0, 5)
    stream = found.read(0, len(found))
    begins = set(np.asarray(found.offsets).tolist())
    for i, place in enumerate(places.tolist()):
        ids = batch.rows.ids[i * context : (i + 1) * context]
        assert ids.tolist() == stream[place : place + context].tolist()
        targets = batch.targets[i * context : (i + 1) * context]
        assert targets.tolist() == stream[place + 1 : place + 1 + context].tolist()
    cuts = batch.rows.cuts.tolist()
    wanted = [n for n in range(5 * context) if n % context == 0 or places[n // context] + n % context in begins]
    assert cuts == [*wanted, 5 * context]
    for start, stop in itertools.pairwise(cuts):
        assert batch.rows.positions[start:stop].tolist() == list(range(stop - start))
        assert 0 not in batch.rows.ids[start + 1 : stop].tolist()
    # The last id of a document learns the boundary, never the next document's text.
    ends = [n for n in range(5 * context) if places[n // context] + n % context + 1 in begins]
    assert all(batch.targets[n] == 0 for n in ends)
    assert float(batch.weights.sum()) == 5 * context


def test_every_epoch_is_a_permutation_that_reads_each_row_once(tmp_path: Path) -> None:
    found = made(tmp_path / "s", corpus(1, 50))
    loader = Loader(found, 16, seed=4)
    first = loader.places(0, loader.rows)
    second = loader.places(loader.rows, loader.rows)
    for order in (first, second):
        assert len(set(order.tolist())) == loader.rows
        assert set(np.diff(np.sort(order)).tolist()) == {16}
        assert order.max() + 17 <= len(found)
    assert first.tolist() != second.tolist()
    assert Loader(found, 16, seed=5).places(0, loader.rows).tolist() != first.tolist()


def test_any_place_is_reached_by_seeking(tmp_path: Path) -> None:
    found = made(tmp_path / "s", corpus(1, 50))
    whole = Loader(found, 16, seed=4).places(0, 300)
    for position in (0, 1, 57, 199, 250):
        assert Loader(found, 16, seed=4).places(position, 40).tolist() == whole[position : position + 40].tolist()


def test_text_too_short_for_one_row_is_refused(tmp_path: Path) -> None:
    found = made(tmp_path / "s", [[1, 2, 3]])
    with pytest.raises(DataError, match="too short"):
        Loader(found, 4, 0)
    assert Loader(found, 3, 0).take(0, 2).rows.ids.tolist() == [0, 1, 2, 0, 1, 2]


def test_padding_that_packing_saves() -> None:
    """The notes' example: a text of 1k and one of 8k ids in windows of 16k, padded or packed."""
    cuts = packing.cuts(np.array([0]), np.array([0, 1000, 9000]), 9000)
    assert cuts.tolist() == [0, 1000, 9000]
    assert packing.positions(cuts)[1000] == 0


def test_copies_open_like_the_original(tmp_path: Path) -> None:
    found = made(tmp_path / "s", corpus(2, 5))
    shutil.copytree(tmp_path / "s", tmp_path / "t")
    assert shards.open_shards(tmp_path / "t").manifest.fingerprint == found.manifest.fingerprint
