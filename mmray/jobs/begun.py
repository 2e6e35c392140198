"""When a run began, what it's called, and which errors end one with a report."""

import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from mmray.errors import Interrupted, JobFailed


@dataclass(frozen=True, slots=True)
class Begun:
    """Made when a run begins."""

    job: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:6])

    @property
    def run_id(self) -> str:
        """Its name: when, and a mark that no other run has."""
        return f"{self.at:%Y%m%dT%H%M%SZ}-{self.mark}"

    def elapsed(self) -> float:
        """Seconds since."""
        return round(time.monotonic() - self.clock, 3)

    def fields(self, failure: Interrupted | JobFailed | None) -> dict[str, Any]:
        """What a report says of any run."""
        return {
            "job": self.job,
            "run_id": self.run_id,
            "status": status_of(failure),
            "message": str(failure or ""),
            "started": self.at.isoformat(timespec="seconds"),
            "seconds": self.elapsed(),
        }


def status_of(failure: Interrupted | JobFailed | None) -> Literal["done", "failed", "interrupted"]:
    """The report's word for how a run ended."""
    if failure is None:
        return "done"
    return "interrupted" if isinstance(failure, Interrupted) else "failed"
