"""Training from S3 to S3: all of it is there, and the output is an encoder by its uri."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmray
from mmray.encoders import EncodeOptions, describe
from mmray.errors import Interrupted
from mmray.jobs import train
from mmray.specs.common import JointEncoder
from mmray.storage import Storage
from mmray.train.checkpoints import Checkpoints
from mmray.train.seen import Seen
from tests import runs, shards, training
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
    assert not any(name.startswith("/out/_mmray/data/") for name in names)
    assert str(report.outputs["page"]).removeprefix(s3_uri) in names


def _local(folder: Path) -> str:
    return training.write_tars(folder / "tars", 2, 20)


def test_two_workers_learn_from_s3_what_one_learns_here(
    s3: TestServer, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Data makes their batches, in the same order."""
    torch.set_num_threads(1)
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path / "cache"))
    learned: dict[str, Any] = {
        "train__modality_dropout": 0.3,
        "train__augment": {"crop": 0.2, "words": 0.2},
        "model__heads": {"contrastive": {}, "classify": {"label": "category"}},
    }
    shards.put(f"{s3_uri}/tars", shards.sample_shards(2, 20, size=(20, 16)), s3.client())
    there = training.fields(
        f"{s3_uri}/tars/*.tar", f"{s3_uri}/out", resources__workers=2, **learned
    )
    no_room = {"MMRAY_CACHE_SIZE": "100"}  # so that inputs are read one by one
    run = runs.Run(there, tmp_path, env={"OMP_NUM_THREADS": "1", **no_room})
    deadline = time.monotonic() + runs.TIMEOUT
    while run.running and not run.workers():  # of Ray Data: a train job has no others
        assert time.monotonic() < deadline, run.log.read_text()
        time.sleep(0.1)
    assert run.running, "Ray Data made no batches\n" + run.log.read_text()
    assert run.finish()["status"] == "done"
    here = training.spec(f"{s3_uri}/tars/*.tar", tmp_path / "out", **learned)
    train.run(here, quiet=True)
    at = tmp_path / "at"
    one, two = (
        training.course(f"{s3_uri}/out", at / "s3"),
        training.course(here.output, at / "disk"),
    )
    assert one.losses == pytest.approx(two.losses, rel=1e-4)
    assert one.epochs[-1] == pytest.approx(two.epochs[-1], rel=1e-3)


@pytest.mark.soak
def test_kills_while_ray_data_makes_the_batches(
    s3: TestServer, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a loader, a worker and the driver, and SIGTERM: the loss curve goes on."""
    torch.set_num_threads(1)
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path / "cache"))
    learned: dict[str, Any] = {"train__epochs": 40, "train__checkpoint_steps": 2}
    shards.put(f"{s3_uri}/tars", shards.sample_shards(2, 20, size=(20, 16)), s3.client())
    output = f"{s3_uri}/out"
    fields = training.fields(f"{s3_uri}/tars/*.tar", output, resources__workers=2, **learned)
    environment = {"OMP_NUM_THREADS": "1", "MMRAY_CACHE_SIZE": "100"}

    def started() -> runs.Run:
        return runs.Run(fields, tmp_path, env=environment)

    run = started()
    wait_for_more(run, output)
    os.kill(run.workers()[0], signal.SIGKILL)
    wait_for_more(run, output)
    os.kill(run.workers("RayTrainWorker")[0], signal.SIGKILL)
    wait_for_more(run, output)
    run.signal(signal.SIGTERM)
    assert run.finish(code=143)["status"] == "interrupted"
    run = started()
    wait_for_more(run, output)
    run.kill()
    assert started().finish()["status"] == "done"
    here = training.spec(f"{s3_uri}/tars/*.tar", tmp_path / "out", **learned)
    train.run(here, quiet=True)
    one, two = (training.course(uri, tmp_path / uri[:2]) for uri in (here.output, output))
    assert len(one.losses) == len(two.losses)
    assert one.losses == pytest.approx(two.losses, rel=1e-2)


def wait_for_more(run: runs.Run, output: str) -> None:
    """Until some checkpoints were added."""
    checkpoints = Checkpoints(Storage(), output)

    def step() -> int:
        return int((checkpoints.pointer() or {"last": "-0"})["last"].rpartition("-")[2])

    begun, deadline = step(), time.monotonic() + runs.TIMEOUT
    while step() < begun + 6:
        assert run.running, run.log.read_text()
        assert time.monotonic() < deadline, run.log.read_text()
        time.sleep(0.1)


@pytest.mark.soak  # the demo does it too
def test_its_output_is_an_encoder_by_its_uri(
    s3: TestServer, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, embedded, indexed and searched by words, with nothing but uris."""
    torch.set_num_threads(1)
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path / "cache"))
    shards.put(f"{s3_uri}/tars", shards.sample_shards(2, 20, size=(20, 16)), s3.client())
    spec = training.spec(f"{s3_uri}/tars/*.tar", f"{s3_uri}/joint", train__epochs=1)
    train.run(spec, quiet=True)
    job = runs.embed_spec(
        f"{s3_uri}/tars/*.tar",
        f"{s3_uri}/store",
        encoder={"kind": "joint", "model": spec.output},
        dtype="float32",
    )
    assert runs.run(job, tmp_path / "embed")["rows_written"] == 40

    storage = Storage()
    best = json.loads(storage.read_bytes(f"{spec.output}/checkpoint.json"))["best"]
    for each in storage.list(f"{spec.output}/{best}/model"):
        place = tmp_path / "here" / each.uri.rpartition("/model/")[2]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(storage.read_bytes(each.uri))
    here = JointEncoder(kind="joint", model=str(tmp_path / "here"))
    card = describe(here, EncodeOptions(dtype="float32"))
    store = mmray.open_store(f"{s3_uri}/store")
    assert store.meta.fingerprint == card.fingerprint
    [weights] = card.details["weights"]
    assert len(list((tmp_path / "cache" / "blobs").glob(f"{weights}*"))) == 1

    index = {
        "job": "index",
        "store": {"uri": store.uri},
        "column": "image_embedding",
        "output": f"{s3_uri}/index",
    }
    runs.run(index, tmp_path / "index")
    rows = store.to_arrow().to_pylist()
    pictures = np.asarray([row["image_embedding"] for row in rows], np.float32)
    scores = pictures @ np.asarray(rows[3]["text_embedding"], np.float32)
    found = searched(f"{s3_uri}/index", rows[3]["caption"])
    assert np.allclose([hit["score"] for hit in found], sorted(scores)[::-1][:5], atol=1e-5)
    assert found[0]["id"] == rows[int(scores.argmax())]["id"]


def searched(index: str, words: str) -> list[dict[str, Any]]:
    """The hits of `mmray search`."""
    done = subprocess.run(
        [sys.executable, "-m", "mmray", "search", index, "--text", words, "-k", "5", "--json"],
        cwd=runs.ROOT,
        capture_output=True,
        timeout=runs.TIMEOUT,
        check=True,
    )
    hits: list[dict[str, Any]] = json.loads(done.stdout.decode().splitlines()[-1])["hits"]
    return hits


def test_a_missing_checkpoint_ends_a_job_before_it_begins(s3_uri: str, tmp_path: Path) -> None:
    job = runs.embed_spec(
        f"{s3_uri}/tars/*.tar",
        f"{s3_uri}/store",
        encoder={"kind": "joint", "model": f"{s3_uri}/nothing"},
    )
    refused = runs.run(job, tmp_path, code=2)
    assert f"no checkpoint at {s3_uri}/nothing" in refused["error"]
    assert not list(Storage().list(f"{s3_uri}/store"))
