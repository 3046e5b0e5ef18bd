"""Cross entropy behind a language model's head, with the logits of a bounded number of positions at a time.

Logits and their gradients are the largest tensors of a training step: 12 bytes for each position and entry of the
vocabulary. Where there are more positions than `positions_at_once`, they go through the head chunk by chunk, and each
chunk's gradients are computed while its logits are there. Of a chunk only the gradients of its states stay; those of
the head's weights are summed. Liger's fused linear cross entropy does the same (Hsu et al. 2024, "Liger Kernel:
Efficient Triton Kernels for LLM Training", section 3.2), but needs a GPU and a plain linear head.

Shapes: S positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llava.constants import IGNORE_INDEX
from llava.cost.activations import positions_at_once
from llava.model.collectives import gather_for_gradients, gathered, is_partitioned

Head = Callable[[Tensor], Tensor]
"""Maps states [S, D] to logits [S, V]."""
SummedLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a head, states [S, D] and labels [S] to the sum of the cross entropies."""
_HALF_SCALE = 1024.0
_UNKNOWN_VOCABULARY = 2**17


def summed_cross_entropy(head: nn.Module, states: Tensor, labels: Tensor, chunk: int | None = None) -> Tensor:
    """Sum of the cross entropies of all positions; can be differentiated once where there is more than one chunk.

    Where ZeRO-3 holds the head's weights in pieces, all ranks make the same collective calls, however many positions
    each has: a plain linear head is gathered once for all its chunks, any other is called once, with all positions.

    Args:
        head: maps [S, D] to logits [S, V]: linear, with or without a bias, quantised or with adapters.
        states: [S, D].
        labels: int64 [S], -100 where nothing is to be predicted.
        chunk: most positions whose logits are there at a time; None goes by the size of the vocabulary.

    Returns:
        float32 scalar.
    """
    weights = list(head.parameters())
    chunk = chunk or positions_at_once(getattr(head, "out_features", None) or _UNKNOWN_VOCABULARY)
    if any(is_partitioned(weight) for weight in weights):
        if type(head) is not nn.Linear:
            return _losses(head, states, labels).sum()
        with gathered(weights):  # `forward`, because the module's hooks would gather once more for each chunk
            return _in_chunks(head.forward, weights, states, labels, chunk)
    if len(states) <= chunk:
        return _losses(head, states, labels).sum()
    return _in_chunks(head, weights, states, labels, chunk)


def _losses(head: Head, states: Tensor, labels: Tensor) -> Tensor:
    """float32 [S], 0 where nothing is to be predicted."""
    return F.cross_entropy(head(states).float(), labels, ignore_index=IGNORE_INDEX, reduction="none")


def _in_chunks(head: Head, weights: list[nn.Parameter], states: Tensor, labels: Tensor, chunk: int) -> Tensor:
    trained = [weight for weight in weights if weight.requires_grad]
    if torch.is_grad_enabled() and (states.requires_grad or trained):
        return _ChunkedLoss.apply(head, chunk, labels, states, *trained)
    parts = zip(states.split(chunk), labels.split(chunk), strict=True)
    return torch.cat([_losses(head, *part) for part in parts]).sum()


class _ChunkedLoss(torch.autograd.Function):
    """Sum of `_losses`; the forward pass computes the gradients, and the backward pass scales them."""

    @staticmethod
    def forward(ctx: Any, head: Head, chunk: int, labels: Tensor, states: Tensor, *weights: Tensor) -> Tensor:
        """Args: `head`, positions of a chunk, int64 [S], [S, D], and the head's weights that are trained."""
        of_states = ctx.needs_input_grad[3]
        grads = torch.zeros_like(states) if of_states else None  # [S, D]
        sums: list[Tensor] = []
        losses = []
        for first in range(0, len(states), chunk):
            part = states[first : first + chunk].detach().requires_grad_(of_states)
            with torch.enable_grad():
                logits = head(part)
                # float16 does not hold small probabilities; the caller's own loss scale comes in the backward pass.
                ctx.scale = _HALF_SCALE if logits.dtype == torch.float16 else 1.0
                loss = F.cross_entropy(
                    logits.float(), labels[first : first + chunk], ignore_index=IGNORE_INDEX, reduction="none"
                )
                del logits
                wanted = [part, *weights] if of_states else list(weights)
                scale = torch.full_like(loss, ctx.scale)
                found = list(torch.autograd.grad(loss, wanted, scale, materialize_grads=True))
            losses.append(loss.detach())
            if grads is not None:
                grads[first : first + chunk] = found.pop(0)
            sums = _added(sums, found)
            del found  # as large as the head, and the next chunk makes another
        ctx.save_for_backward(grads, *sums)
        ctx.weights = weights
        return torch.cat(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        """Gradients of the states and of the trained weights."""
        grads, *sums = ctx.saved_tensors
        factor = grad_loss / ctx.scale
        gather_for_gradients(ctx.weights)
        of_weights = ((total * factor).to(weight.dtype) for total, weight in zip(sums, ctx.weights, strict=True))
        return None, None, None, None if grads is None else grads * factor, *of_weights


def _added(sums: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    """Running sums of the weights' gradients, in float32 or wider: rounding each of many sums to bfloat16 adds up."""
    if not sums:
        return [value.to(torch.promote_types(value.dtype, torch.float32), copy=True) for value in more]
    return [total.add_(value) for total, value in zip(sums, more, strict=True)]
