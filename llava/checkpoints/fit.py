"""Whether weight files fit the model that a configuration describes, found out before anything is loaded.

transformers fills a weight that a file lacks with random numbers and leaves out one that the model lacks. Here either
is an error that names the weight. Names are matched by transformers' own rules, so both come to the same result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from llava.checkpoints.lora import ADAPTER_CONFIG_FILE, is_lora_folder
from llava.checkpoints.transformers_format import PROJECTOR, TOWER, projector_name
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.llava_config import LlavaConfig
from llava.model.weights import read_header, weight_files

# Computed when a model is made; old versions of transformers saved them.
_OLD_BUFFERS = re.compile(r"(?:rotary_emb\.inv_freq|(?:^|\.)position_ids)$")


@dataclass(frozen=True)
class _Held:
    """One tensor of a file: its shape, and the file."""

    shape: tuple[int, ...]
    path: Path


def require_fit(
    config: LlavaConfig,
    files: Sequence[Path],
    key_mapping: Mapping[str, str] | None = None,
    projector: Path | None = None,
    described: str = "the model that config.json describes",
) -> bool:
    """Compare the names and shapes in weight files with the model's.

    Args:
        config: describes the model.
        files: hold its weights.
        key_mapping: renaming of theirs, as for `from_pretrained`.
        projector: file whose projector takes the place of theirs; what else is in it is not looked at.
        described: what the model is called in messages.

    Returns:
        Whether the files hold the vision tower; if they do not, it has to be read from where `config` says.

    Raises:
        ValueError: if a weight is missing, unknown or of another shape; names it, the shapes and the file.
    """
    with torch.device("meta"):
        model: PreTrainedModel = LlavaLlamaForCausalLM(config)
    held = _held(model, files, key_mapping)
    if projector is not None:
        held = {name: tensor for name, tensor in held.items() if not name.startswith(PROJECTOR)}
        held |= _projector_in(projector)
    expected = _shapes(model)
    has_tower = any(name.startswith(TOWER) for name in held)
    tied: dict[str, str] = model.all_tied_weights_keys
    needed = {
        name: shape
        for name, shape in expected.items()
        if name not in tied and (has_tower or not name.startswith(TOWER))
    }
    _compare(held, expected, needed, files[0].parent, described)
    return has_tower


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


def require_tower(folder: Path) -> None:
    """Check that a folder holds the whole vision tower; it may hold more, such as CLIP's text model.

    Raises:
        ValueError: if a weight is missing or of another shape, or adapters lie there, which transformers would apply.
    """
    if is_lora_folder(folder):
        raise ValueError(
            f"The folder of the vision tower, {str(folder)!r}, holds adapters ({ADAPTER_CONFIG_FILE}) that would "
            "change its weights; move that file elsewhere."
        )
    config = CLIPVisionModel.config_class.from_pretrained(folder)
    config._attn_implementation = "sdpa"  # the file could name a kernel, which transformers fetches from the hub
    with torch.device("meta"):
        tower = CLIPVisionModel(config)
    expected = _shapes(tower)
    files = weight_files(folder)
    if not files:
        raise ValueError(f"The folder of the vision tower, {str(folder)!r}, holds no weights.")
    held = {name: tensor for name, tensor in _held(tower, files, None).items() if name in expected}
    _compare(held, expected, expected, folder, "a CLIP tower of these dimensions")


def _held(model: PreTrainedModel, files: Sequence[Path], key_mapping: Mapping[str, str] | None) -> dict[str, _Held]:
    """What files hold, under the names that the weights get in the model."""
    rules = get_model_conversion_mapping(model, None if key_mapping is None else dict(key_mapping))
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    own: dict[str, Tensor] = model.state_dict()
    found = {}
    for path in files:
        for name, tensor in read_header(path).items():
            renamed, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
            if not _OLD_BUFFERS.search(renamed):
                found[renamed] = _Held(tuple(tensor.shape), path)
    return found


def _projector_in(path: Path) -> dict[str, _Held]:
    named = {projector_name(name): _Held(tuple(tensor.shape), path) for name, tensor in read_header(path).items()}
    return {name: held for name, held in named.items() if name is not None}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _compare(
    held: Mapping[str, _Held],
    expected: Mapping[str, tuple[int, ...]],
    needed: Mapping[str, tuple[int, ...]],
    folder: Path,
    described: str,
) -> None:
    unknown = [name for name in held if name not in expected]
    if unknown:
        first = held[unknown[0]]
        raise ValueError(
            f"{unknown[0]!r} of shape {first.shape}{_more(unknown)} in {str(first.path)!r} is not in {described}; "
            "config.json belongs to other weights, or this kind of model is not supported."
        )
    other = [name for name, tensor in held.items() if tensor.shape != expected[name]]
    if other:
        first = held[other[0]]
        raise ValueError(
            f"{other[0]!r} in {str(first.path)!r} has shape {first.shape}{_more(other)}, but {described} needs "
            f"{expected[other[0]]}; config.json or the base model belongs to other weights."
        )
    missing = [name for name in needed if name not in held]
    if missing:
        raise ValueError(
            f"{str(folder)!r} lacks {missing[0]!r} of shape {needed[missing[0]]}{_more(missing)}, but {described} has "
            "it; the folder is incomplete, or config.json or the base model belongs to other weights."
        )


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more such weights)" if len(names) > 1 else ""
