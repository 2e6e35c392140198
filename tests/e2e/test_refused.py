"""What can't work is refused before any cluster work: exit 2, one clear line, nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import runs, shards
from tests.conftest import TestServer

pytestmark = pytest.mark.e2e


def refused(spec: runs.Spec, folder: Path, *words: str, **more: Any) -> str:
    """Run it; the error, which must say `words`. No Ray may have been started."""
    run = runs.Run(spec, folder, **more)
    result = run.finish(code=2)
    log = run.log.read_text()
    assert result["status"] == "refused"
    for word in words:
        assert word in result["error"], result
    assert "starting Ray" not in log and "Traceback" not in log
    return str(result["error"])


@pytest.fixture
def tars(s3: TestServer, s3_env: dict[str, str], request: pytest.FixtureRequest) -> str:
    """A prefix on S3 with one tar under it."""
    prefix = s3.uri(request.node.name)
    shards.put(prefix, {"00.tar": shards.sample_tar(4)}, s3.client())
    return prefix


def test_missing_bucket(tars: str, tmp_path: Path) -> None:
    source = "s3://no-such-bucket-here/x.tar"
    refused(runs.embed_spec(source, f"{tars}/store"), tmp_path / "a", "no-such-bucket-here")
    store = "s3://no-such-bucket-here/store"
    refused(runs.embed_spec(f"{tars}/*.tar", store), tmp_path / "b", "no-such-bucket-here")


def test_wrong_credentials(tars: str, tmp_path: Path) -> None:
    wrong = {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}
    error = refused(runs.embed_spec(f"{tars}/*.tar", f"{tars}/store"), tmp_path, tars, env=wrong)
    assert "not-the-secret" not in error


def test_missing_object_and_empty_pattern(tars: str, tmp_path: Path) -> None:
    spec = runs.embed_spec(f"{tars}/{{00..01}}.tar", f"{tars}/store")
    refused(spec, tmp_path / "a", "01.tar", "does not exist")
    spec = runs.embed_spec(f"{tars}/*.tgz", f"{tars}/store")
    refused(spec, tmp_path / "b", "*.tgz", "matches nothing")


def test_model_that_is_not_there(tars: str, tmp_path: Path) -> None:
    encoder = {"kind": "hf", "model": str(tmp_path / "nothing-here")}
    spec = runs.embed_spec(f"{tars}/*.tar", f"{tars}/store", encoder=encoder)
    refused(spec, tmp_path, "nothing-here")


def test_pickled_weights(tars: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04")
    encoder = {"kind": "hf", "model": str(model)}
    spec = runs.embed_spec(f"{tars}/*.tar", f"{tars}/store", encoder=encoder)
    refused(spec, tmp_path, "pytorch_model.bin")


def test_modality_that_the_encoder_lacks(tars: str, tmp_path: Path) -> None:
    spec = runs.embed_spec(
        f"{tars}/*.tar",
        f"{tars}/store",
        encoder={"kind": "packaged", "model": "minilm"},
        modalities=["image"],
    )
    refused(spec, tmp_path, "modalities.0", "image")
