"""Where a training stands: what a checkpoint keeps beside weights, and what a run is told."""

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(slots=True)
class Course:
    """The history up to a step; JSON but for `losses`."""

    step: int = 0
    """Steps that are done."""
    losses: list[float] = field(default_factory=list)
    """The global loss of each step."""
    epochs: list[dict[str, float]] = field(default_factory=list)
    """What was measured after each epoch; `epoch` and `step` say when."""
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    """Epochs since the best one."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a loop ended."""

    course: Course
    signum: int = 0
    """The signal that it ended by."""
    stopped_early: bool = False
    failed: str = ""
    """Why it can't go on: the loss isn't a number."""
    samples: tuple[str, ...] = ()
    """Ids of the batch that it failed on."""
    seconds: float = 0.0
    rows: int = 0
    """Samples that this loop trained on."""


class Watch(Protocol):
    """What a loop tells, on rank 0; and how it's told to stop."""

    def begun(self, step: int, steps: int, batch: int) -> None:
        """The loop goes on after `step` of `steps`; a global batch has so many samples."""

    def stepped(self, step: int, loss: float, told: dict[str, float]) -> None:
        """A step is done; `told` has the loss of each head and the rate."""

    def measured(self, metrics: dict[str, float]) -> None:
        """An epoch is done."""

    def signal(self) -> int:
        """The signal to stop by, or 0."""


def as_told(value: dict[str, Any]) -> dict[str, float]:
    """Numbers of a mapping."""
    return {name: float(each) for name, each in value.items()}
