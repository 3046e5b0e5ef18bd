"""What `liger_kernel.transformers` offers of version 0.8.5, in plain torch: names, arguments and results.

Liger's own kernels are written in Triton and need a GPU. `installed` puts modules of these names in their place.
"""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class LigerRMSNorm(nn.Module):
    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        offset: float = 0.0,
        casting_mode: str = "llama",
        init_fn: str = "ones",
        in_place: bool = True,
        row_mode: bool | None = None,
        elementwise_affine: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon, self.offset, self.casting_mode, self.in_place = eps, offset, casting_mode, in_place

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide = hidden_states.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight + self.offset) * scaled.to(hidden_states.dtype)


class LigerSwiGLUMLP(nn.Module):
    def __init__(self, config: Any, intermediate_size: int | None = None) -> None:
        super().__init__()
        width, inner = config.hidden_size, intermediate_size or config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)
        if config.hidden_act not in ["silu", "swish"]:
            raise ValueError(f"Activation function {config.hidden_act} not supported.")

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


rotated: list[tuple[int, ...]] = []
"""Shape of the queries of every call of `liger_rotary_pos_emb`."""


def liger_rotary_pos_emb(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None = None,
    unsqueeze_dim: int = 1,
    rotary_dim: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As Liger's: reads the left half of cos and sin alone."""
    rotated.append(tuple(q.shape))
    half = q.shape[-1] // 2
    cos, sin = cos[..., :half].unsqueeze(unsqueeze_dim), sin[..., :half].unsqueeze(unsqueeze_dim)

    def turned(states: Tensor) -> Tensor:
        left, right = states[..., :half], states[..., half:]
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)

    return turned(q), turned(k)


class LigerFusedLinearCrossEntropyLoss(nn.Module):
    calls: list[tuple[int, int]] = []  # noqa: RUF012
    """Positions and vocabulary of every loss computed."""

    def __init__(
        self,
        ce_weight: Tensor | None = None,
        ignore_index: int = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        softcap: float | None = None,
        return_z_loss: bool = False,
        accum_dtype: torch.dtype | None = None,
        use_token_scaling: bool = False,
        return_token_accuracy: bool = False,
        return_predicted_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.ignore_index, self.reduction = ignore_index, reduction

    def forward(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
        self.calls.append((len(_input), len(lin_weight)))
        logits = nn.functional.linear(_input, lin_weight, bias).float()
        return nn.functional.cross_entropy(logits, target, ignore_index=self.ignore_index, reduction=self.reduction)


def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `liger-kernel` and `triton` were installed, until the test ends."""
    names = ("liger_kernel", "liger_kernel.transformers", "triton")
    package, inner, triton = (types.ModuleType(name) for name in names)
    for name in ("LigerRMSNorm", "LigerSwiGLUMLP", "LigerFusedLinearCrossEntropyLoss", "liger_rotary_pos_emb"):
        setattr(inner, name, globals()[name])
    for module in (package, inner, triton):
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(LigerFusedLinearCrossEntropyLoss, "calls", [])
    rotated.clear()
