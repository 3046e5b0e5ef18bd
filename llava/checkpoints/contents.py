"""What a name stands for, and what its folder holds: which kind of checkpoint, with which configuration and files.

The content decides; the folder's name only says what a `config.json` without `model_type` leaves open.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RevisionResolutionError
from transformers import CLIPVisionConfig, MistralConfig

from llava.checkpoints import llava_onevision_format
from llava.checkpoints.llava_next_format import is_on_llama
from llava.checkpoints.lora import is_lora_folder
from llava.checkpoints.settings_files import (
    check_fields,
    check_processor,
    check_settings_files,
    read_by_library,
    read_config,
)
from llava.checkpoints.transformers_format import NAMES_HERE, config_here, is_hf_config
from llava.checkpoints.video_llava_format import fill_towers
from llava.common.known_towers import known_tower
from llava.common.path_flags import require_model
from llava.common.presets import is_onevision_layout
from llava.common.shown import shown
from llava.mm_utils import model_name_of
from llava.model.compressed_model import built_in_types, family_of_folder
from llava.model.crop_merging import CropMerging
from llava.model.llava_config import LlavaConfig
from llava.model.weights import PROJECTOR_FILE, weight_files

logger = logging.getLogger(__name__)

_LLAMA = ("llava_llama", "llava", "llama")
_THEIRS = ("video_llava",)
"""`model_type`s under which transformers keeps models that become LLaVA's own here, beside `llava`."""
_MISTRAL = ("llava_mistral", "mistral")
# Of the file or the class it was read with, not of the model; and what would choose code instead of numbers: classes
# that lie beside the weights, and kernels of attention and experts, which transformers fetches from the hub and runs.
_NOT_CONFIGURED = (
    "model_type",
    "architectures",
    "transformers_version",
    "_name_or_path",
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "use_kernels",
)
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_SETTINGS = ["*.json", "*.model", "*.txt", "*.jinja"]
_SAFETENSORS = ["model*.safetensors", "adapter_model.safetensors", "mm_projector.safetensors"]
_PICKLES = ["adapter_model.bin", "mm_projector.bin", "non_lora_trainables.bin"]


class Kind(StrEnum):
    """Kind of a checkpoint, by what its folder holds."""

    LLAVA = "a LLaVA"
    HF = "a LLaVA in transformers' format"
    LANGUAGE = "a language model"
    PROJECTOR = "a projector"
    LORA = "LoRA adapters"
    FAMILY = "a model of another family"


@dataclass(frozen=True)
class Checkpoint:
    """A folder that can be opened.

    Attributes:
        folder: where it lies.
        kind: what it holds.
        config: `LlavaConfig` in LLaVA's terms; another family's own class; None only for adapters without a
            `config.json`.
        files: weights of the whole model, or the projector's file; empty for adapters.
        family: class with both stages of another family; also of what a projector or adapters were trained on.
        key_mapping: renaming of its weights to the names here, for transformers' `from_pretrained`; None of those that
            transformers renames by itself.
    """

    folder: Path
    kind: Kind
    config: Any
    files: tuple[Path, ...] = ()
    family: Any = None
    key_mapping: Mapping[str, str] | None = None

    @property
    def needs_base(self) -> bool:
        """Whether it goes on top of another model."""
        return self.kind in (Kind.PROJECTOR, Kind.LORA)


def examine(folder: Path, name: str | None = None) -> Checkpoint:
    """Find out what a folder holds.

    Args:
        folder: folder of the checkpoint.
        name: LLaVA's name of the model, where it should not be taken from the folder.

    Raises:
        ValueError: if it holds nothing that can be opened, or a model of a kind that is not supported.
    """
    path = folder / "config.json"
    raw = read_config(path) if path.is_file() else None
    family = _family_of(raw)
    check_settings_files(folder, of_clip=family is None)
    files = weight_files(folder)
    if raw is not None and is_onevision_layout(raw) and (not files or is_lora_folder(folder)):
        raise ValueError(
            f"{str(folder)!r} is of a LLaVA-OneVision in LLaVA-NeXT's own layout, but holds no whole model, or "
            "adapters beside one; only whole models are opened in this layout, so merge it there first."
        )
    if is_lora_folder(folder):
        if files:
            raise ValueError(
                f"{str(folder)!r} holds a whole model ({files[0].name}) and LoRA adapters (adapter_config.json); it "
                "could mean either, so move one of them to a folder of its own."
            )
        return Checkpoint(folder, Kind.LORA, _config(raw, family, folder, name), family=family)
    if raw is None:
        raise ValueError(f"{str(folder)!r} has no config.json; give the folder of a model.")
    if files:
        config = _config(raw, family, folder, name)
        kind = _kind_of_whole(raw, config) if family is None else Kind.FAMILY
        return Checkpoint(folder, kind, config, tuple(files), family, _renaming(raw, kind))
    projector = _projector_file(folder)
    if projector is None:
        raise ValueError(_nothing_in(folder))
    return Checkpoint(folder, Kind.PROJECTOR, _config(raw, family, folder, name), (projector,), family)


