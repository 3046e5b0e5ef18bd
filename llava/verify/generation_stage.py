"""Kind `generate`: greedy decoding with a cache, step by step and through `generate`.

Shapes: T positions of the prompt, K new tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llava.compression import CompressionConfig
from llava.model import LlavaLlamaForCausalLM
from llava.model.cache_name import cache_of
from llava.model.staged_cache import StagedCache
from llava.verify.case import Case, UnreadableCaseError
from llava.verify.case_values import Measured
from llava.verify.stages import measure_stages
from llava.verify.voters import CasePrompt, match_images
from llava.verify.whole import prepare


@torch.no_grad()
def replay(case: Case, model: LlavaLlamaForCausalLM, prompt: CasePrompt, compression: CompressionConfig) -> Measured:
    """Everything a `generate` case records; the tokens twice, from single steps and from `generate`."""
    if len(prompt.ids) != 1:
        raise UnreadableCaseError(f"The case holds {len(prompt.ids)} prompts; a generate case has one.")
    count = case.outputs["new_tokens"].numel()
    measured = _step_by_step(case, model, prompt, compression, count)
    measured["new_tokens_of_generate"] = model.generate(
        prompt.ids.to(model.device),
        images=match_images(prompt.is_image, case.images()),
        attention_mask=prompt.valid.to(model.device),
        query_mask=prompt.query_mask,
        compression=compression,
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
    )
    return measured


def recorded(case: Case) -> dict[str, Tensor]:
    """What the case recorded; `generate` must give the same tokens as single steps."""
    return {**case.outputs, "new_tokens_of_generate": case.outputs["new_tokens"]}


def _step_by_step(
    case: Case, model: LlavaLlamaForCausalLM, prompt: CasePrompt, compression: CompressionConfig, count: int
) -> Measured:
    """Prefill, then feed `count - 1` tokens one at a time, always the likeliest."""
    embeddings, layout = prepare(case, model, prompt, compression)
    output = model(inputs_embeds=embeddings, layout=layout, compression=compression, use_cache=True)
    measured = measure_stages(output.layouts, output.scores)
    cache: Any = cache_of(output)
    depth = len(model.get_model().layers)
    measured["kv_lengths_after_prefill"] = _cache_lengths(cache, depth)
    logits, positions = [output.logits[0, -1]], [_newest_positions(cache, depth)]
    tokens = [logits[0].argmax()]
    for _ in range(count - 1):
        step = model(input_ids=tokens[-1].view(1, 1), past_key_values=cache, compression=compression, use_cache=True)
        logits.append(step.logits[0, -1])
        positions.append(_newest_positions(cache, depth))
        tokens.append(logits[-1].argmax())
    measured["kv_lengths_at_end"] = _cache_lengths(cache, depth)
    measured["last_position_per_layer"] = torch.stack(positions)  # [count, depth]
    measured["step_logits"] = torch.stack(logits)  # [count, V]
    measured["new_tokens"] = torch.stack(tokens)[None]  # [1, count]
    return measured


def _cache_lengths(cache: StagedCache, depth: int) -> Tensor:
    """int64 [layers]: positions that each layer has cached."""
    return torch.tensor([cache.get_seq_length(layer) for layer in range(depth)])


def _newest_positions(cache: StagedCache, depth: int) -> Tensor:
    """int64 [layers]: rotary position of the newest token in each layer."""
    ends = [stage.first_layer for stage in cache.stages[1:]] + [depth]
    return torch.tensor(
        [
            int(stage.next_position[0, 0]) - 1
            for stage, end in zip(cache.stages, ends, strict=True)
            for _ in range(stage.first_layer, end)
        ]
    )
