"""sentence-transformers' `encode(batch_size=32)` over texts in the order given, chunk by chunk.

`encode` sorts a chunk by length, as mmray does a fragment; chunks are there for the notes of time.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from sentence_transformers import SentenceTransformer

from benchmarks.texts import mixed_captions

CHUNK = 1024


def main(model: str, first: int, stop: int, total: int, threads: int, dtype: str) -> None:
    """Encode texts `first` to `stop` of the `total` and print the ticks."""
    torch.set_num_threads(threads)
    texts = mixed_captions(total, seed=2)[first:stop]
    precision = {"torch_dtype": getattr(torch, dtype)}
    network = SentenceTransformer(model, device="cpu", model_kwargs=precision)
    network.encode(texts[:64], batch_size=32, show_progress_bar=False)
    ticks = [(time.time(), 0)]
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        vectors = network.encode(
            chunk, batch_size=32, show_progress_bar=False, normalize_embeddings=True
        )
        ticks.append((time.time(), ticks[-1][1] + len(vectors)))
    print(json.dumps({"ticks": ticks}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
