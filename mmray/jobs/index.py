"""`job: index`: a store's vectors into a retrieval index. Wires the rooms and nothing else."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmray.errors import Interrupted, JobFailed, SpecError, StorageError
from mmray.flow.run import noted_signals
from mmray.index.building.asked import Asked, look
from mmray.index.building.build import Build, Built
from mmray.index.manifest import Manifest
from mmray.index.searching.pictures import thumbnails
from mmray.index.searching.rows import Rows
from mmray.index.searching.segments import dead_rows
from mmray.jobs.begun import Begun
from mmray.report import Report
from mmray.report.index import CurvePoint, index_page
from mmray.report.progress import progress
from mmray.report.vectors import Inspection, Item, Neighbours, Space
from mmray.specs.index import IndexSpec
from mmray.storage import Storage, blobs
from mmray.storage.blobs import File


def run(spec: IndexSpec, *, limit: int | None = None, quiet: bool = False) -> Report:
    """Build the index, or bring it up to date; a second run with nothing new does nothing.

    Raises:
        SpecError, RefusedError: the job can't start as asked; nothing was written.
        JobFailed, Interrupted: it ended early; nothing was published, and what is done of it counts
            when the job runs again.
    """
    if limit is not None:
        raise SpecError("limit", "an index job takes the whole store; `store.version` pins one")
    storage = Storage.of(spec.storage)
    with progress(quiet=quiet) as show, noted_signals() as signalled:
        run = _Run(look(spec, storage))
        show.say(f"looking at {run.asked.store.uri} version {run.asked.store.version}")
        try:
            built = Build(run.asked, run.begun.run_id, show, signalled).run()
        except (Interrupted, JobFailed) as error:
            error.report = run.failed(error)
            raise
        except StorageError as error:
            failure = JobFailed(str(error))
            failure.report = run.failed(failure)
            raise failure from error
        return run.report(built)


class _Run:
    """What a report says of this run."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.begun = asked, Begun("index")

    def failed(self, error: Interrupted | JobFailed) -> Report:
        """Of a run that published nothing; kept nowhere."""
        return Report(**self._fields(error))

    def report(self, built: Built) -> Report:
        """What was built; kept where anything was."""
        version = built.manifest
        left_out = Counter(built.left_out)
        skipped = version.rows - built.added if built.before is not None and not built.why else 0
        report = Report(
            **self._fields(None),
            rows_read=built.added + left_out.total(),
            rows_written=built.added,
            rows_skipped=max(0, skipped),
            rows_filtered=left_out.total(),
            filtered=dict(left_out),
            stages=built.seconds,
            metrics=_metrics(built),
        )
        outputs: dict[str, str | int] = {
            "index": self.asked.root,
            "version": version.version,
            "store": self.asked.made.store,
            "store_version": self.asked.made.store_version,
        }
        report = report.model_copy(update={"outputs": outputs})
        if built.before is version:
            return report  # nothing new, and nothing to do should take no time
        curve = [
            CurvePoint(
                _words(tried.parameters),
                tried.recall,
                tried.queries_per_second,
                chosen=tried.parameters == version.parameters,
            )
            for tried in built.curve
        ]
        page = index_page(report, curve, _facts(version), self._inspection(built))
        return report.save(self.asked.storage, self.asked.root, page)

    def _fields(self, failure: Interrupted | JobFailed | None) -> dict[str, Any]:
        made = self.asked.made
        return {
            **self.begun.fields(failure),
            "encoder": {
                "name": made.encoder,
                "fingerprint": made.fingerprint,
                "dims": {made.modality: self.asked.dim},
            },
        }

    def _inspection(self, built: Built) -> Inspection:
        """What some held-out queries find."""
        storage, version = self.asked.storage, built.manifest

        def fetch(file: File) -> Path:
            return blobs.get(storage, self.asked.root, file)

        shown = {number for own, hits in built.samples for number in (own, *(n for n, _ in hits))}
        if not shown:
            return Inspection()
        paths = {segment.table.path: fetch(segment.table) for segment in version.segments}
        rows = Rows(version, paths, dead_rows(version, fetch))
        numbers = sorted(shown)
        wanted = ["id", "source_key", "fragment", *({"caption"} & version.columns.keys())]
        table = rows.table(np.array(numbers), wanted).to_pylist()
        known = dict(zip(numbers, table, strict=True))
        pictures = thumbnails(
            storage,
            version.made.store,
            version.made.store_version,
            {row["id"]: row["fragment"] for row in table},
        )

        def item(number: int, score: float = 1.0) -> Item:
            row = known[number]
            jpeg = pictures.get(row["id"])
            return Item(row["id"], row["source_key"], str(row.get("caption") or ""), jpeg, score)

        near = tuple(
            Neighbours(item(own), tuple(item(number, score) for number, score in hits))
            for own, hits in built.samples
        )
        return Inspection(spaces=(Space(version.made.modality, near),))


def _metrics(built: Built) -> dict[str, float | int | str]:
    version, measured = built.manifest, built.manifest.measured
    found: dict[str, float | int | str] = {
        "kind": version.kind,
        "factory": version.factory,
        "recall": measured.recall,
        "k": measured.k,
        "min_recall": version.min_recall,
        "queries_per_second": measured.queries_per_second,
        "queries": measured.queries,
        "threads": measured.threads,
        "rows": version.rows,
        "bytes": version.size,
        "rows_removed": built.removed,
    }
    if built.why:
        found["rebuilt"] = built.why
    return {**found, **version.parameters}


def _facts(version: Manifest) -> dict[str, str]:
    return {
        "Kind": f"{version.kind} ({version.factory})",
        "Metric": version.metric.replace("_", " "),
        "Dimensions": str(version.dim),
        "Search": _words(version.parameters) or "exact",
        "Segments": f"{len(version.segments):,}",
        "Rows that don't count": f"{version.dead_rows:,}",
        "Queries from": version.measured.column,
    }


def _words(parameters: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(parameters.items()))
