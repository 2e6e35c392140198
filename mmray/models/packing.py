"""Linear layers for a CPU that multiplies bfloat16, with their weights laid out once.

oneDNN wants weights in blocks of its own. A plain `nn.Linear` has them reordered at every call,
which costs a ViT-B/32 in batches of 16 about a fifth of its time; the results are the same bits.
"""

import torch
from torch import nn

# Attention that hands the weights of its layers to a function of torch, and never calls them.
_READS_WEIGHTS = frozenset({"WavLMAttention"})


class PackedLinear(nn.Module):
    """`nn.Linear` for inference: any float [..., in] to bfloat16 [..., out], as autocast gives."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().to(torch.bfloat16)
        self.out_features = linear.out_features
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The product with the weights, plus the bias."""
        rows = inputs.reshape(-1, inputs.shape[-1]).to(torch.bfloat16)
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, self._bias, "none", [], ""
        )
        return out.reshape(*inputs.shape[:-1], self.out_features)


def can_pack() -> bool:
    """Whether this build of torch has the two operations, and this CPU what they need: without
    AVX-512 bfloat16 is emulated, and oneDNN lays no weights out for it."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = ("mkldnn::_reorder_linear_weight", "mkldnn::_linear_pointwise")
    try:
        there = has(names[0], "CPU") and has(names[1], "MkldnnCPU")
        return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (RuntimeError, AttributeError):
        return False


def pack(module: nn.Module) -> None:
    """Replace the linear layers inside `module`, in place.

    Subclasses stay as they are: those of attention layers are read by their weights.
    """
    for parent in list(module.modules()):
        if type(parent).__name__ in _READS_WEIGHTS:
            continue
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))
