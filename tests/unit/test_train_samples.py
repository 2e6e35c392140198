"""Pinned samples: pieces are made once, and batches are what embedding would see."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmray.encoders.joint_folder import open_checkpoint
from mmray.jobs import train
from mmray.models.joint import checkpoint
from mmray.models.joint.batch import Frames, Sound, Tokens
from mmray.storage import Storage
from mmray.train.begin import begin, here
from mmray.train.course import Course
from tests import media, shards, tinymodels, training
from tests.tinyjoint import CONV, RECURRENT
from tests.training import batches_of


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_every_modality_comes_as_its_tower_takes_it(tmp_path: Path) -> None:
    entries = []
    for seed in range(6):
        key = f"{seed:04d}"
        parts = {
            "jpg": shards.picture(seed, (20, 16)),
            "txt": shards.caption(seed).encode(),
            "wav": media.sound(0.5 + seed / 2),
            "mp4": media.film(5, (32, 32), seed=seed),
        }
        for absent in (["mp4"], ["wav", "jpg"], [], ["txt"], ["mp4", "wav", "jpg"], [])[seed]:
            parts.pop(absent)
        entries += [(f"{key}.{kind}", data) for kind, data in parts.items()]
    (tmp_path / "a.tar").write_bytes(shards.tar(entries))
    spec = training.spec(
        str(tmp_path / "a.tar"),
        tmp_path / "out",
        model__towers={"image": CONV, "text": CONV, "audio": RECURRENT, "video": CONV},
        data__split={"test": 0.0},
        data__frames=3,
    )
    batch = batches_of(spec)(np.array([5, 0, 4, 1, 3]))
    assert {name: each.tolist() for name, each in batch.present.items()} == {
        "image": [True, True, False, False, True],
        "text": [True, True, True, True, False],
        "audio": [True, True, False, False, True],
        "video": [True, False, False, True, True],
    }
    sound, frames = batch.inputs["audio"], batch.inputs["video"]
    assert isinstance(sound, Sound)
    assert sound.lengths.tolist() == [24_000, 8_000, 0, 0, 24_000]  # a window of 1.5 s
    assert isinstance(frames, Frames)
    assert frames.mask.sum(1).tolist() == [3, 0, 0, 3, 3]
    assert isinstance(batch.inputs["text"], Tokens)
    image = batch.inputs["image"]
    assert isinstance(image, torch.Tensor)
    from mmray.decode.image import decode_image
    from mmray.encoders.joint_config import image_of

    transform = image_of(open_checkpoint(spec.output).towers["image"])
    pixels = decode_image(shards.picture(5, (20, 16)), transform, max_pixels=10**6)
    assert np.array_equal(image[0].numpy(), pixels)
    assert not image[2].any()
    report = train.run(spec, quiet=True)
    assert report.rows_written == 6


def test_a_frozen_tower_is_looked_through_once(tmp_path: Path) -> None:
    """Its vectors are those of the tower itself, and the model learns what it learns without."""
    uri = training.write_tars(tmp_path / "tars", 2, 20)
    bert = tinymodels.build("bert", tmp_path / "bert")
    towers: dict[str, Any] = {"image": CONV, "text": {"kind": "hf", "model": str(bert)}}
    courses: list[Course] = []
    for cache in (True, False):
        spec = training.spec(
            uri, tmp_path / str(cache), model__towers=towers, train__cache=cache, train__epochs=4
        )
        batch = batches_of(spec)(np.arange(8))
        model = checkpoint.load(open_checkpoint(spec.output).folder)
        tower: Any = model.towers["text"]
        value = batch.inputs["text"]
        assert isinstance(value, torch.Tensor if cache else Tokens)
        if cache:
            cached = value
        else:
            with torch.no_grad():
                assert torch.allclose(tower.look(value), cached, atol=1e-5)
        train.run(spec, quiet=True)
        courses.append(training.course(spec.output, tmp_path / "at"))
        assert open_checkpoint(spec.output).tokenizers.keys() == {"text"}
    assert courses[0].losses == pytest.approx(courses[1].losses, rel=1e-3)


def test_pieces_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmray.train import begin as beginning

    uri = training.write_tars(tmp_path / "tars", 2, 8)
    spec = training.spec(uri, tmp_path / "out")
    made: list[str] = []
    make = beginning.make_piece

    def killed(*args: Any) -> Any:
        made.append(args[2])
        if len(made) == 2:
            raise KeyboardInterrupt
        return make(*args)

    monkeypatch.setattr(beginning, "make_piece", killed)
    with pytest.raises(KeyboardInterrupt):
        train.run(spec, quiet=True)
    train.run(spec, quiet=True)
    assert len(made) == 3
    assert made[1] == made[2] != made[0]


def test_a_signal_ends_it_between_two_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from mmray.errors import Interrupted
    from mmray.train import begin as beginning

    uri = training.write_tars(tmp_path / "tars", 2, 8)
    make = beginning.make_piece

    def signalled(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return make(*args)

    monkeypatch.setattr(beginning, "make_piece", signalled)
    with pytest.raises(Interrupted) as caught:
        train.run(training.spec(uri, tmp_path / "out"), quiet=True)
    assert caught.value.signum == signal.SIGTERM
    assert caught.value.report is not None
    assert len(list((tmp_path / "out").rglob("*.arrow"))) == 1


def test_a_source_that_grows_does_not_disturb(tmp_path: Path) -> None:
    uri = training.write_tars(tmp_path / "tars", 2, 8)
    spec = training.spec(uri, tmp_path / "out", train__epochs=1)
    before = begin(spec, Storage(), lambda _: None, here)
    (tmp_path / "tars" / "9.tar").write_bytes(shards.sample_tar(4, first=90))
    assert begin(spec, Storage(), lambda _: None, here) == before
    assert train.run(spec, quiet=True).rows_read == 16


@pytest.mark.parametrize("ending", [".arrow", ".bin"])
def test_a_piece_that_was_changed_is_refused(tmp_path: Path, ending: str) -> None:
    from mmray.errors import RefusedError

    uri = training.write_tars(tmp_path / "tars", 1, 8)
    spec = training.spec(uri, tmp_path / "out", train__epochs=1)
    begin(spec, Storage(), lambda _: None, here)
    piece = next((tmp_path / "out" / "_mmray" / "data").rglob(f"*{ending}"))
    data = bytearray(piece.read_bytes())
    data[len(data) // 2] ^= 1
    piece.write_bytes(data)
    with pytest.raises(RefusedError, match="changed after it was written"):
        train.run(spec, quiet=True)


def test_labels_are_those_of_the_training_split(tmp_path: Path) -> None:
    entries = []
    for seed in range(20):
        metadata = {"category": seed % 3 == 0, "number": float(seed)}
        entries += [
            (f"{seed:04d}.jpg", shards.picture(seed, (20, 16))),
            (f"{seed:04d}.json", json.dumps(metadata).encode()),
        ]
    (tmp_path / "a.tar").write_bytes(shards.tar(entries))
    heads = {"classify": {"label": "category"}, "regress": {"label": "number"}}
    spec = training.spec(
        str(tmp_path / "a.tar"),
        tmp_path / "out",
        model__heads=heads,
        model__towers={"image": CONV},
        data__split={"test": 0.3},
    )
    batches = batches_of(spec)
    config = open_checkpoint(spec.output).config["heads"]
    samples = batches.samples
    assert config["classify"]["classes"] == ["False", "True"]
    assert config["regress"]["mean"] == pytest.approx(samples.train.mean())
    rows = samples.test[:3]
    batch = batches(rows)
    assert batch.labels["regress"].tolist() == rows.tolist()
    assert batch.labels["classify"].tolist() == [int(row % 3 == 0) for row in rows]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-40], r"train\.json is broken"),
        (lambda text: text.replace('"train":', '"trained":'), r"train\.json is broken"),
        (lambda text: text.replace('"format":2', '"format":1'), "another version of mmray"),
    ],
)
def test_a_beginning_that_cannot_be_read_is_refused(
    tmp_path: Path, change: Callable[[str], str], words: str
) -> None:
    from mmray.errors import RefusedError

    spec = training.spec(training.write_tars(tmp_path / "tars", 1, 8), tmp_path / "out")
    begin(spec, Storage(), lambda _: None, here)
    place = tmp_path / "out" / "_mmray" / "train.json"
    text = place.read_text()
    assert change(text) != text
    place.write_text(change(text))
    with pytest.raises(RefusedError, match=words):
        train.run(spec, quiet=True)
