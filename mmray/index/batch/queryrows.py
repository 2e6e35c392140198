"""From the rows of a file to queries: which are usable, and what is wrong with the others."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from mmray.decode.text import decode_text
from mmray.errors import BadSample
from mmray.index.batch.batches import Floats, Queries
from mmray.index.column import usable
from mmray.report import EXAMPLES_EACH, Example
from mmray.specs.common import Limits

LIST = pa.list_(pa.float32())

_TEXTS = {"EmptyText": "no text", "OversizedText": "too long"}

Holds = Literal["text", "vectors"]


@dataclass(slots=True)
class RawRows:
    """Rows as they were read; a BadSample stands for what can't be."""

    first: int
    last: int = 0
    """After the last one, blank ones counted in."""
    numbers: list[int] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    values: Any = field(default_factory=list)
    """A list, or an Arrow array of lists of float32."""

    def kind(self) -> Holds | None:
        """What the first row with a value says; None where none has one."""
        if not isinstance(self.values, list):
            return "vectors"
        kinds: dict[type, Holds] = {str: "text", list: "vectors"}
        return next((kinds[type(value)] for value in self.values if type(value) in kinds), None)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a query is in one file."""

    uri: str
    word: str
    """What a row is called: `row` or `line`."""
    id: str | None
    """Field of the ids, for what is said of a bad one."""
    dim: int
    unit: bool
    """Bring vectors to length 1."""

    def take(self, rows: RawRows, holds: Holds) -> Queries:
        """The rows that are queries, and why the others aren't."""
        left: dict[int, BadSample] = {}
        for place, name in enumerate(rows.ids):
            if isinstance(name, bool) or not isinstance(name, str | int):
                words = f"its {self.id!r} is {name!r:.60}, neither text nor a whole number"
                left[place] = BadSample("no id", words)
        vectors: Floats | None = None
        texts: tuple[str, ...] = ()
        if holds == "vectors":
            vectors = self._vectors(rows.values, left)
        else:
            texts = tuple(_texts(rows.values, left))
        ids = [str(name) for place, name in enumerate(rows.ids) if place not in left]
        counts = Counter(error.error_type for error in left.values())
        return Queries(ids, vectors, texts, counts, tuple(self._examples(rows, left)))

    def _vectors(self, given: Any, left: dict[int, BadSample]) -> Floats:
        """float32 [n, dim] of the rows that aren't in `left`, to which those without are added."""
        column = given
        if isinstance(given, list):
            known = [_numbers(value, place, left) for place, value in enumerate(given)]
            with np.errstate(over="ignore"):
                column = pa.array(known, LIST)
        found, good, _ = usable(pa.chunked_array([column]), self.dim, unit=self.unit)
        for place in np.flatnonzero(~good).tolist():
            if place not in left:
                left[place] = self._why(column[place].as_py())
        wanted = [place not in left for place in np.flatnonzero(good).tolist()]
        vectors: Floats = found[np.array(wanted, dtype=bool)]
        return vectors

    def _why(self, value: list[float | None] | None) -> BadSample:
        """What is wrong with a vector."""
        if value is None:
            return BadSample("no vector", "it has no vector")
        if len(value) != self.dim:
            words = f"its vector has {len(value):,} numbers, those of the index {self.dim:,}"
            return BadSample("wrong length", words)
        numbers = np.array([np.nan if each is None else each for each in value], dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if bad.size:
            words = f"its vector has {numbers[bad[0]]} at position {bad[0]}"
            return BadSample("not finite", words)
        return BadSample("zero length", "its vector is zero and has no direction")

    def _examples(self, rows: RawRows, left: dict[int, BadSample]) -> Iterator[Example]:
        told: Counter[str] = Counter()
        for place, error in sorted(left.items()):
            if told[error.error_type] < EXAMPLES_EACH:
                told[error.error_type] += 1
                number = rows.numbers[place]
                yield Example(
                    source_uri=self.uri,
                    source_key=str(number),
                    stage="read",
                    error_type=error.error_type,
                    message=f"{self.word} {number}: {error.message}",
                )


def _numbers(value: Any, place: int, left: dict[int, BadSample]) -> list[float] | None:
    """A JSON value as a vector; None where it is none."""
    if isinstance(value, BadSample):
        left.setdefault(place, value)
    elif value is not None and not isinstance(value, list):
        words = f"a list of numbers is needed, as in other rows, not {value!r:.60}"
        left.setdefault(place, BadSample("wrong type", words))
    elif value is not None:
        strange = [each for each in value if type(each) not in (int, float)]
        if not strange:
            return [float(each) for each in value]
        words = f"its vector holds {strange[0]!r:.60}, which is no number"
        left.setdefault(place, BadSample("wrong type", words))
    return None


def _texts(given: list[Any], left: dict[int, BadSample]) -> Iterator[str]:
    """The texts of the rows that aren't in `left`, to which those without are added."""
    most = Limits().characters
    for place, value in enumerate(given):
        if place in left:
            continue
        try:
            if isinstance(value, BadSample):
                raise value
            if value is None:
                raise BadSample("no text", "it has no text")
            if not isinstance(value, str):
                raise BadSample("wrong type", f"a text is needed, not {value!r:.60}")
            yield decode_text(value.encode(), max_chars=most)
        except BadSample as error:
            kind = _TEXTS.get(error.error_type, "bad text")
            known = error.error_type in ("no text", "wrong type", "bad line", "no query")
            left[place] = BadSample(error.error_type if known else kind, error.message)
