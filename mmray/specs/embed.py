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
        taken = sorted(RESERVED & value.keys())
        if taken:
            raise ValueError(f"the store has a column {taken[0]!r} of its own")
        return value
