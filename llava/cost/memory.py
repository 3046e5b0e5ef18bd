"""Bytes of one device (and of its host) that a recipe needs under each ZeRO stage, from formulas alone.

Model states follow "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (Rajbhandari et al. 2020,
section 3.1 and figure 1). Mixed-precision Adam keeps 2 + 2 + 12 bytes for a trained weight: 16-bit weight, 16-bit
gradient, and a float32 copy with two moments. On N devices stage 1 divides the 12, stage 2 also the gradient, stage 3
also the weights, frozen ones included. A frozen weight is 2 bytes, or fewer where it is quantised, and nothing else.

Stage 0 is plain data parallelism by torchrun, without DeepSpeed: trained weights are float32 under autocast, which
makes 4 + 4 + 8 bytes.

All figures are upper bounds of a step: gradients grow while activations shrink, and both are counted in full.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llava.compression.config import CompressionConfig
from llava.cost.activations import (
    FLOAT32,
    Adapters,
    DeviceBatch,
    Precision,
    head_peak,
    in_flight,
    layer_bytes,
    outside_bytes,
    stored_layers,
    tower_pass,
    trained_tower,
)
from llava.cost.dimensions import linear_maps
from llava.cost.flops import visual_tokens_per_layer
from llava.cost.recipes import Recipe
from llava.cost.shapes import ModelShape

GIB = 2**30
HALF = 2
ADAM = 12  # float32 copy, first and second moment
# Context, kernels' workspaces, collective buffers and fragmentation: an assumption, the only one in bytes here.
RESERVE = 2 * GIB
# `stage3_max_live_parameters` and `sub_group_size` of scripts/zero3.json.
MAX_LIVE, SUB_GROUP = 10**9, 10**9
# Pinned memory comes in powers of two; DeepSpeed's own estimate allows this factor for it.
PINNED = 1.5


@dataclass(frozen=True)
class ZeroStage:
    """A way to spread the model states.

    Attributes:
        name: name that the report shows.
        zero: stage of ZeRO, 0 for plain data parallelism.
        offload: whether weights, gradients and optimizer live on the host.
        config: DeepSpeed configuration that asks for it, where the project has one.
    """

    name: str
    zero: int
    offload: bool = False
    config: str | None = None


STAGES = (
    ZeroStage("0", 0),
    ZeroStage("1", 1),
    ZeroStage("2", 2, config="./scripts/zero2.json"),
    ZeroStage("3", 3, config="./scripts/zero3.json"),
    ZeroStage("3+offload", 3, offload=True, config="./scripts/zero3_offload.json"),
)


@dataclass(frozen=True)
class RecipeSetting:
    """A recipe on certain devices.

    Attributes:
        recipe, shape, compression: what is trained.
        devices: number of devices of the whole run.
        per_host: number of devices of one machine.
        batch_size: rows of one device.
    """

    recipe: Recipe
    shape: ModelShape
    compression: CompressionConfig
    devices: int = 8
    per_host: int = 8
    batch_size: int = 16

    def with_batch(self, batch_size: int) -> RecipeSetting:
        """The same with another batch."""
        return replace(self, batch_size=batch_size)

    @property
    def trained(self) -> int:
        """Weights that get a gradient."""
        projector = self.shape.projector + self.shape.tower * self.recipe.trains_tower
        if self.recipe.trained == "lora":
            return projector + self.shape.adapter(self.recipe.lora_rank)
        return projector + (self.shape.language if self.recipe.trained == "all" else 0)

    @property
    def frozen_bytes(self) -> float:
        """Stored bytes of the frozen weights of the language model."""
        if self.recipe.trained == "all":
            return 0
        if self.recipe.bits == 16:
            return HALF * self.shape.language
        quantised = self.shape.quantised_layers(self.recipe.bits, self.recipe.double_quant)
        return quantised + HALF * (self.shape.language - self.shape.layer_linears)

    def longest_batch(self) -> DeviceBatch:
        """The largest batch that the data can make: every row as long as the longest, all its text supervised."""
        return self._batch(self.recipe.longest_text, self.recipe.longest_has_image)

    def typical_batch(self) -> DeviceBatch:
        """A batch of rows with one image and the mean text, all of it supervised."""
        return self._batch(self.recipe.text_tokens, True)

    def _batch(self, text: int, has_image: bool) -> DeviceBatch:
        decoder, vision = self.shape.decoder, self.shape.vision
        visual = visual_tokens_per_layer(self.compression, decoder.layers, vision, images=int(has_image))
        return DeviceBatch(self.batch_size, text, visual, supervised=text)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one device; see the module's docstring for the states and `llava.cost.activations` for the rest.

    Attributes:
        stage: name of the stage.
        weights: bytes of language model, projector and adapters.
        tower: bytes of the frozen vision tower.
        gradients, optimizer: bytes of the gradients and the optimizer states of what is trained.
        buffers: copies and buckets that the engine keeps; see `_buffers`.
        activations: kept by a step that computes layers again in the backward pass (checkpointing).
        activations_full: kept by a step without checkpointing.
        layer: one layer's activations, alive while it is computed again.
        moving: gradients of activations while one layer is gone through backwards.
        logits: final norm and loss at their peak, which comes before any layer's.
        tower_pass: the tower at its peak, before any of the others exist.
        update: the optimizer step's own, after the others are gone.
        host: RAM of one machine.
    """

    stage: str
    weights: float
    tower: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float
    activations_full: float
    layer: float
    moving: float
    logits: float
    tower_pass: float
    update: float
    host: float
    reserve: float = RESERVE

    @property
    def states(self) -> float:
        """Bytes held for the whole step: weights, tower, gradients, optimizer, buffers and reserve."""
        return self.weights + self.tower + self.gradients + self.optimizer + self.buffers + self.reserve

    def total(self, checkpointing: bool) -> float:
        """Peak bytes of the device: the states, and the largest of the moments that never meet."""
        if checkpointing:
            backward = self.activations + max(self.layer + self.moving, self.logits)
        else:
            backward = self.activations_full + max(self.moving, self.logits)
        return self.states + max(backward, self.tower_pass, self.update)


