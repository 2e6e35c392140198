"""Exactly once: two drivers, crashes between any two steps, lost replies, rollbacks."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake.exceptions import CommitFailedError

from mmray.errors import JobFailed, StorageError
from mmray.sources.fragment import Span, object_shard
from mmray.store import Change, Committer, Store, write_part
from mmray.store.rebuild import swap
from mmray.store.table import staging_uri
from mmray.store.verify import verify
from tests.unit.store_samples import (
    COLUMNS,
    META,
    SIZE,
    STORAGE,
    assert_exactly_once,
    committer,
    ids,
    new_store,
    part,
    quarantine_ids,
    quarantined,
    raw_quarantine,
    shard,
    table_of,
)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def step(
    on: Any,
    name: str,
    before: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> None:
    """Run hooks once around the next call of a step of one object."""  # fmt: skip
    inner = getattr(on, name)
    once = iter([True])

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        first = next(once, False)
        if first and before:
            before()
        result = inner(*args, **kwargs)
        if first and after:
            after()
        return result

    setattr(on, name, wrapped)


def kill() -> None:
    raise Killed


def test_parts_become_rows(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    receipt = part(store, a, [(0, 500), (500, SIZE)], bad=["k0003"])
    outcome = committer(store).commit([Change((receipt,))])
    assert outcome.committed == [receipt]
    assert outcome.version == 1
    assert_exactly_once(store, [a])
    store.reload()
    assert store.count == 99
    assert store.coverage().missing(a.key, a.version, SIZE) == []
    assert verify(store).ok


def test_a_store_that_became_another_models_takes_nothing_more(tmp_path: Path) -> None:
    """A rebuild was swapped in while the run was at work: its vectors are of the old model."""
    store, a, b = new_store(tmp_path), shard("a"), shard("b")
    run = committer(store)
    run.commit([Change((part(store, a, [(0, SIZE)]),))])
    meta = replace(META, fingerprint="e" * 32, encoder="other")
    staging = Store.create(staging_uri(store.uri, meta.fingerprint), STORAGE, COLUMNS, meta)
    committer(staging).commit([Change((part(staging, a, [(0, SIZE)]),))])
    swap(Store.open(store.uri, STORAGE), Store.open(staging.uri, STORAGE))
    late = Change((part(store, b, [(0, SIZE)]),))
    with pytest.raises(JobFailed, match=r"vectors of other .*not of fake .*another run"):
        run.commit([late])
    assert_exactly_once(store, [a])
    # One that begins only now says what its vectors are.
    with pytest.raises(JobFailed, match=r"vectors of other .*not of fake"):
        Committer(Store.open(store.uri, STORAGE), "replay", meta=META).commit([late])
    assert_exactly_once(store, [a])


def test_the_same_change_again_adds_nothing(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    change = Change((part(store, a, [(0, SIZE)], bad=["k0003"]),))
    run = committer(store)
    run.commit([change])
    assert run.commit([change]).committed == list(change.receipts)
    assert committer(store).commit([change]).version == 1
    assert_exactly_once(store, [a])
    assert len(raw_quarantine(store)) == 1


def test_a_task_that_ran_twice_counts_once(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    one, two = (part(store, a, [(0, SIZE)], bad=["k0003"]) for _ in range(2))
    for changes in ([Change((one,)), Change((two,))], [Change((one, two))]):
        outcome = committer(store).commit(changes)
        assert len(outcome.committed) <= 1
        assert len(outcome.committed) + len(outcome.dropped) == 2
        assert_exactly_once(store, [a])


def test_receipts_that_tear_a_change_are_dropped(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    change = Change((part(store, a, [(0, 600)]), part(store, a, [(400, SIZE)])))
    assert committer(store).commit([change]).committed == []
    assert ids(store) == []


STEPS = ["ensure", "groups", "apply", "remove"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", STEPS)
def test_killed_at_any_step_then_run_again(tmp_path: Path, name: str, when: str) -> None:
    store, a = new_store(tmp_path), shard()
    first = committer(store, "first")
    victim = first._store if name == "apply" else first._store.quarantine
    step(victim, name, **{when: kill})
    with pytest.raises(Killed):
        first.commit([Change((part(store, a, [(0, 500), (500, SIZE)], ["k0003", "k0070"]),))])
    second = committer(store, "second")
    for start, stop in Store.open(store.uri, STORAGE).coverage().missing(a.key, a.version, SIZE):
        second.commit([Change((part(store, a, [(start, stop)], ["k0003", "k0070"]),))])
    second.reconcile()
    assert_exactly_once(store, [a])
    assert len(raw_quarantine(store)) == 2
    assert verify(store).ok


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", STEPS)
def test_another_driver_between_any_two_steps(tmp_path: Path, name: str, when: str) -> None:
    store, a = new_store(tmp_path), shard()
    one, two = committer(store, "one"), committer(store, "two")
    theirs = Change((part(store, a, [(0, 500)], ["k0003"]),))
    other_bad = Change((part(store, a, [(500, SIZE)], ["k0070"]),))
    mine = Change((part(store, a, [(0, 500)], ["k0003", "k0004"]),))
    also = Change((part(store, a, [(500, 800)], ["k0060"]),))
    victim = one._store if name == "apply" else one._store.quarantine
    step(victim, name, **{when: lambda: two.commit([theirs, other_bad])})
    outcome = one.commit([mine, also])
    assert len(outcome.committed) in (0, 2)
    one.reconcile()
    two.reconcile()
    if outcome.committed:
        assert quarantine_ids(store) == sorted(
            row.id for change in (mine, also) for r in change.receipts for row in r.quarantined
        )
        last = committer(store, "three")
        last.commit([Change((part(store, a, [(800, SIZE)]),))])
    assert_exactly_once(store, [a])
    assert raw_quarantine(store) == quarantine_ids(store)
    assert verify(store).ok


def test_two_wholly_quarantined_attempts_count_once(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    a = object_shard("/in/empty.tar", "1", 20)
    span = a.span(0, 20)

    def empty() -> Change:
        failed = [quarantined(a, span, "k0000"), quarantined(a, span, "k0001")]
        return Change((write_part(STORAGE, store.uri, table_of([]), [span], a.uri, failed),))

    one, two = committer(store, "one"), committer(store, "two")
    step(one._store.quarantine, "ensure", before=lambda: two.commit([empty()]))
    one.commit([empty()])
    assert len(quarantine_ids(store)) == 2
    one.reconcile()
    two.reconcile()
    assert len(raw_quarantine(store)) == 2
    fresh = Store.open(store.uri, STORAGE)
    assert fresh.coverage().missing(a.key, a.version, 20) == []
    assert fresh.version == 0
    assert committer(store).commit([empty()]).committed == []
    # A later attempt that could use them takes them over.
    rows = table_of([(a.uri, f"k000{n}", a.etag, span) for n in range(2)])
    good = write_part(STORAGE, store.uri, rows, [span], a.uri)
    assert committer(store).commit([Change((good,))]).committed == [good]
    assert raw_quarantine(store) == []


def lost_reply() -> None:
    raise OSError("error sending request: connection reset")


def test_a_commit_whose_reply_was_lost_counts_once(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    run = committer(store)
    step(run._store, "apply", after=lost_reply)
    receipt = part(store, a, [(0, SIZE)], ["k0003"])
    assert run.commit([Change((receipt,))]).committed == [receipt]
    assert_exactly_once(store, [a])
    assert run._store.version == 1


def test_a_lost_reply_where_no_row_is_added(tmp_path: Path) -> None:
    """A changed shard that's wholly broken: the commit only removes."""
    store, old, new = new_store(tmp_path), shard(etag="1"), shard(etag="2")
    first = part(store, old, [(0, SIZE)], ["k0003"])
    committer(store).commit([Change((first,))])
    span = new.span(0, SIZE)
    failed = [quarantined(new, span, "")]
    broken = write_part(STORAGE, store.uri, table_of([]), [span], new.uri, failed)
    run = committer(store)
    step(run._store, "apply", after=lost_reply)
    outcome = run.commit([Change((broken,), (first.path,))])
    assert outcome.committed == [broken]
    assert ids(store) == []
    assert quarantine_ids(store) == raw_quarantine(store) == [failed[0].id]


