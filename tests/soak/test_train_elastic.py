"""A range of workers: a training grows into a node that is added, and its losses are the same."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
import torch

from mmray.errors import Interrupted
from mmray.jobs import train
from mmray.train.seen import Seen
from tests import runs, training

TIMEOUT = 600.0
LONG = {"train__epochs": 100_000, "train__checkpoint_steps": 20, "model__dropout": 0.0}


def wait_for(run: runs.Run, pattern: str) -> re.Match[str]:
    """What it says, once it does."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        log = run.log.read_text()
        found = re.search(pattern, log, re.DOTALL)
        if found:
            return found
        assert run.running, log
        assert time.monotonic() < deadline, log
        time.sleep(0.2)


def test_a_node_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    torch.set_num_threads(1)
    uri = training.write_tars(tmp_path / "tars", 2, 18)
    output = tmp_path / "out"
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        fields = training.fields(uri, output, resources__workers=[1, 2], **LONG)
        fields["resources"]["address"] = cluster.address
        run = runs.Run(fields, tmp_path)
        wait_for(run, "training with 1 worker.*epoch 2:")
        cluster.add_node(num_cpus=1)
        grown = wait_for(run, r"training with 2 workers.*going on from step ([\d,]+) of.*epoch")
        run.signal(signal.SIGTERM)
        run.finish(code=143)
    finally:
        cluster.shutdown()
    step = int(grown[1].replace(",", ""))
    losses = training.course(output, tmp_path / "at").losses
    assert 0 < step < len(losses)

    wanted = len(losses)
    monkeypatch.setattr(Seen, "signal", lambda self: 15 if len(self.losses) >= wanted - 1 else 0)
    alone = training.spec(uri, tmp_path / "alone", **LONG)
    with pytest.raises(Interrupted):
        train.run(alone, quiet=True)
    wanted_losses = training.course(alone.output, tmp_path / "at").losses
    assert losses[:step] == wanted_losses[:step]
    # Two workers add up in another order; a tiny model that has learned all by heart shows it soon.
    after = slice(step, step + 20)
    assert losses[after] == pytest.approx(wanted_losses[after], rel=1e-2)
