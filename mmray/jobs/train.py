"""`job: train`: samples into a joint model, whose checkpoints are encoders. Wires the rooms and
nothing else.

One worker on this machine trains in this process; more of them, or a Ray address, train under Ray
Train. Both run the same loop.
"""

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from mmray.errors import Interrupted, JobFailed, SpecError, StorageError
from mmray.flow.run import noted_signals
from mmray.jobs.begun import Begun
from mmray.report import Report
from mmray.report.progress import Progress, progress
from mmray.report.train import train_page
from mmray.report.words import size
from mmray.specs.train import TrainSpec
from mmray.storage import Storage, blobs, join
from mmray.train.checkpoints import Checkpoints
from mmray.train.course import Ended
from mmray.train.pinned import Piece, remove_pieces
from mmray.train.seen import Events, Seen
from mmray.train.start import Start, begun_before
from mmray.train.task import Task, wants_ray
from mmray.train.track import check_installed, trackers

if TYPE_CHECKING:
    from mmray.train.begin import Pieces


def run(spec: TrainSpec, *, limit: int | None = None, quiet: bool = False) -> Report:
    """Train, or go on with a training; a finished one is left as it is.

    Raises:
        SpecError, RefusedError: the job can't start as asked.
        JobFailed, Interrupted: it ended early; checkpoints are kept, and it goes on from the last
            when the job runs again.
    """
    if limit is not None:
        raise SpecError("limit", "a train job takes its whole source")
    storage = Storage.of(spec.storage)
    # Ray Train starts each worker in a folder of its own.
    spec = spec.model_copy(update={"output": storage.normalise(spec.output)})
    with progress(quiet=quiet) as show, noted_signals() as signalled:
        run = _Run(spec, storage, show)
        try:
            return run.go(signalled)
        except StorageError as error:
            raise JobFailed(str(error), run.report(None, str(error))) from error
        except (JobFailed, Interrupted) as error:
            status = "failed" if isinstance(error, JobFailed) else "interrupted"
            error.report = error.report or run.report(None, str(error), status)
            raise


