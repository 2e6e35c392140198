"""Conditions in SQL on kept columns: what they match, and all that they may not be."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mmray
from mmray.errors import RefusedError
from mmray.index import Index
from mmray.index.searching.where import matching
from tests import indexes

STORAGE = indexes.STORAGE
TABLE = indexes.rows_of(indexes.ROWS).to_pylist()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = str(tmp_path_factory.mktemp("where") / "index")
    indexes.index(root, cuts=(25, 40), dead=[0, 30])
    return Index.open(root, STORAGE)


def rows(condition: str, index: Index) -> list[int]:
    found: list[int] = index.allowed(condition).tolist()
    return found


@pytest.mark.parametrize(
    ("condition", "meets"),
    [
        ("category = 'food'", lambda row: row["category"] == "food"),
        ("CATEGORY = 'food'", lambda row: row["category"] == "food"),
        ('"category" in (\'food\', \'city\')', lambda row: row["category"] != "sport"),
        ("number >= 10 and number < 20", lambda row: 10 <= (row["number"] or 0) < 20),
        ("number is null", lambda row: row["number"] is None),
        ("not number > 50", lambda row: row["number"] is not None and row["number"] <= 50),
        ("number between 3 and 5 or category = 'x'", lambda row: row["number"] in (3, 4, 5)),
        ("number % 2 = 0", lambda row: row["number"] is not None and row["number"] % 2 == 0),
        ("lower(caption) like '%red%'", lambda row: "red" in row["caption"]),
        ("caption ilike 'A RED%' -- a remark", lambda row: row["caption"].startswith("a red")),
        ("regexp_matches(caption, 'r[e]d')", lambda row: "red" in row["caption"]),
        ("starts_with(caption, 'a red')", lambda row: row["caption"].startswith("a red")),
        ("length(caption) > 20", lambda row: len(row["caption"]) > 20),
        ("source_uri = '/in/1.tar'", lambda row: row["source_uri"] == "/in/1.tar"),
        (f"id = '{indexes.name(7)}'", lambda row: row["id"] == indexes.name(7)),
        ("source_key in ('k0003', 'k0059', 'no')", lambda r: r["source_key"] in ("k0003", "k0059")),
        ("case when number > 5 then category = 'food' end",
         lambda row: (row["number"] or 0) > 5 and row["category"] == "food"),
        ("coalesce(number, 0)::double = 0.0", lambda row: not row["number"]),
        ("true", lambda row: True),
        ("1 = 2", lambda row: False),
        ("caption = 'class'", lambda row: False),
    ],
)  # fmt: skip
def test_what_a_condition_matches(index: Index, condition: str, meets: object) -> None:
    wanted = [n for n, row in enumerate(TABLE) if meets(row) and n not in (0, 30)]  # type: ignore[operator]
    assert rows(condition, index) == wanted


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("", "where: is empty"),
        ("  \n", "where: is empty"),
        ("catgory = 'food'", "no column 'catgory' (did you mean 'category'?)"),
        ('category = "food"', "no column 'food'.*single quotes"),
        ("fragment = 'x'", "no column 'fragment'"),
        ("content_hash = 'x'", "no column 'content_hash'"),
        ("number = ", "syntax error at end of input"),
        ("category = 'food", "unterminated quoted string"),
        ("category", "gives VARCHAR, not true or false"),
        ("number + 1", "gives BIGINT, not true or false"),
        ("category = 1", "Could not convert string"),
        ("number = 'x'", "Could not convert string 'x'"),
        ("nosuch(number) = 1", "no function 'nosuch' here"),
        ("lowr(category) = 'x'", "no function 'lowr' here (did you mean 'lower'?)"),
        ("number = 1, number = 2", "only a single expression"),
        ("number = 1; drop table x", "single SELECT"),
        ("number = 1) or (1 = 1", "syntax error"),
        ("number in (select 1)", "a query within the condition is not taken"),
        ("exists (select 1 from read_text('/etc/passwd'))", "a query within"),
        ("number = (with x as (select 1) select * from x)", "a query within"),
        ("read_text('/etc/passwd') is null", "no function 'read_text'"),
        ("getenv('HOME') = 'x'", "no function 'getenv'"),
        ("current_setting('memory_limit') = 'x'", "no function 'current_setting'"),
        ("length(repeat(category, 1000000000)) = 1", "no function 'repeat'"),
        ("lpad(category, 1000000000, 'x') = 'x'", "no function 'lpad'"),
        ("len(range(1000000000000)) = 1", "no function 'range'"),
        ("unnest([1]) = 1", "no function 'unnest'"),
        ("count(*) > 1", "no function 'count_star'"),
        ("row_number() over () = 1", "a window function is not taken"),
        ("list_filter([1], x -> x = 1) = [1]", "not taken|no function"),
        ("columns(*) = 1", "a star is not taken"),
        ("number = ?", "a parameter is not taken"),
        ("number = $1", "a parameter is not taken"),
        ("arrow_scan.number = 1", "no column 'arrow_scan'"),
        ("number = 1\0", "a NUL"),
        ("number + " * 999 + "1 = 1", "nested too deeply"),
        ("number + " * 2000 + "1 = 1", "nested too deeply"),
        ("number = " + "1" * 1_000_001, "1,000,010 characters, 1,000,000 at most"),
    ],
)  # fmt: skip
def test_what_is_no_condition(index: Index, condition: str, words: str) -> None:
    pattern = words.replace("(", r"\(").replace("?)", r"\?\)")
    with pytest.raises(RefusedError, match=pattern) as error:
        index.allowed(condition)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("where: ")


def test_a_long_list_of_ids(index: Index) -> None:
    names = ", ".join(f"'{indexes.name(row)}'" for row in range(50, 12_000))
    assert rows(f"id in ({names})", index) == list(range(50, 60))


def test_only_the_columns_named_are_read(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[str]] = []
    whole = pq.ParquetFile.iter_batches

    def noting(self: pq.ParquetFile, *args: object, columns: list[str], **more: object) -> object:
        read.append(columns)
        return whole(self, *args, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noting)
    matching(index._rows, "number > 3 and category = 'food' and number < 9")
    assert read == [["number", "category"]] * 3


def test_a_condition_is_evaluated_once(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    first = index.allowed("number = 11")
    monkeypatch.setattr("mmray.index.searching.where.matching", None)
    assert index.allowed("number = 11") is first


def kept(root: str, columns: dict[str, pa.Array]) -> Index:
    table = indexes.rows_of(4)
    for name, values in columns.items():
        table = table.append_column(name, values)
    indexes.index(root, indexes.unit(4), table, cuts=())
    return Index.open(root, STORAGE)


def test_columns_of_odd_names_and_types(tmp_path: Path) -> None:
    index = kept(
        str(tmp_path / "i"),
        {
            "Category": pa.array(["a", "b", "c", "d"]),
            "number_": pa.array([1, 2, 3, 4]),
            'a "quoted" name': pa.array([1.5, float("nan"), None, 2.5]),
            "select": pa.array([True, False, None, True]),
            "inner": pa.array([{"x": 1}, {"x": 2}, None, {"x": 1}]),
            "when": pa.array([0, 86_400_000_000, None, 1], pa.timestamp("us")),
            "tags": pa.array([["a"], ["a", "b"], [], None]),
        },
    )
    assert rows("\"Category\" = 'b'", index) == [1]
    assert rows("category = 'food'", index) == [0, 3]
    with pytest.raises(RefusedError, match="differ in case only"):
        index.allowed("category = 'food' and \"Category\" = 'a'")
    assert rows("number = 1 or number_ = 3", index) == [1, 2]
    assert rows('"a ""quoted"" name" > 1 and not isnan("a ""quoted"" name")', index) == [0, 3]
    assert rows('"select"', index) == [0, 3]
    assert rows('"inner".x = 1', index) == [0, 3]
    assert rows("\"when\" >= '1970-01-02'::timestamp", index) == [1]
    assert rows("list_contains(tags, 'b')", index) == [1]


@pytest.fixture
def endless(index: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    """Its rows come again and again."""
    whole = index._rows.batches

    def batches(columns: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
        while True:
            yield from whole(columns)

    monkeypatch.setattr(index._rows, "batches", batches)
    return index


def test_a_condition_that_would_not_end(endless: Index) -> None:
    began = time.monotonic()
    with pytest.raises(RefusedError, match=r"where: takes longer than 0\.2 seconds over 60 rows"):
        matching(endless._rows, "number > 3", 0.2)
    assert time.monotonic() - began < 10


def test_a_condition_that_fails_reads_no_more(endless: Index) -> None:
    with pytest.raises(RefusedError, match="where: Could not convert string"):
        endless.allowed("caption::integer = 3")


def test_a_process_that_ends_is_told(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(seconds: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "raise SystemExit(3)"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr("mmray.index.searching.evaluate._start", ends)
    with pytest.raises(RefusedError, match="where: .*process ended with exit code 3"):
        index.allowed("number > 30")


def test_a_row_that_takes_long(tmp_path: Path) -> None:
    """DuckDB can't be interrupted within one: its process is ended."""
    root = str(tmp_path / "i")
    indexes.index(root, indexes.unit(3, 4), cuts=())
    index = mmray.open_index(root, where_seconds=0.2)
    slow = f"'{'a' * 200}' like '{'%a_' * 20}%b'"
    began = time.monotonic()
    with pytest.raises(RefusedError, match=r"0\.2 seconds over 3 rows"):
        index.search(indexes.unit(1, 4), where=slow)
    assert time.monotonic() - began < 10
    mine = [each for each in psutil.Process().children() if "evaluate" in " ".join(each.cmdline())]
    assert mine == []


def test_an_index_without_rows(tmp_path: Path) -> None:
    root = str(tmp_path / "i")
    indexes.index(root, np.zeros((0, 4), np.float32), indexes.rows_of(0), cuts=())
    index = Index.open(root, STORAGE)
    assert rows("number > 1", index) == []
    with pytest.raises(RefusedError, match="no column"):
        index.allowed("nothing = 1")


def test_a_filter_over_many_rows_takes_no_time(tmp_path: Path) -> None:
    root = str(tmp_path / "i")
    indexes.index(root, indexes.unit(20_000, 4), indexes.rows_of(20_000), cuts=())
    index = Index.open(root, STORAGE)
    began = time.monotonic()
    assert len(index.allowed("category = 'food' and number > 100")) > 5000
    assert time.monotonic() - began < 5
