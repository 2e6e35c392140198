"""Small real datasets: pictures drawn from a seed, tars that hold them, and tars gone wrong.

Everything is a pure function of its arguments, so two calls give the same bytes and etags.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "grey", "white")
SHAPES = ("disc", "square", "stripes", "ramp")

Member = tuple[str, bytes]


def pixels(seed: int, size: tuple[int, int] = (64, 48)) -> NDArray[np.uint8]:
    """A smooth picture unlike that of any other seed; `size` is (width, height), result HxWx3."""
    random = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    channels = []
    for _ in range(3):
        fx, fy, phase, base = random.uniform((1, 1, 0, 60), (7, 7, 6.3, 195))
        channels.append(base + 60 * np.sin(fx * x * 6.3 + fy * y * 6.3 + phase))
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


def picture(
    seed: int, size: tuple[int, int] = (64, 48), format: str = "JPEG", **save: Any
) -> bytes:
    """The encoded picture of `seed`."""
    return encoded(Image.fromarray(pixels(seed, size)), format, **save)


def encoded(image: Image.Image, format: str, **save: Any) -> bytes:
    """`image` as a file of `format`."""
    out = io.BytesIO()
    image.save(out, format, **save)
    return out.getvalue()


def caption(seed: int) -> str:
    """A caption that differs from seed to seed, in length too."""
    words = [COLOURS[seed % 8], SHAPES[seed // 8 % 4], "number", str(seed)]
    return "a " + " ".join(words + ["of", "many"] * (seed % 5))


def members(key: str, seed: int, **options: Any) -> list[Member]:
    """One sample's members: picture, caption and metadata, as (name, bytes)."""
    format = options.pop("format", "JPEG")
    ext = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[format]
    metadata = {"category": SHAPES[seed % 4], "number": seed, "caption": caption(seed)}
    return [
        (f"{key}.{ext}", picture(seed, format=format, **options)),
        (f"{key}.txt", caption(seed).encode()),
        (f"{key}.json", json.dumps(metadata, sort_keys=True).encode()),
    ]


def tar(entries: Iterable[Member | tarfile.TarInfo], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of (name, bytes) pairs and of ready-made `TarInfo`s without data (links, devices)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            name, data = entry
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sample_tar(count: int, *, first: int = 0, prefix: str = "", **options: Any) -> bytes:
    """A tar of `count` samples; keys are `{prefix}{seed:06d}` from seed `first`."""
    seeds = range(first, first + count)
    return tar(m for seed in seeds for m in members(f"{prefix}{seed:06d}", seed, **options))


def sample_shards(shards: int, per_shard: int, **options: Any) -> dict[str, bytes]:
    """Tars of distinct samples: file name -> bytes, `00000.tar` and up."""
    return {
        f"{i:05d}.tar": sample_tar(per_shard, first=i * per_shard, **options) for i in range(shards)
    }


def sample_files(count: int, *, first: int = 0, **options: Any) -> dict[str, bytes]:
    """Raw files with sidecars: relative path -> bytes, in two folders."""
    return {
        name: data
        for seed in range(first, first + count)
        for name, data in members(f"{'ab'[seed % 2]}/{seed:06d}", seed, **options)
    }


def gzipped(data: bytes) -> bytes:
    """`data` as gzip, without a time stamp."""
    return gzip.compress(data, mtime=0)


def link(name: str, target: str, *, hard: bool = False) -> tarfile.TarInfo:
    """A link member."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
    info.linkname = target
    return info


def special(name: str, kind: bytes = tarfile.CHRTYPE) -> tarfile.TarInfo:
    """A device, a fifo or a folder member (`tarfile.CHRTYPE`, `FIFOTYPE`, `DIRTYPE` ...)."""
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


def cut_in_member(data: bytes, name: str) -> bytes:
    """`data` (a plain tar) ending in the middle of member `name`."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        info = archive.getmember(name)
    return data[: info.offset_data + info.size // 2]


def with_garbage_header(data: bytes, name: str) -> bytes:
    """`data` (a plain tar) with the header of member `name` overwritten."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        offset = archive.getmember(name).offset
    return data[:offset] + b"\xde\xad\xbe\xef" * 128 + data[offset + 512 :]


def bomb(side: int = 14_000) -> bytes:
    """A small PNG that decodes to `side` x `side` pixels."""
    return encoded(Image.new("1", (side, side)), "PNG", optimize=False)


def bad_images() -> dict[str, bytes]:
    """Name -> bytes of members that look like pictures and can't be used."""
    jpeg = picture(1)
    return {
        "truncated": jpeg[: len(jpeg) // 2],
        "zero": b"",
        "html": b"<html><body>404 Not Found</body></html>",
        "text": b"just words",
        "noise": np.random.default_rng(0).bytes(2_000),
        "magic_only": jpeg[:4],
        "bomb": bomb(),
    }


def odd_images() -> dict[str, bytes]:
    """Name -> bytes of pictures in unusual but valid forms."""
    rgb = Image.fromarray(pixels(3))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(np.uint8(np.indices((48, 64)).sum(0) % 256)))
    deep = np.linspace(0, 65_535, 64 * 48, dtype=np.uint16).reshape(48, 64)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    frames = [Image.fromarray(pixels(seed)) for seed in (3, 4, 5)]
    return {
        "cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "grey": encoded(rgb.convert("L"), "JPEG"),
        "grey16": encoded(Image.fromarray(deep), "PNG"),
        "palette": encoded(rgb.quantize(32), "PNG"),
        "rgba": encoded(alpha, "PNG"),
        "one_bit": encoded(rgb.convert("1"), "PNG"),
        "animated": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "exif": encoded(rgb, "JPEG", exif=rotated),
        "mislabelled": encoded(rgb, "PNG"),  # a PNG that its member's name calls .jpg
        "webp": encoded(rgb, "WEBP"),
        "tiff": encoded(rgb, "TIFF"),
    }


def put(uri: str, files: Mapping[str, bytes], client: Any) -> None:
    """Writes files under an `s3://bucket/prefix` with a boto3 client."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    for name, data in files.items():
        client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)
