"""Parquet files and JSON lines of the samples that `tests/shards.py` draws.

Everything is a pure function of its arguments, so two calls give the same bytes.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.parquet import encryption

from mmray.sources import Fragment, Sample, Shard, Source
from tests import shards


def records(
    count: int, *, first: int = 0, size: tuple[int, int] = (16, 12)
) -> list[dict[str, Any]]:
    """Samples as rows: a picture's bytes, a caption, and metadata."""
    return [
        {
            "image": shards.picture(seed, size),
            "caption": shards.caption(seed),
            "category": shards.SHAPES[seed % 4],
            "number": seed,
        }
        for seed in range(first, first + count)
    ]


def parquet(table: pa.Table | list[dict[str, Any]], group: int = 4, **options: Any) -> bytes:
    """A Parquet file with row groups of `group` rows."""
    if isinstance(table, list):
        table = pa.Table.from_pylist(table)
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=group, **options)
    return out.getvalue()


class _Keys(encryption.KmsClient):
    """A key service that keeps nothing secret."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


def encrypted(table: pa.Table, column: str) -> bytes:
    """A Parquet file with a plain footer in which one column is encrypted."""
    out = io.BytesIO()
    how = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": [column]}, plaintext_footer=True, data_key_length_bits=128
    )
    factory = encryption.CryptoFactory(lambda _: _Keys())
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), how)
    with pq.ParquetWriter(out, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    return out.getvalue()


def line(row: dict[str, Any]) -> bytes:
    """A JSON line; bytes become base64."""
    said = {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in row.items()
    }
    return json.dumps(said, ensure_ascii=False).encode() + b"\n"


def jsonl(rows: Iterable[dict[str, Any]]) -> bytes:
    """JSON lines."""
    return b"".join(map(line, rows))


def assert_tiles(fragments: list[Fragment], shard: Shard, start: int, stop: int) -> None:
    """Rule 2 of every source: fragments tile `[start, stop)`, and none is empty."""
    places = [(f.span.start, f.span.stop) for f in fragments]
    assert places[0][0] == start
    assert places[-1][1] == stop
    assert all(a[1] == b[0] for a, b in itertools.pairwise(places))
    assert all((f.span.shard, f.span.version) == (shard.key, shard.version) for f in fragments)
    assert all(f.samples for f in fragments)


def samples(fragments: list[Fragment]) -> list[Sample]:
    """All samples; their ids are unique."""
    found = [sample for fragment in fragments for sample in fragment.samples]
    assert len({sample.id for sample in found}) == len(found)
    return found


def facts(fragments: list[Fragment]) -> list[tuple[str, str, str, str | None]]:
    """What must be the same wherever reading started."""
    return [
        (s.id, s.source_key, s.content_hash, s.error and s.error.type) for s in samples(fragments)
    ]


def result(found: list[Sample]) -> list[tuple[str, str | None]]:
    """Keys and error types."""
    return [(s.source_key, s.error and s.error.type) for s in found]


def read(reader: Source) -> list[Fragment]:
    """Reads a source's only shard as a whole."""
    [shard] = reader.shards()
    fragments = list(reader.read(shard, 0, shard.size, set()))
    assert_tiles(fragments, shard, 0, shard.size)
    return fragments


def assert_resumes(coarse: Source, fine: Source) -> int:
    """Reads from every place where a fragment of `fine` starts to every later one; how many."""
    [shard] = fine.shards()
    finest = list(fine.read(shard, 0, shard.size, set()))
    assert_tiles(finest, shard, 0, shard.size)
    for i, fragment in enumerate(finest):
        start = fragment.span.start
        seen = {s.source_key for s in samples(finest[:i])}
        before = set(seen)
        for j in range(i, len(finest)):
            stop = finest[j].span.stop
            part = list(coarse.read(shard, start, stop, seen))
            assert_tiles(part, shard, start, stop)
            assert facts(part) == facts(finest[i : j + 1])
        assert seen == before  # the caller's set is left alone
    whole = list(coarse.read(shard, 0, shard.size, set()))
    for i, fragment in enumerate(whole):
        again = list(coarse.read(shard, fragment.span.start, shard.size, set()))
        assert [f.span for f in again] == [f.span for f in whole[i:]]
    return len(finest)
