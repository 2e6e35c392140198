"""JSON lines, plain or gzipped: a line is a sample, its number its key.

Lines are independent, so a broken one is an error sample and reading goes on after it. A fragment
begins right after the newline of the sample before: blank lines belong to the sample that follows.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

from mmray.errors import BadSample, RefusedError
from mmray.sources.cut import Cut, cut_fragments
from mmray.sources.fragment import Fragment, Shard, object_shard
from mmray.sources.links import Allowed, Links
from mmray.sources.rows import DEFAULT_COLUMNS, Row, decode_base64, error_row, fill
from mmray.sources.stream import Broken, ByteStream, GzipChunks, RangeChunks
from mmray.sources.webdataset import GZIP_EXTENT
from mmray.specs.common import JsonlSource, Limits
from mmray.storage import Storage

PLAIN = (".jsonl", ".ndjson", ".json")
GZIPPED = tuple(ending + ".gz" for ending in PLAIN)
_OTHER = tuple(ending + packed for ending in PLAIN for packed in (".bz2", ".xz", ".zst", ".lz4"))

_BOM = b"\xef\xbb\xbf"
_COUNTED = 1024 * 1024
_HALVES = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_DIGITS = 308
"""Of a whole number: one digit more may be past what a float can hold."""


class JsonlReader:
    """Reads `.jsonl`, `.ndjson` and `.json`, and `.gz` of each; other objects are ignored."""

    sliced = False

    def __init__(
        self,
        spec: JsonlSource,
        storage: Storage,
        limits: Limits,
        cut: Cut,
        wanted: frozenset[str] | None,
    ) -> None:
        self._uri = spec.uri
        self._storage = storage
        self._limits = limits
        self._cut = cut
        self._allowed = Allowed.of(spec.allow, spec.allow_private)
        self._parser = _Parser(spec, wanted, limits.bytes)
        self.ignored = 0

    def shards(self, may_be_gone: Callable[[str], bool] | None = None) -> Iterator[Shard]:
        """One shard for each file; its units are bytes, uncompressed ones of a gzipped file."""
        found: list[Shard] = []
        self.ignored = 0
        for item in self._storage.expand(self._uri, may_be_gone):
            name = item.uri.lower()
            if name.endswith(_OTHER):
                raise RefusedError(f"{item.uri}: only plain and gzipped JSON lines can be read")
            if name.endswith(PLAIN):
                found.append(object_shard(item.uri, item.etag, item.size))
            elif name.endswith(GZIPPED):
                found.append(object_shard(item.uri, item.etag, GZIP_EXTENT))
            else:
                self.ignored += 1
        if not found:
            endings = ", ".join(PLAIN)
            raise RefusedError(f"{self._uri}: holds no {endings}, nor one of them with .gz")
        return iter(found)

    def covers(self, uri: str) -> bool:
        """Whether a file of this uri is, or was, one of this source's shards."""
        return uri.lower().endswith(PLAIN + GZIPPED) and self._storage.matcher(self._uri)(uri)

    def read(self, shard: Shard, start: int, stop: int, seen: set[str]) -> Iterator[Fragment]:
        """Streams the lines from `start`, the first byte of a line; gzip from its beginning."""
        # Samples that filters leave out are in no store, so keys that are there can't tell the
        # number of a line: newlines are counted instead, which takes no parsing.
        del seen
        links = Links(shard, self._storage, self._limits, self._allowed)
        with closing(links.items(self._rows(shard, start, stop))) as items:
            yield from cut_fragments(shard, start, stop, items, self._cut)

    def _rows(self, shard: Shard, start: int, stop: int) -> Generator[Row, None, None]:
        def fetch(first: int, end: int) -> bytes:
            return self._storage.read_range(shard.uri, first, end, shard.etag)

        gzipped = shard.uri.lower().endswith(GZIPPED)
        raw = RangeChunks(fetch, 0, GZIP_EXTENT if gzipped else min(stop, shard.size))
        stream = ByteStream(GzipChunks(raw) if gzipped else raw, 0)
        lines = _Lines(stream, self._limits.bytes)
        with closing(raw):
            try:
                lines.pass_over(start)
                yield from lines.rows(stop, stop >= shard.size, self._parser)
            except Broken as error:
                yield lines.broken(error)
            except (FileNotFoundError, PermissionError) as error:
                yield lines.broken(Broken("UnreadableShard", str(error)))


