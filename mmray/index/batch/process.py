"""The index that this process has open: pieces of work that come one after another share it."""

from dataclasses import dataclass
from functools import lru_cache

from mmray.index.searching.opened import Index
from mmray.index.searching.query import QueryEncoder
from mmray.storage import Storage


@dataclass(frozen=True, slots=True)
class Opening:
    """Which index, and how it's opened; can be pickled, and told from any other."""

    uri: str
    version: int
    storage: Storage
    where_seconds: float
    """Time that a condition may take."""
    model: str | None = None
    """Folder of its encoder's weights, where they lie elsewhere than they did for the store."""


@lru_cache(maxsize=1)
def opened(opening: Opening) -> Index:
    """`Index.open`, once."""
    return Index.open(
        opening.uri, opening.storage, opening.version, where_seconds=opening.where_seconds
    )


@lru_cache(maxsize=1)
def encoder(opening: Opening) -> QueryEncoder:
    """The encoder of its queries, loaded once."""
    return opened(opening).encoder(opening.model)


def forget() -> None:
    """Let go of both."""
    encoder.cache_clear()
    opened.cache_clear()
