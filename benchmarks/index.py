"""Indexes: built beside the same faiss factory by hand, searched beside bare faiss; autofaiss."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data, jobs, vectors
from benchmarks.measure import ROOT, Figure, Options, Peer, ratio, rounds, say
from benchmarks.memory import Peak

MEMORY = "2GiB"
QUERIES = 1000
_AUTOFAISS = ("autofaiss==2.18.0", "pyarrow<22")
"""With a pyarrow that takes NumPy 1, as autofaiss does."""
SECONDS = 2.0
"""That a rate of queries is taken over, each time."""


def figures(options: Options) -> list[Figure]:
    """Clusters of a million vectors and a graph of a hundred thousand: build, search, memory."""
    found = []
    for kind, rows in (("ivf_flat", 1_000_000), ("hnsw", 100_000)):
        store = vectors.store(options.size(rows, rows // 50))
        found.append(_build(options, kind, store))
        found += _search(options, kind)
    million = vectors.store(options.size(1_000_000, 20_000))
    found.append(_memory(million))
    found += _autofaiss(options, million)
    return found


def _spec(kind: str, store: Path, **index: Any) -> dict[str, Any]:
    return {
        "job": "index",
        "store": {"uri": str(store)},
        "column": "text_embedding",
        "output": str(_folder(f"index-{kind}") / "index"),
        "index": {"kind": kind, "memory": MEMORY, **index},
    }


def _folder(name: str) -> Path:
    folder = data.cache() / "benchmarks" / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run(spec: dict[str, Any]) -> dict[str, Any]:
    process = _start(spec)
    out, errors = process.communicate(timeout=1800)
    if process.returncode:
        raise RuntimeError(f"mmray exited {process.returncode}\n{errors[-3000:]}")
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report


def _start(spec: dict[str, Any]) -> subprocess.Popen[str]:
    path = Path(spec["output"]).parent / "spec.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(spec))  # JSON is YAML
    return subprocess.Popen(
        [sys.executable, "-m", "mmray", "run", str(path), "--json", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=jobs.environment(),
        text=True,
    )


def _build(options: Options, kind: str, store: Path) -> Figure:
    """Seconds of a build, measuring aside, which nothing by hand does."""
    told: list[dict[str, Any]] = []
    spec = _spec(kind, store)

    def ours() -> float:
        shutil.rmtree(spec["output"], ignore_errors=True)
        report = _run(spec)
        told.append(report)
        return float(report["seconds"] - report["stages"]["measure"])

    def peer() -> float:
        factory = told[0]["metrics"]["factory"]
        clusters = factory.partition("IVF")[2].partition(",")[0]
        by_hand = Peer(
            "byhand",
            store=str(store),
            factory=factory,
            train=64 * int(clusters or 0),
            out=str(_folder("byhand") / f"{kind}.faiss"),
        )
        found = by_hand.result()
        told.append(found)
        return float(found["total"])

    ours()  # tells the factory, and warms the pages for both
    raw: dict[str, Any] = rounds(options.pairs, {"ours": ours, "peer": peer})
    value = ratio(raw)
    raw["seconds"] = [each.get("stages") or each["seconds"] for each in told]
    name = f"index: {kind} built / the same factory by hand"
    return Figure(name, value, "<=", 1.1, raw=raw)


def _search(options: Options, kind: str) -> list[Figure]:
    """Queries per second at the same setting, so at equal recall: a batch, and one by one."""
    import faiss

    import mmray

    index = mmray.open_index(str(_folder(f"index-{kind}") / "index"))
    [segment] = index.manifest.segments
    bare = faiss.read_index(f"{index.uri}/{segment.index.path}")
    setting = index.manifest.parameters
    if kind == "hnsw":
        bare.hnsw.efSearch = setting["ef_search"]
    else:
        bare.nprobe = setting["nprobe"]
    queries = vectors.noisy(QUERIES, seed=1_000_003)
    ours, theirs = index.search(queries, 10).numbers, bare.search(queries, 10)[1]
    assert (ours == theirs).mean() > 0.999, "both search the same vectors with the same setting"
    found = []
    for size, words in ((QUERIES, "in one batch"), (1, "one by one")):
        raw: dict[str, Any] = rounds(
            options.pairs,
            {
                "ours": lambda size=size: _rate(lambda q: index.search(q, 10), queries, size),
                "peer": lambda size=size: _rate(lambda q: bare.search(q, 10), queries, size),
            },
        )
        value = ratio(raw)
        raw["recall"] = index.manifest.measured.recall
        raw["setting"] = setting
        found.append(Figure(f"index: {kind} queries {words} / faiss", value, ">=", 0.9, raw=raw))
    return found


def _rate(search: Callable[[np.ndarray], Any], queries: np.ndarray, size: int) -> float:
    search(queries[:size])
    start, done = time.perf_counter(), 0
    while True:
        for at in range(0, len(queries), size):
            search(queries[at : at + size])
            done += min(size, len(queries) - at)
            spent = time.perf_counter() - start
            if spent >= SECONDS:
                return done / spent


def _memory(store: Path) -> Figure:
    """Peak of the process tree while whole vectors are clustered, over the budget."""
    spec = _spec("ivf_flat", store)
    shutil.rmtree(spec["output"], ignore_errors=True)
    process = _start(spec)
    watch = Peak(process)
    try:
        process.communicate(timeout=1800)
    finally:
        peak = watch.stop()
    assert process.returncode == 0
    raw = {"peak_mib": peak / 2**20, "budget": MEMORY}
    return Figure("index: memory while building / budget", peak / 2**31, "<=", 1.2, raw=raw)


def _autofaiss(options: Options, store: Path) -> list[Figure]:
    """autofaiss in the same memory: its build, and its queries at its own recall."""
    import mmray

    folder = data.scratch("autofaiss")
    flat = folder / "vectors"
    flat.mkdir()
    table = mmray.open_store(str(store)).to_arrow(["text_embedding"])["text_embedding"]
    rows = table.combine_chunks().flatten().to_numpy().reshape(-1, vectors.DIM)
    np.save(flat / "part.npy", rows)
    queries = vectors.noisy(QUERIES, seed=1_000_003)
    np.save(folder / "queries.npy", queries)
    best = np.concatenate(
        [np.argsort(-(queries[at : at + 50] @ rows.T), 1)[:, :10] for at in range(0, QUERIES, 50)]
    )
    np.save(folder / "truth.npy", best)
    del table, rows
    given = {
        "vectors": str(flat),
        "queries": str(folder / "queries.npy"),
        "truth": str(folder / "truth.npy"),
        "memory": "2G",
        "out": str(folder),
    }
    done = subprocess.run(
        [_own_python(), str(ROOT / "benchmarks" / "peers" / "auto.py"), json.dumps(given)],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    theirs = json.loads(done.stdout.splitlines()[-1])
    spec = _spec("auto", store, min_recall=max(0.5, min(0.99, theirs["recall"])))
    shutil.rmtree(spec["output"], ignore_errors=True)
    report = _run(spec)
    ours = mmray.open_index(spec["output"])
    rate = _rate(lambda q: ours.search(q, 10), queries, QUERIES)
    raw = {"autofaiss": theirs, "seconds": report["seconds"], "metrics": report["metrics"]}
    say(f"  autofaiss {theirs}; ours {report['seconds']} s, {rate:.0f} q/s, {report['metrics']}")
    return [
        Figure(
            "index: auto, measured and all / autofaiss's build",
            report["seconds"] / theirs["seconds"],
            "<=",
            1.1,
            raw=raw,
        ),
        Figure("index: auto, queries per second / autofaiss", rate / theirs["rate"], ">=", 0.9),
    ]


def _own_python() -> str:
    """An environment with autofaiss and the NumPy that it wants, made once."""

    def make(folder: Path) -> None:
        venv.create(folder, with_pip=True)
        subprocess.run(
            [folder / "bin" / "python", "-m", "pip", "install", "-q", *_AUTOFAISS],
            check=True,
        )

    return str(data.made("autofaiss", make) / "bin" / "python")
