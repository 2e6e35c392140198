"""clip-retrieval's folders into a store: exactly once, nothing joined to the wrong row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner, Result

from mmray.cli import compare
from mmray.errors import RefusedError, StorageError
from mmray.sources.fragment import sample_id
from mmray.storage import join
from mmray.store import Committer, Store, importing
from mmray.store.importing import ImportResult, import_clip
from mmray.store.verify import verify
from tests.runs import duck
from tests.unit.store_samples import STORAGE, quarantine_ids

DIM = 6


def vectors(rows: int, seed: int, dtype: str = "float16") -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(rows, DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(dtype)


def folder(
    tmp_path: Path, sizes: tuple[int, ...] = (30, 20), kinds: str = "image text metadata"
) -> Path:
    """As clip-retrieval's writer leaves it."""
    root = tmp_path / "clip"
    for number, rows in enumerate(sizes):
        for seed, (kind, name) in enumerate((("image", "img_emb"), ("text", "text_emb"))):
            if kind in kinds:
                (root / name).mkdir(parents=True, exist_ok=True)
                np.save(root / name / f"{name}_{number:02d}.npy", vectors(rows, 10 * number + seed))
        if "metadata" in kinds:
            (root / "metadata").mkdir(parents=True, exist_ok=True)
            table = pa.table(
                {
                    "image_path": [f"{number}/{row}.jpg" for row in range(rows)],
                    "caption": [f"caption {row} of {number}" for row in range(rows)],
                    "similarity": [row / 100 for row in range(rows)],
                    "width": pa.array(range(rows), pa.int32()),
                    "nsfw": [row % 2 == 0 for row in range(rows)],
                }
            )
            pq.write_table(table, root / "metadata" / f"metadata_{number:02d}.parquet")
    return root


def run(root: Path, tmp_path: Path, **options: Any) -> ImportResult:
    return import_clip(str(root), str(tmp_path / "store"), STORAGE, "ViT-B/32", **options)


def opened(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), STORAGE)


