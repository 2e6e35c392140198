"""Files of a manifest: put whole, fetched with their content checked, kept in a bounded cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmray.errors import RefusedError, SpecError
from mmray.storage import Storage, blobs
from mmray.storage.blobs import File

STORAGE = Storage()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "blobs"


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
    file = blobs.put(STORAGE, local, root, "segments/a/index.faiss")
    assert file == File("segments/a/index.faiss", size, hashlib.sha256(data).hexdigest())
    assert blobs.get(STORAGE, root, file).read_bytes() == data
    assert local.read_bytes() == data
    blobs.check(STORAGE, root, file)


def test_a_copy_has_the_same_content(root: str, tmp_path: Path) -> None:
    file = blobs.put(STORAGE, written(tmp_path), root, "a/b")
    copied = blobs.copy(STORAGE, root, file, "c/d")
    assert copied == File("c/d", file.bytes, file.sha256)
    rewrite(root, "a/b", b"another")
    blobs.check(STORAGE, root, copied)
    with pytest.raises(RefusedError, match="a/b is torn"):
        blobs.copy(STORAGE, root, file, "c/e")


def test_large_files_go_up_and_come_down_in_pieces(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "PIECE", 5 * 1024 * 1024)  # S3's least
    local = written(tmp_path, 12 * 1024 * 1024 + 7)
    file = blobs.put(STORAGE, local, root, "a")
    assert file.bytes == local.stat().st_size
    blobs.check(STORAGE, root, file)
    assert blobs.get(STORAGE, root, file).read_bytes() == local.read_bytes()


def test_a_file_that_is_not_as_it_was_is_refused(root: str, tmp_path: Path) -> None:
    file = blobs.put(STORAGE, written(tmp_path), root, "a/b")
    data = blobs.get(STORAGE, root, file).read_bytes()
    for ask in (blobs.get, blobs.check):
        rewrite(root, "a/b", data[:-1])
        with pytest.raises(RefusedError, match=r"a/b is torn: 999 bytes, not 1,000"):
            ask(STORAGE, root, file)
        rewrite(root, "a/b", data[:-1] + bytes([data[-1] ^ 1]))
        # The cache has a good copy of it: that is no reason to answer.
        with pytest.raises(RefusedError, match="a/b was changed after it was written"):
            ask(STORAGE, root, file)
    STORAGE.delete(f"{root}/a/b")
    with pytest.raises(RefusedError, match="a/b is missing"):
        blobs.get(STORAGE, root, file)
    rewrite(root, "a/b", data)
    assert blobs.get(STORAGE, root, file).read_bytes() == data


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../a", "a/../../b", "a//b", "./a", "a\0b"])
def test_a_path_that_leaves_its_root_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(RefusedError, match="no file below it"):
        blobs.get(STORAGE, str(tmp_path / "index"), File(path, 1, "0" * 64))
    with pytest.raises(RefusedError, match="no file below it"):
        blobs.put(STORAGE, written(tmp_path), str(tmp_path / "index"), path)


def test_a_hash_that_is_a_path_is_refused(tmp_path: Path) -> None:
    file = blobs.put(STORAGE, written(tmp_path), str(tmp_path / "index"), "a")
    with pytest.raises(RefusedError, match="SHA-256"):
        blobs.get(STORAGE, str(tmp_path / "index"), replace(file, sha256="../../x"))


def test_a_failed_put_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "index"
    with pytest.raises(FileNotFoundError):
        blobs.put(STORAGE, tmp_path / "nothing", str(root), "a/b")
    assert list(root.rglob("*.tmp")) == []
    assert not (root / "a" / "b").exists()


def test_put_copies_where_files_can_not_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    local = written(tmp_path)
    file = blobs.put(STORAGE, local, str(tmp_path / "index"), "a")
    found = blobs.get(STORAGE, str(tmp_path / "index"), file)
    assert found.read_bytes() == local.read_bytes()
    assert not found.samefile(local)


def test_a_copy_is_fetched_once(
    s3_uri: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = blobs.put(STORAGE, written(tmp_path), s3_uri, "a")
    first = blobs.get(STORAGE, s3_uri, file)
    assert first.parent == cache
    monkeypatch.setattr(blobs, "_download", None)
    assert blobs.get(STORAGE, s3_uri, file) == first


def test_a_copy_that_was_damaged_is_fetched_again(s3_uri: str, tmp_path: Path) -> None:
    local = written(tmp_path)
    file = blobs.put(STORAGE, local, s3_uri, "a")
    blobs.get(STORAGE, s3_uri, file).write_bytes(b"x" * file.bytes)
    assert blobs.get(STORAGE, s3_uri, file).read_bytes() == local.read_bytes()


def test_copies_unused_for_longest_go(
    s3_uri: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [blobs.put(STORAGE, written(tmp_path, seed=n), s3_uri, f"f{n}") for n in range(4)]
    paths = [blobs.get(STORAGE, s3_uri, file) for file in made[:3]]
    monkeypatch.setenv("MMRAY_CACHE_SIZE", "2500B")
    now = time.time()
    for path, hours in zip(paths, (0.5, 3, 2), strict=True):  # the first is in use
        os.utime(path, (now - hours * 3600,) * 2)
    newest = blobs.get(STORAGE, s3_uri, made[3])
    assert sorted(cache.iterdir()) == sorted([paths[0], newest])
    blobs.trim(cache, 0)
    assert sorted(cache.iterdir()) == sorted([paths[0], newest])


def test_no_cache_limit_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blobs.cache_limit() == 50 * 1024**3
    monkeypatch.setenv("MMRAY_CACHE_SIZE", "1.5GiB")
    assert blobs.cache_limit() == 3 * 1024**3 // 2
    monkeypatch.setenv("MMRAY_CACHE_SIZE", "much")
    with pytest.raises(SpecError, match="MMRAY_CACHE_SIZE: 'much' is no size"):
        blobs.cache_limit()


def test_two_processes_fetch_at_once(s3_uri: str, tmp_path: Path, cache: Path) -> None:
    local = written(tmp_path, 300_000)
    file = blobs.put(STORAGE, local, s3_uri, "a")
    code = f"""
