"""How a training is seen while it runs: the progress display, TensorBoard's events, and trackers.

Events are written on this machine and put to `<output>/tensorboard/` after each epoch, one file for
each run; a run that goes on hides the steps that it does again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmray.report.progress import Progress
from mmray.storage import Storage, blobs
from mmray.train.track import Tracked, close_all

EVENTS = "tensorboard"


class Seen:
    """What a run shows; a `Watch` whose signals come from `signalled`."""

    def __init__(
        self,
        show: Progress,
        signalled: Sequence[int],
        events: "Events",
        epochs: int,
        trackers: Sequence[Tracked] = (),
    ) -> None:
        self._show, self._signalled, self._events, self._epochs = show, signalled, events, epochs
        self._trackers = trackers
        self._begun = self._steps = self._batch = 0
        self.losses: dict[int, float] = {}
        """Step to loss, of what this run saw."""

    def begun(self, step: int, steps: int, batch: int) -> None:
        """The loop goes on after `step` of `steps`."""
        if step:
            self._show.say(f"going on from step {step:,} of {steps:,}")
        self._begun = min(step, self._begun) if self._steps else step
        self._steps, self._batch = steps, batch
        self._events.open(step)
        for tracker in self._trackers:
            tracker.open()

    def stepped(self, step: int, loss: float, told: dict[str, float]) -> None:
        """A step is done."""
        done = step + 1
        self.losses[done] = loss
        epoch = 1 + step * self._epochs // self._steps
        self._show.update(
            rows=(done - self._begun) * self._batch,
            fraction=done / self._steps,
            stage=f"epoch {epoch}/{self._epochs} loss {loss:.3f}",
        )
        self._add(done, {f"train/{name}": value for name, value in told.items()})

    def measured(self, metrics: dict[str, float]) -> None:
        """An epoch is done."""
        step = int(metrics["step"])
        names = ("val/loss", "val/retrieval_r10", "val/accuracy")
        words = [f"{name} {metrics[name]:.3f}" for name in names if name in metrics]
        if words:
            self._show.say(f"epoch {int(metrics['epoch'])}: {', '.join(words)}")
        self._add(step, {name: each for name, each in metrics.items() if "/" in name})
        self._events.put()

    def signal(self) -> int:
        """The signal to stop by, or 0."""
        return self._signalled[0] if self._signalled else 0

    def close(self, code: int) -> None:
        """The run ends, with the exit code `code`."""
        try:
            self._events.close()
        finally:
            close_all(self._trackers, code)

    def _add(self, step: int, values: dict[str, float]) -> None:
        self._events.add(step, values)
        for tracker in self._trackers:
            tracker.add(step, values)


class Events:
    """TensorBoard's event file of a run."""

    def __init__(self, storage: Storage, output: str, run_id: str, folder: Path) -> None:
        self._storage, self._output, self._run_id = storage, output, run_id
        self._folder = folder
        self._writer: Any = None

    def open(self, step: int) -> None:
        """Begin after `step`; later events of earlier runs are hidden."""
        from tensorboardX import SummaryWriter

        if self._writer is None:
            purge = step + 1 if step else None
            self._writer = SummaryWriter(str(self._folder), purge_step=purge)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Numbers at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def put(self) -> None:
        """Bring what there is to the output."""
        if self._writer is None:
            return
        self._writer.flush()
        for file in sorted(self._folder.iterdir()):
            with blobs.scratch() as still:  # the writer goes on with its own file
                copy = still / file.name
                copy.write_bytes(file.read_bytes())
                path = f"{EVENTS}/{self._run_id}/{file.name}"
                blobs.put(self._storage, copy, self._output, path)

    def close(self) -> None:
        """Bring the rest."""
        if self._writer is not None:
            self.put()
            self._writer.close()
