"""Models of every family at a size to recompute by hand: real classes, random weights, prompts and batches."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

import torch
from pebbles import Pebbles
from tiny import randomise, tiny_llava, tower_config
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SiglipVisionConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from llava.constants import IMAGE_TOKEN_INDEX

IMAGE, VIDEO, PAD, VISION_START, VISION_END = 60, 61, 0, 62, 63
LAYERS, FRAMES = 6, 3
QWEN = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
FAMILIES = ("llava", "llava_next", "video_llava", *QWEN, "llava_onevision")
"""Classes of transformers that `compress` takes."""
PEBBLES, OWN, OWN_NEXT = "pebbles", "llava_llama", "llava_llama cutting images into crops"
NATIVE = (OWN, OWN_NEXT)
"""LLaVA's own, in two shapes."""
EVERY = (*FAMILIES, PEBBLES, *NATIVE)
"""With a family from outside the package, and LLaVA's own."""
MARKS = (IMAGE, VIDEO, IMAGE_TOKEN_INDEX)
"""Placeholders of all of them."""


def vlm(
    family: str,
    dtype: torch.dtype = torch.float64,
    attention: str = "sdpa",
    seed: int = 0,
    layers: int = LAYERS,
    tower: CLIPVisionConfig | None = None,
) -> Any:
    """A model in eval mode with weights large enough that attention is far from uniform."""
    if family in NATIVE:
        return _own(dtype, attention, seed, layers, **(CUTTING if family == OWN_NEXT else {}))
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
    )
    of_clip = {
        "text_config": text,
        "vision_config": tower or tower_config(),
        "image_token_index": IMAGE,
        "vision_feature_layer": -2,
    }
    if family == PEBBLES:
        model = Pebbles(text)
    elif family == "llava":
        model = LlavaForConditionalGeneration(LlavaConfig(**of_clip))
    elif family == "llava_next":
        side = of_clip["vision_config"].image_size
        pinpoints = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
        model = LlavaNextForConditionalGeneration(LlavaNextConfig(**of_clip, image_grid_pinpoints=pinpoints))
    elif family == "video_llava":
        model = VideoLlavaForConditionalGeneration(VideoLlavaConfig(**of_clip, video_token_index=VIDEO))
    elif family == "llava_onevision":
        model = LlavaOnevisionForConditionalGeneration(_onevision_config(layers))
    elif family == "qwen3_vl":
        model = Qwen3VLForConditionalGeneration(_qwen3_config(layers))
    elif family == "qwen3_vl_moe":
        model = Qwen3VLMoeForConditionalGeneration(_moe_config(layers))
        model.set_experts_implementation("batched_mm" if dtype == torch.float64 else "grouped_mm")
    else:
        model = Qwen2_5_VLForConditionalGeneration(_qwen_config(layers))
    model.config._attn_implementation = attention
    randomise(model, seed)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.to(dtype).eval()


CUTTING = {
    "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
}
"""Fields of LLaVA-NeXT."""


def _own(dtype: torch.dtype, attention: str, seed: int, layers: int, **config: Any) -> Any:
    model = tiny_llava(layers=layers, dtype=dtype, attention=attention, seed=seed, vocab_size=64, **config)
    model.generation_config.pad_token_id = PAD
    return model


RENAMED = {
    "model.image_newline": "model.image_newline",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.vision_tower.vision_tower.vision_model.": "model.vision_tower.",
    "model.": "model.language_model.",
    "": "",
}
"""Beginnings of the names of LLaVA's own weights, and of the same weights in transformers' LLaVA."""


def renamed(name: str) -> str:
    """What transformers' LLaVA calls a weight of LLaVA's own."""
    start = next(start for start in RENAMED if name.startswith(start))
    return RENAMED[start] + name.removeprefix(start)


def stock_of_own(model: Any) -> Any:
    """transformers' LLaVA with the weights of LLaVA's own: a second program from pixels to logits."""
    text = {name: value for name, value in model.config.to_dict().items() if name in LlamaConfig().to_dict()}
    config = LlavaConfig(
        vision_config=model.get_vision_tower().config.to_dict(),
        text_config=text | {"model_type": "llama"},
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )
    stock = LlavaForConditionalGeneration(config).to(model.dtype).eval()
    stock.load_state_dict({renamed(name): value for name, value in model.state_dict().items()})
    stock.generation_config.pad_token_id, stock.generation_config.eos_token_id = PAD, None
    return stock


