"""Parquet files as they should be, resuming at every row, and every kind of bad file and row."""

import datetime
import decimal
import io
import pickle
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmray.errors import RefusedError, ShardChanged, StorageError
from mmray.sources import Cut, Sample, open_source
from mmray.sources import parquet as module
from mmray.sources.parquet import ROWS, ParquetReader
from mmray.sources.rangefile import RangeFile
from mmray.specs.common import Limits, ParquetSource
from mmray.storage import Storage
from tests import rows, shards
from tests.conftest import TestServer

Columns = dict[str, Any]


def source(
    path: Path | str,
    cut: int = 3,
    limits: Limits | None = None,
    wanted: frozenset[str] | None = None,
    **options: Any,
) -> ParquetReader:
    spec = ParquetSource(kind="parquet", uri=str(path), **options)
    reader = open_source(spec, Storage(), limits or Limits(), Cut(rows=cut), wanted)
    assert isinstance(reader, ParquetReader)
    return reader


def write(folder: Path, data: bytes, name: str = "a.parquet") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def of(folder: Path, table: Any, group: int = 4, **options: Any) -> list[Sample]:
    """The samples of a table, of rows, or of a file's bytes."""
    data = table if isinstance(table, bytes) else rows.parquet(table, group)
    return rows.samples(rows.read(source(write(folder, data), **options)))


def message(sample: Sample) -> str:
    assert sample.error is not None
    return sample.error.message


def test_a_row_is_a_sample(tmp_path: Path) -> None:
    found = of(tmp_path, rows.records(10))
    assert [s.source_key for s in found] == [str(i) for i in range(10)]
    assert found[7].members == {
        "image": shards.picture(7, (16, 12)),
        "text": shards.caption(7).encode(),
    }
    assert found[7].metadata == {"caption": shards.caption(7), "category": "ramp", "number": 7}
    assert found[7].source_uri == str(tmp_path / "a.parquet")
    assert len({s.content_hash for s in found}) == 10


@pytest.mark.parametrize("group", [1, 2, 3, 5, 100])
def test_resume_at_every_row_gives_the_same(tmp_path: Path, group: int) -> None:
    path = write(tmp_path, rows.parquet(rows.records(8), group))
    assert rows.assert_resumes(source(path, 3), source(path, 1)) == 8


def test_fragments_never_cross_row_groups(tmp_path: Path) -> None:
    path = write(tmp_path, rows.parquet(rows.records(11), 5))
    for cut, expected in ((2, [0, 2, 4, 5, 7, 9, 10]), (5, [0, 5, 10]), (100, [0, 5, 10])):
        fragments = rows.read(source(path, cut))
        assert [f.span.start for f in fragments] == expected
        assert fragments[-1].span.stop == ROWS


