"""Decoded inputs are read one by one, alike from a disk and from object storage, and checked."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from mmray.errors import RefusedError, StorageError
from mmray.storage import Storage, blobs, join
from mmray.train.begin import begin, here
from mmray.train.feed import Making, one_ahead
from mmray.train.inputs import Inputs, Spot, append
from mmray.train.samples import Samples
from mmray.train.task import Task
from tests import training
from tests.training import batches_of

VALUES = [np.arange(n, dtype=np.uint8) for n in (5, 0, 200)]


NO_ROOM = "100"
"""Bytes of a cache that has no room for copies."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone, without room for inputs."""
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MMRAY_CACHE_SIZE", NO_ROOM)
    return tmp_path / "cache" / "blobs"


@pytest.fixture(params=["disk", "ranges", "copies"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "copies":
        monkeypatch.setenv("MMRAY_CACHE_SIZE", "1GiB")
    uri: str = str(tmp_path / "out")
    return uri if request.param == "disk" else request.getfixturevalue("s3_uri")


def written(root: str, folder: Path) -> tuple[Inputs, list[Spot]]:
    with (folder / "a.bin").open("xb") as out:
        spots = [Spot(1, **append(out, value)) for value in VALUES]
    file = blobs.put(Storage(), folder / "a.bin", root, "data/a.bin")
    return Inputs(Storage(), root, [None, file]), spots


def test_values_come_as_they_were(root: str, tmp_path: Path) -> None:
    inputs, spots = written(root, tmp_path)
    none, *found = inputs.read([None, spots[2], spots[0], spots[1], spots[2]])
    assert none is None
    assert [each.tolist() for each in found if each is not None] == [
        VALUES[n].tolist() for n in (2, 0, 1, 2)
    ]


def test_values_of_no_bytes_need_no_file(root: str) -> None:
    inputs = Inputs(Storage(), root, [None])
    [found] = inputs.read([Spot(0, 0, 0, 0)])
    assert found is not None
    assert not found.size


def test_a_value_that_was_changed_is_refused(root: str, tmp_path: Path) -> None:
    inputs, spots = written(root, tmp_path)
    uri = join(root, "data/a.bin")
    data = bytearray(Storage().read_bytes(uri))
    data[7] ^= 1
    Storage().write_bytes(uri, bytes(data))
    if os.environ["MMRAY_CACHE_SIZE"] == NO_ROOM:  # a copy is checked as a whole
        assert inputs.read([spots[0]])[0] is not None  # nothing of it was changed
    with pytest.raises(RefusedError, match=r"a\.bin was changed"):
        inputs.read([spots[2]])


def test_a_file_that_was_swapped_or_lost_is_refused(root: str, tmp_path: Path) -> None:
    inputs, spots = written(root, tmp_path)
    uri = join(root, "data/a.bin")
    Storage().write_bytes(uri, b"short")
    with pytest.raises(RefusedError, match=r"a\.bin is torn"):
        inputs.read(spots)
    Storage().delete(uri)
    with pytest.raises(RefusedError, match=r"a\.bin is missing"):
        inputs.read(spots)


def test_an_object_that_is_written_again_meanwhile_is_refused(s3_uri: str, tmp_path: Path) -> None:
    inputs, spots = written(s3_uri, tmp_path)
    inputs.read(spots[:1])
    Storage().write_bytes(join(s3_uri, "data/a.bin"), bytes(205))
    with pytest.raises(RefusedError, match=r"a\.bin was changed"):
        inputs.read(spots)


def test_storage_that_stays_broken_is_told(s3_uri: str, tmp_path: Path) -> None:
    """And not as a changed file."""
    inputs, spots = written(s3_uri, tmp_path)
    inputs.read(spots[:1])
    Storage().delete(join(s3_uri, "data/a.bin"))
    with pytest.raises((StorageError, FileNotFoundError), match=r"a\.bin"):
        inputs.read(spots)


@pytest.mark.parametrize("room", [False, True])
def test_inputs_are_copied_where_there_is_room(
    s3_uri: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    """Rows always are."""
    if room:
        monkeypatch.setenv("MMRAY_CACHE_SIZE", "1GiB")
    uri = training.write_tars(tmp_path / "tars", 2, 10)
    spec = training.spec(uri, f"{s3_uri}/out", model__towers__image__side=64)
    start = begin(spec, Storage(), lambda _: None, here)
    samples = Samples(Task(spec, start.pinned), Storage())
    pixels = samples.inputs("image", samples.places(np.arange(20)))
    assert all(each is not None and each.size == 64 * 64 * 3 for each in pixels)
    assert len(list(cache.iterdir())) == (4 if room else 2)


def test_what_makes_batches_goes_to_another_process(tmp_path: Path) -> None:
    """It opens the samples anew, and makes the same."""
    uri = training.write_tars(tmp_path / "tars", 2, 10)
    spec = training.spec(uri, tmp_path / "out")
    making = Making(spec.train, batches_of(spec), 1, 2)
    other: Making = pickle.loads(pickle.dumps(making))
    for step in (0, 3):
        one, two = making(step), other(step)
        assert one.seeds is not None
        assert two.seeds is not None
        assert one.seeds.tolist() == two.seeds.tolist()
        assert one.inputs["image"].equal(two.inputs["image"])  # type: ignore[union-attr]


def test_one_is_made_ahead_and_no_more() -> None:
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return item * item

    found = one_ahead(make, iter(range(4)))
    assert next(found) == 0
    assert len(made) <= 2
    assert list(found) == [1, 4, 9]
    assert made == [0, 1, 2, 3]
    assert list(one_ahead(make, [])) == []


def test_an_error_is_raised_where_its_item_is_due() -> None:
    found = one_ahead(lambda item: 6 // item, [3, 0])
    assert next(found) == 2
    with pytest.raises(ZeroDivisionError):
        next(found)
