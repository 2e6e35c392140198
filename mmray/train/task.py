"""What the workers of a training are given, and whether they are more than this process."""

import os
from dataclasses import dataclass

from mmray.specs.train import TrainSpec
from mmray.train.pinned import Pinned


@dataclass(frozen=True, slots=True)
class Task:
    """What all workers of a training are given."""

    spec: TrainSpec
    pinned: Pinned


def wants_ray(spec: TrainSpec) -> bool:
    """Whether a spec asks for more than this process."""
    asked = spec.resources
    return asked.worker_range[1] > 1 or bool(asked.address or os.environ.get("RAY_ADDRESS"))