from mmray.storage import blobs
from mmray.storage.blobs import File
from mmray.storage import Storage
print(blobs.get(Storage(), {s3_uri!r}, File({file.path!r}, {file.bytes}, {file.sha256!r})))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert said == {str(path) for path in cache.iterdir()}


def test_of_several_one_fetches(
    s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of one machine begin at once."""
    file = blobs.put(STORAGE, written(tmp_path, 300_000), s3_uri, "a")
    download, calls = blobs._download, []

    def counted(*asked: Any) -> None:
        calls.append(asked)
        time.sleep(0.05)
        download(*asked)

    monkeypatch.setattr(blobs, "_download", counted)
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: blobs.get(STORAGE, s3_uri, file), range(4)))
    assert len(paths) == len(calls) == 1


def test_files_are_laid_out_as_a_folder(root: str, tmp_path: Path) -> None:
    made = [blobs.put(STORAGE, written(tmp_path, seed=n), root, f"a/{n}") for n in range(2)]
    for _ in range(2):  # again over what is there
        blobs.lay_out(STORAGE, root, made, tmp_path / "folder")
    for n in range(2):
        found = (tmp_path / "folder" / "a" / str(n)).read_bytes()
        assert found == written(tmp_path, seed=n).read_bytes()
    outside = replace(made[0], path="../outside")
    with pytest.raises(RefusedError, match="no file below it"):
        blobs.lay_out(STORAGE, root, [outside], tmp_path / "folder")
    assert not (tmp_path / "outside").exists()


def test_scratch_is_removed() -> None:
    with pytest.raises(ZeroDivisionError), blobs.scratch() as folder:
        (folder / "x").write_text("x")
        raise ZeroDivisionError
    assert not folder.exists()


def test_reading_a_manifest_loads_no_faiss() -> None:
    code = """
import sys
import mmray.index.manifest, mmray.storage.blobs
print(sorted({"faiss", "duckdb", "torch", "ray", "pyarrow"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
