"""Every error that mmray raises on purpose, and the record of why a sample was refused.

The split decides what happens next: a `SpecError` or `RefusedError` stops before any cluster work
(exit 2), a `BadSample` becomes a quarantine row, a `StorageError` was retried and stayed broken.
"""

from dataclasses import dataclass
from signal import Signals
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mmray.report import Report

Stage = Literal["read", "decode", "encode"]

MAX_MESSAGE = 500


class MmrayError(Exception):
    """Base of all errors that mmray raises on purpose."""


class SpecError(MmrayError):
    """A spec or an argument is wrong; `path` names the field (`source.uri`), or is empty."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        self.message = message
        super().__init__(f"{path}: {message}" if path else message)

    def __reduce__(self) -> tuple[type["SpecError"], tuple[str, str]]:
        return type(self), (self.path, self.message)


class RefusedError(MmrayError):
    """The job can't start as asked: a missing input, another model's store, no conditional put."""


class StorageError(MmrayError):
    """Object storage stayed broken after back-off; `uri` names the object."""

    def __init__(self, uri: str, message: str) -> None:
        self.uri = uri
        self.message = message
        super().__init__(f"{uri}: {message}")

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, str]]:
        return type(self), (self.uri, self.message)


class ShardChanged(StorageError):
    """A shard was rewritten while it was read; the next run takes its new content."""


class JobFailed(MmrayError):
    """The job ended before its work was done; what had finished is committed.

    `report` is what it did until then, where it got far enough to have one.
    """

    def __init__(self, message: str, report: "Report | None" = None) -> None:
        self.report = report
        super().__init__(message)

    def __reduce__(self) -> tuple[type["JobFailed"], tuple[str, "Report | None"]]:
        return type(self), (str(self), self.report)


class Interrupted(MmrayError):
    """Raised after SIGINT or SIGTERM, once finished work is committed.

    The exit code is 128 + `signum`: 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self, signum: int, report: "Report | None" = None) -> None:
        self.signum = signum
        self.report = report
        name = Signals(signum).name
        super().__init__(f"interrupted by {name}; finished work is committed, run again to go on")

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int, "Report | None"]]:
        return type(self), (self.signum, self.report)


class BadSample(Exception):
    """One sample can't be used. Raised by pure decode functions, caught by the flow."""

    def __init__(self, error_type: str, message: str) -> None:
        self.error_type = error_type
        self.message = message
        super().__init__(f"{error_type}: {message}")


@dataclass(frozen=True, slots=True)
class SampleError:
    """Why a sample is in quarantine: the stage it failed in, a type, and words for a person."""

    stage: Stage
    type: str
    message: str

    @classmethod
    def of(cls, stage: Stage, error: Exception) -> "SampleError":
        """The record of `error`; a `BadSample` gives its own type, others their class name."""
        kind = error.error_type if isinstance(error, BadSample) else type(error).__name__
        text = error.message if isinstance(error, BadSample) else str(error)
        return cls(stage, kind, text[:MAX_MESSAGE])
