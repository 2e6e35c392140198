"""Which weights of a pretrained network are trained, and peft's adapters put into it.

Adapters become part of the network, so that its state is saved and loaded as one; `merge` folds
them into the weights beside them, where they can be.
"""

import warnings
from typing import Any

import torch
from torch import nn

from mmray.models.joint.pretrained import NEVER_TRAINED

# Attention that hands weights to a function of torch and never calls the layers that hold them.
_READS_WEIGHTS = frozenset({"WavLMAttention", "MultiheadAttention"})
_MERGED = ("lora", "adalora", "ia3")


class Tuning:
    """A network's adapters, beside the network itself (which owns their weights)."""

    def __init__(self, network: nn.Module, train: str, size: int) -> None:
        self.network = network
        self.train = train
        self.size = size
        self._tuner: Any = None

    def apply(self) -> None:
        """Freeze and unfreeze weights, and put adapters in. Call once, on a network without."""
        if self.train == "full":
            for name, weight in self.network.named_parameters():
                if name.rsplit(".", 1)[-1] in NEVER_TRAINED:
                    weight.requires_grad_(False)
            return
        self.network.requires_grad_(False)
        if self.train == "last_n":
            for block in list(blocks(self.network))[-self.size :]:
                block.requires_grad_(True)
        elif self.train != "frozen":
            self._attach()

    def _attach(self) -> None:
        if self.train == "prefix":
            self._attach_prefix()
            return
        import peft as library

        peft: Any = library  # its classes carry no types
        inner: Any = self.network
        targets = _linear_names(inner)
        common: dict[str, Any] = {"target_modules": targets}
        transposed = any(type(each).__name__ == "Conv1D" for each in inner.modules())
        common["fan_in_fan_out"] = transposed
        if self.train == "lora":
            config: Any = peft.LoraConfig(r=self.size, lora_alpha=2 * self.size, **common)
            self._tuner = peft.LoraModel(inner, config, "default")
        elif self.train == "ia3":
            config = peft.IA3Config(feedforward_modules=[], **common)
            self._tuner = peft.IA3Model(inner, {"default": config}, "default")
        else:
            # It begins with half as many again, and gives the least useful up.
            start = -(-3 * self.size // 2)
            config = peft.AdaLoraConfig(
                target_r=self.size,
                init_r=start,
                lora_alpha=2 * self.size,
                total_step=_UNKNOWN,
                **common,
            )
            self._tuner = peft.AdaLoraModel(inner, {"default": config}, "default")

    def _attach_prefix(self) -> None:
        import peft

        inner: Any = self.network.model
        task = "CAUSAL_LM" if hasattr(inner, "lm_head") else "FEATURE_EXTRACTION"
        config: Any = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=self.size)
        with warnings.catch_warnings():
            # peft asks transformers for a name that it will drop.
            warnings.simplefilter("ignore", FutureWarning)
            wrapped: Any = peft.get_peft_model(inner, config)
        # Not among its buffers, so transformers would leave it without values when it loads.
        wrapped.prompt_tokens["default"] = torch.arange(self.size, device="cpu")
        # A second name of the table of words, which a prefix has no use for.
        del wrapped.word_embeddings
        self.network.model = wrapped

    def after_step(self, step: int, steps: int) -> None:
        """AdaLoRA moves its budget of ranks: after the optimizer's step, before gradients go."""
        if self.train != "adalora":
            return
        config = self._tuner.peft_config["default"]
        config.total_step = steps
        config.tinit, config.tfinal = steps // 10, steps // 4
        config.deltaT = max(1, steps // 100)
        self._tuner.update_and_allocate(step)

    def penalty(self) -> torch.Tensor | None:
        """How far AdaLoRA's factors are from orthogonal, by its own weight of 0.5."""
        if self.train != "adalora":
            return None
        parts = []
        for name, weight in self.network.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                square = weight @ weight.T if ".lora_A." in name else weight.T @ weight
                parts.append((square - torch.eye(len(square), device=square.device)).norm())
        return 0.5 * torch.stack(parts).mean()

    def state(self) -> dict[str, Any]:
        """What AdaLoRA remembers beside weights, for a checkpoint in the midst of training."""
        if self.train != "adalora":
            return {}
        ranks = self._tuner.rankallocator
        return {
            "ipt": ranks.ipt,
            "exp_avg_ipt": ranks.exp_avg_ipt,
            "exp_avg_unc": ranks.exp_avg_unc,
            "rank_pattern": self._tuner.peft_config["default"].rank_pattern,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        if self.train != "adalora" or not state:
            return
        ranks = self._tuner.rankallocator
        device = next(self.network.parameters()).device
        for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            setattr(ranks, name, {place: each.to(device) for place, each in state[name].items()})
        self._tuner.peft_config["default"].rank_pattern = state["rank_pattern"]

    @property
    def mergeable(self) -> bool:
        """Whether the adapters can be folded into the weights."""
        return self.train in _MERGED

    def merge(self) -> None:
        """Fold the adapters into the weights beside them: the network is then a plain one."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for parent in list(self.network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, BaseTunerLayer):
                    layer: Any = child
                    layer.merge()
                    setattr(parent, name, layer.get_base_layer())
        self._tuner = None
        self.train = "frozen"


_UNKNOWN = 1_000_000_000
"""Steps, before the loop says how many there are."""


def blocks(network: nn.Module) -> nn.ModuleList:
    """The stack of a network's blocks: its list of modules with the most weights."""
    stacks = [each for each in network.modules() if isinstance(each, nn.ModuleList)]
    if not stacks:
        raise ValueError(f"{type(network).__name__} has no stack of blocks")
    return max(stacks, key=lambda stack: sum(weight.numel() for weight in stack.parameters()))


def _linear_names(network: nn.Module) -> list[str]:
    """The linear layers in a network's blocks, as far as they are called."""
    stack = blocks(network)
    start = next(name for name, each in network.named_modules() if each is stack)
    found = []
    for place, parent in network.named_modules():
        if not f"{place}.".startswith(f"{start}.") or type(parent).__name__ in _READS_WEIGHTS:
            continue
        found += [
            f"{place}.{name}"
            for name, child in parent.named_children()
            if type(child) is nn.Linear or type(child).__name__ == "Conv1D"
        ]
    return found