def spelled_out(inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch of one row for LLaVA's own, as transformers' LLaVA takes it: sixteen placeholders for an image."""
    assert len(inputs["input_ids"]) == 1
    repeats = torch.where(inputs["input_ids"][0] == IMAGE_TOKEN_INDEX, 16, 1)
    made = {
        name: inputs[name].repeat_interleave(repeats, dim=1)
        for name in ("input_ids", "attention_mask", "labels")
        if name in inputs
    }
    made["input_ids"] = made["input_ids"].masked_fill(made["input_ids"] == IMAGE_TOKEN_INDEX, IMAGE)
    return made | ({"pixel_values": inputs["images"]} if "images" in inputs else {})


def _qwen_text(layers: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        **more,
    }


_QWEN_VISION = {
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN_MARKS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


def _qwen_config(layers: int) -> Qwen2_5_VLConfig:
    vision = {**_QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [0, 2]}
    return Qwen2_5_VLConfig(text_config=_qwen_text(layers), vision_config=vision, **_QWEN_MARKS)


def _qwen3_config(layers: int) -> Qwen3VLConfig:
    """DeepStack behind the first three decoder layers, so that drops fall among them; heads wider than D / H."""
    vision = {**_QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1, 2]}
    return Qwen3VLConfig(text_config=_qwen_text(layers, head_dim=12), vision_config=vision, **_QWEN_MARKS)


def _moe_config(layers: int) -> Qwen3VLMoeConfig:
    """The same, with two of five experts for each token."""
    vision = {**_QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1, 2]}
    experts = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return Qwen3VLMoeConfig(text_config=_qwen_text(layers, head_dim=12, **experts), vision_config=vision, **_QWEN_MARKS)


def _onevision_config(layers: int) -> LlavaOnevisionConfig:
    """Crops of 7 x 7 patches, an odd number as in the real tower, and at most twice as many tokens for all of them."""
    text = {name: value for name, value in _qwen_text(layers).items() if name != "rope_parameters"}
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=8,
        vision_use_head=False,
    )
    return LlavaOnevisionConfig(
        text_config=Qwen2Config(**text),
        vision_config=vision,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[56, 56], [56, 112], [112, 56], [112, 112]],
        vision_aspect_ratio="anyres_max_2",
    )


CUT = {((112, 112), 5): 16 + 8 * 9, ((56, 112), 3): 16 + 4 * 9, ((112, 84), 5): 16 + 8 * 7}
"""Tokens of images by (height, width) and crops.

Worked by hand: a base crop of 16, then a grid of 4 x 4 tokens a crop, unpadded, and a newline for each row.
"""


@dataclass(frozen=True)
class Seen:
    """One image or video of a prompt: its placeholders, and the inputs that belong to it."""

    token: int
    count: int
    inputs: dict[str, Any]


def look(family: str, kind: str, number: int, dtype: torch.dtype = torch.float64) -> Seen:
    """A random image or video; `number` is its seed and decides its size where sizes may differ."""
    noise = torch.Generator().manual_seed(number)

    def pixels(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise, dtype=torch.float64).to(dtype)

    if family == OWN:
        return Seen(IMAGE_TOKEN_INDEX, 1, {"images": pixels(1, 3, 56, 56)})
    if family == PEBBLES:
        count = 5 + 4 * (number % 3)
        return Seen(IMAGE, count, {"pebbles": [pixels(count, 5)]})
    if family == "llava" or (family == "video_llava" and kind == "image"):
        return Seen(IMAGE, 16, {"pixel_values": pixels(1, 3, 56, 56)})
    if family == "video_llava":
        return Seen(VIDEO, 17 * FRAMES, {"pixel_values_videos": pixels(1, FRAMES, 3, 56, 56)})
    if family in ("llava_next", OWN_NEXT):
        (size, crops), count = list(CUT.items())[number % 3]
        if family == OWN_NEXT:  # whose sizes are (width, height)
            return Seen(IMAGE_TOKEN_INDEX, 1, {"images": [pixels(crops, 3, 56, 56)], "image_sizes": [size[::-1]]})
        padded = torch.cat([pixels(1, crops, 3, 56, 56), torch.zeros(1, 5 - crops, 3, 56, 56, dtype=dtype)], dim=1)
        return Seen(IMAGE, count, {"pixel_values": padded, "image_sizes": torch.tensor([size])})
    if family == "llava_onevision" and kind == "video":
        return Seen(VIDEO, 16 * FRAMES + 1, {"pixel_values_videos": pixels(1, FRAMES, 3, 56, 56)})
    if family == "llava_onevision":
        # Worked by hand: 7 x 7 tokens of the whole, the grid's map of 7 x 7 a crop, and a newline for each row; the map
        # of 14 x 14 is twice as large as two crops, so it is shrunk by sqrt(2) to 9 x 9.
        size, crops, count = [((112, 112), 5, 49 + 9 * 10), ((56, 112), 3, 49 + 7 * 15), ((56, 56), 2, 49 + 7 * 8)][
            number % 3
        ]
        padded = torch.cat([pixels(1, crops, 3, 56, 56), torch.zeros(1, 5 - crops, 3, 56, 56, dtype=dtype)], dim=1)
        sizes = {"image_sizes": torch.tensor([size]), "batch_num_images": torch.tensor([1])}
        return Seen(IMAGE, count, {"pixel_values": padded, **sizes})
    height, width = [(8, 8), (8, 12), (12, 8)][number % 3]
    time, token = (2, VIDEO) if kind == "video" else (1, IMAGE)
    names = ("pixel_values_videos", "video_grid_thw") if kind == "video" else ("pixel_values", "image_grid_thw")
    patches = pixels(time * height * width, 3 * 2 * 4 * 4)
    return Seen(
        token,
        time * height * width // 4,
        dict(zip(names, (patches, torch.tensor([[time, height, width]])), strict=True)),
    )


def prompt(family: str, seed: int, kinds: tuple[str, ...] = ("image",), dtype: torch.dtype = torch.float64) -> Any:
    """Ids of one prompt with its placeholders, and what it shows."""
    draw = random.Random(seed)
    seen = [look(family, kind, seed * 7 + place, dtype) for place, kind in enumerate(kinds)]
    ids = [1, *(draw.randrange(3, 60) for _ in range(draw.randint(1, 4)))]
    for item in seen:
        ids += _of_qwen(item, draw, timed=family != "qwen2_5_vl") if family in QWEN else [item.token] * item.count
        ids += [draw.randrange(3, 60) for _ in range(draw.randint(1, 3))]
    return ids + [draw.randrange(3, 60) for _ in range(draw.randint(2, 5))], seen


def _of_qwen(item: Seen, draw: random.Random, timed: bool) -> list[int]:
    """An image or video between its marks; `timed`, frame by frame with two words in front of each."""
    frames = 2 if timed and item.token == VIDEO else 1
    of_frame = [VISION_START, *[item.token] * (item.count // frames), VISION_END]
    if not timed or item.token != VIDEO:
        return of_frame
    return [token for _ in range(frames) for token in (draw.randrange(3, 60), draw.randrange(3, 60), *of_frame)]


def batch(prompts: list[tuple[list[int], list[Seen]]], side: str = "left", answers: bool = False) -> dict[str, Any]:
    """What a processor makes of several prompts; with `answers`, the last two tokens of each are labelled."""
    longest = max(len(ids) for ids, _ in prompts)

    def pad(values: list[int], fill: int) -> list[int]:
        padding = [fill] * (longest - len(values))
        return values + padding if side == "right" else padding + values

    made: dict[str, Any] = {
        "input_ids": torch.tensor([pad(ids, PAD) for ids, _ in prompts]),
        "attention_mask": torch.tensor([pad([1] * len(ids), 0) for ids, _ in prompts]),
    }
    if answers:
        made["labels"] = torch.tensor([pad([-100] * (len(ids) - 2) + ids[-2:], -100) for ids, _ in prompts])
    shown = list(itertools.chain.from_iterable(seen for _, seen in prompts))
    for name in dict.fromkeys(name for item in shown for name in item.inputs):
        values = [item.inputs[name] for item in shown if name in item.inputs]
        made[name] = torch.cat(values) if isinstance(values[0], Tensor) else [heap for held in values for heap in held]
    if any("grid" in name for name in made):
        made["mm_token_type_ids"] = (made["input_ids"] == IMAGE).int() + 2 * (made["input_ids"] == VIDEO).int()
    return made
