"""Replay: what is in a store's quarantine is tried again. Wires the rooms and nothing else.

It takes the spec of the job that filled the store, with whatever was changed so that the samples
may come in: a limit raised, a class repaired, a right to read given.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmray.errors import Interrupted, JobFailed, SpecError, StorageError
from mmray.flow.drive import cluster
from mmray.flow.replay import Replay
from mmray.flow.replay_plan import ReplayPlan, Wish, plan_replay
from mmray.jobs.embed import EmbedJob
from mmray.jobs.modalities import modalities
from mmray.report import Report
from mmray.report.progress import Progress, progress
from mmray.specs import EmbedSpec, JobSpec, load_embed_spec, read_fields
from mmray.store import Committer, Store
from mmray.store.schema import require_columns


def replay(
    uri: str,
    spec: str | Path | Mapping[str, Any] | JobSpec,
    *,
    reasons: Sequence[str] = (),
    limit: int | None = None,
    quiet: bool = False,
) -> Report:
    """Try the quarantined samples of a store again; those that are good by now come into it.

    Nothing else is decoded or encoded, and no error budget applies. Samples whose shard has changed
    or is gone are left to the job, and counted as skipped.

    Args:
        uri: the store's; it takes the place of the spec's.
        spec: path of a YAML file, a mapping with the same fields, or what `load_spec` returned.
        reasons: only samples of these error types.
        limit: try so many samples at most.
        quiet: show no progress on standard error.

    Returns:
        What was tried (`rows_read`), is good now (`rows_written`) and is still in quarantine
        (`rows_quarantined`); its report page is at `outputs["page"]`.

    Raises:
        SpecError: a field is unknown, missing or wrong.
        RefusedError: no store is there, another model made it, or the source can't be listed;
            nothing was written.
        JobFailed: it ended before its work was done; what had finished is committed.
        Interrupted: SIGINT or SIGTERM came; what had finished is committed.
    """
    if limit is not None and limit < 1:
        raise SpecError("limit", f"must be a positive number, not {limit}")
    if isinstance(spec, str | Path | Mapping):
        spec = {"store": {"uri": uri}} | read_fields(spec)
    spec = load_embed_spec(spec, "replay")
    target = spec.store.model_copy(update={"uri": uri})
    spec = spec.model_copy(update={"store": target})
    with progress(quiet=quiet) as show:
        return _Replay(spec, Wish(tuple(reasons), limit), show).run()


class _Replay:
    """One replay: the job that its spec would run, on what is in quarantine."""

    def __init__(self, spec: EmbedSpec, wish: Wish, show: Progress) -> None:
        self.job, self.wish, self.show = EmbedJob(spec, None, show), wish, show

    def run(self) -> Report:
        job = self.job
        self.show.say("planning")
        store = Store.open(job.uri, job.storage)
        job.modalities = modalities(job.spec, job.card, tuple(store.meta.dims))
        store.meta.require_same(store.uri, job.meta)
        require_columns(store.uri, store.schema, job.columns.arrow_schema())
        job.storage.require_conditional_put(store.uri)
        plan = plan_replay(job.source, store, self.wish)
        job.startup["plan"] = job.begun.elapsed()
        replay = self._replay(store)
        failure: Interrupted | JobFailed | None = None
        try:
            if plan.work:
                self._try(store, replay, plan)
        except (Interrupted, JobFailed) as error:
            failure = error
        except StorageError as error:
            failure = JobFailed(str(error))
        report = self._report(store, plan, replay, failure)
        if failure is not None:
            failure.report = report
            raise failure
        return report

    def _replay(self, store: Store) -> Replay:
        job = self.job

        def replan(left: frozenset[str]) -> ReplayPlan:
            store.reload()
            return plan_replay(job.source, store, Wish(ids=left))

        # Among what failed there may be samples that end their worker.
        stages = dataclasses.replace(job.stages(store.uri), careful=True)
        return Replay(stages, lambda: self._committer(store), replan, self.show)

    def _committer(self, store: Store) -> Committer:
        run_id, meta = self.job.begun.run_id, self.job.meta
        return Committer(store, run_id, base_version=store.version, meta=meta)

    def _try(self, store: Store, replay: Replay, plan: ReplayPlan) -> None:
        wanted = len(plan.wanted)
        self.show.say(f"starting Ray: {wanted:,} of {plan.quarantined:,} samples are tried again")
        try:
            with cluster(self.job.spec.resources):
                self.job.startup["ray"] = self.job.begun.elapsed()
                replay.run(plan)
        finally:
            self._committer(store).reconcile()

    def _report(
        self,
        store: Store,
        plan: ReplayPlan,
        replay: Replay,
        failure: Interrupted | JobFailed | None,
    ) -> Report:
        changed = sorted({*plan.changed, *replay.changed})
        skipped = plan.skipped + replay.skipped
        if skipped:
            self.show.say(_advice(skipped, plan.elsewhere))
        return self.job.report(
            store,
            replay.tally,
            failure,
            job="replay",
            rows_skipped=skipped,
            shards={"changed": len(changed), "removed": len(plan.removed)},
            changed=changed,
            removed=plan.removed,
        )


def _advice(skipped: int, elsewhere: int) -> str:
    words = f"{skipped:,} quarantined samples were not tried"
    if elsewhere:
        words += f"; {elsewhere:,} are of another source than the spec's"
    if skipped > elsewhere:
        words += "; shards changed or are gone: `mmray run SPEC` takes what is there now"
    return words
