"""What `mmray.plan` returns: numbers that say whether they were counted, and what they rest on."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mmray.report import Example

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Number(BaseModel):
    """A number, and whether it was counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: int
    estimate: bool

    def __str__(self) -> str:
        return f"{'~' if self.estimate else ''}{self.value:,}"


class Probed(BaseModel):
    """What the probe saw."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    processes: int
    device: Literal["cpu", "cuda"]
    """Where the encoder ran."""
    seconds: Seconds
    samples: int
    """That were timed: the first fragment of each process warmed it up and isn't among them."""
    read: int
    """All that went through."""
    stages: dict[str, Seconds]
    """Seconds of one worker for each sample, by stage."""
    quarantined: int
    """Of those that it read."""
    examples: list[Example]


class PlanResult(BaseModel):
    """What a run would do. `seconds` is what the run's report would say."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    job: str
    status: Literal["work", "nothing"]
    """`work`, or `nothing` where nothing is left to do: then nothing was probed."""
    shards: dict[str, int]
    """`total`, `finished`, `changed`, `removed` and `left`, those with work left."""
    rows: Number
    """Samples left."""
    fragments: Number
    rows_skipped: int
    """Rows and quarantined samples of fragments that are finished."""
    rows_quarantined: int
    """Those of them that are in quarantine."""
    rows_per_sample: float = 1.0
    """More than 1 where windows or frames are rows of their own."""
    bytes_per_row: float | None = None
    """Of the source."""
    layout: dict[str, Any] = Field(default_factory=dict)
    """`kind` (`fused` or `split`), `nodes`, `actors` with their `cpus` and `gpus`, `decode_tasks`
    with their `decode_cpus`."""
    probe: Probed | None = None
    startup: dict[str, Seconds] = Field(default_factory=dict)
    """Estimated seconds before the first row, one after another."""
    work: Seconds = 0.0
    """Estimated seconds while workers are busy."""
    tail: Seconds = 0.0
    """Of `work`: what uneven shards cost."""
    finish: Seconds = 0.0
    seconds: Seconds = 0.0
    node_hours: Seconds = 0.0
    cost: Seconds | None = None
    """Node-hours times the price, where one was given."""
    bottleneck: str | None = None
    """A stage, or `startup`."""
    advice: str = ""
    notes: list[str] = Field(default_factory=list)
    """What the numbers rest on, where that is less than measured."""

    def line(self) -> str:
        """One line of JSON."""
        return self.model_dump_json()
