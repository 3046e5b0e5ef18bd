"""Kind `video_llava_prepare`: images, videos and text of a batch as embeddings, labels and mask.

Shapes: B rows, T frames of a video, L positions after splicing, S side of a picture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.model import LlavaLlamaForCausalLM
from llava.model.loss import labels_at
from llava.verify import deviations
from llava.verify.case import Case, UnreadableCaseError
from llava.verify.case_values import Measured, Replayed, choice_of, longest_row, recorded_with, require_agreement
from llava.verify.models import ModelStore

_AXES = {"image": 3, "zero": 3, "video": 4}


@torch.no_grad()
def replay(case: Case, models: ModelStore) -> Replayed:
    """Everything that a case records."""
    model = models.open(case.model_folder)
    if not model.config.sees_videos:
        raise UnreadableCaseError(f"{case.model_folder / 'config.json'} names no tower for images or videos.")
    entries = _entries(case, model)
    ids, mask, labels = (case.inputs.get(name) for name in ("input_ids", "attention_mask", "labels"))
    assert ids is not None
    side = choice_of(case, "tokenizer_padding_side", ("left", "right")) or "right"
    model.config.tokenizer_model_max_length = longest_row(case)
    # The published program cuts every prompt; here one that is asked is never cut, one that is trained on is.
    targets = torch.full_like(ids, IGNORE_INDEX) if labels is None else labels
    given = ids.to(model.device), mask, targets.to(model.device)
    embeddings, layout = model.prepare_multimodal_inputs(*given, entries, padding_side=side)
    images = [entry for entry in entries if entry.dim() == 3]
    videos = [entry for entry in entries if entry.dim() == 4]
    measured: Measured = {
        "inputs_embeds": embeddings,
        "attention_mask": layout.valid,
        "position_ids": layout.positions.masked_fill(~layout.valid, 0),
        "labels": labels_at(layout, targets),
        "row_lengths": layout.valid.sum(dim=1),
    }
    if images and "image_projected" in case.outputs:
        measured["image_projected"] = model.encode_images(torch.stack(images))  # type: ignore[assignment]
    if videos and "video_projected" in case.outputs:
        frames: Any = model.encode_videos(videos)
        measured["video_projected"] = frames.unflatten(0, (len(videos), -1))
    if "loss" in case.outputs or "logits_last" in case.outputs:
        output = model(ids.to(model.device), mask, images=entries, labels=given[2], use_cache=False, return_logits=True)
        measured["loss"] = output.loss
        whole = model(inputs_embeds=embeddings, layout=layout, use_cache=False)
        columns = torch.arange(layout.valid.shape[1], device=model.device)
        last = (columns * layout.valid).argmax(dim=1)
        measured["logits_last"] = whole.logits[torch.arange(len(last)), last]
    return measured, recorded_with(case, "row_lengths"), deviations.of_loss(labels_at(layout, targets))


def _entries(case: Case, model: LlavaLlamaForCausalLM) -> list[Tensor]:
    """Images [3, S, S] and videos [3, T, S, S] in the order of the case; a `zero` is an image of zeros."""
    kinds = case.settings.get("entries")
    if not isinstance(kinds, list):
        raise UnreadableCaseError(f"entries is {kinds!r} in case.json; it must list image, video or zero.")
    entries = []
    for number, kind in enumerate(kinds):
        pixels = case.inputs.get(f"pixels_u8_{number}")
        if pixels is not None:
            entries.append((pixels.float() / 127.5 - 1).to(model.device))
        elif kind == "zero":
            side = model.get_vision_tower().config.image_size  # type: ignore[union-attr]
            entries.append(torch.zeros(3, side, side, device=model.device))
        else:
            raise UnreadableCaseError(f"inputs.safetensors has no 'pixels_u8_{number}', the {kind!r} of entries.")
        if _AXES.get(str(kind)) != entries[-1].dim():
            raise UnreadableCaseError(
                f"entry {number} is {kind!r} in case.json, but has shape {list(entries[-1].shape)}; an image or zero "
                "is [3, height, width], a video [3, frames, height, width]."
            )
        if kind == "video":
            require_agreement(case, {"num_frames": entries[-1].shape[1]})
    return entries
