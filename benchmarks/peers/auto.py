"""autofaiss as its users call it: an index within a memory budget, kind and parameters its own.

Runs in an environment of its own, for it wants NumPy 1.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import faiss
import numpy as np
from autofaiss import build_index


def main(vectors: str, queries: str, truth: str, memory: str, out: str) -> None:
    """Build, then search the held-out queries; print seconds, recall@10 and queries per second."""
    start = time.perf_counter()
    build_index(
        embeddings=vectors,
        index_path=f"{out}/knn.index",
        index_infos_path=f"{out}/infos.json",
        metric_type="ip",
        max_index_memory_usage=memory,
        current_memory_available="8G",
        verbose=40,
    )
    built = time.perf_counter() - start
    index = faiss.read_index(f"{out}/knn.index")
    infos = json.loads(Path(out, "infos.json").read_text())
    asked, best = np.load(queries), np.load(truth)
    _, found = index.search(asked, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)])
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < 3:
        index.search(asked, 10)
        done += len(asked)
    rate = done / (time.perf_counter() - start)
    result = {"seconds": built, "recall": float(recall), "rate": rate, "index": infos["index_key"]}
    print(json.dumps(result))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
