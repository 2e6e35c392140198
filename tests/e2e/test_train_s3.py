"""Training from S3 to S3: the checkpoints, pieces, events and reports are all there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmray.errors import Interrupted
from mmray.jobs import train
from mmray.storage import Storage
from mmray.train.seen import Seen
from tests import shards, training
from tests.conftest import TestServer

pytestmark = pytest.mark.e2e


def test_from_s3_to_s3(
    s3: TestServer, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path / "cache"))
    shards.put(f"{s3_uri}/tars", shards.sample_shards(2, 20, size=(20, 16)), s3.client())
    spec = training.spec(f"{s3_uri}/tars/*.tar", f"{s3_uri}/out")
    with monkeypatch.context() as patch:
        patch.setattr(Seen, "signal", lambda self: 15 if len(self.losses) >= 4 else 0)
        with pytest.raises(Interrupted):
            train.run(spec, quiet=True)
    report = train.run(spec, quiet=True)
    assert report.status == "done"
    local = training.spec(_local(tmp_path), tmp_path / "out")
    train.run(local, quiet=True)
    at = tmp_path / "at"
    one, other = training.course(spec.output, at / "s3"), training.course(local.output, at / "disk")
    assert len(one.losses) == len(other.losses) == 9
    storage = Storage()
    names = [each.uri.removeprefix(s3_uri) for each in storage.list(f"{s3_uri}/out")]
    pointer = json.loads(storage.read_bytes(f"{s3_uri}/out/checkpoint.json"))
    assert pointer["done"]
    manifests = [name for name in names if name.endswith("manifest.json")]
    assert 1 <= len(manifests) <= 3
    assert f"/out/{pointer['best']}/model/model.safetensors" in names
    assert any(name.startswith("/out/tensorboard/") for name in names)
    assert str(report.outputs["page"]).removeprefix(s3_uri) in names


def _local(folder: Path) -> str:
    return training.write_tars(folder / "tars", 2, 20)