def _renaming(raw: Mapping[str, Any], kind: Kind) -> Mapping[str, str] | None:
    """The `key_mapping` of a whole model."""
    if kind is Kind.HF:
        return NAMES_HERE
    return llava_onevision_format.NAMES_HERE if is_onevision_layout(raw) else None


def _config(raw: Mapping[str, Any] | None, family: Any, folder: Path, name: str | None) -> Any:
    """The content of a `config.json` as a configuration of its family, LLaVA's own if there is no other."""
    if raw is None:
        return None
    if family is None:
        return _llava_config(raw, folder, name)
    if is_onevision_layout(raw):
        return llava_onevision_format.config_here(raw, folder)
    with read_by_library(folder / "config.json"):
        return family.stock.config_class.from_dict(_numbers_alone(raw))


def _family_of(raw: Mapping[str, Any] | None) -> Any | None:
    """The class with both stages for a model of transformers: of this package, or anybody's own.

    The class that `architectures` names decides, else the `model_type`. None for what LLaVA's own model opens.
    """
    if raw is None:
        return None
    if is_onevision_layout(raw):
        return family_of_folder("llava_onevision", (), is_llava=False)
    kind, named = raw.get("model_type"), raw.get("architectures") or ()
    is_llava = kind in (None, *_LLAMA, *_MISTRAL, *_THEIRS) or is_on_llama(raw)
    return family_of_folder(kind, named, is_llava)


