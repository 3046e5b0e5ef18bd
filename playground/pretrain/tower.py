"""A tiny CLIP vision tower, pretrained on images with labels for the whole image and for every patch.

LLaVA reads `hidden_states[-2]`, so the labels are asked of that state as well as of the last one.  The CLS token is
asked which colour stands in which place.  That makes it look at the digits, and its attention mark them, without it
holding what they are: a compression that keeps CLS but loses a digit's patches must not find the answer in CLS.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel

from playground.world.language import COLOURS, NUMBERS, PLACES
from playground.world.photos import Split
from playground.world.scene import GRID, IMAGE_SIZE, PATCH, Renderer, draw_scene

logger = logging.getLogger(__name__)

#: CLIP's own image statistics, so that the shipped preprocessor is CLIP's except for the size.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

#: The state that LLaVA selects and the weight of its loss; the last state gets the rest.
SELECTED_STATE = -2
SELECTED_WEIGHT = 0.8
NO_DIGIT_WEIGHT = 0.5
#: Variety of handwriting while pretraining, against 1 in the world.
AUGMENTATION = 2.0


@dataclass
class SceneBatch:
    """Images with their labels: pixels [B, 3, S, S], per patch number and colour [B, N], per place colour [B, 4].

    "No digit" is the last class of each label.
    """

    pixels: Tensor
    number: Tensor
    colour: Tensor
    place_colour: Tensor


class SceneStream(IterableDataset[SceneBatch]):
    """An endless stream of freshly drawn, labelled batches of one split."""

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        self.split: Split = split
        self.batch_size = batch_size
        self.seed = seed

    def __iter__(self) -> Iterator[SceneBatch]:
        rng = np.random.default_rng(self.seed)
        renderer = Renderer(self.split, AUGMENTATION)
        while True:
            yield draw_batch(renderer, self.split, self.batch_size, rng)


def draw_batch(renderer: Renderer, split: Split, size: int, rng: np.random.Generator) -> SceneBatch:
    """`size` new images of a split with their labels."""
    scenes = [draw_scene(split, rng) for _ in range(size)]
    images = torch.from_numpy(np.stack([renderer(scene, rng) for scene in scenes]))
    labels = [scene.patch_labels() for scene in scenes]
    number = torch.from_numpy(np.stack([number for number, _ in labels])).flatten(1)
    colour = torch.from_numpy(np.stack([colour for _, colour in labels])).flatten(1)
    place_colour = torch.full((size, len(PLACES)), len(COLOURS))
    for row, scene in enumerate(scenes):
        for digit in scene.digits:
            place_colour[row, digit.place] = digit.colour
    return SceneBatch(
        pixels=normalise(images),
        number=number.where(number >= 0, torch.tensor(len(NUMBERS))),
        colour=colour.where(colour >= 0, torch.tensor(len(COLOURS))),
        place_colour=place_colour,
    )


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] -> float [B, 3, S, S] as the image processor does."""
    scaled = images.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (IMAGE_MEAN, IMAGE_STD))
    return (scaled - mean) / std


