"""The small pictures that a store keeps of an index's rows, found by their fragments."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmray.errors import RefusedError
from mmray.sources.fragment import Span
from mmray.storage import Storage, join, with_backoff
from mmray.store.parts import ordinary
from mmray.store.table import Store


def thumbnails(
    storage: Storage, uri: str, version: int, fragments: Mapping[str, str]
) -> dict[str, bytes]:
    """JPEGs by id; only the parts that hold the rows are read.

    Args:
        storage: how to reach the store.
        uri: the store; one that is gone, or may not be read, has no pictures.
        version: to look at; where it or a file of it is gone, the latest.
        fragments: id to the name of the row's fragment.

    Raises:
        StorageError: storage stayed broken.
    """
    if not fragments:
        return {}
    for wanted in (version, None):
        try:
            return _found(Store.open(uri, storage, wanted), fragments)
        except (RefusedError, FileNotFoundError, PermissionError):
            continue
    return {}


def _found(store: Store, fragments: Mapping[str, str]) -> dict[str, bytes]:
    if "thumbnail" not in store.schema.names:
        return {}
    wanted: dict[str, set[str]] = {}
    for name, fragment in fragments.items():
        for path in store.stored.overlapping(Span.parse(fragment)):
            wanted.setdefault(path, set()).add(name)
    found: dict[str, bytes] = {}
    for path, ids in sorted(wanted.items()):
        found |= _read(store, path, ids)
    return found


def _read(store: Store, path: str, ids: set[str]) -> dict[str, bytes]:
    filesystem, base = store.storage.arrow_filesystem(store.uri)
    values = pa.array(sorted(ids), pa.string())

    def read() -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        with filesystem.open_input_file(join(base, path)) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            for group in range(parquet.num_row_groups):
                names = ordinary(parquet.read_row_group(group, columns=["id"]))["id"]
                mine = pc.is_in(names, value_set=values).to_numpy()
                if not mine.any():
                    continue
                places = pa.array(np.flatnonzero(mine))
                pictures = parquet.read_row_group(group, columns=["thumbnail"])["thumbnail"]
                pairs = zip(names.take(places), pictures.take(places), strict=True)
                found |= {name.as_py(): jpeg.as_py() for name, jpeg in pairs if jpeg.is_valid}
        return found

    return with_backoff(join(store.uri, path), read)
