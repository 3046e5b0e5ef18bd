"""Video-LLaVA's checkpoints: as published (two LanguageBind towers), and as transformers keeps them (`-hf` on the hub).

The published model and that of transformers are not the same: transformers has no attention over time in its video
tower, so a model that has it cannot be written there, and one that was read from there has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import LlamaConfig, VideoLlavaConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llava.checkpoints.settings_files import check_fields, read_by_library
from llava.common.json_files import write_json
from llava.common.shown import shown
from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.model.llava_config import LlavaConfig
from llava.model.multimodal_encoder.languagebind import languagebind_config
from llava.model.multimodal_encoder.languagebind_adapters import is_wrapped, merged
from llava.model.multimodal_encoder.languagebind_towers import read_tower_config
from llava.model.weights import read_header, read_state_dict

IMAGE_TOWER_NAME, VIDEO_TOWER_NAME = "LanguageBind/LanguageBind_Image", "LanguageBind/LanguageBind_Video_merge"
FRAMES_FIELD = "num_frames"
_FRAMES = 8
# What a conversion from here carries over, and transformers' configuration keeps without looking at it.
_CARRIED = ("mm_image_tower", "mm_video_tower", "image_aspect_ratio")


def fill_towers(config: LlavaConfig, folder: Path) -> None:
    """Give a configuration the dimensions of the towers that it names: as saved, else from where they lie.

    A name that is a folder inside the checkpoint's stands for that.

    Raises:
        ValueError: if they cannot be found, or say what a tower cannot be.
    """
    for kind in ("image", "video"):
        name = getattr(config, f"mm_{kind}_tower")
        if not name:
            continue
        if not Path(name).is_dir() and (folder / name).is_dir():
            name = str(folder / name)
            setattr(config, f"mm_{kind}_tower", name)
        saved = getattr(config, f"mm_{kind}_config")
        settings = saved or read_tower_config(name, f"LanguageBind{kind.capitalize()}")
        check_fields(settings, f"the tower {name!r} (mm_{kind}_tower in {str(folder / 'config.json')!r})")
        with read_by_library(name):
            setattr(config, f"mm_{kind}_config", languagebind_config(settings).to_dict())


def fields_here(parsed: VideoLlavaConfig, raw: Mapping[str, Any]) -> dict[str, Any]:
    """LLaVA's fields that other LLaVAs of transformers lack or have otherwise.

    The video tower has no attention over time, and pixels are made as the published towers were trained.

    Args:
        parsed: configuration of transformers.
        raw: content of its file, with what a conversion from here carried over.
    """
    tower = parsed.vision_config.to_dict() | {"lora_r": 0, "add_time_attn": False}
    fields = {
        "mm_image_tower": IMAGE_TOWER_NAME,
        "mm_image_config": tower | {"num_frames": 1},
        "mm_video_tower": VIDEO_TOWER_NAME,
        "mm_video_config": tower | {"num_frames": raw.get(FRAMES_FIELD, _FRAMES)},
        "image_aspect_ratio": "pad",
    }
    return fields | {name: raw[name] for name in _CARRIED if name in raw}


def require_counterpart(config: LlavaConfig, source: str) -> None:
    """Check that transformers' Video-LLaVA can say what a configuration says, before any weight is read.

    Raises:
        ValueError: if it cannot; names what.
    """
    timed = (config.mm_video_config or {}).get("add_time_attn")
    if timed:
        raise ValueError(
            f"The video tower of {source!r} attends over time (add_time_attn), which transformers' Video-LLaVA cannot: "
            "without it this would be another model. Convert it --to llava."
        )
    if not (config.mm_image_tower and config.mm_video_tower):
        raise ValueError(f"{source!r} has one of two towers; transformers' Video-LLaVA needs both. Convert --to llava.")
    shapes = [
        {name: (held or {}).get(name) for name in _OF_A_TOWER}
        for held in (config.mm_image_config, config.mm_video_config)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(f"The two towers of {source!r} differ in shape, which transformers' Video-LLaVA cannot say.")
    if config.mm_vision_select_feature != "patch":
        raise ValueError(
            f"mm_vision_select_feature of {source!r} is {shown(config.mm_vision_select_feature)}; only 'patch' has a "
            "counterpart in transformers' Video-LLaVA."
        )


_OF_A_TOWER = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)


def config_there(
    config: LlavaConfig, text: LlamaConfig, tokens: Mapping[str, int], carried: Mapping[str, Any]
) -> VideoLlavaConfig:
    """Transformers' configuration of a Video-LLaVA without attention over time.

    Args:
        config: that of the model, with the dimensions of its towers.
        text: that of its language model.
        tokens: ids of `image`, `video` and `pad` in the tokenizer that goes with the result.
        carried: what transformers' configuration has no field for.
    """
    vision: dict[str, Any] = {name: (config.mm_image_config or {}).get(name) for name in _OF_A_TOWER}
    frames = (config.mm_video_config or {})[FRAMES_FIELD]
    own = {FRAMES_FIELD: frames, **{name: getattr(config, name) for name in _CARRIED}}
    return VideoLlavaConfig(
        architectures=["VideoLlavaForConditionalGeneration"],
        text_config=text,
        vision_config={"model_type": "clip_vision_model", **vision},
        image_token_index=tokens["image"],
        video_token_index=tokens["video"],
        pad_token_id=tokens["pad"],
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        video_seq_length=((vision["image_size"] // vision["patch_size"]) ** 2 + 1) * frames,
        vision_feature_layer=config.mm_vision_select_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=config.tie_word_embeddings,
        **{**own, **carried},
    )


def write_processors(config: VideoLlavaConfig, folder: Path) -> None:
    """Write the settings of transformers' processor for a model; the class itself needs torchvision."""
    side = config.vision_config.image_size
    pixels = {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": int(Image.Resampling.BICUBIC),
        "image_mean": list(OPENAI_CLIP_MEAN),
        "image_std": list(OPENAI_CLIP_STD),
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), True),
        "processor_class": "VideoLlavaProcessor",
    }
    strategy = config.vision_feature_select_strategy
    for name, settings in (
        ("preprocessor_config.json", pixels | {"image_processor_type": "VideoLlavaImageProcessor"}),
        ("video_preprocessor_config.json", pixels | {"video_processor_type": "VideoLlavaVideoProcessor"}),
        (
            "processor_config.json",
            {
                "processor_class": "VideoLlavaProcessor",
                "patch_size": config.vision_config.patch_size,
                "vision_feature_select_strategy": strategy,
                "image_token": DEFAULT_IMAGE_TOKEN,
                "video_token": DEFAULT_VIDEO_TOKEN,
                "num_additional_image_tokens": 1,  # CLS
            },
        ),
    ):
        write_json(folder / name, settings, indent=2)


def with_merged_towers(files: Iterable[Path], config: LlavaConfig) -> dict[str, Tensor] | None:
    """All weights of some files, adapters inside the image tower's encoder merged into it; None where there are none.

    `LanguageBindImage` wraps its encoder in LoRA where `lora_r` of its configuration is not 0.

    Raises:
        ValueError: if an adapter is incomplete or of another rank.
    """
    paths = list(files)
    if not config.mm_image_config or not is_wrapped(name for path in paths for name in read_header(path)):
        return None
    state = {name: tensor for path in paths for name, tensor in read_state_dict(path).items()}
    return merged(state, config.mm_image_config["lora_r"], config.mm_image_config["lora_alpha"])