def test_batches_and_buffers_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows.parquet(rows.records(40), 25)
    path = write(tmp_path, data)
    expected = rows.facts(rows.read(source(path)))
    monkeypatch.setattr(module, "BATCH_BYTES", 3000)
    assert rows.facts(rows.read(source(path))) == expected
    monkeypatch.setattr(module, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(module, "BUFFER", 512)
    assert rows.facts(rows.read(source(path))) == expected
    assert rows.assert_resumes(source(path, 9), source(path, 6)) == 8


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each request, as they come."""
    found: list[int] = []
    fetch = Storage.fetch

    def counting(self: Storage, uri: str, start: int, stop: int, etag: str) -> tuple[bytes, str]:
        data = fetch(self, uri, start, stop, etag)
        found.append(len(data[0]))
        return data

    monkeypatch.setattr(Storage, "fetch", counting)
    return found


def test_a_large_row_group_is_not_held(tmp_path: Path, requests: list[int]) -> None:
    chance = random.Random(0)
    table = pa.table({"image": [chance.randbytes(400_000) for _ in range(120)]})
    # A page can't be read in parts, and its rows are those that a writer writes at once.
    data = rows.parquet(table, 120, use_dictionary=False, write_batch_size=4)
    reader = source(write(tmp_path, data), 8)
    del table, data
    before = pa.total_allocated_bytes()
    peak = 0
    for fragment in reader.read(next(reader.shards()), 0, ROWS, set()):
        assert len(fragment.samples) == 8
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert max(requests) < 5_000_000
    assert peak < 60_000_000


def test_a_value_that_repeats_is_read_in_small_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary holds it once: its rows together are far larger than the file."""
    monkeypatch.setattr(module, "WORST_BYTES", 5_000_000)
    zeros = pa.array([0] * 2000, pa.int32())
    table = pa.table({"image": pa.DictionaryArray.from_arrays(zeros, [b"x" * 900_000])})
    path = write(tmp_path, rows.parquet(table, 2000, compression="none"))
    reader = source(path, 16)
    [shard] = reader.shards()
    tracemalloc.start()
    try:
        count = sum(len(f.samples) for f in reader.read(shard, 0, 300, set()))
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()
    assert count == 300


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.binary(4),
        pa.dictionary(pa.int32(), pa.binary()),
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        pa.struct([("path", pa.large_string()), ("other", pa.int8()), ("bytes", pa.binary())]),
        pa.struct([("bytes", pa.large_binary())]),
    ],
    ids=str,
)
def test_columns_of_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    raw = [b"abcd", None, b"efgh"]
    values: list[Any] = raw
    if pa.types.is_struct(kind):
        values = [{"bytes": raw[0]}, None, {"bytes": raw[2]}]
        if kind.get_field_index("path") >= 0:
            values[0]["path"] = "/not/to/be/read"
    table = pa.table({"image": pa.array(values, kind), "caption": ["x", "y", None]})
    found = of(tmp_path, table)
    assert [s.members.get("image") for s in found] == raw
    assert [s.members.get("text") for s in found] == [b"x", b"y", None]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        pa.struct([("bytes", pa.null()), ("path", pa.string())]),
        pa.struct([("path", pa.string())]),
    ],
    ids=str,
)
def test_columns_of_uris(tmp_path: Path, kind: pa.DataType) -> None:
    (tmp_path / "f.jpg").write_bytes(b"file")
    values: list[Any] = ["f.jpg", None, "data:,x"]
    if pa.types.is_struct(kind):
        values = [{"path": "f.jpg"}, None, {"path": "data:,x"}]
    found = of(tmp_path, pa.table({"image": pa.array(values, kind), "caption": ["x"] * 3}))
    assert [s.members.get("image") for s in found] == [b"file", None, b"x"]


def test_columns_within_structs(tmp_path: Path) -> None:
    inner = pa.struct([("jpg", pa.binary()), ("size", pa.int32())])
    kind = pa.struct([("photo", inner), ("title", pa.string())])
    values = [{"photo": {"jpg": b"1", "size": 5}, "title": "a"}, {"photo": None}, None]
    table = pa.table({"item": pa.array(values, kind), "a.b": ["x", "y", "z"], "n": [1, 2, 3]})
    columns = {"image": "item.photo.jpg", "text": "a.b"}
    wanted = frozenset({"item.title", "item.photo.size", "n", "none"})
    found = of(tmp_path, table, columns=columns, wanted=wanted)
    assert [s.members.get("image") for s in found] == [b"1", None, None]
    assert [s.members["text"] for s in found] == [b"x", b"y", b"z"]
    assert found[0].metadata == {"item.title": "a", "item.photo.size": 5, "n": 1, "caption": "x"}
    assert found[2].metadata == {"n": 3, "caption": "z"}


