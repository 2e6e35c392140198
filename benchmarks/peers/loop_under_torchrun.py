"""mmray's own training loop under torchrun: no Ray Train, no board, no driver."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist

from mmray.specs.train import TrainSpec
from mmray.storage import Storage
from mmray.train.loop import Place
from mmray.train.start import begun_before
from mmray.train.task import Task
from mmray.train.worker import work


class Silent:
    """A watch that nobody looks through."""

    def begun(self, step: int, steps: int, batch: int) -> None: ...

    def stepped(self, step: int, loss: float, told: dict[str, float]) -> None: ...

    def measured(self, metrics: dict[str, float]) -> None: ...

    def signal(self) -> int:
        return 0


def main(fields: str) -> None:
    """Train what an earlier process began; rank 0 prints samples a second."""
    spec = TrainSpec.model_validate_json(fields)
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    start = begun_before(spec, Storage())
    assert start is not None
    place = Place(dist.get_rank(), dist.get_world_size())
    ended = work(Task(spec, start.pinned), place, Silent(), lambda _: None)
    if place.rank == 0:
        print(json.dumps({"rate": ended.rows / ended.seconds}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
