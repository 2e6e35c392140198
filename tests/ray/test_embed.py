"""The embed job on a real Ray session: what it writes, skips, replaces and refuses."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import mmray
from mmray.errors import JobFailed, RefusedError
from mmray.report import Report
from mmray.store.verify import verify
from tests import runs, shards


def embed(spec: runs.Spec, **changes: Any) -> Report:
    """A run of the spec with these fields changed."""
    return mmray.run(spec | changes, quiet=True)


def rows(store: str) -> dict[str, dict[str, Any]]:
    """source_key to row, of keys that are unique in the test."""
    table = mmray.open_store(store).to_arrow()
    found = {row["source_key"]: row for row in table.to_pylist()}
    assert len(found) == table.num_rows
    return found


def quarantined(store: str) -> dict[str, str]:
    table = mmray.open_store(store).quarantine.live()
    return dict(zip(table["source_key"].to_pylist(), table["error_type"].to_pylist(), strict=True))


def assert_sound(store: str) -> None:
    assert verify(mmray.open_store(store)).problems == []


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = tmp_path / "tars"
    folder.mkdir()
    for name, data in shards.sample_shards(3, 40).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def spec(tars: Path, tmp_path: Path) -> runs.Spec:
    return runs.embed_spec(str(tars / "*.tar"), str(tmp_path / "store"))


def test_rows_carry_what_the_samples_had(spec: runs.Spec, tars: Path) -> None:
    report = embed(spec, keep={"caption": "string", "category": "string", "number": "int"})
    assert (report.status, report.rows_read, report.rows_written) == ("done", 120, 120)
    assert report.rows_encoded == 120
    assert set(report.stages) == {"read", "decode", "encode", "write"}
    row = rows(spec["store"]["uri"])["000041"]
    assert row["caption"] == shards.caption(41) and row["number"] == 41
    assert row["source_uri"] == str(tars / "00001.tar")
    assert len(row["id"]) == len(row["content_hash"]) == 32
    for column in ("image_embedding", "text_embedding"):
        assert len(row[column]) == 16
        assert np.linalg.norm(row[column]) == pytest.approx(1, abs=1e-5)
    assert_sound(spec["store"]["uri"])
    meta = mmray.open_store(spec["store"]["uri"]).meta
    assert meta.dims == {"image": 16, "text": 16} and meta.lineage["source"]["kind"] == "webdataset"


def test_every_reader_reads_it(spec: runs.Spec) -> None:
    import pandas as pd
    import polars as pl
    import pyarrow.dataset as ds
    import ray.data
    from deltalake import DeltaTable
    from ray.data.expressions import col

    embed(spec)
    uri = spec["store"]["uri"]
    expected = {key: row["image_embedding"] for key, row in rows(uri).items()}
    duck = runs.duck().execute(f"SELECT source_key, image_embedding FROM delta_scan('{uri}')")
    assert dict(duck.fetchall()) == expected
    polars = pl.read_delta(uri)
    assert polars.schema["image_embedding"] == pl.List(pl.Float32)
    assert dict(polars.select("source_key", "image_embedding").iter_rows()) == expected
    one = shards.caption(7)
    field = ds.field("caption")
    assert DeltaTable(uri).to_pyarrow_dataset().to_table(filter=field == one).num_rows == 1
    assert DeltaTable(uri).to_pyarrow_dataset().to_table(filter=field > one).num_rows > 0
    assert ray.data.read_delta(uri).filter(expr=col("caption") == one).count() == 1
    found = runs.duck().execute(
        f"SELECT count(*) FROM delta_scan('{uri}') WHERE caption = ?", [one]
    )
    assert found.fetchone() == (1,)
    frame: pd.DataFrame = DeltaTable(uri).to_pandas()
    assert {k: list(v) for k, v in zip(frame.source_key, frame.image_embedding, strict=True)} == (
        expected
    )
    taken = ray.data.read_delta(uri).take_all()
    assert {row["source_key"]: list(row["image_embedding"]) for row in taken} == expected


def test_second_run_does_nothing(spec: runs.Spec) -> None:
    first = embed(spec)
    again = embed(spec)
    assert (again.rows_read, again.rows_skipped) == (0, 120)
    assert again.outputs["version"] == first.outputs["version"]


def test_changed_shard_is_replaced_in_one_commit(spec: runs.Spec, tars: Path) -> None:
    embed(spec)
    uri = spec["store"]["uri"]
    before, version = rows(uri), mmray.open_store(uri).version
    changed = shards.members("000040", 900) + shards.members("new", 901)
    (tars / "00001.tar").write_bytes(shards.tar(changed))
    report = embed(spec)
    assert (report.rows_read, report.rows_skipped) == (2, 80)
    assert report.changed == [str(tars / "00001.tar")]
    after = rows(uri)
    assert len(after) == 82 and "000041" not in after
    assert after["000040"]["id"] == before["000040"]["id"]
    assert after["000040"]["content_hash"] != before["000040"]["content_hash"]
    assert mmray.open_store(uri).version == version + 1
    assert len(mmray.open_store(uri, version=version).to_arrow()) == 120
    assert_sound(uri)


def test_removed_shard_is_reported_then_pruned(spec: runs.Spec, tars: Path) -> None:
    braces = spec | {"source": {"kind": "webdataset", "uri": str(tars / "{00000..00002}.tar")}}
    embed(braces)
    (tars / "00002.tar").unlink()
    report = embed(braces)
    assert report.removed == [str(tars / "00002.tar")]
    assert len(rows(spec["store"]["uri"])) == 120
    report = embed(braces, on_removed="prune")
    assert report.removed == [str(tars / "00002.tar")]
    assert len(rows(spec["store"]["uri"])) == 80
    assert embed(braces, on_removed="prune").removed == []
    assert_sound(spec["store"]["uri"])


def test_several_jobs_append_to_one_store(spec: runs.Spec, tars: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.tar").write_bytes(shards.sample_tar(10, first=500))
    embed(spec)
    source = {"kind": "webdataset", "uri": str(other)}
    report = embed(spec, source=source, on_removed="prune")
    assert (report.rows_read, report.removed) == (10, [])
    assert len(rows(spec["store"]["uri"])) == 130
    assert embed(spec, on_removed="prune").removed == []
    assert len(rows(spec["store"]["uri"])) == 130


def test_changed_model_is_refused_or_rebuilt(spec: runs.Spec) -> None:
    embed(spec)
    uri = spec["store"]["uri"]
    before = rows(uri)
    other = spec | {"encoder": {"kind": "import", "model": "tests.toys:OtherToy"}}
    with pytest.raises(RefusedError) as refusal:
        embed(other)
    old = mmray.open_store(uri).meta.fingerprint
    assert old in str(refusal.value) and "tests.toys:OtherToy" in str(refusal.value)
    report = embed(other, on_model_change="rebuild")
    assert report.rows_read == 120
    store = mmray.open_store(uri)
    after = rows(uri)
    assert store.meta.fingerprint != old and after.keys() == before.keys()
    assert after["000000"]["image_embedding"] == before["000000"]["image_embedding"][::-1]
    assert_sound(uri)
    again = embed(other)
    assert (again.rows_read, again.rows_skipped) == (0, 120)


def test_other_columns_are_refused(spec: runs.Spec) -> None:
    embed(spec)
    with pytest.raises(RefusedError, match="number"):
        embed(spec, keep=["caption", "category", "number"])
    with pytest.raises(RefusedError, match="normal"):
        embed(spec, normalize=False)


def test_bad_samples_end_in_quarantine_with_their_reasons(spec: runs.Spec, tars: Path) -> None:
    bad = shards.bad_images()
    entries: list[Any] = []
    for name, data in bad.items():
        entries += [(f"{name}.jpg", data), (f"{name}.txt", b"a caption")]
    for name, data in shards.odd_images().items():
        entries += [(f"odd-{name}.jpg", data), (f"odd-{name}.txt", b"a caption")]
    entries += [("../escape.jpg", shards.picture(1)), shards.link("link.jpg", "/etc/passwd")]
    entries += [("latin.txt", "na\xefve".encode("latin-1")), ("latin.jpg", shards.picture(2))]
    entries += [("json.json", b"{broken"), ("json.jpg", shards.picture(3))]
    entries += [("only.xyz", b"?"), ("text-only.txt", b"words alone")]
    (tars / "00000.tar").write_bytes(shards.tar(entries))
    (tars / "00001.tar").write_bytes(b"")
    torn = shards.cut_in_member(shards.sample_tar(5), "000004.jpg")
    (tars / "00002.tar").write_bytes(torn)
    report = embed(spec, errors={"max_fraction": 1.0}, limits={"pixels": 10_000_000})
    uri = spec["store"]["uri"]
    found, wrong = rows(uri), quarantined(uri)
    assert report.rows_read == len(found) + len(wrong)
    assert report.rows_quarantined == sum(report.errors.values()) == len(wrong)
    assert wrong["zero"] == "EmptyMember" and wrong["bomb"] == "DecompressionBomb"
    assert {wrong[name] for name in ("truncated", "html", "text", "noise", "magic_only")} == {
        "UnreadableImage"
    }
    assert (wrong["latin"], wrong["json"], wrong["only"]) == (
        "BadText",
        "BadMetadata",
        "NoModality",
    )
    assert wrong["../escape.jpg"] == "UnsafeMember" and wrong["link.jpg"] == "UnsupportedMember"
    assert all(f"odd-{name}" in found for name in shards.odd_images())
    assert found["text-only"]["image_embedding"] is None
    assert found["text-only"]["text_embedding"] is not None
    table = mmray.open_store(uri).quarantine.live()
    kinds = dict(zip(table["source_uri"].to_pylist(), table["error_type"].to_pylist(), strict=True))
    assert kinds[str(tars / "00001.tar")] in ("EmptyShard", "TruncatedShard")
    assert kinds[str(tars / "00002.tar")] == "TruncatedShard"
    assert_sound(uri)
    again = embed(spec, errors={"max_fraction": 1.0}, limits={"pixels": 10_000_000})
    assert (again.rows_read, again.rows_skipped) == (0, report.rows_read)


def test_odd_images_are_decoded_right(tmp_path: Path) -> None:
    """The rotated camera picture gives the same vector as the picture turned upright."""
    upright = Image.fromarray(np.rot90(shards.pixels(3), -1))
    entries: list[Any] = [
        ("exif.png", shards.odd_images()["exif"]),
        ("upright.png", shards.encoded(upright, "JPEG")),
    ]
    (tmp_path / "x.tar").write_bytes(shards.tar(entries))
    spec = runs.embed_spec(str(tmp_path / "x.tar"), str(tmp_path / "store"))
    embed(spec)
    found = rows(spec["store"]["uri"])
    one, other = (np.array(found[key]["image_embedding"]) for key in ("exif", "upright"))
    assert one @ other > 0.9999


def test_vectors_that_are_no_vectors(tmp_path: Path) -> None:
    def flat(colour: tuple[int, int, int]) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (40, 40), colour).save(out, "PNG")
        return out.getvalue()

    colours = {"dark": (0, 0, 0), "bright": (255, 255, 255), "red": (255, 0, 0), "ok": (9, 99, 9)}
    entries: list[Any] = [(f"{name}.png", flat(colour)) for name, colour in colours.items()]
    (tmp_path / "x.tar").write_bytes(shards.tar(entries))
    spec = runs.embed_spec(
        str(tmp_path / "x.tar"),
        str(tmp_path / "store"),
        encoder={"kind": "import", "model": "tests.toys:Broken"},
        errors={"max_fraction": 1.0},
    )
    embed(spec)
    assert list(rows(spec["store"]["uri"])) == ["ok"]
    assert quarantined(spec["store"]["uri"]) == {
        "dark": "NonFiniteVector",
        "bright": "ZeroVector",
        "red": "RuntimeError",
    }


def test_budget_ends_the_job_and_keeps_what_is_finished(spec: runs.Spec, tars: Path) -> None:
    entries: list[Any] = [(f"{n}.jpg", b"junk") for n in range(10)]
    (tars / "00002.tar").write_bytes(shards.tar(entries))
    with pytest.raises(JobFailed, match=r"max_fraction.*0\.05|10 of 90") as failure:
        embed(spec, errors={"max_fraction": 0.05})
    report = failure.value.report
    assert report is not None and (report.status, report.rows_written) == ("failed", 80)
    assert report.errors == {"UnreadableImage": 10}
    assert_sound(spec["store"]["uri"])


def test_model_that_does_not_load_ends_the_job(spec: runs.Spec) -> None:
    with pytest.raises(JobFailed, match="the weights are torn"):
        embed(spec, encoder={"kind": "import", "model": "tests.toys:Unloadable"})


def test_limit_is_met_exactly_and_the_rest_follows(spec: runs.Spec) -> None:
    report = mmray.run(spec, limit=50, quiet=True)
    assert report.rows_read == 50
    rest = embed(spec)
    assert (rest.rows_read, rest.rows_skipped) == (70, 50)
    assert len(rows(spec["store"]["uri"])) == 120


def test_exact_duplicates_are_encoded_once_and_kept(tmp_path: Path) -> None:
    entries: list[Any] = [(f"{n:03d}.jpg", shards.picture(n % 5)) for n in range(60)]
    (tmp_path / "x.tar").write_bytes(shards.tar(entries))
    spec = runs.embed_spec(str(tmp_path / "x.tar"), str(tmp_path / "store"), dedupe="exact")
    report = embed(spec)
    assert (report.rows_written, report.rows_encoded) == (60, 5)
    found = rows(spec["store"]["uri"])
    assert found["000"]["image_embedding"] == found["055"]["image_embedding"]
    assert found["000"]["image_embedding"] != found["001"]["image_embedding"]


def test_split_stages_give_the_same_vectors(spec: runs.Spec, tmp_path: Path) -> None:
    embed(spec)
    split = embed(
        spec,
        store={"uri": str(tmp_path / "split")},
        resources={"gpus": 0.5, "cpus": 0.5, "pool": [1, 2], "decode_cpus": 0.5},
    )
    assert split.rows_read == 120 and set(split.stages) == {"read", "decode", "encode", "write"}
    fused, apart = rows(spec["store"]["uri"]), rows(str(tmp_path / "split"))
    for key, row in fused.items():
        np.testing.assert_allclose(row["image_embedding"], apart[key]["image_embedding"], atol=1e-6)
    assert_sound(str(tmp_path / "split"))


def test_gzipped_tars(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(shards.gzipped(shards.sample_tar(100)))
    spec = runs.embed_spec(str(tmp_path / "x.tar.gz"), str(tmp_path / "store"))
    assert mmray.run(spec, limit=30, quiet=True).rows_read == 30
    assert embed(spec).rows_read == 70
    assert embed(spec).rows_read == 0
    assert_sound(spec["store"]["uri"])


def test_raw_files_change_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    for name, data in shards.sample_files(60).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "a" / "broken.jpg").write_bytes(b"junk")
    spec = runs.embed_spec("", str(tmp_path / "store"), errors={"max_fraction": 0.1})
    spec["source"] = {"kind": "files", "uri": str(folder)}
    uri = spec["store"]["uri"]
    assert embed(spec).rows_read == 61
    first = rows(uri)
    assert first["000004.jpg"]["source_uri"] == str(folder / "a" / "000004.jpg")
    assert first["000004.jpg"]["caption"] == shards.caption(4)

    (folder / "a" / "added.jpg").write_bytes(shards.picture(777))
    (folder / "a" / "000004.jpg").write_bytes(shards.picture(778))
    (folder / "a" / "broken.jpg").write_bytes(shards.picture(779))
    (folder / "b" / "000007.jpg").unlink()
    (folder / "b" / "000007.txt").unlink()
    (folder / "b" / "000007.json").unlink()
    report = embed(spec)
    assert (report.rows_read, report.rows_skipped) == (3, 58)
    assert report.removed == [str(folder / "b" / "000007.jpg")]
    second = rows(uri)
    assert second.keys() == first.keys() | {"added.jpg", "broken.jpg"}
    assert second["000004.jpg"]["image_embedding"] != first["000004.jpg"]["image_embedding"]
    assert second["000006.jpg"] == first["000006.jpg"] | {
        "fragment": second["000006.jpg"]["fragment"]
    }
    assert quarantined(uri) == {}
    assert_sound(uri)

    assert embed(spec, on_removed="prune").rows_read == 0
    assert rows(uri).keys() == second.keys() - {"000007.jpg"}
    again = embed(spec, on_removed="prune")
    assert (again.rows_read, again.rows_skipped, again.removed) == (0, 61, [])
    assert_sound(uri)


def test_unreadable_object_is_quarantined(spec: runs.Spec, tars: Path) -> None:
    """It vanishes between the listing and the read."""
    from mmray.flow import plan

    make_plan = plan.make_plan

    def and_remove(*arguments: Any, **options: Any) -> Any:
        planned = make_plan(*arguments, **options)
        (tars / "00001.tar").unlink(missing_ok=True)
        return planned

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmray.jobs.embed.make_plan", and_remove)
        report = embed(spec, errors={"max_fraction": 0.5})
    assert report.errors == {"UnreadableShard": 1}
    assert report.rows_written == 80


def test_thumbnails_and_page(spec: runs.Spec) -> None:
    report = embed(spec, thumbnails=48)
    picture = rows(spec["store"]["uri"])["000000"]["thumbnail"]
    assert max(Image.open(io.BytesIO(picture)).size) == 48
    page = Path(str(report.outputs["page"])).read_text()
    assert "data:image/jpeg;base64," in page and "://" not in page.split("<body")[0]


def test_vectors_are_plain_arrow_lists(spec: runs.Spec) -> None:
    embed(spec)
    schema = mmray.open_store(spec["store"]["uri"]).schema
    assert schema.field("image_embedding").type == pa.list_(pa.field("element", pa.float32()))


def test_a_gpu_that_torch_cannot_use_ends_the_job(spec: runs.Spec) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch can use this machine's GPU")
    with pytest.raises(JobFailed, match="torch sees no CUDA device"):
        embed(spec, encoder={"kind": "packaged", "model": "minilm"}, resources={"gpus": 1})
