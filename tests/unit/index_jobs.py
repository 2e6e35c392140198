"""Indexes for the tests of the jobs that search them, made by the job that builds them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmray.jobs import index
from mmray.specs.index import IndexSpec
from tests.stores import Vectors


def build(store: Vectors | str, output: Path, **options: Any) -> str:
    """Index `image_embedding` of a store; its uri. `flat` unless `options` say otherwise."""
    spec = IndexSpec(
        job="index",
        store={"uri": store if isinstance(store, str) else store.uri},
        column="image_embedding",
        index={"kind": "flat"} | options,
        output=str(output),
    )
    index.run(spec, quiet=True)
    return str(output)


def copies(count: int, dim: int = 32, seed: int = 5) -> np.ndarray:
    """float32 [count, dim]: groups of very different sizes that are nearly the same."""
    rng = np.random.default_rng(seed)
    sizes = rng.geometric(0.05, count)
    group = np.repeat(np.arange(len(sizes)), sizes)[:count]
    centres = rng.standard_normal((count, dim))
    found = centres[rng.permutation(group)] + 0.12 * rng.standard_normal((count, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def table(folder: Path) -> pa.Table:
    """All hits that `hits.json` names, in its order."""
    parts = json.loads((folder / "hits.json").read_text())["parts"]
    return pa.concat_tables(pq.ParquetFile(folder / each["path"]).read() for each in parts)


def scattered(
    function: Any, items: Iterable[Any], resources: Any, heavy: int = 0
) -> Iterator[tuple[int, Any]]:
    """`spread` as a cluster does it: items are taken some ahead, sent, and come back as they
    please."""
    numbered = enumerate(items)
    while some := list(islice(numbered, 5)):
        sent = pickle.dumps((function, some))
        there, mine = pickle.loads(sent)
        for place, item in reversed(mine):
            yield place, pickle.loads(pickle.dumps(there(item)))
