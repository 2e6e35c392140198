"""A million vectors that look like embeddings: MiniLM's of real captions, each with noise.

A noisy copy of a caption's vector stands for a caption that says about the same; how near they lie
to each other is that of near neighbours in a real store.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import data
from benchmarks.texts import mixed_captions

DIM = 384
CAPTIONS = 50_000
NOISE = 0.6
"""Length of the noise, beside a vector of length 1: cosines of 0.86 to the caption's own."""
PART_ROWS = 20_000


def store(rows: int) -> Path:
    """An mmray store of so many rows with one column `text_embedding`."""

    def make(folder: Path) -> None:
        from mmray.sources.fragment import object_shard, sample_id
        from mmray.storage import Storage
        from mmray.store import Change, Committer, Store, StoreColumns, StoreMeta, write_part

        columns = StoreColumns(("text",), {"category": "string"})
        meta = StoreMeta("b" * 32, "MiniLM with noise", {"text": DIM})
        table = Store.create(str(folder), Storage(), columns, meta)
        changes = []
        for number, first in enumerate(range(0, rows, PART_ROWS)):
            vectors = noisy(min(PART_ROWS, rows - first), seed=number)
            uri = f"/in/{number:05d}.tar"
            span = object_shard(uri, "1", len(vectors)).span(0, len(vectors))
            keys = [f"{first + place:08d}" for place in range(len(vectors))]
            offsets = np.arange(0, vectors.size + 1, DIM, dtype=np.int32)
            found = pa.table(
                {
                    "id": [sample_id(uri, key) for key in keys],
                    "source_uri": [uri] * len(keys),
                    "source_key": keys,
                    "source_etag": ["1"] * len(keys),
                    "fragment": [str(span)] * len(keys),
                    "content_hash": [sample_id("", key) for key in keys],
                    "category": [f"c{int(key) % 100:02d}" for key in keys],
                    "text_embedding": pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel())),
                }
            ).cast(columns.arrow_schema())
            changes.append(Change((write_part(Storage(), str(folder), found, [span], uri),)))
        Committer(table, "benchmark").commit(changes)

    return data.made(f"vectors-{rows}", make)


def noisy(count: int, seed: int) -> np.ndarray:
    """float32 [count, DIM] of length 1."""
    rng = np.random.default_rng(seed)
    base = captions()
    found = base[rng.integers(0, len(base), count)]
    noise = rng.standard_normal(found.shape, np.float32)
    noise *= NOISE / np.sqrt(DIM)
    found = found + noise
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def captions() -> np.ndarray:
    """MiniLM's vectors of real captions, float32 [CAPTIONS, DIM]; made once."""

    def make(folder: Path) -> None:
        from mmray.encoders import EncodeOptions, describe, load_encoder
        from mmray.specs.common import PackagedEncoder

        spec = PackagedEncoder(kind="packaged", model="minilm")
        options = EncodeOptions()
        encoder = load_encoder(spec, describe(spec, options), "cpu", options)
        texts = mixed_captions(CAPTIONS, seed=11)
        folder.mkdir()
        batches = [encoder.encode_texts(texts[at : at + 1024]) for at in range(0, CAPTIONS, 1024)]
        np.save(folder / "vectors.npy", np.concatenate(batches))

    found: np.ndarray = np.load(data.made("caption-vectors", make) / "vectors.npy")
    return found
