"""The training loop, plain torch: the same in one process, under Ray Train and under torchrun.

Each step's samples are a function of (seed, step), and random numbers of the sample too, or of the
rank (dropout): a run which goes on from a checkpoint does what an undisturbed one does. All ranks
decide alike at each step: on a loss that isn't a number, and on a signal.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmray.errors import JobFailed, RefusedError
from mmray.models.joint import checkpoint
from mmray.models.joint.batch import JointBatch, JointOutput
from mmray.models.joint.learning import make_optimizer, parameter_groups, rate
from mmray.models.joint.losses import cached_contrastive
from mmray.models.joint.model import JointModel
from mmray.specs.train import TrainSpec
from mmray.train import packing
from mmray.train.batches import Batches
from mmray.train.checkpoints import COURSE, MODEL, Checkpoints, path_of
from mmray.train.course import Course, Ended, Watch
from mmray.train.feed import Feed, Making, one_ahead
from mmray.train.measure import Found, better, evaluate
from mmray.train.order import mixed, share_of
from mmray.train.samples import Samples


@dataclass(frozen=True, slots=True)
class Place:
    """Which worker this is."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Data:
    """What a loop reads."""

    batches: Batches
    feed: Feed = one_ahead
    """Where batches of steps come from; those that measure are made here."""
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Files that go into every checkpoint's model, by path: tokenizers. They are held, since the
    checkpoint that they come from goes when it's old."""

    @property
    def samples(self) -> Samples:
        """All of them."""
        return self.batches.samples


