"""The recipes' settings that decide memory, in one table; a test compares it with what the scripts print."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

Trained = Literal["projector", "all", "lora"]

# Captions of the pre-training set are one or two sentences; a conversation's mean is an assumption, its limit is not.
CAPTION_TOKENS, LONGEST_CAPTION = 25, 256
CONVERSATION_TOKENS, LONGEST_ROW = 200, 2048


@dataclass(frozen=True)
class Recipe:
    """What one script trains, and how.

    Attributes:
        name: name of the script.
        trained: the projector alone, language model and projector, or LoRA adapters and the projector.
        batch_size: rows of one device in one forward pass.
        global_batch: rows of one optimizer step over all devices.
        zero: stage of its DeepSpeed configuration.
        bits: width of the language model's stored linear maps, if frozen: 16, 8 or 4.
        lora_rank, lora_dropout: rank and dropout of the adapters; rank 0 without adapters.
        double_quant: whether the scales of 4-bit weights are quantised too.
        text_tokens: text of a typical row, beside its image.
        longest_text: text of the longest row.
        longest_has_image: False where the longest rows are text alone (every layer then sees all of it).
        folder: folder of the script.
        trains_tower: whether the vision tower is trained too.
    """

    name: str
    trained: Trained
    batch_size: int
    global_batch: int
    zero: int
    bits: int = 16
    lora_rank: int = 0
    lora_dropout: float = 0.0
    double_quant: bool = True
    text_tokens: int = CONVERSATION_TOKENS
    longest_text: int = LONGEST_ROW
    longest_has_image: bool = False
    folder: str = "scripts/v1_5"
    trains_tower: bool = False

    @property
    def script(self) -> str:
        """Path of the script from the repository's root."""
        return f"{self.folder}/{self.name}.sh"

    @property
    def packages(self) -> tuple[str, ...]:
        """Optional packages that the recipe imports."""
        needed = ["deepspeed"]
        if self.trained == "lora":
            needed.append("peft")
        if self.bits < 16:
            needed.append("bitsandbytes")
        return tuple(needed)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "pretrain",
            "projector",
            batch_size=32,
            global_batch=256,
            zero=2,
            text_tokens=CAPTION_TOKENS,
            longest_text=LONGEST_CAPTION,
            longest_has_image=True,
        ),
        Recipe("finetune", "all", batch_size=16, global_batch=128, zero=3),
        Recipe("finetune_lora", "lora", batch_size=16, global_batch=128, zero=3, lora_rank=128, lora_dropout=0.05),
        Recipe(
            "finetune_qlora", "lora", batch_size=16, global_batch=128, zero=2, bits=4, lora_rank=128, lora_dropout=0.05
        ),
    )
}
"""Of LLaVA-1.5, by name."""


def recipes_of(family: str) -> dict[str, Recipe]:
    """The recipes of a family of models, by name.

    Args:
        family: as `llava.common.presets.family_of` names it.

    Raises:
        ValueError: if it has none.
    """
    names = {name: recipe for name, recipe in RECIPES.items() if name != "finetune_qlora"}
    match family:
        case "llava-next":
            of_next: dict[str, Any] = {"folder": "scripts/v1_6", "batch_size": 4, "zero": 2, "longest_text": 4096}
            return {
                "pretrain": replace(RECIPES["pretrain"], folder="scripts/v1_6", batch_size=8),
                "finetune": replace(RECIPES["finetune"], trains_tower=True, **of_next),
                "finetune_lora": replace(RECIPES["finetune_lora"], **of_next),
            }
        case "video-llava":
            return {name: replace(recipe, folder="scripts/videollava/v1_5", zero=2) for name, recipe in names.items()}
        case "qwen2.5-vl" | "qwen3-vl":
            folder = "scripts/qwen2_5_vl" if family == "qwen2.5-vl" else "scripts/qwen3_vl"
            qwen: dict[str, Any] = {"folder": folder, "batch_size": 4, "longest_text": 8192}
            lora = replace(RECIPES["finetune_lora"], lora_rank=64, lora_dropout=0.0, **qwen)
            return {"finetune": replace(RECIPES["finetune"], **qwen), "finetune_lora": lora}
        case "llava-onevision":
            its: dict[str, Any] = {"folder": "scripts/llava_onevision", "batch_size": 1, "global_batch": 256}
            its["longest_text"] = 32768
            return {
                "finetune": replace(RECIPES["finetune"], trains_tower=True, **its),
                "finetune_lora": replace(RECIPES["finetune_lora"], **its),
            }
        case "llava-1.5":
            return RECIPES
    raise ValueError(f"There are no recipes for a {family}; its page in docs has the commands that train one.")
