"""Every modality and every kind of source on a real Ray session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mmray
from mmray.errors import RefusedError
from mmray.jobs.modalities import ORDER
from mmray.store.compact import compact
from tests import media, runs, shards
from tests.ray.test_embed import assert_sound, embed, quarantined, rows

LISTENER = {"kind": "import", "model": "tests.toys:Listener"}


@pytest.fixture
def spec(tmp_path: Path) -> runs.Spec:
    """Tars with pictures, captions, sounds and films, not all of them in each sample."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(2):
        members = []
        for number in range(12):
            seed = 12 * shard + number
            key = f"{seed:04d}"
            if number % 4 != 3:
                members += shards.members(key, seed)
            if number % 2:
                sound = media.sound(3.0, channels=2, format="ogg", seed=seed)
                members.append((f"{key}.ogg", sound))
            if number % 4 == 3:
                members.append((f"{key}.mp4", media.film(8, sound=number == 3, seed=seed)))
        (folder / f"{shard}.tar").write_bytes(shards.tar(members))
    store = str(tmp_path / "store")
    return runs.embed_spec(str(folder / "*.tar"), store, encoder=LISTENER)


def test_every_modality_in_one_row(spec: runs.Spec) -> None:
    report = embed(spec)
    assert (report.rows_read, report.rows_written) == (24, 24)
    meta = mmray.open_store(spec["store"]["uri"]).meta
    # The first samples show that there is video, so its column is made unasked.
    assert meta.dims == {"image": 16, "text": 16, "audio": 16, "video": 16}
    assert meta.sampling["audio"] == {"windows": "pool", "seconds": 2.0}
    found = rows(spec["store"]["uri"])
    has = {
        key: [name for name in ORDER if row[f"{name}_embedding"] is not None]
        for key, row in found.items()
    }
    assert has["0000"] == ["image", "text"]
    assert has["0001"] == ["image", "text", "audio"]
    assert has["0003"] == ["audio", "video"]
    for row in found.values():
        for name in meta.dims:
            vector = row[f"{name}_embedding"]
            assert vector is None or np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert_sound(spec["store"]["uri"])
    assert embed(spec).rows_read == 0
    with pytest.raises(RefusedError, match="sampled by"):
        embed(spec, audio={"seconds": 1.0})


def test_the_layout_with_a_gpu_gives_the_same_vectors(spec: runs.Spec, tmp_path: Path) -> None:
    embed(spec)
    other = str(tmp_path / "split")
    embed(spec, store={"uri": other}, resources={"gpus": 1, "cpus": 0.5, "decode_cpus": 0.5})
    one, two = rows(spec["store"]["uri"]), rows(other)
    assert one.keys() == two.keys()
    for key, row in one.items():
        for name in ("image", "audio", "video"):
            assert row[f"{name}_embedding"] == two[key][f"{name}_embedding"]


def test_windows_as_rows_survive_a_resume(spec: runs.Spec) -> None:
    changes: dict[str, Any] = {"audio": {"windows": "rows"}, "modalities": ["audio"]}
    first = mmray.run(spec | changes, limit=5, quiet=True)
    assert first.rows_read < 36
    embed(spec, **changes)
    found = rows(spec["store"]["uri"])
    windowed = [key for key in found if "#t=" in key]
    assert len(windowed) == 24  # twelve sounds of 3 s, in windows of 2 s and of 1 s
    assert_sound(spec["store"]["uri"])


def test_filters_leave_out_whole_fragments_and_are_done(spec: runs.Spec) -> None:
    changes = {"filter": {"metadata": {"category": {"one_of": ["disc"]}}}, "modalities": ["image"]}
    report = embed(spec, **changes)
    assert report.rows_read == 24
    assert report.rows_written == 6
    assert report.filtered == {"metadata.category": 18}
    again = embed(spec, **changes)
    assert (again.rows_read, again.shards["finished"]) == (0, 2)
    nothing = {"filter": {"metadata": {"category": {"one_of": ["none such"]}}}}
    empty = spec | nothing | {"store": {"uri": spec["store"]["uri"] + "-empty"}}
    assert embed(empty).rows_filtered == 24
    assert embed(empty).rows_read == 0
    store = mmray.open_store(empty["store"]["uri"])
    assert store.count == 0
    compact(store)
    assert_sound(empty["store"]["uri"])
    assert embed(empty).rows_read == 0


def test_duplicates_are_counted(spec: runs.Spec, tmp_path: Path) -> None:
    tar = shards.tar(m for key in "abc" for m in [(f"{key}.jpg", shards.picture(7))])
    (tmp_path / "same.tar").write_bytes(tar)
    source = {"kind": "webdataset", "uri": str(tmp_path / "same.tar")}
    marked = spec | {"source": source, "duplicates": {"action": "mark"}, "modalities": ["image"]}
    assert embed(marked).rows_written == 3
    found = rows(spec["store"]["uri"])
    assert [found[key]["duplicate_of"] for key in "abc"] == [None, *([found["a"]["id"]] * 2)]
    dropped = marked | {"duplicates": {}, "store": {"uri": str(tmp_path / "dropped")}}
    report = embed(dropped)
    assert (report.rows_written, report.filtered) == (1, {"duplicate": 2})
    assert_sound(str(tmp_path / "dropped"))


def test_rows_of_parquet_and_json_lines(tmp_path: Path) -> None:
    pictures = [shards.picture(seed) for seed in range(30)]
    words = [shards.caption(seed) for seed in range(30)]
    (tmp_path / "images").mkdir()
    for seed, data in enumerate(pictures):
        (tmp_path / "images" / f"{seed}.jpg").write_bytes(data)
    table = pa.table({"image": pictures, "caption": words, "n": list(range(30))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    lines = [
        json.dumps({"image": f"images/{seed}.jpg", "caption": words[seed], "n": seed})
        for seed in range(30)
    ]
    lines[4] = "{torn"
    lines[9] = json.dumps({"image": "../../etc/passwd", "caption": "no"})
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    stores = {}
    for kind in ("parquet", "jsonl"):
        stores[kind] = str(tmp_path / kind)
        spec = runs.embed_spec("", stores[kind], encoder=LISTENER, keep={"n": "int"})
        spec["source"] = {"kind": kind, "uri": str(tmp_path / f"a.{kind}")}
        spec["errors"] = {"max_fraction": 0.2}
        report = embed(spec)
        assert report.rows_read == 30
        assert_sound(stores[kind])
        assert embed(spec).rows_read == 0
    assert quarantined(stores["jsonl"]).keys() == {"5", "10"}
    parquet, jsonl = rows(stores["parquet"]), rows(stores["jsonl"])
    for key, row in jsonl.items():
        same = parquet[str(int(key) - 1)]
        assert row["n"] == same["n"]
        assert row["image_embedding"] == same["image_embedding"]


def test_a_store_as_a_source_keeps_its_ids(spec: runs.Spec, tmp_path: Path) -> None:
    embed(spec, thumbnails=48)
    derived = spec | {
        "source": {"kind": "store", "uri": spec["store"]["uri"]},
        "store": {"uri": str(tmp_path / "derived")},
        "modalities": ["image", "text"],
    }
    report = embed(derived)
    ids = {row["id"] for row in rows(spec["store"]["uri"]).values()}
    assert {row["id"] for row in rows(str(tmp_path / "derived")).values()} <= ids
    assert report.rows_read == 24
    assert_sound(str(tmp_path / "derived"))
    compact(mmray.open_store(spec["store"]["uri"]))
    assert embed(derived).rows_read == 0
