"""`job: embed`: samples through an encoder into a store. Wires the rooms and nothing else."""

from dataclasses import dataclass
from typing import Any

import mmray
from mmray.encoders import EncodeOptions, describe
from mmray.errors import Interrupted, JobFailed, RefusedError, SpecError, StorageError
from mmray.flow.decoding import keeps_times
from mmray.flow.drive import cluster
from mmray.flow.plan import Plan, first_elsewhere, make_plan
from mmray.flow.run import Flow, Tally, check_budget
from mmray.flow.stages import Stages
from mmray.jobs.begun import Begun
from mmray.jobs.inspect import inspect_store
from mmray.jobs.modalities import check, dim_of, modalities, sampling
from mmray.report import Example, Report
from mmray.report.progress import Progress, progress
from mmray.report.vectors import Media
from mmray.sources import Cut, open_source
from mmray.specs import EmbedSpec
from mmray.storage import Storage
from mmray.store import Committer, Store, StoreColumns, StoreMeta
from mmray.store.rebuild import swap
from mmray.store.schema import require_columns
from mmray.store.table import staging_uri

PEEK = 16
"""Samples that are read to see whether a source has video."""


def run(spec: EmbedSpec, *, limit: int | None = None, quiet: bool = False) -> Report:
    """Run the job to its end.

    Raises:
        SpecError, RefusedError: the job can't start as asked; nothing was written.
        JobFailed, Interrupted: it ended early; `report` says what was committed.
    """
    with progress(quiet=quiet) as show:
        return EmbedJob(spec, limit, show).run()


@dataclass(frozen=True, slots=True)
class Found:
    """What is there before a run."""

    main: Store | None
    """The store that the spec names."""
    store: Store | None
    """The one that parts go to: `main`, or where it is built anew the one that this begins in."""
    rebuild: bool
    plan: Plan


