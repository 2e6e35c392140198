"""Fixtures that several tiers share: a real S3 server, its environment, and a fault in front of it.

`s3` lives for the whole session and is shared: a test that kills the server takes `own_s3`.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmray.demo.objectstore import LocalS3
from tests.faults import FaultProxy

# Before anything imports ray or transformers: tests call no hub and report nothing to anyone.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

TIERS = ("unit", "ray", "e2e", "soak")
TEST_BUCKET = "tests"

# What a developer's shell may hold and a test must not see.
FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's tier is its folder; `gpu` tests are skipped by name where there is no device."""
    folder = Path(__file__).parent
    for item in items:
        tier = item.path.relative_to(folder).parts[0] if folder in item.path.parents else ""
        if tier in TIERS:
            item.add_marker(tier)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


class TestServer(LocalS3):
    """A `LocalS3` that hands out places to write to."""

    __test__ = False

    def uri(self, name: str = "t") -> str:
        """A prefix that nothing was written to: emptied prefixes stay visible in SeaweedFS."""
        return f"{self.make_bucket(TEST_BUCKET)}/{slug(name)}-{uuid.uuid4().hex[:8]}"

    def bucket(self, name: str = "t") -> str:
        """A new bucket; prefer `uri`: each bucket costs the server volumes of its own."""
        return self.make_bucket(f"{slug(name)[:40]}-{uuid.uuid4().hex[:8]}")


def slug(name: str) -> str:
    """`name` as a part of a bucket name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "t"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    """The session's S3 server; leave it running, and set its environment with `s3_env`."""
    with TestServer(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def own_s3(tmp_path: Path) -> Iterator[TestServer]:
    """An S3 server of this test alone, to be killed, paused and restarted (ready in about 1 s)."""
    with TestServer(tmp_path / "own-s3") as server:
        yield server


@pytest.fixture
def s3_env(s3: TestServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Points this process (and what it starts) at `s3`; gives the variables it set."""
    return use(s3.start().environment, monkeypatch)


@pytest.fixture
def s3_uri(s3: TestServer, s3_env: dict[str, str], request: pytest.FixtureRequest) -> str:
    """A new `s3://` prefix for this test, with the environment set."""
    return s3.uri(request.node.name)


@pytest.fixture
def faulty_s3(s3: TestServer) -> Iterator[FaultProxy]:
    """A front of `s3` that fails a tenth of requests; `s3.environment_at(faulty_s3.endpoint)`."""
    with FaultProxy(s3.endpoint, fraction=0.1, seed=7) as proxy:
        yield proxy


def use(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Sets `environment` for one test, without what the developer's shell holds."""
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment
