"""The stages put together for one process: all of them fused, or decoding and encoding apart.

`Stages` travels to workers as plain values; models and connections are made there, on first use.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mmray.encoders import EncodeOptions, Encoder, EncoderCard, load_encoder
from mmray.errors import JobFailed, MmrayError, StorageError
from mmray.flow.batch import Batch, Failed, Finished, Timer, Work
from mmray.flow.careful import Careful
from mmray.flow.child import Child
from mmray.flow.decoding import Decoder
from mmray.flow.encoding import Remembered, encode
from mmray.flow.repeats import Repeats
from mmray.flow.writing import PartWriter
from mmray.sources import Cut, Fragment, Source, open_source
from mmray.specs.embed import EmbedSpec
from mmray.storage import Storage
from mmray.store.schema import StoreColumns

PREVIEW_SECONDS = 2.0
PREVIEWS = 2
MEDIA_BYTES = 8 * 1024 * 1024
"""Of a fragment with sound or video, which decodes to many times its size."""


@dataclass(slots=True)
class Stages:
    """What a worker needs to turn work into finished parts."""

    spec: EmbedSpec
    card: EncoderCard
    options: EncodeOptions
    storage: Storage
    columns: StoreColumns
    root: str
    """Uri of the store that the parts are written under."""
    modalities: tuple[str, ...]
    limit: int | None = None
    """Samples to read at the most; one worker then does the work."""
    careful: bool = False
    """Whether each worker decodes and encodes in a process of its own, which samples may end."""
    _made: dict[str, Any] = field(default_factory=dict, repr=False)
    """What this process has loaded; never travels."""

    def fused(self, work: Work) -> Iterator[Finished | Failed]:
        """Read, decode, encode and write a range of a shard."""
        timer = Timer()
        writer = PartWriter(self.storage, self.root, self.columns, timer)
        failure: MmrayError | None = None
        try:
            for fragment in self._read(work, timer):
                writer.add(*self.take(fragment, work.shard.uri, timer))
                if writer.is_due:
                    yield writer.flush()
        except MmrayError as error:
            failure = error
        try:
            if writer.holds_batches:
                yield writer.flush()
        except MmrayError as error:
            failure = failure or error
        if failure is not None:
            yield stopped(work.shard.uri, failure)

    def decoded(self, work: Work) -> Iterator[Batch | Failed]:
        """Read and decode only; for tasks that feed encoder actors."""
        timer = Timer()
        try:
            for fragment in self._read(work, timer):
                batch = self.decode(fragment, work.shard.uri, timer)
                batch.seconds = timer.take()
                yield batch
        except MmrayError as error:
            yield stopped(work.shard.uri, error)

    def encoded(self, batch: Batch | Failed) -> Iterator[Finished | Failed]:
        """Encode and write one decoded fragment as one part."""
        if isinstance(batch, Failed):
            yield batch
            return
        timer = Timer()
        writer = PartWriter(self.storage, self.root, self.columns, timer)
        try:
            writer.add(batch, self.encode(batch, self.encoder(), timer))
            yield writer.flush()
        except MmrayError as error:
            yield stopped(batch.shard_uri, error)

    def take(self, fragment: Fragment, uri: str, timer: Timer) -> tuple[Batch, int]:
        """Decode and encode a fragment of the shard `uri`; the batch, and how many of its samples
        went through the encoder.

        Raises:
            JobFailed: the encoder does not load, or one sample after another ends its process.
        """
        if self.careful:
            return self._careful()(fragment, uri, timer)
        encoder = self.encoder()  # loading it is no part of a stage
        batch = self.decode(fragment, uri, timer)
        return batch, self.encode(batch, encoder, timer)

    def _careful(self) -> Careful:
        if "careful" not in self._made:
            alike = replace(self, careful=False, _made={})
            self._made["careful"] = Careful(lambda: Child(alike))
        careful: Careful = self._made["careful"]
        return careful

    def _read(self, work: Work, timer: Timer) -> Iterator[Fragment]:
        fragments = self._fragments(work)
        while True:
            with timer.stage("read"):
                fragment = next(fragments, None)
            if fragment is None:
                return
            yield fragment

    def decode(self, fragment: Fragment, uri: str, timer: Timer) -> Batch:
        """Decode a fragment of the shard `uri`."""
        with timer.stage("decode"):
            return self._decoder()(fragment, uri, self._previews())

    def encode(self, batch: Batch, encoder: Encoder, timer: Timer) -> int:
        """Fill the batch's vectors; returns how many samples went through the encoder."""
        remembered = self._made.get("remembered") if self.spec.dedupe == "exact" else None
        repeats = self._repeats()
        with timer.stage("encode"):
            if repeats is not None:
                repeats.before(batch)
            encoded = encode(batch, encoder, normalize=self.spec.normalize, remembered=remembered)
            if repeats is not None:
                repeats.after(batch)
            return encoded

    def _decoder(self) -> Decoder:
        if "decoder" not in self._made:
            self._made["decoder"] = Decoder(self.spec, self.modalities, self.card)
        decoder: Decoder = self._made["decoder"]
        return decoder

    def _repeats(self) -> Repeats | None:
        if self.spec.duplicates is not None and "repeats" not in self._made:
            self._made["repeats"] = Repeats(self.spec.duplicates)
        return self._made.get("repeats")

    def _previews(self) -> int:
        """How many to keep now: a few every other second, since a small picture costs half as much
        as a vector."""
        now = time.monotonic()
        if now - self._made.get("previewed", 0.0) < PREVIEW_SECONDS:
            return 0
        self._made["previewed"] = now
        return PREVIEWS

    def _fragments(self, work: Work) -> Iterator[Fragment]:
        if self.limit is None:
            return self.source(self.rows).read(work.shard, work.start, work.stop, set(work.seen))
        return self._first_fragments(work)

    def _first_fragments(self, work: Work) -> Iterator[Fragment]:
        """Fragments until the limit, the last one cut short so that it is met exactly."""
        left = int(self._made.setdefault("left", self.limit or 0))
        start, seen = work.start, set(work.seen)
        while left > 0 and start < work.stop:
            rows = min(self.rows, left)
            for fragment in self.source(rows).read(work.shard, start, work.stop, set(seen)):
                start = fragment.span.stop
                seen.update(sample.source_key for sample in fragment.samples)
                self._made["left"] = left = left - len(fragment.samples)
                yield fragment
                if left < rows:
                    break

    def source(self, rows: int) -> Source:
        """The reader, with fragments of so many samples."""
        media = {"audio", "video"} & set(self.modalities)
        cut = Cut(rows, MEDIA_BYTES) if media else Cut(rows)
        return open_source(self.spec.source, self.storage, self.spec.limits, cut, self.spec.wanted)

    @property
    def rows(self) -> int:
        """Samples in a fragment: seconds of work on a CPU, a few batches on a GPU."""
        if self.careful:
            return 64  # one by one, where a sample ends its process
        if self.modalities == ("text",):
            return 1024
        return 512 if self.spec.resources.gpus else 64

    def encoder(self) -> Encoder:
        """This process's encoder, loaded on first use.

        Raises:
            JobFailed: it does not load.
        """
        if "encoder" not in self._made:
            self._made["remembered"] = Remembered()
            try:
                device = _device(self.spec)
                loaded = load_encoder(self.spec.encoder, self.card, device, self.options)
            except Exception as error:
                words = f"{self.card.name} does not load: {type(error).__name__}: {error}"
                raise JobFailed(words) from error  # (a user's class may raise anything)
            self._made["encoder"] = loaded
        encoder: Encoder = self._made["encoder"]
        return encoder


def _device(spec: EmbedSpec) -> str:
    """The device of this worker's encoder.

    Raises:
        RuntimeError: Ray gave the worker a GPU that torch can't use. Running on the CPU instead
            would look like a slow model.
    """
    # A user's class finds its device itself, and need not be torch's.
    if not spec.resources.gpus or spec.encoder.kind == "import":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("Ray gave this worker a GPU, but torch sees no CUDA device")
    return "cuda"


def stopped(uri: str, error: MmrayError) -> Failed:
    """What the driver hears of an error in the work on the shard `uri`."""
    uri = error.uri if isinstance(error, StorageError) else uri
    return Failed(uri, str(error), fatal=not isinstance(error, StorageError))
