"""Duplicates in a batch: samples that repeat a row this worker has made are dropped or marked.

A row is remembered once it is known to be good, so that nothing is ever left out in favour of a
sample that ended in quarantine.
"""

from mmray.flow.batch import Batch, added
from mmray.specs.embed import DuplicateOptions
from mmray.transforms.duplicates import Duplicates

REASON = "duplicate"
COLUMN = "duplicate_of"


class Repeats:
    """What one worker remembers, applied around the encoding of each batch."""

    def __init__(self, options: DuplicateOptions) -> None:
        self._drops = options.action == "drop"
        self._known = Duplicates(options)

    def before(self, batch: Batch) -> None:
        """Drop what repeats an earlier batch, before it costs a forward pass."""
        if self._drops:
            found = [self._original(batch, row) for row in range(len(batch.samples))]
            _keep(batch, [row for row, original in enumerate(found) if original is None])

    def after(self, batch: Batch) -> None:
        """Drop or mark what repeats a good row, and remember the others."""
        marks: list[str | None] = []
        for row, (sample, key) in enumerate(zip(batch.samples, batch.keys, strict=True)):
            original = self._original(batch, row)
            marks.append(original)
            if key is not None and original is None and sample.error is None:
                self._known.add(key, sample.id)
        if self._drops:
            _keep(batch, [row for row, original in enumerate(marks) if original is None])
        else:
            batch.columns[COLUMN] = list(marks)

    def _original(self, batch: Batch, row: int) -> str | None:
        """The id of the row that this one repeats; a row that is made again isn't its own."""
        key, sample = batch.keys[row], batch.samples[row]
        if key is None or sample.error is not None:
            return None
        return self._known.find(key, apart_from=sample.id)


def _keep(batch: Batch, rows: list[int]) -> None:
    """Leave only these rows in the batch; the others are counted."""
    dropped = len(batch.samples) - len(rows)
    if not dropped:
        return
    batch.filtered = added(batch.filtered, {REASON: dropped})
    batch.samples = [batch.samples[row] for row in rows]
    batch.keys = [batch.keys[row] for row in rows]
    for lists in (batch.columns, batch.inputs, batch.vectors):
        for name, values in lists.items():
            lists[name] = [values[row] for row in rows]
