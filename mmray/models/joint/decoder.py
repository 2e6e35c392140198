"""Caption decoders: a fused vector fills the first places, and the text follows token by token."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from mmray.models.joint.adapters import Tuning
from mmray.models.joint.small import BYTES, END, at_least_float


class _Block(nn.Module):
    """Causal self-attention and a small network, normed before each."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = max(1, width // 32)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[b, t, width] to the same."""
        count, length, width = states.shape
        parts = self.projections(self.first(states)).view(count, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.dropout(self.out(seen.transpose(1, 2).reshape(count, length, width)))
        added: torch.Tensor = states + self.dropout(self.feed(self.second(states)))
        return added


class SmallDecoder(nn.Module):
    """A small transformer over bytes, trained from nothing."""

    def __init__(self, settings: dict[str, Any], dropout: float) -> None:
        super().__init__()
        self.width = int(settings["width"])
        places = int(settings["prefix"]) + int(settings["max_length"])
        self.embedding = nn.Embedding(BYTES, self.width)
        self.places = nn.Embedding(places, self.width)
        nn.init.normal_(self.embedding.weight, std=self.width**-0.5)
        nn.init.normal_(self.places.weight, std=0.02)
        self.blocks = nn.ModuleList(
            _Block(self.width, dropout) for _ in range(int(settings["layers"]))
        )
        self.norm = nn.LayerNorm(self.width)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """[b, t] to [b, t, width]."""
        states: torch.Tensor = self.embedding(ids)
        return states

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embedded places [b, t, width] to scores of what comes next, [b, t, 258]."""
        del mask  # padding is behind all that is looked at
        order = torch.arange(states.shape[1], device=states.device)
        states = states + self.places(order)
        for block in self.blocks:
            states = block(states)
        return nn.functional.linear(self.norm(states), self.embedding.weight)


class HfDecoder(nn.Module):
    """A causal language model of the Hugging Face library, built without values."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        import transformers

        auto: Any = transformers  # its functions carry no types
        values = dict(settings["config"])
        config: Any = auto.AutoConfig.for_model(values.pop("model_type"), **values)
        config.use_cache = False
        self.model: Any = auto.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        table = self.model.get_input_embeddings()
        self.width = int(table.weight.shape[1])

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """[b, t] to [b, t, width]."""
        states: torch.Tensor = self.model.get_input_embeddings()(ids)
        return states

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embedded places [b, t, width] and their mask to scores of what comes next."""
        scores: torch.Tensor = self.model(inputs_embeds=states, attention_mask=mask).logits
        return scores


class CaptionHead(nn.Module):
    """A decoder and the prefix that it is fed."""

    def __init__(self, dim: int, settings: dict[str, Any], dropout: float) -> None:
        super().__init__()
        self.small = settings["decoder"] == "small"
        self.decoder: SmallDecoder | HfDecoder
        self.decoder = SmallDecoder(settings, dropout) if self.small else HfDecoder(settings)
        self.end = END if self.small else int(settings["end"])
        self.max_length = int(settings["max_length"])
        self.length = int(settings["prefix"])
        self.norm = nn.LayerNorm(dim)
        self.prefix = nn.Linear(dim, self.length * self.decoder.width)
        train = "full" if self.small else settings.get("train", "frozen")
        self.tuning = Tuning(self.decoder, train, int(settings.get("size", 0)))

    def train(self, mode: bool = True) -> "CaptionHead":
        """A frozen decoder has no dropout."""
        super().train(mode)
        if self.tuning.train == "frozen":
            self.decoder.eval()
        return self

    def loss(self, fused: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The sum over tokens of cross entropies: fused [b, dim], ids and mask [b, t]."""
        states = torch.cat([self._prefix(fused), self.decoder.embed(ids)], 1)
        seen = torch.cat([mask.new_ones(len(mask), self.length), mask], 1)
        scores = self.decoder(states, seen)[:, self.length - 1 : -1]
        target = ids.masked_fill(mask == 0, -100)
        scores = at_least_float(scores.reshape(-1, scores.shape[-1]))
        return cross_entropy(scores, target.flatten(), reduction="sum")

    @torch.no_grad()
    def write(self, fused: torch.Tensor, max_length: int | None = None) -> list[list[int]]:
        """The likeliest next token again and again: token ids of each row, without the end."""
        states = self._prefix(fused)
        limit = min(max_length or self.max_length, self.max_length)
        written = torch.empty(len(fused), 0, dtype=torch.int64, device=fused.device)
        done = torch.zeros(len(fused), dtype=torch.bool, device=fused.device)
        while written.shape[1] < limit and not bool(done.all()):
            mask = torch.ones(states.shape[:2], dtype=torch.int64, device=fused.device)
            following = self.decoder(states, mask)[:, -1].argmax(-1)
            written = torch.cat([written, following.unsqueeze(1)], 1)
            done |= following == self.end
            states = torch.cat([states, self.decoder.embed(following.unsqueeze(1))], 1)
        rows: list[list[int]] = written.tolist()
        return [row[: row.index(self.end)] if self.end in row else row for row in rows]

    def _prefix(self, fused: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.prefix(self.norm(fused))
        return states.view(len(fused), self.length, -1)
