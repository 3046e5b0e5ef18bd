"""Models and batches small enough to recompute by hand: random weights, no downloads."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from llava.compression import CompressionConfig, QueryRole
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model import LlavaConfig, LlavaLlamaForCausalLM

PATCHES = 16
VOCABULARY = 48
BOS = 1

DUET = {"v2v": {"dominant": 7, "contextual": 3, "cluster_width": 2}, "t2v": {"layers": [2, 4], "keep": [0.5, 0.2]}}
T2V_ONLY = {"t2v": {"layers": [2, 4], "keep": [0.5, 0.25], "queries": "text"}}
TO_ZERO = {"v2v": {"dominant": 9, "contextual": 1}, "t2v": {"layers": [3, 5], "keep": [0.5, 0.0], "queries": "salient"}}
V2V_ONLY = {"v2v": {"dominant": 6, "contextual": 2, "cluster_width": 2}}
ORIGINAL = {"t2v": {"layers": [1, 3], "keep": [0.6, 0.3], "positions": "original"}}
BEFORE = {"t2v": {"layers": [1, 2, 4], "keep": [0.7, 0.4, 0.2], "positions": "original", "scored_by": "before"}}


def tower_config(layers: int = 5, width: int = 16, heads: int = 2) -> CLIPVisionConfig:
    """A CLIP tower on 56 pixels in patches of 14: 16 patches."""
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=56,
        patch_size=14,
        projection_dim=width,
    )


def tiny_llava(
    *,
    layers: int = 6,
    width: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    tower_layers: int = 5,
    compression: dict[str, Any] | str | None = None,
    dtype: torch.dtype = torch.float64,
    attention: str = "sdpa",
    seed: int = 0,
    **config: Any,
) -> LlavaLlamaForCausalLM:
    """A LLaVA in eval mode with weights large enough that attention is far from uniform."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
        "bos_token_id": BOS,
        "eos_token_id": None,
        "pad_token_id": 0,
        "mm_vision_tower": "tiny-tower",
        "mm_vision_config": tower_config(tower_layers).to_dict(),
        "mm_hidden_size": 16,
        "mm_projector_type": "mlp2x_gelu",
        "attn_implementation": attention,
    }
    model = LlavaLlamaForCausalLM(LlavaConfig(**settings | config))
    randomise(model, seed)
    model.to(dtype)
    if model.get_vision_tower() is not None:
        model.get_vision_tower().is_loaded = True
    model.set_compression(CompressionConfig.resolve(compression))
    return model.eval()


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights of unit gain, so that every layer matters and no attention is uniform."""
    noise = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        values = torch.randn(weight.shape, generator=noise, dtype=torch.float64)
        if weight.dim() > 1 and "embed" not in name:
            values = values * 1.5 / weight[0].numel() ** 0.5
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.1 * values
        elif name.endswith("bias"):
            values = 0.1 * values
        weight.data.copy_(values)


def stock_llama(model: LlavaLlamaForCausalLM, attention: str = "sdpa") -> LlamaForCausalLM:
    """transformers' own Llama with the language weights of a LLaVA."""
    known = LlamaConfig().to_dict()
    config = {name: value for name, value in model.config.to_dict().items() if name in known and name != "model_type"}
    stock = LlamaForCausalLM(LlamaConfig(**config, attn_implementation=attention)).to(model.dtype)
    weights = {name: value for name, value in model.state_dict().items() if "vision_tower" not in name}
    stock.load_state_dict({name: value for name, value in weights.items() if "mm_projector" not in name})
    return stock.eval()


def stock_tower(model: LlavaLlamaForCausalLM) -> CLIPVisionModel:
    """transformers' own CLIP tower with the tower weights of a LLaVA, attention maps materialised."""
    tower = model.get_vision_tower()
    config = CLIPVisionConfig(**tower.config.to_dict() | {"attn_implementation": "eager"})
    stock = CLIPVisionModel(config).to(tower.dtype)
    stock.load_state_dict(tower.model.state_dict())
    return stock.eval()


