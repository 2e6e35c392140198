"""The loop that turns a plan into commits: receipts come in, commits go out, every few seconds.

After a pass the plan is made anew if anything it wanted is not covered (a worker was lost, a shard
changed, another run was quicker), so a run ends only when the store accounts for the whole source.
"""

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from mmray.errors import Interrupted, JobFailed
from mmray.flow.batch import Failed, Finished, Preview, added
from mmray.flow.careful import WORKER_DIED
from mmray.flow.drive import Drive, Item
from mmray.flow.plan import Plan
from mmray.flow.retry import Retried
from mmray.flow.stages import Stages
from mmray.report import EXAMPLES_EACH, MAX_EXAMPLES
from mmray.report.progress import Progress
from mmray.sources.fragment import Span
from mmray.specs.common import Errors
from mmray.store import Change, Committer
from mmray.store.parts import Quarantined

COMMIT_SECONDS = 3.0
PASSES_WITHOUT_PROGRESS = 3
BUDGET_FROM = 1_000
"""Samples read before the error budget can end a job early."""
DEADLY = 20
"""Samples that ended their process, before it can do so too: each costs two starts."""
PREVIEWS = 400


@dataclass(slots=True)
class Tally:
    """What the run has committed so far."""

    started: float = field(default_factory=time.monotonic)
    written: int = 0
    quarantined: int = 0
    encoded: int = 0
    first_part: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    timeline: list[tuple[float, int]] = field(default_factory=list)
    filtered: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    examples: list[Quarantined] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)

    @property
    def read(self) -> int:
        """Samples that this run accounted for."""
        return self.written + self.quarantined + sum(self.filtered.values())

    def add(self, done: Finished | Retried, written: int, bad: Sequence[Quarantined]) -> None:
        """Count what was committed: rows written, and samples that are in quarantine."""
        self.written += written
        self.quarantined += len(bad)
        self.encoded += done.encoded
        for stage, seconds in done.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.filtered = added(self.filtered, done.filtered)
        for row in bad:
            known = self.errors.get(row.error_type, 0)
            if known < EXAMPLES_EACH and len(self.examples) < MAX_EXAMPLES:
                self.examples.append(row)
            self.errors[row.error_type] = known + 1
        self.previews += done.previews[: PREVIEWS - len(self.previews)]


