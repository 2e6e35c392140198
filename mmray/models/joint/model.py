"""The joint model: z = M(z_text, z_image, z_audio, z_video), aligned, and heads y = D(z) on it.

Each rank sees its own rows. Losses are those of the global batch: their mean over ranks is what one
rank with all rows would have, and so are gradients after DDP's mean.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mmray.models.joint import adversary, augment
from mmray.models.joint.adapters import Tuning
from mmray.models.joint.batch import Input, JointBatch, JointOutput, Tokens, take
from mmray.models.joint.config import JointConfig
from mmray.models.joint.decoder import CaptionHead
from mmray.models.joint.fusion import Fusion
from mmray.models.joint.gather import world
from mmray.models.joint.heads import ClassifyHead, ContrastiveHead, RegressHead
from mmray.models.joint.losses import Contrasted, Upstream
from mmray.models.joint.momentum import MomentumCopy
from mmray.models.joint.objective import Objective, stacked
from mmray.models.joint.towers import Tower

_ByModality = dict[str, torch.Tensor]


class JointModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Towers, fusion and heads as `config` says, with random values: see `checkpoint` for those of
    a folder, and `pretrained.fill` for those of the towers' own models."""

    config_class = JointConfig
    base_model_prefix = "joint"
    main_input_name = "batch"
    config: JointConfig

    def __init__(self, config: JointConfig) -> None:
        super().__init__(config)
        self.modalities = config.modalities
        self.compute: torch.dtype = torch.float32
        """What towers and decoders compute in: bfloat16 runs them under autocast."""
        towers, dim, dropout = config.towers or {}, config.dim, config.dropout
        self.towers = nn.ModuleDict(
            {each: Tower(each, towers[each], dim, dropout) for each in self.modalities}
        )
        self.fusion = Fusion(dim, self.modalities, config.fusion or {"kind": "sum"})
        self.heads = nn.ModuleDict(
            {name: self._head(name, each) for name, each in (config.heads or {}).items()}
        )
        self.momentum: MomentumCopy | None = None
        self.objective = Objective(self.modalities, config.heads or {}, self.fusion, self.heads)
        # Before adapters, which it would give new values.
        self.post_init()  # type: ignore[no-untyped-call]
        for tuning in self.tunings():
            tuning.apply()
        settings = (config.heads or {}).get("contrastive", {})
        if settings.get("loss") == "moco":
            self.momentum = MomentumCopy(self.towers, float(settings["momentum"]))
        self.all_tied_weights_keys = dict(_tied(self))
        self._trained = frozenset(
            name for name, weight in self.named_parameters() if weight.requires_grad
        )
        self.train(self.training)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers', which forgets what isn't to be trained."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in model._trained)
        return loaded

    def _head(self, name: str, settings: dict[str, Any]) -> nn.Module:
        dim, dropout = self.config.dim, self.config.dropout
        if name == "contrastive":
            return ContrastiveHead(self.modalities, dim, settings)
        if name == "caption":
            return CaptionHead(dim, settings, dropout)
        kind = {"classify": ClassifyHead, "regress": RegressHead}[name]
        return kind(dim, settings, dropout)

    def _init_weights(self, module: nn.Module) -> None:
        """Parts come with values of their own."""

    def tunings(self) -> Iterator[Tuning]:
        """How each network is trained: of towers, and of the caption head's decoder."""
        yield from (tower.tuning for tower in self._towers().values())
        caption = self._caption()
        if caption is not None:
            yield caption.tuning

    def pretrained_weights(self) -> Iterator[nn.Parameter]:
        """Trained weights that had values before: not those of adapters or small networks."""
        kept = [tower.tuning for tower in self._towers().values() if not tower.new]
        caption = self._caption()
        if caption is not None and not caption.small:
            kept.append(caption.tuning)
        for tuning in kept:
            if tuning.train in ("full", "last_n"):
                yield from (each for each in tuning.network.parameters() if each.requires_grad)

    def encode(self, batch: JointBatch) -> JointOutput:
        """Vectors, their fusion and predictions, without losses."""
        vectors, present = self._project(*self._look(batch), batch)
        return self._output(vectors, present)

    def forward(
        self, batch: JointBatch, only: str | None = None, upstream: Upstream | None = None
    ) -> JointOutput:
        """Vectors, losses and predictions of a batch.

        `only` names the one head whose loss is wanted, where heads take turns. `upstream` comes
        from `losses.cached_contrastive`, for a part of a batch.
        """
        if self.training:
            batch = self.prepare(batch)
        features, rows = self._look(batch)
        keys = self._keys(batch) if upstream is None and self.contrastive(only) else None
        upstream = upstream or Upstream(self.counts([batch]))

        def learned(features: _ByModality) -> JointOutput:
            encoded = self._project(features, rows, batch)
            return self._learn(encoded, batch, only, upstream, keys)

        output = learned(features)
        if keys is not None and self.training:
            self._contrastive().remember(self._contrasted(keys, batch))
        settings = self.config.adversarial
        if settings and self.training and torch.is_grad_enabled():
            hard = _loss(learned(adversary.worst(lambda f: _loss(learned(f)), features, settings)))
            losses = {**output.losses, "adversarial": hard.detach()}
            loss = _loss(output) + float(settings["weight"]) * hard
            output = replace(output, losses=losses, loss=loss)
        return output

    def prepare(self, batch: JointBatch) -> JointBatch:
        """Augmentation and modality dropout, in training and once for a batch."""
        if not self.training:
            return batch
        return augment.prepare(batch, self.config.augment or {}, self.config.modality_dropout)

    def contrast(self, batch: JointBatch) -> Contrasted:
        """What the contrastive loss takes of a batch."""
        vectors, _ = self._project(*self._look(batch), batch)
        return replace(self._contrasted(vectors, batch), keys=self._keys(batch))

    def contrastive(self, only: str | None = None) -> ContrastiveHead | None:
        """The contrastive head, where its loss is wanted."""
        wanted = "contrastive" in self.heads and only in (None, "contrastive")
        return self._contrastive() if wanted else None

    def counts(self, batches: Sequence[JointBatch]) -> dict[str, torch.Tensor]:
        """Rows or tokens of each other head, over all batches and ranks."""
        return self.objective.counts(batches)

    def weighted(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of losses."""
        return self.objective.weighted(losses)

    @torch.no_grad()
    def write(self, batch: JointBatch, max_length: int | None = None) -> list[list[int]]:
        """Captions as tokens of the caption head, from the modalities that it is fed."""
        caption = self._caption()
        if caption is None:
            raise ValueError("this model has no caption head")
        vectors, present = self._project(*self._look(batch), batch)
        with self._precision():
            return caption.write(self.objective.fuse("caption", vectors, present), max_length)

    def after_step(self, step: int, steps: int) -> None:
        """Call after each step of the optimizer, before gradients are cleared: MoCo's copy and
        queue, and AdaLoRA's ranks, move on."""
        for tuning in self.tunings():
            tuning.after_step(step, steps)
        if self.momentum is not None:
            self.momentum.follow(self.towers)
            self._contrastive().after_step()

    def merge_adapters(self) -> None:
        """Fold LoRA, AdaLoRA and IA3 into the weights: the towers are then frozen plain ones."""
        for modality, tower in self._towers().items():
            if tower.tuning.mergeable:
                tower.tuning.merge()
                assert self.config.towers is not None
                self.config.towers[modality]["train"] = "frozen"
        caption = self._caption()
        if caption is not None and caption.tuning.mergeable:
            caption.tuning.merge()
            assert self.config.heads is not None
            self.config.heads["caption"]["train"] = "frozen"

    def _look(self, batch: JointBatch) -> tuple[_ByModality, _ByModality]:
        """What each network gives of the rows that have its modality, and which rows these are.

        Where no row has it, the first stands in, and is left out later: DDP waits for all weights.
        """
        features, rows = {}, {}
        with self._precision():
            for modality, tower in self._towers().items():
                here = batch.present.get(modality)
                found = None if here is None else here.nonzero().flatten()
                if modality not in batch.inputs or found is None:
                    features[modality] = torch.zeros(1, tower.features, device=self.device)
                    rows[modality] = torch.zeros(1, dtype=torch.int64, device=self.device)
                    continue
                rows[modality] = found if len(found) else found.new_zeros(1)
                value = take(batch.inputs[modality], rows[modality])
                features[modality] = tower.look(value if len(found) else _harmless(value))
        return features, rows

    def _project(
        self, features: _ByModality, rows: _ByModality, batch: JointBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors [b, m, dim], zeros where absent, and presence [b, m]."""
        present = stacked(batch, self.modalities)
        columns = []
        for place, (modality, tower) in enumerate(self._towers().items()):
            with self._precision():
                vectors = tower.project(features[modality])
            there = present[rows[modality], place].unsqueeze(1)
            empty = vectors.new_zeros(batch.rows, vectors.shape[1])
            columns.append(empty.index_add(0, rows[modality], vectors * there))
        return torch.stack(columns, 1), present

    def _learn(
        self,
        encoded: tuple[torch.Tensor, torch.Tensor],
        batch: JointBatch,
        only: str | None,
        upstream: Upstream,
        keys: torch.Tensor | None,
    ) -> JointOutput:
        vectors, present = encoded
        output = self._output(vectors, present)
        active = [name for name in self.heads if only in (None, name)]
        losses: dict[str, torch.Tensor] = {}
        extra = [output.fused.sum() * 0]
        head = self.contrastive(only)
        if head is not None and upstream.vectors is None:
            losses["contrastive"] = head(replace(self._contrasted(vectors, batch), keys=keys))
        elif head is not None and upstream.vectors is not None:
            passed = (vectors * upstream.vectors).sum() + head.passed_on(upstream.weights)
            extra.append(self.objective.weights["contrastive"] * passed)
        for name in active:
            if name != "contrastive":
                with self._precision():
                    summed = self.objective.loss(name, batch, encoded, output.predictions)
                losses[name] = world() * summed / upstream.counts[name].clamp(min=1)
        if self.training and upstream.first:
            for tuning in self.tunings():
                penalty = tuning.penalty()
                if penalty is not None:
                    losses["orthogonality"] = losses.get("orthogonality", 0) + penalty
        untouched = self.objective.untouched(active)
        loss = sum(extra if untouched is None else [*extra, untouched])
        if losses:
            loss = loss + self.weighted(losses)
        assert isinstance(loss, torch.Tensor)
        still = {name: each.detach() for name, each in losses.items()}
        return replace(output, losses=still, loss=loss)

    def _output(self, vectors: torch.Tensor, present: torch.Tensor) -> JointOutput:
        by_name = {name: vectors[:, place] for place, name in enumerate(self.modalities)}
        fused = self.fusion(vectors, present)
        return JointOutput(by_name, fused, predictions=self.objective.predict(vectors, present))

    def _contrasted(self, vectors: torch.Tensor, batch: JointBatch) -> Contrasted:
        groups = batch.groups
        if groups is None:
            groups = torch.full((batch.rows,), -1, device=vectors.device)
        return Contrasted(vectors, stacked(batch, self.modalities), groups)

    def _keys(self, batch: JointBatch) -> torch.Tensor | None:
        if self.momentum is None:
            return None
        present = stacked(batch, self.modalities)
        keys = torch.zeros(*present.shape, self.config.dim, device=self.device, dtype=self.dtype)
        for place, modality in enumerate(self.modalities):
            rows = present[:, place].nonzero().flatten()
            if len(rows):
                value = take(batch.inputs[modality], rows)
                found = self.momentum.encode(self.towers, modality, value)
                keys[rows, place] = found.to(keys.dtype)
        return keys

    def _precision(self) -> AbstractContextManager[Any]:
        if self.compute is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.compute)

    def _towers(self) -> dict[str, Tower]:
        return {name: each for name, each in self.towers.items() if isinstance(each, Tower)}

    def _contrastive(self) -> ContrastiveHead:
        head = self.heads["contrastive"]
        assert isinstance(head, ContrastiveHead)
        return head

    def _caption(self) -> CaptionHead | None:
        head = self.heads["caption"] if "caption" in self.heads else None  # noqa: SIM401 - no get
        return head if isinstance(head, CaptionHead) else None


def _loss(output: JointOutput) -> torch.Tensor:
    assert output.loss is not None
    return output.loss


def _harmless(value: Input) -> Input:
    """A text without tokens would have nothing to look at."""
    return Tokens(value.ids, torch.ones_like(value.mask)) if isinstance(value, Tokens) else value


def _tied(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of weights that are another one too, and that one's name, from the parts' own lists:
    transformers looks into direct children only."""
    for place, part in model.named_modules():
        if isinstance(part, PreTrainedModel) and part is not model:
            for name, source in part.all_tied_weights_keys.items():
                yield f"{place}.{name}", f"{place}.{source}"
