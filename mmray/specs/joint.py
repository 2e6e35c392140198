"""The joint model in a train spec: its towers, their fusion, and the heads that it learns by."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmray.specs.common import Modality, Spec

Tuning = Literal["frozen", "full", "last_n", "lora", "adalora", "prefix", "ia3"]

ADAPTERS: tuple[str, ...] = ("lora", "adalora", "prefix", "ia3")
Fraction = Annotated[float, Field(ge=0, lt=1)]

_PACKAGED_FOR: dict[str, tuple[str, ...]] = {
    "minilm": ("text",),
    "efficientnet-lite0": ("image", "video"),
    "speech": ("audio",),
}


class Tuned(Spec):
    """How a pretrained network is trained."""

    train: Tuning = "frozen"
    """`frozen`: not at all; `full`: every weight; `last_n`: the last blocks; `lora`, `adalora`,
    `prefix` (text models) and `ia3`: small adapters beside weights that stay."""
    blocks: Annotated[int, Field(gt=0)] | None = None
    """Blocks that `last_n` trains; left out: 2."""
    rank: Annotated[int, Field(gt=0, le=512)] | None = None
    """Rank of `lora` and `adalora`, or the number of virtual tokens of `prefix`; left out: 8."""

    @model_validator(mode="after")
    def _options_fit(self) -> "Tuned":
        if self.blocks is not None and self.train != "last_n":
            raise ValueError(f"blocks goes with train: last_n, not with {self.train}")
        if self.rank is not None and self.train not in ("lora", "adalora", "prefix"):
            raise ValueError(f"rank goes with lora, adalora and prefix, not with {self.train}")
        return self


class HfTower(Tuned):
    """A Hugging Face encoder."""

    kind: Literal["hf"]
    model: str
    """A hub id, or a local folder in the Hugging Face layout."""
    revision: str | None = None
    """Commit of a hub id."""
    pooling: Literal["mean", "cls", "pooler"] | None = None
    """Of text and image-only models; left out: what the model's own files say."""


class PackagedTower(Tuned):
    """Weights that come as a Python package: `minilm` for text, `efficientnet-lite0` for image and
    video, `speech` for audio."""

    kind: Literal["packaged"]
    model: Literal["minilm", "efficientnet-lite0", "speech"]

    @model_validator(mode="after")
    def _adapters_fit(self) -> "PackagedTower":
        if self.train in ADAPTERS and self.model != "minilm":
            raise ValueError(f"{self.train} goes with hf towers and minilm, not with {self.model}")
        if self.train == "last_n" and self.model == "speech":
            raise ValueError("last_n needs a stack of blocks, which speech has not: frozen or full")
        return self


class _Small(Spec):
    width: Annotated[int, Field(ge=8, le=1024)] = 64
    """Channels of its layers; it gives vectors of twice as many."""
    side: Annotated[int, Field(ge=16, le=512)] = 64
    """Pixels of the square that it sees of a picture or frame."""
    seconds: Annotated[float, Field(gt=0, le=60)] = 10.0
    """Longest window of sound that it hears."""
    tokens: Annotated[int, Field(ge=8, le=4096)] = 256
    """Bytes that it reads of a text."""


class ConvTower(_Small):
    """A small convolutional network, trained from nothing."""

    kind: Literal["conv"]


class RecurrentTower(_Small):
    """A small recurrent network, trained from nothing."""

    kind: Literal["recurrent"]


TowerSpec = Annotated[
    HfTower | PackagedTower | ConvTower | RecurrentTower, Field(discriminator="kind")
]


class Fusion(Spec):
    """How the vectors of a sample's modalities become one."""

    kind: Literal["weighted", "sum", "product", "concat", "attention"] = "attention"
    """`weighted`: by alpha; `concat`: through a small network; `attention`: each modality looks at
    the others."""
    alpha: Literal["learned", "gate"] | dict[Modality, Annotated[float, Field(ge=0)]] | None = None
    """Weights of `weighted`: numbers by modality, `learned`, or `gate` (learned, for each sample
    anew); left out: learned. Those of absent modalities go to the others."""
    heads: Annotated[int, Field(gt=0, le=64)] = 4
    """Heads of `attention`; they divide `dim`."""

    @model_validator(mode="after")
    def _alpha_fits(self) -> "Fusion":
        if self.alpha is not None and self.kind != "weighted":
            raise ValueError(f"alpha goes with kind: weighted, not with {self.kind}")
        return self


class _Head(Spec):
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of its loss in the sum."""


class _Fused(_Head):
    of: Annotated[tuple[Modality, ...], Field(min_length=1)] | None = None
    """Modalities whose fusion it is fed; left out: all, or for captions all but text, which they
    can't be fed."""