class Flow:
    """Runs plans against one store until nothing is left."""

    def __init__(
        self,
        stages: Stages,
        committer: Committer,
        replan: Callable[[], Plan],
        show: Progress,
    ) -> None:
        self._stages, self._committer, self._replan, self._show = stages, committer, replan, show
        self.tally = Tally()
        self._ready: list[Change] = []
        self._finished: dict[str, Finished] = {}
        """By attempt: what becomes of the parts that wait for their commit."""
        self._earlier = Plan()
        """What the run began with."""
        self._dropped = 0
        """Parts of this pass that the store had no use for."""
        self._held: dict[str, list[Finished]] = {}
        """By shard: parts of changed shards, which wait until the shard is whole."""

    def run(self, plan: Plan) -> None:
        """Work the plan off.

        Raises:
            Interrupted: SIGINT or SIGTERM came; what had finished is committed.
            JobFailed: storage stayed broken, the encoder does not load, too many samples failed, or
                workers died again and again at the same place.
        """
        self._earlier = plan
        limit, strikes = self._stages.limit, 0
        with noted_signals() as signalled:
            while plan.work:
                before = self.tally.read
                failures = self._pass(plan, signalled)
                self._check_budget(at_end=False)
                left = None if limit is None else limit - self.tally.read - self._waiting()
                if not self._is_left() or (left is not None and left <= 0):
                    break
                strikes = 0 if self.tally.read > before else strikes + 1
                if strikes == PASSES_WITHOUT_PROGRESS:
                    raise JobFailed(_stuck(plan, failures, self._dropped))
                self._show.say("some work was not finished; taking it up again carefully")
                self._stages = replace(self._stages, careful=True, limit=left)
                plan = self._replan()
                self._committer.rebase()
        self._check_budget(at_end=True)

    def _pass(self, plan: Plan, signalled: list[int]) -> list[Failed]:
        failures: list[Failed] = []
        self._begin(plan)
        drive = Drive(plan.work, self._stages)
        last_commit = 0.0
        self._dropped = 0
        try:
            while (item := next_item(drive)) is not None:
                if isinstance(item, Finished):
                    self._take(item, plan)
                elif isinstance(item, Failed):
                    failures.append(item)
                    self._show.say(f"{item.uri}: {item.message}")
                    if item.fatal:
                        raise JobFailed(item.message)
                if signalled:
                    raise Interrupted(signalled[0])
                if self._ready and time.monotonic() - last_commit >= COMMIT_SECONDS:
                    self._commit()
                    self._check_budget(at_end=False)
                    last_commit = time.monotonic()
        finally:
            for finished in drive.stop():
                self._take(finished, plan)
            self._commit()
        return failures

    def _begin(self, plan: Plan) -> None:
        """Forget the pass before; what it held of changed shards is done again."""
        self._held = {}
        self._covered: dict[str, int] = {}
        self._wanted: dict[str, int] = {}
        self._fraction = 0.0
        for work in plan.work:
            length = work.stop - work.start
            self._wanted[work.shard.key] = self._wanted.get(work.shard.key, 0) + length

    def _count(self, span: Span, sign: int) -> None:
        """Shards count alike in the fraction: of a gzipped one the extent is not known."""
        length = sign * (span.stop - span.start)
        self._covered[span.shard] = self._covered.get(span.shard, 0) + length
        self._fraction += length / self._wanted[span.shard]

    def _take(self, finished: Finished, plan: Plan) -> None:
        receipt = finished.receipt
        self._finished[receipt.attempt] = finished
        span = receipt.span
        self._count(span, 1)
        replacement = plan.replacements.get(span.shard)
        if replacement is None:
            self._ready.append(Change(receipts=(receipt,)))
            return
        held = self._held.setdefault(span.shard, [])
        held.append(finished)
        if self._covered[span.shard] == self._wanted[span.shard]:
            self._ready.append(
                Change(
                    receipts=tuple(each.receipt for each in held),
                    remove=replacement.remove,
                    drop_uris=replacement.drop_uris,
                )
            )

    def _commit(self) -> None:
        if not self._ready:
            return
        ready, self._ready = self._ready, []
        outcome = self._committer.commit(ready)
        for receipt in outcome.committed:
            finished = self._finished.pop(receipt.attempt)
            self.tally.add(finished, receipt.rows, receipt.quarantined)
        self._dropped += len(outcome.dropped)
        for receipt in outcome.dropped:
            self._finished.pop(receipt.attempt, None)
            self._count(receipt.span, -1)
        elapsed = time.monotonic() - self.tally.started
        if outcome.committed:
            self.tally.first_part = self.tally.first_part or elapsed
            self.tally.timeline.append((round(elapsed, 3), self.tally.read))
        self._show.update(
            rows=self.tally.read,
            quarantined=self.tally.quarantined,
            filtered=sum(self.tally.filtered.values()),
            fraction=self._fraction / len(self._wanted),
        )

    def _waiting(self) -> int:
        """Samples of changed shards that are not whole, and so not committed."""
        held = [
            each
            for shard, parts in self._held.items()
            if self._covered[shard] != self._wanted[shard]
            for each in parts
        ]
        receipts = [each.receipt for each in held]
        left_out = sum(sum(each.filtered.values()) for each in held)
        return left_out + sum(each.rows + len(each.quarantined) for each in receipts)

    def _is_left(self) -> bool:
        """Whether any of the planned ranges is not covered by what was committed."""
        return any(self._covered.get(shard, 0) < length for shard, length in self._wanted.items())

    def _check_budget(self, *, at_end: bool) -> None:
        is_slow = self.tally.errors.get(WORKER_DIED, 0) >= DEADLY
        if self.tally.read >= (1 if at_end or is_slow else BUDGET_FROM):
            check_budget(self._stages.spec.errors, self._earlier, self.tally)


def check_budget(errors: Errors, earlier: Plan, tally: Tally) -> None:
    """Whether samples may go on failing, of all that are accounted for.

    Args:
        errors: what the spec allows.
        earlier: the plan that the run began with, which counts what was there before.
        tally: what the run has done since.

    Raises:
        JobFailed: more of them are in quarantine.
    """
    bad = tally.quarantined + earlier.skipped_quarantined
    total = tally.read + earlier.skipped_rows
    if bad <= errors.max_fraction * total:
        return
    kinds = sorted(tally.errors.items(), key=lambda each: -each[1])[:3]
    reasons = ", ".join(f"{count} {kind}" for kind, count in kinds) or "of earlier runs"
    raise JobFailed(
        f"{bad} of {total} samples are in quarantine ({reasons}), more than "
        f"errors.max_fraction = {errors.max_fraction:g} allows; rows that were finished are "
        "committed"
    )


def next_item(drive: Drive) -> Item | str | None:
    """The next item; "" after a while without one, so that commits and signals are not kept up."""
    try:
        item = drive.items.get(timeout=0.25)
    except queue.Empty:
        return ""
    if isinstance(item, BaseException):
        raise JobFailed(f"Ray could not run the stages: {type(item).__name__}: {item}") from item
    return item


def _stuck(plan: Plan, failures: list[Failed], dropped: int) -> str:
    if failures:
        first = failures[0]
        return f"{first.uri}: {first.message} ({PASSES_WITHOUT_PROGRESS} passes without progress)"
    if dropped:
        return (
            f"{plan.work[0].shard.uri}: the store had its samples by the time they were done "
            f"({PASSES_WITHOUT_PROGRESS} passes without progress): other runs are at work on it"
        )
    work = plan.work[0]
    span: Span = work.shard.span(work.start, work.stop)
    return (
        f"workers died {PASSES_WITHOUT_PROGRESS} times without finishing a fragment, first at "
        f"{work.shard.uri} (fragment {span}), and not of a sample that they decoded or encoded; "
        "out of memory is the usual reason"
    )


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted, so that finished work is committed; a second ends at once."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(signum: int, _frame: object) -> None:
        seen.append(signum)
        signal.signal(signum, before[signal.Signals(signum)])

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, note)
    try:
        yield seen
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
