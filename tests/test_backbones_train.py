"""Training of every family: what is trained, saved, resumed and opened again, with the same commands as LLaVA-1.5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_vlms import EVERY, OWN, PEBBLES, QWEN, batch, prompt, vlm

from llava import compress
from llava.model.parts import lies_in, paths_of, weights_of

SHOWN = {"video_llava": ("image", "video"), **dict.fromkeys(QWEN, ("image", "video"))}
PARTS = {
    "llava": (("model.vision_tower",), ("model.multi_modal_projector",)),
    "llava_next": (("model.vision_tower",), ("model.multi_modal_projector",)),
    "video_llava": (("model.image_tower", "model.video_tower"), ("model.multi_modal_projector",)),
    "qwen2_5_vl": (("model.visual",), ("model.visual.merger",)),
    "qwen3_vl": (("model.visual",), ("model.visual.merger", "model.visual.deepstack_merger_list")),
    PEBBLES: ((), ("eye",)),
    OWN: (("model.vision_tower",), ("model.mm_projector",)),
}


@pytest.mark.parametrize("family", EVERY)
def test_a_family_says_where_its_towers_and_projectors_are_and_what_is_never_trained(family: str) -> None:
    model: Any = compress(vlm(family), "none")
    towers, projectors = PARTS[family]
    assert paths_of(model, model.vision_towers()) == towers
    assert paths_of(model, model.projectors()) == projectors
    model.requires_grad_(True)
    inputs = batch([prompt(family, 0, SHOWN.get(family, ("image",)))], answers=True)
    model(**inputs).loss.backward()
    unused = set(weights_of(model, model.unused_modules()))
    idle = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert idle - {"model.image_newline"} == unused
    assert all(lies_in(name, towers) for name in unused)


def test_a_family_that_does_not_say_its_parts_is_told_so() -> None:
    model = compress(vlm(PEBBLES), "none")
    with pytest.raises(ValueError, match=r"CompressedPebbles does not say projectors.*docs/plug-in\.md"):
        super(type(model), model).projectors()
    with pytest.raises(ValueError, match="no part of the CompressedPebbles"):
        paths_of(model, [torch.nn.Linear(1, 1)])