class Contrastive(_Head):
    """Brings the modalities of a sample together, both ways, for each pair that it has."""

    loss: Literal["infonce", "sigmoid", "moco"] = "infonce"
    """`infonce`: against the global batch; `sigmoid`: each pair by itself (SigLIP); `moco`: against
    the vectors of a slowly moving copy, and a queue of them."""
    temperature: Annotated[float, Field(ge=0.01, le=10)] | None = None
    """Where it begins; left out: 0.07, or 0.1 for `sigmoid`. It never falls below 0.01."""
    learned: bool = True
    """Whether the temperature is learned."""
    queue: Annotated[int, Field(gt=0, le=1_000_000)] = 4096
    """Vectors of each modality that `moco` remembers."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """How slowly `moco`'s copy moves."""


class Classify(_Fused):
    """One of several classes."""

    label: str
    """Metadata field that holds the class."""
    smoothing: Fraction = 0.0
    """Label smoothing."""


class Regress(_Fused):
    """A number."""

    label: str
    """Metadata field that holds the number."""


class HfDecoder(Tuned):
    """A Hugging Face causal language model."""

    kind: Literal["hf"]
    model: str
    """A hub id, or a local folder in the Hugging Face layout."""
    revision: str | None = None
    """Commit of a hub id."""


class Caption(_Fused):
    """Writes the sample's text, from its fused vector as a prefix."""

    decoder: Literal["small"] | HfDecoder = "small"
    """`small`: a small one of bytes, trained from nothing; or a causal language model, as
    `{kind: hf, model: ...}`."""
    prefix: Annotated[int, Field(gt=0, le=64)] = 4
    """Places in front of the text that the fused vector fills."""
    width: Annotated[int, Field(ge=16, le=1024, multiple_of=16)] = 128
    """Of the small decoder."""
    layers: Annotated[int, Field(gt=0, le=24)] = 2
    """Of the small decoder."""
    max_length: Annotated[int, Field(gt=0, le=4096)] = 128
    """Tokens of a caption, bytes for the small decoder; longer ones are cut."""


class Heads(Spec):
    """What the model learns to do; at least one."""

    contrastive: Contrastive | None = None
    classify: Classify | None = None
    regress: Regress | None = None
    caption: Caption | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Of the heads that there are."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: head.weight for name, head in found.items() if head is not None}


class ModelSpec(Spec):
    """The joint model."""

    dim: Annotated[int, Field(ge=2, le=8192)] = 256
    """Length of the vectors, of all modalities."""
    towers: Annotated[dict[Modality, TowerSpec], Field(min_length=1)]
    """Modality to the network that reads it."""
    fusion: Fusion = Fusion()
    heads: Heads
    losses: Literal["sum", "alternate"] = "sum"
    """`sum`: all heads at each step, by weight; `alternate`: one head at each step, in turn."""
    dropout: Fraction = 0.1
    """Before projections and heads, in training."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelSpec":
        for modality, tower in self.towers.items():
            _check_tower(modality, tower)
        _check_heads(self)
        alpha = self.fusion.alpha
        if isinstance(alpha, dict) and (set(alpha) != set(self.towers) or not sum(alpha.values())):
            raise ValueError("fusion.alpha needs a number for each tower, not all of them 0")
        if self.fusion.kind == "attention" and self.dim % self.fusion.heads:
            raise ValueError(f"fusion.heads: {self.fusion.heads} doesn't divide dim, {self.dim}")
        return self


def _check_tower(modality: str, tower: Any) -> None:
    if isinstance(tower, PackagedTower) and modality not in _PACKAGED_FOR[tower.model]:
        fits = " and ".join(_PACKAGED_FOR[tower.model])
        raise ValueError(f"towers.{modality}: {tower.model} is for {fits}")
    if isinstance(tower, HfTower) and tower.train == "prefix" and modality != "text":
        raise ValueError(f"towers.{modality}: prefix goes with text towers and caption decoders")


def _check_heads(model: ModelSpec) -> None:
    weights = model.heads.weights
    if not any(weights.values()):
        raise ValueError("heads needs one with a weight above 0")
    if model.losses == "alternate" and sum(weight > 0 for weight in weights.values()) < 2:
        raise ValueError("losses: alternate needs two heads with weights above 0")
    if model.heads.contrastive is not None and len(model.towers) < 2:
        raise ValueError("heads.contrastive needs two towers, of two modalities")
    for name in ("classify", "regress", "caption"):
        _check_of(name, getattr(getattr(model.heads, name), "of", None) or (), model.towers)
    if model.heads.caption is not None and set(model.towers) == {"text"}:
        raise ValueError("heads.caption needs a tower other than text's")


def _check_of(head: str, of: tuple[str, ...], towers: Iterable[str]) -> None:
    strange = sorted(set(of) - set(towers))
    if strange:
        raise ValueError(f"heads.{head}.of: there is no tower for {strange[0]}")
    twice = sorted(name for name in set(of) if of.count(name) > 1)
    if twice:
        raise ValueError(f"heads.{head}.of: {twice[0]} stands twice")
    if head == "caption" and "text" in of:
        raise ValueError("heads.caption.of: text is what it learns to write: it can't be fed it")
