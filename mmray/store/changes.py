"""What is committed: changes, each of them all or nothing."""

import json
from dataclasses import dataclass

from mmray.store.coverage import overlap
from mmray.store.parts import Receipt


@dataclass(frozen=True, slots=True)
class Change:
    """What is committed together or not at all.

    `remove` are active parts that leave. With `drop_uris` only their rows of these source_uris do
    (and quarantine rows of these source_uris): the other rows move to new parts in the same commit.
    """

    receipts: tuple[Receipt, ...] = ()
    remove: tuple[str, ...] = ()
    drop_uris: frozenset[str] = frozenset()
    data_change: bool = True
    """False: the same rows in other parts."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the receipts, and the version after."""

    committed: list[Receipt]
    dropped: list[Receipt]
    version: int


@dataclass(slots=True)
class Ready:
    """A change on its way, with the parts that keep the rows it does not drop."""

    change: Change
    receipts: list[Receipt]
    repeated: list[Receipt]
    """The same samples again: a task of Ray that ran twice."""
    torn: bool
    """Its own receipts overlap in a way that no choice among them mends."""
    kept: list[Receipt] | None = None
    landed: bool = False

    @property
    def all(self) -> list[Receipt]:
        """Its receipts and those of the parts that keep rows."""
        return self.receipts + (self.kept or [])


def make_ready(change: Change) -> Ready:
    """The change with samples that were done twice told apart."""
    receipts: list[Receipt] = []
    repeated: list[Receipt] = []
    torn = False
    for receipt in sorted(
        change.receipts, key=lambda r: (str(r.span)[:25], r.span.start, -r.span.stop)
    ):
        last = receipts[-1].span if receipts else None
        if last is None or not overlap(last, receipt.span):
            receipts.append(receipt)
        elif receipt.span.stop <= last.stop:
            repeated.append(receipt)
        else:
            torn = True
            receipts.append(receipt)
    return Ready(change, receipts, repeated, torn)


def uri_range(receipt: Receipt) -> tuple[str, str]:
    """The least and greatest source_uri of its samples."""
    uris = [row.source_uri for row in receipt.quarantined] or [receipt.shard_uri]
    if receipt.stats:
        stats = json.loads(receipt.stats)
        uris += [stats["minValues"]["source_uri"], stats["maxValues"]["source_uri"]]
    return min(uris), max(uris)
