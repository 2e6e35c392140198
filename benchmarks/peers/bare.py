"""mmray's own read, decode and encode functions in a bare loop: no Ray, no store, no receipts."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from mmray.encoders import EncodeOptions, describe, load_encoder
from mmray.flow.decoding import Decoder
from mmray.flow.encoding import encode
from mmray.sources import Cut, open_source
from mmray.specs import load_spec
from mmray.storage import Storage


def main(spec: dict[str, Any], rows: int, threads: int, most: int = 32 * 1024 * 1024) -> None:
    """Do what the spec's source holds, `rows` samples or `most` bytes a fragment, and print the
    ticks."""
    job = load_spec(spec)
    options = EncodeOptions(dtype=job.dtype, threads=threads)
    card = describe(job.encoder, options)
    encoder = load_encoder(job.encoder, card, "cpu", options)
    source = open_source(job.source, Storage(), job.limits, Cut(rows, most))
    decoder = Decoder(job, tuple(job.modalities or card.modalities), card)
    ticks, done = [], 0
    for shard in source.shards():
        for fragment in source.read(shard, 0, shard.size, set()):
            batch = decoder(fragment, shard.uri)
            done += encode(batch, encoder, normalize=job.normalize)
            ticks.append((time.time(), done))
    print(json.dumps({"ticks": ticks}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
