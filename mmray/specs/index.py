"""The specs of the jobs around an index: `job: index`, `job: search` and `job: duplicates`."""

from typing import Annotated, Literal

from pydantic import ByteSize, Field, model_validator

from mmray.specs.common import Spec, StorageOptions

IndexKind = Literal["flat", "hnsw", "ivf_flat", "ivf_pq", "sq8"]
Metric = Literal["cosine", "inner_product"]

MAX_NEIGHBOURS = 10_000
WHERE_SECONDS = 30.0
"""Time that a condition may take over all rows of an index, unless another is given."""


class StoreInput(Spec):
    """A store, at a version."""

    uri: str
    """Folder or `s3://` prefix of the store."""
    version: Annotated[int, Field(ge=0)] | None = None
    """Left out: the latest."""


class IndexInput(Spec):
    """An index, at a version."""

    uri: str
    """Folder or `s3://` prefix of the index."""
    version: Annotated[int, Field(ge=1)] | None = None
    """Left out: the latest."""


class IndexOptions(Spec):
    """What kind of index, and how good it has to be."""

    kind: IndexKind | Literal["auto"] = "auto"
    """`flat`: exact, reads every vector; `hnsw`: a graph, the quickest, in memory as a whole;
    `ivf_flat`: clusters of whole vectors; `sq8`: a quarter of the memory; `ivf_pq`: a small part of
    it; `auto`: by rows, dimension, memory and `min_recall`."""
    min_recall: Annotated[float, Field(gt=0, le=1)] = 0.95
    """recall@k against exact search, below which the index is not published."""
    k: Annotated[int, Field(gt=0, le=1000)] = 10
    """Neighbours that recall is measured over."""
    metric: Metric = "cosine"
    """`cosine`, or `inner_product` where the lengths of vectors matter."""
    memory: Annotated[ByteSize, Field(ge=64 * 1024 * 1024)] | None = None
    """What the index may take in memory, while it is built and when it is searched, such as `8GiB`;
    left out: half of what the machine has."""
    queries: str | None = None
    """Vector column that the queries which measure recall come from, such as `text_embedding` where
    people will search pictures with words; left out: the indexed column."""


class IndexResources(Spec):
    """What the job may use."""

    address: str | None = None
    """Ray address; left out: `RAY_ADDRESS`, else this process does it with all cores."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPUs, and threads, of each task on a Ray cluster."""
    piece: Annotated[ByteSize, Field(ge=1024 * 1024)] | None = None
    """Memory of the rows that one task of an index build adds, such as `256MiB`: what a kill can
    lose; left out: by the memory, and all at once where this process builds up to 2 GiB."""


class IndexSpec(Spec):
    """Builds a retrieval index from one vector column of a store, or brings one up to date."""

    job: Literal["index"]
    store: StoreInput
    column: str
    """The vector column, such as `image_embedding`."""
    index: IndexOptions = IndexOptions()
    output: str
    """Folder or `s3://` prefix of the index."""
    keep: tuple[str, ...] | None = None
    """Columns of the store that hits bring and filters see; left out: all but vectors and
    thumbnails."""
    on_model_change: Literal["refuse", "rebuild"] = "refuse"
    """The output holds an index of another model's vectors: refused, or built anew."""
    resources: IndexResources = IndexResources()
    storage: StorageOptions = StorageOptions()


class StoreQueries(Spec):
    """Each row of a store is a query; its id names it."""

    kind: Literal["store"]
    uri: str
    """Folder or `s3://` prefix of the store."""
    version: Annotated[int, Field(ge=0)] | None = None
    """Left out: the latest."""
    column: str
    """The vector column."""


class FileQueries(Spec):
    """Each row of a Parquet or JSON-lines file is a query: words, or a vector."""

    kind: Literal["file"]
    uri: str
    """One `.parquet`, `.jsonl` or `.jsonl.gz` file."""
    column: str
    """Text, which the index's encoder embeds; or lists of numbers."""
    id: str | None = None
    """Column that names the queries; left out: the row number."""
    fingerprint: str | None = None
    """Of the encoder that made the vectors; needed with lists of numbers, and has to be the
    index's."""


class SearchSpec(Spec):
    """Searches an index with many queries; the hits go to Parquet files."""

    job: Literal["search"]
    index: IndexInput
    queries: Annotated[StoreQueries | FileQueries, Field(discriminator="kind")]
    k: Annotated[int, Field(gt=0, le=MAX_NEIGHBOURS)] = 10
    """Hits for each query."""
    where: str | None = None
    """A condition on kept columns that hits must meet, such as `category = 'food'`."""
    where_seconds: Annotated[float, Field(gt=0)] = WHERE_SECONDS
    """Time that `where` may take over all rows, in each process."""
    model: str | None = None
    """Weights of the index's encoder, where they lie elsewhere than they did for the store: a
    folder (on a cluster, of each node) or the uri of a joint model."""
    exclude_self: bool = False
    """Leave out the hit that has the query's own id."""
    columns: tuple[str, ...] = ()
    """Kept columns written beside each hit."""
    output: str
    """Folder or `s3://` prefix for the files: query_id, rank, id, score and `columns`."""
    resources: IndexResources = IndexResources()
    storage: StorageOptions = StorageOptions()


class DuplicatesSpec(Spec):
    """Finds rows of an index that say nearly the same, and which of them to keep."""

    job: Literal["duplicates"]
    index: IndexInput
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Cosine from which two rows are near-duplicates."""
    where: str | None = None
    """Only rows that meet this condition on kept columns."""
    where_seconds: Annotated[float, Field(gt=0)] = WHERE_SECONDS
    """Time that `where` may take over all rows, in each process."""
    output: str
    """Folder or `s3://` prefix for `keep.parquet` and `drop.parquet`."""
    resources: IndexResources = IndexResources()
    storage: StorageOptions = StorageOptions()

    @model_validator(mode="after")
    def _output_is_its_own(self) -> "DuplicatesSpec":
        if self.output.rstrip("/") == self.index.uri.rstrip("/"):
            raise ValueError("output is the index itself; name another folder")
        return self
