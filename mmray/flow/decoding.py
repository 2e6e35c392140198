"""A fragment's bytes become a batch of arrays and texts; what can't be decoded keeps its place."""

import json
from typing import Any

from mmray.decode.image import ImageTransform, decode_image, thumbnail
from mmray.decode.text import decode_text
from mmray.errors import BadSample, SampleError
from mmray.flow.batch import Batch, Preview
from mmray.sources.fragment import Fragment, Sample
from mmray.specs.common import ColumnType
from mmray.specs.embed import EmbedSpec

PREVIEW_SIDE = 96


def decode(
    fragment: Fragment,
    shard_uri: str,
    spec: EmbedSpec,
    modalities: tuple[str, ...],
    image: ImageTransform | None,
    previews: int = 0,
) -> Batch:
    """Decode the wanted modalities and kept metadata of every sample, and drop the raw bytes.

    The first `previews` pictures are kept small, for the report.
    """
    batch = Batch(
        span=fragment.span,
        shard_uri=shard_uri,
        samples=fragment.samples,
        columns={name: [] for name in spec.keep},
        inputs={modality: [] for modality in modalities},
    )
    if spec.thumbnails:
        batch.columns["thumbnail"] = []
    pictures: list[Preview] = []
    for sample in fragment.samples:
        inputs: dict[str, Any] = {}
        columns: dict[str, Any] = {}
        if sample.error is None:
            try:
                inputs = _inputs(sample, spec, modalities, image)
                columns = _columns(sample, spec)
                if len(pictures) < previews and "image" in sample.members:
                    pictures.append(_preview(sample, spec))
            except BadSample as error:
                sample.error = SampleError.of("decode", error)
        for name, column in batch.columns.items():
            column.append(columns.get(name))
        for modality, values in batch.inputs.items():
            values.append(inputs.get(modality))
        sample.members = {}
    batch.previews = tuple(pictures)
    return batch


def _inputs(
    sample: Sample, spec: EmbedSpec, modalities: tuple[str, ...], image: ImageTransform | None
) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    picture = sample.members.get("image")
    if "image" in modalities and picture is not None and image is not None:
        inputs["image"] = decode_image(picture, image, max_pixels=spec.limits.pixels)
    text = _text(sample, spec) if "text" in modalities else None
    if text is not None:
        inputs["text"] = decode_text(text, max_chars=spec.limits.characters)
    return inputs


def _columns(sample: Sample, spec: EmbedSpec) -> dict[str, Any]:
    columns: dict[str, Any] = {
        name: _kept(name, kind, sample.metadata.get(name)) for name, kind in spec.keep.items()
    }
    if spec.thumbnails and "image" in sample.members:
        columns["thumbnail"] = thumbnail(
            sample.members["image"], spec.thumbnails, max_pixels=spec.limits.pixels
        )
    return columns


def _text(sample: Sample, spec: EmbedSpec) -> bytes | None:
    if spec.text.column == "caption" and "text" in sample.members:
        return sample.members["text"]
    value = sample.metadata.get(spec.text.column)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadSample("WrongType", f"{spec.text.column!r} is {value!r:.80}, not a text")
    return value.encode(errors="surrogatepass")


def _kept(name: str, kind: ColumnType, value: Any) -> Any:
    """A metadata value as its column takes it; text columns hold other values as JSON."""
    if value is None:
        return None
    if kind == "string":
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadSample("BadMetadata", f"{name!r} holds half a surrogate pair") from None
        return text
    fits = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63,
        "float": isinstance(value, int | float) and not isinstance(value, bool),
    }
    if not fits[kind]:
        raise BadSample("WrongType", f"{name!r} is {value!r:.80}, not of type {kind}")
    return float(value) if kind == "float" else value


def _preview(sample: Sample, spec: EmbedSpec) -> Preview:
    jpeg = thumbnail(sample.members["image"], PREVIEW_SIDE, max_pixels=spec.limits.pixels)
    caption = str(sample.metadata.get(spec.text.column) or "")[:200]
    return Preview(sample.id, sample.source_key, caption, jpeg)
