"""What a training step computes, in FLOPs of `llava.cost.flops`, with the tokens that each row really has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from llava.compression.layout import TokenLayout
from llava.cost.flops import training_passes
from llava.cost.shapes import DecoderShape, VisionShape
from llava.cost.towers import tower_shape


@dataclass(frozen=True)
class Workload:
    """What one training step computes.

    Attributes:
        decoder, vision: dimensions; without a tower there is no `vision`.
        drops: visual tokens are dropped after so many layers.
        trains_language_model: whether its own weights get gradients; adapters beside them do not count.
        trains_vision_tower: whether the tower's do.
        activation_checkpointing: whether activations are computed again in the backward pass.
        projector: weights of the linear maps of the projectors.
        group: patches for which a projector inside the tower runs once; 0 where it runs once for each visual token.
        before_drop: whether, of the decoder's layers, only those before the first drop are computed again.
    """

    decoder: DecoderShape
    vision: VisionShape | None
    drops: tuple[int, ...] = ()
    trains_language_model: bool = True
    trains_vision_tower: bool = False
    activation_checkpointing: bool = False
    projector: int = 0
    group: int = 0
    before_drop: bool = False

    @classmethod
    def of(cls, model: Any, activation_checkpointing: bool, layers: str = "all") -> Workload:
        """Read it from a model of any family (wrapped by peft or not) whose trained weights are chosen.

        Args:
            model: the model.
            activation_checkpointing: whether activations are computed again in the backward pass.
            layers: of which of the decoder's layers: `all`, or `before_drop`.
        """
        towers, projectors = model.vision_towers(), model.projectors()
        of_projectors = {id(weight): weight for projector in projectors for weight in projector.parameters()}
        of_towers = {id(weight): weight for tower in towers for weight in tower.parameters()}
        inside = bool(of_projectors.keys() & of_towers.keys())
        t2v = model.compression.t2v
        return cls(
            decoder=DecoderShape.of(model.decoder.config),
            vision=_vision(model, towers[0]) if towers else None,
            drops=() if t2v is None else tuple(t2v.layers),
            trains_language_model=any(
                weight.requires_grad and name.endswith("weight") and "lora_" not in name
                for name, weight in model.decoder.layers.named_parameters()
            ),
            trains_vision_tower=any(
                weight.requires_grad for key, weight in of_towers.items() if key not in of_projectors
            ),
            activation_checkpointing=activation_checkpointing,
            projector=sum(_size(weight) for weight in of_projectors.values()),
            group=towers[0].config.spatial_merge_size ** 2 if inside else 0,
            before_drop=activation_checkpointing and layers == "before_drop",
        )

    @property
    def passes(self) -> int:
        """Forward-sized passes through a decoder layer."""
        return training_passes(self.trains_language_model, self.activation_checkpointing)

    @property
    def stages(self) -> tuple[int, ...]:
        """Number of layers of each stage."""
        return tuple(last - first for first, last in pairwise((0, *self.drops, self.decoder.layers)))

    def flops(
        self, layouts: Sequence[TokenLayout], images: int, tower_tokens: Sequence[int | None] | None = None
    ) -> tuple[int, int]:
        """FLOPs of a step on a batch: all of them, and those among them that compute activations again.

        Args:
            layouts: layouts of the model's output, one for each stage.
            images: images (or crops, or frames) that the tower saw.
            tower_tokens: tokens that it computed for each of them, None among them for as many as of every image; None
                where all have as many.
        """
        of_stages = [
            sum(layers * self.decoder.layer_flops(length) for length in layout.lengths)
            for layers, layout in zip(self.stages, layouts, strict=True)
        ]
        forward, again = sum(of_stages), of_stages[0] if self.before_drop else sum(of_stages)
        # Head and projector grow with the number of tokens, so the batch is counted like one long row.
        first, last = sum(layouts[0].visual), sum(layouts[-1].visual)
        head = 3 * 2 * self.decoder.width * self.decoder.vocab * (sum(layouts[0].lengths) - first + last)
        seen = [None] * images if tower_tokens is None else tower_tokens
        tower = 0 if self.vision is None else sum(map(self.vision.flops, seen))
        inside = sum(count for count in tower_tokens or () if count)
        projected = inside // self.group if self.group and inside else first
        outside = head + 3 * 2 * self.projector * projected + tower
        trained = tower if self.trains_vision_tower else 0
        recomputed = (again + trained) * self.activation_checkpointing
        return (2 + self.trains_language_model) * forward + 2 * trained + outside + recomputed, recomputed

    def describe(self, peak_flops: float | None) -> str:
        """What the FLOPs and the utilisation rest on, in words."""
        tower = training_passes(True, self.activation_checkpointing) if self.trains_vision_tower else 1
        counted = (
            "A multiply-add counts as two, causal attention once (half of the square). Passes of a step: "
            f"{self.passes} through a decoder layer{', one less behind the first drop' if self.before_drop else ''}, 3 "
            f"through head and projector, {tower} through the vision tower. "
            "The head counts at every position that is left, though it runs at supervised ones only. Padding, "
            "scoring, attention over time in a video tower, adapters and the optimizer are not counted."
        )
        if peak_flops is None:
            return f"{counted} The peak of this device is not known, so there is no MFU; give it with --peak_tflops."
        return (
            f"{counted} Utilisation is of {peak_flops / 1e12:g} TFLOP/s, one device's dense peak: MFU leaves out what "
            "is computed again for checkpointing, HFU counts it."
        )


def _vision(model: Any, tower: Any) -> VisionShape:
    """Dimensions of a tower as far as it runs: LLaVA's tower knows its layer itself, elsewhere the model does."""
    select: Any = getattr(tower, "select_layer", None)
    if select is None:
        select = getattr(model.config, "vision_feature_layer", -1)
    return tower_shape(tower.config, select if isinstance(select, int) else max(select))


def _size(weight: Any) -> int:
    """Numbers of a linear map, whole where ZeRO-3 has it in pieces; of a bias none."""
    shape = getattr(weight, "ds_shape", weight.shape)
    return math.prod(shape) if len(shape) > 1 else 0
