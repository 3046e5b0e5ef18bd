"""Converts a checkpoint to the format of transformers (`hf`) or to LLaVA's own (`llava`), without loss.

    python -m llava.model.convert --to hf SOURCE TARGET
    python -m llava.model.convert --to llava SOURCE TARGET --model-base BASE

SOURCE is a LLaVA, or a projector or LoRA adapters with their base. In transformers a converted model is an ordinary
LLaVA; the compression block stays in `config.json`, and the way back finds it there.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from torch import Tensor
from transformers import GenerationConfig, LlavaNextProcessor, LlavaProcessor, PreTrainedTokenizerBase

from llava.checkpoints import llava_onevision_format
from llava.checkpoints.contents import Checkpoint, Kind
from llava.checkpoints.opening import open_model, resolve
from llava.checkpoints.tokenizer import add_marks
from llava.checkpoints.transformers_format import config_there, image_processor_there, name_there, require_counterpart
from llava.checkpoints.video_llava_format import write_processors
from llava.common.atomic_write import UnwritableError, write_errors
from llava.common.file_modes import follow_umask
from llava.common.onevision_layout import layout_config
from llava.common.outside_files import in_words
from llava.common.path_flags import FOLDER_TO_WRITE, MODEL, as_text
from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.model.families.llava import LlavaLlamaForCausalLM
from llava.model.weights import weight_files, widest_dtype

FORMATS = ("hf", "llava")
DTYPES = {"auto": None, "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_PAD_TOKEN = "<pad>"
_ROWS = 64  # vocabularies are padded to a multiple of this, as transformers' own conversion does


def convert(
    source: str, target: str | Path, to: str, model_base: str | None = None, dtype: torch.dtype | None = None
) -> Path:
    """Open a checkpoint and write it in another format; `target` appears as a whole or not at all.

    Args:
        source: folder or name on the hub.
        target: new folder.
        to: `hf` or `llava`.
        model_base: base model of a projector or LoRA adapters.
        dtype: data type of the written weights; None for the widest that the weight files of the source have.

    Returns:
        The folder that was written.

    Raises:
        ValueError: if `target` is not empty, the source cannot be opened, or has no counterpart in that format.
    """
    target = Path(target)
    if to not in FORMATS:
        raise ValueError(f"The format is {to!r}; accepted are {' and '.join(FORMATS)}.")
    require_new(target)
    require_outside(target, source, model_base)
    checkpoint, base = resolve(source, model_base)
    of_family = (checkpoint if base is None else base).kind is Kind.FAMILY
    to_layout = to == "llava" and checkpoint.kind is Kind.FAMILY
    if checkpoint.kind is Kind.FAMILY:
        _require_other_format(checkpoint, to, source)
    if to == "hf" and not of_family:
        require_counterpart(checkpoint.config if base is None else checkpoint.config or base.config, source)
    # Adapters do not count: they are rounded when they are merged.
    dtype = dtype or widest_dtype([*checkpoint.files, *(base.files if base else ())])
    model, processor, tokenizer, _ = open_model(source, model_base, device="cpu", dtype=dtype)
    _make_savable(model.generation_config)
    with appearing_at_once(target) as folder:
        if to_layout:
            llava_onevision_format.write_layout(model, processor, tokenizer, folder, source)
        elif of_family:  # a merged model of transformers is written in its format, whatever is asked for
            model.save_pretrained(folder)
            (tokenizer if processor is None else processor).save_pretrained(folder)
        elif to == "llava":
            model.save_pretrained(folder)
            _save_tokenizer(tokenizer, folder)
        else:
            assert processor is not None
            _write_hf(model, tokenizer, processor, folder)
    return target


def _require_other_format(checkpoint: Checkpoint, to: str, source: str) -> None:
    """Raise ValueError where a whole model of another family has no such format, or is in it."""
    kind, own_layout = checkpoint.config.model_type, checkpoint.key_mapping is not None
    if kind != "llava_onevision":
        raise ValueError(f"{source!r} is a {kind}; only LLaVAs are converted.")
    if own_layout == (to == "llava"):
        there = "LLaVA-NeXT's own layout" if own_layout else "transformers' format"
        raise ValueError(f"{source!r} is a {kind} in {there}, which --to {to} asks for; it can be used as it is.")
    if not own_layout:
        layout_config(checkpoint.config.to_dict(), source)  # before any weight is read


def _write_hf(model: LlavaLlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, processor: Any, folder: Path) -> None:
    """Weights, configuration and processor as transformers' LLaVA has them."""
    tokens = _add_tokens(tokenizer, [DEFAULT_VIDEO_TOKEN] if model.config.sees_videos else [])
    rows = max(model.config.vocab_size, len(tokenizer))
    if rows > model.config.vocab_size:
        rows = -(-rows // _ROWS) * _ROWS
    config = config_there(model.config, tokens, rows)
    config.dtype = model.dtype
    save_torch_state_dict(_state_there(model, rows), folder)
    config.save_pretrained(folder)
    generation: Any = model.generation_config
    generation.pad_token_id = tokens["pad"]
    generation.save_pretrained(folder)
    if model.config.sees_videos:
        write_processors(config, folder)
        tokenizer.save_pretrained(folder)
        return
    processor_class = LlavaNextProcessor if config.model_type == "llava_next" else LlavaProcessor
    processor_class(
        image_processor_there(processor, model.config),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # CLS
    ).save_pretrained(folder)


def _state_there(model: LlavaLlamaForCausalLM, rows: int) -> dict[str, Tensor]:
    """The model's own tensors under transformers' names; only embeddings that need more rows are copied.

    New rows are the mean of the old ones: the head never prefers such a token to all others.
    """
    state = dict(model.state_dict())
    tied: Any = model.all_tied_weights_keys
    for name in tied:
        state.pop(name, None)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state and len(state[name]) < rows:
            weight = state[name]
            mean = weight.float().mean(dim=0).to(weight.dtype)
            state[name] = torch.cat([weight, mean.expand(rows - len(weight), -1)])
    return {name_there(name): tensor for name, tensor in state.items()}


def _add_tokens(tokenizer: PreTrainedTokenizerBase, others: Sequence[str]) -> dict[str, int]:
    """Ids of `image`, of `video` if it is among `others`, and of a padding token `pad` of its own.

    They are added behind the others where they are not there yet.
    """
    add_marks(tokenizer, DEFAULT_IMAGE_TOKEN, *others)
    shared = (tokenizer.unk_token, tokenizer.eos_token, tokenizer.bos_token, None)
    if _PAD_TOKEN in tokenizer.get_vocab() or tokenizer.pad_token in shared:
        tokenizer.add_special_tokens({"pad_token": _PAD_TOKEN})
    ids = {mark.strip("<>"): tokenizer.convert_tokens_to_ids(mark) for mark in (DEFAULT_IMAGE_TOKEN, *others)}
    return ids | {"pad": tokenizer.pad_token_id}


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Also with its `tokenizer.model`, where it was read from one: LLaVA's own program reads nothing else.

    It does so with the class `LlamaTokenizer`, which the configuration therefore names.
    """
    tokenizer.save_pretrained(folder)
    original = getattr(tokenizer, "vocab_file", None)
    if original and Path(original).name == "tokenizer.model" and Path(original).is_file():
        shutil.copy(original, folder)
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "LlamaTokenizer"}
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _make_savable(generation: GenerationConfig) -> None:
    """Take out sampling options without sampling, which LLaVA-1.5 ships: they do nothing, and may not be saved."""
    if not generation.do_sample:
        generation.update(temperature=None, top_p=None, top_k=None)


def require_new(target: Path) -> None:
    """Refuse a target in which something would be overwritten.

    Raises:
        ValueError: if it is anything but an empty folder or nothing.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{str(target)!r} is not empty; name a new folder, nothing is overwritten.")


def require_outside(target: Path, *sources: str | None) -> None:
    """Refuse a target inside a folder that is read: what loads from there would no longer be what it was.

    Raises:
        ValueError: if it lies in one of them, also by way of links.
    """
    for source in sources:
        if source and Path(source).is_dir() and target.resolve().is_relative_to(Path(source).resolve()):
            raise ValueError(f"{str(target)!r} lies in {source!r}, which is read; name a folder outside of it.")


@contextmanager
def appearing_at_once(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its name when all is written, and is removed when something fails.

    What is in it may be read by whom the umask says, also weights, which safetensors writes for their owner alone.
    """
    target = target.resolve()  # a link to an empty folder stays one
    unfinished = target.with_name(f".{target.name}.unfinished-{os.getpid()}")
    try:
        with write_errors(target):
            try:
                unfinished.mkdir(parents=True)
            except OSError as error:
                raise UnwritableError(target, error) from error
            yield unfinished
            follow_umask(unfinished)
            unfinished.replace(target)
    except SafetensorError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"{target} cannot be written ({error}); make room there, or name another place.") from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.model.convert", description="Write a checkpoint in transformers' format or in LLaVA's."
    )
    parser.add_argument("source", type=MODEL, metavar="SOURCE", help="folder or hub name of a checkpoint")
    parser.add_argument("target", type=as_text(FOLDER_TO_WRITE), metavar="TARGET", help="new folder")
    parser.add_argument("--to", required=True, choices=FORMATS, help="hf: transformers' format; llava: LLaVA's own")
    parser.add_argument("--model-base", type=MODEL, help="model under a projector or LoRA adapters")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights; auto keeps the source's")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        target = convert(options.source, options.target, options.to, options.model_base, DTYPES[options.dtype])
    except (ValueError, OSError) as error:
        sys.exit(f"convert: {in_words(error)}")
    print(_written(target))  # noqa: T201


def _written(target: Path) -> str:
    weights = weight_files(target)
    size = sum(path.stat().st_size for path in weights) / 1e9
    dtype = str(widest_dtype(weights)).removeprefix("torch.")
    others = ", ".join(sorted(path.name for path in target.iterdir() if path not in weights))
    return f"Wrote {target}: {size:.2f} GB of {dtype} in {len(weights)} weight file(s); {others}."