def pixels(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random images [count, 3, 56, 56]."""
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@dataclass(frozen=True)
class Row:
    """One tokenised sample: ids, voting roles and labels of equal length."""

    ids: list[int]
    roles: list[int]
    labels: list[int]

    @property
    def images(self) -> int:
        """How many images it needs."""
        return self.ids.count(IMAGE_TOKEN_INDEX)

    def then(self, *ids: int) -> Row:
        """The row with more text behind it that may not vote."""
        more = list(ids)
        return Row(self.ids + more, self.roles + [0] * len(more), self.labels + [IGNORE_INDEX] * len(more))


def chat(seed: int, images: tuple[int, ...] = (1,), answered: bool = True) -> Row:
    """A dialogue with `images[i]` images in turn i; without the last answer if not `answered`."""
    draw = random.Random(seed)
    instruction, salient, last = int(QueryRole.INSTRUCTION), int(QueryRole.SALIENT), int(QueryRole.LAST)
    ids, roles, labels = [BOS], [0], [IGNORE_INDEX]

    def say(words: int, role: int = 0, target: bool = False) -> None:
        for _ in range(words):
            token = draw.randrange(3, VOCABULARY)
            seen = IMAGE_TOKEN_INDEX in ids
            flags = role * seen and role | (salient if draw.random() < 0.4 else 0)
            ids.append(token)
            roles.append(flags)
            labels.append(token if target else IGNORE_INDEX)

    say(draw.randint(1, 4))
    for turn, count in enumerate(images):
        say(draw.randint(0, 2), instruction)
        for _ in range(count):
            ids.append(IMAGE_TOKEN_INDEX)
            roles.append(instruction)
            labels.append(IGNORE_INDEX)
            say(draw.randint(0, 1), instruction)
        say(draw.randint(2, 5), instruction)
        say(1, instruction)
        roles[-1] = (instruction | last) if IMAGE_TOKEN_INDEX in ids else 0
        if answered or turn < len(images) - 1:
            say(draw.randint(2, 4), target=True)
    return Row(ids, roles, labels)


def collate(rows: list[Row], side: str = "right", labels: bool = False) -> dict[str, Tensor]:
    """A padded batch as the model takes it, without images."""
    longest = max(len(row.ids) for row in rows)

    def pad(values: list[int], fill: int) -> list[int]:
        padding = [fill] * (longest - len(values))
        return values + padding if side == "right" else padding + values

    batch = {
        "input_ids": torch.tensor([pad(row.ids, 0) for row in rows]),
        "attention_mask": torch.tensor([pad([1] * len(row.ids), 0) for row in rows]),
        "query_mask": torch.tensor([pad(row.roles, 0) for row in rows]),
    }
    if labels:
        batch["labels"] = torch.tensor([pad(row.labels, IGNORE_INDEX) for row in rows])
    return batch


def images_of(rows: list[Row], images: Tensor) -> list[Tensor]:
    """The images of each row, given those of the batch in reading order."""
    return list(images.split([row.images for row in rows]))


def run_spliced(model: LlavaLlamaForCausalLM, batch: dict[str, Tensor], images: Any, **kwargs: Any) -> Any:
    """The model on a batch that was embedded and spliced first: logits at each token that is left, visual ones too."""
    options = {"compression": kwargs["compression"]} if "compression" in kwargs else {}
    embeddings, layout = model.prepare_multimodal_inputs(**batch, images=images, **options)
    return model(inputs_embeds=embeddings, layout=layout, labels=batch.get("labels"), **kwargs)


def columns_of_stock(logits: Tensor, ids: Tensor, placeholder: int) -> Tensor:
    """Logits [1, L, V] of transformers' LLaVA at the columns of a prompt with one mark an image.

    Of each image the last placeholder stays, which says what follows the image. Images must not touch.
    """
    is_visual = ids[0] == placeholder
    followed = torch.cat([is_visual[1:], is_visual.new_zeros(1)])
    return logits[:, ~(is_visual & followed)]
