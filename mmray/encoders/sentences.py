"""What sentence-transformers' own files say of a text model: pooling, length, case.

A folder whose files ask for a step mmray doesn't run (a dense layer, a prompt, another pooling) is
refused: leaving the step out would give vectors that look right and aren't.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmray.encoders.folder import read_json
from mmray.errors import RefusedError

_STEPS = frozenset({"Transformer", "Pooling", "Normalize"})
_SUPPORTED = {"cls": "cls", "mean": "mean"}
_OLD_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class SentenceSettings:
    """Settings of a sentence-transformers folder; all empty where it isn't one."""

    pooling: str | None = None
    max_tokens: int | None = None
    lower_case: bool = False


def read_sentence_settings(folder: Path) -> SentenceSettings:
    """Read `modules.json` and its neighbours in `folder`. Raises `RefusedError`."""
    _check_steps(folder)
    prompts = read_json(folder, "config_sentence_transformers.json") or {}
    if prompts.get("default_prompt_name"):
        raise RefusedError(f"{folder} puts a prompt before each text, which mmray doesn't")
    sentence = read_json(folder, "sentence_bert_config.json") or {}
    limit = sentence.get("max_seq_length")
    return SentenceSettings(
        pooling=_pooling(folder),
        max_tokens=int(limit) if limit else None,
        lower_case=bool(sentence.get("do_lower_case")),
    )


def _pooling(folder: Path) -> str | None:
    config = read_json(folder, "1_Pooling/config.json")
    if config is None:
        return None
    mode: Any = config.get("pooling_mode")
    if mode is None:
        mode = [name for flag, name in _OLD_FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [mode] if isinstance(mode, str) else list(mode)
    if len(modes) != 1 or modes[0] not in _SUPPORTED:
        raise RefusedError(f"{folder} pools by {'+'.join(modes)}; mmray knows cls and mean")
    return _SUPPORTED[modes[0]]


def _check_steps(folder: Path) -> None:
    path = folder / "modules.json"
    if not path.is_file():
        return
    for step in json.loads(path.read_text("utf-8")):
        name = str(step.get("type", "")).rsplit(".", 1)[-1]
        if name not in _STEPS:
            raise RefusedError(f"{folder} has a {name} step after pooling, which mmray can't run")
        if name == "Transformer" and step.get("path"):
            raise RefusedError(f"{folder} keeps its model in {step['path']}: name that folder")
