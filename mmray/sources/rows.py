"""From a row's values to a sample: what Parquet rows and JSON lines share.

A value that is null or a blank text is an absent modality; one that is present and wrong makes the
row an error. Uris are only noted here: `links` fetches them.
"""

from binascii import a2b_base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from mmray.errors import BadSample, SampleError
from mmray.sources.assemble import MAX_DEPTH, is_deep, whole
from mmray.sources.fragment import Sample, Shard

DEFAULT_COLUMNS = {"image": "image", "text": "caption", "audio": "audio", "video": "video"}
"""Which columns hold the modalities where the spec names none."""


@dataclass(slots=True)
class Row:
    """A row on its way to a sample; `links` are the modalities whose bytes are still elsewhere."""

    place: int
    """Where a fragment may start, before this row."""
    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    error: SampleError | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the modalities that are here."""
        return sum(map(len, self.members.values()))


def error_row(place: int, key: str, error_type: str, message: str) -> Row:
    """A row that is an error."""
    return Row(place, key, error=SampleError("read", error_type, message[:500]))


def fill(row: Row, values: Mapping[str, Any], metadata: dict[str, Any], limit: int) -> Row:
    """`row` with its values by modality: bytes, uris, a text; None for what is absent.

    `limit` is the most bytes of one modality. A value that is a BadSample is raised. What is wrong
    becomes the row's error.
    """
    try:
        for modality, value in values.items():
            if isinstance(value, BadSample):
                raise value
            if value is None:
                continue
            if modality == "text":
                _take_text(row, value, limit)
            else:
                _take_media(row, modality, value, limit)
        for name, value in metadata.items():
            if isinstance(value, BadSample):
                raise value
            if isinstance(value, dict | list) and is_deep(value):
                raise BadSample("BadMetadata", f"{name!r} is nested over {MAX_DEPTH} levels deep")
        if not row.members and not row.links:
            raise BadSample("NoModality", f"it has no {', '.join(values) or 'modality'}")
        row.metadata = metadata
        if "text" in row.members:
            row.metadata["caption"] = row.members["text"].decode()
    except BadSample as error:
        return error_row(row.place, row.key, error.error_type, error.message)
    return row


def to_sample(shard: Shard, row: Row) -> Sample:
    """The sample of a row whose links are fetched."""
    if row.error is not None:
        return Sample(shard.uri, row.key, shard.etag, error=row.error)
    return whole(shard.uri, row.key, shard.etag, row.members, row.metadata)


def decode_base64(text: str) -> bytes:
    """Strict base64 of the standard alphabet. Raises BadSample BadBase64."""
    try:
        return a2b_base64(text, strict_mode=True)
    except ValueError as error:  # binascii's own is one; so is that of characters outside of ASCII
        raise BadSample("BadBase64", f"not base64: {error}") from error


def data_uri(text: str) -> bytes:
    """The bytes of a `data:` uri (RFC 2397). Raises BadSample: BadDataUri, BadBase64."""
    head, comma, data = text.partition(",")
    if not comma:
        raise BadSample("BadDataUri", f"a data: uri without a comma: {text:.40}")
    if head.lower().endswith(";base64"):
        # In a uri `+`, `/` and `=` may be percent-encoded.
        return decode_base64(unquote_to_bytes(data).decode("latin-1") if "%" in data else data)
    return unquote_to_bytes(data)


def _take_text(row: Row, value: Any, limit: int) -> None:
    try:
        if isinstance(value, bytes):
            value = value.decode("utf-8-sig")
        if not isinstance(value, str):
            raise BadSample("WrongType", f"the text is {value!r:.80}, which is no text")
        data = value.removeprefix("\ufeff").strip().encode()
    except UnicodeError as error:
        raise BadSample("BadText", f"the text is not UTF-8: {error}") from error
    if len(data) > limit:
        raise BadSample("OversizedMember", f"the text has {len(data):,} bytes, over {limit:,}")
    if data:
        row.members["text"] = data


def _take_media(row: Row, modality: str, value: Any, limit: int) -> None:
    if isinstance(value, str) and value[:5].lower() == "data:":
        value = data_uri(value)
    if isinstance(value, str):
        row.links[modality] = value
    elif not isinstance(value, bytes):
        raise BadSample("WrongType", f"the {modality} is {value!r:.80}, not a text")
    elif len(value) > limit:
        words = f"the {modality} has {len(value):,} bytes, over {limit:,}"
        raise BadSample("OversizedMember", words)
    else:
        row.members[modality] = value
