"""One real Ray session for the tier: starting it costs more than most of its tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def ray_session() -> Iterator[None]:
    """Two CPUs and two logical GPUs, so that the split layout is scheduled too."""
    import ray

    from tests.runs import ROOT

    os.environ["PYTHONPATH"] = str(ROOT)
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
