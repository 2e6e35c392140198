"""Two workers under Ray Train learn what one process learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmray.jobs import train
from tests import training

TOLERANCE = 1e-4
"""Of losses and weights: sums of float32 in another order, over some steps of AdamW."""


def test_two_workers_learn_what_one_learns(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    uri = training.write_tars(tmp_path / "tars", 2, 20)
    courses, models = [], []
    for workers in (1, 2):
        spec = training.spec(
            uri,
            tmp_path / str(workers),
            resources__workers=workers,
            model__heads={"contrastive": {}, "classify": {"label": "category"}},
        )
        report = train.run(spec, quiet=True)
        assert report.status == "done"
        assert report.rows_written == 40
        courses.append(training.course(spec.output, tmp_path / "at"))
        models.append(training.weights(spec.output, tmp_path / "at"))
    one, two = courses
    assert one.losses == pytest.approx(two.losses, rel=TOLERANCE)
    for mine, other in zip(one.epochs, two.epochs, strict=True):
        assert mine == pytest.approx(other, rel=1e-3)
    for name, weight in models[0].items():
        assert torch.allclose(weight, models[1][name], atol=TOLERANCE), name
