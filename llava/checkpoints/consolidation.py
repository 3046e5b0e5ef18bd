"""Merges DeepSpeed's shards of a checkpoint into float32 weights, without running code that the checkpoint holds.

    python -m llava.model.consolidate CHECKPOINT TARGET

CHECKPOINT is a `checkpoint-N` of a training with ZeRO-1, 2 or 3. Its float32 weights, which the optimizer works on, are
in the pieces; a 16-bit training rounds them for the weight files beside. TARGET gets them in LLaVA's layout with
configuration and tokenizer: a whole model, a projector, or LoRA adapters, as in CHECKPOINT. The pieces are put together
by the installed DeepSpeed, not by a script from the checkpoint, after `llava.checkpoints.pickles` looked at them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME

from llava.checkpoints.contents import examine
from llava.checkpoints.conversion import appearing_at_once, require_new, require_outside
from llava.checkpoints.fit import on_meta, require_complete
from llava.checkpoints.lora import NON_LORA_FILE, is_lora_folder
from llava.checkpoints.pickles import UnsafePickleError, require_safe_pickles, weights_only_loading
from llava.checkpoints.transformers_format import TOWERS
from llava.common.json_files import write_json
from llava.common.outside_files import in_words
from llava.common.path_flags import FOLDER_TO_READ, FOLDER_TO_WRITE, as_text
from llava.model.families.llava import LlavaLlamaForCausalLM
from llava.model.finite import not_finite
from llava.model.weights import PROJECTOR_FILE, read_header

_SETTINGS = (".json", ".model", ".txt", ".jinja")
_OF_THE_RUN = ("trainer_state.json", "run_facts.json", "manifest.json")  # beside the index of another set of weights
# What DeepSpeed raises where pieces are missing or do not fit together.
_UNFIT = (ValueError, LookupError, AttributeError, TypeError, RuntimeError, OSError)


def consolidate(checkpoint: str | Path, target: str | Path) -> Path:
    """Write the float32 weights of a ZeRO checkpoint; `target` appears as a whole or not at all.

    Args:
        checkpoint: folder `checkpoint-N` with `latest` and `global_stepN`.
        target: new folder.

    Returns:
        The folder that was written.

    Raises:
        UnsafePickleError: if a file of the checkpoint would run code.
        ValueError: if `target` is not empty, or the pieces are missing, damaged, NaN or infinite, or do not make up
            the model that `config.json` describes.
    """
    checkpoint, target = Path(checkpoint), Path(target)
    require_new(target)
    require_outside(target, str(checkpoint))
    if not (checkpoint / "latest").exists():
        raise ValueError(
            f"{str(checkpoint)!r} has no file 'latest', so it is no checkpoint of DeepSpeed; give a checkpoint-N of a "
            "training with --deepspeed. The weights of any other training are in its folder as they are."
        )
    require_safe_pickles(checkpoint)
    is_lora = is_lora_folder(checkpoint)
    is_projector = not is_lora and (checkpoint / PROJECTOR_FILE).is_file()
    state = _whole_state(checkpoint, exclude_frozen=is_lora or is_projector)
    broken = not_finite((name, weight) for name, weight in state.items() if isinstance(weight, Tensor))
    if broken:
        raise ValueError(
            f"{broken[0]} in {str(checkpoint)!r} is not finite (NaN or infinity); take an earlier checkpoint."
        )
    with appearing_at_once(target) as folder:
        _copy_settings(checkpoint, folder)
        if is_lora:
            adapters = checkpoint / ADAPTER_SAFE_WEIGHTS_NAME
            named = {name.replace(".default.", "."): weight for name, weight in state.items()}
            save_file(_select(named, adapters), folder / adapters.name, metadata={"format": "pt"})
            torch.save(_select(state, checkpoint / NON_LORA_FILE), folder / NON_LORA_FILE)
        elif is_projector:
            torch.save(_select(state, checkpoint / PROJECTOR_FILE), folder / PROJECTOR_FILE)
        else:
            _write_whole(state, folder)
            _name_dtype(folder / "config.json")
            found = examine(folder)
            model = on_meta(found.family.stock if found.family else LlavaLlamaForCausalLM, found.config)
            apart = () if found.family else TOWERS
            require_complete(model, found.files, apart=apart, described=str(checkpoint))
    return target


def _whole_state(checkpoint: Path, exclude_frozen: bool) -> dict[str, Any]:
    """Weights by name, each tensor or something that `contiguous` makes one; of several names of one tensor the first.

    Raises:
        ValueError: if the pieces do not fit together.
    """
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ModuleNotFoundError as error:
        raise ValueError("DeepSpeed is not installed, which reads its checkpoints: pip install '.[train]'.") from error
    try:
        with weights_only_loading(), contextlib.redirect_stdout(io.StringIO()):
            state = get_fp32_state_dict_from_zero_checkpoint(
                str(checkpoint), exclude_frozen_parameters=exclude_frozen, lazy_mode=True
            )
    except UnsafePickleError:
        raise
    except _UNFIT as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"DeepSpeed's pieces in {str(checkpoint)!r} cannot be put together: one is missing, damaged or of another "
            f"save; copy the checkpoint anew, or take another one. ({type(error).__name__}: {reason})"
        ) from error
    first: dict[int, str] = {}
    for name, held in state.items():
        first.setdefault(id(held), name)
    return {name: held for name, held in state.items() if first[id(held)] == name}


def _select(state: Mapping[str, Any], like: Path) -> dict[str, Tensor]:
    """The float32 counterparts of the weights in a file of the checkpoint.

    Raises:
        ValueError: if one is not among the pieces.
    """
    names = list(read_header(like))
    lost = [name for name in names if name not in state]
    if lost:
        raise ValueError(f"DeepSpeed's pieces lack {lost[0]!r}, which {str(like)!r} holds; they are of another save.")
    return _float32(state, names)


def _float32(state: Mapping[str, Any], names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of their own, none a part of another; whole numbers stay."""
    made = {}
    for name in names:
        weight = state[name].contiguous()
        made[name] = weight.to(torch.float32 if weight.is_floating_point() else weight.dtype, copy=True)
    return made


def _write_whole(state: Mapping[str, Any], folder: Path) -> None:
    """Write weights as `model.safetensors`, in shards where it is large; one shard at a time is in memory."""
    outlines = {name: torch.empty(held.shape, dtype=torch.float32, device="meta") for name, held in state.items()}
    plan = split_torch_state_dict_into_shards(outlines)
    for file, names in plan.filename_to_tensors.items():
        save_file(_float32(state, names), folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / SAFE_WEIGHTS_INDEX_NAME, index, indent=2)


def _copy_settings(checkpoint: Path, folder: Path) -> None:
    """Configuration, tokenizer and image processor."""
    for path in sorted(checkpoint.iterdir()):
        is_index = path.name.endswith(".index.json")
        if path.is_file() and path.suffix in _SETTINGS and path.name not in _OF_THE_RUN and not is_index:
            shutil.copyfile(path, folder / path.name)


def _name_dtype(path: Path) -> None:
    """Let `config.json` say what the weights have now, for whoever opens them with the dtype "auto"."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("torch_dtype", None)
    write_json(path, settings | {"dtype": "float32"}, indent=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.model.consolidate",
        description="Put DeepSpeed's pieces of a checkpoint together as float32 weights, without running its scripts.",
    )
    parser.add_argument(
        "checkpoint",
        type=as_text(FOLDER_TO_READ),
        metavar="CHECKPOINT",
        help="checkpoint-N of a training with --deepspeed",
    )
    parser.add_argument("target", type=as_text(FOLDER_TO_WRITE), metavar="TARGET", help="new folder")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        target = consolidate(options.checkpoint, options.target)
    except (ValueError, OSError) as error:
        sys.exit(f"consolidate: {in_words(error)}")
    print(_said(target))  # noqa: T201


def _said(target: Path) -> str:
    weights = [path for path in sorted(target.iterdir()) if path.suffix in (".safetensors", ".bin")]
    size = sum(path.stat().st_size for path in weights) / 1e9
    return f"Wrote {target}: {size:.2f} GB of float32 in {', '.join(path.name for path in weights)}."
