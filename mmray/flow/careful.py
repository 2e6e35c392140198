"""Which sample ends the process that takes it: the care taken once a worker has died.

A fragment goes as a whole to a process of its own. Where that ends, its samples go one by one to
another; one that ends `TRIES` of them, with nothing else in hand, goes to quarantine. A process
that was killed for another reason is only started again.
"""

from collections.abc import Callable
from typing import Protocol

from mmray.errors import JobFailed, SampleError
from mmray.flow.batch import Answer, Batch, Timer, joined
from mmray.flow.child import Died
from mmray.sources.fragment import Fragment

WORKER_DIED = "WorkerDied"
TRIES = 2
IN_A_ROW = 8
"""Samples one after another that end their process: no sample's fault, and no end to be seen."""


class Process(Protocol):
    """What may die of what it is asked."""

    def ask(self, fragment: Fragment, uri: str) -> Answer:
        """Decode and encode a fragment of the shard `uri`. Raises Died."""
        ...


class Careful:
    """Decodes and encodes fragments whatever their samples do to the process. One for each worker.

    `start` makes a process that is ready; it raises Died, or JobFailed where none can be had.
    """

    def __init__(self, start: Callable[[], Process]) -> None:
        self._start = start
        self._process: Process | None = None
        self._in_a_row = 0

    def __call__(self, fragment: Fragment, uri: str, timer: Timer) -> tuple[Batch, int]:
        """The fragment's batch, and how many of its samples went through the encoder.

        Raises:
            JobFailed: `IN_A_ROW` samples ended their process, or it ends before it has any.
        """
        answers = self._answers(fragment, uri)
        for answer in answers:
            timer.add(answer.seconds)
        return joined([each.batch for each in answers]), sum(each.encoded for each in answers)

    def _answers(self, fragment: Fragment, uri: str) -> list[Answer]:
        if len(fragment.samples) > 1:
            try:
                answer = self._ask(fragment, uri)
            except Died:  # of which of them can't be told
                pass
            else:
                self._in_a_row = 0
                return [answer]
        return [self._alone(Fragment(fragment.span, [each]), uri) for each in fragment.samples]

    def _alone(self, one: Fragment, uri: str) -> Answer:
        (sample,) = one.samples
        deaths: list[Died] = []
        while len(deaths) < TRIES:
            try:
                answer = self._ask(one, uri)
            except Died as died:
                deaths.append(died)
                continue
            if sample.error is None:
                self._in_a_row = 0
            return answer
        last, self._in_a_row = deaths[-1], self._in_a_row + 1
        if self._in_a_row == IN_A_ROW:
            raise JobFailed(
                f"{IN_A_ROW} samples in a row ended their process, the last with {last}: "
                f"{sample.source_uri} {sample.source_key}. A broken library or a machine without "
                "memory does that; rows that were finished are committed"
            )
        words = f"each of {TRIES} processes that had it alone in hand ended with {last}"
        sample.error = SampleError(last.stage, WORKER_DIED, words)
        return self._alone(one, uri)

    def _ask(self, fragment: Fragment, uri: str) -> Answer:
        process, self._process = self._process or self._started(), None
        answer = process.ask(fragment, uri)
        self._process = process
        return answer

    def _started(self) -> Process:
        deaths: list[Died] = []
        while len(deaths) < TRIES:
            try:
                return self._start()
            except Died as died:
                deaths.append(died)
        raise JobFailed(f"the process ended with {deaths[-1]} while it loaded the encoder")
