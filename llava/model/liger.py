"""Kernels of `liger-kernel` in one model: RMSNorm, SwiGLU, rotary positions, and the head fused with its cross entropy.

`liger_kernel.transformers._apply_liger_kernel_to_instance`, which transformers' Trainer calls for
`--use_liger_kernel`, also exchanges classes and functions of transformers' modules, for every model of the process,
and replaces the instance's `forward`, which drops visual tokens here. So only modules of this instance are exchanged,
for Liger's public ones with the same weights under the same names. Attention calls `apply_rotary_pos_emb` by name: the
instance's `forward` is that of its class with Liger's function under this name, the class and its module stay.

Read against liger-kernel 0.8.5.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from inspect import unwrap
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from llava.constants import IGNORE_INDEX
from llava.model.collectives import gathered
from llava.model.head_loss import summed_cross_entropy

logger = logging.getLogger(__name__)

DECODERS = {
    "LlamaModel": ("LlamaRMSNorm", "LlamaMLP"),
    "MistralModel": ("MistralRMSNorm", "MistralMLP"),
    "Qwen2Model": ("Qwen2RMSNorm", "Qwen2MLP"),
    "Qwen3Model": ("Qwen3RMSNorm", "Qwen3MLP"),
    "Qwen2_5_VLTextModel": ("Qwen2_5_VLRMSNorm", "Qwen2MLP"),
    "Qwen3VLTextModel": ("Qwen3VLTextRMSNorm", "Qwen3VLTextMLP"),
}
"""Decoders it is applied to (and classes made of them), and their classes that Liger's modules compute the same as."""
_NORMS_OF_HEADS = ("q_norm", "k_norm")
_ROTARY = "apply_rotary_pos_emb"


def require_liger(device: torch.device) -> None:
    """Check that Liger's kernels can run.

    Args:
        device: where the model will be.

    Raises:
        ValueError: if they are not installed, or the device is no GPU; says what to do.
    """
    without = "Leave --use_liger_kernel out; the loss computes few logits at a time without it too."
    if device.type != "cuda":
        raise ValueError(
            f"--use_liger_kernel needs an NVIDIA or AMD GPU, and this run is on the device {device.type!r}: its "
            f"kernels are written in Triton. {without}"
        )
    for package in ("liger_kernel", "triton"):
        if find_spec(package) is None:
            raise ValueError(
                f"--use_liger_kernel needs the package {package}, which is not installed: pip install "
                f"'duet-llava[cuda]'. {without}"
            )


def use_liger(model: Any) -> None:
    """Exchange norms, MLPs and rotary positions of a model's decoder for Liger's, and its loss for the fused one.

    Weights keep their names and are the same tensors. Towers stay as they are: they are frozen or short beside the
    decoder. Call it before adapters are added, hooks are registered or layers are compiled.

    Args:
        model: model of any family.

    Raises:
        ValueError: if its decoder is of a class that is not known, or has modules of other classes; nothing is changed.
    """
    from liger_kernel.transformers import LigerRMSNorm, LigerSwiGLUMLP, liger_rotary_pos_emb

    decoder = model.decoder
    norms, mlps = _known_modules(decoder)
    for holder, name in norms:
        old = getattr(holder, name)
        # In place, the kernel writes its gradient over that of its output, which nothing else may hold: the final
        # norm's output is what callers get.
        new = LigerRMSNorm(old.weight.shape[-1], eps=old.variance_epsilon, in_place=holder is not decoder)
        new.weight = old.weight
        setattr(holder, name, new.train(old.training))
    for holder in mlps:
        old = holder.mlp
        with torch.device("meta"):  # its own weights are not used
            new = LigerSwiGLUMLP(decoder.config)
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(new, name, getattr(old, name))
        holder.mlp = new.train(old.training)
        _rotate_by(liger_rotary_pos_emb, holder.self_attn)
    model.summed_loss = fused_cross_entropy
    logger.info(
        "Liger: %d norms, %d MLPs, their rotary positions and the loss of the %s.",
        len(norms),
        len(mlps),
        type(decoder).__name__,
    )


def _known_modules(decoder: Any) -> tuple[list[tuple[Any, str]], list[Any]]:
    """Where norms stand (module and attribute), and the layers whose MLP is to be exchanged."""
    kind = type(decoder).__name__
    known = [base.__name__ for base in type(decoder).__mro__ if base.__name__ in DECODERS]
    if not known:
        raise ValueError(
            f"--use_liger_kernel: the language model is a {kind}; Liger's kernels are applied to "
            f"{', '.join(DECODERS)}. Leave it out."
        )
    norm, mlp = DECODERS[known[0]]
    layers = list(decoder.layers)
    norms = [(decoder, "norm")]
    norms += [(layer, name) for layer in layers for name in ("input_layernorm", "post_attention_layernorm")]
    attentions = [layer.self_attn for layer in layers]
    norms += [(part, name) for part in attentions for name in _NORMS_OF_HEADS if hasattr(part, name)]
    found = {(norm, type(getattr(holder, name)).__name__) for holder, name in norms}
    found |= {(mlp, type(layer.mlp).__name__) for layer in layers}
    others = sorted(f"{other} instead of {expected}" for expected, other in found if other != expected)
    others += sorted(
        {f"{type(part).__name__}, which does not call {_ROTARY}" for part in attentions if not _calls_rotary(part)}
    )
    if others:
        raise ValueError(f"--use_liger_kernel: the {kind} holds {', '.join(others)}. Leave it out.")
    if decoder.config.hidden_act not in ("silu", "swish"):
        raise ValueError(
            f"--use_liger_kernel: hidden_act of the language model is {decoder.config.hidden_act!r}; Liger's MLP "
            "computes 'silu'. Leave it out."
        )
    return norms, layers


def _calls_rotary(attention: nn.Module) -> bool:
    """Whether the forward of an attention module is its class's own, and calls the function that is exchanged."""
    code = getattr(_undecorated(attention), "__code__", None)
    return code is not None and _ROTARY in code.co_names and "forward" not in vars(attention)


def _undecorated(attention: nn.Module) -> Any:
    """The forward of the class itself: transformers 5.24 puts one around it that translates an argument's old name."""
    return unwrap(type(attention).forward)


def _rotate_by(rotary: Callable[..., Any], attention: nn.Module) -> None:
    """Let the forward of this attention module, and of no other, turn queries and keys by another function.

    Args:
        rotary: takes and returns what `apply_rotary_pos_emb` does; may write over queries and keys.
        attention: module whose class's forward calls `apply_rotary_pos_emb`.
    """
    own = _undecorated(attention)
    names = {**own.__globals__, _ROTARY: rotary}
    forward = FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    forward.__kwdefaults__ = own.__kwdefaults__
    attention.forward = MethodType(forward, attention)


def fused_cross_entropy(head: nn.Module, states: Tensor, labels: Tensor) -> Tensor:
    """As `summed_cross_entropy`, by Liger's fused kernel where the head is plainly linear.

    The kernel asks the device how many targets there are, and its backward pass what the gradient is: two waits a
    step, which `summed_cross_entropy` does not have.

    Args:
        head: maps [S, D] to logits [S, V].
        states: [S, D].
        labels: int64 [S], -100 where nothing is to be predicted.

    Returns:
        float32 scalar.
    """
    if type(head) is not nn.Linear:
        return summed_cross_entropy(head, states, labels)
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE_INDEX, reduction="sum", accum_dtype=torch.float32)
    with gathered(head.parameters()):
        return loss(head.weight, states, labels, head.bias)
