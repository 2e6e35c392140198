"""What was found about a store's vectors, as plain values: `jobs/inspect.py` fills them from a
store, the page shows them."""

from dataclasses import dataclass, field

SOUND_BYTES = 64 * 1024
"""Longer sounds aren't kept for the page."""


@dataclass(frozen=True, slots=True)
class Media:
    """What a run kept of a sample to show it by."""

    jpeg: bytes | None = None
    """A small picture, or a video's poster."""
    audio: bytes | None = None
    """The sound as it came, at most `SOUND_BYTES`."""
    mime: str = ""
    """Of the sound: `audio/ogg`."""


@dataclass(frozen=True, slots=True)
class VectorCheck:
    """Health of one modality's vectors, over the rows that were looked at."""

    modality: str
    rows: int
    nulls: int
    """Rows without this modality."""
    dim: int
    """0 when no row has a vector."""
    norm_min: float = 0.0
    norm_max: float = 0.0
    mean_cosine: float = 0.0
    """Of random pairs of different rows: near 1 when all vectors say the same."""
    spread: float = 0.0
    """Effective number of directions in use: 1 to dim (participation ratio of the spectrum)."""
    not_finite: int = 0
    """Vectors with NaN or infinity."""
    zeros: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """A row to show."""

    id: str
    source_key: str
    caption: str = ""
    jpeg: bytes | None = None
    similarity: float = 1.0
    """Cosine to the query."""
    audio: bytes | None = None
    mime: str = ""
    """Of the sound."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A row and those nearest to it, best first, itself left out."""

    query: Item
    nearest: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """What is near what by the vectors of one modality."""

    modality: str
    neighbours: tuple[Neighbours, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """Vector checks and nearest neighbours of a sample of a store's rows."""

    rows: int = 0
    """Rows looked at."""
    of: int = 0
    """Rows in the store."""
    checks: tuple[VectorCheck, ...] = ()
    spaces: tuple[Space, ...] = field(default=())
    """Those with enough rows to compare."""
