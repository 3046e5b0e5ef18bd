"""Which recipe fits on which devices, and the command that is worth trying first."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from llava.compression.config import CompressionConfig
from llava.cost.memory import STAGES, MemoryEstimate, RecipeSetting, ZeroStage, peak_memory, why_not
from llava.cost.recipes import RECIPES, Recipe
from llava.cost.shapes import ModelShape

BASE_MODELS = {"llava-1.5-7b": "lmsys/vicuna-7b-v1.5", "llava-1.5-13b": "lmsys/vicuna-13b-v1.5"}
DEFAULT_MODEL, DEFAULT_COMPRESSION = "llava-1.5-7b", "duet-192"


@dataclass(frozen=True)
class Room:
    """What a recipe has to fit into; sizes in bytes, None where they are not known.

    Attributes:
        devices: number of devices of the run.
        per_host: number of devices of one machine.
        device: memory of the smallest device.
        host: RAM of one machine.
        local: accelerators that torch sees on this machine.
    """

    devices: int
    per_host: int
    device: float | None
    host: float | None
    local: int


@dataclass(frozen=True)
class FitRequest:
    """What is to be trained: model and compression, by name as the scripts take them."""

    shape: ModelShape
    compression: CompressionConfig
    compression_name: str = DEFAULT_COMPRESSION

    def setting(self, recipe: Recipe, room: Room) -> RecipeSetting:
        """A recipe of this model on these devices."""
        batch = batch_sizes(recipe, room.devices)[0]
        return RecipeSetting(recipe, self.shape, self.compression, room.devices, room.per_host, batch)


@dataclass(frozen=True)
class FitCell:
    """One recipe under one stage.

    Attributes:
        need: None where the recipe cannot run under the stage; `reason` then says why.
        fits: whether it fits with checkpointing, on device and host.
        fits_without_checkpointing: the same where activations are not computed again.
    """

    stage: str
    need: MemoryEstimate | None
    reason: str | None
    fits: bool
    fits_without_checkpointing: bool


@dataclass(frozen=True)
class Plan:
    """A way to run a recipe that fits.

    Attributes:
        recipe: its name.
        stage: name of the ZeRO stage.
        batch_size, accumulation: rows of a forward pass of one device, and passes of an optimizer step.
        checkpointing: whether layers are computed again in the backward pass.
        bytes: peak memory of one device.
        command: command that runs it.
    """

    recipe: str
    stage: str
    batch_size: int
    accumulation: int
    checkpointing: bool
    bytes: float
    command: str


def fits(need: MemoryEstimate, room: Room, stage: ZeroStage, checkpointing: bool) -> bool:
    """Whether device and, for offloaded states, host have room; what is not known is taken to be enough."""
    device = room.device is None or need.total(checkpointing) <= room.device
    host = not stage.offload or room.host is None or need.host <= room.host
    return device and host


def cells(request: FitRequest, recipe: Recipe, room: Room) -> tuple[FitCell, ...]:
    """A recipe under every stage, with the batch size that its script would choose."""
    setting = request.setting(recipe, room)
    row = []
    for stage in STAGES:
        reason = why_not(recipe, stage)
        need = None if reason else peak_memory(setting, stage)
        judged = [need is not None and fits(need, room, stage, checkpointing) for checkpointing in (True, False)]
        row.append(FitCell(stage.name, need, reason, *judged))
    return tuple(row)


def table(request: FitRequest, room: Room, recipes: dict[str, Recipe] = RECIPES) -> dict[str, tuple[FitCell, ...]]:
    """Every recipe under every stage."""
    return {name: cells(request, recipe, room) for name, recipe in recipes.items()}


def best_plan(request: FitRequest, recipe: Recipe, room: Room) -> Plan | None:
    """The quickest way that fits, None where nothing does.

    The recipe's batch comes before a smaller one, no checkpointing before checkpointing (a quarter of a layer's
    FLOPs), ZeRO-2 before ZeRO-3 (one gathering of weights less), and offloading to the host last of all.
    """
    ready = [stage for stage in STAGES if stage.config and not why_not(recipe, stage)]
    batches = batch_sizes(recipe, room.devices)
    on_device = [stage for stage in ready if not stage.offload]
    ways = [(batch, stage, again) for batch in batches for again in (False, True) for stage in on_device]
    ways += [(batch, stage, True) for batch in batches for stage in ready if stage.offload]
    for batch, stage, checkpointing in ways:
        setting = request.setting(recipe, room).with_batch(batch)
        need = peak_memory(setting, stage)
        if fits(need, room, stage, checkpointing):
            return _plan(request, setting, stage, checkpointing, need, room)
    return None


def batch_sizes(recipe: Recipe, devices: int) -> list[int]:
    """Batch sizes to try on one device, the largest first: those that the launcher takes.

    They divide what one device has to do of the global batch; where nothing does, an own `ACCUMULATION` makes the
    global batch another one. A batch larger than that is tried as it is, and then what is no larger.
    """
    share, remainder = divmod(recipe.global_batch, devices)
    if remainder:
        return [recipe.batch_size, *range(min(recipe.batch_size - 1, recipe.global_batch), 0, -1)]
    return [batch for batch in range(min(recipe.batch_size, share), 0, -1) if share % batch == 0]


def _plan(
    request: FitRequest, setting: RecipeSetting, stage: ZeroStage, checkpointing: bool, need: MemoryEstimate, room: Room
) -> Plan:
    recipe, batch = setting.recipe, setting.batch_size
    accumulation = max(1, round(recipe.global_batch / (batch * setting.devices)))
    return Plan(
        recipe.name,
        stage.name,
        batch,
        accumulation,
        checkpointing,
        need.total(checkpointing),
        _command(request, setting, stage, checkpointing, accumulation, room),
    )


def _command(
    request: FitRequest, setting: RecipeSetting, stage: ZeroStage, checkpointing: bool, accumulation: int, room: Room
) -> str:
    """The script with every setting that differs from its default."""
    recipe = setting.recipe
    words: dict[str, object] = {}
    if request.compression_name != DEFAULT_COMPRESSION:
        words["COMPRESSION"] = request.compression_name
    if request.shape.name != DEFAULT_MODEL:
        words["MODEL"] = BASE_MODELS.get(request.shape.name, request.shape.name)
    if room.per_host != room.local:
        words["NUM_DEVICES"] = setting.per_host
    words["DEEPSPEED_CONFIG"] = stage.config
    words["BATCH_SIZE"] = setting.batch_size
    if recipe.global_batch % (setting.batch_size * setting.devices):
        words["ACCUMULATION"] = accumulation
    if not checkpointing:
        words["GRADIENT_CHECKPOINTING"] = False
    settings = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in words.items())
    return f"{settings} bash {recipe.script}"


def with_rows(recipe: Recipe, batch_size: int | None, text: int | None, longest: int | None) -> Recipe:
    """A recipe with another batch or other rows, where given."""
    given = {"batch_size": batch_size, "text_tokens": text, "longest_text": longest}
    changed = {name: value for name, value in given.items() if value is not None}
    return replace(recipe, **changed)  # type: ignore[arg-type]
