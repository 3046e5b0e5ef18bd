"""Checks that weight files fit the model that a configuration describes, before anything is loaded.

transformers fills a weight that a file lacks with random numbers and leaves out one that the model lacks. Here either
is an error that names the weight. Names are matched by transformers' own rules, so both come to the same result.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.integrations import deepspeed

from llava.checkpoints.lora import ADAPTER_CONFIG_FILE, is_lora_folder
from llava.checkpoints.transformers_format import PROJECTOR, projector_name
from llava.checkpoints.transposed import fitted_shapes, fitted_weights, held_as_in_model, saved_as_published
from llava.model.collectives import whole_shape
from llava.model.compressed_model import CompressedModel
from llava.model.llava_config import LlavaConfig
from llava.model.multimodal_encoder.languagebind_towers import NAMES_IN_LANGUAGEBIND
from llava.model.shared_copy import as_kind
from llava.model.weights import Held, read_header, read_state_dict, require_fit, weight_files, write_weights

DESCRIBED = "the model that config.json describes"
_ADVICE = "config.json or the base model belongs to other weights, or this kind of model is not supported"
# What a projector or adapters and the language model under them must have in common, or they mean nothing there.
_OF_THE_LANGUAGE_MODEL = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_parameters",
)
# Computed when a model is made; old versions of transformers saved them.
_OLD_BUFFERS = re.compile(r"(?:rotary_emb\.inv_freq|(?:^|\.)position_ids)$")


def on_meta(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model with names and shapes of weights, and no numbers; whole, in a run that partitions its weights too."""
    with without_partitions(), torch.device("meta"):
        return model_class(config)


@contextmanager
def without_partitions() -> Iterator[None]:
    """Keep transformers from cutting a model into the pieces of the run's own ZeRO-3, as a separate program would.

    Of a model on the meta device it would gather weights that have no numbers.
    """
    held = deepspeed._hf_deepspeed_config_weak_ref
    settings = None if held is None else held()
    if settings is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(settings)


def require_complete(
    model: PreTrainedModel,
    files: Sequence[Path],
    key_mapping: Mapping[str, str] | None = None,
    apart: Sequence[str] = (),
    projector: Path | None = None,
    described: str = DESCRIBED,
) -> frozenset[str]:
    """Check that weight files hold every weight of a model and nothing else.

    Args:
        model: model of `on_meta`.
        files: hold its weights.
        key_mapping: renaming of theirs, as for `from_pretrained`.
        apart: what the names of parts begin with that may lie elsewhere as a whole, such as the vision tower.
        projector: file whose projector takes the place of theirs; what else is in it is not looked at.
        described: what the model is called in messages.

    Returns:
        Those of `apart` that the files hold.

    Raises:
        ValueError: if a weight is missing, unknown or of another shape; names it, the shapes and the file.
    """
    held = _held(model, files, key_mapping)
    if projector is not None:
        held = {name: weight for name, weight in held.items() if not name.startswith(PROJECTOR)}
        held |= _projector_in(projector)
    expected = _shapes(model)
    there = frozenset(part for part in apart if any(name.startswith(part) for name in held))
    elsewhere = tuple(part for part in apart if part not in there)
    tied: dict[str, str] = model.all_tied_weights_keys
    needed = [name for name in expected if name not in tied and not name.startswith(elsewhere)]
    require_fit(held, expected, needed, described, _ADVICE, files[0].parent)
    return there


def require_complete_state(model: PreTrainedModel, state: Mapping[str, Tensor], source: Path) -> None:
    """As `require_complete`, of weights under the model's own names that were read already; none may lie elsewhere.

    Args:
        model: model of `on_meta`.
        state: its weights.
        source: folder that they were read from.

    Raises:
        ValueError: as there.
    """
    held = {name: Held(tuple(one.shape), source) for name, one in state.items() if not _OLD_BUFFERS.search(name)}
    expected = _shapes(model)
    needed = [name for name in expected if name not in model.all_tied_weights_keys]
    require_fit(held, expected, needed, DESCRIBED, _ADVICE, source)


def require_padding_row(config: LlavaConfig, folder: Path) -> None:
    """Check the padding token of a configuration; PyTorch would fail on it while the embeddings are made.

    Raises:
        ValueError: if `pad_token_id` lies beyond `vocab_size`.
    """
    padding, rows = config.pad_token_id, config.vocab_size
    if padding is not None and not -rows <= padding < rows:
        raise ValueError(
            f"{str(folder / 'config.json')!r} has the pad_token_id {padding}, but the embeddings have only {rows} rows "
            "(vocab_size). Either the token was added and the embeddings were not enlarged (call "
            "resize_token_embeddings(len(tokenizer)) on the language model and save both), or write the id of a token "
            "that exists, or null, there."
        )


def require_tower(folder: Path, languagebind: PreTrainedModel | None = None) -> None:
    """Check that a folder holds the whole vision tower; it may hold more, such as CLIP's text model.

    Args:
        folder: folder of the tower.
        languagebind: model of `on_meta` of a LanguageBind tower; None for CLIP's, whose dimensions the folder gives.

    Raises:
        ValueError: if a weight is missing or of another shape, or adapters lie there, which transformers would apply.
    """
    if is_lora_folder(folder):
        raise ValueError(
            f"The folder of the vision tower, {str(folder)!r}, holds adapters ({ADAPTER_CONFIG_FILE}) that would "
            "change its weights; move that file elsewhere."
        )
    tower, kind = languagebind, "a LanguageBind tower"
    mapping: dict[str, str] | None = NAMES_IN_LANGUAGEBIND
    if tower is None:
        config = CLIPVisionModel.config_class.from_pretrained(folder)
        config._attn_implementation = "sdpa"  # the file could name a kernel, which transformers fetches from the hub
        tower, mapping, kind = on_meta(CLIPVisionModel, config), None, "a CLIP tower"
    expected = _shapes(tower)
    files = weight_files(folder)
    if not files:
        raise ValueError(f"The folder of the vision tower, {str(folder)!r}, holds no weights.")
    held = {name: tensor for name, tensor in _held(tower, files, mapping).items() if name in expected}
    require_fit(held, expected, expected, f"{kind} of these dimensions", _ADVICE, folder)