def why_not(recipe: Recipe, stage: ZeroStage) -> str | None:
    """Why a recipe cannot run under a stage; None where it can."""
    if recipe.bits < 16 and stage.zero == 3:
        return f"bitsandbytes' {recipe.bits}-bit weights cannot be divided among devices, which ZeRO-3 does."
    return None


def peak_memory(setting: RecipeSetting, stage: ZeroStage, batch: DeviceBatch | None = None) -> MemoryEstimate:
    """What one device and its host need.

    Args:
        setting: recipe, model and devices.
        stage: how the states are spread.
        batch: what a device computes at once; by default the longest that the data can make.
    """
    batch = batch or setting.longest_batch()
    divided = {zero: setting.devices if stage.zero >= zero else 1 for zero in (1, 2, 3)}
    trained, plain = setting.trained, stage.zero == 0
    on_device = 0 if stage.offload else 1
    trained_bytes = FLOAT32 if plain else HALF
    return MemoryEstimate(
        stage=stage.name,
        weights=on_device * (trained_bytes * trained + setting.frozen_bytes) / divided[3],
        tower=on_device * HALF * setting.shape.tower * (not setting.recipe.trains_tower) / divided[3],
        gradients=on_device * trained_bytes * trained / divided[2],
        optimizer=on_device * (8 if plain else ADAM) * trained / divided[1],
        buffers=_buffers(setting, stage),
        update=0 if plain or stage.offload else FLOAT32 * _update_weights(setting, stage),
        host=_host(setting, stage),
        **_step(setting, stage, batch),
    )


