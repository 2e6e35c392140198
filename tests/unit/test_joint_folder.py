"""A checkpoint by its uri: the same encoder as its folder; little is fetched, all of it checked."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmray.encoders import EncodeOptions, describe, joint, load_encoder
from mmray.errors import RefusedError
from mmray.index import QueryEncoder
from mmray.specs.common import CombinedEncoder, JointEncoder, PackagedEncoder
from mmray.storage import Storage, blobs
from mmray.train.checkpoints import Checkpoints
from tests import indexes, tinyjoint, tinymodels
from tests.tinyjoint import CONV

torch.set_num_threads(1)
STORAGE = Storage()
OPTIONS = EncodeOptions(dtype="float32")
TEXTS = ["a red cat", "the house", "Dog"]
STEP = "checkpoints/step-00000007"
WEIGHTS = "model/model-trained.safetensors"

Harm = Callable[[str], None]
"""Does something to the output at a uri."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Own places for copies, and for folders on their way."""
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "cache" / "blobs"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `model` folder of a checkpoint, with a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    bert = tinymodels.build("bert", folder / "bert")
    towers = {"image": CONV, "text": {"kind": "hf", "model": str(bert)}}
    return tinyjoint.save(folder / "joint", towers)


def put(model: Path, output: Path | str, step: int = 7, best: int | None = None) -> str:
    """An output of a train job with a checkpoint of this model, as a training writes it."""

    def write(folder: Path, again: bool) -> None:
        shutil.copytree(model, folder / "model")
        (folder / "course.json").write_text("{}")

    checkpoints = Checkpoints(STORAGE, str(output))
    checkpoints.save(step, write, best)
    checkpoints.wait()
    return str(output)


def spec_of(uri: str) -> JointEncoder:
    return JointEncoder(kind="joint", model=uri)


def vectors(uri: str, options: EncodeOptions = OPTIONS) -> np.ndarray:
    """Of three texts."""
    spec = spec_of(uri)
    return load_encoder(spec, describe(spec, options), "cpu", options).encode_texts(TEXTS)


def test_uris_and_folders_are_one_encoder(model: Path, s3_uri: str, tmp_path: Path) -> None:
    there, here = put(model, f"{s3_uri}/out"), put(model, tmp_path / "out")
    every = (there, f"{there}/", f"{there}/{STEP}/model", here, f"{here}/{STEP}/model", str(model))
    cards = [describe(spec_of(uri), OPTIONS) for uri in every]
    assert len({card.fingerprint for card in cards}) == 1
    assert all(card == replace(cards[0], name=card.name) for card in cards)
    assert cards[0].name == f"joint ({there})"
    wanted = vectors(str(model))
    assert np.array_equal(vectors(there), wanted)
    assert np.array_equal(vectors(f"{there}/{STEP}/model"), wanted)
    assert not list((tmp_path / "scratch").iterdir())


def test_a_checkpoint_that_was_copied_elsewhere(model: Path, s3_uri: str) -> None:
    """With its manifest it needs nothing of the output that it came from."""
    put(model, f"{s3_uri}/out")
    for each in STORAGE.list(f"{s3_uri}/out/{STEP}"):
        name = each.uri.partition(STEP)[2]
        STORAGE.write_bytes(f"{s3_uri}/models/v1{name}", STORAGE.read_bytes(each.uri))
    there = spec_of(f"{s3_uri}/models/v1/model")
    assert describe(there).fingerprint == describe(spec_of(str(model))).fingerprint


