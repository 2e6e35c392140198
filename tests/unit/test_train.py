"""The train job in this process: it learns, goes on as if undisturbed, and ends in words."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmray.encoders.joint_folder import open_checkpoint
from mmray.errors import Interrupted, JobFailed, RefusedError, SpecError
from mmray.jobs import train
from mmray.models.joint.batch import JointBatch, JointOutput
from mmray.report import Report
from mmray.specs.train import TrainSpec
from mmray.train import loop
from tests import media, shards, tinymodels, training


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    return training.write_tars(tmp_path_factory.mktemp("tars"))


def run(spec: TrainSpec) -> Report:
    return train.run(spec, quiet=True)


def run_until(spec: TrainSpec, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that a signal ends after `step`."""
    from mmray.train.seen import Seen

    pointer = Path(spec.output) / "checkpoint.json"
    last = json.loads(pointer.read_text())["last"] if pointer.exists() else "0"
    kept = int(last.rpartition("-")[2])
    ahead = step - kept - 1  # the step that is begun is done
    with monkeypatch.context() as patch:
        patch.setattr(Seen, "signal", lambda self: 15 if len(self.losses) >= ahead else 0)
        with pytest.raises(Interrupted) as caught:
            run(spec)
    assert caught.value.signum == 15
    assert caught.value.report is not None
    assert caught.value.report.status == "interrupted"


def test_it_learns_and_a_second_run_does_nothing(tars: str, tmp_path: Path) -> None:
    spec = training.spec(tars, tmp_path / "out", train__epochs=8)
    report = run(spec)
    course = training.course(spec.output, tmp_path)
    assert report.status == "done"
    assert (report.rows_read, report.rows_written) == (48, 48)
    assert report.metrics["training_samples"] + report.metrics["held_out_samples"] == 48  # type: ignore[operator]
    assert np.mean(course.losses[-4:]) < 0.7 * np.mean(course.losses[:4])
    assert len(course.epochs) == 8
    assert "<polyline" in Path(str(report.outputs["page"])).read_text()
    assert list((tmp_path / "out" / "tensorboard").rglob("events.*"))
    again = run(spec)
    assert (again.rows_read, again.rows_skipped) == (0, 48)
    assert again.outputs["model"] == spec.output


