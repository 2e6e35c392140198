"""Pictures that are odd or bad, and what is no media at all: name -> bytes, reason, words.

The reason is a pattern of error types, empty for what is good.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from tests import media, shards
from tests.ingest import Data

Case = tuple[Data, str, str]

PIXELS = 1_000_000
"""The limit on pictures and frames under which the cases stand."""
SECONDS = 30.0

OTHERS: dict[str, bytes] = {
    "nothing": b"",
    "one byte": b"\x00",
    "html": b"<html><body>404 Not Found</body></html>",
    "words": b"just words",
    "utf-16": "a text of some words".encode("utf-16"),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "xml": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF\n",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nquit\n",
    "mvg": b"push graphic-context\nimage over 0,0 0,0 'https://127.0.0.1/x'\n",
    "elf": b"\x7fELF\x02\x01\x01" + bytes(57),
    "exe": b"MZ\x90\x00" + bytes(60),
    "script": b"#!/bin/sh\ntouch /tmp/x\n",
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "m3u8": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile /etc/hostname\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=audio 9 RTP/AVP 0\n",
    "dash": b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
    "gzip": gzip.compress(b"words", mtime=0),
    "tar": shards.tar([("a.jpg", b"1")]),
    "zeros": bytes(5_000),
    "noise": np.random.default_rng(5).bytes(3_000),
}
"""What is no picture, no sound and no film."""


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.jpg", shards.picture(1))
    return out.getvalue()


def plain(mode: str, size: tuple[int, int] = (20, 16), format: str = "PNG", **save: Any) -> bytes:
    image = Image.fromarray(shards.pixels(3, size))
    return shards.encoded(image.convert(mode), format, **save)


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8) -> bytes:
    """A PNG of grey by hand."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        check = zlib.crc32(name + body)
        out += struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)
    return out


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header declares another size."""
    data = bytearray(shards.picture(1))
    at = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, height, width)
    return bytes(data)


def with_exif(body: bytes) -> bytes:
    return shards.encoded(Image.fromarray(shards.pixels(3)), "JPEG", exif=b"Exif\0\0" + body)


def with_noise_for_exif(kind: str, exif: bytes) -> bytes:
    """Good pixels. In a JPEG that says its resolution Pillow itself doesn't look at EXIF."""
    image = Image.fromarray(shards.pixels(3))
    if kind == "PNG":
        data = shards.encoded(image, kind)
        chunk = b"eXIf" + exif
        sums = struct.pack(">I", zlib.crc32(chunk))
        return data[:33] + struct.pack(">I", len(exif)) + chunk + sums + data[33:]
    extra = {"dpi": (72, 72)} if kind == "JPEG" else {}
    return shards.encoded(image, kind, exif=b"Exif\0\0" + exif, **extra)


def turned(orientation: int) -> bytes:
    entry = struct.pack("<HHII", 0x0112, 3, 1, orientation)
    return with_exif(b"II*\0\x08\0\0\0\1\0" + entry + bytes(4))


def animated(format: str, frames: int = 3, side: int = 24) -> bytes:
    images = [Image.fromarray(shards.pixels(seed, (side, side))) for seed in range(frames)]
    return shards.encoded(images[0], format, save_all=True, append_images=images[1:])


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "a" * (8 << 20), zip=True)
    return shards.encoded(Image.fromarray(shards.pixels(3)), "PNG", pnginfo=info)


def see_through_palette() -> bytes:
    image = Image.fromarray(shards.pixels(3)).quantize(16)
    return shards.encoded(image, "PNG", transparency=bytes(range(0, 256, 16)))


def deep(values: np.ndarray, format: str) -> bytes:
    return shards.encoded(Image.fromarray(values), format)


BAD, BOMB = "UnreadableImage", "DecompressionBomb"
JPEG, PNG = shards.picture(1), shards.picture(1, format="PNG")
RAMP = np.linspace(0, 65_535, 320).reshape(16, 20)

