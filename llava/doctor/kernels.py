"""Which attention kernels and number formats really compute here: each is run forwards and backwards, and compared."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

State = Literal["ok", "absent", "failed", "wrong"]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

# Llama's head width; the other sizes are arbitrary and small.
HEADS, LENGTH, HEAD_DIM = 2, 64, 128
# Inputs are standard normal, so outputs and gradients are of order 1; bfloat16 keeps 8 bits.
TOLERANCE = 0.1
KERNELS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}
FUSED = ("flash_attention_2", "sdpa flash", "sdpa efficient", "sdpa cudnn")


@dataclass(frozen=True)
class Check:
    """Result of a trial.

    Attributes:
        name: what was tried.
        state: `ok`; `absent` where this machine has no such thing; `failed` where it has, but it raised; `wrong`
            where it ran and gave other numbers.
        detail: why, unless it is ok.
    """

    name: str
    state: State
    detail: str = ""


def precision_checks(device: torch.device) -> tuple[Check, ...]:
    """bfloat16 and float16: a product and its gradient against float32."""

    def check(name: str, dtype: torch.dtype) -> Check:
        return _compare(name, lambda: _product(dtype, device), lambda: _product(torch.float32, device))

    return check("bf16", torch.bfloat16), check("fp16", torch.float16)


def attention_checks(device: torch.device) -> tuple[Check, ...]:
    """Every attention kernel that training may choose, in bfloat16, against the formula in float32."""
    tried: dict[str, Attention] = {name: _sdpa(backend) for name, backend in KERNELS.items()}
    checks = [_attention_check("eager", eager_attention, device)]
    checks += [_attention_check(name, attention, device) for name, attention in tried.items()]
    return (*checks, _flash_attention_2(device))


def eager_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention [H, L, d] by the formula, the whole map in memory, softmax in float32."""
    logits = queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5
    hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
    weights = logits.float().masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return weights.to(values) @ values


def _sdpa(backend: SDPBackend) -> Attention:
    def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)

    return attention


def _flash_attention_2(device: torch.device) -> Check:
    name = "flash_attention_2"
    if importlib.util.find_spec("flash_attn") is None:
        return Check(name, "absent", "flash-attn is not installed")
    if device.type == "cpu":
        return Check(name, "absent", "it has no kernel for the CPU")

    def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        from flash_attn import flash_attn_func

        heads_inside = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
        return flash_attn_func(*heads_inside, causal=True).transpose(1, 2)

    return _attention_check(name, attention, device)


def _attention_check(name: str, attention: Attention, device: torch.device) -> Check:
    return _compare(
        name,
        lambda: _forward_and_backward(attention, torch.bfloat16, device),
        lambda: _forward_and_backward(eager_attention, torch.float32, device),
    )


def _forward_and_backward(attention: Attention, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Output [1, H, L, d] and the gradients of queries, keys and values, for the same numbers every time."""
    noise = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, HEADS, LENGTH, HEAD_DIM, generator=noise) for _ in range(4)]
    queries, keys, values = (tensor.to(device, dtype).requires_grad_() for tensor in inputs[:3])
    output = attention(queries, keys, values)
    return [output, *torch.autograd.grad(output, (queries, keys, values), inputs[3].to(device, dtype))]


def _product(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """A product [L, d] and the gradient of its left factor, scaled to order 1."""
    noise = torch.Generator().manual_seed(0)
    left, right = (torch.randn(LENGTH, LENGTH, generator=noise).to(device, dtype) for _ in range(2))
    left.requires_grad_()
    output = left @ (right * LENGTH**-0.5)
    return [output, *torch.autograd.grad(output.sum() * LENGTH**-0.5, left)]


def _compare(name: str, trial: Callable[[], list[Tensor]], reference: Callable[[], list[Tensor]]) -> Check:
    """Run a trial; anything that it raises becomes the state of the check."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SDPA warns once for every kernel that it passes over
            found, expected = trial(), reference()
        pairs = zip(found, expected, strict=True)
        off = max(float((one.detach().float() - other.detach()).abs().max()) for one, other in pairs)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        missing = "No available kernel" in first or "No viable backend" in first
        return Check(name, "absent" if missing else "failed", "not for this device" if missing else first[:200])
    if off <= TOLERANCE:
        return Check(name, "ok")
    return Check(name, "wrong", f"differs from float32 by {off:.3g}, more than {TOLERANCE}")
