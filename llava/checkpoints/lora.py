"""Writes, reads and merges LoRA adapters in LLaVA's layout of files.

A folder holds `adapter_config.json` and `adapter_model.safetensors` (peft's format), `config.json`, and
`non_lora_trainables.bin`: the other weights that were trained, the projector above all, under the names they have
inside peft's model (`base_model.model.model.mm_projector...`). LLaVA's own files are read as well.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava.checkpoints.settings_files import ADVICE, read_by_library
from llava.common.json_files import need, read_object
from llava.common.shown import shown
from llava.model.collectives import gathered
from llava.model.llava_config import LlavaConfig
from llava.model.parts import paths_of
from llava.model.weights import read_state_dict, write_weights

logger = logging.getLogger(__name__)

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
NON_LORA_FILE = "non_lora_trainables.bin"
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear maps of a layer of the language model, of attention and MLP."""

_LARGEST_RANK = 1 << 16
_FIELDS: dict[type | tuple[type, ...], tuple[str, ...]] = {
    str: ("base_model_name_or_path", "peft_type", "task_type", "bias", "revision"),
    int: ("r",),
    float: ("lora_alpha", "lora_dropout"),
    bool: ("fan_in_fan_out", "inference_mode", "use_rslora", "use_dora"),
    (bool, str): ("init_lora_weights",),
    (str, list): ("target_modules", "exclude_modules"),
    list: ("modules_to_save",),
    dict: ("rank_pattern", "alpha_pattern"),
}


def lora_targets(model: Any, adapted: Sequence[str] = ADAPTED) -> str:
    """Linear maps of the language model's layers and of nothing else, as peft's `target_modules`.

    Vision towers have modules of the same names.

    Args:
        model: model of any family.
        adapted: which maps, of `ADAPTED`.
    """
    (decoder,) = paths_of(model, [model.decoder])
    maps = "|".join(name.removesuffix("_proj") for name in ADAPTED if name in adapted)
    return rf".*\b{re.escape(decoder)}\.layers\.\d+\.(?:self_attn|mlp)\.(?:{maps})_proj"


def adapted_by(targets: Any) -> tuple[str, ...] | None:
    """The linear maps of the language model that `target_modules` of adapters names; None where it says otherwise."""
    if isinstance(targets, str):
        found = re.fullmatch(r"\.\*\\b[\w\\.]+\\\.layers.*\(\?:([a-z|]+)\)_proj", targets)
        named = {f"{name}_proj" for name in found.group(1).split("|")} if found else set()
    else:
        named = {name.rsplit(".", 1)[-1] for name in targets or ()}
    return tuple(name for name in ADAPTED if name in named) if named and named <= set(ADAPTED) else None


def is_lora_folder(folder: str | Path) -> bool:
    """Whether a folder holds adapters rather than a model."""
    return (Path(folder) / ADAPTER_CONFIG_FILE).is_file()


def base_model_of(folder: str | Path) -> str | None:
    """Name of the model that the adapters were trained on, as they recorded it."""
    name: str | None = read_adapter_config(folder).get("base_model_name_or_path")
    return name


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """The content of `adapter_config.json`.

    Raises:
        ValueError: if it is not a JSON object, or a field that peft reads holds another type than it takes.
    """
    path = Path(folder) / ADAPTER_CONFIG_FILE
    config = read_object(path, ADVICE, mark=False)
    for kind, keys in _FIELDS.items():
        for key in keys:
            need(config, key, kind, repr(str(path)), optional=True)
    rank = config.get("r")
    if rank is not None and not 1 <= rank <= _LARGEST_RANK:
        raise ValueError(f"r in {str(path)!r} is {shown(rank)}; it must be a whole number from 1 to {_LARGEST_RANK:,}.")
    return config


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """All trained weights on the host, by name.

    Every rank must call it: under ZeRO-3 the weights are gathered from all of them.
    """
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with gathered(named.values()):
        return {name: weight.detach().cpu().clone() for name, weight in named.items()}


