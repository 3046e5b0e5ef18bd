"""A tiny LLaVA-OneVision as its publisher lays it out: random weights, Qwen's tokenizer class, processors' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import randomise
from tiny_qwen import qwen_tokenizer
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)

SPACED = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + ' ' }}
    {%- for part in message.content if part.type == 'image' %}{{- '<image>' }}{%- endfor %}
    {%- for part in message.content if part.type == 'video' %}{{- '<video>' }}{%- endfor %}
    {%- for part in message.content if part.type == 'text' %}{{- '\\n' + part.text }}{%- endfor %}
    {{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""What one of the published templates writes, written anew: a blank, the images, and a line break before the text."""
LINES = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for part in message.content if part.type == 'image' %}{{- '<image>\\n' }}{%- endfor %}
    {%- for part in message.content if part.type == 'video' %}{{- '<video>\\n' }}{%- endfor %}
    {%- for part in message.content if part.type == 'text' %}{{- part.text }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""What the other one writes: lines, each image on one of its own."""
SIDE, PATCH = 56, 8
PINPOINTS = [[56, 56], [56, 112], [112, 56], [112, 112]]
ALLOWED = "anyres_max_2"


def onevision_tokenizer() -> PreTrainedTokenizerBase:
    """Qwen's tokenizer class, with the placeholders of LLaVA-OneVision."""
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    return tokenizer


def onevision_config(tokenizer: PreTrainedTokenizerBase, layers: int = 4) -> LlavaOnevisionConfig:
    """Of a model that this tokenizer goes with: crops of 7 x 7 tokens, at most twice as many for all of them."""
    names = ["<image>", "<video>", "<|im_end|>", "<|endoftext|>"]
    image, video, end, pad = tokenizer.convert_tokens_to_ids(names)
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=pad,
        bos_token_id=pad,
        eos_token_id=end,
    )
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    return LlavaOnevisionConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=ALLOWED,
    )


def lmms_names(model: LlavaOnevisionForConditionalGeneration) -> dict[str, Tensor]:
    """The weights of a model under the names of LLaVA-NeXT's own program, spelled out one by one."""
    named: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        first, _, rest = name.partition(".")
        if first == "lm_head":
            named[name] = weight
            continue
        part, _, rest = rest.partition(".")
        match part:
            case "language_model":
                named[f"model.{rest}"] = weight
            case "image_newline":
                named["model.image_newline"] = weight
            case "multi_modal_projector":
                layer, _, kind = rest.partition(".")
                named[f"model.mm_projector.{ {'linear_1': 0, 'linear_2': 2}[layer] }.{kind}"] = weight
            case "vision_tower":
                rest = rest.removeprefix("vision_model.")
                named[f"model.vision_tower.vision_tower.vision_model.{rest}"] = weight
            case _:
                raise AssertionError(name)
    return {name: weight.contiguous() for name, weight in named.items()}


def write_lmms(
    folder: Path, seed: int = 0, tied: bool = False, **changes: Any
) -> LlavaOnevisionForConditionalGeneration:
    """A folder as `lmms-lab/llava-onevision-qwen2-*` is laid out, and transformers' model of the same weights.

    The tower is named by a folder inside, and has a layer more there than the weights.

    Args:
        folder: new folder.
        tied: whether head and embedding are one, as in the model of 0.5B.
        changes: of fields in `config.json`; an ellipsis leaves one out.
    """
    tokenizer = qwen_tokenizer()
    marked = onevision_tokenizer()
    stock = onevision_config(marked)
    stock.text_config.tie_word_embeddings = stock.tie_word_embeddings = tied
    stock.text_config.vocab_size += 5  # Qwen2's embeddings have more rows than tokens
    model = LlavaOnevisionForConditionalGeneration(stock).eval()
    randomise(model)
    model.tie_weights()
    folder.mkdir(parents=True)
    state = lmms_names(model)
    if tied:
        del state["lm_head.weight"]
    save_file({name: weight.clone() for name, weight in state.items()}, folder / "model.safetensors", {"format": "pt"})
    text, vision = stock.text_config, stock.vision_config
    config = {
        "_name_or_path": "/checkpoints/onevision/llavanext-siglip-qwen2-final",
        "architectures": ["LlavaQwenForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "image_aspect_ratio": ALLOWED,
        "image_crop_resolution": None,
        "image_grid_pinpoints": [[width, height] for height, width in PINPOINTS],
        "image_split_resolution": None,
        "initializer_range": 0.02,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "max_window_layers": 28,
        "mm_hidden_size": vision.hidden_size,
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": "bilinear",
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "siglip",
        "mm_vision_tower_lr": 2e-06,
        "model_type": "llava",
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "pos_skipping_range": 4096,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": text.rope_parameters["rope_theta"],
        "sliding_window": 32768,
        "tie_word_embeddings": tied,
        "tokenizer_model_max_length": 32768,
        "tokenizer_padding_side": "right",
        "torch_dtype": "float32",
        "transformers_version": "4.40.0.dev0",
        "use_cache": True,
        "use_mm_proj": True,
        "use_pos_skipping": False,
        "use_sliding_window": False,
        "vision_tower_pretrained": None,
        "vocab_size": text.vocab_size,
    } | changes
    (folder / "config.json").write_text(json.dumps({name: one for name, one in config.items() if one is not ...}))
    tower = vision.to_dict() | {"num_hidden_layers": vision.num_hidden_layers + 1}
    (folder / "siglip").mkdir()
    (folder / "siglip" / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": tower}))
    tokenizer.save_pretrained(folder)
    return model


def write_onevision(
    folder: Path, layers: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0, template: str = SPACED
) -> Path:
    """A folder with weights, tokenizer, template and the files of both processors."""
    tokenizer = onevision_tokenizer()
    model = LlavaOnevisionForConditionalGeneration(onevision_config(tokenizer, layers))
    randomise(model, seed)
    model.to(dtype).save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    common: dict[str, Any] = {"size": size, "processor_class": "LlavaOnevisionProcessor"}
    image = common | {"image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": PINPOINTS}
    video = common | {"video_processor_type": "LlavaOnevisionVideoProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    whole = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": (SIDE // PATCH) ** 2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": ALLOWED,
    }
    (folder / "processor_config.json").write_text(json.dumps(whole))
    return folder
