"""Looking at a store: its vectors, and what is near what, from a few of its rows."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mmray.jobs import inspect
from mmray.jobs.inspect import inspect_store
from mmray.report import spread
from mmray.report.page import render
from mmray.report.vectors import SOUND_BYTES, Inspection, Item, Media
from mmray.sources.fragment import Span
from mmray.storage import Storage
from mmray.store import Change, Committer, Store, StoreColumns, StoreMeta, write_part
from tests.unit.test_page import Page
from tests.unit.test_report import report

DIM = 16


def picture(color: tuple[int, int, int], side: int = 32, noise: bool = False) -> bytes:
    image = Image.new("RGB", (side, side), color)
    if noise:
        pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


def groups(rows: int, seed: int = 0) -> np.ndarray:
    """Unit vectors [rows, DIM] in four tight groups; row n is of group n % 4."""
    rng = np.random.default_rng(seed)
    centres = np.eye(DIM, dtype=np.float32)[:4]
    vectors = centres[np.arange(rows) % 4] + rng.normal(0, 0.05, (rows, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def make_store(
    root: Path,
    parts: list[dict[str, list[object]]],
    *,
    keep: bool = True,
    thumbnail: bool = False,
    modalities: tuple[str, ...] = ("image",),
) -> Store:
    """A store with one part for each dict of columns; ids are `{part}-{row}` in hex."""
    storage = Storage()
    columns = StoreColumns(
        modalities=modalities, keep={"caption": "string"} if keep else {}, thumbnail=thumbnail
    )
    meta = StoreMeta(fingerprint="f" * 32, encoder="toy", dims=dict.fromkeys(modalities, DIM))
    store = Store.create(str(root / "store"), storage, columns, meta)
    changes = []
    for number, values in enumerate(parts):
        span = Span(f"{number:016x}", "0" * 8, 0, 100)
        rows = len(next(iter(values.values())))
        base = {
            "id": [row_id(number, row) for row in range(rows)],
            "source_uri": [f"/data/{number}.tar"] * rows,
            "source_key": [f"key-{number}-{row}" for row in range(rows)],
            "source_etag": ["e"] * rows,
            "fragment": [str(span)] * rows,
            "content_hash": ["c"] * rows,
        }
        table = pa.table({**base, **values}).select(columns.arrow_schema().names)
        table = table.cast(columns.arrow_schema())
        receipt = write_part(storage, store.uri, table, [span], f"/data/{number}.tar")
        changes.append(Change(receipts=(receipt,)))
    if changes:
        Committer(store, run_id="r").commit(changes)
        store.reload()
    return store


def row_id(part: int, row: int) -> str:
    return f"{part:016x}{row:016x}"


def names(found: Inspection) -> list[str]:
    return [space.modality for space in found.spaces]


def items_of(found: Inspection, modality: str) -> list[Item]:
    (space,) = (each for each in found.spaces if each.modality == modality)
    return [item for row in space.neighbours for item in (row.query, *row.nearest)]


def columns(rows: int, seed: int = 0) -> dict[str, list[object]]:
    return {
        "caption": [f"group {n % 4}" for n in range(rows)],
        "image_embedding": list(groups(rows, seed)),
    }


def test_neighbours_are_of_the_same_group(tmp_path: Path) -> None:
    store = make_store(tmp_path, [columns(40, seed) for seed in range(3)])
    found = inspect_store(store)
    assert (found.rows, found.of, names(found)) == (120, 120, ["image"])
    neighbours = found.spaces[0].neighbours
    assert 4 <= len(neighbours) <= 12
    assert {row.query.caption for row in neighbours} == {f"group {n}" for n in range(4)}
    for row in neighbours:
        assert len(row.nearest) == 6
        assert row.query.id not in {each.id for each in row.nearest}
        assert {each.caption for each in row.nearest} == {row.query.caption}
        cosines = [each.similarity for each in row.nearest]
        assert cosines == sorted(cosines, reverse=True)
        assert cosines[-1] > 0.8


def test_checks_say_what_is_there(tmp_path: Path) -> None:
    values = columns(40)
    values["image_embedding"][3] = None
    store = make_store(tmp_path, [values])
    (check,) = inspect_store(store).checks
    assert (check.modality, check.rows, check.nulls, check.dim) == ("image", 40, 1, DIM)
    assert check.norm_min == pytest.approx(1.0, abs=1e-5)
    assert check.norm_max == pytest.approx(1.0, abs=1e-5)
    assert 0.1 < check.mean_cosine < 0.4
    assert 2.5 < check.spread < 4.5
    assert check.warnings == ()


def test_an_empty_store(tmp_path: Path) -> None:
    found = inspect_store(make_store(tmp_path, []))
    assert (found.rows, found.of, found.checks, found.spaces) == (0, 0, (), ())
    Page(render(report(), found))


def test_a_store_without_any_vector(tmp_path: Path) -> None:
    found = inspect_store(make_store(tmp_path, [{"caption": ["a"], "image_embedding": [None]}]))
    assert found.spaces == ()
    assert (found.checks[0].rows, found.checks[0].nulls, found.checks[0].dim) == (1, 1, 0)
    Page(render(report(), found))


def test_text_is_searched_when_there_is_no_image(tmp_path: Path) -> None:
    values = columns(24)
    values["text_embedding"] = values.pop("image_embedding")
    values["image_embedding"] = [None] * 24
    store = make_store(tmp_path, [values], modalities=("image", "text"))
    found = inspect_store(store)
    assert names(found) == ["text"]
    assert [check.nulls for check in found.checks] == [24, 0]


def test_thumbnails_of_the_store_are_shown_and_large_ones_made_smaller(tmp_path: Path) -> None:
    values = columns(24)
    small, large = picture((200, 0, 0)), picture((0, 0, 0), side=400, noise=True)
    values["thumbnail"] = [small, large, b"not a picture" * 5000, None] * 6
    found = inspect_store(make_store(tmp_path, [values], thumbnail=True))
    pictures = {item.source_key: item.jpeg for item in items_of(found, "image")}
    kinds = {int(key.rpartition("-")[2]) % 4: jpeg for key, jpeg in pictures.items()}
    assert kinds[0] == small
    assert kinds[1] is not None
    assert max(Image.open(io.BytesIO(kinds[1])).size) == inspect.PICTURE_SIDE
    assert (kinds[2], kinds[3]) == (None, None)
    Page(render(report(), found))


def test_previews_stand_in_where_the_store_has_no_thumbnails(tmp_path: Path) -> None:
    store = make_store(tmp_path, [columns(40, seed) for seed in range(3)], keep=True)
    previews = {row_id(part, row): Media(b"jpeg") for part in range(3) for row in range(0, 40, 5)}
    found = inspect_store(store, limit=60, previews=previews)
    items = items_of(found, "image")
    assert {item.jpeg for item in items} == {b"jpeg"}
    assert {item.id for item in items} <= previews.keys()
    assert found.rows == 60


def every_space(rows: int) -> dict[str, list[object]]:
    values = columns(rows)
    for seed, modality in enumerate(("text", "audio", "video"), start=1):
        values[f"{modality}_embedding"] = list(groups(rows, seed))
    return values


MODALITIES = ("image", "text", "audio", "video")


def test_every_space_with_rows_to_compare_is_searched(tmp_path: Path) -> None:
    values = every_space(60)
    values["video_embedding"] = [*values["video_embedding"][:1], *[None] * 59]
    found = inspect_store(make_store(tmp_path, [values], modalities=MODALITIES))
    assert names(found) == ["image", "audio", "text"], "one video has no neighbour"
    counts = [len(space.neighbours) for space in found.spaces]
    assert counts[0] > inspect.LATER_QUERIES
    assert 4 <= min(counts[1:]) <= max(counts[1:]) <= inspect.LATER_QUERIES
    for space in found.spaces:
        for row in space.neighbours:
            assert {each.caption for each in row.nearest} == {row.query.caption}, space.modality
    Page(render(report(), found))


def test_sounds_are_shown_in_their_space_alone(tmp_path: Path) -> None:
    """Rows that can be played come first; the thumbnails of the store stand beside them."""
    values = every_space(60)
    values["thumbnail"] = [picture((200, 0, 0))] * 60
    store = make_store(tmp_path, [values], thumbnail=True, modalities=MODALITIES)
    playable = {row_id(0, row) for row in range(0, 60, 3)}
    previews = {each: Media(None, b"OggS" + each.encode(), "audio/ogg") for each in playable}
    previews[row_id(0, 1)] = Media(None, b"s" * (SOUND_BYTES + 1), "audio/ogg")
    found = inspect_store(store, previews=previews)
    heard = items_of(found, "audio")
    assert {item.id for item in heard} <= playable
    assert all(item.audio == b"OggS" + item.id.encode() for item in heard)
    assert {(item.mime, item.jpeg is not None) for item in heard} == {("audio/ogg", True)}
    for modality in ("image", "video", "text"):
        assert {item.audio for item in items_of(found, modality)} == {None}
    assert {item.jpeg for item in items_of(found, "text")} == {None}
    assert len({item.id for item in items_of(found, "image")} - playable) > 0
    assert "<audio " in render(report(), found)


def test_few_sounds_to_play_are_no_reason_to_compare_those_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path, [every_space(60)], modalities=MODALITIES)
    played = {row_id(0, 4): Media(None, b"OggS", "audio/ogg")}
    heard = items_of(inspect_store(store, previews=played), "audio")
    assert len({item.id for item in heard}) > 6
    assert {item.audio for item in heard} <= {None, b"OggS"}


def test_videos_are_shown_by_their_posters(tmp_path: Path) -> None:
    store = make_store(tmp_path, [every_space(40)], modalities=MODALITIES)
    previews = {row_id(0, row): Media(b"poster") for row in range(0, 40, 2)}
    shown = items_of(inspect_store(store, previews=previews), "video")
    assert {item.jpeg for item in shown} == {b"poster"}


def test_a_caption_that_is_not_kept_is_no_trouble(tmp_path: Path) -> None:
    values = columns(12)
    del values["caption"]
    found = inspect_store(make_store(tmp_path, [values], keep=False))
    assert {row.query.caption for row in found.spaces[0].neighbours} == {""}
    assert "key-0-" in render(report(), found)


def test_only_some_parts_are_read_and_those_named_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "MAX_PARTS", 2)
    store = make_store(tmp_path, [columns(20, seed) for seed in range(6)])
    named = store.parts()[4].path
    seen = []
    read = inspect._read

    def spy(store: Store, path: str, quota: int, wanted: object) -> inspect._Sample:
        seen.append(path)
        return read(store, path, quota, wanted)  # type: ignore[arg-type]

    monkeypatch.setattr(inspect, "_read", spy)
    found = inspect_store(store, limit=20, first=[named])
    assert named in seen
    assert (len(seen), found.rows, found.of) == (2, 20, 120)


def test_the_same_store_looks_the_same_twice(tmp_path: Path) -> None:
    store = make_store(tmp_path, [columns(40, seed) for seed in range(3)])
    assert inspect_store(store, limit=50) == inspect_store(store, limit=50)


def test_collapse_is_named() -> None:
    rng = np.random.default_rng(0)
    same = np.ones((50, 32), dtype=np.float32) + rng.normal(0, 0.01, (50, 32)).astype(np.float32)
    assert "Collapsed" in spread.check("image", same, 0, rng).warnings[0]
    line = np.outer(rng.normal(size=50), np.ones(32)).astype(np.float32)
    assert "effective directions of 32" in spread.check("image", line, 0, rng).warnings[0]
    equal = np.ones((50, 32), dtype=np.float32)
    assert spread.check("image", equal, 0, rng).spread == 0.0


def test_broken_vectors_are_named_and_left_out() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 8)).astype(np.float32)
    vectors[0, 0], vectors[1, 2], vectors[2] = np.nan, np.inf, 0.0
    check = spread.check("image", vectors, 0, rng)
    assert (check.not_finite, check.zeros) == (2, 1)
    assert check.warnings == ("2 vectors hold NaN or infinity", "1 vectors are zero")
    assert np.isfinite([check.norm_min, check.norm_max, check.mean_cosine, check.spread]).all()


def test_spread_is_the_number_of_directions_in_use() -> None:
    rng = np.random.default_rng(0)
    for used in (1, 4, 16):
        vectors = np.zeros((1500, 32), dtype=np.float32)
        vectors[:, :used] = rng.choice([-1.0, 1.0], size=(1500, used)) / np.sqrt(used)
        assert spread.effective_spread(vectors, rng) == pytest.approx(used, rel=0.05)


def test_very_large_and_small_numbers_do_not_overflow() -> None:
    rng = np.random.default_rng(0)
    vectors = np.array([[1e30, 0], [0, 1e-30], [1e30, 1e30]], dtype=np.float32)
    check = spread.check("image", vectors, 0, rng)
    assert check.mean_cosine == pytest.approx(2 * 0.7071 / 3, abs=0.05)
    ((index, cosine),) = spread.nearest(vectors, 0, 1)
    assert index == 2
    assert cosine == pytest.approx(0.7071, abs=1e-3)


def test_two_rows_are_enough() -> None:
    vectors = np.eye(2, 4, dtype=np.float32)
    assert spread.medoids(vectors, 12, np.random.default_rng(0)) == [0, 1]
    assert spread.nearest(vectors, 0, 6) == [(1, 0.0)]
