"""Where a network runs and in which precision.

Under reduced precision only linear and convolution layers hold 16-bit weights, and autocast runs
them; norms, embeddings and the residual stream stay float32. That is as fast as casting the whole
module and closer to float32.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmray.models.packing import can_pack, pack

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_FEW = 16
"""Channels in each group of a convolution. With fewer of them and a long kernel oneDNN's bfloat16
on AMX gives numbers that are far from the right ones (torch 2.13; 2 to 8 channels, 32 places)."""
_FAST_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True, slots=True)
class Placement:
    """A device and the precision in which networks run there."""

    device: torch.device
    dtype: torch.dtype

    @property
    def on_gpu(self) -> bool:
        """Whether copies to the device can run beside the CPU."""
        return self.device.type == "cuda"

    def settle(self, module: nn.Module) -> nn.Module:
        """Move `module` there for inference. Changes it in place and returns it."""
        module.eval().requires_grad_(False)
        module.to(self.device)
        if self.dtype is not torch.float32:
            for layer in module.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.to(self.dtype)
        if self.device.type == "cpu" and self.dtype is torch.bfloat16:
            for layer in module.modules():
                if isinstance(layer, nn.Conv1d) and _is_wrong_in_bfloat16(layer):
                    _run_in_float32(layer)
            if can_pack():
                pack(module)
        return module

    def precision(self) -> AbstractContextManager[object]:
        """The setting that a forward pass runs in."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def upload(self, array: np.ndarray) -> torch.Tensor:
        """Copy `array` to the device; to a GPU from pinned memory, beside what runs there."""
        tensor = torch.from_numpy(array)
        if not self.on_gpu:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def place(device: str, declared: str) -> Placement:
    """The placement for a device (`cpu`, `cuda`, `cuda:1`) and a declared dtype.

    `auto` takes bfloat16 where the hardware computes in it; float16 on a GPU without it.
    """
    where = torch.device(device)
    if declared != "auto":
        return Placement(where, _DTYPES[declared])
    if where.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Placement(where, torch.bfloat16 if native else torch.float16)
    fast = where.type == "cpu" and cpu_has_bfloat16()
    return Placement(where, torch.bfloat16 if fast else torch.float32)


def _is_wrong_in_bfloat16(layer: nn.Conv1d) -> bool:
    return layer.groups > 1 and layer.in_channels < _FEW * layer.groups


def _run_in_float32(layer: nn.Module) -> None:
    forward = layer.forward

    def exact(inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            found: torch.Tensor = forward(inputs.float())
        return found

    layer.forward = exact


@cache
def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX).

    Emulated bfloat16 is several times slower than float32, so a doubt counts as no.
    """
    info = Path("/proc/cpuinfo")
    if not info.is_file() or not torch._C._has_mkldnn:
        return False
    for line in info.read_text().splitlines():
        if line.startswith("flags"):
            return not _FAST_FLAGS.isdisjoint(line.split())
    return False
