"""The pictures of the demo: the stamps of Tux Paint from Debian, or a folder of the user's own.

785 cut-out pictures with captions written by people, nearly all of them spoken too, in a Debian
package (GPL-2), kept in a cache outside the tree: nothing of it is part of mmray.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmray.errors import RefusedError

PACKAGE = "tuxpaint-stamps-default"
STAMPS_INSIDE = "usr/share/tuxpaint/stamps"
MIRRORED = ("_mirror", "_flip")
IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
SOUNDS = ("ogg", "wav", "flac", "mp3", "m4a", "opus")
"""The first of these that stands beside a picture is its sound."""
LANGUAGES = ("en", "fr")
"""Of speech, the best first; then any other, by its name."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One sample of the demo: where its bytes lie, its words, its metadata as JSON bytes, and where
    its sound lies.

    `key` is the path in the folder without its extension, `category` the folders of that path.
    """

    key: str
    path: Path
    caption: str | None
    category: str
    metadata: bytes
    sound: Path | None = None

    @property
    def extension(self) -> str:
        """Of the file, lower-cased, without the dot."""
        return self.path.suffix[1:].lower()

    def read(self) -> bytes:
        """The encoded picture; transparency is kept, decoding pastes it on white."""
        return self.path.read_bytes()


def cache_folder() -> Path:
    """Where downloads are kept: `$MMRAY_CACHE`, else `~/.cache/mmray`."""
    return Path(os.environ.get("MMRAY_CACHE") or Path.home() / ".cache" / "mmray")


def fetch_stamps(cache: Path | None = None) -> Path:
    """Folder of the stamps, downloaded (161 MB) where the cache doesn't hold them.

    Raises `RefusedError`, naming `--data DIR`, where the Debian package can't be had.
    """
    cache = cache or cache_folder()
    folder = cache / PACKAGE / STAMPS_INSIDE
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="partial-") as name:
        scratch = Path(name)
        package = _download(scratch)
        unpacked = scratch / "unpacked"
        _run(["dpkg-deb", "-x", str(package), str(unpacked)], scratch)
        try:
            unpacked.rename(cache / PACKAGE)  # its existence means that it is whole
        except OSError:
            if not folder.is_dir():  # else another program was first
                raise
    return folder


def _download(scratch: Path) -> Path:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise _unavailable("this system has no apt-get")
    try:
        _run(["apt-get", "download", "-q", PACKAGE], scratch)
    except RefusedError:
        if os.geteuid() != 0:
            raise
        _run(["apt-get", "update", "-q"], scratch)  # a new machine has no package lists yet
        _run(["apt-get", "download", "-q", PACKAGE], scratch)
    found = sorted(scratch.glob(f"{PACKAGE}_*.deb"))
    if not found:
        raise _unavailable("apt-get downloaded nothing")
    return found[-1]


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise _unavailable(f"`{' '.join(command[:2])}` said: {words[-1] if words else 'nothing'}")


def _unavailable(reason: str) -> RefusedError:
    return RefusedError(
        f"the Debian package {PACKAGE} can't be had: {reason}. "
        "Give a folder of pictures of your own instead: --data DIR "
        "(captions and sounds stand beside them, X.txt and X.ogg for X.jpg)"
    )


def stamps(folder: Path) -> Iterator[Picture]:
    """The stamps in `folder`, sorted by key; mirrored and flipped variants are left out."""
    spoken = _spoken(folder.rglob("*_desc*.ogg"))
    for path in _pictures(folder, frozenset({"png"})):
        words = path.with_suffix(".txt")
        if path.stem.endswith(MIRRORED) or not words.exists():
            continue
        # The first line is the English caption, those after it `LANG.utf8=caption`.
        first = words.read_bytes().split(b"\n", 1)[0]
        caption = first.decode("utf-8", errors="replace").strip()
        language, sound = spoken.get(path.with_suffix(""), (None, None))
        metadata = json.dumps({"speech_language": language}).encode() if language else b""
        yield _picture(folder, path, caption, metadata, sound=sound)


def _spoken(paths: Iterable[Path]) -> dict[Path, tuple[str, Path]]:
    """A stamp's path without its extension, to the language and file of its spoken description:
    `X_desc.ogg` in English, else `X_desc_LANG.ogg`."""
    found: dict[Path, dict[str, Path]] = {}
    for path in paths:
        stem, _, tail = path.stem.rpartition("_desc")
        if path.is_file() and (not tail or tail.startswith("_")):
            found.setdefault(path.with_name(stem), {})[tail[1:] or "en"] = path
    return {stamp: min(each.items(), key=_preference) for stamp, each in found.items()}


def _preference(spoken: tuple[str, Path]) -> tuple[int, str]:
    language = spoken[0]
    place = LANGUAGES.index(language) if language in LANGUAGES else len(LANGUAGES)
    return place, language


def user_samples(folder: Path) -> Iterator[Picture]:
    """The pictures in `folder` and below, with the words, metadata and sounds that stand beside
    them.

    `X.txt` is the caption of `X.jpg`; `X.json` holds its metadata, its `caption` where there is no
    text; `X.ogg` and the like is its sound. Raises `RefusedError` where the folder isn't there or
    holds no picture.
    """
    if not folder.is_dir():
        raise RefusedError(f"--data {folder}: no such folder")
    sounds = _sounds(folder)
    taken: set[str] = set()
    for path in _pictures(folder, IMAGES):
        words, sidecar = path.with_suffix(".txt"), path.with_suffix(".json")
        caption = words.read_text("utf-8", errors="replace").strip() if words.exists() else None
        metadata = sidecar.read_bytes() if sidecar.exists() else b""
        sound = sounds.get(path.with_suffix(""))
        picture = _picture(folder, path, caption or None, metadata, sound=sound, taken=taken)
        taken.add(picture.key)
        yield picture
    if not taken:
        raise RefusedError(f"--data {folder}: no pictures ({', '.join(sorted(IMAGES))})")


def _sounds(folder: Path) -> dict[Path, Path]:
    """The path of a sound without its extension, to the sound; of several, by `SOUNDS`."""
    found: dict[Path, Path] = {}
    for extension in reversed(SOUNDS):
        for path in _pictures(folder, frozenset({extension})):
            found[path.with_suffix("")] = path
    return found


def _pictures(folder: Path, extensions: frozenset[str]) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix[1:].lower() in extensions)
    return sorted(path for path in found if path.is_file())


def _picture(
    folder: Path,
    path: Path,
    caption: str | None,
    metadata: bytes,
    *,
    sound: Path | None,
    taken: set[str] | None = None,
) -> Picture:
    place = path.relative_to(folder)
    category = "" if place.parent == Path() else place.parent.as_posix()
    name = place.stem.replace(".", "_")  # a tar key ends at the first dot of its name
    key = unused(f"{category}/{name}" if category else name, taken or set())
    metadata = _with_category(metadata, category, caption)
    return Picture(key, path, caption, category, metadata, sound)


def unused(key: str, taken: set[str]) -> str:
    """`key`, or `key-2` and so on where a file of another extension took it."""
    candidate, count = key, 1
    while candidate in taken:
        count += 1
        candidate = f"{key}-{count}"
    return candidate


def _with_category(metadata: bytes, category: str, caption: str | None) -> bytes:
    """Metadata with the category filled in; what isn't a JSON object is left for the job."""
    try:
        fields = json.loads(metadata or b"{}")
    except ValueError:
        return metadata
    if not isinstance(fields, dict):
        return metadata
    fields.setdefault("category", category)
    if caption is not None:
        fields.setdefault("caption", caption)
    return json.dumps(fields, ensure_ascii=False, sort_keys=True).encode()
