"""Captions of mixed length through MiniLM, against sentence-transformers at the same precision."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks import data, jobs, models
from benchmarks.measure import Figure, Options, Peer, ratio, rounds, ticks_of, together
from benchmarks.texts import mixed_captions

FRAGMENT = 1024
"""Texts that mmray hands to its encoder at once."""


def figures(options: Options) -> list[Figure]:
    """The encoder alone on one thread, then the whole job: float32, and bfloat16 in hardware."""
    from mmray.models.devices import cpu_has_bfloat16

    found = []
    for dtype in ("bfloat16", "float32") if cpu_has_bfloat16() else ("float32",):
        found.append(_encoder(options, dtype))
        found.append(_job(options, dtype))
    return found


def _encoder(options: Options, dtype: str) -> Figure:
    """mmray's encoder and `encode`, in turns in one process, on one thread."""
    import torch
    from sentence_transformers import SentenceTransformer

    from mmray.encoders import EncodeOptions, describe, load_encoder
    from mmray.specs.common import PackagedEncoder

    spec = PackagedEncoder(kind="packaged", model="minilm")
    settings = EncodeOptions(dtype=dtype, threads=1)  # type: ignore[arg-type]
    ours = load_encoder(spec, describe(spec, settings), "cpu", settings)
    precision = {"torch_dtype": getattr(torch, dtype)}
    peer = SentenceTransformer(str(models.minilm()), device="cpu", model_kwargs=precision)
    torch.set_num_threads(1)
    texts = mixed_captions(options.size(4 * FRAGMENT, FRAGMENT), seed=3)

    def rate(encode: Callable[[list[str]], Any], chunk: int) -> float:
        start = time.perf_counter()
        for at in range(0, len(texts), chunk):
            encode(texts[at : at + chunk])
        return len(texts) / (time.perf_counter() - start)

    def theirs(batch: list[str]) -> Any:
        return peer.encode(batch, batch_size=32, show_progress_bar=False, normalize_embeddings=True)

    ours.encode_texts(texts[:64])
    theirs(texts[:64])
    sides = {
        "ours": lambda: rate(ours.encode_texts, FRAGMENT),
        "peer": lambda: rate(theirs, len(texts)),
    }
    raw = rounds(options.pairs, sides)
    name = f"captions: mmray's encoder / sentence-transformers, {dtype}"
    return Figure(name, ratio(raw), ">=", 1.3, raw=raw)


def _job(options: Options, dtype: str) -> Figure:
    """The whole job, tars to store, against two bare sentence-transformers processes."""
    total = options.size(8000 if dtype == "float32" else 16_000, 4000)
    tars = data.caption_tars(total, per_tar=1000)

    def ours() -> float:
        spec = jobs.embed(
            "captions", tars, encoder={"kind": "packaged", "model": "minilm"}, dtype=dtype
        )
        return jobs.run(spec).rate()

    def peer() -> float:
        most = 3072 if dtype == "float32" else 4096
        most = options.size(most, 2000)
        peers = [
            Peer(
                "sentences",
                model=str(models.minilm()),
                first=first,
                stop=first + most,
                total=total,
                threads=1,
                dtype=dtype,
            )
            for first in (0, total // 2)
        ]
        return together([ticks_of(each.result()) for each in peers])

    raw = rounds(options.pairs, {"ours": ours, "peer": peer})
    name = f"captions: whole job / two sentence-transformers processes, {dtype}"
    return Figure(name, ratio(raw), ">=", 1.3, raw=raw)
