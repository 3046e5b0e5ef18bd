"""Opening the models that cases ran on: LLaVA's weight names, a CLIP configuration in a folder beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llava.common.outside_files import in_short
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.multimodal_encoder.languagebind import languagebind_config
from llava.model.multimodal_encoder.languagebind_adapters import is_wrapped, merged
from llava.verify.case import UnreadableCaseError, read_json, read_weights

PUBLISHED_SELECT_LAYER = -2

# Buffers that older checkpoints carry and that are computed today.
_COMPUTED = (".position_ids", ".rotary_emb.inv_freq")


class ModelStore:
    """Opens each model once, in float32 on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._models: dict[tuple[Path, int | None], LlavaLlamaForCausalLM] = {}

    def open(self, folder: Path, select_layer: int | None = None) -> LlavaLlamaForCausalLM:
        """The model of a folder in eval mode, without gradients of earlier use.

        Args:
            folder: holds `config.json`, `model.safetensors` and the tower's folder.
            select_layer: layer used instead of the configuration's `mm_vision_select_layer`.

        Raises:
            UnreadableCaseError: if a file or weight is missing or does not fit.
        """
        key = (folder, select_layer)
        if key not in self._models:
            self._models[key] = _read_model(folder, select_layer).to(self.device)
        model = self._models[key].eval()
        model.zero_grad(set_to_none=True)
        return model


def _read_model(folder: Path, select_layer: int | None) -> LlavaLlamaForCausalLM:
    settings: dict[str, Any] = read_json(folder / "config.json")
    for part in ("vision", "image", "video"):
        tower = settings.get(f"mm_{part}_tower")
        if tower and f"mm_{part}_config" not in settings:
            settings[f"mm_{part}_config"] = read_json(folder / str(tower) / "config.json")
    if select_layer is not None:
        settings["mm_vision_select_layer"] = select_layer
    weights = {
        name: tensor.float()
        for name, tensor in read_weights(folder / "model.safetensors").items()
        if not name.endswith(_COMPUTED)
    }
    try:
        if is_wrapped(weights) and "mm_image_config" in settings:
            tower = languagebind_config(settings["mm_image_config"])
            weights = merged(weights, tower.lora_r, tower.lora_alpha)
        model = LlavaLlamaForCausalLM(LlavaConfig(**settings)).float()
    except (ValueError, TypeError, AttributeError) as error:
        raise UnreadableCaseError(
            f"{folder / 'config.json'} describes no model that can be built: {in_short(error)}"
        ) from error
    try:
        found = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise UnreadableCaseError(
            f"{folder / 'model.safetensors'} does not fit config.json: {in_short(error)}"
        ) from error
    tied = {"lm_head.weight"} if settings.get("tie_word_embeddings") else set()
    for names, problem in ((set(found.missing_keys) - tied, "lacks"), (set(found.unexpected_keys), "also holds")):
        if names:
            raise UnreadableCaseError(f"{folder / 'model.safetensors'} {problem} {min(names)!r}; config.json differs.")
    return model
