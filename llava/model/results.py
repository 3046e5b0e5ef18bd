"""What a compressed model returns, and the step from the decoder's last hidden states to it.

Shapes: B rows, T columns of the input, L' positions after the last drop, D width, K columns kept, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from llava.compression.layout import TokenLayout
from llava.constants import IGNORE_INDEX
from llava.model.cache_name import cache_of, named
from llava.model.columns import hidden_states_at_columns, labels_of, logits_at_columns, survivor_index
from llava.model.loss import next_token_loss


@dataclass
class LlavaModelOutput(BaseModelOutputWithPast):
    """Output of the decoder.

    Attributes:
        layouts: what each stage worked on; the last one describes `last_hidden_state`. None while decoding.
        scores: what each drop was ranked by.
    """

    layouts: tuple[TokenLayout, ...] | None = None
    scores: tuple[Tensor | None, ...] | None = None


@dataclass
class LlavaCausalLMOutput(CausalLMOutputWithPast):
    """Output of the whole model.

    `logits` and `hidden_states` stand at the columns of `input_ids`; for LLaVA's own model an `<image>` is one column.
    What a column without a surviving token holds is said in `llava.model.columns`. Where the prompt was given as
    embeddings and their layout, they stand at the positions of the last of `layouts` and of each stage's. `attentions`
    are each stage's own, [B, heads, L of the stage, L of the stage].
    """

    layouts: tuple[TokenLayout, ...] | None = None
    scores: tuple[Tensor | None, ...] | None = None


@dataclass(frozen=True)
class Wanted:
    """What the caller of `forward` asks for.

    Attributes:
        labels: int64 [B, T], -100 where there is no target.
        shift_labels: int64 [B, T], what each column is to predict; taken for the loss instead of `labels`.
        num_items_in_batch: targets of the whole (accumulated) batch, to divide the summed loss by; None takes the mean.
        logits: whether to return them.
        logits_to_keep: which, as in transformers.
        cuts: after how many layers each drop takes place.
        layouts: whether to return the layouts of the stages and what they were ranked by.
    """

    labels: Tensor | None = None
    shift_labels: Tensor | None = None
    num_items_in_batch: Tensor | int | None = None
    logits: bool = True
    logits_to_keep: int | Tensor = 0
    cuts: Sequence[int] = ()
    layouts: bool = True

    @classmethod
    def of(
        cls,
        labels: Tensor | None,
        shift_labels: Tensor | None,
        num_items_in_batch: Tensor | int | None,
        return_logits: bool | None,
        logits_to_keep: int | Tensor | None,
        training: bool,
        cuts: Sequence[int],
        layouts: bool = True,
    ) -> Wanted:
        """With `return_logits` None they are left out where a loss is computed in training."""
        if return_logits is None:
            return_logits = not training or (labels is None and shift_labels is None)
        kept = _columns_kept(logits_to_keep)
        return cls(labels, shift_labels, num_items_in_batch, return_logits, kept, cuts, layouts)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where labels have another shape than the input, [B, T]."""
        for name in ("labels", "shift_labels"):
            given = getattr(self, name)
            if given is not None and tuple(given.shape) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(given.shape)}, but the input has {shape}; give one label for each "
                    f"column, {IGNORE_INDEX} where there is no target."
                )

    @property
    def loss(self) -> bool:
        """Whether a loss is asked for."""
        return self.labels is not None or self.shift_labels is not None

    def token_labels(self) -> Tensor | None:
        """int64 [B, T]: the label of each token, whichever way it was given; None without any."""
        return self.labels if self.shift_labels is None else labels_of(self.shift_labels)

    def without_visual(self, is_visual: Tensor) -> Wanted:
        """The same, but a placeholder, bool [B, T], is nobody's target."""
        if self.shift_labels is None:
            return self
        self.check(tuple(is_visual.shape))
        is_next = torch.nn.functional.pad(is_visual[:, 1:], (0, 1), value=False).to(self.shift_labels.device)
        masked = self.shift_labels.masked_fill(is_next, IGNORE_INDEX)
        return replace(self, shift_labels=masked)


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


def with_head(head: nn.Module, outputs: LlavaModelOutput, wanted: Wanted, width: int | None) -> LlavaCausalLMOutput:
    """Loss and logits of what the decoder returned.

    Args:
        head: from D to V.
        outputs: of the decoder.
        wanted: what was asked for.
        width: T, to return results at the columns of the input; None leaves them at the decoder's positions.

    Raises:
        ValueError: for labels of tokens behind a filled cache, or of another shape than the input.
    """
    states = outputs.last_hidden_state
    assert states is not None
    loss = None
    if wanted.loss:
        if outputs.layouts is None:
            raise ValueError("There is no loss for tokens behind a filled cache; give the whole sequence with labels.")
        layout = outputs.layouts[-1]
        if layout.labels is None or width is not None:
            wanted.check((len(states), layout.valid.shape[1] if width is None else width))
        loss = next_token_loss(head, states, layout, wanted.labels, wanted.num_items_in_batch, wanted.shift_labels)
    logits, hidden_states = None, outputs.hidden_states
    if outputs.layouts is None or width is None or _is_identity(outputs.layouts[-1], width):
        if wanted.logits:
            logits = head(slice_logits_to_keep(states, wanted.logits_to_keep))
    else:
        if wanted.logits:
            index = survivor_index(outputs.layouts[-1], width).to(states.device)
            logits = logits_at_columns(head, states, index, wanted.logits_to_keep)
        if hidden_states is not None:
            hidden_states = hidden_states_at_columns(hidden_states, outputs.layouts, wanted.cuts, width)
    return LlavaCausalLMOutput(
        loss=loss,
        logits=logits,
        hidden_states=hidden_states,
        attentions=outputs.attentions,
        layouts=outputs.layouts if wanted.layouts else None,
        scores=outputs.scores if wanted.layouts else None,
        **named(cache_of(outputs)),
    )


def _is_identity(layout: TokenLayout, width: int) -> bool:
    """Whether the decoder's positions are the columns of the input: text without padding."""
    return layout.columns is None and not layout.is_padded and layout.valid.shape[1] == width
