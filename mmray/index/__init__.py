"""Retrieval indexes: built from a store's vectors, searched by what their encoder makes.

`manifest` says what an index is, as files on storage. `build` makes one from `column` by `pieces`
and measures it before it is published; `opened` answers: `loaded` holds the vectors, `rows` and
`where` what is known of them, and `query` makes a vector of words, a picture or a sound.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmray.index.manifest import File, Made, Manifest, Measured, Segment
    from mmray.index.opened import Hits, Index
    from mmray.index.query import QueryEncoder, combine

__all__ = [
    "File",
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
    "File": "manifest",
    "Hits": "opened",
    "Index": "opened",
    "Made": "manifest",
    "Manifest": "manifest",
    "Measured": "manifest",
    "QueryEncoder": "query",
    "Segment": "manifest",
    "combine": "query",
}
"""Names by the module that is imported when one is first used: faiss and DuckDB only to search."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mmray.index' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"mmray.index.{_MODULES[name]}"), name)
    return value