IMAGES: dict[str, Case] = {
    "1x1": (lambda: plain("RGB", (1, 1)), "", ""),
    "1x20000": (lambda: plain("RGB", (1, 20_000)), "", ""),
    "20000x1": (lambda: plain("RGB", (20_000, 1), "JPEG"), "", ""),
    "1x20000 WEBP": (lambda: plain("RGB", (1, 16_000), "WEBP"), "", ""),
    "CMYK": (lambda: plain("CMYK", format="JPEG"), "", ""),
    "grey": (lambda: plain("L", format="JPEG"), "", ""),
    "progressive": (lambda: plain("RGB", format="JPEG", progressive=True), "", ""),
    "16-bit grey": (lambda: deep(RAMP.astype(np.uint16), "PNG"), "", ""),
    "1-bit": (lambda: plain("1"), "", ""),
    "1-bit TIFF": (lambda: plain("1", format="TIFF", compression="group4"), "", ""),
    "grey with alpha": (lambda: plain("LA"), "", ""),
    "all transparent": (lambda: shards.encoded(Image.new("RGBA", (9, 9)), "PNG"), "", ""),
    "a palette": (lambda: plain("P"), "", ""),
    "a palette with transparency": (see_through_palette, "", ""),
    "an animated GIF": (lambda: animated("GIF"), "", ""),
    "an animated WEBP": (lambda: animated("WEBP"), "", ""),
    "an animated PNG": (lambda: animated("PNG"), "", ""),
    "pages of a TIFF": (lambda: animated("TIFF"), "", ""),
    "Lab": (lambda: plain("LAB", format="TIFF"), "", ""),
    "floats": (lambda: deep(RAMP.astype(np.float32), "TIFF"), "", ""),
    "floats that are not finite": (
        lambda: deep(np.full((4, 4), np.nan, np.float32), "TIFF"), BAD, "not finite"
    ),
    "a PNG called JPEG": (PNG, "", ""),
    "a tail": (JPEG + b"<html>tail</html>", "", ""),
    "EXIF turned": (lambda: turned(6), "", ""),
    "EXIF turned by 9": (lambda: turned(9), "", ""),
    "EXIF of nothing": (lambda: with_exif(b""), "", ""),
    "EXIF torn": (lambda: with_exif(b"II*\0\x08\0\0\0\xff\xff\x12\1\3"), "", ""),
    "EXIF that points to itself": (
        lambda: with_exif(b"II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0"), "", ""
    ),
    "EXIF of noise": (lambda: with_exif(OTHERS["noise"][:400]), "", ""),
    "EXIF of zeros": (lambda: with_noise_for_exif("JPEG", bytes(40)), "", ""),
    "EXIF of garbage": (lambda: with_noise_for_exif("JPEG", b"garbage!garbage!"), "", ""),
    "EXIF of a mark alone": (lambda: with_noise_for_exif("JPEG", b"II*\0"), "", ""),
    "a PNG's EXIF of garbage": (lambda: with_noise_for_exif("PNG", b"garbage!garbage!"), "", ""),
    "a WebP's EXIF of garbage": (lambda: with_noise_for_exif("WEBP", b"garbage!"), "", ""),
    "a torn PNG with EXIF of garbage": (
        lambda: with_noise_for_exif("PNG", b"garbage!garbage!")[:-60],
        BAD,
        ".",
    ),
    "half a JPEG": (JPEG[: len(JPEG) // 2], BAD, "bytes"),
    "half a PNG": (PNG[: len(PNG) // 2], BAD, "bytes"),
    "half a GIF": (lambda: animated("GIF", 1)[:900], BAD, "bytes"),
    "half a WEBP": (lambda: animated("WEBP", 1)[:200], BAD, "bytes"),
    "half a TIFF": (lambda: plain("RGB", format="TIFF")[:300], BAD, "bytes"),
    "a JPEG's first bytes": (JPEG[:4], BAD, "bytes|starts"),
    "a PNG's first bytes": (PNG[:8], BAD, "bytes|starts"),
    "a PNG without pixels": (png(5, 5), BAD, "bytes"),
    "a PNG of torn pixels": (png(5, 5, (b"IDAT", b"no zlib")), BAD, "bytes"),
    "a PNG of 0 pixels": (png(0, 5), BAD, "."),
    "a PNG of no depth": (png(5, 5, depth=7), BAD, "."),
    "a PPM of 0 pixels": (b"P6 0 0 255\n", BAD, "."),
    "a PPM of words": (b"P6 two three 255\n", BAD, "."),
    "a BMP's first bytes": (b"BM" + bytes(10), BAD, "."),
    "a HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), BAD, "not an image"),
    "a film": (lambda: media.film(2), BAD, "not an image"),
    "a sound": (lambda: media.sound(0.1), BAD, "not an image"),
    "over the limit": (lambda: plain("RGB", (1_001, 1_000), "JPEG"), BOMB, "1001x1000"),
    "declared 60000x60000 PNG": (png(60_000, 60_000), BOMB, "60000x60000"),
    "declared 2**31 PNG": (png(2**31 - 1, 2**31 - 1), BOMB, "limits.pixels"),
    "declared 65500x65500 JPEG": (lambda: jpeg_of(65_500, 65_500), BOMB, "65500x65500"),
    "declared larger JPEG": (lambda: jpeg_of(640, 480), "|" + BAD, ""),  # filled with grey
    "declared 65535x65535 GIF": (
        lambda: animated("GIF")[:6] + b"\xff" * 4 + animated("GIF")[10:], BOMB, "65535x65535"
    ),
    "frames over the limit": (lambda: animated("GIF", 30, 200), BOMB, "30 frames"),
    "a 14,000x14,000 PNG": (shards.bomb, BOMB, "14000x14000"),
    "a text of 8 MB in a PNG": (text_bomb, BOMB, "bytes"),
}  # fmt: skip