def shapes_in_model(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a file's weights get in a model by transformers' rules; without buffers of old versions.

    Args:
        model: that they are for; only its names and shapes are looked at.
        shapes: of the weights in the file, by their names there.
    """
    names, rules = _renamed(model, shapes, None)
    return fitted_shapes(rules, {names[name]: shapes[name] for name in names}, _shapes(model))


def conversions_of(model: PreTrainedModel, files: Sequence[Path]) -> list[Any]:
    """The rules by which weight files become a model, to save it under the same names again, as it is published.

    transformers notes all rules there are where it loads under ZeRO-3, and saves under names of no model then.

    Args:
        model: model of `on_meta`.
        files: hold its weights.

    Raises:
        ValueError: under ZeRO-3, if transformers would transpose weights that lie as the model has them.
    """
    shapes = {name: tuple(tensor.shape) for path in files for name, tensor in read_header(path).items()}
    names, rules = _renamed(model, shapes, None)
    expected = _shapes(model)
    lying = held_as_in_model(rules, {names[name]: shapes[name] for name in names}, expected)
    if lying is not None and deepspeed.is_deepspeed_zero3_enabled():
        raise ValueError(
            f"{str(files[0].parent)!r} holds {lying!r} as [experts, outputs, inputs], which plain transformers saves, "
            "and transformers loads it transposed under ZeRO-3. Open the folder and save it anew with "
            "open_model(FOLDER).model.save_pretrained(TARGET), which writes it as it is published, or train under "
            "ZeRO-2."
        )
    return saved_as_published([rule for rule in rules if rule.was_used()], expected)


def _renamed(
    model: PreTrainedModel, names: Iterable[str], key_mapping: Mapping[str, str] | None
) -> tuple[dict[str, str], list[Any]]:
    if isinstance(model, CompressedModel):  # transformers knows its rules by the name of the class
        model = as_kind(model, model.stock)
    rules = get_model_conversion_mapping(model, None if key_mapping is None else dict(key_mapping))
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    own: dict[str, Tensor] = model.state_dict()
    found = {}
    for name in names:
        renamed, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        if not _OLD_BUFFERS.search(renamed):
            found[name] = renamed
    return found, rules


def read_weights(model: PreTrainedModel, folder: Path) -> None:
    """Copy the weights of a saved model into the same model, as `from_pretrained` would, one file at a time.

    transformers' Trainer takes the names of the files for those of the model, and passes over all that it does not
    find; where `save_pretrained` writes published names, it would go on with other weights without a word.

    Args:
        model: whole, on any device.
        folder: what its `save_pretrained` wrote.

    Raises:
        ValueError: if a weight is missing, unknown or of another shape; names it.
    """
    files, missing = weight_files(folder), dict(model.named_parameters())
    for path in files:
        held = read_state_dict(path)
        names, rules = _renamed(model, held, None)
        fitted = fitted_weights(rules, {names[name]: held[name] for name in names}, _shapes(model))
        write_weights(model, fitted, path, (), DESCRIBED, _ADVICE)
        missing = {name: weight for name, weight in missing.items() if name not in fitted}
    if missing:
        raise ValueError(f"{str(folder)!r} lacks {next(iter(missing))!r}, which the model has; it is incomplete.")


@contextmanager
def without_reports() -> Iterator[None]:
    """Keep transformers from reporting as newly initialised what is read from the tower's or the projector's files."""
    library = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    library.addFilter(is_other)
    try:
        yield
    finally:
        library.removeFilter(is_other)


def require_same_language_model(config: Any, base: Any, folder: Path) -> None:
    """Check that a projector or adapters were trained on a language model of these dimensions.

    Args:
        config: what was recorded beside them.
        base: configuration of the language model they are to go on top of.
        folder: folder of that model, for the message.

    Raises:
        ValueError: if they were not; names the field.
    """
    for field in _OF_THE_LANGUAGE_MODEL:
        here, there = getattr(config, field, None), getattr(base, field, None)
        if here != there:
            raise ValueError(
                f"model_base {str(folder)!r} has {field} {there!r}, but the projector or adapters were trained on a "
                f"model with {here!r}; give that model."
            )


def _held(model: PreTrainedModel, files: Sequence[Path], key_mapping: Mapping[str, str] | None) -> dict[str, Held]:
    """What files hold, under the names that the weights get in the model."""
    found: dict[str, Held] = {}
    expected = _shapes(model)
    for path in files:
        header = read_header(path)
        names, rules = _renamed(model, header, key_mapping)
        fitted = fitted_shapes(rules, {names[name]: tuple(header[name].shape) for name in names}, expected)
        found |= {name: Held(shape, path) for name, shape in fitted.items()}
    return found


def _projector_in(path: Path) -> dict[str, Held]:
    named = {projector_name(name): Held(tuple(tensor.shape), path) for name, tensor in read_header(path).items()}
    return {name: held for name, held in named.items() if name is not None}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: whole_shape(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