def test_weights_are_fetched_only_to_be_loaded(
    model: Path, s3_uri: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = put(model, f"{s3_uri}/out")
    digests = describe(spec_of(str(model)), OPTIONS).details["weights"]
    monkeypatch.setattr(joint, "digest", _only_small(joint.digest))
    card = describe(spec_of(uri), OPTIONS)
    assert card.details["weights"] == digests
    assert cache.exists()
    assert not any(list(cache.glob(f"{digest}*")) for digest in digests)
    load_encoder(spec_of(uri), card, "cpu", OPTIONS)
    assert [len(list(cache.glob(f"{digest}*"))) for digest in digests] == [1, 1]
    monkeypatch.setattr(blobs, "_download", None)
    load_encoder(spec_of(uri), card, "cpu", OPTIONS)


def _only_small(digest: Any) -> Any:
    def small(path: Path) -> Any:
        assert path.suffix != ".safetensors"
        return digest(path)

    return small


def test_the_best_may_become_another(model: Path, s3_uri: str, tmp_path: Path) -> None:
    uri = put(model, f"{s3_uri}/out")
    card = describe(spec_of(uri), OPTIONS)
    other = tinyjoint.save(tmp_path / "other", {"image": CONV, "text": CONV})
    put(other, f"{s3_uri}/out", step=8, best=7)
    assert describe(spec_of(uri), OPTIONS) == card
    put(other, f"{s3_uri}/out", step=8)
    with pytest.raises(RefusedError, match="isn't the driver's: .*weights differ"):
        load_encoder(spec_of(uri), card, "cpu", OPTIONS)
    with pytest.raises(RefusedError, match="has become another checkpoint"):
        joint.load(spec_of(uri), card, "cpu", OPTIONS)
    kept = f"{uri}/{STEP}/model"
    load_encoder(spec_of(kept), card, "cpu", OPTIONS)


def rewrite(path: str, change: Callable[[bytes], bytes]) -> Harm:
    """What lies below the output becomes something else."""

    def harm(uri: str) -> None:
        STORAGE.write_bytes(f"{uri}/{path}", change(STORAGE.read_bytes(f"{uri}/{path}")))

    return harm


def told(change: dict[str, Any]) -> Callable[[bytes], bytes]:
    """The manifest with its first file told otherwise."""

    def changed(data: bytes) -> bytes:
        manifest = json.loads(data)
        manifest["files"][0] |= change
        return json.dumps(manifest).encode()

    return changed


MANIFEST, CONFIG = f"{STEP}/manifest.json", f"{STEP}/model/config.json"
HARMS: dict[str, tuple[Harm, str]] = {
    "lost": (lambda uri: STORAGE.delete(f"{uri}/{STEP}/{WEIGHTS}"), rf"{WEIGHTS} is missing"),
    "torn": (rewrite(f"{STEP}/{WEIGHTS}", lambda data: data[:-9]), rf"{WEIGHTS} is torn"),
    "changed": (
        rewrite(CONFIG, lambda data: data.replace(b"16", b"61")),
        r"model/config\.json was changed after it was written",
    ),
    "torn manifest": (rewrite(MANIFEST, lambda data: data[:-9]), r"manifest\.json isn't JSON"),
    "odd manifest": (
        rewrite(MANIFEST, told({"path": 3})), r"manifest\.json is torn, or no manifest of a"
    ),
    "path": (
        rewrite(MANIFEST, told({"path": f"{STEP}/model/../../x.json"})),
        r"names '\.\./\.\./x\.json', which is no file below it",
    ),
    "no hash": (rewrite(MANIFEST, told({"path": f"{STEP}/model/a.json", "sha256": "../x"})), "SHA"),
    "pointer": (
        rewrite("checkpoint.json", lambda _: b'{"best": "../../x"}'),
        r"checkpoint\.json names no checkpoint",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMS)
def test_a_harmed_checkpoint_is_refused(
    name: str, model: Path, s3_uri: str, tmp_path: Path
) -> None:
    harm, message = HARMS[name]
    uri = put(model, f"{s3_uri}/out")
    harm(uri)
    with pytest.raises(RefusedError, match=message):
        describe(spec_of(uri), OPTIONS)
    assert not list((tmp_path / "scratch").iterdir())


def test_what_is_no_checkpoint_is_refused(s3_uri: str, tmp_path: Path, model: Path) -> None:
    vit = tinymodels.build("vit", tmp_path / "vit")
    for uri, folder in ((f"{s3_uri}/vit", vit), (f"{s3_uri}/bare", model)):
        for path in folder.iterdir():
            if path.is_file():
                STORAGE.write_bytes(f"{uri}/{path.name}", path.read_bytes())
    STORAGE.write_bytes(f"{s3_uri}/begun/_mmray/data/a.arrow", b"x")
    pickled = shutil.copytree(model, tmp_path / "pickled")
    for path in pickled.glob("model*"):
        path.replace(pickled / "pytorch_model.bin")
    put(pickled, f"{s3_uri}/pickled")
    put(vit, f"{s3_uri}/another")
    for uri, message in {
        f"{s3_uri}/nothing": r"no checkpoint at s3://.*/nothing: name the output of a train job",
        "s3://no-such-bucket-of-models/joint": "the bucket does not exist",
        f"{s3_uri}/begun": "/begun has no checkpoint yet",
        f"{s3_uri}/bare": r"no manifest\.json beside s3://.*/bare",
        f"{s3_uri}/vit": "of type 'vit', not a joint one",
        f"{s3_uri}/another": "of type 'vit', not a joint one",
        f"{s3_uri}/pickled": r"weights that run code when opened \(pytorch_model\.bin\)",
        "gs://bucket/out": "only local paths and s3:// are supported, not gs://",
    }.items():
        with pytest.raises(RefusedError, match=message):
            describe(spec_of(uri), OPTIONS)


def test_a_local_output_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "out" / "_mmray").mkdir(parents=True)
    with pytest.raises(RefusedError, match="/out has no checkpoint yet"):
        describe(spec_of(str(tmp_path / "out")), OPTIONS)


def test_weights_that_were_changed_are_not_loaded(model: Path, s3_uri: str) -> None:
    uri = put(model, f"{s3_uri}/out")
    card = describe(spec_of(uri), OPTIONS)
    place = f"{uri}/{STEP}/{WEIGHTS}"
    data = STORAGE.read_bytes(place)
    STORAGE.write_bytes(place, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RefusedError, match=rf"{WEIGHTS} was changed after it was written"):
        load_encoder(spec_of(uri), card, "cpu", OPTIONS)


def test_it_is_reached_as_the_spec_says(
    model: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch, s3_env: dict[str, str]
) -> None:
    """On the driver, in a worker, as a part of several encoders, and for queries."""
    uri = put(model, f"{s3_uri}/out")
    storage = Storage(endpoint=s3_env["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # no one is there
    options = replace(OPTIONS, storage=storage)
    wanted = vectors(str(model))
    assert np.array_equal(vectors(uri, options), wanted)
    voice = PackagedEncoder(kind="packaged", model="speech")
    both = CombinedEncoder(kind="combined", of=(spec_of(uri), voice))
    encoder = load_encoder(both, describe(both, options), "cpu", options)
    assert np.array_equal(encoder.encode_texts(TEXTS), wanted)
    card = describe(spec_of(str(model)), OPTIONS)
    made = replace(
        indexes.MADE,
        encoder_spec=spec_of(uri).model_dump(),
        encoder=card.name,
        fingerprint=card.fingerprint,
        encode={"dtype": "float32"},
    )
    query = QueryEncoder.of(made, storage=storage).text(TEXTS[0])
    assert np.allclose(query, wanted[0], atol=1e-6)
    gone = replace(made, encoder_spec=spec_of("/no/such/folder").model_dump())
    with pytest.raises(RefusedError, match="no checkpoint folder at .*; --model names"):
        QueryEncoder.of(gone, storage=storage)
    assert np.array_equal(QueryEncoder.of(gone, uri, storage=storage).text(TEXTS[0]), query)