def _step(setting: RecipeSetting, stage: ZeroStage, batch: DeviceBatch) -> dict[str, float]:
    """Bytes that a forward and backward pass adds, by the names of `MemoryEstimate`."""
    recipe, decoder = setting.recipe, setting.shape.decoder
    precision = Precision(stream=FLOAT32 if stage.zero == 0 and recipe.trained == "all" else HALF)
    adapters = Adapters(recipe.lora_rank, recipe.lora_dropout)
    per_token = layer_bytes(decoder, recipe.trained, adapters, precision)
    outside = outside_bytes(setting.shape, batch, precision)
    longest = max(batch.tokens)

    def stored(checkpointing: bool) -> int:
        tower = trained_tower(setting.shape, batch.rows, HALF, checkpointing) if recipe.trains_tower else 0
        again = decoder.layers if checkpointing else 0
        return outside + tower + stored_layers(decoder, batch.tokens, per_token, again, precision.stream)

    return {
        "activations": stored(True),
        "activations_full": stored(False),
        "layer": longest * per_token,
        "moving": in_flight(decoder, longest, recipe.trained, precision),
        "logits": head_peak(decoder, batch, recipe.trained, precision),
        "tower_pass": tower_pass(setting.shape, batch.rows, HALF),
    }


def _buffers(setting: RecipeSetting, stage: ZeroStage) -> float:
    """Copies that the engine keeps.

    - stage 0: autocast's 16-bit copies of the trained weights in use, 2 bytes, and on several devices the
      gradient buckets of DistributedDataParallel, 4 bytes a trained weight (torch, `gradient_as_bucket_view`)
    - stages 1 and 2: two 16-bit buckets (`overlap_comm`) of `reduce_bucket_size`, which transformers sets to D x D
    - stage 3: gathered 16-bit weights, at most `stage3_max_live_parameters` (or one layer, whose experts are gathered
      together), and the two buckets
    - quantised weights: one map at a time, made 16-bit for its product
    """
    width, trained = setting.shape.decoder.width, setting.trained
    largest = max(inputs * outputs for inputs, outputs in linear_maps(setting.shape.decoder))
    unpacked = HALF * largest if setting.recipe.bits < 16 else 0
    if stage.zero == 0:
        buckets = FLOAT32 * trained if setting.devices > 1 else 0
        return unpacked + HALF * trained + buckets
    gathered = 0
    if stage.offload or (stage.zero == 3 and setting.devices > 1):
        gathered = HALF * min(max(MAX_LIVE, setting.shape.decoder.layer_parameters), setting.shape.total)
    return unpacked + gathered + 2 * HALF * width * width


def _update_weights(setting: RecipeSetting, stage: ZeroStage) -> float:
    """Weights whose gradient DeepSpeed makes float32 at once: the device's share, in stage 3 a sub-group of it."""
    own = setting.trained / setting.devices
    return min(own, SUB_GROUP) if stage.zero == 3 else own


def _host(setting: RecipeSetting, stage: ZeroStage) -> float:
    """RAM of one machine.

    Offloaded states are 18 bytes a trained weight (2 + 4 + 12, gradients being float32 on the host) and 2 a frozen
    one, by the share of the run's devices that the machine has, times DeepSpeed's allowance for pinned memory
    (`estimate_zero3_model_states_mem_needs`). Otherwise what counts is loading: every process reads all weights
    before they go to its device, in stage 3 only the first one does.
    """
    if stage.offload:
        states = 18 * setting.trained + setting.frozen_bytes + HALF * setting.shape.tower
        return PINNED * states * setting.per_host / setting.devices
    readers = 1 if stage.zero == 3 else setting.per_host
    return readers * (FLOAT32 if stage.zero == 0 else HALF) * setting.shape.total


def checkpoint_bytes(setting: RecipeSetting) -> float:
    """Disk space of one checkpoint and the final weights.

    A checkpoint holds the 16-bit weights that the recipe saves and the optimizer's 12 bytes a trained weight; it is
    kept until its successor is whole, so two must fit.
    """
    saved = setting.shape.total if setting.recipe.trained == "all" else setting.trained
    return 2 * (HALF * saved + ADAM * setting.trained) + HALF * saved
