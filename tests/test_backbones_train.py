"""Training of every family: what is trained, saved, resumed and opened again, with the same commands as LLaVA-1.5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_vlms import EVERY, FAMILIES, OWN, PEBBLES, QWEN, batch, prompt, vlm

from llava import compress
from llava.checkpoints.fit import read_weights
from llava.cost.workload import Workload
from llava.model.parts import lies_in, paths_of, weights_of

SHOWN = dict.fromkeys(("video_llava", *QWEN, "llava_onevision"), ("image", "video"))
PARTS = {
    "llava": (("model.vision_tower",), ("model.multi_modal_projector",)),
    "llava_next": (("model.vision_tower",), ("model.multi_modal_projector",)),
    "video_llava": (("model.image_tower", "model.video_tower"), ("model.multi_modal_projector",)),
    "qwen2_5_vl": (("model.visual",), ("model.visual.merger",)),
    "qwen3_vl": (("model.visual",), ("model.visual.merger", "model.visual.deepstack_merger_list")),
    "llava_onevision": (("model.vision_tower",), ("model.multi_modal_projector",)),
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


@pytest.mark.parametrize("family", EVERY)
def test_layouts_can_be_had_without_a_compression_and_change_nothing(family: str) -> None:
    model: Any = compress(vlm(family), "none")
    inputs = batch([prompt(family, 0, SHOWN.get(family, ("image",)))], answers=True)
    output = model(**inputs, output_layouts=True, return_logits=True)
    torch.testing.assert_close(output.loss, model(**inputs).loss)
    assert len(output.layouts) == 1 and output.layouts[0].visual[0] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_read_back_under_the_names_that_published_checkpoints_have(family: str, tmp_path: Path) -> None:
    model: Any = compress(vlm(family, dtype=torch.float32), "none")
    model.save_pretrained(tmp_path)
    other: Any = compress(vlm(family, dtype=torch.float32, seed=1), "none")
    read_weights(other, tmp_path)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, other.get_parameter(name)), name
    (tmp_path / "model.safetensors").unlink()
    save_file({"lm_head.weight": torch.zeros(64, 32)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks '"):
        read_weights(other, tmp_path)


def test_the_work_of_a_tower_is_that_of_its_modules() -> None:
    model: Any = compress(vlm("qwen2_5_vl"), "none")
    work = Workload.of(model, False)
    visual, shape = model.model.visual, work.vision
    maps = [weight for name, weight in visual.named_parameters() if weight.dim() > 1 and "merger" not in name]
    assert shape is not None and work.group == 4
    patches = 64
    attention = shape.flops(patches) - 2 * patches * sum(map(torch.Tensor.numel, maps))
    full, width = len(visual.config.fullatt_block_indexes), visual.config.hidden_size
    seen = full * patches + (visual.config.depth - full) * min(patches, shape.window)
    assert attention == 4 * width * patches * seen
    assert work.projector == sum(weight.numel() for weight in visual.merger.parameters() if weight.dim() > 1)
