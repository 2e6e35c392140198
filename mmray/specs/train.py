"""The spec of a train job, `job: train`: the data, the joint model, and how it learns.

The defaults are those that don't diverge when a pretrained tower is tuned as a whole: its own rate
is thirty times lower, the rate warms up, and gradients are clipped.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mmray.specs.common import Errors, Limits, SourceSpec, Spec, StorageOptions
from mmray.specs.joint import Fraction, Heads, ModelSpec
from mmray.specs.track import Track


class Split(Spec):
    """Which samples are held out."""

    group: str | None = None
    """Metadata field: samples of one value stay on one side, and are no negatives of each other.
    Left out: each sample by itself."""
    test: Fraction = 0.1
    """Part that is held out."""
    seed: int = 0


class TrainData(Spec):
    """The samples."""

    source: SourceSpec
    text: str = "caption"
    """Metadata field that is the sample's text."""
    frames: Annotated[int, Field(gt=0, le=256)] = 8
    """Frames taken of a video, evenly spread."""
    split: Split = Split()


class EarlyStopping(Spec):
    """Ends training when the held-out split gets no better."""

    metric: Annotated[str, Field(pattern=r"^val/\w+$")] = "val/loss"
    """Such as `val/loss`, `val/retrieval_r10`, `val/mrr` or `val/accuracy`."""
    patience: Annotated[int, Field(gt=0)] = 3
    """Epochs without an improvement."""


class Augment(Spec):
    """Changes to what trained towers see; 0 is none. Cached vectors are not changed."""

    crop: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Largest part of a side cut off a picture, at random."""
    color: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest change of brightness and contrast."""
    noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Noise in a wave, as a part of its loudness."""
    words: Fraction = 0.0
    """Part of a text's tokens that are hidden."""


class Adversarial(Spec):
    """Trains on the worst small change of the towers' vectors too."""

    kind: Literal["fgm", "pgd"] = "fgm"
    """`fgm`: one step along the gradient; `pgd`: several, kept in the ball of `size`."""
    size: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Length of the change, as a part of the vector's own."""
    steps: Annotated[int, Field(gt=0, le=20)] = 3
    """Of `pgd`."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Of the loss on changed vectors."""


class TrainOptions(Spec):
    """How the model learns."""

    epochs: Annotated[int, Field(gt=0)] = 10
    batch_size: Annotated[int, Field(gt=0)] = 128
    """Samples of one step, over all workers and all parts of `grad_accumulation`."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """`adamw`: with decoupled weight decay; `sgd`: with Nesterov momentum 0.9."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Highest learning rate of what is new: projections, fusion, heads, small towers, adapters."""
    tower_lr: Annotated[float, Field(gt=0)] = 1e-5
    """Highest learning rate of pretrained weights."""
    warmup: Fraction = 0.1
    """Part of the steps in which the rate rises; then it falls as a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Of matrices; biases, norms and temperatures have none."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 where the hardware has it."""
    grad_accumulation: Annotated[int, Field(gt=0)] = 1
    """Parts that a worker's batch is run in, to need less memory; negatives stay those of the whole
    batch."""
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; `null`: any."""
    modality_dropout: Fraction = 0.0
    """Chance that a modality of a sample is left out in training; one always stays."""
    augment: Augment = Augment()
    adversarial: Adversarial | None = None
    cache: bool = True
    """Whether vectors of frozen towers are computed once and kept."""
    checkpoint_steps: Annotated[int, Field(gt=0)] | None = None
    """Steps between checkpoints; left out: an epoch."""
    early_stopping: EarlyStopping | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _whole_batches(self) -> "TrainOptions":
        if self.adversarial is not None and self.grad_accumulation > 1:
            raise ValueError("adversarial needs whole batches: grad_accumulation must be 1")
        if self.grad_accumulation > self.batch_size:
            raise ValueError(
                f"grad_accumulation: {self.grad_accumulation} parts of {self.batch_size} samples"
            )
        return self


class TrainResources(Spec):
    """What the job may use."""

    address: str | None = None
    """Ray address; left out: `RAY_ADDRESS`, else Ray on this machine."""
    workers: Annotated[int, Field(gt=0)] | tuple[int, int] = 1
    """Workers: a number, or [least, most] where nodes come and go."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    loaders_per_worker: Annotated[int, Field(gt=0, le=64)] = 1
    """Processes that make a worker's batches, where the output is on `s3://`."""

    @model_validator(mode="after")
    def _workers_are_positive(self) -> "TrainResources":
        least, most = self.worker_range
        if least < 1 or most < least:
            raise ValueError("workers must be a positive number or a range [least, most]")
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """Least and most workers."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers


class TrainSpec(Spec):
    """Trains a joint model and writes it as a checkpoint folder, which is an encoder."""

    job: Literal["train"]
    data: TrainData
    model: ModelSpec
    train: TrainOptions = TrainOptions()
    resources: TrainResources = TrainResources()
    output: str
    """Folder or `s3://` prefix for checkpoints and the report."""
    track: Track = Track()
    errors: Errors = Errors()
    limits: Limits = Limits()
    storage: StorageOptions = StorageOptions()

    @field_validator("output")
    @classmethod
    def _output_is_named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must name a folder")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> "TrainSpec":
        most = self.resources.worker_range[1]
        parts = most * self.train.grad_accumulation
        if self.train.batch_size < parts:
            raise ValueError(
                f"train.batch_size: {self.train.batch_size} samples don't fill {most} workers"
                f" in {self.train.grad_accumulation} parts each"
            )
        stopping = self.train.early_stopping
        if stopping is not None:
            _check_metric(stopping.metric, self.model.heads)
        return self

    @property
    def wanted(self) -> frozenset[str]:
        """The metadata fields that the job looks at; a source may leave out the others."""
        heads = self.model.heads
        labels = [head.label for head in (heads.classify, heads.regress) if head is not None]
        group = self.data.split.group
        return frozenset({self.data.text, *labels, *([group] if group else [])})


_METRICS = {
    **dict.fromkeys(("retrieval_r1", "retrieval_r5", "retrieval_r10", "mrr"), "contrastive"),
    "accuracy": "classify",
}
"""Metric to the head that it needs, beside the losses."""


def _check_metric(metric: str, heads: Heads) -> None:
    name = metric.removeprefix("val/")
    if name == "loss":
        return
    needed = _METRICS.get(name, "")
    if name.startswith("loss_") and name.removeprefix("loss_") in Heads.model_fields:
        needed = name.removeprefix("loss_")
    if not needed:
        raise ValueError(
            f"train.early_stopping.metric: {metric} is not measured; there are val/loss,"
            " val/loss_<head>, val/retrieval_r1, _r5 and _r10, val/mrr and val/accuracy"
        )
    if getattr(heads, needed, None) is None:
        raise ValueError(f"train.early_stopping.metric: {metric} needs heads.{needed}")
