"""Finds the checkpoint that a run starts from, and fills in flags that were left out from its configuration.

A LLaVA's weights mean something only with the settings they were trained with. What its `config.json` records is the
default of the flags, and a flag that says something else is an error: the checkpoint would claim one thing, and the
weights would have learnt another.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava.checkpoints.contents import Checkpoint, Kind, examine, fetch, vision_config
from llava.checkpoints.settings_files import read_config
from llava.checkpoints.video_llava_format import fill_towers
from llava.common.anyres import canvases_of, default_pinpoints, is_anyres
from llava.common.image_opening import opening_of
from llava.common.known_towers import known_tower
from llava.model.llava_config import LlavaConfig
from llava.train.adapters import same_folder, settle_adapters
from llava.train.arguments import TOWER_KINDS, DataArguments, ModelArguments, TrainingArguments
from llava.train.together import check_aspect_ratio

logger = logging.getLogger(__name__)

# What a projector was trained with, and LLaVA's defaults where nothing says.
OF_THE_PROJECTOR: dict[str, Any] = {
    field: getattr(LlavaConfig, field)
    for field in ("mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature")
}
# What a whole LLaVA, or adapters of one, was trained with besides.
OF_THE_LLAVA: dict[str, Any] = OF_THE_PROJECTOR | {
    field: getattr(LlavaConfig, field)
    for field in ("mm_patch_merge_type", "mm_use_im_start_end", "mm_use_im_patch_token", "image_aspect_ratio")
}
_TOWERS = tuple(f"mm_{kind}_tower" for kind in TOWER_KINDS)
_ARTICLES = {"image": "an", "video": "a"}
# These may be changed on purpose, after a look at what they change.
_CHOICES = ("mm_use_im_start_end", "mm_use_im_patch_token", "image_aspect_ratio")


@dataclass(frozen=True)
class _Source:
    """One place that says how a model was trained: its name in messages, the fields it says, and those left out."""

    name: str
    says: Mapping[str, Any]
    silent: Collection[str] = ()


def find_start(model_args: ModelArguments, training_args: TrainingArguments) -> Checkpoint:
    """The checkpoint that `--model_name_or_path` names.

    Raises:
        ValueError: if it is no whole model; says what it is and what to do.
    """
    name = model_args.model_name_or_path
    start = examine(fetch(name, cache_dir=training_args.cache_dir))
    if start.kind is Kind.LORA:
        raise ValueError(
            f"--model_name_or_path {name!r} holds LoRA adapters, not a model. Merge them and start from the result "
            f"(python scripts/merge_lora_weights.py --model-path {name} --save-model-path MERGED), or go on with the "
            f"adapters: --lora_enable True --lora_weight_path {name}, and their base as --model_name_or_path."
        )
    if start.kind is Kind.PROJECTOR:
        raise ValueError(
            f"--model_name_or_path {name!r} holds only the projector of a pre-training. Name the language model there, "
            f"and the projector as --pretrain_mm_mlp_adapter {start.files[0]}."
        )
    if start.kind is Kind.HF:
        raise ValueError(
            f"--model_name_or_path {name!r} is a LLaVA in transformers' format. Write it in LLaVA's and start from "
            f"that: python -m llava.model.convert --to llava {name} TARGET."
        )
    if getattr(start.config, "quantization_config", None) is not None:
        raise ValueError(
            f"--model_name_or_path {name!r} is quantised (quantization_config in its config.json). Start from the "
            "model it was made from; --bits 4 quantises while loading."
        )
    return start


def settle_flags(
    start: Checkpoint, model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> LlavaConfig:
    """Fill in what flags leave open from what the checkpoint, its adapters or its projector record.

    Args:
        start: result of `find_start`.
        model_args, data_args, training_args: changed.

    Returns:
        The configuration to build the model from. It has a vision tower only where the checkpoint holds a LLaVA.

    Raises:
        ValueError: if a flag contradicts what is recorded, or asks for something that needs a vision tower where there
            is none.
    """
    settle_adapters(training_args, model_args.model_name_or_path)
    assert start.config is not None
    config = start.config
    is_llava = config.sees
    sources = [_Source("on the command line", _given(model_args, data_args))]
    if training_args.lora_weight_path:
        sources += _recorded_beside(Path(training_args.lora_weight_path) / "config.json", OF_THE_LLAVA)
    if is_llava:
        sources += _recorded_beside(start.folder / "config.json", OF_THE_LLAVA)
    _settle_towers(model_args, sources)
    if not is_llava and model_args.pretrain_mm_mlp_adapter:
        beside = _recorded_beside(Path(model_args.pretrain_mm_mlp_adapter).parent / "config.json", OF_THE_PROJECTOR)
        _compare_towers(model_args, beside)
        sources += beside
    depth = _depth(model_args.towers, config if is_llava else None)
    for field, default in OF_THE_LLAVA.items():
        value = _settle(field, sources, depth)
        setattr(data_args if hasattr(data_args, field) else model_args, field, default if value is None else value)
    recorded = config.tokenizer_model_max_length if is_llava else None
    if recorded and "model_max_length" not in training_args.given:
        training_args.model_max_length = recorded
    _require_supported(model_args, data_args, training_args)
    return config


def settle_pinpoints(config: LlavaConfig, data_args: DataArguments) -> None:
    """Write the canvases of anyres into the configuration: as recorded, else as the flag says, else LLaVA-1.6's.

    Args:
        config: configuration of the model, with its tower's dimensions; changed.
        data_args: arguments of the run; changed.

    Raises:
        ValueError: if they cannot be read, or the flag says others than the weights were trained with.
    """
    if not is_anyres(data_args.image_aspect_ratio):
        return
    side, asked = (config.mm_vision_config or {})["image_size"], data_args.image_grid_pinpoints
    recorded = config.image_grid_pinpoints
    found = canvases_of(asked or recorded or default_pinpoints(side), side)
    if asked and recorded and found != canvases_of(recorded, side):
        raise ValueError(
            f"image_grid_pinpoints is {asked!r} on the command line, but {recorded!r} in the checkpoint's config.json, "
            "which the weights were trained with. Leave --image_grid_pinpoints out; to change them on purpose, write "
            "the new value there."
        )
    config.image_grid_pinpoints = [list(canvas) for canvas in found]
    data_args.image_grid_pinpoints = str(config.image_grid_pinpoints)


def image_opening(config: Any, data_args: DataArguments) -> str:
    """How images are opened: as the flag says, else as the checkpoint was trained; a change is said in the log."""
    opening = opening_of(config, data_args.image_opening)
    former = getattr(config, "image_opening", None)
    if former not in (None, opening):
        logger.warning("The checkpoint was trained with --image_opening %s; from now on it is %s.", former, opening)
    return opening


def require_rows(tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> None:
    """Check that every token has an embedding; one without would end the run with an IndexError when it first comes up.

    Args:
        tokenizer: tokenizer of the model.
        rows: rows of its embeddings.
        name: name of the model, for messages.

    Raises:
        ValueError: if a token lies beyond the embeddings; names it, and the padding token if it is that.
    """
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return
    first = min(beyond, key=beyond.__getitem__)
    what = "padding token" if first == tokenizer.pad_token else "token"
    more = f" (and {len(beyond) - 1} more such tokens)" if len(beyond) > 1 else ""
    raise ValueError(
        f"The tokenizer of {name!r} has the {what} {first!r} with the id {beyond[first]}{more}, but the embeddings "
        f"have only {rows} rows. Either the tokenizer is another model's, or the token was added and the embeddings "
        "were not enlarged: take it out of the tokenizer's files, or call resize_token_embeddings(len(tokenizer)) on "
        "the language model and save both."
    )


def _given(model_args: ModelArguments, data_args: DataArguments) -> dict[str, Any]:
    """What the flags say: those of the command line, and those that a caller set to something else than the default."""
    said: dict[str, Any] = {f"mm_{kind}_tower": model_args.towers.get(kind) for kind in TOWER_KINDS}
    for field, default in OF_THE_LLAVA.items():
        holder = data_args if hasattr(data_args, field) else model_args
        value = getattr(holder, field)
        if field in holder.given or value != default:
            said[field] = value
    return said


def _recorded_beside(path: Path, fields: Mapping[str, Any]) -> list[_Source]:
    """What a `config.json` beside adapters or a projector says; nothing where there is none, or no tower in it.

    A field that it leaves out, or that is null, has LLaVA's default.
    """
    held = read_config(path) if path.is_file() else {}
    towers = {name: held.get(name) for name in _TOWERS}
    if not any(towers.values()):
        return []
    silent = [field for field in fields if held.get(field) is None]
    says = {field: fields[field] if field in silent else held[field] for field in fields}
    return [_Source(f"in {str(path)!r}", says | towers, silent)]


def _settle(field: str, sources: Sequence[_Source], depth: int | None) -> Any:
    """The value that all sources agree on; None where none says.

    Raises:
        ValueError: if they do not agree.
    """
    found = [(source, source.says[field]) for source in sources if source.says.get(field) is not None]
    if any(field not in source.silent for source, _ in found if source is not sources[0]):
        found = [(source, value) for source, value in found if field not in source.silent]
    for source, value in found[1:]:
        first, chosen = found[0]
        if _plain(field, value, depth) != _plain(field, chosen, depth):
            raise ValueError(
                f"{field} is {chosen!r} {_place(first, field)}, but {value!r} {_place(source, field)}, which the "
                f"weights were trained with. {_advice(field, source)}"
            )
    return found[0][1] if found else None


def _place(source: _Source, field: str) -> str:
    return f"by default {source.name}, where it is left out" if field in source.silent else source.name


def _advice(field: str, source: _Source) -> str:
    flag = f"--{field.removeprefix('mm_')}" if field in _TOWERS else f"--{field}"
    if field in _CHOICES:
        return f"Leave {flag} out; to change it on purpose, write the new value {source.name}."
    if field in _TOWERS:
        return f"Leave {flag} out; if it is the same tower in another place, write its new path {source.name}."
    return f"Leave {flag} out, or start from another model."


def _plain(field: str, value: Any, depth: int | None) -> Any:
    """A value as it can be compared: layers counted from the front."""
    if field == "mm_vision_select_layer" and depth and isinstance(value, int):
        return value % (depth + 1)
    return value


def _settle_towers(model_args: ModelArguments, sources: Sequence[_Source]) -> None:
    """Set the towers' names as they were given last, if all names of one that are given are those of one tower.

    Raises:
        ValueError: if they are not, or a LLaVA's tower is named beside those of a Video-LLaVA.
    """
    said: dict[str, _Source] = {}
    for kind, field in zip(TOWER_KINDS, _TOWERS, strict=True):
        found = [(source, str(source.says[field])) for source in sources if source.says.get(field)]
        for source, name in found[1:]:
            if not _same_tower(found[0][1], name):
                _settle(field, [found[0][0], source], None)
        setattr(model_args, f"{kind}_tower", found[0][1] if found else None)
        if found:
            said[kind] = found[0][0]
    if "vision" in said and len(said) > 1:
        other = "video" if "video" in said else "image"
        raise ValueError(
            f"There is a vision_tower {said['vision'].name} and {_ARTICLES[other]} {other}_tower {said[other].name}; a "
            "LLaVA has the first alone, a Video-LLaVA the towers for images and for videos. Leave one out, or start "
            "from another model."
        )


def _same_tower(one: str, other: str) -> bool:
    """Whether two names are those of one tower: equal, one folder, or copies of one that everybody knows by name."""
    if one == other or same_folder(one, other):
        return True
    return known_tower(one) is not None and PurePath(one).name == PurePath(other).name


def _compare_towers(model_args: ModelArguments, beside: Sequence[_Source]) -> None:
    pairs = ((source, kind) for source in beside for kind in model_args.towers)
    for source, kind in pairs:
        name, recorded = model_args.towers[kind], source.says[f"mm_{kind}_tower"]
        if recorded is None or not _same_tower(name, recorded):
            logger.warning(
                "The projector was trained with the %s tower %r (%s); this run uses %r. It means something only "
                "if that is the same tower in another place.",
                kind,
                recorded,
                source.name,
                name,
            )


def _depth(towers: Mapping[str, str], config: LlavaConfig | None) -> int | None:
    """Layers of the tower: as the checkpoint has it, or as its own folder says.

    Raises:
        ValueError: if it is of another kind than it must be, or cannot be found.
    """
    if not towers:
        return None
    tower = towers.get("vision")
    if tower is None:
        kind, name = next(iter(towers.items()))
        own = None if config is None else getattr(config, f"mm_{kind}_config")
        described = LlavaConfig(**{f"mm_{kind}_tower": name, f"mm_{kind}_config": own})
        fill_towers(described, Path(name))
        return int(getattr(described, f"mm_{kind}_config")["num_hidden_layers"])
    if config is None or not config.mm_vision_config:
        config = LlavaConfig(mm_vision_tower=tower)
    dimensions = vision_config(config)
    return None if dimensions is None else dimensions["num_hidden_layers"]


def _require_supported(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> None:
    """Check what was taken over from a checkpoint, as the command line is checked when it is read.

    Raises:
        ValueError: if it is not supported, or if a flag needs a vision tower and there is none.
    """
    check_aspect_ratio(data_args.image_aspect_ratio, "The checkpoint records image_aspect_ratio")
    if data_args.image_grid_pinpoints and not is_anyres(data_args.image_aspect_ratio):
        raise ValueError(
            f"--image_grid_pinpoints says how images are cut into crops, but image_aspect_ratio is "
            f"{data_args.image_aspect_ratio!r}; add --image_aspect_ratio anyres, or leave it out."
        )
    if data_args.video_flip and "video" not in model_args.towers:
        raise ValueError("--video_flip mirrors the videos of a Video-LLaVA; add --video_tower, or leave it out.")
    if data_args.tokenizer_model_max_length and not {"image", "video"} & set(model_args.towers):
        raise ValueError(
            "--tokenizer_model_max_length is for a Video-LLaVA (--video_tower); the longest sequence of this model is "
            "--model_max_length."
        )
    if model_args.towers:
        return
    asked = {
        "pretrain_mm_mlp_adapter": model_args.pretrain_mm_mlp_adapter,
        "tune_mm_mlp_adapter": model_args.tune_mm_mlp_adapter,
        "unfreeze_mm_vision_tower": model_args.unfreeze_mm_vision_tower,
        "mm_projector_lr": args.mm_projector_lr is not None,
    }
    for flag, value in asked.items():
        if value:
            raise ValueError(
                f"--{flag} needs a vision tower, but {model_args.model_name_or_path!r} has none; add --vision_tower."
            )
