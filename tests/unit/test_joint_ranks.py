"""Two ranks are one rank at the same global batch: losses, and gradients after DDP's mean."""

from __future__ import annotations

import faulthandler
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from mmray.models.joint.losses import cached_contrastive
from mmray.models.joint.model import JointModel
from tests import tinyjoint
from tests.tinyjoint import CAPTION, CONV

torch.set_num_threads(1)
TOWERS = {"image": CONV, "text": CONV, "audio": CONV}
HEADS = {
    "classify": {"label": "c", "weight": 0.3},
    "regress": {"label": "r", "weight": 0.5},
    "caption": CAPTION,
}
# Ranks have different numbers of rows, of pairs, of labels; the second has no audio at all.
ROWS, CUT = 7, 4
HOLES = {
    "image": [1, 1, 0, 1, 1, 1, 1],
    "text": [1, 0, 1, 1, 0, 1, 1],
    "audio": [1, 1, 1, 0, 0, 0, 0],
}
LIMIT = 300
"""Seconds; alone it takes 25. Ranks say where they stand before they are killed."""
CASES: dict[str, dict[str, Any]] = {
    "infonce": {},
    "sigmoid": {"loss": "sigmoid"},
    "moco": {"loss": "moco", "queue": 8},
    "in parts": {},
    "one head": {},
    "adversarial": {},
}


def one(case: str) -> tuple[JointModel, Any]:
    train = {"adversarial": {"kind": "pgd", "steps": 2}} if case == "adversarial" else {}
    heads = {"contrastive": CASES[case], **HEADS}
    model = tinyjoint.build(TOWERS, heads, train=train).double()
    batch = tinyjoint.batch(tuple(TOWERS), ROWS, present=HOLES)
    batch.labels["classify"][5] = -100
    batch.labels["regress"][:2] = float("nan")
    assert batch.text_mask is not None
    batch.text_mask[6] = 0
    return model, tinyjoint.as_double(batch)


def step(case: str, model: JointModel, batch: Any, run: Any) -> dict[str, torch.Tensor]:
    """Two steps, so that a queue is in use; losses and gradients of the second."""
    losses: dict[str, torch.Tensor] = {}
    for at in range(2):
        model.zero_grad()
        if case == "in parts":
            skip = {"skip": run.no_sync} if hasattr(run, "no_sync") else {}
            out = cached_contrastive(model, batch.parts(2), run, **skip)
        else:
            out = run(batch, "classify" if case == "one head" else None)
            out.loss.backward()
        model.after_step(at, 2)
        losses = out.losses
    return {**losses, **tinyjoint.gradients(model)}


def rank(place: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(LIMIT - 30)
    store = dist.TCPStore("127.0.0.1", port, 2, place == 0, timeout=timedelta(seconds=LIMIT))
    dist.init_process_group(
        "gloo", store=store, rank=place, world_size=2, timeout=timedelta(seconds=LIMIT)
    )
    for case in CASES:
        model, batch = one(case)
        part = batch.part(0, CUT) if place == 0 else batch.part(CUT, ROWS)
        run = DistributedDataParallel(model, broadcast_buffers=False)
        found = step(case, model, part, run)
        for name in found:
            if "." not in name:  # a loss: the mean over ranks is the global one
                dist.all_reduce(found[name])
                found[name] /= 2
        torch.save(found, Path(folder) / f"{case}-{place}.pt")
        # Left for last, DDP would end the group while it holds the interpreter's lock, for which
        # gloo's thread may be waiting: once in many runs neither goes on.
        del run
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.spawn(rank, (port, str(folder)), nprocs=2, join=False)
    assert context is not None
    until = time.monotonic() + LIMIT
    while not context.join(timeout=5, grace_period=5):  # raises what a rank raised
        if time.monotonic() > until:
            for process in context.processes:
                process.kill()
            pytest.fail("the ranks did not end")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one(case: str, ranks: Path) -> None:
    model, batch = one(case)
    wanted = step(case, model, batch, model)
    for place in range(2):
        found = torch.load(ranks / f"{case}-{place}.pt", weights_only=True)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.allclose(found[name], value, atol=1e-6, rtol=1e-6), (name, place)
