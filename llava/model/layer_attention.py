"""What every decoder layer of a prompt sees: which visual tokens are there, and what attention the question pays them.

The drops of T2V are ranked by a few of these layers only; for people who look, all of them are computed here, by the
same function (`llava.model.staged_decoder.attention_ranking`). Shapes: B rows, L positions of a stage, N visual tokens
that entered, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava.compression.config import CompressionConfig
from llava.compression.layout import TokenLayout
from llava.model.staged_decoder import attention_ranking, run_stages


@dataclass(frozen=True)
class WatchedPrompt:
    """A prefill, layer by layer.

    Attributes:
        layouts: layouts of the stages; the first is that of the whole prompt.
        scores: after so many layers, float32 [B, N] what a drop was ranked by; absent if nothing was ranked.
        attention: float32 [layers, B, N]: attention that the voters pay each visual token, by the queries and keys of
            each layer; mean over heads and voters. Of the first layer behind a drop, to what stood there before it. 0
            for tokens that are gone.
    """

    layouts: tuple[TokenLayout, ...]
    scores: dict[int, Tensor]
    attention: Tensor

    def voting_columns(self, row: int = 0) -> list[int]:
        """The columns of the prompt's ids whose tokens vote on visual tokens, rising."""
        layout = self.layouts[0]
        columns = layout.input_columns()[row][layout.vote[row]]
        return sorted(set(columns.tolist()))


@torch.no_grad()
def watch_prompt(model: Any, inputs: Mapping[str, Any], compression: CompressionConfig) -> WatchedPrompt:
    """Run a prefill of a model of any family and look at every layer.

    Args:
        model: the model.
        inputs: arguments of its forward, on its device, without labels.
        compression: the budget, as the model takes it (`checked`).

    Raises:
        ValueError: if the inputs do not fit the model.
    """
    prefill = model.prefill(inputs, compression)
    t2v, decoder = compression.t2v, model.decoder
    output = run_stages(
        decoder, prefill.embeddings, prefill.layout, t2v, None, prefill.added, output_hidden_states=True
    )
    cuts, layouts = (t2v.layers if t2v else ()), output.layouts
    assert layouts is not None and output.scores is not None and output.hidden_states is not None
    states = _with_added(output.hidden_states, layouts, cuts, prefill.added)
    received = []
    for layer, hidden_states in enumerate(states):
        layout = layouts[sum(cut < layer for cut in cuts)]  # a drop in front of a layer is ranked on what came to it
        received.append(layout.by_visual_index(attention_ranking(decoder, layer, hidden_states, layout), 0.0))
    scores = {
        cut: layout.by_visual_index(ranking, 0.0)
        for cut, layout, ranking in zip(cuts, layouts[:-1], output.scores, strict=True)
        if ranking is not None
    }
    return WatchedPrompt(layouts, scores, torch.stack(received))


def _with_added(
    captured: Sequence[Tensor], layouts: Sequence[TokenLayout], cuts: Sequence[int], added: Sequence[Tensor]
) -> list[Tensor]:
    """Hidden states [B, L, D] that come to each layer, of captured ones, which are in front of what is added to them.

    Args:
        captured: the embeddings, and the output of each layer (the last one is normed, and not used).
        layouts: layouts of the stages.
        cuts: after how many layers each drop takes place.
        added: [B, L of the prompt, D] each, added behind layer 0, 1, ...
    """
    states = list(captured[:-1])
    first = layouts[0]
    for layer, features in enumerate(added[: len(states) - 1]):
        layout = layouts[sum(cut <= layer for cut in cuts)]
        if layout is not first:
            entered = torch.stack(
                [first.by_visual_index(column, 0.0) for column in features.float().unbind(-1)], dim=-1
            )
            index = layout.visual_index.clamp(min=0)[..., None].expand(-1, -1, entered.shape[-1])  # [B, L, D]
            features = entered.gather(1, index).masked_fill(~layout.is_visual[..., None], 0)
        states[layer + 1] = states[layer + 1] + features.to(states[layer + 1])
    return states