def test_a_lost_reply_of_the_quarantine_adds_rows_once(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    run = committer(store)
    step(run._store.quarantine, "_append", after=lost_reply)
    run.commit([Change((part(store, a, [(0, SIZE)], ["k0003"]),))])
    assert len(raw_quarantine(store)) == 1
    assert_exactly_once(store, [a])


def test_a_commit_that_never_lands_gives_up(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    run = Committer(store, "run", patience=0.2)

    def broken(*args: Any) -> None:
        raise OSError("503 service unavailable")

    store.apply = broken  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="no commit went through"):
        run.commit([Change((part(store, a, [(0, SIZE)]),))])
    store.apply = lambda *args: (_ for _ in ()).throw(PermissionError(13, "denied"))  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="denied"):
        run.commit([Change((part(store, a, [(0, SIZE)]),))])


def test_a_stale_commit_is_refused_by_the_table(tmp_path: Path) -> None:
    store, a, b = new_store(tmp_path), shard("a"), shard("b")
    one, two = Store.open(store.uri, STORAGE), Store.open(store.uri, STORAGE)
    one.apply([(part(store, a, [(0, SIZE)]), True)], [], "x", "one")
    with pytest.raises(CommitFailedError):
        two.apply([(part(store, b, [(0, SIZE)]), True)], [], "y", "two")
    two.reload()
    assert two.landed("x", 0) == 1
    assert two.landed("y", 0) is None


