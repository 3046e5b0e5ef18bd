"""Tiny checkpoints in every layout that is in use, written by hand under the published key names and config fields.

Nothing here calls the code that is tested: names and fields are spelled out as the published files have them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import columns_of_stock
from tiny_text import llama
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration
from transformers import LlavaConfig as HFConfig

LAYERS, TOWER_LAYERS = 2, 3
WIDTH, MLP, HEADS = 64, 128, 4  # bitsandbytes packs columns by 64 on a CPU
TOWER_WIDTH, TOWER_MLP, IMAGE, PATCH = 16, 32, 16, 4
PATCHES = (IMAGE // PATCH) ** 2
VOCABULARY = 531  # of the tiny tokenizer

Weights = dict[str, Tensor]
VISION = {
    "hidden_size": TOWER_WIDTH,
    "intermediate_size": TOWER_MLP,
    "num_hidden_layers": TOWER_LAYERS,
    "num_attention_heads": 2,
    "image_size": IMAGE,
    "patch_size": PATCH,
    "projection_dim": 16,
    "model_type": "clip_vision_model",
}


# === Weights, under LLaVA's names ===


def make(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Weights:
    """Random weights of unit gain, so that no attention is uniform."""
    noise = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=noise)
        if "norm" in name and name.endswith("weight"):
            values = 1 + 0.1 * values
        elif len(shape) > 1 and "embed" not in name:
            values = values * 1.5 / values[0].numel() ** 0.5
        made[name] = values
    return made


def language(vocabulary: int = VOCABULARY, kv_heads: int = HEADS, seed: int = 0, layers: int = LAYERS) -> Weights:
    """Llama's weights."""
    narrow = WIDTH // HEADS * kv_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, WIDTH)}
    for layer in range(layers):
        inside = f"model.layers.{layer}"
        shapes |= {
            f"{inside}.self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{inside}.self_attn.k_proj.weight": (narrow, WIDTH),
            f"{inside}.self_attn.v_proj.weight": (narrow, WIDTH),
            f"{inside}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{inside}.mlp.gate_proj.weight": (MLP, WIDTH),
            f"{inside}.mlp.up_proj.weight": (MLP, WIDTH),
            f"{inside}.mlp.down_proj.weight": (WIDTH, MLP),
            f"{inside}.input_layernorm.weight": (WIDTH,),
            f"{inside}.post_attention_layernorm.weight": (WIDTH,),
        }
    return make(shapes | {"model.norm.weight": (WIDTH,), "lm_head.weight": (vocabulary, WIDTH)}, seed)


def projector(seed: int = 1) -> Weights:
    """The two-layer projector's weights."""
    shapes = {"0.weight": (WIDTH, TOWER_WIDTH), "0.bias": (WIDTH,), "2.weight": (WIDTH, WIDTH), "2.bias": (WIDTH,)}
    return make({f"model.mm_projector.{name}": shape for name, shape in shapes.items()}, seed)


def tower(prefix: str = "model.vision_tower.vision_tower.vision_model.", seed: int = 2) -> Weights:
    """CLIP's vision model."""
    wide: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (TOWER_WIDTH,),
        "embeddings.patch_embedding.weight": (TOWER_WIDTH, 3, PATCH, PATCH),
        "embeddings.position_embedding.weight": (PATCHES + 1, TOWER_WIDTH),
    }
    for name in ("pre_layrnorm", "post_layernorm"):
        wide |= {f"{name}.weight": (TOWER_WIDTH,), f"{name}.bias": (TOWER_WIDTH,)}
    for layer in range(TOWER_LAYERS):
        inside = f"encoder.layers.{layer}"
        for part in ("q", "k", "v", "out"):
            wide[f"{inside}.self_attn.{part}_proj.weight"] = (TOWER_WIDTH, TOWER_WIDTH)
            wide[f"{inside}.self_attn.{part}_proj.bias"] = (TOWER_WIDTH,)
        for part in ("layer_norm1", "layer_norm2"):
            wide |= {f"{inside}.{part}.weight": (TOWER_WIDTH,), f"{inside}.{part}.bias": (TOWER_WIDTH,)}
        wide |= {f"{inside}.mlp.fc1.weight": (TOWER_MLP, TOWER_WIDTH), f"{inside}.mlp.fc1.bias": (TOWER_MLP,)}
        wide |= {f"{inside}.mlp.fc2.weight": (TOWER_WIDTH, TOWER_MLP), f"{inside}.mlp.fc2.bias": (TOWER_WIDTH,)}
    return make({prefix + name: shape for name, shape in wide.items()}, seed)


def whole() -> Weights:
    """A LLaVA's weights, tower included."""
    return language() | projector() | tower()


