"""Training: cached frozen towers against training through them, and Ray Train against torchrun.

Rates are samples a second of the loop alone, from its first step to its end: reading the samples
and starting workers are left out on both sides.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks import data
from benchmarks.measure import LIMIT, ROOT, Figure, Options, ratio, rounds
from mmray.jobs import train
from mmray.specs.train import TrainSpec
from mmray.storage import Storage

FROZEN = {
    "image": {"kind": "packaged", "model": "efficientnet-lite0", "train": "frozen"},
    "text": {"kind": "packaged", "model": "minilm", "train": "frozen"},
}
SMALL = {"image": {"kind": "conv", "side": 64}, "text": {"kind": "conv"}}


def figures(options: Options) -> list[Figure]:
    """Both ratios."""
    return [_cached(options), _torchrun(options)]


def _spec(tars: list[str], name: str, towers: dict[str, Any], **changes: Any) -> TrainSpec:
    fields: dict[str, Any] = {
        "job": "train",
        "data": {"source": {"kind": "webdataset", "uri": tars}, "split": {"test": 0.0}},
        "model": {"towers": towers, "heads": {"contrastive": {}}},
        "output": str(data.scratch(name)),
        "resources": {"workers": changes.pop("workers", 1)},
        "train": {"batch_size": 64} | changes,
    }
    return TrainSpec.model_validate(fields)


def _cached(options: Options) -> Figure:
    """The same frozen towers, looked through once or at each step."""
    tars = data.photo_tars(options.size(512, 128), per_tar=64, pool=512, side=data.SMALL_SIDE)

    def rate(cache: bool, epochs: int) -> float:
        spec = _spec(tars, f"train-{cache}", FROZEN, cache=cache, epochs=epochs)
        return float(train.run(spec, quiet=True).rows_per_second)

    sides = {"ours": lambda: rate(True, options.size(20, 2)), "peer": lambda: rate(False, 1)}
    raw = rounds(options.pairs, sides)
    name = "train: cached frozen towers / through them"
    return Figure(name, ratio(raw), ">=", 10, raw=raw)


def _torchrun(options: Options) -> Figure:
    """The same loop in two workers of one thread each, for a minute: in the first seconds Ray's own
    processes are still starting."""
    tars = data.photo_tars(options.size(512, 128), per_tar=64, pool=512, side=data.SMALL_SIDE)
    epochs = options.size(60, 2)

    def ours() -> float:
        spec = _spec(tars, "train-ray", SMALL, epochs=epochs, workers=2)
        return float(train.run(spec, quiet=True).rows_per_second)

    def peer() -> float:
        from mmray.train.begin import begin, here

        spec = _spec(tars, "train-torchrun", SMALL, epochs=epochs, workers=2)
        begin(spec, Storage(), lambda _: None, here)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        module = "benchmarks.peers.loop_under_torchrun"
        done = subprocess.run(
            [*command, "--nproc-per-node=2", "-m", module, spec.model_dump_json()],
            capture_output=True,
            check=True,
            cwd=ROOT,
            text=True,
            timeout=LIMIT,
        )
        found: float = json.loads(done.stdout.splitlines()[-1])["rate"]
        return found

    raw = rounds(options.pairs, {"ours": ours, "peer": peer})
    name = "train: 2 workers under Ray Train / the same loop under torchrun"
    return Figure(name, ratio(raw), ">=", 0.9, raw=raw)
