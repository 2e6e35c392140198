"""The train spec: the written example, defaults, and what is refused, in whose words."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from mmray.specs.problems import spec_error
from mmray.specs.train import TrainSpec

EXAMPLE = """
job: train
data:
  source: {kind: webdataset, uri: s3://bucket/stamps/*.tar}
  text: caption
  split: {group: caption, test: 0.2, seed: 0}
model:
  dim: 256
  towers:
    image: {kind: packaged, model: efficientnet-lite0, train: frozen}
    text: {kind: hf, model: /models/minilm, train: lora}
    audio: {kind: conv}
  fusion: {kind: attention}
  heads:
    contrastive: {loss: infonce, weight: 1.0}
    classify: {label: category, weight: 0.2}
    caption: {decoder: small, weight: 0.5}
train: {epochs: 10, batch_size: 128, lr: 3.0e-4, tower_lr: 1.0e-5, warmup: 0.1, weight_decay: 0.1,
  precision: auto, grad_accumulation: 1, grad_clip: 1.0,
  early_stopping: {metric: val/retrieval_r10, patience: 3}, seed: 0}
resources: {workers: 2, gpus_per_worker: 0}
output: s3://bucket/models/joint
"""


def fields(**changes: Any) -> dict[str, Any]:
    """The example with `a__b=value` set."""
    data: dict[str, Any] = yaml.safe_load(EXAMPLE)
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        place = data
        for name in parents:
            place = place.setdefault(name, {})
        place[leaf] = value
    return data


def test_the_example_is_a_spec() -> None:
    spec = TrainSpec.model_validate(fields())
    assert spec.model.heads.weights == {"contrastive": 1.0, "classify": 0.2, "caption": 0.5}
    assert spec.wanted == {"caption", "category"}
    assert spec.resources.worker_range == (2, 2)
    assert TrainSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_defaults_do_not_diverge() -> None:
    spec = TrainSpec.model_validate({key: each for key, each in fields().items() if key != "train"})
    train = spec.train
    assert train.tower_lr <= train.lr / 10
    assert train.warmup > 0
    assert train.grad_clip is not None
    assert train.modality_dropout == 0
    assert not any(train.augment.model_dump().values())


@pytest.mark.parametrize(
    "changes",
    [
        {"resources__workers": [1, 4]},
        {"train__grad_clip": None},
        {"model__fusion": {"kind": "weighted", "alpha": {"image": 1, "text": 2, "audio": 0}}},
        {"model__fusion": {"kind": "weighted", "alpha": "gate"}},
        {"model__heads__caption": {"decoder": {"kind": "hf", "model": "/m/gpt2", "train": "lora"}}},
        {"model__towers__video": {"kind": "recurrent"}},
        {
            "model__towers__text": {
                "kind": "packaged",
                "model": "minilm",
                "train": "lora",
                "rank": 4,
            }
        },
        {"model__losses": "alternate"},
        {"train__adversarial": {"kind": "pgd"}},
        {"train__early_stopping": {"metric": "val/loss_caption"}},
        {"model__heads__regress": {"label": "year", "of": ["image"]}},
    ],
)
def test_taken(changes: dict[str, Any]) -> None:
    TrainSpec.model_validate(fields(**changes))


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"model__heads__classify": {"weight": 1}}, "model.heads.classify.label", "is needed"),
        ({"model__heads": {}}, "model", "needs one with a weight above 0"),
        (
            {"model__heads": {"contrastive": {"weight": -1}}},
            "model.heads.contrastive.weight",
            "greater than or equal to 0",
        ),
        (
            {
                "model__towers__image": {
                    "kind": "packaged",
                    "model": "efficientnet-lite0",
                    "train": "lora",
                }
            },
            "model.towers.image",
            "lora goes with hf towers and minilm, not with efficientnet-lite0",
        ),
        (
            {"model__towers__audio": {"kind": "conv", "train": "lora"}},
            "model.towers.audio",
            "is not a field",
        ),
        (
            {"model__towers__audio": {"kind": "packaged", "model": "minilm"}},
            "model",
            "towers.audio: minilm is for text",
        ),
        (
            {"model__towers__image": {"kind": "hf", "model": "/m", "train": "prefix"}},
            "model",
            "prefix goes with text towers",
        ),
        (
            {"model__towers__text": {"kind": "hf", "model": "/m", "train": "lora", "blocks": 2}},
            "model.towers.text",
            "blocks goes with train: last_n, not with lora",
        ),
        (
            {"model__towers__text": {"kind": "hf", "model": "/m", "rank": 2}},
            "model.towers.text",
            "rank goes with lora, adalora and prefix, not with frozen",
        ),
        (
            {"model__towers__text": {"kind": "conf"}},
            "model.towers.text.kind",
            "must be one of hf, packaged, conv, recurrent, not 'conf' (did you mean 'conv'?)",
        ),
        (
            {"model__towers__text": {}},
            "model.towers.text.kind",
            "is needed: one of hf, packaged, conv, recurrent",
        ),
        ({"model__towers__txet": {"kind": "conv"}}, "model.towers.txet", "did you mean 'text'"),
        ({"model__towers": 3}, "model.towers", "of fields (image, text, audio, video), not"),
        (
            {"model__fusion": {"kind": "sum", "alpha": "gate"}},
            "model.fusion",
            "alpha goes with kind: weighted, not with sum",
        ),
        (
            {"model__fusion": {"kind": "weighted", "alpha": {"image": 1.0}}},
            "model",
            "fusion.alpha needs a number for each tower",
        ),
        ({"model__dim": 30}, "model", "4 doesn't divide dim, 30"),
        (
            {"model__towers": {"text": {"kind": "conv"}}, "model__heads": {"contrastive": {}}},
            "model",
            "needs two towers",
        ),
        (
            {"model__towers": {"text": {"kind": "conv"}}, "model__heads": {"caption": {}}},
            "model",
            "needs a tower other than text's",
        ),
        (
            {"model__heads__classify": {"label": "c", "of": ["video"]}},
            "model",
            "heads.classify.of: there is no tower for video",
        ),
        (
            {"model__heads__caption": {"of": ["image", "text"]}},
            "model",
            "heads.caption.of: text is what it learns to write",
        ),
        *(
            (
                {f"model__heads__{head}": {"label": "c", "of": ["image", "image"]}},
                "model",
                f"heads.{head}.of: image stands twice",
            )
            for head in ("classify", "regress")
        ),
        (
            {"model__losses": "alternate", "model__heads": {"contrastive": {}}},
            "model",
            "alternate needs two heads",
        ),
        (
            {"model__heads__caption": {"decoder": {"kind": "hf", "model": "g", "trian": "lora"}}},
            "model.heads.caption.decoder.trian",
            "did you mean 'train'",
        ),
        (
            {
                "model__heads__caption": {
                    "decoder": {"kind": "hf", "model": "g", "train": "lora", "rank": 0}
                }
            },
            "model.heads.caption.decoder.rank",
            "greater than 0",
        ),
        (
            {"model__heads__contrastive": {"temperature": 0.005}},
            "model.heads.contrastive.temperature",
            "greater than or equal to 0.01",
        ),
        ({"train__lr": 0}, "train.lr", "greater than 0"),
        ({"train__warmup": 1.0}, "train.warmup", "less than 1"),
        ({"train__tower_rl": 1e-5}, "train.tower_rl", "did you mean 'tower_lr'"),
        (
            {"train__adversarial": {}, "train__grad_accumulation": 2},
            "train",
            "adversarial needs whole batches",
        ),
        (
            {"train__batch_size": 4, "train__grad_accumulation": 3, "resources__workers": 2},
            "",
            "4 samples don't fill 2 workers in 3 parts each",
        ),
        ({"resources__workers": [3, 2]}, "resources", "[least, most]"),
        (
            {
                "train__early_stopping": {"metric": "val/mrr"},
                "model__heads": {"classify": {"label": "c"}},
            },
            "",
            "val/mrr needs heads.contrastive",
        ),
        ({"train__early_stopping": {"metric": "val/bleu"}}, "", "val/bleu is not measured"),
        ({"train__early_stopping": {"metric": "val/retrieval_r3"}}, "", "_r3 is not measured"),
        ({"train__early_stopping": {"metric": "val/loss_weights"}}, "", "_weights is not measured"),
        (
            {"model__towers__audio": {"kind": "packaged", "model": "speech", "train": "last_n"}},
            "model.towers.audio",
            "last_n needs a stack of blocks",
        ),
        ({"data__split__test": 1.0}, "data.split.test", "less than 1"),
        ({"output": " "}, "output", "must name a folder"),
    ],
)
def test_refused(changes: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainSpec.model_validate(fields(**changes))
    error = spec_error(caught.value, TrainSpec)
    assert f"{error.path}.".startswith(f"{path}." if path else "")
    assert message in error.message


def test_every_field_says_what_it_is() -> None:
    """The reference is made of them; a name that says it all needs no words."""
    seen: list[tuple[str, str]] = []

    def walk(schema: dict[str, Any]) -> None:
        for name, model in schema["$defs"].items():
            assert model.get("description") or name.startswith("_"), name
            seen.extend((name, field) for field in model.get("properties", {}))

    walk(TrainSpec.model_json_schema())
    assert ("Adversarial", "size") in seen
