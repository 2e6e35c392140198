"""How a training begins: once, and then it is pinned.

`<output>/_mmray/train.json` says what is trained on what. It is written when the pinned samples and
the checkpoint of step 0 are there, so whoever runs the same spec again goes on from them: a source
that has grown since doesn't disturb a training that is under way.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from mmray.encoders.joint_config import Settled, settle
from mmray.errors import RefusedError, SpecError
from mmray.sources import Shard, Source, open_source
from mmray.specs.train import TrainSpec
from mmray.storage import Storage
from mmray.train.checkpoints import MODEL, Checkpoints, path_of
from mmray.train.decoded import NO_GROUP
from mmray.train.kept import NO_LABELS, data_key, writer
from mmray.train.pinned import Piece, make_piece, pin, pinned
from mmray.train.samples import Samples
from mmray.train.start import FORMAT, Start, begun_before, fingerprint_of, learned, place_of
from mmray.train.task import Task, wants_ray
from mmray.train.worker import device_of, precision

Pieces = Callable[[Source, TrainSpec, str, list[tuple[str, Shard]]], Iterable[Piece]]
"""Makes the pieces of shards, each with its path; the text is the precision of frozen towers."""


def begin(spec: TrainSpec, storage: Storage, say: Callable[[str], None], pieces: Pieces) -> Start:
    """What an earlier run of this spec began with, or a new beginning.

    Raises:
        SpecError, RefusedError: it can't be trained as asked, or the output is another training's.
        JobFailed: too many samples are bad.
        StorageError: storage stayed broken.
    """
    known = begun_before(spec, storage)
    if known is not None:
        return known
    if spec.train.early_stopping is not None and not spec.data.split.test:
        raise SpecError("train.early_stopping", "needs a held-out split: data.split.test is 0")
    last = (Checkpoints(storage, spec.output).pointer() or {}).get("last", path_of(0))
    if last != path_of(0):
        raise RefusedError(
            f"{spec.output} holds checkpoints, but not what they were trained on"
            f" ({place_of(spec)}); choose another output"
        )
    settled = settle(spec.model, spec.train, NO_LABELS)
    source = open_source(spec.data.source, storage, spec.limits, wanted=spec.wanted)
    say("listing data.source")
    shards = list(source.shards())
    how = _precision(spec)
    key = data_key(spec, settled, how)

    def make(missing: list[tuple[str, Shard]]) -> Iterable[Piece]:
        say(f"reading {len(missing):,} of {len(shards):,} shards")
        return pieces(source, spec, how, missing)

    found = pinned(spec, pin(spec, storage, shards, key, make))
    samples = Samples(Task(spec, found), storage)
    _check(spec, samples)
    labels = samples.labels()
    settled = settle(spec.model, spec.train, labels)
    say("making the model")
    _first_checkpoint(spec, storage, settled)
    start = Start(
        format=FORMAT,
        fingerprint=fingerprint_of(spec),
        spec=learned(spec),
        pinned=found,
        train=len(samples.train),
        test=len(samples.test),
        unknown_classes=samples.unknown_classes(labels.classes) if _classifies(spec) else 0,
    )
    storage.write_bytes(place_of(spec), start.model_dump_json().encode())
    return start


def here(
    source: Source, spec: TrainSpec, how: str, missing: list[tuple[str, Shard]]
) -> Iterable[Piece]:
    """Pieces made in this process, one after the other."""
    storage = Storage.of(spec.storage)
    made = writer(spec, how)
    for path, shard in missing:
        yield make_piece(storage, spec.output, path, made, (source, shard))


def _precision(spec: TrainSpec) -> str:
    """What frozen towers compute in. Under Ray the driver needs no GPU of its own."""
    if wants_ray(spec) and spec.resources.gpus_per_worker:
        return "bfloat16" if spec.train.precision == "auto" else spec.train.precision
    return str(precision(spec, device_of(spec))).removeprefix("torch.")


def _classifies(spec: TrainSpec) -> bool:
    return spec.model.heads.classify is not None


def _check(spec: TrainSpec, samples: Samples) -> None:
    split = spec.data.split
    if not len(samples.train):
        raise RefusedError(
            f"all {len(samples):,} samples are held out (data.split.test={split.test:g},"
            f" group={split.group}): none is left to learn from"
        )
    if split.test and not len(samples.test):
        raise RefusedError(
            f"none of {len(samples):,} samples is held out (data.split.test={split.test:g},"
            f" group={split.group}): there is nothing to measure on; 0 asks for no held-out split"
        )
    labels = samples.labels()
    if _classifies(spec) and not labels.classes:
        assert spec.model.heads.classify is not None
        field = spec.model.heads.classify.label
        raise SpecError("model.heads.classify.label", f"no training sample has a {field!r}")
    regress = spec.model.heads.regress
    if regress is not None and not samples.learns_from("number"):
        words = f"no training sample has a number {regress.label!r}"
        raise SpecError("model.heads.regress.label", words)
    wanted = [*spec.model.towers, *(["text"] if spec.model.heads.caption is not None else [])]
    for modality in wanted:
        if not samples.learns_from(modality):
            text = modality == "text"
            place = "data.text" if text else f"model.towers.{modality}"
            what = f"a {spec.data.text!r}" if text else modality
            raise SpecError(place, f"no training sample has {what}")
    if split.group is not None and bool((samples.groups == NO_GROUP).all()):
        raise SpecError("data.split.group", f"no sample has a {split.group!r}")


def _first_checkpoint(spec: TrainSpec, storage: Storage, settled: Settled) -> None:
    from mmray.models.joint import checkpoint
    from mmray.models.joint.config import JointConfig

    model = checkpoint.create(JointConfig(**settled.config), settled.sources, spec.train.seed)

    def write(folder: Path, again: bool) -> None:
        checkpoint.save(model, folder / MODEL, frozen=not again)
        settled.copy_tokenizers(folder / MODEL)

    checkpoints = Checkpoints(storage, spec.output)
    checkpoints.save(0, write, None)
    checkpoints.wait()
