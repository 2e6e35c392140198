"""`job: search`: many queries through an index, their hits to Parquet files.

    <output>/part-<hash>.parquet   hits of one piece of the queries, named after what it answers
    <output>/hits.json             names the parts that count; written last
    <output>/_mmray/               reports of runs

A run again does only what isn't there: pieces that a killed run left over, or those of new parts of
the store. Parts that answer something else by then (another version of the index) are removed.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmray.errors import Interrupted, JobFailed, SpecError, StorageError
from mmray.flow.run import noted_signals
from mmray.index import manifest as manifests
from mmray.index.batch import process
from mmray.index.batch.answers import Answered, Answering, Question, read_answered
from mmray.index.batch.batches import Piece, store_pieces
from mmray.index.batch.process import Opening
from mmray.index.batch.queryfile import QueryFile
from mmray.index.column import Column
from mmray.index.workers import spread
from mmray.jobs.begun import Begun
from mmray.jobs.queries import check, open_file, open_store
from mmray.report import Example, Report
from mmray.report.progress import Progress, progress
from mmray.specs.index import SearchSpec, StoreQueries
from mmray.storage import Storage, join
from mmray.store import Store
from mmray.store.schema import SUFFIX

HITS = "hits.json"

_PART = re.compile(r"part-[0-9a-f]{32}\.parquet")
_READERS = 16


def run(spec: SearchSpec, *, limit: int | None = None, quiet: bool = False) -> Report:
    """Run the job to its end.

    Raises:
        SpecError, RefusedError: the job can't start as asked; nothing was written.
        JobFailed, Interrupted: it ended early; `report` says what was answered.
    """
    if limit is not None:
        raise SpecError("limit", "is of embed jobs; a search asks all its queries")
    try:
        with progress(quiet=quiet) as show:
            return SearchJob(spec, show).run()
    finally:
        process.forget()


class SearchJob:
    """One run: what was resolved from the spec before any work."""

    def __init__(self, spec: SearchSpec, show: Progress) -> None:
        self.begun = Begun(spec.job)
        self.spec, self.show = spec, show
        self.storage = Storage.of(spec.storage)
        self.uri = self.storage.normalise(spec.index.uri)
        self.output = self.storage.normalise(spec.output)
        self.manifest = manifests.read(self.uri, self.storage, spec.index.version)
        self.opening = Opening(
            self.uri, self.manifest.version, self.storage, spec.where_seconds, spec.model
        )
        check(spec, self.manifest, self.storage)
        self.store: Store | None = None
        self.file: QueryFile | None = None
        if isinstance(spec.queries, StoreQueries):
            self.store = open_store(spec.queries, self.manifest, self.storage)
        else:
            self.file = open_file(spec.queries, self.manifest, self.storage)
        self.there: dict[str, Answered] = {}
        """What earlier runs left, by name."""
        self.names: list[str] = []
        """Of all pieces so far, in order."""
        self.done: dict[str, Answered] = {}
        """What this run did."""

    def run(self) -> Report:
        """Do what is left, and keep the report."""
        self.show.say("opening the index")
        self._open()
        self.there = self._found()
        failure: Interrupted | JobFailed | None = None
        outputs: dict[str, str | int] = {}
        try:
            self._work()
            outputs["hits"] = self._publish()
        except (Interrupted, JobFailed) as error:
            failure = error
        except StorageError as error:
            failure = JobFailed(str(error))
        report = self._report(failure, outputs)
        if failure is not None:
            failure.report = report
            raise failure
        return report

    def _open(self) -> None:
        """The index, and what may be wrong with the spec that only the index tells."""
        index = process.opened(self.opening)
        if self.spec.where is not None:
            index.allowed(self.spec.where)
        if (modality := self._encoded()) is not None:
            encoder = process.encoder(self.opening)
            encoder.require(encoder.card.through(modality))
        elif self.spec.model is not None:
            raise SpecError("model", "the queries are vectors, which need no encoder; leave it out")

    def _encoded(self) -> str | None:
        """The modality that the index's encoder is asked about: of words, which it embeds, or of
        vectors by another part of a combined one; None where only vectors are compared."""
        if self.store is None:
            return "text" if self.file is not None and self.file.holds == "text" else None
        asked, made = self.spec.queries, self.manifest.made
        if made.encoder_spec.get("kind") != "combined" or asked.column == made.column:
            return None
        return asked.column.removesuffix(SUFFIX)

    def _found(self) -> dict[str, Answered]:
        listed = self.storage.list(self.output, recursive=False)
        names = [each.uri.rpartition("/")[2] for each in listed]
        with ThreadPoolExecutor(_READERS) as pool:
            known = pool.map(
                lambda name: read_answered(self.storage, self.output, name),
                filter(_PART.fullmatch, names),
            )
            return {each.name: each for each in known if each is not None}

    def _work(self) -> None:
        resources, heavy = self.spec.resources, self.manifest.size
        with noted_signals() as signalled:
            answering = Answering(
                opening=self.opening,
                question=self._question(),
                column=self._column(),
                output=self.output,
                signalled=signalled,
            )
            self._tell()
            for _, answered in spread(answering, self._left(answering), resources, heavy):
                self.done[answered.name] = answered
                self._tell()
                if signalled:
                    raise Interrupted(signalled[0])

    def _left(self, answering: Answering) -> Iterator[Piece]:
        for piece in self._pieces():
            name = answering.question.name(piece)
            self.names.append(name)
            if name not in self.there:
                yield piece

    def _pieces(self) -> Iterable[Piece]:
        if self.store is not None:
            return store_pieces(self.store)
        assert self.file is not None
        return self.file.pieces()

    def _question(self) -> Question:
        queries, spec = self.spec.queries, self.spec
        where = "" if self.store is None else self.store.uri
        facts = [where, queries.column, getattr(queries, "id", None)]
        return Question(
            index=hashlib.sha256(self.manifest.to_json()).hexdigest(),
            queries=json.dumps(facts),
            k=spec.k,
            where=spec.where,
            exclude_self=spec.exclude_self,
            columns=spec.columns,
        )

    def _column(self) -> Column | None:
        if self.store is None:
            return None
        return Column(
            storage=self.storage,
            store=self.store.uri,
            name=self.spec.queries.column,
            dim=self.manifest.dim,
            unit=self.manifest.metric == "cosine",
            beside=("id",),
        )

    def _tell(self) -> None:
        done = sum(each.rows for each in self.done.values())
        before = sum(self.there[name].rows for name in self.names if name in self.there)
        total = self.store.count if self.store is not None else self.file and self.file.rows
        self.show.update(
            rows=done,
            filtered=sum(sum(each.left_out.values()) for each in self.done.values()),
            fraction=(done + before) / total if total else None,
            stage="searching",
        )

    def _publish(self) -> str:
        """Name the parts that count, and remove the others; the uri of what names them."""
        parts = [self.done.get(name) or self.there[name] for name in self.names]
        left_out: Counter[str] = Counter()
        for each in parts:
            left_out.update(each.left_out)
        told: dict[str, Any] = {
            "mmray_format": 1,
            "index": {
                "uri": self.uri,
                "version": self.manifest.version,
                "fingerprint": self.manifest.made.fingerprint,
            },
            "search": self.spec.model_dump(
                mode="json", include={"queries", "k", "where", "exclude_self", "columns"}
            ),
            "store_version": None if self.store is None else self.store.version,
            "queries": sum(each.queries for each in parts),
            "hits": sum(each.hits for each in parts),
            "left_out": dict(left_out),
            "parts": [
                {"path": each.name, "queries": each.queries, "hits": each.hits} for each in parts
            ],
        }
        uri = join(self.output, HITS)
        if self.done or not _says(self.storage, uri, told):
            self.storage.write_bytes(uri, json.dumps(told, indent=1).encode())
        for name in self.there.keys() - set(self.names):
            self.storage.delete(join(self.output, name))
        return uri

    def _report(
        self, failure: Interrupted | JobFailed | None, outputs: dict[str, str | int]
    ) -> Report:
        done = list(self.done.values())
        left_out: Counter[str] = Counter()
        stages: Counter[str] = Counter()
        examples: list[Example] = []
        for each in done:
            left_out.update(each.left_out)
            stages.update(each.seconds)
            examples += each.examples
        answered = sum(each.queries for each in done)
        seconds = stages["search"]
        manifest = self.manifest
        report = Report(
            **self.begun.fields(failure),
            rows_read=answered + left_out.total(),
            rows_written=answered,
            rows_skipped=sum(self.there[name].rows for name in self.names if name in self.there),
            rows_filtered=left_out.total(),
            filtered=dict(left_out),
            rows_per_second=answered / self.begun.elapsed() if answered else 0.0,
            stages=dict(stages),
            examples=examples,
            encoder={"name": manifest.made.encoder, "fingerprint": manifest.made.fingerprint},
            metrics={
                "k": self.spec.k,
                "hits": sum(each.hits for each in done),
                "queries_per_second": answered / seconds if seconds else 0.0,
                "recall": manifest.measured.recall,
            },
            outputs={
                "index": self.uri,
                "version": manifest.version,
                "output": self.output,
                **outputs,
            },
        )
        return report.save(self.storage, self.output) if done else report


def _says(storage: Storage, uri: str, told: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(storage.read_bytes(uri)) == told)
    except (FileNotFoundError, ValueError):
        return False
