"""JPEGs through CLIP ViT-B/32: beside a hand-written loop, Ray's documented script and float32."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from deltalake import DeltaTable
from PIL import Image

from benchmarks import data, jobs, models
from benchmarks.measure import Figure, Options, Peer, ratio, rounds, say, slope, ticks_of

POOL = 4000
LOOP = {"batch": 32, "threads": 2, "decoders": 1}
"""The fastest settings of the loop found on two cores; `tune` tries the others."""


def figures(options: Options) -> list[Figure]:
    """Two ratios of rates and a mean cosine."""
    from mmray.models.devices import cpu_has_bfloat16

    model = str(models.clip())
    tars = data.photo_tars(POOL, per_tar=250, pool=POOL)
    settings = {**LOOP, "precision": "bfloat16" if cpu_has_bfloat16() else "float32"}
    last: list[Path] = []

    def ours() -> float:
        spec = jobs.embed(
            "images",
            tars[: options.size(6, 2)],
            encoder={"kind": "hf", "model": model},
            modalities=["image"],
            keep=["caption"],
        )
        done = jobs.run(spec)
        last[:] = [done.store]
        return done.rate()

    def loop() -> float:
        few = tars[: options.size(3, 1)]
        return slope(ticks_of(Peer("loop", model=model, tars=few, **settings).result()))

    def documented() -> float:
        folder = data.scratch("documented")
        images = data.photo_files(options.size(240, 48), POOL)
        peer = Peer(
            "documented",
            model=model,
            images=str(images),
            batch=16,
            notes=str(folder / "notes"),
            output=str(folder / "vectors"),
        )
        return slope(ticks_of(peer.result()))

    raw = rounds(options.pairs, {"ours": ours, "loop": loop, "documented": documented})
    mean, centred, least = cosines(last[0], tars[0], model, options.size(256, 32))
    name = "images: mmray / "
    return [
        Figure(f"{name}hand-written loop", ratio(raw, "loop"), ">=", 0.95, raw={**raw, **settings}),
        Figure(f"{name}Ray's documented script", ratio(raw, "documented"), ">=", 3.5),
        Figure(
            "images: mean cosine to the float32 reference",
            mean,
            ">=",
            0.999,
            unit="cosine",
            raw={"least": least, "mean after the common part is taken away": centred},
        ),
    ]


def cosines(store: Path, tar: str, model: str, count: int) -> tuple[float, float, float]:
    """Mean cosine of stored vectors to Hugging Face's float32 ones; the same centred; the least.

    Random weights put all pictures close together, so the centred one is the harder test.
    """
    table = DeltaTable(str(store)).to_pyarrow_table(
        columns=["source_uri", "source_key", "image_embedding"]
    )
    found = {
        key: vector
        for uri, key, vector in zip(*(column.to_pylist() for column in table.columns), strict=True)
        if uri == tar
    }
    pictures = _pictures(tar, count)
    ours = np.array([found[key] for key in pictures])
    theirs = _reference(list(pictures.values()), model)
    each = (ours * theirs).sum(1)
    a, b = ours - theirs.mean(0), theirs - theirs.mean(0)
    centred = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(each.mean()), float(centred.mean()), float(each.min())


def _pictures(tar: str, count: int) -> dict[str, Image.Image]:
    pictures: dict[str, Image.Image] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.name.endswith(".jpg") and len(pictures) < count:
                file = archive.extractfile(member)
                assert file is not None
                pictures[member.name.removesuffix(".jpg")] = Image.open(io.BytesIO(file.read()))
    return pictures


def _reference(pictures: list[Any], model: str) -> np.ndarray:
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    processor = CLIPImageProcessor.from_pretrained(model)
    network = CLIPVisionModelWithProjection.from_pretrained(model).eval()
    rows = []
    with torch.inference_mode():
        for start in range(0, len(pictures), 32):
            inputs = processor(images=pictures[start : start + 32], return_tensors="pt")
            rows.append(network(**inputs).image_embeds)
    return torch.nn.functional.normalize(torch.cat(rows)).numpy()


def tune() -> None:
    """Try settings of the hand-written loop: `python -m benchmarks.images`."""
    tars = data.photo_tars(POOL, per_tar=250, pool=POOL)[:1]
    for precision in ("bfloat16", "float32", "autocast"):
        for threads in (2, 1):
            for decoders in (1, 2):
                for batch in (16, 32, 64):
                    settings = {
                        "batch": batch,
                        "threads": threads,
                        "decoders": decoders,
                        "precision": precision,
                    }
                    peer = Peer("loop", model=str(models.clip()), tars=tars, **settings)
                    say(f"{settings}: {slope(ticks_of(peer.result())):.2f}/s")


if __name__ == "__main__":
    tune()
