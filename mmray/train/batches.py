"""Samples become the batches that a model takes: what embedding would give it, and labels."""

from typing import Any

import numpy as np
import torch

from mmray.encoders.joint_inputs import JointInputs
from mmray.models.joint.batch import Input, JointBatch
from mmray.models.joint.heads import NO_LABEL
from mmray.train.inputs import SPOT
from mmray.train.samples import At, Samples


class Batches:
    """Makes batches of samples for one model."""

    def __init__(self, samples: Samples, config: dict[str, Any], inputs: JointInputs) -> None:
        self.samples, self._inputs = samples, inputs
        self._heads = config["heads"]
        self._towers: dict[str, dict[str, Any]] = config["towers"]
        classes = self._heads.get("classify", {}).get("classes", ())
        self._classes = {name: place for place, name in enumerate(classes)}

    def __call__(self, rows: np.ndarray) -> JointBatch:
        """The samples with these numbers, side by side. Every tower is named in it."""
        samples = self.samples
        places = samples.places(rows)
        inputs: dict[str, Input] = {}
        present: dict[str, torch.Tensor] = {}
        for name in self._towers:
            inputs[name], present[name] = self._input(name, places)
        labels: dict[str, torch.Tensor] = {}
        if "classify" in self._heads:
            found = [
                self._classes.get(each, NO_LABEL) for each in samples.values("category", places)
            ]
            labels["classify"] = torch.tensor(found)
        if "regress" in self._heads:
            numbers = [
                float("nan") if each is None else each for each in samples.values("number", places)
            ]
            labels["regress"] = torch.tensor(numbers, dtype=torch.float32)
        ids = mask = None
        if "caption" in self._heads:
            ids, mask = self._inputs.captions(samples.values("text", places))
        groups = torch.from_numpy(samples.groups[rows])
        return JointBatch(inputs, present, labels, ids, mask, groups)

    def _input(self, name: str, places: list[At]) -> tuple[Input, torch.Tensor]:
        kept = self.samples.kept(name)
        if kept is None:
            texts = self.samples.values("text", places)
            present = torch.tensor([each is not None for each in texts])
            return self._inputs.texts([each or "" for each in texts]), present
        if kept != SPOT:
            vectors, there = self.samples.vectors(name, places)
            return torch.from_numpy(vectors), torch.from_numpy(there)
        values = self.samples.inputs(name, places)
        return self._decoded(name, values), torch.tensor([each is not None for each in values])

    def _decoded(self, name: str, values: list[np.ndarray | None]) -> Input:
        if name == "audio":
            empty = np.zeros(0, np.float32)
            waves = [empty if each is None else each.view(np.float32) for each in values]
            return self._inputs.sounds(waves)
        frame = (*self._inputs.images[name].size, 3)
        if name == "image":
            pixels = [None if each is None else each.reshape(frame) for each in values]
            return self._inputs.pictures(pixels)
        films = [[] if each is None else list(each.reshape(-1, *frame)) for each in values]
        return self._inputs.videos(films)