def test_metadata_is_what_json_can_say(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 2, 3, 4, 5, 6, 789000)
    values: dict[str, tuple[Any, pa.DataType, Any]] = {
        "i": (2**63 - 1, pa.int64(), 2**63 - 1),
        "u": (2**64 - 1, pa.uint64(), 2**64 - 1),
        "h": (0.5, pa.float16(), 0.5),
        "f": (1.25, pa.float32(), 1.25),
        "nan": (float("nan"), pa.float64(), None),
        "inf": (float("-inf"), pa.float64(), None),
        "b": (True, pa.bool_(), True),
        "s": ("ü", pa.dictionary(pa.int8(), pa.string()), "ü"),
        "day": (moment.date(), pa.date32(), "2024-02-03"),
        "at": (moment, pa.timestamp("ms"), "2024-02-03T04:05:06.789"),
        "ns": (1, pa.timestamp("ns"), "1970-01-01T00:00:00.000000001"),
        "utc": (0, pa.timestamp("ms", "Europe/Berlin"), "1970-01-01T00:00:00.000Z"),
        "time": (datetime.time(1, 2, 3), pa.time32("ms"), "01:02:03.000"),
        "took": (1500, pa.duration("ms"), 1.5),
        "price": (decimal.Decimal("0.00000010"), pa.decimal128(20, 8), "0.00000010"),
        "list": (["a", None], pa.list_(pa.string()), ["a", None]),
        "deep": (
            {"x": [1.5, float("nan")], "y": moment},
            pa.struct([("x", pa.list_(pa.float64())), ("y", pa.timestamp("us"))]),
            {"x": [1.5, None], "y": "2024-02-03T04:05:06.789000"},
        ),
        "map": ([("k", 1)], pa.map_(pa.string(), pa.int8()), [["k", 1]]),
        "null": (None, pa.null(), None),
    }
    table = pa.table({n: pa.array([value], kind) for n, (value, kind, _) in values.items()})
    table = table.append_column("caption", pa.array(["x"]))
    [sample] = of(tmp_path, table, wanted=frozenset(values))
    expected = {name: said for name, (_, _, said) in values.items() if said is not None}
    assert sample.metadata == expected | {"caption": "x"}
    [every] = of(tmp_path, table)
    nested = {"list", "deep", "map"}
    assert every.metadata == {n: v for n, v in expected.items() if n not in nested} | {
        "caption": "x"
    }


def test_only_the_needed_columns_are_read(tmp_path: Path, requests: list[int]) -> None:
    chance = random.Random(0)
    big = [chance.randbytes(1_000_000) for _ in range(6)]
    table = pa.table({"raw": big, "caption": list("abcdef"), "n": range(6)})
    path = write(tmp_path, rows.parquet(table, 3))
    assert len(rows.samples(rows.read(source(path, wanted=frozenset({"n"}))))) == 6
    assert sum(requests) < 2_000_000


BAD_COLUMNS: list[tuple[Columns, dict[str, str], str, str]] = [
    ({"x": pa.array([1])}, {}, "MissingColumn", "no column is called image"),
    ({"image": pa.array([b"1"])}, {"image": "picture"}, "MissingColumn", "there are: image"),
    ({"a": pa.array([{"b": b"1"}])}, {"image": "a.c"}, "MissingColumn", "'a.c'"),
    ({"a": pa.array([b"1"])}, {"image": "a.b"}, "MissingColumn", "'a.b'"),
    ({"image": pa.array([decimal.Decimal("1.5")])}, {}, "WrongColumnType", "decimal128"),
    ({"image": pa.array([1])}, {}, "WrongColumnType", "int64"),
    ({"image": pa.array([[1, 2]], pa.list_(pa.uint8()))}, {}, "WrongColumnType", "list"),
    ({"image": pa.array([{"x": b"1"}])}, {}, "WrongColumnType", "struct"),
    ({"image": pa.array([{"bytes": 5}])}, {}, "WrongColumnType", "struct"),
    ({"image": pa.array([{"path": 5}])}, {}, "WrongColumnType", "struct"),
    ({"image": pa.array([True])}, {}, "WrongColumnType", "bool"),
    ({"caption": pa.array([["a"]])}, {}, "WrongColumnType", "text is needed"),
    ({"caption": pa.array([1])}, {}, "WrongColumnType", "text is needed"),
    ({"caption": pa.array(["a"]), "n": pa.array([b"1"])}, {}, "WrongColumnType", "metadata"),
]