def test_a_changed_shard_is_replaced_in_one_commit(tmp_path: Path) -> None:
    store, old, new = new_store(tmp_path), shard(etag="1"), shard(etag="2")
    before = [part(store, old, [(0, 500)], ["k0003"]), part(store, old, [(500, SIZE)])]
    committer(store).commit([Change(tuple(before))])
    after = [part(store, new, [(0, 300)], ["k0004"]), part(store, new, [(300, SIZE)])]
    change = Change(tuple(after), tuple(r.path for r in before))
    # Without all old parts, the shard would stand in two versions.
    assert not committer(store).commit([Change(tuple(after), (before[0].path,))]).committed
    assert not committer(store).commit([Change(tuple(after))]).committed
    outcome = committer(store).commit([change])
    assert outcome.version == 2
    assert_exactly_once(store, [new])
    assert len(raw_quarantine(store)) == 1
    # Another driver that planned the same replacement comes too late.
    assert (
        not committer(store)
        .commit([Change((part(store, new, [(0, SIZE)]),), change.remove)])
        .committed
    )
    assert_exactly_once(store, [new])


def test_two_drivers_replace_one_shard_by_different_versions(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    one, two, three = (shard(etag=etag) for etag in "123")
    first = part(store, one, [(0, SIZE)])
    committer(store).commit([Change((first,))])
    slow, quick = committer(store, "slow"), committer(store, "quick")
    change = Change((part(store, three, [(0, SIZE)], ["k0003"]),), (first.path,))
    theirs = Change((part(store, two, [(0, SIZE)], ["k0005"]),), (first.path,))
    step(slow._store, "apply", before=lambda: quick.commit([theirs]) and None)
    assert not slow.commit([change]).committed
    assert_exactly_once(store, [two])
    assert len(raw_quarantine(store)) == 1


def test_rollback_takes_coverage_back_and_a_rerun_brings_rows(tmp_path: Path) -> None:
    store, a, b = new_store(tmp_path), shard("a"), shard("b")
    committer(store).commit([Change((part(store, a, [(0, SIZE)], ["k0003"]),))])
    receipt = part(store, b, [(0, SIZE)], ["k0004"])
    committer(store).commit([Change((receipt,))])
    store.reload()
    assert store.rollback(1) == 3
    assert store.coverage().missing(b.key, b.version, SIZE) == [(0, SIZE)]
    assert_exactly_once(store, [a])
    committer(store).commit([Change((part(store, b, [(0, SIZE)], ["k0004"]),))])
    assert_exactly_once(store, [a, b])
    assert len(raw_quarantine(store)) == 2
    assert verify(Store.open(store.uri, STORAGE)).ok
    # The very receipt that was rolled back can be committed again as well.
    store.reload()
    store.rollback(1)
    assert committer(store).commit([Change((receipt,))]).committed == [receipt]
    assert_exactly_once(store, [a, b])


def test_rollback_over_a_replacement_brings_quarantined_back(tmp_path: Path) -> None:
    store, old, new = new_store(tmp_path), shard(etag="1"), shard(etag="2")
    first = part(store, old, [(0, SIZE)], ["k0003"])
    committer(store).commit([Change((first,))])
    committer(store).commit([Change((part(store, new, [(0, SIZE)]),), (first.path,))])
    assert raw_quarantine(store) == []
    store.reload()
    store.rollback(1)
    assert_exactly_once(store, [old])
    assert len(quarantine_ids(store)) == 1
    store.rollback(2)
    assert_exactly_once(store, [new])
    store.rollback(1)
    assert_exactly_once(store, [old])


def test_a_rollback_under_a_running_commit(tmp_path: Path) -> None:
    store, a, b = new_store(tmp_path), shard("a"), shard("b")
    committer(store).commit([Change((part(store, a, [(0, SIZE)], ["k0001"]),))])
    run, admin = committer(store), Store.open(store.uri, STORAGE)
    step(run._store, "apply", before=lambda: admin.rollback(0) and None)
    run.commit([Change((part(store, b, [(0, SIZE)], ["k0002"]),))])
    assert_exactly_once(store, [b])


def test_reconcile_leaves_what_another_driver_is_about_to_commit(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard("a")
    slow, tidy = committer(store, "slow"), committer(store, "tidy")
    step(slow._store, "apply", before=lambda: tidy.reconcile() and None)
    slow.commit([Change((part(store, a, [(0, SIZE)], ["k0003"]),))])
    assert_exactly_once(store, [a])


def test_rows_that_a_tidy_driver_took_for_dead_come_back(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard("a")
    slow = committer(store, "slow")
    eager = Committer(Store.open(store.uri, STORAGE), "eager", grace=timedelta(seconds=-1))
    step(slow._store, "apply", before=lambda: eager.reconcile() and None)
    slow.commit([Change((part(store, a, [(0, SIZE)], ["k0003"]),))])
    assert_exactly_once(store, [a])


def test_rows_of_a_replaced_part_leave_with_the_next_run(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard("a")
    committer(store).commit([Change((part(store, a, [(0, SIZE)], ["k0003", "k0004"]),))])
    store.reload()
    [old] = store.stored.parts
    killed = committer(store, "killed")
    step(killed._store, "apply", after=kill)  # a replay that made one of the two good
    change = Change((part(store, a, [(0, SIZE)], ["k0003"]),), remove=(old,))
    with pytest.raises(Killed):
        killed.commit([change])
    assert raw_quarantine(store) != quarantine_ids(store)
    assert committer(store, "next").reconcile() == 2
    assert raw_quarantine(store) == quarantine_ids(store)
    assert_exactly_once(store, [a])


def test_dead_rows_leave_after_their_grace(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard("a")
    dead = committer(store, "dead")
    step(dead._store, "apply", before=kill)
    with pytest.raises(Killed):
        dead.commit([Change((part(store, a, [(0, SIZE)], ["k0003"]),))])
    assert quarantine_ids(store) == []
    assert committer(store).reconcile() == 0
    later = Committer(Store.open(store.uri, STORAGE), "later", grace=timedelta(seconds=-1))
    assert later.reconcile() == 1
    assert raw_quarantine(store) == []


def test_prune_takes_rows_and_quarantine(tmp_path: Path) -> None:
    store, a, b = new_store(tmp_path), shard("a"), shard("b")
    spans = [(0, 10), (10, SIZE)]
    first = part(store, a, spans, ["k0000", "k0020"])
    committer(store).commit([Change((first,)), Change((part(store, b, [(0, SIZE)], ["k0001"]),))])
    committer(store).commit([Change(remove=(first.path,))])
    assert_exactly_once(store, [b])
    fresh = Store.open(store.uri, STORAGE)
    assert fresh.coverage().versions(a.key) == set()
    assert len(raw_quarantine(store)) == 1


def test_a_version_of_the_span_type(tmp_path: Path) -> None:
    assert Span.parse(str(shard().span(0, 5))) == shard().span(0, 5)
