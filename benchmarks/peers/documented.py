"""The plain script of Ray's documentation: `read_images`, then `map_batches` over one actor that
holds the Hugging Face processor and the model in float32.

After "Image batch inference with Hugging Face Vision Transformer" in the Ray Data examples, with
CLIP in the place of the classifier. Only the notes of time are added.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from ray.data import ActorPoolStrategy
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection


class Embedder:
    """The actor."""

    def __init__(self, model: str, notes: str) -> None:
        self.processor = CLIPImageProcessor.from_pretrained(model)
        self.model = CLIPVisionModelWithProjection.from_pretrained(model).eval()
        self.notes = Path(notes)
        self.rows = 0

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = [Image.fromarray(image) for image in batch["image"]]
        inputs = self.processor(images=images, return_tensors="pt")
        with torch.inference_mode():
            vectors = self.model(**inputs).image_embeds
        self.rows += len(images)
        with self.notes.open("a") as notes:
            notes.write(f"{time.time()} {self.rows}\n")
        return {"path": batch["path"], "embedding": vectors.numpy()}


def main(model: str, images: str, batch: int, notes: str, output: str) -> None:
    """Embed a folder of pictures and print the ticks."""
    dataset: Any = ray.data.read_images(images, mode="RGB", include_paths=True)
    dataset = dataset.map_batches(
        Embedder,
        fn_constructor_args=(model, notes),
        batch_size=batch,
        compute=ActorPoolStrategy(size=1),
    )
    dataset.write_parquet(output)
    ticks = [line.split() for line in Path(notes).read_text().splitlines()]
    print(json.dumps({"ticks": [(float(seconds), int(rows)) for seconds, rows in ticks]}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