@pytest.mark.parametrize(("columns", "named", "kind", "words"), BAD_COLUMNS)
def test_bad_columns_are_one_error_for_the_span(
    tmp_path: Path, columns: Columns, named: dict[str, str], kind: str, words: str
) -> None:
    reader = source(
        write(tmp_path, rows.parquet(pa.table(columns))), columns=named, wanted=frozenset({"n"})
    )
    [sample] = rows.samples(rows.read(reader))
    assert rows.result([sample]) == [("0", kind)]
    assert words in message(sample)
    [shard] = reader.shards()
    [later] = reader.read(shard, 7, 20, set())
    assert (later.span.start, later.span.stop) == (7, 20)
    assert rows.result(later.samples) == [("7", kind)]


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["caption", "caption"])
    assert rows.result(of(tmp_path, table)) == [("0", "AmbiguousColumn")]
    table = pa.table([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["caption", "n", "n"])
    assert rows.result(of(tmp_path, table)) == [("0", None)]


def test_bad_rows_leave_their_neighbours(tmp_path: Path) -> None:
    texts = [b"a", b"\xff", b" ", b"\xef\xbb\xbfb ", None, b"\xed\xa0\x80", b"z"]
    arrow = pa.array(texts, pa.binary())
    broken = pa.StringArray.from_buffers(len(texts), *arrow.buffers()[1:], arrow.buffers()[0])
    kinds = [None, "BadText", "NoModality", None, "NoModality", "BadText", None]
    for column in (arrow, broken):
        found = of(tmp_path, pa.table({"caption": column}))
        assert rows.result(found) == [(str(i), kind) for i, kind in enumerate(kinds)]
        assert [found[0].members, found[3].members] == [{"text": b"a"}, {"text": b"b"}]
    table = pa.table({"image": [b"1"] * 7, "title": broken, "n": [1] * 7})
    kinds = [None, "BadText", None, None, None, "BadText", None]
    assert rows.result(of(tmp_path, table)) == [(str(i), k) for i, k in enumerate(kinds)]


def test_oversized_and_odd_values(tmp_path: Path) -> None:
    table = pa.table(
        {"image": [b"1", b"x" * 101, b"", None, b"2"], "caption": ["y" * 101] + [None] * 4}
    )
    found = of(tmp_path, table, limits=Limits(bytes=100))
    kinds = ["OversizedMember", "OversizedMember", None, "NoModality", None]
    assert [s.error and s.error.type for s in found] == kinds
    assert found[2].members == {"image": b""}  # decoding says that it is empty
    far = pa.array([400_000_000, 0], pa.date32())  # the year 1,097,140
    deep = pa.array([{"at": 400_000_000_000_000}, None], pa.struct([("at", pa.timestamp("s"))]))
    table = pa.table({"caption": ["a", "b"], "far": far, "deep": deep})
    found = of(tmp_path, table, wanted=frozenset({"deep"}))
    assert [s.error and s.error.type for s in found] == ["BadMetadata", None]
    found = of(tmp_path, table, wanted=frozenset({"far"}))
    assert len(found) == 2
    assert found[1].metadata == {"far": "1970-01-01", "caption": "b"}
    holds = pa.table({"caption": ["a"], "x": pa.array([[b"1"]])})
    [sample] = of(tmp_path, holds, wanted=frozenset({"x"}))
    assert sample.error is not None
    assert sample.error.type == "BadMetadata"


def test_nulls_everywhere(tmp_path: Path) -> None:
    table = pa.table({"image": pa.nulls(3), "caption": pa.array(["a", None, "b"])})
    kinds = [None, "NoModality", None]
    assert [s.error and s.error.type for s in of(tmp_path, table)] == kinds
    table = pa.table({"image": pa.nulls(2, pa.binary()), "caption": pa.nulls(2)})
    assert [s.error and s.error.type for s in of(tmp_path, table)] == ["NoModality"] * 2


def test_no_rows(tmp_path: Path) -> None:
    schema = pa.schema([("caption", pa.string())])
    for table in (schema.empty_table(), pa.table({"caption": pa.array([], pa.string())})):
        assert rows.result(of(tmp_path, table)) == [("", "EmptyShard")]


def test_encrypted_files(tmp_path: Path) -> None:
    data = bytearray(rows.parquet(rows.records(2)))
    data[-4:] = b"PARE"
    found = of(tmp_path, bytes(data))
    assert rows.result(found) == [("0", "CorruptShard")]
    assert "encrypt" in message(found[0])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"PAR1",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[10:],
        lambda data: b"<html>not found</html>" * 100,
        lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
        lambda data: data[:-8] + bytes(4) + b"PAR1",
        lambda data: data[:-60] + bytes(52) + data[-8:],
    ],
    ids=range(9),
)
def test_a_file_without_a_footer_is_one_error(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    found = of(tmp_path, spoil(rows.parquet(rows.records(6))))
    assert rows.result(found) == [("0", "CorruptShard")]
    assert "Parquet" in message(found[0])


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
def test_a_corrupt_page_leaves_what_came_before(tmp_path: Path, codec: str) -> None:
    data = bytearray(
        rows.parquet(
            rows.records(12), 4, compression=codec, write_page_checksum=True, use_dictionary=False
        )
    )
    meta = pq.read_metadata(io.BytesIO(bytes(data)))
    chunk = meta.row_group(1).column(0)
    place = chunk.data_page_offset + chunk.total_compressed_size - 100
    data[place : place + 50] = bytes(50)
    path = write(tmp_path, bytes(data))
    fragments = rows.read(source(path, 2))
    found = rows.samples(fragments)
    assert rows.result(found) == [
        ("0", None),
        ("1", None),
        ("2", None),
        ("3", None),
        ("4", "CorruptShard"),
    ]
    assert "from row 4 on" in message(found[-1])
    again = list(source(path, 2).read(next(source(path).shards()), 4, ROWS, set()))
    assert rows.facts(again) == rows.facts(fragments[2:])


def test_random_damage_never_ends_reading_or_changes_much(tmp_path: Path) -> None:
    data = rows.parquet(rows.records(8), 3, write_page_checksum=True)
    whole = {s.id: s.content_hash for s in of(tmp_path, data)}
    chance = random.Random(4)
    for _ in range(150):
        broken = bytearray(data[: chance.choice([len(data), chance.randrange(len(data))])])
        for _ in range(chance.choice([0, 1, 20])):
            if broken:
                broken[chance.randrange(len(broken))] = chance.randrange(256)
        found = of(tmp_path, bytes(broken))
        good = [s for s in found if s.error is None]
        assert len(good) == 8 or found[-1].error is not None or len(found) == len(whole)


def test_a_file_that_changes_or_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, rows.parquet(rows.records(6), 2))
    reader = source(path, 1)
    [shard] = reader.shards()
    reading = reader.read(shard, 0, ROWS, set())
    next(reading)
    monkeypatch.setattr("mmray.sources.rangefile.LEAST", 1)
    path.write_bytes(rows.parquet(rows.records(7), 2))
    with pytest.raises(ShardChanged, match=str(path)):
        list(reader.read(shard, 0, ROWS, set()))
    reading.close()
    path.unlink()
    found = rows.samples(list(reader.read(shard, 0, ROWS, set())))
    assert rows.result(found) == [("0", "UnreadableShard")]


