"""Which failures of workers a run gets over: a lost worker, and never its own fault.

A worker that was killed, or whose machine went, says nothing, and the others only see that what
they did together broke off. From that a run begins again at the newest checkpoint. Whatever else a
worker raises, it would raise again.
"""

import torch.distributed as dist

from mmray.errors import JobFailed, MmrayError

RESTARTS = 16
"""Losses of workers that a run gets over."""
IDLE = 3
"""Losses in a row, without a step that hadn't been done before, that end it all the same."""
LONGEST = 400
"""Characters of what is said of one worker."""


def is_echo(error: BaseException) -> bool:
    """Whether an error may come from the end of another worker. nccl's have a type; gloo's are
    plain ones, which name its source file."""
    plain = type(error) is RuntimeError and "/gloo/" in str(error)
    return plain or isinstance(error, dist.DistError)


def own_fault(error: Exception, who: str) -> Exception:
    """What a run ends with when `who` raised `error`: as it would end in one process."""
    if isinstance(error, MmrayError | FileNotFoundError | PermissionError):
        return error
    words = f"{who}: {type(error).__name__}: {error}"
    return JobFailed(f"a fault in mmray, please report it: {words}")


def words_of(error: BaseException | None) -> str:
    """Which workers Ray Train says were lost, and how: a line."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        # Those that don't speak of another one are those that were lost.
        ordered = sorted(failures.items(), key=lambda each: (is_echo(each[1]), each[0]))
        lost = [each for each in ordered if not is_echo(each[1])] or ordered
        return "; ".join(f"worker {rank}: {_line(error)}" for rank, error in lost[:2])
    return _line(getattr(error, "controller_failure", error))


def _line(error: BaseException | None) -> str:
    lines = str(getattr(error, "health_check_failure", error)).splitlines()
    # Ray's own numbers of an actor stand in lines of their own, after a tab.
    words = " ".join(each.strip() for each in lines if not each.startswith("\t")).strip()
    return words if len(words) <= LONGEST else words[:LONGEST] + "..."


class Losses:
    """The losses of a run; those that make no headway end it."""

    def __init__(self) -> None:
        self._count = self._idle = 0
        self._furthest = -1

    def add(self, furthest: int, words: str) -> None:
        """Workers were lost after the step `furthest`, -1 before any. Raises JobFailed."""
        self._count += 1
        self._idle = 0 if furthest > self._furthest else self._idle + 1
        self._furthest = max(furthest, self._furthest)
        if self._idle == IDLE:
            raise JobFailed(f"workers were lost {IDLE} times without headway; the last: {words}")
        if self._count > RESTARTS:
            raise JobFailed(f"workers were lost {self._count} times; the last: {words}")
