"""A condition in SQL on the columns of an index, to the numbers of the rows that meet it.

DuckDB evaluates it, cut off from files, extensions and settings. A condition may come from a
stranger: it is taken apart first, and only plain expressions and the functions listed here pass.
Only the columns that it names are read, a batch of rows at a time, and it has only so much time.
"""

import json
from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from mmray.errors import RefusedError
from mmray.index.searching.evaluate import Refused, connection, evaluate
from mmray.index.searching.rows import Rows
from mmray.specs.index import WHERE_SECONDS
from mmray.specs.problems import hint

LONGEST = 1_000_000
"""Characters; room for a list of some ten thousand ids."""

FUNCTIONS = frozenset(
    {
        *("+", "-", "*", "/", "//", "%", "~~", "!~~", "~~*", "!~~*", "~~~", "||", "~", "@"),
        *("abs", "ceil", "ceiling", "floor", "round", "sign", "sqrt", "ln", "log10", "mod"),
        *("isnan", "isinf", "isfinite", "greatest", "least", "nullif", "ifnull", "coalesce"),
        *("lower", "upper", "lcase", "ucase", "trim", "ltrim", "rtrim", "length", "len", "strlen"),
        *("contains", "starts_with", "ends_with", "prefix", "suffix", "^@", "instr", "position"),
        *("left", "right", "substr", "substring", "split_part", "reverse", "strip_accents"),
        *("like_escape", "not_like_escape", "ilike_escape", "not_ilike_escape"),
        *("regexp_matches", "regexp_full_match", "jaccard", "levenshtein"),
        *("year", "month", "day", "hour", "minute", "second", "date_part", "date_trunc", "epoch"),
        *("datepart", "datetrunc", "now", "current_date", "get_current_timestamp", "today"),
        *("list_contains", "list_has", "list_value", "array_contains", "array_has", "array_length"),
        *("struct_extract", "struct_extract_at", "array_extract", "list_extract", "list_element"),
    }
)
"""Functions that take no longer, and give nothing larger, than what they are given."""

_PLAIN = frozenset(
    {
        *("COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN"),
        *("CASE", "CAST", "FUNCTION"),
    }
)
_REFUSED = {
    "SUBQUERY": "a query within the condition",
    "WINDOW": "a window function",
    "LAMBDA": "a function of its own",
    "STAR": "a star",
    "PARAMETER": "a parameter",
    "DEFAULT": "DEFAULT",
}


def matching(rows: Rows, where: str, seconds: float = WHERE_SECONDS) -> np.ndarray:
    """Sorted int64 numbers of the rows that meet `where`, the dead ones left out.

    Args:
        rows: of the index.
        where: the condition.
        seconds: time that it may take.

    Raises:
        RefusedError: it is no condition, names a column that isn't there, can't be evaluated, or
            takes longer.
    """
    tree = _parsed(where)
    names = _columns(tree, rows)
    number = "number"
    while number.lower() in {name.lower() for name in names}:
        number += "_"
    schema = pa.schema([*(rows.schema.field(name) for name in names), (number, pa.int64())])

    def numbered() -> Iterator[pa.RecordBatch]:
        # A file's batches know their rows even where no column is read.
        for batch, first in rows.batches(names or ("id",)):
            numbers = pa.array(np.arange(first, first + batch.num_rows))
            columns = [batch.column(name) for name in names]
            yield pa.record_batch([*columns, numbers], schema=schema)

    _require_boolean(where, schema)
    try:
        numbers = evaluate(where, schema, numbered(), seconds)
    except TimeoutError:
        raise RefusedError(
            f"where: takes longer than {seconds:g} seconds over {rows.count:,} rows; ask for less, "
            "or give it more time (where_seconds)"
        ) from None
    except Refused as error:
        raise RefusedError(f"where: {_line(error)}") from error
    return rows.without_dead(np.sort(numbers))


def _require_boolean(where: str, schema: pa.Schema) -> None:
    try:
        with connection() as database:
            condition = duckdb.SQLExpression(where)
            kinds = database.from_arrow(schema.empty_table()).project(condition).types
    except duckdb.Error as error:
        raise RefusedError(f"where: {_line(error)}") from error
    if kinds != ["BOOLEAN"]:
        raise RefusedError(f"where: gives {kinds[0]}, not true or false, for a row")


def _parsed(where: str) -> Any:
    """DuckDB's own tree of the one expression that `where` is."""
    if len(where) > LONGEST:
        raise RefusedError(f"where: {len(where):,} characters, {LONGEST:,} at most")
    if "\0" in where or not where.strip():
        raise RefusedError("where: is empty" if not where.strip() else "where: holds a NUL")
    try:
        duckdb.SQLExpression(where)  # refuses what is more than one expression
        with connection() as database:
            # On a line of its own: it may end in a comment.
            query = f"SELECT 1 WHERE (\n{where}\n)"
            row = database.execute("SELECT json_serialize_sql(?)", [query]).fetchone()
        found: dict[str, Any] = json.loads(row[0]) if row else {"error": True}
    except duckdb.Error as error:
        raise RefusedError(f"where: {_line(error)}") from None
    except RecursionError:
        raise RefusedError("where: is nested too deeply") from None
    if found.get("error"):
        raise RefusedError(f"where: {found.get('error_message', 'can not be read')}")
    return found["statements"][0]["node"]["where_clause"]


def _columns(tree: Any, rows: Rows) -> list[str]:
    """The index's columns that the tree names, each once. Raises RefusedError for what isn't
    plain."""
    folded: dict[str, list[str]] = {}
    for name in rows.columns:
        folded.setdefault(name.lower(), []).append(name)
    found: dict[str, str] = {}
    for node in _nodes(tree):
        kind = node["class"]
        if kind not in _PLAIN:
            raise RefusedError(f"where: {_REFUSED.get(kind, kind)} is not taken")
        if kind == "FUNCTION" and node["function_name"].lower() not in FUNCTIONS:
            name = node["function_name"]
            raise RefusedError(f"where: there is no function {name!r} here{hint(name, FUNCTIONS)}")
        if kind == "COLUMN_REF":
            said = node["column_names"][0]
            name = said if said in rows.columns else next(iter(folded.get(said.lower(), [])), "")
            if not name:
                raise RefusedError(_unknown(said, rows.columns))
            if found.setdefault(name.lower(), name) != name:
                raise RefusedError(
                    f"where: {name!r} and {found[name.lower()]!r} differ in case only"
                )
    return list(found.values())


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    todo = [tree]
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += reversed(value)
        elif isinstance(value, dict):
            if isinstance(value.get("class"), str):
                yield value
            if value.get("class") != "CONSTANT":  # whose own value may look like anything
                todo += reversed(value.values())


def _unknown(name: str, columns: tuple[str, ...]) -> str:
    return (
        f"where: there is no column {name!r}{hint(name, columns)}; there are "
        f"{', '.join(columns)} (text stands in 'single quotes')"
    )


def _line(error: Exception) -> str:
    """DuckDB's first line, without the name of its part that says it."""
    first = (str(error).strip().splitlines() or ["can't be evaluated"])[0]
    if "memory exhausted" in first or "expression depth" in first:  # of the parser's own stack
        return "is nested too deeply"
    head, colon, rest = first.partition(" Error: ")
    return (rest if colon else head)[:300]