@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("kind", [StorageError, ShardChanged, PermissionError])
def test_storage_that_stays_broken_is_no_samples_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, kind: type[Exception]
) -> None:
    """pyarrow hands on what its file raises, in a form of its own at times."""
    reader = source(write(tmp_path, rows.parquet(rows.records(9), 3)), 1)
    [shard] = reader.shards()
    left = after
    fetch = Storage.fetch

    def failing(self: Storage, *args: Any) -> tuple[bytes, str]:
        nonlocal left
        left -= 1
        if left < 0:
            raise kind("uri", "down")
        return fetch(self, *args)

    monkeypatch.setattr(Storage, "fetch", failing)
    monkeypatch.setattr("mmray.sources.rangefile.LEAST", 64)
    reading = reader.read(shard, 0, ROWS, set())
    if kind is PermissionError:
        found = rows.samples(list(reading))
        assert rows.result(found)[-1] == (str(len(found) - 1), "UnreadableShard")
        return
    with pytest.raises(kind, match="down"):
        list(reading)


def test_a_range_file_reads_as_a_file_does() -> None:
    data = bytes(range(256)) * 4
    asked: list[tuple[int, int]] = []

    def fetch(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        if start == 1000:
            raise PermissionError("no")
        return data[start:stop]

    file = RangeFile(fetch, len(data))
    assert (file.seek(-4, 2), file.read(), file.read(5), file.tell()) == (
        1020,
        data[-4:],
        b"",
        1024,
    )
    assert (file.seek(10), file.read(5), file.seek(5, 1), file.read(3)) == (
        10,
        data[10:15],
        20,
        data[20:23],
    )
    assert asked == [(1020, 1024), (10, 1024)]  # small reads share a request
    file.close()
    file.seek(1000)
    with pytest.raises(PermissionError):
        file.read(1)
    assert isinstance(file.failure, PermissionError)


def test_listing(tmp_path: Path) -> None:
    data = rows.parquet(rows.records(1))
    for name in ("b.parquet", "A.PQ", "_SUCCESS", "x.csv"):
        write(tmp_path, data, name)
    reader = source(tmp_path)
    found = list(reader.shards())
    assert [(s.uri.rpartition("/")[2], s.size) for s in found] == [
        ("A.PQ", ROWS),
        ("b.parquet", ROWS),
    ]
    assert pickle.loads(pickle.dumps(reader)).ignored == 2
    assert reader.covers(str(tmp_path / "gone.parquet"))
    assert not reader.covers(str(tmp_path / "gone.csv"))
    assert not reader.covers("/elsewhere/b.parquet")


def test_a_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="does not exist or is empty"):
        source(tmp_path).shards()
    write(tmp_path, b"x", "a.csv")
    with pytest.raises(RefusedError, match=r"holds no \.parquet"):
        source(tmp_path).shards()


def test_s3(s3: TestServer, s3_uri: str) -> None:
    records = rows.records(60, size=(64, 48))
    data = rows.parquet(records, 25)
    shards.put(s3_uri, {"a.parquet": data, "torn.parquet": data[:-9]}, s3.client())
    reader = source(f"{s3_uri}/a.parquet", 7)
    [shard] = reader.shards()
    fragments = list(reader.read(shard, 0, ROWS, set()))
    found = rows.samples(fragments)
    assert [s.members["image"] for s in found] == [row["image"] for row in records]
    rest = list(reader.read(shard, fragments[4].span.start, ROWS, set()))
    assert rows.facts(rest) == rows.facts(fragments[4:])
    torn = rows.read(source(f"{s3_uri}/torn.parquet"))
    assert rows.result(rows.samples(torn)) == [("0", "CorruptShard")]
    shards.put(s3_uri, {"a.parquet": rows.parquet(records, 24)}, s3.client())
    with pytest.raises(ShardChanged):
        list(reader.read(shard, 0, ROWS, set()))
