"""What a run did: the `Report` that `mmray.run` returns, and how it is kept beside its output.

Counts are of this run: `rows_skipped` are rows of fragments that an earlier run had finished, and
every row that was read is written, in quarantine, or left out by a filter or as a duplicate.
Credentials never reach a report: `scrub` goes over the words of errors, the one place where they
could come from outside.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mmray.report.page import render
from mmray.report.plain import plain_page
from mmray.report.scrub import printable, scrub
from mmray.report.vectors import Inspection
from mmray.report.wording import fills_store

if TYPE_CHECKING:
    from mmray.storage import Storage

MAX_EXAMPLES = 60
EXAMPLES_EACH = 5
"""Of one error type."""
MAX_NAMES = 100

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Metric = int | Annotated[float, Field(allow_inf_nan=False)] | str

HEAD = (
    "job",
    "status",
    "rows_read",
    "rows_written",
    "rows_skipped",
    "rows_quarantined",
    "rows_filtered",
    "seconds",
    "rows_per_second",
    "outputs",
)
"""What `Report.line` starts with."""

LONG = frozenset({"timeline", "examples", "changed", "removed"})
"""What it leaves to `report.json`."""


class Example(BaseModel):
    """One quarantined sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_uri: str
    source_key: str
    stage: str
    error_type: str
    message: str

    @model_validator(mode="before")
    @classmethod
    def _valid(cls, data: Any) -> Any:
        return printable(data)

    @field_validator("message", mode="after")
    @classmethod
    def _no_secrets(cls, value: str) -> str:
        return scrub(value)


class Report(BaseModel):
    """What a run did. Seconds are wall-clock unless a field says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    job: str
    """The job kind, such as `embed`; or `replay`, of what was in quarantine."""
    run_id: str
    status: Literal["done", "failed", "interrupted"]
    message: str = ""
    """Why, when not done."""
    started: str
    """UTC, ISO 8601."""
    seconds: Seconds = 0.0
    rows_read: Count = 0
    rows_written: Count = 0
    rows_skipped: Count = 0
    """Rows of fragments that were finished before this run."""
    rows_quarantined: Count = 0
    rows_filtered: Count = 0
    """Left out of the store by filters and as duplicates."""
    rows_encoded: Count = 0
    """Rows that went through the encoder: remembered duplicates did not."""
    rows_per_second: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Left out: rows read over seconds."""
    stages: dict[str, Seconds] = Field(default_factory=dict)
    """Seconds of read, decode, encode and write, summed over workers."""
    bottleneck: str | None = None
    """The stage with most seconds; left out: found from `stages`. None when nothing ran."""
    startup: dict[str, Seconds] = Field(default_factory=dict)
    """Seconds before the first row, by what they went into."""
    timeline: list[tuple[Seconds, Count]] = Field(default_factory=list)
    """Seconds since the start, and rows so far."""
    errors: dict[str, Count] = Field(default_factory=dict)
    """Error type to quarantined rows."""
    examples: list[Example] = Field(default_factory=list)
    """The first quarantined samples of each error type, at most 5 of one and 60 in all."""
    filtered: dict[str, Count] = Field(default_factory=dict)
    """Reason to rows left out."""
    shards: dict[str, Count] = Field(default_factory=dict)
    """`total`, `finished`, `changed` and `removed`."""
    changed: list[str] = Field(default_factory=list)
    """Shards whose content changed, at most 100; `shards` has the number."""
    removed: list[str] = Field(default_factory=list)
    """Shards that are gone, at most 100."""
    encoder: dict[str, Any] = Field(default_factory=dict)
    """`name`, `fingerprint` and `dims`."""
    metrics: dict[str, Metric] = Field(default_factory=dict)
    """What the job measured, by name: `recall`, `bytes`, `search_seconds`. Names say the unit."""
    outputs: dict[str, str | int] = Field(default_factory=dict)
    """Uris of what the job wrote, such as `store` or `index`, and its `version`; once saved,
    `report` and `page`."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = printable(dict(data))
        stages = data.get("stages") or {}
        if data.get("bottleneck") is None and any(stages.values()):
            data["bottleneck"] = max(stages, key=stages.__getitem__)
        if data.get("rows_per_second") is None:
            seconds = data.get("seconds") or 0.0
            data["rows_per_second"] = data.get("rows_read", 0) / seconds if seconds > 0 else 0.0
        for name in ("changed", "removed"):
            if name in data:
                data[name] = list(data[name])[:MAX_NAMES]
        return data

    @field_validator("examples", mode="after")
    @classmethod
    def _few_of_each(cls, value: list[Example]) -> list[Example]:
        """Where types compete for a place, each has one example before any has two."""
        seen: Counter[str] = Counter()
        ranked = []
        for place, example in enumerate(value):
            ranked.append((seen[example.error_type], place))
            seen[example.error_type] += 1
        kept = sorted(each for each in ranked if each[0] < EXAMPLES_EACH)[:MAX_EXAMPLES]
        return [value[place] for place in sorted(place for _, place in kept)]

    @field_validator("message", mode="after")
    @classmethod
    def _no_secrets(cls, value: str) -> str:
        return scrub(value)

    @model_validator(mode="after")
    def _nothing_is_lost(self) -> "Report":
        if self.rows_read != self.rows_written + self.rows_quarantined + self.rows_filtered:
            raise ValueError(
                f"{self.rows_read} rows read, but {self.rows_written} written, "
                f"{self.rows_filtered} left out and {self.rows_quarantined} in quarantine"
            )
        return self

    def line(self) -> str:
        """The report as one line of JSON, without its long lists; `HEAD` comes first."""
        data = _rounded(self.model_dump(mode="json", exclude=set(LONG)))
        rest = [name for name in data if name not in HEAD]
        return json.dumps({name: data[name] for name in (*HEAD, *rest)}, ensure_ascii=False)

    def save(
        self,
        storage: "Storage",
        root_uri: str,
        page: str | None = None,
        vectors: Inspection | None = None,
    ) -> "Report":
        """Keep `report.json` and `report.html` under `<root>/_mmray/runs/<run id>/`.

        Args:
            storage: where to.
            root_uri: the store, index or folder that the job wrote.
            page: the page of a job that has its own, as HTML; left out: made from the report.
            vectors: what was found in the store, for the page that's made.

        Returns the report with their uris in `outputs`. Raises StorageError.
        """
        folder = f"{root_uri.rstrip('/')}/_mmray/runs/{self.run_id}"
        kept = {"report": f"{folder}/report.json", "page": f"{folder}/report.html"}
        saved = self.model_copy(update={"outputs": {**self.outputs, **kept}})
        if page is None:
            page = render(saved, vectors) if fills_store(self) else plain_page(saved)
        storage.write_bytes(kept["page"], page.encode())
        storage.write_bytes(kept["report"], saved.model_dump_json(indent=2).encode())
        return saved


def _rounded(value: Any) -> Any:
    """Milliseconds are enough for a line that people read."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return value