class _Lines:
    """One pass over the lines of a stream; `number` is that of the last line begun."""

    def __init__(self, stream: ByteStream, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._place = 0
        self._number = 0

    def pass_over(self, start: int) -> None:
        """Counts the lines before `start`. Raises Broken."""
        stream = self._stream
        while stream.pos < start:
            data = stream.read(min(_COUNTED, start - stream.pos))
            if not data:
                raise Broken("TruncatedShard", f"it ends at {stream.pos}, before {start}")
            self._number += data.count(b"\n")
        self._place = start

    def rows(self, stop: int, to_end: bool, parser: "_Parser") -> Iterator[Row]:
        """The rows up to `stop`; `to_end`: it is the shard's. Raises Broken."""
        stream = self._stream
        while to_end or stream.pos < stop:
            begin = stream.pos
            if begin >= GZIP_EXTENT:
                raise Broken("OversizedShard", f"it unpacks to {begin:,} bytes or more")
            line = stream.line(self._limit)
            if line == b"":
                return
            self._number += 1
            if line is not None and begin == 0:
                line = line.removeprefix(_BOM)
            if line is not None and (not line or line.isspace()) and not line.strip(b" \t\r\n"):
                continue
            place, self._place = self._place, stream.pos
            if line is None:
                words = (
                    f"line {self._number} has {stream.pos - begin:,} bytes, over {self._limit:,}"
                )
                yield error_row(place, str(self._number), "OversizedLine", words)
            else:
                yield parser.row(place, self._number, line)

    def broken(self, error: Broken) -> Row:
        """One error for all lines that can't be read, as the first of them."""
        number = self._number + 1
        words = f"from line {number} on: {error.message}"
        return error_row(self._place, str(number), error.error_type, words)


class _Parser:
    """From the bytes of a line to a row."""

    def __init__(self, spec: JsonlSource, wanted: frozenset[str] | None, limit: int) -> None:
        columns = spec.columns or DEFAULT_COLUMNS
        self._columns = {str(modality): name for modality, name in columns.items()}
        self._base64 = spec.encoding == "base64"
        self._wanted = wanted
        self._limit = limit

    def row(self, place: int, number: int, line: bytes) -> Row:
        """The row; what is wrong with the line is its error, with the line's number."""
        row = Row(place, str(number))
        try:
            found = parse_line(line)
            values = {m: self._value(m, found, name) for m, name in self._columns.items()}
            row = fill(row, values, self._metadata(found), self._limit)
        except BadSample as error:
            row = error_row(place, row.key, error.error_type, error.message)
        if row.error is not None:
            words = f"line {number}: {row.error.message}"
            row = error_row(place, row.key, row.error.type, words)
        return row

    def _value(self, modality: str, found: dict[str, Any], name: str) -> Any:
        value = dig(found, name)
        if modality != "text" and self._base64 and isinstance(value, str):
            return decode_base64(value)
        return value

    def _metadata(self, found: dict[str, Any]) -> dict[str, Any]:
        if self._wanted is not None:
            values = ((name, dig(found, name)) for name in self._wanted)
            return {name: value for name, value in values if value is not None}
        for modality, name in self._columns.items():
            if modality != "text":
                _drop(found, name)
        return found


def parse_line(line: bytes) -> dict[str, Any]:
    """The object that a line is. Raises BadSample: BadText, BadJson, DuplicateKey, NotAnObject."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise BadSample("BadText", f"not UTF-8: {error}") from error
    try:
        found = _DECODER.decode(text)
        if "\\" in text and _HALVES.search(text):
            # An escaped half of a surrogate pair is legal JSON and no legal text.
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadSample("BadText", "it holds half a surrogate pair") from error
    except json.JSONDecodeError as error:
        torn = "" if line.endswith(b"\n") else "; the file ends within this line"
        words = f"not JSON: {error.msg} at character {error.pos + 1}{torn}"
        raise BadSample("BadJson", words) from error
    except RecursionError as error:
        raise BadSample("BadJson", "it is nested too deep") from error
    if not isinstance(found, dict):
        words = f"a JSON object is needed, not {type(found).__name__}"
        raise BadSample("NotAnObject", words)
    return found


def dig(found: dict[str, Any], name: str) -> Any:
    """The value of a field, or of one within objects at `outer.inner`; None where there is none."""
    if name in found or "." not in name:
        return found.get(name)
    value: Any = found
    for part in name.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _drop(found: dict[str, Any], name: str) -> None:
    if name in found or "." not in name:
        found.pop(name, None)
        return
    path, _, leaf = name.rpartition(".")
    outer = dig(found, path)
    if isinstance(outer, dict):
        outer.pop(leaf, None)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise BadSample("DuplicateKey", f"the field {twice!r:.80} is there twice")
    return found


def _int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise BadSample("BadJson", f"a number of {len(digits):,} digits is too large")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise BadSample("BadJson", f"the number {digits:.40} is too large")
    return value


def _constant(name: str) -> float:
    raise BadSample("BadJson", f"{name} is no JSON number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_constant
)
