"""Files of an index: put whole, fetched with their content checked, kept in a bounded cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmray.errors import RefusedError, SpecError
from mmray.index import files
from mmray.index.manifest import File
from mmray.storage import Storage

STORAGE = Storage()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "indexes"


def written(folder: Path, size: int = 1000, seed: int = 0) -> Path:
    path = folder / f"local-{seed}-{size}"
    path.write_bytes(np.random.default_rng(seed).bytes(size))
    return path


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Both kinds of storage answer alike."""
    if request.param == "disk":
        return str(tmp_path / "index")
    found: str = request.getfixturevalue("s3_uri")
    return found


def rewrite(root: str, path: str, data: bytes) -> None:
    """Not in place: on disk the file may be the one that was put."""
    STORAGE.write_bytes(f"{root}/{path}", data)


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_what_is_put_comes_back(root: str, tmp_path: Path, size: int) -> None:
    local = written(tmp_path, size)
    data = local.read_bytes()
    file = files.put(STORAGE, local, root, "segments/a/index.faiss")
    assert file == File("segments/a/index.faiss", size, hashlib.sha256(data).hexdigest())
    assert files.get(STORAGE, root, file).read_bytes() == data
    assert local.read_bytes() == data
    files.check(STORAGE, root, file)


def test_large_files_go_up_and_come_down_in_pieces(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PIECE", 5 * 1024 * 1024)  # S3's least
    local = written(tmp_path, 12 * 1024 * 1024 + 7)
    file = files.put(STORAGE, local, root, "a")
    assert file.bytes == local.stat().st_size
    files.check(STORAGE, root, file)
    assert files.get(STORAGE, root, file).read_bytes() == local.read_bytes()


def test_a_file_that_is_not_as_it_was_is_refused(root: str, tmp_path: Path) -> None:
    file = files.put(STORAGE, written(tmp_path), root, "a/b")
    data = files.get(STORAGE, root, file).read_bytes()
    for ask in (files.get, files.check):
        rewrite(root, "a/b", data[:-1])
        with pytest.raises(RefusedError, match=r"a/b is torn: 999 bytes, not 1,000"):
            ask(STORAGE, root, file)
        rewrite(root, "a/b", data[:-1] + bytes([data[-1] ^ 1]))
        # The cache has a good copy of it: that is no reason to answer.
        with pytest.raises(RefusedError, match="a/b was changed after it was written"):
            ask(STORAGE, root, file)
    STORAGE.delete(f"{root}/a/b")
    with pytest.raises(RefusedError, match="a/b is missing"):
        files.get(STORAGE, root, file)
    rewrite(root, "a/b", data)
    assert files.get(STORAGE, root, file).read_bytes() == data


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../a", "a/../../b", "a//b", "./a", "a\0b"])
def test_a_path_that_leaves_the_index_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(RefusedError, match="no file of the index"):
        files.get(STORAGE, str(tmp_path / "index"), File(path, 1, "0" * 64))
    with pytest.raises(RefusedError, match="no file of the index"):
        files.put(STORAGE, written(tmp_path), str(tmp_path / "index"), path)


def test_a_hash_that_is_a_path_is_refused(tmp_path: Path) -> None:
    file = files.put(STORAGE, written(tmp_path), str(tmp_path / "index"), "a")
    with pytest.raises(RefusedError, match="SHA-256"):
        files.get(STORAGE, str(tmp_path / "index"), replace(file, sha256="../../x"))


def test_a_failed_put_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "index"
    with pytest.raises(FileNotFoundError):
        files.put(STORAGE, tmp_path / "nothing", str(root), "a/b")
    assert list(root.rglob("*.tmp")) == []
    assert not (root / "a" / "b").exists()


def test_put_copies_where_files_can_not_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    local = written(tmp_path)
    file = files.put(STORAGE, local, str(tmp_path / "index"), "a")
    found = files.get(STORAGE, str(tmp_path / "index"), file)
    assert found.read_bytes() == local.read_bytes()
    assert not found.samefile(local)


def test_a_copy_is_fetched_once(
    s3_uri: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = files.put(STORAGE, written(tmp_path), s3_uri, "a")
    first = files.get(STORAGE, s3_uri, file)
    assert first.parent == cache
    monkeypatch.setattr(files, "_download", None)
    assert files.get(STORAGE, s3_uri, file) == first


def test_a_copy_that_was_damaged_is_fetched_again(s3_uri: str, tmp_path: Path) -> None:
    local = written(tmp_path)
    file = files.put(STORAGE, local, s3_uri, "a")
    files.get(STORAGE, s3_uri, file).write_bytes(b"x" * file.bytes)
    assert files.get(STORAGE, s3_uri, file).read_bytes() == local.read_bytes()


def test_copies_unused_for_longest_go(
    s3_uri: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [files.put(STORAGE, written(tmp_path, seed=n), s3_uri, f"f{n}") for n in range(4)]
    paths = [files.get(STORAGE, s3_uri, file) for file in made[:3]]
    monkeypatch.setenv("MMRAY_INDEX_CACHE", "2500B")
    now = time.time()
    for path, hours in zip(paths, (0.5, 3, 2), strict=True):  # the first is in use
        os.utime(path, (now - hours * 3600,) * 2)
    newest = files.get(STORAGE, s3_uri, made[3])
    assert sorted(cache.iterdir()) == sorted([paths[0], newest])
    files.trim(cache, 0)
    assert sorted(cache.iterdir()) == sorted([paths[0], newest])


def test_no_cache_limit_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.cache_limit() == 50 * 1024**3
    monkeypatch.setenv("MMRAY_INDEX_CACHE", "1.5GiB")
    assert files.cache_limit() == 3 * 1024**3 // 2
    monkeypatch.setenv("MMRAY_INDEX_CACHE", "much")
    with pytest.raises(SpecError, match="MMRAY_INDEX_CACHE: 'much' is no size"):
        files.cache_limit()


def test_two_processes_fetch_at_once(s3_uri: str, tmp_path: Path, cache: Path) -> None:
    local = written(tmp_path, 300_000)
    file = files.put(STORAGE, local, s3_uri, "a")
    code = f"""
from mmray.index import files
from mmray.index.manifest import File
from mmray.storage import Storage
print(files.get(Storage(), {s3_uri!r}, File({file.path!r}, {file.bytes}, {file.sha256!r})))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert said == {str(path) for path in cache.iterdir()}


def test_scratch_is_removed() -> None:
    with pytest.raises(ZeroDivisionError), files.scratch() as folder:
        (folder / "x").write_text("x")
        raise ZeroDivisionError
    assert not folder.exists()


def test_reading_a_manifest_loads_no_faiss() -> None:
    code = """
import sys
import mmray.index.manifest, mmray.index.files
print(sorted({"faiss", "duckdb", "torch", "ray", "pyarrow"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