def old_buffers() -> Weights:
    """What old versions of transformers saved beside the weights."""
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(LAYERS)}
    buffers["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(PATCHES + 1)[None]
    return buffers


# === Folders ===


def vicuna_config(**changes: Any) -> dict[str, Any]:
    """`config.json` of a Vicuna."""
    return {
        "_name_or_path": "vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": MLP,
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    } | changes


def llava_config(tower_name: str | Path, **changes: Any) -> dict[str, Any]:
    """`config.json` of LLaVA-1.5."""
    llava = {
        "_name_or_path": "llava-v1.5-7b",
        "architectures": ["LlavaLlamaForCausalLM"],
        "freeze_mm_mlp_adapter": False,
        "freeze_mm_vision_resampler": False,
        "image_aspect_ratio": "pad",
        "max_length": 4096,
        "mm_hidden_size": TOWER_WIDTH,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(tower_name),
        "model_type": "llava",
        "tune_mm_mlp_adapter": False,
        "tune_mm_vision_resampler": False,
        "unfreeze_mm_vision_tower": False,
        "use_mm_proj": True,
    }
    return vicuna_config(**llava | changes)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_shards(folder: Path, weights: Weights, pickled: bool = True, count: int = 2) -> None:
    """Weights cut into shards with an index, as published: pickles or safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, ending = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    places = {}
    for shard in range(count):
        name = f"{stem}-{shard + 1:05d}-of-{count:05d}.{ending}"
        held = {key: weights[key] for key in list(weights)[shard::count]}
        torch.save(held, folder / name) if pickled else save_file(held, folder / name, {"format": "pt"})
        places |= dict.fromkeys(held, name)
    write_json(folder / f"{stem}.{ending}.index.json", {"metadata": {"total_size": 1}, "weight_map": places})


def write_tower(folder: Path) -> Path:
    """A folder like `openai/clip-vit-large-patch14-336`: the text model beside the tower, and a pickle."""
    write_json(folder / "config.json", {"model_type": "clip", "projection_dim": 16, "vision_config": VISION})
    settings = {
        "crop_size": IMAGE,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": IMAGE,
    }
    write_json(folder / "preprocessor_config.json", settings)
    others = {"logit_scale": torch.tensor(1.0), "text_model.final_layer_norm.bias": torch.zeros(4)}
    buffer = {"vision_model.embeddings.position_ids": torch.arange(PATCHES + 1)[None]}
    torch.save(tower("vision_model.") | others | buffer, folder / "pytorch_model.bin")
    return folder


def write_llava(
    folder: Path, tower_name: str | Path, weights: Weights | None = None, pickled: bool = True, **config: Any
) -> Path:
    """A folder like `liuhaotian/llava-v1.5-7b`, which also holds the projector by itself."""
    write_shards(folder, whole() | old_buffers() if weights is None else weights, pickled)
    torch.save({name: tensor.half() for name, tensor in projector().items()}, folder / "mm_projector.bin")
    write_json(folder / "config.json", llava_config(tower_name, **config))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "pad_token_id": 0}
    write_json(folder / "generation_config.json", generation | {"temperature": 0.9, "top_p": 0.6})
    llama().save_pretrained(folder)
    return folder


def write_language_model(folder: Path, weights: Weights | None = None, **config: Any) -> Path:
    """A folder like `lmsys/vicuna-7b-v1.5`."""
    write_shards(folder, language() if weights is None else weights)
    write_json(folder / "config.json", vicuna_config(**config))
    llama().save_pretrained(folder)
    return folder


def write_projector(folder: Path, tower_name: str | Path, **config: Any) -> Path:
    """A folder like `liuhaotian/llava-pretrain-vicuna-7b-v1.5`."""
    write_json(folder / "config.json", llava_config(tower_name, tune_mm_mlp_adapter=True, **config))
    torch.save(projector(seed=7), folder / "mm_projector.bin")
    return folder


ADAPTED = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
RANK, ALPHA = 4, 8


def adapters(seed: int = 3) -> dict[str, tuple[Tensor, Tensor]]:
    """Matrices A and B for every adapted weight."""
    noise = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, weight in language().items():
        if "_proj." in name:
            rows, columns = weight.shape
            a = torch.randn(RANK, columns, generator=noise) / columns**0.5
            pairs[name] = a, 0.3 * torch.randn(rows, RANK, generator=noise)
    return pairs


def write_lora(
    folder: Path, tower_name: str | Path, pickled: bool = True, prefix: str = "base_model.model.model.", **config: Any
) -> Path:
    """A folder like `liuhaotian/llava-v1.5-7b-lora`, its adapters after rank-stabilised training or not."""
    write_json(folder / "config.json", llava_config(tower_name, **config))
    settings = {
        "base_model_name_or_path": "lmsys/vicuna-7b-v1.5",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "revision": None,
        "target_modules": ADAPTED,
        "task_type": "CAUSAL_LM",
    }
    write_json(folder / "adapter_config.json", settings)
    held = {}
    for name, (a, b) in adapters().items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        held |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    if pickled:
        torch.save(held, folder / "adapter_model.bin")
    else:
        save_file(held, folder / "adapter_model.safetensors")
    trained = {prefix + name.removeprefix("model."): tensor for name, tensor in projector(seed=8).items()}
    torch.save(trained, folder / "non_lora_trainables.bin")
    return folder


def adapted_language() -> Weights:
    """W + BA alpha / r, worked out here."""
    weights = language()
    for name, (a, b) in adapters().items():
        weights[name] = (weights[name].double() + ALPHA / RANK * b.double() @ a.double()).float()
    return weights


def hf_names(weights: Weights, new: bool = False) -> Weights:
    """LLaVA's names to those of `llava-hf` (published), or to those inside transformers' model (new)."""
    renamed = {}
    for name, tensor in weights.items():
        if "vision_tower" in name:
            inside = name.split("vision_model.")[1]
            target = f"model.vision_tower.{inside}" if new else f"vision_tower.vision_model.{inside}"
        elif "mm_projector" in name:
            number, kind = name.split(".")[-2:]
            target = f"multi_modal_projector.linear_{int(number) // 2 + 1}.{kind}"
            target = f"model.{target}" if new else target
        elif name == "lm_head.weight":
            target = name if new else "language_model.lm_head.weight"
        else:
            inside = name.removeprefix("model.")
            target = f"model.language_model.{inside}" if new else f"language_model.model.{inside}"
        renamed[target] = tensor
    return renamed


def hf_config(**changes: Any) -> dict[str, Any]:
    """`config.json` of `llava-hf/llava-1.5-7b-hf`: the text model's defaults are left out there."""
    text = vicuna_config()
    for default in ("bos_token_id", "eos_token_id", "hidden_act", "initializer_range", "pad_token_id", "use_cache"):
        del text[default]
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": VOCABULARY - 2,
        "model_type": "llava",
        "pad_token_id": VOCABULARY - 1,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.36.0.dev0",
        "vision_config": VISION | {"vocab_size": 32000},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    } | changes