class Loop:
    """One worker's part of a training."""

    def __init__(
        self, spec: TrainSpec, model: JointModel, data: Data, place: Place, folder: Path
    ) -> None:
        """`model` and `folder` are of the checkpoint that the training goes on from."""
        self.spec, self.model, self.data, self.place = spec, model, data, place
        options = spec.train
        self.making = Making(options, data.batches, place.rank, place.world)
        self.batch, self.steps = self.making.batch, self.making.steps
        self.epoch_steps = self.making.epoch_steps
        if self.batch < place.world:
            raise RefusedError(
                f"{len(data.samples.train)} training samples for {place.world} workers"
            )
        if 0 < len(data.samples.test) < place.world:
            raise RefusedError(
                f"{len(data.samples.test)} held-out samples for {place.world} workers"
            )
        module: torch.nn.Module = model  # transformers' own `to` has no types
        module.to(place.device).train(True)
        groups = parameter_groups(model, options.lr, options.tower_lr, options.weight_decay)
        self.rates = [group["lr"] for group in groups]
        self.optimizer = make_optimizer(options.optimizer, groups)
        self.weights = [weight for group in groups for weight in group["params"]]
        self.course = Course()
        if (folder / f"{COURSE}.json").is_file():
            self._resume(packing.read(folder, COURSE))
        self._saved = self.course.step
        """The step of the newest checkpoint."""
        self.net: Any = model
        if place.world > 1:
            self.net = DistributedDataParallel(model, broadcast_buffers=False)
        weighted = [name for name, weight in spec.model.heads.weights.items() if weight > 0]
        self.turns = weighted if spec.model.losses == "alternate" else [None]
        self.parts = min(options.grad_accumulation, self.batch // place.world)

    def run(self, checkpoints: Checkpoints, watch: Watch) -> Ended:
        """Train to the end, or to what ends it. Rank 0 writes checkpoints and tells `watch`.

        Raises:
            StorageError: a checkpoint can't be written.
            JobFailed: the device has too little memory.
        """
        start, begun = time.monotonic(), self.course.step
        first = self.place.rank == 0
        if first:
            watch.begun(begun, self.steps, self.batch)
        ended = partial(self._ended, start, begun)
        try:
            steps = range(begun, self.steps)
            for step, made in zip(steps, self.data.feed(self.making, steps), strict=True):
                batch = made.to(self.place.device)
                if self._stopped_early():
                    return ended(stopped_early=True)
                told, signum = self._step(step, batch, watch.signal() if first else 0)
                if not _finite(told):
                    self._save(checkpoints)  # what was learned before stays
                    return ended(failed=self._diverged(step, told), samples=self._ids(step))
                self.course.step += 1
                self.course.losses.append(told["loss"])
                if first:
                    watch.stepped(step, told["loss"], told)
                self._end_of_epoch(watch)
                if self._due(stop=bool(signum)) and not self._save(checkpoints):
                    return ended(failed=self._diverged(step, told), samples=self._ids(step))
                if signum and self.course.step < self.steps:
                    return ended(signum=signum)
            return ended(stopped_early=self.course.step < self.steps)
        except torch.OutOfMemoryError as error:
            raise JobFailed(
                f"{self.place.device} has too little memory for step {self.course.step}; a larger"
                f" train.grad_accumulation or a smaller train.batch_size needs less: {error}"
            ) from error
        finally:
            if first:
                checkpoints.wait()

    def _ended(self, start: float, begun: int, **how: Any) -> Ended:
        rows = (self.course.step - begun) * self.batch
        return Ended(self.course, seconds=time.monotonic() - start, rows=rows, **how)

    def _step(self, step: int, batch: JointBatch, signum: int) -> tuple[dict[str, float], int]:
        """One step of the optimizer; what is told is the mean over ranks, and the signal that any
        rank had."""
        options = self.spec.train
        torch.manual_seed(mixed(options.seed, step, self.place.rank))
        by = rate(step, self.steps, options.warmup)
        for group, highest in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = highest * by
        only = self.turns[step % len(self.turns)]
        output = self._backward(batch, only)
        told, agreed = self._agree(output, signum)
        limit = math.inf if options.grad_clip is None else options.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self.weights, limit)
        told["grad_norm"], told["rate"] = float(norm), by
        if _finite(told):
            self.optimizer.step()
            self.model.after_step(step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        return told, agreed

    def _backward(self, batch: JointBatch, only: str | None) -> JointOutput:
        output: JointOutput
        if self.parts > 1:
            skip = self.net.no_sync if self.place.world > 1 else nullcontext
            return cached_contrastive(self.model, batch.parts(self.parts), self.net, only, skip)
        output = self.net(batch, only)
        assert output.loss is not None
        output.loss.backward()  # type: ignore[no-untyped-call]
        return output

    def _agree(self, output: JointOutput, signum: int) -> tuple[dict[str, float], int]:
        assert output.loss is not None
        losses = {**output.losses, "loss": output.loss}
        values = torch.stack([each.detach().float() for each in losses.values()])
        values = torch.cat([values, torch.tensor([float(signum)], device=values.device)])
        if self.place.world > 1:
            dist.all_reduce(values)
            values[:-1] /= self.place.world
        *means, agreed = values.tolist()
        return dict(zip(losses, means, strict=True)), int(agreed)

    def _end_of_epoch(self, watch: Watch) -> None:
        course = self.course
        if course.step % self.epoch_steps:
            return
        if len(self.data.samples.test):
            self._measure()
        else:
            course.best_step = course.step
            course.epochs.append({"epoch": course.step // self.epoch_steps, "step": course.step})
        if self.place.rank == 0:
            watch.measured(course.epochs[-1])

    def _due(self, *, stop: bool) -> bool:
        """Whether a checkpoint is wanted after a step."""
        step, every = self.course.step, self.spec.train.checkpoint_steps
        return stop or step % self.epoch_steps == 0 or bool(every and step % every == 0)

    def _measure(self) -> None:
        course = self.course
        metrics = evaluate(self.model, self._held_out(), self.place.rank)
        when = {"epoch": float(course.step // self.epoch_steps), "step": float(course.step)}
        course.epochs.append({**when, **metrics})
        name = metric_of(self.spec)
        value = metrics[name]
        if math.isfinite(value) and better(name, value, course.best):
            course.best, course.best_step, course.stale = value, course.step, 0
        else:
            course.stale += 1

    def _stopped_early(self) -> bool:
        stopping = self.spec.train.early_stopping
        return stopping is not None and self.course.stale >= stopping.patience

    def _save(self, checkpoints: Checkpoints) -> bool:
        """Write a checkpoint, unless its step has one. False where a weight isn't a number: then
        none is written, and ranks agree on it, since they have the same weights."""
        if self._saved == self.course.step:
            return True
        if not all(bool(weight.isfinite().all()) for weight in self.weights):
            return False
        self._saved = self.course.step
        if self.place.rank != 0:
            return True
        model, course = self.model, self.course
        weights = packing.copied(checkpoint.moving(model))
        history = {**asdict(course), "losses": torch.tensor(course.losses, dtype=torch.float64)}
        state = packing.copied(
            {
                "course": history,
                "optimizer": self.optimizer.state_dict()["state"],
                "tunings": [tuning.state() for tuning in model.tunings()],
            }
        )
        beside = self.data.beside

        def write(folder: Path, again: bool) -> None:
            into = folder / MODEL
            checkpoint.save(model, into, weights, frozen=not again)
            packing.write(state, folder, COURSE)
            for name, data in beside.items():
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                (into / name).write_bytes(data)

        checkpoints.save(course.step, write, course.best_step)
        return True

    def _resume(self, state: dict[str, Any]) -> None:
        history = dict(state["course"])
        history["losses"] = history["losses"].tolist()
        self.course = Course(**history)
        if state["optimizer"]:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        for tuning, kept in zip(self.model.tunings(), state["tunings"], strict=True):
            tuning.load_state(kept)

    def _held_out(self) -> Iterator[Found]:
        place = self.place
        every = held_out_parts(self.data.samples.test, self.spec.train.batch_size, place.world)
        parts = [share_of(part, place.rank, place.world) for part in every]
        for rows, batch in zip(parts, one_ahead(self.data.batches, parts), strict=True):
            match = torch.from_numpy(self.data.samples.match[rows])
            yield batch.to(place.device), match.to(place.device)

    def _ids(self, step: int) -> tuple[str, ...]:
        return tuple(self.data.samples.ids(self.making.rows(step)))

    def _diverged(self, step: int, told: dict[str, float]) -> str:
        """What went wrong at a step, on which samples, and what is left."""
        values = {"the loss": told["loss"], "the gradient": told["grad_norm"]}
        wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        what = wrong[0] if wrong else "a weight is no number"
        ids = self._ids(step)
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8:,} more" if len(ids) > 8 else "")
        kept = f"the weights of step {self._saved} are kept in {path_of(self._saved)}"
        return f"{what} at step {step}, on the samples {shown}; {kept}"


def held_out_parts(rows: np.ndarray, batch: int, world: int) -> list[np.ndarray]:
    """Held-out samples in batches of nearly one size; no rank is without rows in any."""
    count = min(math.ceil(len(rows) / max(batch, world)), len(rows) // world)
    return np.array_split(rows, max(1, count))


def _finite(told: dict[str, float]) -> bool:
    return math.isfinite(told["loss"]) and math.isfinite(told["grad_norm"])


def metric_of(spec: TrainSpec) -> str:
    """What tells the best checkpoint."""
    stopping = spec.train.early_stopping
    return "val/loss" if stopping is None else stopping.metric
