"""Checks the JSON files beside a model's weights, field by field, before a library reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import CLIPImageProcessorPil, GenerationConfig
from transformers.activations import ACT2FN

from llava.common.json_files import need, read_object
from llava.common.outside_files import DAMAGED, in_short
from llava.common.shown import shown
from llava.common.yaml_files import read_yaml
from llava.compression.config import CompressionConfig

ADVICE = "fetch or copy it anew"
Kinds = Mapping[tuple[type, ...], tuple[str, ...]]

_TYPES = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict}
_KINDS: dict[str, Kinds] = {
    file: {tuple(_TYPES[name] for name in kinds.split(" or ")): tuple(keys) for kinds, keys in fields.items()}
    for file, fields in read_yaml(Path(__file__).with_name("settings_fields.yaml")).items()
}
_FAULTS = (*DAMAGED, StrictDataclassError)  # of transformers and peft, for a setting that they do not expect
_LARGEST_IMAGE = 1 << 14  # pixels along a side
_MOST_LAYERS, _WIDEST, _LARGEST_VOCABULARY = 1_000, 1 << 20, 1 << 24
# Whole numbers from 1 to a bound that no model comes near: beyond it building the model would take all memory.
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "num_channels",
    "vocab_size",
)
"""Sizes of a model; transformers computes with them, so that a file may leave one out, but not say null."""
_COUNTS = {
    "num_hidden_layers": _MOST_LAYERS,
    "vocab_size": _LARGEST_VOCABULARY,
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"), _WIDEST),
    **dict.fromkeys(("head_dim", "mm_hidden_size", "image_size", "patch_size", "projection_dim"), _WIDEST),
    "num_channels": _WIDEST,
    "num_frames": 1 << 12,
    **dict.fromkeys(("max_position_embeddings", "tokenizer_model_max_length", "max_sequence_length"), 1 << 62),
}
_INNER = ("mm_vision_config", "mm_image_config", "mm_video_config", "text_config", "vision_config")


@contextmanager
def read_by_library(path: str | Path, library: str = "transformers") -> Iterator[None]:
    """Name the file or folder that a library cannot read, in place of the library's own error.

    Raises:
        ValueError: instead of the library's error; names the path and repeats what the library says.
    """
    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError, and no fault of the files
        raise
    except _FAULTS as error:
        raise ValueError(f"{str(path)!r} is not what {library} reads ({in_short(error)}); {ADVICE}.") from error


@contextmanager
def needing_packages(what: str) -> Iterator[None]:
    """Say in a sentence which package is missing that a library imports when it is first needed.

    Args:
        what: is done, such as "Opening 'model'".

    Raises:
        ValueError: instead of ImportError.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{what} needs a package that is not installed ({in_short(error)}); peft and bitsandbytes come with "
            "pip install '.[train]'."
        ) from error


def check_settings_files(folder: Path, of_clip: bool = True) -> None:
    """Check the settings of generation, tokenizer and image processor in a folder, field by field.

    Args:
        folder: folder of a model; files that it lacks are passed over.
        of_clip: whether its images are prepared as CLIP's are; of others the settings of that are not looked at.

    Raises:
        ValueError: if one is not a JSON object, or a field that is read holds another type; names file, field, value
            and what is accepted.
    """
    generation = _checked(folder / "generation_config.json", _KINDS["generation"])
    if generation is not None:
        with read_by_library(folder / "generation_config.json"):
            GenerationConfig.from_dict(dict(generation))
    settings = _checked(folder / "tokenizer_config.json", _KINDS["tokenizer"]) or {}
    for index, token in (settings.get("added_tokens_decoder") or {}).items():
        place = f"{str(folder / 'tokenizer_config.json')!r}: added_tokens_decoder"
        if not index.isdecimal():
            raise ValueError(f"The key {shown(index)} in {place} is no id; {ADVICE}.")
        _need_token(token, f"token {index}", place)
    for key in ("additional_special_tokens", "extra_special_tokens"):
        for token in settings.get(key) or ():
            need({key: token}, key, (str, dict), f"{str(folder / 'tokenizer_config.json')!r} (in its list)")
    for key, value in (_checked(folder / "special_tokens_map.json", {}) or {}).items():
        need({key: value}, key, (str, dict, list), repr(str(folder / "special_tokens_map.json")))
    for key, value in (_checked(folder / "added_tokens.json", {}) or {}).items():
        need({key: value}, key, int, repr(str(folder / "added_tokens.json")))
    whole = _checked(folder / "tokenizer.json", {(list,): ("added_tokens",), (dict,): ("model",)}, strict=False) or {}
    for token in whole.get("added_tokens") or ():
        place = f"{str(folder / 'tokenizer.json')!r}: added_tokens"
        _need_token(token, "an entry", place)
        need(token, "id", int, place)
    for name in ("preprocessor_config.json", "processor_config.json") if of_clip else ():
        check_processor(folder / name)


