"""Words, pictures and sounds become query vectors, by the very stages that made the index's store.

The encoder is described before it is loaded: one with another fingerprint is refused, for its
vectors would find nonsense that looks like an answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from mmray.encoders import EncodeOptions, Encoder, EncoderCard, describe, load_encoder
from mmray.errors import RefusedError, SpecError
from mmray.flow.decoding import Decoder
from mmray.flow.encoding import encode
from mmray.index.manifest import Made
from mmray.sources.fragment import Fragment, Sample, Span
from mmray.specs.common import (
    CombinedEncoder,
    EncoderSpec,
    HfEncoder,
    JointEncoder,
    Modality,
    OneEncoder,
)
from mmray.specs.embed import EmbedSpec
from mmray.storage import Storage

_IN_A_JOB = " (in a search job: model)"
_SPAN = Span("0" * 16, "0" * 8, 0, 1)


@dataclass(slots=True)
class QueryEncoder:
    """Makes queries for one index: float32 [d] of length 1. Weights are loaded by the first."""

    made: Made
    spec: EncoderSpec
    card: EncoderCard
    device: str = "cpu"
    storage: Storage = field(default_factory=Storage)
    """Reaches weights in object storage."""
    _cards: tuple[EncoderCard, ...] = field(default=(), repr=False)
    """Of the parts; an encoder that is not combined is its only part."""
    _loaded: dict[int, Encoder] = field(default_factory=dict, repr=False)
    """Parts by place."""

    @classmethod
    def of(
        cls,
        made: Made,
        model: str | None = None,
        device: str = "cpu",
        storage: Storage | None = None,
    ) -> "QueryEncoder":
        """The encoder that made the store; `model` is where its weights are now: a folder, or the
        uri of a checkpoint.

        Raises:
            RefusedError: the weights are missing or others than the store's, or the store does not
                say what made it.
        """
        storage = storage or Storage()
        options, problem = _options(made, storage), ""
        for spec in _candidates(made, model):
            try:
                card = describe(spec, options)
            except (RefusedError, SpecError) as error:
                problem = problem or str(error)
                continue
            if card.fingerprint == made.fingerprint:
                return cls(made, spec, card, device, storage)
            problem = f"{card.name} has the fingerprint {card.fingerprint}"
        where = f"--model names the folder of its weights{_IN_A_JOB}" if _takes_folder(made) else ""
        raise RefusedError(
            f"queries need {made.encoder} (fingerprint {made.fingerprint}), which made the index's "
            f"vectors: {problem}" + (f"; {where}" if where and model is None else "")
        )

    def text(self, words: str) -> np.ndarray:
        """The vector of a text. Raises RefusedError where it can't be a query."""
        vector: np.ndarray = self.texts([words])[0]
        return vector

    def texts(self, several: Sequence[str]) -> np.ndarray:
        """The vectors of texts, float32 [n, d]. Raises RefusedError naming one that can't be a
        query."""
        return self._vectors("text", [each.encode(errors="surrogatepass") for each in several])

    def image(self, data: bytes) -> np.ndarray:
        """The vector of a picture's file. Raises RefusedError where it can't be a query."""
        vector: np.ndarray = self._vectors("image", [data])[0]
        return vector

    def audio(self, data: bytes) -> np.ndarray:
        """The vector of a sound's file. Raises RefusedError where it can't be a query."""
        vector: np.ndarray = self._vectors("audio", [data])[0]
        return vector

    def require(self, modality: str) -> int:
        """The place of the part that takes `modality`.

        Raises:
            RefusedError: the encoder doesn't take it, or its vectors aren't in the index's space.
        """
        column = self.made.modality
        mine = self._part_of(modality)
        if mine is None:
            raise RefusedError(f"{self.card.name} takes no {modality}: it can't be a query here")
        if mine != self._part_of(self.card.through(column)):
            raise RefusedError(
                f"{self.made.column} and a query's {modality} are of two encoders in one: their "
                "vectors are in different spaces and can't be compared"
            )
        return mine

    def _part_of(self, modality: str) -> int | None:
        if not self._cards:
            self._cards = (self.card,)
            if isinstance(self.spec, CombinedEncoder):
                options = _options(self.made, self.storage)
                self._cards = tuple(describe(each, options) for each in self.spec.of)
        return next((n for n, card in enumerate(self._cards) if modality in card.dims), None)

    def _vectors(self, modality: Modality, several: Sequence[bytes]) -> np.ndarray:
        encoder = self._load(self.require(modality))
        spec = self._embed_spec(modality)
        samples = [Sample("query", str(n), "", {modality: data}) for n, data in enumerate(several)]
        batch = Decoder(spec, (modality,), encoder.card)(Fragment(_SPAN, samples), "query")
        encode(batch, encoder, normalize=spec.normalize)
        vectors = np.zeros((len(several), encoder.card.dims[modality]), np.float32)
        for place, sample in enumerate(batch.samples):
            vector = batch.vectors[modality][place]
            if sample.error is not None or vector is None:
                which = "the query" if len(several) == 1 else f"query {place}"
                why = f"{sample.error.message} ({sample.error.type})" if sample.error else "nothing"
                raise RefusedError(f"{which}'s {modality}: {why}")
            vectors[place] = combine(vector[None])
        return vectors

    def _embed_spec(self, modality: Modality) -> EmbedSpec:
        """What the store's own job did, as far as one query's vector depends on it."""
        said = self.made.encode
        fields: dict[str, Any] = {
            "job": "embed",
            "source": {"kind": "files", "uri": "query"},
            "encoder": self.spec.model_dump(),
            "store": {"uri": "query"},
            "modalities": (modality,),
            "normalize": said.get("normalize", True),
            "dtype": said.get("dtype", "auto"),
            "text": {"max_length": said.get("max_tokens")},
            "audio": {"seconds": said.get("audio_seconds")},
        }
        return EmbedSpec.model_validate(fields)

    def _load(self, place: int) -> Encoder:
        if place not in self._loaded:
            part, card = _parts(self.spec)[place], self._cards[place]
            options = _options(self.made, self.storage)
            self._loaded[place] = load_encoder(part, card, self.device, options)
        return self._loaded[place]


