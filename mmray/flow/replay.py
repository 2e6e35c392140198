"""The loop of a replay: quarantined samples are tried again until each has had its answer.

Like `run`, with two differences. What is to be done is read from the quarantine, not from the
source; and a part's commit takes the part out that it replaces. A commit that came too late, since
a compaction or another replay was first, and work that died with its worker are planned anew.
"""

import time
from collections.abc import Callable

from mmray.errors import Interrupted, JobFailed
from mmray.flow.batch import Failed
from mmray.flow.drive import Drive, Item
from mmray.flow.replay_plan import ReplayPlan
from mmray.flow.retry import Retried
from mmray.flow.run import (
    COMMIT_SECONDS,
    PASSES_WITHOUT_PROGRESS,
    Tally,
    next_item,
    noted_signals,
)
from mmray.flow.stages import Stages
from mmray.report.progress import Progress
from mmray.store import Change, Committer

Replan = Callable[[frozenset[str]], ReplayPlan]
"""The plan for those of these ids that are in quarantine by now; the store is read anew."""


class Replay:
    """Tries the samples of a plan, and of the plans after it, until none is left."""

    def __init__(
        self,
        stages: Stages,
        committer: Callable[[], Committer],
        replan: Replan,
        show: Progress,
    ) -> None:
        self._stages, self._committer, self._replan, self._show = stages, committer, replan, show
        self.tally = Tally()
        self.changed: list[str] = []
        """Uris of what changed while it was read."""
        self.skipped = 0
        """Quarantined samples in them."""
        self._ready: list[Retried] = []
        self._answered: set[str] = set()
        self._wanted = 0

    def run(self, plan: ReplayPlan) -> None:
        """Work the plan off.

        Raises:
            Interrupted: SIGINT or SIGTERM came; what had finished is committed.
            JobFailed: storage stayed broken, the encoder does not load, or workers died again and
                again.
        """
        wanted, strikes = plan.wanted, 0
        self._wanted = len(wanted)
        with noted_signals() as signalled:
            while plan.work:
                before = len(self._answered)
                failures = self._pass(plan, signalled)
                left = wanted - self._answered
                if not left:
                    break
                strikes = 0 if len(self._answered) > before else strikes + 1
                if strikes == PASSES_WITHOUT_PROGRESS:
                    raise JobFailed(_stuck(plan, failures))
                self._show.say("some work was not finished; taking it up again")
                plan = self._replan(left)

    def _pass(self, plan: ReplayPlan, signalled: list[int]) -> list[Failed]:
        failures: list[Failed] = []
        committer = self._committer()
        drive = Drive(plan.work, self._stages)
        last_commit = 0.0
        try:
            while (item := next_item(drive)) is not None:
                if not isinstance(item, str):
                    self._take(item, failures)
                if signalled:
                    raise Interrupted(signalled[0])
                if self._ready and time.monotonic() - last_commit >= COMMIT_SECONDS:
                    self._commit(committer)
                    last_commit = time.monotonic()
        finally:
            for _ in range(drive.items.qsize()):
                waiting = drive.items.get_nowait()
                if isinstance(waiting, Retried):
                    self._ready.append(waiting)
            drive.stop()
            self._commit(committer)
        return failures

    def _take(self, item: Item, failures: list[Failed]) -> None:
        if isinstance(item, Retried):
            self._ready.append(item)
        elif isinstance(item, Failed):
            failures.append(item)
            self._show.say(f"{item.uri}: {item.message}")
            if item.fatal:
                raise JobFailed(item.message)

    def _commit(self, committer: Committer) -> None:
        ready, self._ready = self._ready, []
        swaps = [each for each in ready if each.receipts]
        landed: set[str] = set()
        if swaps:
            outcome = committer.commit(
                [Change(each.receipts, (each.remove,) if each.remove else ()) for each in swaps]
            )
            landed = {receipt.attempt for receipt in outcome.committed}
        for each in ready:
            if all(receipt.attempt in landed for receipt in each.receipts):
                self._count(each)
        if ready:
            tally, done = self.tally, len(self._answered)
            self._show.update(
                rows=tally.read, quarantined=tally.quarantined, fraction=done / self._wanted
            )

    def _count(self, retried: Retried) -> None:
        tally = self.tally
        self._answered |= retried.tried
        self.changed += retried.changed
        self.skipped += retried.skipped
        tally.add(retried, retried.written, retried.bad)
        elapsed = time.monotonic() - tally.started
        tally.first_part = tally.first_part or elapsed
        tally.timeline.append((round(elapsed, 3), tally.read))


def _stuck(plan: ReplayPlan, failures: list[Failed]) -> str:
    words = f"({PASSES_WITHOUT_PROGRESS} passes without progress)"
    if failures:
        return f"{failures[0].uri}: {failures[0].message} {words}"
    return (
        f"{plan.work[0].runs[0].uri}: no answer came for its quarantined samples {words}; out of "
        "memory is the usual reason"
    )