def test_the_output_is_an_encoder_of_its_best_checkpoint(tars: str, tmp_path: Path) -> None:
    spec = training.spec(tars, tmp_path / "out", train__epochs=2)
    run(spec)
    pointer = json.loads((tmp_path / "out" / "checkpoint.json").read_text())
    assert pointer["done"]
    assert open_checkpoint(spec.output).folder == tmp_path / "out" / pointer["best"] / "model"
    assert set(open_checkpoint(spec.output).towers) == {"image", "text"}
    (tmp_path / "out" / "checkpoint.json").write_text('{"best": "../elsewhere"}')
    with pytest.raises(RefusedError, match="names no checkpoint"):
        open_checkpoint(spec.output)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__dropout": 0.2, "train__modality_dropout": 0.3, "train__augment": {"crop": 0.2}},
        {"train__optimizer": "sgd", "model__heads": {"contrastive": {"loss": "moco", "queue": 16}}},
    ],
)
def test_after_a_signal_it_goes_on_as_if_undisturbed(
    tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    whole = training.spec(tars, tmp_path / "whole", **changes)
    run(whole)
    parts = training.spec(tars, tmp_path / "parts", **changes)
    for step in (1, 5):  # at the start, and in the midst of an epoch
        run_until(parts, step, monkeypatch)
    run(parts)
    one, other = (training.course(each.output, tmp_path / "at") for each in (whole, parts))
    assert one == other
    first, second = (training.weights(each.output, tmp_path / "at") for each in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_parts_of_a_batch_are_one_batch(tars: str, tmp_path: Path) -> None:
    courses = []
    for parts in (1, 3):
        spec = training.spec(
            tars, tmp_path / str(parts), train__grad_accumulation=parts, train__epochs=2
        )
        run(spec)
        courses.append(training.course(spec.output, tmp_path / "at"))
    assert courses[0].losses == pytest.approx(courses[1].losses, rel=1e-4)


def test_a_torn_checkpoint_is_passed_over(
    tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = training.spec(tars, tmp_path / "whole", train__checkpoint_steps=1)
    run(whole)
    parts = training.spec(tars, tmp_path / "parts", train__checkpoint_steps=1)
    run_until(parts, 6, monkeypatch)
    last = tmp_path / "parts" / "checkpoints" / "step-00000006" / "course.safetensors"
    last.write_bytes(last.read_bytes()[:-9])
    train.run(parts)
    assert "passing over checkpoints/step-00000006" in capsys.readouterr().err
    one, other = (training.course(each.output, tmp_path / "at") for each in (whole, parts))
    assert one == other


def test_no_whole_checkpoint_is_refused(
    tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = training.spec(tars, tmp_path / "out")
    run_until(spec, 1, monkeypatch)
    for manifest in (tmp_path / "out" / "checkpoints").rglob("manifest.json"):
        manifest.unlink()
    with pytest.raises(RefusedError, match="no checkpoint is whole"):
        run(spec)


def test_a_pickle_among_the_weights_is_refused(
    tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = training.spec(tars, tmp_path / "out")
    run_until(spec, 1, monkeypatch)
    for folder in (tmp_path / "out" / "checkpoints").iterdir():
        weights = folder / "model" / "model.safetensors"
        torch.save({}, weights)
    with pytest.raises(RefusedError, match="no checkpoint is whole"):
        run(spec)


def test_another_spec_on_the_same_output_is_refused(tars: str, tmp_path: Path) -> None:
    run(training.spec(tars, tmp_path / "out", train__epochs=1))
    with pytest.raises(RefusedError, match=r"its model\.dim is 16, not 32"):
        run(training.spec(tars, tmp_path / "out", train__epochs=1, model__dim=32))


def diverging(tars: str, output: Path, lr: float) -> TrainSpec:
    """Steps of a rate that is far too high, each of them kept."""
    return training.spec(
        tars,
        output,
        train__lr=lr,
        train__optimizer="sgd",
        train__grad_clip=None,
        train__warmup=0.0,
        train__checkpoint_steps=1,
    )


def test_a_loss_that_is_no_number_names_step_and_samples(tars: str, tmp_path: Path) -> None:
    spec = diverging(tars, tmp_path / "out", 1e30)
    words = r"is (nan|inf) at step \d+, on the samples [0-9a-f]{32}"
    with pytest.raises(JobFailed, match=words) as caught:
        run(spec)
    assert caught.value.report is not None
    batch = json.loads(Path(str(caught.value.report.outputs["batch"])).read_text())
    assert len(set(batch)) == spec.train.batch_size
    course = training.course(spec.output, tmp_path / "at")
    assert all(np.isfinite(course.losses))


def test_weights_that_are_no_numbers_are_not_kept(tars: str, tmp_path: Path) -> None:
    spec = diverging(tars, tmp_path / "out", 1e38)
    with pytest.raises(JobFailed, match=r"a weight is no number at step 0, .*/step-00000000$"):
        run(spec)
    kept = training.weights(spec.output, tmp_path / "at")
    assert all(bool(each.isfinite().all()) for each in kept.values())


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_what_was_learned_before_it_diverged_stays(
    tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    changes = {"model__dropout": 0.2, "train__modality_dropout": 0.3}
    whole = training.spec(tars, tmp_path / "whole", **changes)
    run(whole)
    spec = training.spec(tars, tmp_path / "out", **changes)
    backward = loop.Loop._backward

    def diverging(self: loop.Loop, batch: JointBatch, only: str | None) -> JointOutput:
        output = backward(self, batch, only)
        if self.course.step != 6:  # in the midst of an epoch
            return output
        if wrong == "gradient":
            self.weights[0].grad.fill_(math.inf)
            return output
        return dataclasses.replace(output, loss=output.loss * math.nan)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_backward", diverging)
        for _ in range(2):  # the same spec comes there again
            words = rf"the {wrong} is (nan|inf) at step 6, .* kept in checkpoints/step-00000006$"
            with pytest.raises(JobFailed, match=words) as caught:
                run(spec)
            assert caught.value.report is not None
            assert caught.value.report.metrics["steps"] == 6
            assert training.course(spec.output, tmp_path / "at").step == 6
    run(spec)
    one, other = (training.course(each.output, tmp_path / "at") for each in (whole, spec))
    assert one == other


def test_too_little_memory_says_what_needs_less(
    tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(loop.Loop, "_backward", full)
    with pytest.raises(JobFailed, match=r"too little memory for step 0; a larger train\.grad_acc"):
        run(training.spec(tars, tmp_path / "out"))


def test_checkpoints_of_who_knows_what_are_refused(tars: str, tmp_path: Path) -> None:
    spec = training.spec(tars, tmp_path / "out", train__epochs=1)
    run(spec)
    (tmp_path / "out" / "_mmray" / "train.json").unlink()
    with pytest.raises(RefusedError, match="not what they were trained on"):
        run(spec)


def test_early_stopping_ends_it(tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"val/loss": 1.0, "val/mrr": 0.5})
    stopping = {"metric": "val/mrr", "patience": 2}
    spec = training.spec(tars, tmp_path / "out", train__epochs=9, train__early_stopping=stopping)
    report = run(spec)
    assert report.metrics["stopped_early"] == "yes"
    assert report.metrics["epochs"] == 3
    assert report.metrics["best_step"] == report.metrics["steps"] / 3  # type: ignore[operator]
    kept = sorted(each.name for each in (tmp_path / "out" / "checkpoints").iterdir())
    assert len(kept) == 3  # the best and the last two


def test_samples_that_lack_something_are_learned_from_all_the_same(tmp_path: Path) -> None:
    entries = []
    for seed in range(24):
        found = shards.members(f"{seed:04d}", seed, size=(20, 16))
        metadata = {"category": "late" if seed >= 16 else "ab"[seed % 2], "number": seed}
        if seed % 4 == 0:
            metadata.pop("category")
        picture, text = found[0], found[1]
        if seed == 5:
            picture = (picture[0], b"not a picture")
        parts = [picture, text] if seed % 3 else [picture]
        if seed == 7:
            parts = [(f"{seed:04d}.wav", media.sound())]
        entries += [*parts, (f"{seed:04d}.json", json.dumps(metadata).encode())]
    (tmp_path / "a.tar").write_bytes(shards.tar(entries))
    heads = {
        "contrastive": {},
        "classify": {"label": "category"},
        "regress": {"label": "number"},
        "caption": {"width": 16, "layers": 1},
    }
    spec = training.spec(
        str(tmp_path / "a.tar"),
        tmp_path / "out",
        model__heads=heads,
        train__batch_size=1,
        train__epochs=1,
        errors={"max_fraction": 0.1},
    )
    report = run(spec)
    assert report.errors == {"UnreadableImage": 1}
    assert report.filtered == {"NothingForTowers": 1}
    assert report.examples[0].source_key == "0005"
    assert all(np.isfinite(training.course(spec.output, tmp_path / "at").losses))


def test_too_many_bad_samples_end_it(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(shards.tar([("a.jpg", b"no"), ("b.jpg", shards.picture(1))]))
    with pytest.raises(JobFailed, match=r"1 of 2 samples can't be used \(1 UnreadableImage\)"):
        run(training.spec(str(tmp_path / "a.tar"), tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"data__split": {"test": 1e-9}}, RefusedError, "none of 48 samples is held out"),
        ({"data__split": {"test": 1 - 1e-9}}, RefusedError, "all 48 samples are held out"),
        (
            {"data__split": {"test": 0.0}, "train__early_stopping": {}},
            SpecError,
            "needs a held-out split",
        ),
        (
            {"model__heads": {"classify": {"label": "kind"}}},
            SpecError,
            "no training sample has a 'kind'",
        ),
        ({"model__heads": {"regress": {"label": "kind"}}}, SpecError, "has a number 'kind'"),
        ({"data__text": "captoin"}, SpecError, "data.text: no training sample has a 'captoin'"),
        (
            {
                "data__text": "captoin",
                "data__split": {"test": 0.25},
                "model__towers": {"image": training.TOWERS["image"]},
                "model__heads": {"caption": {"width": 16, "layers": 1}},
            },
            SpecError,
            "data.text: no training sample has a 'captoin'",
        ),
        (
            {"data__split": {"test": 0.25, "group": "captoin"}},
            SpecError,
            "data.split.group: no sample has a 'captoin'",
        ),
        (
            {"model__towers": {**training.TOWERS, "audio": {"kind": "conv"}}},
            SpecError,
            "model.towers.audio: no training sample has audio",
        ),
        ({"resources__gpus_per_worker": 1}, RefusedError, "torch sees none"),
        (
            {"model__towers": {"audio": {"kind": "conv"}, "video": {"kind": "conv"}}},
            RefusedError,
            "has anything for the towers",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tars: str, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    if torch.cuda.is_available() and "gpus" in str(changes):
        pytest.skip("there is a GPU")
    with pytest.raises(error, match=words):
        run(training.spec(tars, tmp_path / "out", **changes))


@pytest.mark.parametrize("part", ["tower", "decoder"])
@pytest.mark.parametrize(
    ("harm", "error", "words"),
    [
        ("pickle", RefusedError, "weights that run code when opened"),
        ("prefix", SpecError, "can't be given a prefix"),
    ],
)
def test_a_model_that_cannot_be_taken_is_refused_before_any_sample_is_read(
    tars: str, tmp_path: Path, part: str, harm: str, error: type[Exception], words: str
) -> None:
    folder = tinymodels.build("mpnet", tmp_path / "model")
    if part == "decoder":
        (folder / "config.json").write_text('{"model_type": "mamba", "eos_token_id": 1}')
    if harm == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    model = {"kind": "hf", "model": str(folder), "train": "prefix" if harm == "prefix" else "full"}
    if part == "tower":
        changes: dict[str, Any] = {"model__towers": {**training.TOWERS, "text": model}}
    else:
        changes = {"model__heads": {"caption": {"decoder": model}}}
    with pytest.raises(error, match=words):
        run(training.spec(tars, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_without_a_held_out_split_the_last_is_the_best(tars: str, tmp_path: Path) -> None:
    spec = training.spec(tars, tmp_path / "out", data__split={"test": 0.0}, train__epochs=2)
    report = run(spec)
    pointer = json.loads((tmp_path / "out" / "checkpoint.json").read_text())
    assert pointer["best"] == pointer["last"]
    assert report.metrics["held_out_samples"] == 0


def test_a_classes_head_meets_classes_of_the_test_split_only(tmp_path: Path) -> None:
    """Whole categories are held out: none of their samples has a class that was learned."""
    entries = []
    for seed in range(32):
        metadata = {"category": "abcdefgh"[seed % 8], "caption": f"caption {seed}"}
        entries += [
            (f"{seed:04d}.jpg", shards.picture(seed, (20, 16))),
            (f"{seed:04d}.json", json.dumps(metadata).encode()),
        ]
    (tmp_path / "a.tar").write_bytes(shards.tar(entries))
    heads = {"contrastive": {}, "classify": {"label": "category"}}
    metrics = []
    for group in ("category", None):
        spec = training.spec(
            str(tmp_path / "a.tar"),
            tmp_path / str(group),
            model__heads=heads,
            data__split={"group": group, "test": 0.3},
        )
        metrics.append(run(spec).metrics)
        losses = [each["val/loss"] for each in training.course(spec.output, tmp_path / "at").epochs]
        assert np.isfinite(losses).all()
    apart, mixed = metrics
    assert apart["held_out_samples_of_unknown_classes"] == apart["held_out_samples"]
    assert apart["val/accuracy"] == 0
    assert "held_out_samples_of_unknown_classes" not in mixed


def test_a_training_that_is_done_keeps_no_samples(
    tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it dies before they are gone: the next run, without torch, removes them."""
    out = tmp_path / "out"
    spec = training.spec(tars, out, train__epochs=1)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "remove_pieces", dies)
        with pytest.raises(KeyboardInterrupt):
            run(spec)
    assert json.loads((out / "checkpoint.json").read_text())["done"]
    assert list((out / "_mmray" / "data").rglob("*.arrow"))
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    code = (
        "import sys; from mmray.jobs import train; from mmray.specs import load_spec;"
        f"report = train.run(load_spec({str(tmp_path / 'spec.json')!r}), quiet=True);"
        "assert report.rows_skipped == 48, report;"
        "assert not {'torch', 'transformers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert [each.name for each in (out / "_mmray").iterdir()] == ["train.json"]
    assert run(spec).rows_skipped == 48


def test_adalora_goes_on_with_its_ranks(
    tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it gives ranks up, and when they are what was asked for."""
    bert = tinymodels.build("bert", tmp_path / "bert")
    text = {"kind": "hf", "model": str(bert), "train": "adalora", "rank": 2}
    changes = {
        "model__towers": {"image": training.TOWERS["image"], "text": text},
        "train__epochs": 8,
        "train__batch_size": 9,
        "train__lr": 1e-2,
    }
    whole = training.spec(tars, tmp_path / "whole", **changes)
    run(whole)
    parts = training.spec(tars, tmp_path / "parts", **changes)
    steps = len(training.course(whole.output, tmp_path / "at").losses)
    ranks = []
    for step in (6, steps - 2):
        run_until(parts, step, monkeypatch)
        ranks.append(_ranks(training.weights(parts.output, tmp_path / "at")))
    run(parts)
    one, other = (training.course(each.output, tmp_path / "at") for each in (whole, parts))
    assert one == other
    first, second = (training.weights(each.output, tmp_path / "at") for each in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
    layers = sum("lora_E" in name for name in first)
    assert 3 * layers > ranks[0] > ranks[1] == _ranks(second) == 2 * layers


def _ranks(weights: dict[str, torch.Tensor]) -> int:
    return sum(int((each != 0).sum()) for name, each in weights.items() if "lora_E" in name)
