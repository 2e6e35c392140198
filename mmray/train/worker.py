"""What a worker does, whoever started it: take the newest checkpoint, and run the loop from there.

Everything it needs stands at the output: the pinned samples and a checkpoint, that of step 0 at
least. So a worker that is started again needs nothing from the one before.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from mmray.encoders.joint_folder import Checkpoint, open_checkpoint
from mmray.encoders.joint_inputs import JointInputs
from mmray.errors import RefusedError
from mmray.models.devices import place as placed
from mmray.models.joint import checkpoint as joint
from mmray.specs.train import TrainSpec
from mmray.storage import Storage, blobs
from mmray.train.batches import Batches
from mmray.train.checkpoints import MODEL, Checkpoints
from mmray.train.course import Ended, Watch
from mmray.train.feed import Feed, one_ahead
from mmray.train.loop import Data, Loop, Place
from mmray.train.samples import Samples
from mmray.train.task import Task

Say = Callable[[str], None]


def work(task: Task, place: Place, watch: Watch, say: Say, feed: Feed = one_ahead) -> Ended:
    """Train from the newest whole checkpoint to the end, or to what ends it.

    Raises:
        RefusedError: there's no whole checkpoint, or fewer samples than workers.
        StorageError: storage stayed broken.
    """
    spec = task.spec
    storage = Storage.of(spec.storage)
    checkpoints = Checkpoints(storage, spec.output)
    with blobs.scratch() as scratch:
        folder = _checkpoint(checkpoints, place, say, scratch)
        known = open_checkpoint(str(folder / MODEL))
        model = joint.load(known.folder)
        model.compute = precision(spec, place.device)
        loop = Loop(spec, model, _data(task, storage, known, feed), place, folder)
        return loop.run(checkpoints, watch)


def device_of(spec: TrainSpec) -> str:
    """What this machine trains on. Raises RefusedError where a GPU is wanted and isn't there."""
    if not spec.resources.gpus_per_worker:
        return "cpu"
    if not torch.cuda.is_available():
        raise RefusedError("resources.gpus_per_worker asks for a GPU, and torch sees none")
    return "cuda"


def precision(spec: TrainSpec, device: str) -> torch.dtype:
    """What towers compute in on a device. float16 would need its losses scaled."""
    found = placed(device, spec.train.precision).dtype
    return torch.float32 if found is torch.float16 else found


def _data(task: Task, storage: Storage, known: Checkpoint, feed: Feed) -> Data:
    inputs = JointInputs(known.config, known.tokenizers)
    beside = {
        str(file.relative_to(known.folder)): file.read_bytes()
        for folder in known.tokenizers.values()
        for file in sorted(folder.iterdir())
    }
    return Data(Batches(Samples(task, storage), known.config, inputs), feed, beside)


def _checkpoint(checkpoints: Checkpoints, place: Place, say: Say, scratch: Path) -> Path:
    """The checkpoint that rank 0 finds is that of all."""
    found = checkpoints.newest(say, scratch) if place.rank == 0 else None
    if place.world == 1:
        if found is None:
            raise RefusedError("no checkpoint is whole: there is nothing to go on from")
        return found[1]
    step = torch.tensor([-1 if found is None else found[0].step], device=place.device)
    dist.broadcast(step, 0)
    if found is None:
        wanted = [saved for saved in checkpoints.found() if saved.step == int(step)]
        if not wanted:
            raise RefusedError("no checkpoint is whole: there is nothing to go on from")
        return checkpoints.fetch(wanted[0], scratch)
    return found[1]