def write_hf(folder: Path, new: bool = False, pads: bool = False, **config: Any) -> Path:
    """A folder like `llava-hf/llava-1.5-7b-hf`; `new` as transformers 5 writes it."""
    write_shards(folder, hf_names(whole(), new), pickled=False, count=3)
    write_json(folder / "config.json", hf_config(**config))
    settings: dict[str, Any] = {
        "crop_size": {"height": IMAGE, "width": IMAGE},
        "image_processor_type": "LlavaImageProcessor" if pads else "CLIPImageProcessor",
        "size": {"shortest_edge": IMAGE},
    }
    if pads:
        settings["do_pad"] = True
    processor = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "processor_class": "LlavaProcessor"}
    if new:
        write_json(folder / "processor_config.json", processor | {"image_processor": settings})
    else:
        write_json(folder / "processor_config.json", processor)
        write_json(folder / "preprocessor_config.json", settings)
    llama().save_pretrained(folder)
    return folder


# === What every layout must compute ===


def stock(weights: Weights, dtype: torch.dtype = torch.float64, **text: Any) -> LlavaForConditionalGeneration:
    """transformers' own LLaVA with the given weights."""
    settings = vicuna_config(**text)
    del settings["model_type"], settings["torch_dtype"], settings["rope_scaling"]
    settings["num_hidden_layers"] = sum(name.endswith("q_proj.weight") and "vision" not in name for name in weights)
    settings["vocab_size"] = len(weights["model.embed_tokens.weight"])
    config = HFConfig(
        text_config=LlamaConfig(**settings), vision_config=CLIPVisionConfig(**VISION), image_token_index=VOCABULARY - 2
    )
    model = LlavaForConditionalGeneration(config).to(dtype)
    model.load_state_dict(hf_names(weights, new=True))
    return model.eval()


IDS = [1, 40, 41, -200, 50, 51, 52, 53]


def pixels(dtype: torch.dtype = torch.float64) -> Tensor:
    """One random image [1, 3, 16, 16]."""
    return torch.randn(1, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


@torch.no_grad()
def stock_logits(model: LlavaForConditionalGeneration) -> Tensor:
    """Logits [1, T, V] for `IDS` and `pixels`, the placeholder spelled out as transformers wants it."""
    token = model.config.image_token_index
    ids = [part for word in IDS for part in ([token] * PATCHES if word == -200 else [word])]
    found = model(input_ids=torch.tensor([ids]), pixel_values=pixels(model.dtype)).logits
    return columns_of_stock(found, torch.tensor([ids]), token)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Logits [1, T, V] of a LLaVA of ours for the same prompt."""
    return model(input_ids=torch.tensor([IDS]), images=pixels(model.dtype)).logits