def save_lora(model: Any, state: dict[str, Tensor], folder: str | Path) -> None:
    """Write adapters, the other trained weights and the configuration; one rank calls it.

    Args:
        model: peft's model around a LLaVA.
        state: result of `trained_state`.
        folder: is made.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    adapters = {name: weight for name, weight in state.items() if "lora_" in name}
    model.save_pretrained(folder, state_dict=adapters, save_embedding_layers=False)
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):  # how it was trained, not how it must be opened
        del config.quantization_config
    config.save_pretrained(folder)
    others = {name: weight for name, weight in state.items() if "lora_" not in name}
    torch.save(others, folder / NON_LORA_FILE)


def load_adapters(model: Any, folder: str | Path) -> None:
    """Read adapters and the other trained weights of a folder into peft's model, to train on or to merge.

    Raises:
        ValueError: if a weight does not fit the model, or the folder lacks an adapter; names it.
    """
    folder = Path(folder)
    files = [path for name in ADAPTER_FILES if (path := folder / name).is_file()]
    if not files:
        raise ValueError(f"{folder} holds neither adapter_model.safetensors nor adapter_model.bin; it is incomplete.")
    # peft leaves the adapter's name out of the file.
    held = _read(files[0], model)
    held = {re.sub(r"\.(lora_[AB])\.", r".\1.default.", name): tensor for name, tensor in held.items()}
    adapters = [name for name, _ in _inside(model).named_parameters() if "lora_" in name]
    write_weights(_inside(model), held, files[0], adapters, "the base model with its adapters")
    others = folder / NON_LORA_FILE
    if others.is_file():
        write_weights(_inside(model), _read(others, model), folder)
    else:
        logger.warning("%s has no %s; projector and embeddings stay those of the base model.", folder, NON_LORA_FILE)


def merge_lora(model: Any, folder: str | Path) -> Any:
    """A model of any family with the adapters of a folder worked into its weights.

    Args:
        model: the base model, not quantised (merging into 4 or 8 bits rounds the result).
        folder: adapters of this model.

    Raises:
        ValueError: if the adapters do not fit the model or name a module to import, or the model is quantised.
    """
    from peft import LoraConfig, get_peft_model

    if getattr(model, "quantization_method", None) is not None:
        raise ValueError("The base model is quantised; merged weights would be rounded. Load it in 16 or 32 bits.")
    path = Path(folder) / ADAPTER_CONFIG_FILE
    kind = read_adapter_config(folder).get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"peft_type in {str(path)!r} is {shown(kind)}; only LORA is supported.")
    with read_by_library(path, "peft"):
        config = LoraConfig.from_pretrained(str(folder))
    if config.megatron_config:
        raise ValueError(
            f"{str(path)!r} asks for Megatron's layers (megatron_config) from the "
            f"module {config.megatron_core!r}; adapters of a LLaVA have none. Take them from somewhere else."
        )
    if isinstance(model.config, LlavaConfig):  # LLaVA lists names such as q_proj, which CLIP's layers have as well
        apart = (*paths_of(model, (*model.vision_towers(), *model.projectors())), "lm_head")
        config.exclude_modules = rf"(?:{'|'.join(map(re.escape, apart))})\b.*"
    config.base_model_name_or_path = None  # peft warns of another path; whether the model fits is checked below
    with read_by_library(path, "peft"):
        wrapped = get_peft_model(model, config)
    load_adapters(wrapped, folder)
    return wrapped.merge_and_unload()


def _inside(model: Any) -> nn.Module:
    """The LLaVA, its linear maps wrapped or not; peft's model stands around it."""
    inner: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner


def _read(path: Path, model: Any) -> dict[str, Tensor]:
    """Tensors of a file under the names they have in the LLaVA; LLaVA wrote them with one `model.` more or less."""
    own = {name for name, _ in _inside(model).named_parameters()}
    named = {}
    for name, tensor in read_state_dict(path).items():
        name = name.removeprefix("base_model.").removeprefix("model.")
        named[f"model.{name}" if name not in own and f"model.{name}" in own else name] = tensor
    return named
