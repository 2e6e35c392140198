"""How far a search for near-duplicates got, kept so that a killed run goes on from there.

    <folder>/<start>-<stop>.parquet   what was dropped while the rows at these places were settled

What is dropped depends on the rows alone, so files of two runs at once say the same.
"""

import io
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmray.index.batch.duplicates import Floats, Groups, Ints
from mmray.storage import Storage, join

Drops = tuple[Ints, Ints, Floats]
"""What `Groups.settle` gives."""

_NAME = re.compile(r"(\d{12})-(\d{12})\.parquet")
_SCHEMA = pa.schema([("place", pa.int64()), ("stands", pa.int64()), ("score", pa.float32())])


class Settled:
    """The files of one search, told apart from other searches by their folder."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder
        self._waiting: list[Drops] = []
        self._from = 0

    def restore(self, groups: Groups) -> None:
        """Bring `groups` to where the last run left them."""
        runs: dict[int, tuple[int, str]] = {}
        for each in self._storage.list(self._folder, recursive=False):
            if match := _NAME.fullmatch(each.uri.rpartition("/")[2]):
                start, stop = int(match[1]), int(match[2])
                runs[start] = max(runs.get(start, (0, "")), (stop, each.uri))
        while (run := runs.get(groups.settled)) and groups.settled < run[0] <= len(groups.rows):
            table = self._read(run[1])
            if table is None:
                break
            columns = (table[name].to_numpy() for name in _SCHEMA.names)
            groups.restore(run[0], *columns)
        self._from = groups.settled

    def add(self, drops: Drops) -> None:
        """What was dropped since; kept by the next `save`."""
        self._waiting.append(drops)

    def save(self, stop: int) -> None:
        """Keep what was added: the rows before place `stop` are settled."""
        if stop == self._from:
            return
        columns = [np.concatenate(each) for each in zip(*self._waiting, strict=True)]
        table = pa.table(columns, schema=_SCHEMA)
        out = io.BytesIO()
        pq.write_table(table, out, compression="zstd", write_page_checksum=True)
        uri = join(self._folder, f"{self._from:012d}-{stop:012d}.parquet")
        self._storage.write_bytes(uri, out.getvalue())
        self._waiting, self._from = [], stop

    def _read(self, uri: str) -> pa.Table | None:
        """A file; None where it isn't whole, and what it told has to be found again."""
        try:
            data = io.BytesIO(self._storage.read_bytes(uri))
            table = pq.ParquetFile(data, page_checksum_verification=True).read()
        except (FileNotFoundError, pa.ArrowException, OSError):
            return None
        return table if table.schema.equals(_SCHEMA) else None
