"""The same faiss factory by hand: the column read from Parquet, trained, filled and written.

As a careful person writes it: the file is read once, training sees as many vectors as mmray's, and
faiss has all cores.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq


def main(store: str, factory: str, train: int, out: str) -> None:
    """Build and write the index; print seconds by stage."""
    start = time.perf_counter()
    seconds = {}
    parts = sorted(Path(store).glob("data/*/*.parquet"))
    vectors = []
    for part in parts:
        column = pq.read_table(part, columns=["text_embedding"])["text_embedding"]
        column = column.combine_chunks()
        vectors.append(column.flatten().to_numpy().reshape(len(column), -1))
    every = np.concatenate(vectors)
    del vectors
    seconds["read"] = time.perf_counter() - start
    index = faiss.index_factory(every.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    start = time.perf_counter()
    if train:
        rng = np.random.default_rng(0)
        index.train(every[rng.choice(len(every), min(train, len(every)), replace=False)])
    seconds["train"] = time.perf_counter() - start
    start = time.perf_counter()
    index.add(every)
    seconds["add"] = time.perf_counter() - start
    start = time.perf_counter()
    faiss.write_index(index, out)
    seconds["write"] = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "total": sum(seconds.values())}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
