"""The same pictures from Parquet and from JSON lines, beside tars of them."""

from __future__ import annotations

from benchmarks import data, jobs
from benchmarks.measure import Figure, Options, ratio, rounds
from benchmarks.nearfree import ENCODER, POOL


def figures(options: Options) -> list[Figure]:
    """Rates over that of the tar source."""
    samples = options.size(8000, 2000)
    tars = data.photo_tars(samples, per_tar=500, pool=POOL)
    parquet, jsonl = data.photo_rows(samples, per_file=500, pool=POOL)
    fields = {"encoder": ENCODER, "modalities": ["image"], "keep": ["caption"]}

    def rate(kind: str, files: list[str], **more: str) -> float:
        source = {"kind": kind, "uri": files, **more}
        return jobs.run(jobs.embed(kind, files, **fields, source=source)).rate()

    raw = rounds(
        options.pairs,
        {
            "tar": lambda: rate("webdataset", tars),
            "parquet": lambda: rate("parquet", parquet),
            "jsonl": lambda: rate("jsonl", jsonl, encoding="base64"),
        },
    )
    return [
        Figure(
            f"rows: {kind} source / tar source",
            ratio({"ours": raw[kind], "tar": raw["tar"]}, "tar"),
            ">=",
            0.9,
            raw=raw,
        )
        for kind in ("parquet", "jsonl")
    ]
