"""From the files of one sample to the sample: which extension means what, metadata, the hash.

Sources of every kind come through here, so that a sample is the same in a tar and in a folder.
"""

import hashlib
import json
from typing import Any

from mmray.errors import BadSample
from mmray.sources.fragment import Sample

MODALITIES = ("image", "text", "audio", "video")

_EXTENSIONS = {
    "image": "jpg jpeg png webp gif bmp tif tiff ppm avif jfif",
    "text": "txt caption text",
    "audio": "wav flac ogg mp3 m4a opus",
    "video": "mp4 webm mkv mov avi",
    "json": "json",
}
KINDS = {ext: kind for kind, every in _EXTENSIONS.items() for ext in every.split()}
"""Last suffix, lower-cased, to a modality or "json" (metadata)."""

MAX_DEPTH = 64
"""Lists and objects within each other, in metadata. Python's own limit depends on who asks."""


def assemble(uri: str, key: str, etag: str, raw: dict[str, bytes]) -> Sample:
    """The sample whose files are `raw`: bytes by modality, and "json" for metadata.

    Text is UTF-8 without byte-order mark and surrounding space; it becomes `metadata["caption"]`.
    Without a text file the metadata's "caption" is the text. Raises BadSample of type BadMetadata,
    BadText or NoModality.
    """
    members = {name: raw[name] for name in MODALITIES if name in raw}
    metadata = _metadata(raw["json"]) if "json" in raw else {}
    if "text" in members:
        metadata["caption"] = _text(members["text"])
    caption = metadata.get("caption")
    if isinstance(caption, str) and ("text" in members or caption.strip()):
        members["text"] = caption.strip().encode()
    if not members:
        raise BadSample("NoModality", "it has metadata but no image, text, audio or video")
    return whole(uri, key, etag, members, metadata)


def whole(
    uri: str, key: str, etag: str, members: dict[str, bytes], metadata: dict[str, Any]
) -> Sample:
    """The sample of these parts, with its content hash."""
    return Sample(uri, key, etag, members, metadata, content_hash(members, metadata))


def content_hash(members: dict[str, bytes], metadata: dict[str, Any]) -> str:
    """32 hex over modality bytes and metadata; equal content has equal hashes."""
    hashed = hashlib.blake2b(digest_size=16)
    for name in MODALITIES:
        if name in members:
            # With its length each part ends where it ends: no two samples run together alike.
            hashed.update(f"{name}:{len(members[name])}:".encode())
            hashed.update(members[name])
    if metadata:
        hashed.update(json.dumps(metadata, sort_keys=True).encode())
    return hashed.hexdigest()


def is_deep(value: Any) -> bool:
    """Whether lists and objects lie more than `MAX_DEPTH` within each other."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            each
            for one in level
            for each in (one.values() if isinstance(one, dict) else one)
            if isinstance(each, dict | list)
        ]
        if not level:
            return False
    return True


def _metadata(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
        # An escaped half of a surrogate pair is legal JSON and no legal text.
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise BadSample("BadMetadata", "it is nested too deep") from error
    except ValueError as error:
        raise BadSample("BadMetadata", f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadSample("BadMetadata", f"a JSON object is needed, not {type(found).__name__}")
    if is_deep(found):
        raise BadSample("BadMetadata", f"it is nested over {MAX_DEPTH} levels deep")
    return found


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSample("BadText", f"not UTF-8: {error}") from error
