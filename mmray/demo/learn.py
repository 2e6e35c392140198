"""The demo's own model: pictures, captions and speech in one space, learned from its tars."""

from collections.abc import Sequence
from typing import Any

from mmray.demo.specs import TRAIN
from mmray.demo.stamps import Picture
from mmray.report import Report

ENOUGH = 8
"""Samples that have a modality, for it to get a tower."""
HELD_OUT = 100
"""Samples from which on a part is held out."""


def train_spec(pictures: Sequence[Picture]) -> dict[str, Any] | None:
    """The train job for what `pictures` have enough of; `None` where that is one modality."""
    counts = {
        "image": len(pictures),
        "text": sum(bool(each.caption) for each in pictures),
        "audio": sum(each.sound is not None for each in pictures),
    }
    towers = {
        name: tower for name, tower in TRAIN["model"]["towers"].items() if counts[name] >= ENOUGH
    }
    if len(towers) < 2:
        return None
    spec = TRAIN | {"model": TRAIN["model"] | {"towers": towers}}
    if len(pictures) < HELD_OUT:
        data, train = spec["data"], spec["train"]
        spec["data"] = data | {"split": data["split"] | {"test": 0.0}}
        spec["train"] = train | {"early_stopping": None}
    return spec


def told(report: Report) -> list[str]:
    """What the training says of itself."""
    facts = report.metrics
    learned = f"{facts['training_samples']:,} samples in {facts['steps']:,} steps"
    lines = [f"{learned}, {report.seconds:.1f} s; the loss is {facts['loss']:.3f}"]
    end = "_r10"
    ways = [
        f"{name.removeprefix('val/').removesuffix(end).replace('_to_', ' to ')} {float(value):.2f}"
        for name, value in facts.items()
        if name.endswith(end) and "_to_" in name
    ]
    if ways:
        held_out = int(facts["held_out_samples"])
        lines += [
            f"of {held_out} held out, the right one is among the first 10 (by chance"
            f" {min(1.0, 10 / held_out):.2f}): " + ", ".join(ways)
        ]
    return lines
