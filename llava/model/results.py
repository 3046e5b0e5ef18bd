"""Outputs of a compressed model, and the step from the decoder's last hidden states to logits and loss.

Shapes: B rows, T columns of the input, L' positions after the last drop, D width, K columns kept, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from llava.compression.layout import TokenLayout
from llava.model.cache_name import cache_of, named
from llava.model.columns import hidden_states_at_columns, logits_at_columns, survivor_index
from llava.model.experts import RouterLoss
from llava.model.head_loss import SummedLoss, summed_cross_entropy
from llava.model.loss import Targets, next_token_loss


@dataclass
class LlavaModelOutput(BaseModelOutputWithPast):
    """Output of the decoder.

    Attributes:
        layouts: what each stage worked on; the last one describes `last_hidden_state`. None while decoding.
        scores: what each drop was ranked by.
        router_logits: of each layer with experts, [B * L, E], where they were asked for.
    """

    layouts: tuple[TokenLayout, ...] | None = None
    scores: tuple[Tensor | None, ...] | None = None
    router_logits: tuple[Tensor, ...] | None = None


@dataclass
class LlavaCausalLMOutput(CausalLMOutputWithPast):
    """Output of the whole model.

    `logits` and `hidden_states` stand at the columns of `input_ids`; for LLaVA's own model an `<image>` is one column.
    What a column without a surviving token holds is said in `llava.model.columns`. Where the prompt was given as
    embeddings and their layout, they stand at the positions of the last of `layouts` and of each stage's. `attentions`
    are each stage's own, [B, heads, L of the stage, L of the stage], and so are `router_logits`, [B * L, E] of each
    layer with experts; `aux_loss` is the loss of the routers without its weight (`llava.model.experts`).
    """

    layouts: tuple[TokenLayout, ...] | None = None
    scores: tuple[Tensor | None, ...] | None = None
    aux_loss: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class RequestedOutputs:
    """Outputs that the caller of `forward` asks for.

    Attributes:
        loss: whether labels were given.
        num_items_in_batch: targets of the whole (accumulated) batch, to divide the summed loss by; None takes the mean.
        logits: whether to return them; by default not where a loss is computed in training.
        logits_to_keep: which, as in transformers.
        cuts: after how many layers each drop takes place.
        layouts: whether to return the layouts of the stages and what they were ranked by.
        router: the loss of the routers, where it is asked for.
    """

    loss: bool = False
    num_items_in_batch: Tensor | int | None = None
    logits: bool = True
    logits_to_keep: int | Tensor = 0
    cuts: Sequence[int] = ()
    layouts: bool = True
    router: RouterLoss | None = None

    @classmethod
    def of(
        cls,
        given: Mapping[str, Any],
        training: bool,
        cuts: Sequence[int],
        layouts: bool,
        router: RouterLoss | None = None,
    ) -> RequestedOutputs:
        """From the arguments of `forward`, by name."""
        loss = given.get("labels") is not None or given.get("shift_labels") is not None
        logits = given.get("return_logits")
        return cls(
            loss=loss,
            num_items_in_batch=given.get("num_items_in_batch"),
            logits=not (training and loss) if logits is None else bool(logits),
            logits_to_keep=_columns_kept(given.get("logits_to_keep")),
            cuts=cuts,
            layouts=layouts,
            router=router,
        )


def _columns_kept(logits_to_keep: Any) -> int | Tensor:
    """`logits_to_keep` as a number of last columns or a tensor; raise ValueError for what is neither."""
    if logits_to_keep is None or isinstance(logits_to_keep, int):
        return logits_to_keep or 0
    kept = torch.as_tensor(logits_to_keep) if isinstance(logits_to_keep, list | tuple) else logits_to_keep
    if not isinstance(kept, Tensor) or kept.dim() not in (1, 2) or kept.is_floating_point():
        raise ValueError(
            f"logits_to_keep is {logits_to_keep!r}; give a number of last columns (an int), columns [K] or [B, K], "
            "or a bool mask [B, T]."
        )
    return kept


def with_head(
    head: nn.Module,
    outputs: LlavaModelOutput,
    requested: RequestedOutputs,
    targets: Targets | None = None,
    width: int | None = None,
    summed_loss: SummedLoss = summed_cross_entropy,
) -> LlavaCausalLMOutput:
    """Loss and logits of what the decoder returned.

    Args:
        head: maps states of width D to logits [..., V].
        outputs: outputs of the decoder; without layouts for new tokens behind a filled cache.
        requested: outputs that the call asked for.
        targets: targets of the T columns, where a loss was.
        width: T, to return results at the columns of the input; None leaves them at the decoder's positions.
        summed_loss: as in `next_token_loss`.
    """
    states = outputs.last_hidden_state
    assert states is not None
    loss, logits, hidden_states = None, None, outputs.hidden_states
    if targets is not None:
        assert outputs.layouts is not None
        items = requested.num_items_in_batch
        with record_function("llava.loss"):
            loss = next_token_loss(head, states, outputs.layouts[-1], targets, items, summed_loss)
    aux_loss = None
    if requested.router is not None and outputs.layouts is not None and outputs.router_logits:
        aux_loss = requested.router.of_logits(outputs.router_logits, outputs.layouts, requested.cuts)
        if loss is not None and targets is not None:
            loss = loss + requested.router.weight * targets.share_of(requested.num_items_in_batch) * aux_loss.to(loss)
    if outputs.layouts is None or width is None or _is_identity(outputs.layouts[-1], width):
        if requested.logits:
            logits = head(slice_logits_to_keep(states, requested.logits_to_keep))
    else:
        if requested.logits:
            index = survivor_index(outputs.layouts[-1], width).to(states.device)
            logits = logits_at_columns(head, states, index, requested.logits_to_keep)
        if hidden_states is not None:
            hidden_states = hidden_states_at_columns(hidden_states, outputs.layouts, requested.cuts, width)
    return LlavaCausalLMOutput(
        loss=loss,
        logits=logits,
        hidden_states=hidden_states,
        attentions=outputs.attentions,
        aux_loss=aux_loss,
        router_logits=outputs.router_logits,
        layouts=outputs.layouts if requested.layouts else None,
        scores=outputs.scores if requested.layouts else None,
        **named(cache_of(outputs)),
    )


def _is_identity(layout: TokenLayout, width: int) -> bool:
    """Whether the decoder's positions are the columns of the input: text without padding."""
    return layout.columns is None and not layout.is_padded and layout.valid.shape[1] == width