def patch_places() -> Tensor:
    """Index into `PLACES` of every patch in reading order: [N]."""
    half = (torch.arange(GRID) >= GRID // 2).long()
    return (2 * half[:, None] + half[None, :]).flatten()


class Labels(nn.Module):
    """Linear read-outs of one hidden state: number, colour and place of each patch; colour by place from CLS."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.number = nn.Linear(width, len(NUMBERS) + 1)
        self.colour = nn.Linear(width, len(COLOURS) + 1)
        self.place = nn.Linear(width, len(PLACES))
        self.whole = nn.Linear(width, len(PLACES) * (len(COLOURS) + 1))

    def loss(self, state: Tensor, batch: SceneBatch) -> Tensor:
        """Sum of the four cross-entropies for a hidden state [B, 1 + N, D]."""
        patches, rows = state[:, 1:], len(state)
        number = _weighted(self.number(patches), batch.number)
        colour = _weighted(self.colour(patches), batch.colour)
        place = F.cross_entropy(self.place(patches).flatten(0, 1), patch_places().repeat(rows))
        whole = self.whole(state[:, 0]).view(rows * len(PLACES), -1)
        return number + colour + 0.5 * place + F.cross_entropy(whole, batch.place_colour.flatten())


def _weighted(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over patches in which all patches without a digit weigh as `NO_DIGIT_WEIGHT` of those with one."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    empty = labels.flatten() == logits.shape[-1] - 1
    return losses[~empty].mean() + NO_DIGIT_WEIGHT * losses[empty].mean()


def new_tower() -> CLIPVisionModel:
    """An untrained tower: 5 layers, width 96, 12x12 patches and CLS."""
    config = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=96,
    )
    return CLIPVisionModel(config)


def train_tower(steps: int, batch_size: int = 64, peak_lr: float = 2e-3, seed: int = 0) -> CLIPVisionModel:
    """Pretrains a tower on scenes of the training split and returns it in evaluation mode."""
    torch.manual_seed(seed)
    tower = new_tower()
    selected, last = Labels(tower.config.hidden_size), Labels(tower.config.hidden_size)
    parameters = [*tower.parameters(), *selected.parameters(), *last.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=steps, pct_start=0.1)
    loader = DataLoader(SceneStream("train", batch_size, seed), batch_size=None, num_workers=1, prefetch_factor=4)
    begun = time.perf_counter()
    bar = tqdm(zip(range(steps), loader, strict=False), total=steps, desc="vision tower")
    for step, batch in bar:
        output = tower(batch.pixels, output_hidden_states=True)
        loss = SELECTED_WEIGHT * selected.loss(output.hidden_states[SELECTED_STATE], batch)
        loss = loss + (1 - SELECTED_WEIGHT) * last.loss(tower.post_layernorm(output.last_hidden_state), batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 250 == 0:
            logger.info("step %d: %s", step + 1, measure_tower(tower, selected))
    logger.info("tower: %d steps in %.0f s", steps, time.perf_counter() - begun)
    return tower.eval()


@torch.no_grad()
def measure_tower(tower: CLIPVisionModel, labels: Labels, images: int = 256, seed: int = 1) -> dict[str, float]:
    """Accuracy of the read-outs on digit patches of unseen handwriting, and recall of digit patches by CLS attention.

    `recall@k` is the share of digits with at least one patch among the k patches that CLS attends to most in the
    layer that makes the selected state; `patches@k` is the share of digit patches there.
    """
    tower.eval()
    batch = draw_batch(Renderer("test"), "test", images, np.random.default_rng(seed))
    output = tower(batch.pixels, output_hidden_states=True)
    patches = output.hidden_states[SELECTED_STATE][:, 1:]
    digit = batch.number < len(NUMBERS)
    attention = cls_attention(tower, output.hidden_states)
    figures = {
        "number": _accuracy(labels.number(patches), batch.number, digit),
        "colour": _accuracy(labels.colour(patches), batch.colour, digit),
        "empty": _accuracy(labels.number(patches), batch.number, ~digit),
        "place": float((labels.place(patches).argmax(-1) == patch_places()).float().mean()),
    }
    for k in (40, 24, 12):
        figures[f"patches@{k}"], figures[f"digits@{k}"] = _recall(attention, batch.number, k)
    tower.train()
    return {name: round(value, 3) for name, value in figures.items()}


def cls_attention(tower: CLIPVisionModel, hidden_states: tuple[Tensor, ...]) -> Tensor:
    """Attention that CLS pays to each patch in the layer making the selected state, summed over heads: [B, N]."""
    index = len(tower.encoder.layers) + SELECTED_STATE
    layer = tower.encoder.layers[index]
    state = layer.layer_norm1(hidden_states[index])
    heads = layer.self_attn.num_heads
    query = layer.self_attn.q_proj(state[:, :1]).unflatten(-1, (heads, -1)).transpose(1, 2)
    key = layer.self_attn.k_proj(state).unflatten(-1, (heads, -1)).transpose(1, 2)
    weights = (query @ key.transpose(-1, -2) * layer.self_attn.scale).softmax(-1)
    return weights.sum(1)[:, 0, 1:]


def _accuracy(logits: Tensor, labels: Tensor, where: Tensor) -> float:
    return float((logits.argmax(-1) == labels)[where].float().mean())


def _recall(attention: Tensor, number: Tensor, k: int) -> tuple[float, float]:
    """Share of digit patches among the k most attended ones, and share of digits with at least one patch there."""
    chosen = torch.zeros_like(attention, dtype=torch.bool).scatter_(1, attention.topk(k).indices, True)
    digit = number < len(NUMBERS)
    classes = torch.arange(len(NUMBERS))
    present = (number[..., None] == classes).any(1)
    seen = ((number[..., None] == classes) & chosen[..., None]).any(1)
    return float(chosen[digit].float().mean()), float(seen[present].float().mean())
