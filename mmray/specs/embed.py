"""The spec of an embed job: `job: embed`."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from mmray.specs.common import (
    ColumnType,
    EncoderSpec,
    Errors,
    Limits,
    Modality,
    Resources,
    SourceSpec,
    Spec,
    StorageOptions,
)

RESERVED = frozenset(
    {
        "duplicate_of",
        "start_seconds",
        "stop_seconds",
        "id",
        "source_uri",
        "source_key",
        "source_etag",
        "fragment",
        "content_hash",
        "thumbnail",
        *(f"{modality}_embedding" for modality in ("image", "text", "audio", "video")),
    }
)


class StoreTarget(Spec):
    """Where the rows go."""

    uri: str
    """Folder or `s3://` prefix of the Delta table."""


class TextOptions(Spec):
    """How text is found and cut."""

    column: str = "caption"
    """Metadata field that is the sample's text."""
    max_length: Annotated[int, Field(gt=0)] | None = None
    """Tokens kept of a text; left out: the model's own limit."""


class BatchOptions(Spec):
    """Batch sizes; `auto` fits the device, and a batch that exhausts GPU memory is halved."""

    images: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    """Images in one forward pass."""
    tokens: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    """Padded tokens in one forward pass."""


class AudioOptions(Spec):
    """How sound is cut into the windows that the model hears."""

    windows: Literal["pool", "rows"] = "pool"
    """`pool`: one vector, the mean over the windows by their length; `rows`: a row for each."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Length of a window; left out: the most that the model takes."""


class VideoOptions(Spec):
    """Which frames of a video the model sees."""

    frames: Literal["pool", "rows"] = "pool"
    """`pool`: one vector, the mean over the frames; `rows`: a row for each."""
    sample: Literal["count", "rate", "scene"] = "count"
    """`count`: frames evenly spread; `rate`: so many a second; `scene`: the first of each scene."""
    count: Annotated[int, Field(gt=0, le=1024)] = 8
    """Frames taken, at most where `sample` is `rate` or `scene`."""
    rate: Annotated[float, Field(gt=0, le=60)] = 1.0
    """Frames a second, where `sample` is `rate`."""
    sound: bool = True
    """Encode its sound track too, where the encoder hears and the sample has no sound of its
    own."""


class Condition(Spec):
    """What a metadata field must be; a sample without the field does not pass."""

    min: float | None = None
    max: float | None = None
    one_of: tuple[str | int | float | bool, ...] | None = None
    none_of: tuple[str | int | float | bool, ...] | None = None


class FilterOptions(Spec):
    """Samples that don't pass are left out of the store, and counted by reason."""

    metadata: dict[str, Condition] = Field(default_factory=dict)
    """Metadata field to what it must be."""
    min_side: Annotated[int, Field(gt=0)] | None = None
    """Pixels of an image's shorter side."""
    min_characters: Annotated[int, Field(gt=0)] | None = None
    """Characters of the text; a sample without text does not pass."""
    max_characters: Annotated[int, Field(gt=0)] | None = None
    languages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Languages of the text, as ISO 639-1 codes such as `en`."""


class DuplicateOptions(Spec):
    """Samples that repeat another one, as far as a worker remembers: no row is lost by a miss."""

    by: Literal["exact", "perceptual"] = "exact"
    """`exact`: equal content; `perceptual`: pictures that look alike."""
    action: Literal["drop", "mark"] = "drop"
    """`drop`: left out and counted; `mark`: kept, and `duplicate_of` names the row they repeat."""
    distance: Annotated[int, Field(ge=0, le=16)] = 4
    """Bits of 64 in which two perceptual hashes may differ."""
    remember: Annotated[int, Field(gt=0)] = 1_000_000
    """Samples that a worker remembers."""


class EmbedSpec(Spec):
    """Streams samples through an encoder into a store."""

    job: Literal["embed"]
    source: SourceSpec
    encoder: EncoderSpec
    store: StoreTarget
    modalities: tuple[Modality, ...] | None = None
    """Left out: those that both source and encoder have."""
    keep: dict[str, ColumnType] = Field(default_factory=dict)
    """Metadata carried into the store: a list of names, or names with types."""
    normalize: bool = True
    """L2-normalise the vectors."""
    thumbnails: Annotated[int, Field(ge=0, le=512)] = 0
    """Longest side of a JPEG thumbnail kept in each row; 0: none."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the encoder; `auto`: bfloat16 where the hardware has it."""
    text: TextOptions = TextOptions()
    audio: AudioOptions = AudioOptions()
    video: VideoOptions = VideoOptions()
    filter: FilterOptions = FilterOptions()
    duplicates: DuplicateOptions | None = None
    redact: tuple[Literal["email", "phone", "card"], ...] = ()
    """What is masked in kept text, and in the words of errors and reports."""
    batch: BatchOptions = BatchOptions()
    dedupe: Literal["none", "exact"] = "none"
    """`exact`: a worker encodes identical content once while it remembers it; all rows stay."""
    on_removed: Literal["report", "prune"] = "report"
    """Rows whose source is gone: reported, or removed."""
    on_model_change: Literal["refuse", "rebuild"] = "refuse"
    """A store made by other weights: refused, or built anew and swapped in one commit."""
    errors: Errors = Errors()
    limits: Limits = Limits()
    resources: Resources = Resources()
    storage: StorageOptions = StorageOptions()

    @property
    def wanted(self) -> frozenset[str]:
        """The metadata fields that the job looks at; a source may leave out the others."""
        return frozenset({*self.keep, self.text.column, *self.filter.metadata})

    @field_validator("keep", mode="before")
    @classmethod
    def _names_are_strings(cls, value: object) -> object:
        if isinstance(value, Mapping):
            return value
        if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
            return dict.fromkeys(value, "string")
        raise ValueError("must be a list of names, or a mapping of names to types")

    @field_validator("keep")
    @classmethod
    def _keep_is_free(cls, value: dict[str, ColumnType]) -> dict[str, ColumnType]:
        seen: dict[str, str] = {}
        for name in value:
            if not name:
                raise ValueError("a column needs a name")
            if name.lower() in RESERVED:
                raise ValueError(f"the store has a column {name.lower()!r} of its own")
            # Delta tells columns apart without regard to case.
            other = seen.setdefault(name.lower(), name)
            if other != name:
                raise ValueError(f"{other!r} and {name!r} are one column to Delta")
        return value
