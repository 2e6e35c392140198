"""Several fetches at once: results come in the order of the jobs, with bounded bytes on their way.

The threads live as long as the generator: close it.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

THREADS = 8
AHEAD_BYTES = 64 * 1024 * 1024
"""What may be on its way or waiting, unless a single job is larger."""


@dataclass(frozen=True, slots=True)
class Later(Generic[T]):
    """What a thread is to call for a result."""

    run: Callable[[], T]


Job = tuple[int, T | Later[T]]
"""The bytes that a result holds at the most, and the result or how to get it."""


def in_order(jobs: Iterable[Job[T]]) -> Generator[T, None, None]:
    """The results of `jobs`; an error of a job is raised when its turn comes."""
    coming: deque[tuple[int, T | Future[T]]] = deque()
    size = 0
    with ThreadPoolExecutor(THREADS, "mmray-fetch") as pool:
        try:
            for cost, job in jobs:
                while coming and (len(coming) >= 2 * THREADS or size + cost > AHEAD_BYTES):
                    done, first = coming.popleft()
                    size -= done
                    yield _result(first)
                if isinstance(job, Later):
                    coming.append((cost, pool.submit(job.run)))
                    size += cost
                elif coming:
                    coming.append((cost, job))
                    size += cost
                else:
                    yield job
            while coming:
                yield _result(coming.popleft()[1])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result(first: T | Future[T]) -> T:
    return first.result() if isinstance(first, Future) else first