def rows_of(tmp_path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = opened(tmp_path).to_arrow().to_pylist()
    found = {(Path(row["source_uri"]).name, row["source_key"]): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rows of two vectors in a part."""
    monkeypatch.setattr(importing, "PART_ROWS", 8)


def test_every_row_keeps_what_belongs_to_it(tmp_path: Path, small_parts: None) -> None:
    root = folder(tmp_path)
    result = run(root, tmp_path)
    assert (result.pieces, result.written, result.skipped, result.quarantined) == (2, 50, 0, 0)
    assert result.dims == {"image": DIM, "text": DIM} and result.left_out == {}
    found = rows_of(tmp_path)
    for number, rows in ((0, 30), (1, 20)):
        image, text = (vectors(rows, 10 * number + seed) for seed in (0, 1))
        for row in range(rows):
            mine = found[f"metadata_{number:02d}.parquet", str(row)]
            assert mine["id"] == sample_id(mine["source_uri"], str(row))
            assert mine["caption"] == f"caption {row} of {number}"
            assert mine["image_path"] == f"{number}/{row}.jpg"
            assert (mine["similarity"], mine["width"]) == (row / 100, row)
            assert mine["nsfw"] is (row % 2 == 0)
            for name, matrix in (("image_embedding", image), ("text_embedding", text)):
                assert np.linalg.norm(mine[name]) == pytest.approx(1, abs=1e-6)
                np.testing.assert_allclose(mine[name], matrix[row], atol=1e-3)
    store = opened(tmp_path)
    assert verify(store).ok and len(store.stored.parts) == 4 + 3
    assert len({row["content_hash"] for row in found.values()}) == 50
    assert store.meta.encoder == "ViT-B/32" and store.meta.normalised
    assert store.meta.details == {"imported": "ViT-B/32", "dims": {"image": DIM, "text": DIM}}


def test_duckdb_reads_it(tmp_path: Path) -> None:
    run(folder(tmp_path), tmp_path)
    query = f"SELECT caption, image_embedding FROM delta_scan('{tmp_path}/store') WHERE width = 7"
    rows = duck().sql(f"{query} ORDER BY caption").fetchall()
    assert [row[0] for row in rows] == ["caption 7 of 0", "caption 7 of 1"]
    np.testing.assert_allclose(rows[1][1], vectors(20, 10)[7], atol=1e-3)


def test_a_second_import_does_nothing(tmp_path: Path) -> None:
    root = folder(tmp_path)
    first = run(root, tmp_path)
    again = run(root, tmp_path)
    assert (again.written, again.skipped, again.version) == (0, 50, first.version)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def test_one_that_is_killed_goes_on(
    tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path)
    commit = Committer.commit
    done: list[int] = []

    def once_more(self: Committer, changes: Any) -> Any:
        if len(done) == 3:
            raise Killed
        done.append(1)
        return commit(self, changes)

    with monkeypatch.context() as patch:
        patch.setattr(Committer, "commit", once_more)
        with pytest.raises(Killed):
            run(root, tmp_path)
    assert opened(tmp_path).count == 24
    result = run(root, tmp_path)
    assert (result.written, result.skipped) == (26, 24)
    found = rows_of(tmp_path)
    assert len(found) == 50 and verify(opened(tmp_path)).ok
    assert found["metadata_00.parquet", "29"]["caption"] == "caption 29 of 0"


def test_a_piece_that_changed_is_replaced(tmp_path: Path, small_parts: None) -> None:
    root = folder(tmp_path)
    run(root, tmp_path)
    np.save(root / "img_emb" / "img_emb_00.npy", vectors(30, 99, "float32"))
    result = run(root, tmp_path)
    assert (result.written, result.skipped) == (30, 20)
    assert [Path(uri).name for uri in result.replaced] == ["metadata_00.parquet"]
    found = rows_of(tmp_path)
    assert len(found) == 50 and verify(opened(tmp_path)).ok
    got = found["metadata_00.parquet", "17"]["image_embedding"]
    np.testing.assert_allclose(got, vectors(30, 99)[17], atol=1e-3)
    assert run(root, tmp_path).written == 0


def test_vectors_that_are_none_go_to_quarantine(tmp_path: Path, small_parts: None) -> None:
    root = folder(tmp_path)
    image, text = vectors(30, 0), vectors(30, 1, "float32")
    image[3], image[4, 2], text[11, 0] = 0, np.nan, np.inf
    image[16:24] = 0  # a whole part
    np.save(root / "img_emb" / "img_emb_00.npy", image)
    np.save(root / "text_emb" / "text_emb_00.npy", text)
    result = run(root, tmp_path)
    assert (result.written, result.quarantined) == (39, 11)
    assert result.errors == {"ZeroVector": 9, "NonFiniteVector": 2}
    uri = str(root / "metadata" / "metadata_00.parquet")
    bad = [3, 4, 11, *range(16, 24)]
    assert quarantine_ids(opened(tmp_path)) == sorted(sample_id(uri, str(row)) for row in bad)
    assert verify(opened(tmp_path)).ok
    again = run(root, tmp_path)
    assert (again.written, again.quarantined, again.skipped) == (0, 0, 50)
    live = opened(tmp_path).quarantine.live().to_pylist()
    words = {row["source_key"]: row["message"] for row in live}
    assert words["11"] == "its text vector has NaN or infinity"


@pytest.mark.parametrize(
    ("kinds", "dims", "file"),
    [
        ("image", {"image": DIM}, "img_emb_00.npy"),
        ("text", {"text": DIM}, "text_emb_00.npy"),
        ("text metadata", {"text": DIM}, "metadata_00.parquet"),
    ],
)
def test_folders_may_be_absent(tmp_path: Path, kinds: str, dims: Any, file: str) -> None:
    result = run(folder(tmp_path, kinds=kinds), tmp_path)
    assert result.dims == dims and result.written == 50
    found = rows_of(tmp_path)
    assert (file, "29") in found
    assert ("caption" in found[file, "0"]) is ("metadata" in kinds)


def test_numbers_need_no_zeros(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "img_emb" / "img_emb_01.npy").rename(root / "img_emb" / "img_emb_1.npy")
    (root / "img_emb" / "notes.txt").write_text("not ours")
    run(root, tmp_path)
    got = rows_of(tmp_path)["metadata_01.parquet", "5"]["image_embedding"]
    np.testing.assert_allclose(got, vectors(20, 10)[5], atol=1e-3)


# --- columns -------------------------------------------------------------------------------------


def with_metadata(tmp_path: Path, *tables: pa.Table) -> Path:
    root = folder(tmp_path, tuple(table.num_rows for table in tables), "image metadata")
    for number, table in enumerate(tables):
        pq.write_table(table, root / "metadata" / f"metadata_{number:02d}.parquet")
    return root


def test_types_of_all_files_are_made_one(tmp_path: Path) -> None:
    one = {
        "caption": pa.array(["a", None]).dictionary_encode(),
        "size": pa.array([1, 2], pa.int32()),
        "label": pa.array([None, None], pa.null()),
        "mixed": [1, 2],
        "hash": pa.array([2**64 - 1, 0], pa.uint64()),
        "half": pa.array(np.array([0.5, 1], np.float16)),
        "tags": [["x"], []],
        "at": pa.array([0, 1], pa.timestamp("s")),
        "__index_level_0__": [0, 1],
        "only here": ["x", "y"],
    }
    other = {
        "caption": pa.array(["b"], pa.large_string()),
        "size": [2.5],
        "label": ["l"],
        "mixed": ["three"],
        "hash": pa.array([7], pa.uint64()),
        "half": [0.25],
        "tags": [["y"]],
    }
    result = run(with_metadata(tmp_path, pa.table(one), pa.table(other)), tmp_path)
    assert result.left_out == {"tags": "list<element: string>", "at": "timestamp[ms]"}
    assert result.columns["only here"] == "only_here"
    found = rows_of(tmp_path)
    names = ["caption", "size", "label", "mixed", "hash", "half", "only_here"]
    assert [
        [found[f"metadata_{n:02d}.parquet", key][name] for name in names]
        for n, key in ((0, "0"), (0, "1"), (1, "0"))
    ] == [
        ["a", 1.0, None, "1", "18446744073709551615", 0.5, "x"],
        [None, 2.0, None, "2", "0", 1.0, "y"],
        ["b", 2.5, "l", "three", "7", 0.25, None],
    ]


def test_names_that_a_store_has_itself(tmp_path: Path) -> None:
    table = pa.table({"id": ["mine"], "ID": ["too"], "NSFW": [True], "nsfw": [0.5], "a=b": [1]})
    result = run(with_metadata(tmp_path, table), tmp_path)
    renamed = {"id": "id_", "ID": "ID__", "NSFW": "NSFW", "nsfw": "nsfw_", "a=b": "a_b"}
    assert result.columns == renamed
    (row,) = rows_of(tmp_path).values()
    assert [row[name] for name in renamed.values()] == ["mine", "too", True, 0.5, 1]
    assert row["id"] == sample_id(row["source_uri"], "0")


def test_only_what_is_to_be_kept(tmp_path: Path) -> None:
    root = folder(tmp_path)
    with pytest.raises(RefusedError, match=r"--keep: .* has image_path, caption, .*no 'licence'"):
        run(root, tmp_path, keep=["licence"])
    assert not (tmp_path / "store").exists()
    run(root, tmp_path, keep=["width", "caption"])
    names = opened(tmp_path).schema.names
    assert names[6:] == ["width", "caption", "image_embedding", "text_embedding"]
    with pytest.raises(RefusedError, match="has no column image_path"):
        run(root, tmp_path)
    shutil.rmtree(tmp_path / "store")
    run(root, tmp_path, keep=[])
    assert opened(tmp_path).schema.names[6:] == ["image_embedding", "text_embedding"]


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"\xff\xfe"]).view(pa.string())
    result = run(with_metadata(tmp_path, pa.table({"caption": broken})), tmp_path)
    assert (result.written, result.errors) == (1, {"BadText": 1})


# --- refusals ------------------------------------------------------------------------------------


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def breakages(root: Path) -> Iterator[tuple[str, str]]:
    """Breaks one thing after another; each with the words of the refusal."""
    image, text = root / "img_emb" / "img_emb_01.npy", root / "text_emb" / "text_emb_01.npy"
    table = root / "metadata" / "metadata_01.parquet"
    whole = {path: path.read_bytes() for path in (image, text, table)}

    np.save(text, vectors(19, 0))
    yield "rows", r"img_emb_01\.npy has 20 rows and .*text_emb_01\.npy has 19"
    text.write_bytes(whole[text])
    pq.write_table(pq.read_table(table).slice(1), table)
    yield "table", r"img_emb_01\.npy has 20 rows and .*metadata_01\.parquet has 19"
    cut(table, 100)
    yield "torn table", r"metadata_01\.parquet: is no Parquet file that can be read"
    table.write_bytes(whole[table])
    np.save(image, np.zeros((20, DIM + 1), np.float32))
    yield "dim", rf"img_emb_00\.npy has vectors of {DIM} numbers, .*img_emb_01\.npy of {DIM + 1}"
    np.save(image, np.zeros((20, DIM)))
    yield "float64", r"img_emb_01\.npy: holds float64, not float16 or float32"
    np.save(image, np.array([{"a": 1}] * 20, object), allow_pickle=True)
    yield "object", r"img_emb_01\.npy: holds object"
    np.save(image, np.zeros(20, np.float32))
    yield "flat", r"its array is of shape \(20,\), not rows"
    np.save(image, np.asfortranarray(np.ones((20, DIM), np.float32)))
    yield "fortran", "its array is column by column"
    image.write_bytes(whole[image][:-1])
    yield "short", r"img_emb_01\.npy: has 367 bytes, but its 20 rows of 6 numbers take 368"
    image.write_bytes(b"\x93NUMPY\x09\x00" + whole[image][8:])
    yield "format", r"is no \.npy file that can be read: format 9\.0"
    image.write_bytes(b"PK" + whole[image])
    yield "magic", r"is no \.npy file that can be read"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os'), 1)}"
    image.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    yield "code", r"is no \.npy file that can be read"
    image.write_bytes(b"")
    yield "empty", r"is no \.npy file that can be read"
    image.unlink()
    yield "lacking", r"text_emb_01\.npy: there is no img_emb_1\.npy of the same number"
    image.write_bytes(whole[image])
    image.with_name("img_emb_1.npy").write_bytes(whole[image])
    yield "twice", "img_emb_01.npy and .*img_emb_1.npy have the same number"
    shutil.rmtree(root / "img_emb")
    shutil.rmtree(root / "text_emb")
    yield "none", "holds neither img_emb/img_emb_N.npy nor text_emb/text_emb_N.npy"


def test_what_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    root = folder(tmp_path)
    seen = []
    for name, words in breakages(root):
        with pytest.raises(RefusedError, match=words):
            run(root, tmp_path)
        seen.append(name)
        assert not (tmp_path / "store").exists()
    assert len(seen) == 16


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path)
    run(root, tmp_path)
    with pytest.raises(RefusedError, match=r"of ViT-B/32 \(fingerprint .* not of ViT-L/14"):
        import_clip(str(root), str(tmp_path / "store"), STORAGE, "ViT-L/14")
    assert opened(tmp_path).count == 50


def test_a_file_that_changes_meanwhile(
    tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path)
    commit = Committer.commit

    def rewritten(self: Committer, changes: Any) -> Any:
        np.save(root / "img_emb" / "img_emb_00.npy", vectors(30, 77))
        return commit(self, changes)

    with monkeypatch.context() as patch:
        patch.setattr(Committer, "commit", rewritten)
        with pytest.raises(StorageError, match="changed while it was read"):
            run(root, tmp_path)
    run(root, tmp_path)
    got = rows_of(tmp_path)["metadata_00.parquet", "1"]["image_embedding"]
    np.testing.assert_allclose(got, vectors(30, 77)[1], atol=1e-3)


# --- S3 and the command line ---------------------------------------------------------------------

app = typer.Typer()
app.command("diff")(compare.diff)
app.command("import")(compare.import_)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_on_s3(tmp_path: Path, s3_uri: str, s3_env: dict[str, str], small_parts: None) -> None:
    root = folder(tmp_path)
    for path in root.rglob("*.*"):
        STORAGE.write_bytes(join(s3_uri, "clip", str(path.relative_to(root))), path.read_bytes())
    source, store = join(s3_uri, "clip"), join(s3_uri, "store")
    result = call("import", source, store, "--encoder", "ViT-B/32", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["written"] == 50
    result = call("import", source, store, "--encoder", "ViT-B/32", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["skipped"] == 50
    query = f"SELECT count(*), count(DISTINCT id) FROM delta_scan('{store}')"
    assert duck(s3_env).sql(query).fetchall() == [(50, 50)]


def test_the_commands(tmp_path: Path) -> None:
    root = folder(tmp_path)
    store = tmp_path / "store"
    result = call("import", root, store, "--encoder", "ViT-B/32", "--keep", "width, caption")
    assert result.exit_code == 0 and "50 rows, image 6, text 6" in result.stdout
    np.save(root / "img_emb" / "img_emb_01.npy", vectors(20, 55))
    call("import", root, store, "--encoder", "ViT-B/32", "--keep", "width,caption")

    result = call("diff", store, store, "--a-version", 2, "--json")
    assert result.exit_code == 0
    line = json.loads(result.stdout.splitlines()[-1])
    counts = [line[kind] for kind in ("added", "removed", "changed", "unchanged")]
    assert counts == [0, 0, 20, 30] and line["same"] is False
    assert line["drift"]["image"]["mean"] < 0.9 < line["drift"]["text"]["mean"]
    result = call("diff", store, store, "--a-version", 2)
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "changed 20" in lines and any(line.startswith("image drift cosine") for line in lines)
    assert result.stdout.count("metadata_01.parquet") == 5 and "and 15 more" in result.stdout
    result = call("diff", store, store)
    assert "no drift" in result.stdout and "unchanged" in result.stdout

    assert call("import", root, store).exit_code == 2  # no encoder
    result = call("import", root, store, "--encoder", "other", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout.splitlines()[-1])["status"] == "refused"
    assert call("diff", store, tmp_path / "nothing").exit_code == 2
    assert call("diff", store, store, "--b-version", 99).exit_code == 2
