"""What a joint model is given: texts, sounds and pixels as the tensors that its towers take.

The same settings and the same code serve training and embedding, so that a vector is the same in
both. Imports torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmray.decode.audio import AudioTransform
from mmray.decode.image import ImageTransform
from mmray.encoders.extractors import Extract, Extractor
from mmray.encoders.joint_config import audio_of, image_of
from mmray.encoders.towers import AudioRules, TextRules
from mmray.models.backbones import load_tokenizer
from mmray.models.joint.batch import Frames, Sound, Tokens
from mmray.models.joint.small import END, FIRST, PAD


class ByteTokenizer:
    """UTF-8 bytes as tokens, called as a tokenizer of transformers is."""

    pad_token_id = PAD
    padding_side = "right"
    model_input_names = ("input_ids", "attention_mask")

    def __call__(self, texts: Sequence[str], *, max_length: int, **_: Any) -> dict[str, Any]:
        """Token ids of each text, at most `max_length` with the end."""
        encoded = [text.encode("utf-8", "replace")[: max_length - 1] for text in texts]
        return {"input_ids": [[byte + FIRST for byte in each] + [END] for each in encoded]}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """The text of token ids; a character that was cut is left out."""
        return bytes(each - FIRST for each in ids if each >= FIRST).decode("utf-8", "ignore")


class JointInputs:
    """The towers' wishes, from the model's config, and the tokenizers, from their folders."""

    def __init__(self, config: dict[str, Any], tokenizers: dict[str, Path]) -> None:
        towers = config["towers"]
        self.images: dict[str, ImageTransform] = {
            name: image_of(towers[name]) for name in ("image", "video") if name in towers
        }
        """How `image` and `video` want their pixels."""
        self.audio: AudioTransform | None = None
        """How the audio tower wants its sound."""
        if "audio" in towers:
            self.audio_rules = audio_rules(towers["audio"])
            self.audio = self.audio_rules.transform
        if "text" in towers:
            self.text_rules = text_rules(towers["text"])
            self.text_tokenizer = tokenizer_of(tokenizers.get("text"))
        caption = config["heads"].get("caption")
        if caption is not None:
            self._caption_length = int(caption["max_length"])
            self._caption_end = END if caption["decoder"] == "small" else int(caption["end"])
            self.caption_tokenizer = tokenizer_of(tokenizers.get("caption"))

    def texts(self, texts: Sequence[str]) -> Tokens:
        """Texts as the text tower takes them; an empty one where there is none."""
        clean = [text.strip() for text in texts]
        if self.text_rules.lower_case:
            clean = [text.lower() for text in clean]
        rows = self._ids(self.text_tokenizer, clean, self.text_rules.limit)
        longest = self.text_rules.pad_to or max(1, *(len(row) for row in rows))
        left = self.text_tokenizer.padding_side == "left"
        ids, mask = padded(rows, longest, self.text_tokenizer.pad_token_id or 0, left)
        if not is_masked(self.text_rules, self.text_tokenizer):
            mask = torch.ones_like(mask)
        return Tokens(ids, mask)

    def sounds(self, waves: Sequence[np.ndarray]) -> Sound:
        """Windows of sound, float32 [n] each; an empty one where there is none."""
        lengths = torch.tensor([len(wave) for wave in waves])
        heard = [wave if len(wave) else np.zeros(1, np.float32) for wave in waves]
        if self.audio_rules.one_length:
            return Sound(torch.from_numpy(self.audio_rules.extract(heard)), lengths)
        values = torch.zeros(len(waves), max(len(wave) for wave in heard))
        for place, wave in enumerate(heard):
            values[place, : len(wave)] = torch.from_numpy(self.audio_rules.extract([wave])[0])
        return Sound(values * (lengths > 0).unsqueeze(1), lengths)

    def pictures(self, images: Sequence[np.ndarray | None]) -> torch.Tensor:
        """Pictures, uint8 [h, w, 3] each of the image tower's size; zeros where there is none."""
        empty = np.zeros((*self.images["image"].size, 3), np.uint8)
        return torch.from_numpy(np.stack([empty if each is None else each for each in images]))

    def videos(self, videos: Sequence[Sequence[np.ndarray]]) -> Frames:
        """Frames of videos, uint8 [h, w, 3] each of the video tower's size; none where there is
        no video."""
        most = max(1, *(len(frames) for frames in videos))
        pixels = np.zeros((len(videos), most, *self.images["video"].size, 3), np.uint8)
        mask = torch.zeros(len(videos), most, dtype=torch.bool)
        for place, frames in enumerate(videos):
            for at, frame in enumerate(frames):
                pixels[place, at] = frame
            mask[place, : len(frames)] = True
        return Frames(torch.from_numpy(pixels), mask)

    def captions(self, texts: Sequence[str | None]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask of what the caption head is to write; all masked where there is nothing."""
        clean = [(text or "").strip() for text in texts]
        limit = self._caption_length
        rows = self._ids(self.caption_tokenizer, clean, limit)
        for place, row in enumerate(rows):
            if not clean[place]:
                rows[place] = []
            elif not row or row[-1] != self._caption_end:
                rows[place] = [*row[: limit - 1], self._caption_end]
        return padded(rows, max(1, *(len(row) for row in rows)), PAD, left=False)

    def written(self, ids: Sequence[int]) -> str:
        """The text of tokens that the caption head wrote."""
        text: str = self.caption_tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def _ids(self, tokenizer: Any, texts: list[str], limit: int) -> list[list[int]]:
        encoded = tokenizer(
            texts,
            truncation=True,
            max_length=limit,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        rows: list[list[int]] = encoded["input_ids"]
        return rows


def tokenizer_of(folder: Path | None) -> Any:
    """The tokenizer in a folder, or that of bytes."""
    return ByteTokenizer() if folder is None else load_tokenizer(folder)


def text_rules(settings: dict[str, Any]) -> TextRules:
    """How a text tower wants its texts."""
    text = settings["text"]
    return TextRules(limit=text["limit"], pad_to=text["pad_to"], lower_case=text["lower_case"])


def is_masked(rules: TextRules, tokenizer: Any) -> bool:
    """Whether a model was trained with padding masked, as `mmray.encoders.towers` decides it."""
    return rules.pad_to is None or "attention_mask" in tokenizer.model_input_names


def audio_rules(settings: dict[str, Any]) -> AudioRules:
    """How an audio tower wants its sound."""
    transform, found = audio_of(settings), settings["audio"]["extractor"]
    if found is None:
        return AudioRules(transform, _as_they_are, one_length=False)
    extractor = Extractor(found["kind"], found["settings"])
    extract: Extract = extractor.build()
    return AudioRules(transform, extract, one_length=extractor.pads)


def _as_they_are(waves: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(waves)


def padded(
    rows: Sequence[Sequence[int]], longest: int, pad: int, left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids side by side, int64 [n, longest], and their mask."""
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for place, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[place, where] = torch.tensor(row, dtype=torch.int64)
        mask[place, where] = 1
    return ids, mask
