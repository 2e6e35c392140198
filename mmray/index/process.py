"""The index that this process has open: pieces of work that come one after another share it."""

from functools import lru_cache

from mmray.index.opened import Index
from mmray.index.query import QueryEncoder
from mmray.storage import Storage


@lru_cache(maxsize=1)
def opened(uri: str, storage: Storage, version: int) -> Index:
    """`Index.open`, once."""
    return Index.open(uri, storage, version)


@lru_cache(maxsize=1)
def encoder(uri: str, storage: Storage, version: int) -> QueryEncoder:
    """The encoder of its queries, loaded once."""
    return opened(uri, storage, version).encoder()


def forget() -> None:
    """Let go of both."""
    encoder.cache_clear()
    opened.cache_clear()
