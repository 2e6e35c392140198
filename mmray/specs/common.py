"""The parts that specs of several job kinds share. Frozen; a field that isn't known is refused."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Modality = Literal["image", "text", "audio", "video"]
ColumnType = Literal["string", "int", "float", "bool"]


class Spec(BaseModel):
    """Base of every part of a spec: immutable, and strict about field names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StorageOptions(Spec):
    """How to reach object storage. Secrets never stand here: they come from the environment,
    a profile or a role."""

    endpoint: str | None = None
    """URL of an S3-compatible server; left out: AWS, or `AWS_ENDPOINT_URL`."""
    profile: str | None = None
    """A profile of the AWS configuration files."""
    role: str | None = None
    """ARN of a role to assume."""
    region: str | None = None
    """Region of the buckets; left out: the environment's, then `us-east-1`."""


class Limits(Spec):
    """What a sample may cost before it is decoded; past these it goes to quarantine."""

    pixels: Annotated[int, Field(gt=0)] = 178_956_970
    """Pixels of an image, all frames together."""
    bytes: Annotated[int, Field(gt=0)] = 256 * 1024 * 1024
    """Bytes of one member, decompressed."""
    characters: Annotated[int, Field(gt=0)] = 1_000_000
    """Characters of one text."""
    seconds: Annotated[float, Field(gt=0)] = 1200.0
    """Seconds of one sound or video."""


class Errors(Spec):
    """How much may go wrong before the job ends."""

    max_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """Quarantined samples as a fraction of all; above it the job fails."""


class FilesSource(Spec):
    """Raw files: a picture with its sidecar `.txt` and `.json` is one sample."""

    kind: Literal["files"]
    uri: str | tuple[str, ...]
    """Folders, globs, brace ranges, or a list of them."""


class WebDatasetSource(Spec):
    """WebDataset tars, plain or gzipped."""

    kind: Literal["webdataset"]
    uri: str | tuple[str, ...]
    """Tars: brace ranges, globs, folders, or a list of them."""


class ParquetSource(Spec):
    """Parquet files: a row is a sample, its number its key."""

    kind: Literal["parquet"]
    uri: str | tuple[str, ...]
    """Files: brace ranges, globs, folders, or a list of them."""
    columns: dict[Modality, str] = Field(default_factory=dict)
    """Modality to the column that holds it: bytes, a struct of bytes and path, or a uri; text
    itself. A dot leads into a nested column. Given, no others are looked at; left out: columns of
    the modality's own name, and `caption` for text."""
    allow: tuple[str, ...] = ()
    """What uris inside rows may begin with, such as `s3://bucket/images/` or
    `https://images.example.org/`; left out: the shard's own bucket. Its own
    folder is always allowed."""
    allow_private: bool = False
    """Whether http hosts may have private addresses."""


class JsonlSource(Spec):
    """JSON lines, plain or gzipped: a line is a sample, its number its key."""

    kind: Literal["jsonl"]
    uri: str | tuple[str, ...]
    """Files: brace ranges, globs, folders, or a list of them."""
    columns: dict[Modality, str] = Field(default_factory=dict)
    """Modality to the field that holds it; a dot leads into a nested one. Left out: fields of the
    modality's own name, and `caption` for text."""
    encoding: Literal["uri", "base64"] = "uri"
    """What an image, sound or video is: a uri (`data:` uris too), or base64."""
    allow: tuple[str, ...] = ()
    """What uris inside lines may begin with, such as `s3://bucket/images/` or
    `https://images.example.org/`; left out: the shard's own bucket. Its own
    folder is always allowed."""
    allow_private: bool = False
    """Whether http hosts may have private addresses."""


class StoreSource(Spec):
    """An mmray store: its rows are samples, which keep their ids."""

    kind: Literal["store"]
    uri: str
    """Folder or `s3://` prefix of the store."""
    version: Annotated[int, Field(ge=0)] | None = None
    """Left out: the latest."""
    columns: dict[Modality, str] = Field(default_factory=dict)
    """Modality to the column that holds it; left out: `thumbnail` for image, `caption` for text."""


SourceSpec = Annotated[
    FilesSource | WebDatasetSource | ParquetSource | JsonlSource | StoreSource,
    Field(discriminator="kind"),
]


class HfEncoder(Spec):
    """A Hugging Face model: CLIP, SigLIP and CLAP families, ViT-like image, BERT-like text, and
    Whisper- and wav2vec2-like audio models."""

    kind: Literal["hf"]
    model: str
    """A hub id, or a local folder in the Hugging Face layout."""
    revision: str | None = None
    """Commit of a hub id: needed for hub ids, since a moving revision has no fingerprint."""
    pooling: Literal["mean", "cls", "pooler"] | None = None
    """Of text and image-only models; left out: what the model's own files say."""


class PackagedEncoder(Spec):
    """Weights that come as a Python package and need no hub."""

    kind: Literal["packaged"]
    model: Literal["minilm", "efficientnet-lite0", "zeroshot", "speech"]


class ImportEncoder(Spec):
    """A class of the user's own."""

    kind: Literal["import"]
    model: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """`package.module:ClassName`."""
    options: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """Keyword arguments of the class."""


class JointEncoder(Spec):
    """A checkpoint of a train job: all its modalities in one space."""

    kind: Literal["joint"]
    model: str
    """Output of the train job, which stands for its best checkpoint, or the `model` folder of a
    checkpoint: a folder or an `s3://` uri."""


OneEncoder = Annotated[
    HfEncoder | PackagedEncoder | ImportEncoder | JointEncoder, Field(discriminator="kind")
]


class CombinedEncoder(Spec):
    """Several encoders as one, each for modalities that no other takes: a row has all vectors."""

    kind: Literal["combined"]
    of: Annotated[tuple[OneEncoder, ...], Field(min_length=2)]
    """The encoders."""


EncoderSpec = Annotated[
    HfEncoder | PackagedEncoder | ImportEncoder | JointEncoder | CombinedEncoder,
    Field(discriminator="kind"),
]


class Resources(Spec):
    """What the job may use. With `gpus` stages are split: CPU tasks decode, GPU actors encode."""

    address: str | None = None
    """Ray address; left out: `RAY_ADDRESS`, else Ray on this machine."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPUs of each encoder actor."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of each encoder actor; may be a fraction."""
    pool: int | tuple[int, int] | None = None
    """Encoder actors: a number, or [least, most]; left out: as many as the cluster holds."""
    decode_cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPUs of each decode task, where the stages are split."""

    @model_validator(mode="after")
    def _pool_is_positive(self) -> "Resources":
        low, high = self.pool_range
        if low < 1 or (high is not None and high < low):
            raise ValueError("pool must be a positive number or a range [least, most]")
        return self

    @property
    def pool_range(self) -> tuple[int, int | None]:
        """Least and most actors; `None` where the cluster decides."""
        if self.pool is None:
            return 1, None
        return (self.pool, self.pool) if isinstance(self.pool, int) else self.pool
