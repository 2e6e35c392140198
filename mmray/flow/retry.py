"""What a replay hands around: the quarantined samples of a part to try, and what came of them.

One `Retry` is what one worker does and one commit swaps: a part of the store, or a fragment that
only the quarantine has.
"""

from dataclasses import dataclass, field, replace

from mmray.flow.batch import Preview
from mmray.sources.fragment import Shard, Span
from mmray.store.parts import Quarantined, Receipt

OF_ONE = frozenset(
    {
        "BadBase64",
        "BadDataUri",
        "BadJson",
        "BadMetadata",
        "BadText",
        "DuplicateKey",
        "DuplicateMember",
        "LinkBroken",
        "LinkMissing",
        "LinkRefused",
        "NoModality",
        "NonContiguousKey",
        "NotAnObject",
        "OversizedLine",
        "OversizedMember",
        "TooManyMembers",
        "UnsafeMember",
        "UnsupportedMember",
        "WrongType",
    }
)
"""Errors of reading that are of one sample. Any other, such as of a shard that could not be read,
may stand for all that comes after it in its fragment."""


def stands_for_more(row: Quarantined) -> bool:
    """Whether behind this one row of the quarantine there may be samples that nobody has seen."""
    return row.stage == "read" and row.error_type not in OF_ONE


@dataclass(frozen=True, slots=True)
class Again:
    """A fragment that is read again."""

    span: Span
    shard: Shard
    """What to read; of raw files, a slice of the wanted ones alone."""
    start: int
    stop: int
    wanted: frozenset[str]
    """Ids of the quarantined samples that are tried."""
    whole: bool = False
    """An error stands for samples that nobody has seen: all that the store lacks are tried."""
    seen: frozenset[str] = frozenset()
    """Quarantined keys of the shard that come before it."""
    files: bool = False
    """`shard` is a slice of the wanted raw files alone, not what the span names."""

    def without(self, uri: str, rows: list[Quarantined]) -> "Again":
        """The same without the samples of `uri`, which changed; nothing to try where that is all.

        `rows` are the quarantined samples of the fragment.
        """
        left = tuple(member for member in self.shard.members if member.uri != uri)
        if not left or len(left) == len(self.shard.members):
            return replace(self, wanted=frozenset())
        return replace(
            self,
            shard=replace(self.shard, members=left, size=len(left)),
            stop=len(left),
            wanted=self.wanted - {row.id for row in rows if row.source_uri == uri},
        )


@dataclass(frozen=True, slots=True)
class Run:
    """A contiguous run of fragments in a part, or a fragment that the quarantine alone has."""

    span: Span
    uri: str
    quarantined: tuple[Quarantined, ...]
    """All of its samples that count as quarantined, tried or not."""
    again: tuple[Again, ...] = ()


@dataclass(frozen=True, slots=True)
class Retry:
    """What one worker tries again, and one commit swaps."""

    path: str
    """The part; empty where the quarantine alone has the fragment."""
    runs: tuple[Run, ...]
    """One, unless another engine wrote the part."""
    beside: tuple[str, ...] = ()
    """Other parts of the same shards, whose keys are not new samples when they come back."""

    @property
    def wanted(self) -> frozenset[str]:
        """Ids of the quarantined samples that are tried."""
        return frozenset().union(*(each.wanted for run in self.runs for each in run.again))


@dataclass(slots=True)
class Retried:
    """What came of it. Without receipts nothing did, and the store stays as it is."""

    remove: str
    tried: frozenset[str]
    """Ids of the quarantined samples that were tried, or can't be: their shard has changed."""
    receipts: tuple[Receipt, ...] = ()
    written: int = 0
    """Rows that the store gets."""
    bad: list[Quarantined] = field(default_factory=list)
    """Tried and failed again."""
    filtered: dict[str, int] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    """Uris of what changed since it was listed; their samples were not tried."""
    skipped: int = 0
    """How many samples those are."""
    encoded: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    previews: tuple[Preview, ...] = ()
