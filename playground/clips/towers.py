"""Video-LLaVA's two towers out of the playground's one: folders like LanguageBind's, for images and for videos.

The video tower has LanguageBind's layers, which attend over time in front of CLIP's. Nothing was trained on videos, so
that attention adds nothing (its output is zero), and the tower sees each frame by itself. It does say which frame a
token is of: the last layer that LLaVA reads adds LanguageBind's embedding of time to every token of a frame, in
directions at right angles to each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava.common.json_files import read_object, write_json
from playground.clips.clip import FRAMES

SHARED = (
    "attention_dropout",
    "hidden_act",
    "hidden_size",
    "image_size",
    "intermediate_size",
    "layer_norm_eps",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
    "patch_size",
)
"""Fields of CLIP's configuration that both towers keep."""

READ_LAYER = -2
"""The state that LLaVA reads (`mm_vision_select_layer`), counted from the last layer's."""

LENGTH = 6.0
"""Length of an embedding of time; that of a token is about 32 there."""


def write_towers(clip_tower: Path, folder: Path, frames: int = FRAMES, seed: int = 0) -> None:
    """Writes `folder/image` and `folder/video`, each a `config.json` and its weights under LanguageBind's names.

    Args:
        clip_tower: folder of a CLIP vision tower as transformers saves it.
        folder: folder of the two.
        frames: frames of a video.
        seed: seed of the embeddings of time.

    Raises:
        ValueError: if the tower has fewer dimensions than videos have frames.
    """
    own = read_object(clip_tower / "config.json", "name the folder of a CLIP vision tower")
    settings = {name: own[name] for name in SHARED}
    weights = load_file(clip_tower / "model.safetensors")
    timed = {"num_frames": frames, "add_time_attn": True}
    _write(folder / "image", "LanguageBindImage", settings | {"lora_r": 0}, weights)
    _write(folder / "video", "LanguageBindVideo", settings | timed, weights | _over_time(own, weights, frames, seed))


def _over_time(own: dict[str, Any], weights: dict[str, Tensor], frames: int, seed: int) -> dict[str, Tensor]:
    """What LanguageBind's layers have in front of CLIP's: attention that adds nothing, and embeddings."""
    layers, width = own["num_hidden_layers"], own["hidden_size"]
    inside = "vision_model." if any(name.startswith("vision_model.") for name in weights) else ""
    added: dict[str, Tensor] = {}
    for layer in range(layers):
        place = f"{inside}encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj"):
            for kind in ("weight", "bias"):
                spatial = weights[f"{place}self_attn.{name}.{kind}"]
                added[f"{place}temporal_attn.{name}.{kind}"] = spatial.clone()
        added[f"{place}temporal_attn.out_proj.weight"] = torch.zeros(width, width)
        added[f"{place}temporal_attn.out_proj.bias"] = torch.zeros(width)
        added[f"{place}temporal_layer_norm1.weight"] = torch.ones(width)
        added[f"{place}temporal_layer_norm1.bias"] = torch.zeros(width)
        read_last = layer == layers + READ_LAYER
        marks = _marks(frames, width, seed) if read_last else torch.zeros(frames, width)
        added[f"{place}temporal_embedding"] = marks[None]
    return added


def _marks(frames: int, width: int, seed: int) -> Tensor:
    """[frames, width]: vectors of length `LENGTH` at right angles to each other."""
    if frames > width:
        raise ValueError(f"A tower of width {width} tells no more than {width} frames apart; {frames} were asked for.")
    drawn = torch.randn(width, frames, generator=torch.Generator().manual_seed(seed))
    return (torch.linalg.qr(drawn).Q.T * LENGTH).contiguous()


def _write(folder: Path, kind: str, settings: dict[str, Any], weights: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"model_type": kind, "vision_config": settings}, indent=1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