class EmbedJob:
    """One run: what was resolved from the spec before any work."""

    def __init__(self, spec: EmbedSpec, limit: int | None, show: Progress) -> None:
        self.begun = Begun(spec.job)
        self.limit, self.show = limit, show
        self.storage = Storage.of(spec.storage)
        self.options = EncodeOptions(
            dtype=spec.dtype,
            batch_images=None if spec.batch.images == "auto" else spec.batch.images,
            batch_tokens=None if spec.batch.tokens == "auto" else spec.batch.tokens,
            max_tokens=spec.text.max_length,
            threads=max(1, int(spec.resources.cpus)),
            storage=self.storage,
        )
        self.spec = spec
        self.card = describe(spec.encoder, self.options)
        check(spec, self.card)
        self.source = open_source(spec.source, self.storage, spec.limits, wanted=spec.wanted)
        self.uri = self.storage.normalise(spec.store.uri)
        if spec.source.kind == "store" and self.storage.normalise(spec.source.uri) == self.uri:
            raise SpecError("store.uri", "is the source too; name another store")
        self.startup: dict[str, float] = {}
        self.tally = Tally()

    def run(self) -> Report:
        """Do what is left, and keep the report."""
        self.show.say("planning")
        found = self.look()
        plan, rebuild, main = found.plan, found.rebuild, found.main
        store = self._create(self._staging_uri) if rebuild else found.store
        store = store or self._create(self.uri)
        failure: Interrupted | JobFailed | None = None
        try:
            self._work(store, plan)
            if rebuild and main is not None and self.limit is None:
                swap(main, store)
                store = main
        except (Interrupted, JobFailed) as error:
            failure = error
        except StorageError as error:
            failure = JobFailed(str(error))
        report = self._report(store, plan, self.tally, failure)
        if failure is not None:
            failure.report = report
            raise failure
        return report

    def look(self) -> Found:
        """What is there and what is left to do. Writes nothing.

        Raises:
            RefusedError: the source can't be listed, or the store is another model's.
        """
        main = self._open(self.uri)
        if main is not None:
            self.modalities = modalities(self.spec, self.card, tuple(main.meta.dims))
        rebuild = main is not None and self._is_of_other_model(main)
        store = self._open(self._staging_uri) if rebuild else main
        plan = self._plan(store)
        if rebuild and main is not None:
            plan.removed = self._lost_by_rebuild(main)
        if main is None:
            self.modalities = modalities(self.spec, self.card, lambda: self._peek(plan))
        self.startup["plan"] = self.begun.elapsed()
        return Found(main, store, rebuild, plan)

    def _open(self, uri: str) -> Store | None:
        return Store.open(uri, self.storage) if Store.exists(uri, self.storage) else None

    def _peek(self, plan: Plan) -> frozenset[str]:
        """The modalities of the first samples."""
        if not plan.work:
            return frozenset()
        shard = plan.work[0].shard
        source = open_source(
            self.spec.source, self.storage, self.spec.limits, Cut(rows=PEEK), self.spec.wanted
        )
        first = next(source.read(shard, 0, shard.size, set()))
        return frozenset(each for sample in first.samples for each in sample.members)

    def _plan(self, store: Store | None) -> Plan:
        return make_plan(self.source, store, prune=self.spec.on_removed == "prune")

    def _work(self, store: Store, plan: Plan) -> None:
        prunes = plan.prunes if self.spec.on_removed == "prune" else []
        if not plan.work:  # a job that failed of its quarantine doesn't get well by being run again
            check_budget(self.spec.errors, plan, self.tally)
            if not prunes:
                return
        committer = Committer(store, run_id=self.begun.run_id, base_version=store.version)
        try:
            if plan.work:
                self._flow(store, committer, plan)
            if plan.work and prunes:  # what was changed has moved into other parts
                store.reload()
                prunes = self._plan(store).prunes
            if prunes:
                committer.commit(prunes)
        finally:
            committer.reconcile()

    def _flow(self, store: Store, committer: Committer, plan: Plan) -> None:
        def replan() -> Plan:
            store.reload()
            return self._plan(store)

        flow = Flow(self.stages(store.uri), committer, replan, self.show)
        self.tally = flow.tally
        self.show.say(f"starting Ray: {len(plan.work)} of {plan.shards} shards have work left")
        with cluster(self.spec.resources):
            self.startup["ray"] = self.begun.elapsed()
            flow.run(plan)

    def stages(self, root: str) -> Stages:
        """What a worker needs; parts go under the uri `root`."""
        return Stages(
            spec=self.spec,
            card=self.card,
            options=self.options,
            storage=self.storage,
            columns=self.columns,
            root=root,
            modalities=self.modalities,
            limit=self.limit,
            careful=self.limit is not None,
        )

    def _is_of_other_model(self, store: Store) -> bool:
        """Whether the store is to be built anew with this spec's encoder."""
        require_columns(store.uri, store.schema, self.columns.arrow_schema())
        if store.meta.fingerprint == self.card.fingerprint:
            store.meta.require_same(store.uri, self.meta)
            return False
        if self.spec.on_model_change == "refuse":
            raise RefusedError(
                f"{store.uri} was made by {store.meta.encoder} (fingerprint "
                f"{store.meta.fingerprint}); this spec's encoder is {self.card.name} (fingerprint "
                f"{self.card.fingerprint}). on_model_change: rebuild builds it anew; or name "
                "another store"
            )
        return True

    def _lost_by_rebuild(self, main: Store) -> list[str]:
        """Uris whose rows a rebuild can't make again, since their source is gone.

        Raises:
            RefusedError: it would take another job's rows out.
        """
        other = first_elsewhere(self.source, main)
        if other is not None:
            raise RefusedError(
                f"{main.uri} also holds rows that aren't of this source, such as those of {other}, "
                "and a rebuild would lose them: name a source that has all of them, or another "
                "store"
            )
        return self._plan(main).removed

    @property
    def _staging_uri(self) -> str:
        """The store that a rebuild gathers its parts in; an interrupted one is gone on with."""
        return staging_uri(self.uri, self.card.fingerprint)

    def _create(self, uri: str) -> Store:
        self.storage.require_conditional_put(uri)
        return Store.create(uri, self.storage, self.columns, self.meta)

    @property
    def columns(self) -> StoreColumns:
        """The columns of the store beside the base ones."""
        duplicates = self.spec.duplicates
        return StoreColumns(
            self.modalities,
            dict(self.spec.keep),
            thumbnail=bool(self.spec.thumbnails),
            times=keeps_times(self.spec),
            duplicate_of=duplicates is not None and duplicates.action == "mark",
        )

    @property
    def meta(self) -> StoreMeta:
        """What a store that this run makes says of itself."""
        return StoreMeta(
            fingerprint=self.card.fingerprint,
            encoder=self.card.name,
            dims={modality: dim_of(self.card, modality) for modality in self.modalities},
            normalised=self.spec.normalize,
            details=dict(self.card.details),
            lineage={
                "job": self.spec.job,
                "source": self.spec.source.model_dump(mode="json"),
                "encoder": self.spec.encoder.model_dump(mode="json"),
                "dtype": self.spec.dtype,
                "max_tokens": self.spec.text.max_length,
                "mmray": mmray.__version__,
                "created": self.begun.at.isoformat(timespec="seconds"),
            },
            sampling=sampling(self.spec, self.card, self.modalities),
        )

    def _report(
        self, store: Store, plan: Plan, tally: Tally, failure: Interrupted | JobFailed | None
    ) -> Report:
        return self.report(
            store,
            tally,
            failure,
            rows_skipped=plan.skipped_rows,
            shards={
                "total": plan.shards,
                "finished": plan.finished_shards,
                "changed": len(plan.changed),
                "removed": len(plan.removed),
            },
            changed=plan.changed,
            removed=plan.removed,
        )

    def report(
        self, store: Store, tally: Tally, failure: Interrupted | JobFailed | None, **more: Any
    ) -> Report:
        """What the tally says, with `more` fields of the report; kept where a sample was read."""
        begun = self.begun.fields(failure)
        store.reload()
        fields: dict[str, Any] = {
            **begun,
            "rows_read": tally.read,
            "rows_written": tally.written,
            "rows_quarantined": tally.quarantined,
            "rows_filtered": sum(tally.filtered.values()),
            "filtered": tally.filtered,
            "rows_encoded": tally.encoded,
            "rows_per_second": tally.read / begun["seconds"],
            "stages": tally.seconds,
            "startup": self.startup,
            "timeline": tally.timeline,
            "errors": tally.errors,
            "examples": [
                Example.model_validate(row, from_attributes=True) for row in tally.examples
            ],
            "encoder": {
                "name": self.card.name,
                "fingerprint": self.card.fingerprint,
                "dims": store.meta.dims,
            },
            "outputs": {"store": self.uri, "version": store.version},
        }
        report = Report(**fields | more)
        if not tally.read:
            return report  # nothing new to look at, and nothing to do should take no time
        previews = {each.id: Media(each.jpeg, each.audio, each.mime) for each in tally.previews}
        found = inspect_store(store, previews=previews)
        return report.save(self.storage, self.uri, vectors=found)