class _Run:
    def __init__(self, spec: TrainSpec, storage: Storage, show: Progress) -> None:
        self.spec, self.storage, self.show = spec, storage, show
        self.begun = Begun("train")
        self.start: Start | None = None
        self.checkpoints = Checkpoints(storage, spec.output)
        self.stages: dict[str, float] = {}

    def go(self, signalled: list[int]) -> Report:
        known = begun_before(self.spec, self.storage)
        if known is not None and (self.checkpoints.pointer() or {}).get("done"):
            self.start = known
            self._tidy()  # a run may have died before it did
            return self.report(None, "")
        check_installed(self.spec.track)
        self.show.say("loading torch")
        from mmray.train.begin import here

        if not wants_ray(self.spec):
            return self._go(signalled, here)
        from mmray.train.run import connected, spread_pieces

        self.show.say("starting Ray")
        with connected(self.spec):
            return self._go(signalled, spread_pieces)

    def _go(self, signalled: list[int], pieces: "Pieces") -> Report:
        from mmray.train.begin import begin

        spec, clock = self.spec, time.monotonic()
        made = partial(self._until_signalled, signalled, pieces)
        self.start = begin(spec, self.storage, self.show.say, made)
        self.stages["prepare"] = time.monotonic() - clock
        self._heed(signalled)
        clock = time.monotonic()
        with blobs.scratch() as folder:
            events = Events(self.storage, spec.output, self.begun.run_id, folder)
            told = trackers(spec, self.storage, self.show.say)
            seen = Seen(self.show, signalled, events, spec.train.epochs, told)
            task = Task(spec, self.start.pinned)
            code = 1
            try:
                ended = self._train(task, seen)
                code = 128 + ended.signum if ended.signum else int(bool(ended.failed))
            except Interrupted as error:
                code = 128 + error.signum
                raise
            finally:
                seen.close(code)
        self.stages["train"] = time.monotonic() - clock
        if ended.signum:
            interrupted = Interrupted(ended.signum)
            interrupted.report = self.report(ended, str(interrupted), "interrupted")
            raise interrupted
        if ended.failed:
            raise JobFailed(ended.failed, self.report(ended, ended.failed))
        self.checkpoints.finish(ended.course.step, ended.course.best_step)
        self._tidy()
        return self.report(ended, "")

    def _tidy(self) -> None:
        removed = remove_pieces(self.storage, self.spec.output)
        if removed:
            self.show.say(f"removed {size(removed)} of samples that were kept for training")

    def _until_signalled(
        self, signalled: list[int], pieces: "Pieces", *asked: Any
    ) -> Iterator[Piece]:
        """Pieces that are made stay, so a signal ends it between two."""
        for piece in pieces(*asked):
            yield piece
            self._heed(signalled)

    def _heed(self, signalled: list[int]) -> None:
        if signalled:
            raise Interrupted(signalled[0])

    def _train(self, task: Task, seen: Seen) -> Ended:
        if wants_ray(self.spec):
            from mmray.train.run import train

            return train(task, seen, self.show.say)
        from mmray.train.loop import Place
        from mmray.train.worker import device_of, work

        return work(task, Place(device=device_of(self.spec)), seen, self.show.say)

    def report(self, ended: Ended | None, message: str, status: str = "failed") -> Report:
        """What the run did; kept where it trained."""
        fields: dict[str, Any] = self.begun.fields(None)
        if message:
            fields |= {"status": status, "message": message}
        if self.start is None:
            return Report(**fields)
        pinned = self.start.pinned
        bad, filtered = pinned.errors, pinned.filtered
        fields["stages"] = self.stages
        fields["outputs"] = {"model": self.spec.output}
        if ended is None and not message:
            return Report(**fields, rows_skipped=pinned.read)
        fields |= {
            "rows_read": pinned.read,
            "rows_written": pinned.rows,
            "rows_quarantined": sum(bad.values()),
            "errors": bad,
            "examples": pinned.examples,
            "rows_filtered": sum(filtered.values()),
            "filtered": filtered,
        }
        if ended is None:
            return Report(**fields)
        if ended.samples:
            place = join(self.spec.output, "_mmray", "runs", self.begun.run_id, "batch.json")
            self.storage.write_bytes(place, json.dumps(ended.samples).encode())
            fields["outputs"]["batch"] = place
        fields["rows_per_second"] = ended.rows / ended.seconds if ended.seconds else 0.0
        report = Report(**fields, metrics=_metrics(self.start, ended))
        course = ended.course
        page = train_page(report, course.losses, course.epochs, self._about())
        return report.save(self.storage, self.spec.output, page)

    def _about(self) -> dict[str, str]:
        model = self.spec.model
        towers = {
            f"{name.capitalize()} tower": ", ".join(
                str(value)
                for value in (
                    tower.kind,
                    getattr(tower, "model", None),
                    getattr(tower, "train", None),
                )
                if value
            )
            for name, tower in model.towers.items()
        }
        heads = ", ".join(f"{name} ({weight:g})" for name, weight in model.heads.weights.items())
        return {**towers, "Fusion": model.fusion.kind, "Heads": heads, "Dim": str(model.dim)}


def _metrics(start: Start, ended: Ended) -> dict[str, float | int | str]:
    """Those of the best epoch, and what the training was."""
    course = ended.course
    best = next((each for each in course.epochs if each["step"] == course.best_step), {})
    told: dict[str, float | int | str] = {
        "steps": course.step,
        "epochs": len(course.epochs),
        "training_samples": start.train,
        "held_out_samples": start.test,
    }
    if course.losses:
        told["loss"] = course.losses[-1]
    if course.best_step is not None:
        told["best_step"] = course.best_step
    if start.unknown_classes:
        told["held_out_samples_of_unknown_classes"] = start.unknown_classes
    if ended.stopped_early:
        told["stopped_early"] = "yes"
    return {**{name: each for name, each in best.items() if "/" in name}, **told}
