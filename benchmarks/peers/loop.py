"""A loop as a good engineer writes it for one machine: tars in, vectors out, nothing else.

bfloat16 weights (float32 where the CPU would emulate them), JPEGs decoded at a fraction of their
size (never below twice the target), resize and crop in one call, decoding in a thread ahead of the
model. It keeps no metadata, checks nothing and can't be resumed.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionModelWithProjection

SIDE = 224
AHEAD = 4
"""Batches that are decoded or waiting to be, beside the one in the model."""
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def jpegs(tars: list[str]) -> Iterator[bytes]:
    """The pictures of the tars."""
    for path in tars:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".jpg"):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield file.read()


def decode(data: bytes) -> np.ndarray:
    """uint8 [224, 224, 3], resized and cropped as CLIP's processor does."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    short = min(width, height)
    size = (SIDE * width // short, SIDE * height // short)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    image.draft("RGB", (2 * size[0], 2 * size[1]))
    across, down = image.width / size[0], image.height / size[1]
    box = (left * across, top * down, (left + SIDE) * across, (top + SIDE) * down)
    return np.asarray(
        image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC, box), np.uint8
    )


def batches(tars: list[str], size: int, decoders: int) -> Iterator[torch.Tensor]:
    """uint8 [n, 3, 224, 224], decoded ahead by `decoders` threads."""
    with ThreadPoolExecutor(decoders) as pool:
        data = jpegs(tars)
        ahead: deque[Future[np.ndarray]] = deque()
        while True:
            for each in islice(data, AHEAD * size - len(ahead)):
                ahead.append(pool.submit(decode, each))
            if not ahead:
                return
            images = [ahead.popleft().result() for _ in range(min(size, len(ahead)))]
            yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def main(
    model: str, tars: list[str], batch: int, threads: int, decoders: int, precision: str
) -> None:
    """Encode the tars and print the ticks; `precision` is bfloat16, float32 or autocast."""
    torch.set_num_threads(threads)
    autocast = precision == "autocast"
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    network = CLIPVisionModelWithProjection.from_pretrained(model, dtype=dtype).eval()
    vectors, ticks, rows = [], [], 0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for images in batches(tars, batch, decoders):
            pixels = (images.float() / 255 - MEAN) / STD
            out = network(pixel_values=pixels.to(dtype)).image_embeds.float()
            vectors.append(torch.nn.functional.normalize(out).numpy())
            rows += len(images)
            ticks.append((time.time(), rows))
    print(json.dumps({"ticks": ticks, "shape": np.concatenate(vectors).shape}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