def combine(positives: np.ndarray, negatives: np.ndarray | None = None) -> np.ndarray:
    """One query for rows near all of `positives` and away from `negatives`: float32 [d], length 1.

    The mean of the ones minus half the mean of the others, each of length 1 (Rocchio, 1971).

    Args:
        positives: [n, d] vectors that were liked, or made of words and pictures.
        negatives: [m, d] vectors that were not.

    Raises:
        RefusedError: there are no positives, or what is left has no direction.
    """
    if not len(positives):
        raise RefusedError("only what to stay away from: say what to look for too")
    wanted = _unit(positives).mean(axis=0)
    if negatives is not None and len(negatives):
        wanted = wanted - _unit(negatives).mean(axis=0) / 2
    length = np.linalg.norm(wanted)
    if not length > 1e-6:
        raise RefusedError("what is looked for cancels out: no direction is left")
    return np.asarray(wanted / length, np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths == 0, 1, lengths))


def _options(made: Made, storage: Storage) -> EncodeOptions:
    return EncodeOptions(
        dtype=made.encode.get("dtype", "auto"),
        max_tokens=made.encode.get("max_tokens"),
        storage=storage,
    )


def _parts(spec: EncoderSpec) -> tuple[OneEncoder, ...]:
    return spec.of if isinstance(spec, CombinedEncoder) else (spec,)


def _takes_folder(made: Made) -> bool:
    spec = made.encoder_spec
    return not spec or any(
        each.get("kind") in ("hf", "joint")
        for each in (spec.get("of") or (spec,))
        if isinstance(each, dict)
    )


def _candidates(made: Made, model: str | None) -> Iterator[EncoderSpec]:
    """What the encoder may be: of a combined one, `model` may be any part that has a folder."""
    if not made.encoder_spec:
        if model is None:
            raise RefusedError(
                f"the store does not say how to load {made.encoder} (fingerprint "
                f"{made.fingerprint}), which queries need; --model names the folder of its weights"
                f"{_IN_A_JOB}"
            )
        yield HfEncoder(kind="hf", model=model)
        return
    try:
        spec: EncoderSpec = TypeAdapter(EncoderSpec).validate_python(made.encoder_spec)
    except ValidationError:
        raise RefusedError(
            f"the index names an encoder that this mmray doesn't know: {made.encoder}"
        ) from None
    if model is None:
        yield spec
        return
    if not _takes_folder(made):
        raise RefusedError(
            f"{made.encoder} comes with mmray or your code: leave --model out{_IN_A_JOB}"
        )
    parts = _parts(spec)
    for place, part in enumerate(parts):
        if isinstance(part, HfEncoder | JointEncoder):
            # A folder has no revision; what it holds decides.
            revision = {"revision": None} if isinstance(part, HfEncoder) else {}
            moved = part.model_copy(update={"model": model, **revision})
            if isinstance(spec, CombinedEncoder):
                yield spec.model_copy(update={"of": (*parts[:place], moved, *parts[place + 1 :])})
            else:
                yield moved
