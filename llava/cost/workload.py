"""What a training step computes, in FLOPs of `llava.cost.flops`, with the tokens that each row really has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from llava.compression.layout import TokenLayout
from llava.cost.flops import training_flops, training_passes
from llava.cost.shapes import CLIP_L_336, DecoderShape, VisionShape


@dataclass(frozen=True)
class Workload:
    """What one training step computes.

    Attributes:
        decoder, vision: dimensions; without a tower there is no `vision`.
        drops: visual tokens are dropped after so many layers.
        trains_language_model: whether its own weights get gradients; adapters beside them do not count.
        trains_vision_tower: whether the tower's do.
        activation_checkpointing: whether activations are computed again in the backward pass.
    """

    decoder: DecoderShape
    vision: VisionShape | None
    drops: tuple[int, ...] = ()
    trains_language_model: bool = True
    trains_vision_tower: bool = False
    activation_checkpointing: bool = False

    @classmethod
    def of(cls, model: Any, activation_checkpointing: bool) -> Workload:
        """Read it from a LLaVA (wrapped by peft or not) whose trained weights are chosen."""
        tower = model.get_vision_tower()
        t2v = model.compression.t2v
        layers = model.get_model().layers.named_parameters()
        return cls(
            decoder=DecoderShape.of(model.config),
            vision=None if tower is None else VisionShape.of(tower.config, tower.select_layer),
            drops=() if t2v is None else tuple(t2v.layers),
            trains_language_model=any(
                weight.requires_grad and name.endswith("weight") and "lora_" not in name for name, weight in layers
            ),
            trains_vision_tower=tower is not None and any(weight.requires_grad for weight in tower.parameters()),
            activation_checkpointing=activation_checkpointing,
        )

    @property
    def passes(self) -> int:
        """Forward-sized passes through a decoder layer."""
        return training_passes(self.trains_language_model, self.activation_checkpointing)

    @property
    def stages(self) -> tuple[int, ...]:
        """Number of layers of each stage."""
        return tuple(last - first for first, last in pairwise((0, *self.drops, self.decoder.layers)))

    def flops(self, layouts: Sequence[TokenLayout], images: int) -> tuple[int, int]:
        """FLOPs of a step on a batch: all of them, and those among them that compute activations again."""
        forward = sum(
            layers * self.decoder.layer_flops(length)
            for layers, layout in zip(self.stages, layouts, strict=True)
            for length in layout.lengths
        )
        # Head and projector grow with the number of tokens, so the batch is counted like one long row.
        first, last = sum(layouts[0].visual), sum(layouts[-1].visual)
        text = sum(layouts[0].lengths) - first
        vision = self.vision or CLIP_L_336
        outside = training_flops((first, last), text, self.decoder, vision, images, passes=0)
        tower = images * vision.flops() if self.trains_vision_tower else 0
        recomputed = (forward + tower) * self.activation_checkpointing
        return (2 + self.trains_language_model) * forward + 2 * tower + outside + recomputed, recomputed

    def describe(self, peak_flops: float | None) -> str:
        """What the FLOPs and the utilisation rest on, in words."""
        tower = training_passes(True, self.activation_checkpointing) if self.trains_vision_tower else 1
        counted = (
            "A multiply-add counts as two, causal attention once (half of the square). Passes of a step: "
            f"{self.passes} through a decoder layer, 3 through head and projector, {tower} through the vision tower. "
            "The head counts at every position that is left, though it runs at supervised ones only. Padding, "
            "scoring, adapters and the optimizer are not counted."
        )
        if peak_flops is None:
            return f"{counted} The peak of this device is not known, so there is no MFU; give it with --peak_tflops."
        return (
            f"{counted} Utilisation is of {peak_flops / 1e12:g} TFLOP/s, one device's dense peak: MFU leaves out what "
            "is computed again for checkpointing, HFU counts it."
        )
