"""Retrieval indexes: built from a store's vectors, searched by what their encoder makes.

`manifest` says what an index is, as files on storage, `kinds` which kinds there are. `building`
makes one of the vectors that `column` reads, and measures it before it is published. `searching`
answers, `batch` does so for many queries at once, `upkeep` looks after versions, and `workers`
spreads work over a cluster.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmray.index.manifest import Made, Manifest, Measured, Segment
    from mmray.index.searching.opened import Hits, Index
    from mmray.index.searching.query import QueryEncoder, combine

__all__ = [
    "Hits",
    "Index",
    "Made",
    "Manifest",
    "Measured",
    "QueryEncoder",
    "Segment",
    "combine",
]

_MODULES = {
    "Hits": "searching.opened",
    "Index": "searching.opened",
    "Made": "manifest",
    "Manifest": "manifest",
    "Measured": "manifest",
    "QueryEncoder": "searching.query",
    "Segment": "manifest",
    "combine": "searching.query",
}
"""Names by the module that is imported when one is first used: faiss and DuckDB only to search."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mmray.index' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"mmray.index.{_MODULES[name]}"), name)
    return value