def check_processor(path: Path) -> None:
    """Check a `preprocessor_config.json` or `processor_config.json`, if it is there, field by field.

    Raises:
        ValueError: as `check_settings_files`.
    """
    settings = _checked(path, _KINDS["processor"]) or {}
    for place, values in (
        (repr(str(path)), settings),
        (f"{str(path)!r}: image_processor", settings.get("image_processor")),
    ):
        if values is None:
            continue
        _check_kinds(values, _KINDS["processor"], place)
        if values.get("resample") is not None and values["resample"] not in list(Image.Resampling):
            accepted = ", ".join(f"{one.value} ({one.name.lower()})" for one in Image.Resampling)
            raise ValueError(f"resample in {place} is {values['resample']}; accepted are {accepted}.")
        for key in ("size", "crop_size"):
            _check_size(values.get(key), key, place)
        with read_by_library(path):
            CLIPImageProcessorPil.from_dict({key: values[key] for key in ("size", "crop_size") if key in values})
        for key in ("image_mean", "image_std"):
            for number in values[key] if isinstance(values.get(key), list) else ():
                need({key: number}, key, float, f"{place} (in its list)")


def _check_size(size: Any, key: str, place: str) -> None:
    for name, value in size.items() if isinstance(size, dict) else [] if size is None else [(key, size)]:
        if need({name: value}, name, int, f"{place}: {key}", optional=True) is None:
            continue
        if not 1 <= value <= _LARGEST_IMAGE:
            raise ValueError(f"{name} in {place}: {key} is {shown(value)}; it must be from 1 to {_LARGEST_IMAGE:,}.")


def _need_token(token: Any, name: str, place: str) -> None:
    need(need({name: token}, name, dict, place), "content", str, f"{place}: {name}")


def _checked(path: Path, kinds: Kinds, strict: bool = True) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content = read_object(path, ADVICE, strict, mark=False)
    _check_kinds(content, kinds, repr(str(path)))
    return content


def _check_kinds(values: Mapping[str, Any], kinds: Kinds, place: str) -> None:
    for kind, keys in kinds.items():
        for key in keys:
            need(values, key, kind, place, optional=True)


def read_config(path: str | Path) -> dict[str, Any]:
    """The content of a `config.json`, checked by `check_fields`.

    Raises:
        ValueError: if it is not a JSON object, or a field holds what cannot stand there; names the file.
    """
    config = read_object(path, ADVICE, mark=False)
    check_fields(config, repr(str(path)))
    return config


def check_fields(config: Mapping[str, Any], place: str) -> None:
    """Check the fields of a `config.json` that are read here, their types and ranges; others are left alone.

    Args:
        config: content of the file, or an object in it.
        place: the file, and where in it the object stands.

    Raises:
        ValueError: names the first field that is wrong, its value, and what is accepted.
    """
    for key, most in _COUNTS.items():
        value = need(config, key, int, place, optional=key not in _SIZES or key not in config)
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{key} in {place} is {shown(value)}; it must be a whole number from 1 to {most:,}.")
    _check_kinds(config, _KINDS["config"], place)
    for key in ("eos_token_id", "vision_feature_layer", "architectures"):
        for item in config[key] if isinstance(config.get(key), list) else ():
            need({key: item}, key, str if key == "architectures" else int, f"{place} (in its list)")
    for pair in config["image_grid_pinpoints"] if isinstance(config.get("image_grid_pinpoints"), list) else ():
        need({"image_grid_pinpoints": pair}, "image_grid_pinpoints", list, f"{place} (in its list)")
    if "hidden_act" in config and config["hidden_act"] not in ACT2FN:
        raise ValueError(f"hidden_act in {place} is {shown(config['hidden_act'])}, which transformers does not know.")
    projector: str | None = config.get("mm_projector_type")
    if projector and not re.fullmatch(r"linear|identity|mlp[1-9]\d?x_gelu", projector):
        raise ValueError(
            f"mm_projector_type is {shown(projector)}; it must be linear, identity or mlpNx_gelu such as mlp2x_gelu "
            f"(in {place})."
        )
    for key in _INNER:
        if isinstance(config.get(key), dict):
            check_fields(config[key], f"{place}: {key}")
    if config.get("compression") is not None:
        try:
            CompressionConfig.from_dict(config["compression"])
        except ValueError as error:
            raise ValueError(f"compression in {place}: {error}") from error
