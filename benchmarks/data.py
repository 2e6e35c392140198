"""Real photographs, cut to a web-like mix, and the tars that hold them.

Everything is drawn from seeds out of one Debian package and kept in the cache folder, so that two
machines measure the same pictures; a folder that exists is whole, and is used as it is.
"""

from __future__ import annotations

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
from pathlib import Path

from PIL import Image

from benchmarks.texts import mixed_captions

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
