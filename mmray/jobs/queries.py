"""What a search job asks with, checked before any work."""

from mmray.errors import RefusedError, SpecError
from mmray.index.batch.answers import OWN
from mmray.index.batch.queryfile import QueryFile
from mmray.index.manifest import Manifest
from mmray.index.searching.rows import SHOWN
from mmray.specs.index import FileQueries, SearchSpec, StoreQueries
from mmray.specs.problems import hint
from mmray.storage import Storage
from mmray.store import Store
from mmray.store.schema import SUFFIX


def check(spec: SearchSpec, manifest: Manifest, storage: Storage) -> None:
    """Refuse columns that hits can't bring, and an output that is an input. Raises SpecError."""
    kept = (*SHOWN, *manifest.columns)
    for name in spec.columns:
        if name in OWN:
            raise SpecError("columns", f"{name!r} is a column of every hit already; leave it out")
        if name not in kept:
            have = ", ".join(each for each in kept if each not in OWN)
            raise SpecError(
                "columns", f"the index keeps no {name!r}{hint(name, kept)}, only {have}"
            )
    if len(set(spec.columns)) < len(spec.columns):
        raise SpecError("columns", "one of them is named twice")
    output = storage.normalise(spec.output)
    for field, uri in (("index.uri", spec.index.uri), ("queries.uri", spec.queries.uri)):
        if output == storage.normalise(uri):
            raise SpecError("output", f"is {field} itself; name another folder")


def open_store(asked: StoreQueries, manifest: Manifest, storage: Storage) -> Store:
    """The store that queries are in.

    Raises:
        SpecError: it has no such column of vectors.
        RefusedError: they can't be compared with those of the index, or there are none.
    """
    store = Store.open(asked.uri, storage, asked.version)
    made, meta = manifest.made, store.meta
    if meta.fingerprint != made.fingerprint:
        raise RefusedError(
            f"{store.uri} holds vectors of {meta.encoder} (fingerprint {meta.fingerprint}); those "
            f"of the index are of {made.encoder} (fingerprint {made.fingerprint})"
        )
    columns = [each + SUFFIX for each in meta.dims]
    if asked.column not in columns:
        raise SpecError(
            "queries.column",
            f"{store.uri} has no vectors {asked.column!r}{hint(asked.column, columns)}, only "
            f"{', '.join(columns)}",
        )
    dim = meta.dims[asked.column.removesuffix(SUFFIX)]
    if dim != manifest.dim:
        raise RefusedError(
            f"{asked.column} of {store.uri} has {dim} dimensions, the index {manifest.dim}"
        )
    if not store.count:
        raise RefusedError(f"{store.uri}: the store has no rows, so there are no queries")
    return store


def open_file(asked: FileQueries, manifest: Manifest, storage: Storage) -> QueryFile:
    """The file that queries are in.

    Raises:
        SpecError, RefusedError: what QueryFile raises, and vectors of another encoder.
        StorageError: storage stayed broken.
    """
    file = QueryFile(asked, storage, manifest.dim, unit=manifest.metric == "cosine")
    made = manifest.made
    if file.holds == "vectors" and asked.fingerprint != made.fingerprint:
        raise RefusedError(
            f"queries.fingerprint: {file.uri} holds vectors of the encoder {asked.fingerprint}; "
            f"those of the index are of {made.encoder} (fingerprint {made.fingerprint})"
        )
    return file