def _numbers_alone(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` without what would choose code, also within its parts."""
    kept = (set(raw) - set(_NOT_CONFIGURED)) | ({"model_type"} & set(raw))
    return {key: _numbers_alone(raw[key]) if isinstance(raw[key], dict) else raw[key] for key in raw if key in kept}


def vision_config(config: Any) -> dict[str, Any] | None:
    """Dimensions of the tower: as saved, of the folder that is named, or of a tower that everybody knows.

    None in a model without a tower, and in one of another family.

    Raises:
        ValueError: if none of them says, or the tower is not CLIP's.
    """
    if not isinstance(config, LlavaConfig):
        return None
    name, saved = config.mm_vision_tower, config.mm_vision_config
    if not name or saved:
        return saved
    known = known_tower(name)
    if known is not None and not Path(name).is_dir():
        return known
    try:
        require_model(name)
    except ValueError as error:
        raise ValueError(_no_tower(name)) from error
    try:
        if Path(name).is_dir():
            read_config(Path(name) / "config.json")
        kind = CLIPVisionConfig.get_config_dict(name)[0].get("model_type")
        if kind not in ("clip", "clip_vision_model"):
            raise ValueError(f"The vision tower {name!r} is a {kind!r}; only CLIP's is supported.")
        with read_by_library(name):
            dimensions: dict[str, Any] = CLIPVisionConfig.from_pretrained(name).to_dict()
    except OSError as error:
        raise ValueError(_no_tower(name)) from error
    check_fields(dimensions, f"the vision tower {name!r}")
    check_processor(Path(name) / "preprocessor_config.json")
    return dimensions


def _no_tower(name: str) -> str:
    return (
        f"config.json names the vision tower {shown(name)} (mm_vision_tower) without its dimensions, and it can be "
        "neither found as a folder nor fetched; put its folder there, or write the folder's path into config.json."
    )


def _llava_config(raw: Mapping[str, Any], folder: Path, name: str | None) -> LlavaConfig:
    """The configuration in LLaVA's terms, with the tower's dimensions."""
    if is_hf_config(raw):
        language, extra = config_here(raw, folder)
    else:
        language, extra = dict(raw), {}
        if isinstance(raw.get("text_config"), dict):
            raise ValueError(
                f"{str(folder / 'config.json')!r} has a text_config, as transformers writes it, but its model_type is "
                f"{shown(raw.get('model_type'))}; accepted are llava, {', '.join((*_THEIRS, *built_in_types()))}."
            )
    path = folder / "config.json"
    kind = language.get("model_type") or _type_by_name(name or model_name_of(str(folder)))
    if kind in _MISTRAL:
        with read_by_library(path):
            language = MistralConfig.from_dict(language).to_dict()
        if language.pop("sliding_window") is not None:
            raise ValueError(
                f"{str(folder)!r} is a Mistral with sliding_window set; attention over a window is not supported. "
                "If no text of yours is longer than the window, write null there in config.json."
            )
    elif kind not in _LLAMA:
        raise ValueError(
            f"{str(folder)!r} has the model_type {shown(kind)}; accepted are "
            f"{', '.join((*_LLAMA, *_MISTRAL, *built_in_types()))}, and llava as transformers writes it."
        )
    fields = {field: value for field, value in language.items() if field not in _NOT_CONFIGURED}
    with read_by_library(path):
        config = LlavaConfig.from_dict(fields | extra)
    _refuse_other_llavas(config, folder)
    dimensions = vision_config(config)
    if dimensions is not None:
        config.mm_vision_config = dimensions
        _check_crops(config, path)
    fill_towers(config, folder)
    return config


def _refuse_other_llavas(config: LlavaConfig, folder: Path) -> None:
    for option in ("mm_resampler_type", "s2"):
        if getattr(config, option, None):
            raise ValueError(f"{option} in {str(folder / 'config.json')!r} is set; it is not supported.")


def _check_crops(config: LlavaConfig, path: Path) -> None:
    """Raise ValueError where a model could not merge the crops of its images; names the file."""
    tower = CLIPVisionConfig.from_dict(config.mm_vision_config)
    side, patches = tower.image_size, tower.image_size // tower.patch_size
    with_cls = config.mm_vision_select_feature == "cls_patch"
    try:
        CropMerging.of(
            config.mm_patch_merge_type,
            config.image_aspect_ratio,
            config.image_grid_pinpoints,
            side,
            patches,
            patches**2 + with_cls,
            config.image_unpad_digits,
        )
    except ValueError as error:
        raise ValueError(f"{error} ({path})") from error


def _type_by_name(name: str) -> str:
    """LLaVA's name rules, for a `config.json` without `model_type`."""
    name = name.lower()
    for family in ("mpt", "mistral"):
        if family in name:
            return f"llava_{family}"
    return "llava_llama"


def _kind_of_whole(raw: Mapping[str, Any], config: LlavaConfig) -> Kind:
    if is_hf_config(raw):
        return Kind.HF
    sees = config.sees or str(raw.get("model_type")).startswith("llava")
    return Kind.LLAVA if sees else Kind.LANGUAGE


def _projector_file(folder: Path) -> Path | None:
    """Also where LLaVA puts it when the output folder itself is called `checkpoint-N`."""
    places = (folder / PROJECTOR_FILE, folder / "mm_projector.safetensors")
    beside = folder.absolute().parent / "mm_projector" / f"{folder.name}.bin"
    return next((path for path in (*places, beside) if path.is_file()), None)


def _nothing_in(folder: Path) -> str:
    text = (
        f"{str(folder)!r} holds neither the weights of a model (model.safetensors or pytorch_model.bin, or their "
        f"index), nor a projector ({PROJECTOR_FILE}), nor LoRA adapters (adapter_config.json)"
    )
    if any(folder.glob("global_step*")):
        return (
            f"{text}, but DeepSpeed's pieces; put them together with python -m llava.model.consolidate {folder} TARGET."
        )
    return f"{text}; give a folder that does."


def fetch(name: str, **options: Any) -> Path:
    """The folder of a model; what is on the hub is downloaded first, safetensors rather than pickles.

    Args:
        name: a folder, or `owner/model` on the hub.
        options: options of `HUB_OPTIONS`, as in transformers.

    Raises:
        ValueError: if there is neither.
    """
    require_model(name)
    folder = Path(name).expanduser() if name.startswith("~") and not Path(name).is_dir() else Path(name)
    if folder.is_dir():
        return folder
    try:
        fetched = Path(snapshot_download(name, allow_patterns=[*_SETTINGS, *_SAFETENSORS, *_PICKLES], **options))
        if not any(fetched.glob("model*.safetensors")):
            snapshot_download(name, allow_patterns=["pytorch_model*.bin"], **options)
    except (OSError, HFValidationError, RevisionResolutionError) as error:
        raise ValueError(
            f"{name!r} is no folder here and could not be fetched from the hub; check name and network, or give a "
            f"folder. ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
    logger.info("%s lies in %s.", name, fetched)
    return fetched
