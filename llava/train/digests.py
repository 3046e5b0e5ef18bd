"""Digests of the model, tokenizer and image processor that a run starts from; paths do not enter."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava.checkpoints.contents import fetch
from llava.data.cache import digest_text
from llava.model.weights import weight_files

READ_WHOLE = 64 * 2**20
"""Bytes up to which a file is read whole; of a larger one only samples are."""
_STEP = 4 * 2**20
_SAMPLE = 4096
_HEAD = 2**20  # the header of a safetensors file, with names and shapes of its tensors, lies in it
# What a config.json says about the program that wrote it, and about where it lay.
_PASSING = ("_name_or_path", "transformers_version", "_commit_hash")
_PIXELS = (
    "do_convert_rgb",
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)
# What the settings of a processor say about its class.
_OF_THE_CLASS = (
    "image_processor_type",
    "video_processor_type",
    "processor_class",
    "auto_map",
    "backend",
    "data_format",
    "device",
    "disable_grouping",
    "return_tensors",
    "input_data_format",
)
_PROBES = (
    "A picture of  two dogs\n",
    "    indented: 3.14 €",
    "<image>\nWhat is it? ASSISTANT:",
    " 猫 naïve\t\U0001f642",
)


def digest_model(name: str, cache_dir: str | None = None) -> str | None:
    """Digest of `config.json` and the weights of a model; None where it is no folder here and not in the hub's cache.

    Args:
        name: a folder, or a name on the hub.
        cache_dir: cache folder of the hub.
    """
    try:
        folder = fetch(name, cache_dir=cache_dir, local_files_only=True)
        weights = weight_files(folder)
    except ValueError:  # the hub's cache may also hold a part of a model, such as an index without its files
        return None
    settings = folder / "config.json"
    held = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    known = {key: value for key, value in held.items() if key not in _PASSING}
    return digest_text([json.dumps(known, sort_keys=True), *map(digest_weights, weights)])


def digest_adapters(folder: str | Path) -> str:
    """Digest of LoRA adapters and of the other weights saved beside them."""
    found = [path for pattern in ("adapter_model.*", "non_lora_trainables.*") for path in Path(folder).glob(pattern)]
    return digest_text([digest_weights(path) for path in sorted(found)])


def digest_weights(path: str | Path) -> str:
    """Digest of a weight file: of all bytes, or for a large file of its size, both ends, and 4 KiB of every 4 MiB.

    Another training changes every tensor, so its samples differ; an edit of a single small tensor may go unseen.
    """
    path = Path(path)
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        if size <= READ_WHOLE:
            digest.update(file.read())
            return digest.hexdigest()
        digest.update(file.read(_HEAD))
        for start in range(_HEAD, size - _SAMPLE, _STEP):
            file.seek(start)
            digest.update(file.read(_SAMPLE))
        file.seek(-_SAMPLE, os.SEEK_END)
        digest.update(file.read())
    return digest.hexdigest()


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of a tokenizer: its size, its special tokens, and the ids it gives to some texts."""
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    ids: Any = [tokenizer(text)["input_ids"] for text in _PROBES]
    return digest_text([str(len(tokenizer)), json.dumps(special), json.dumps(ids)])


def digest_image_processor(processor: Any) -> str | None:
    """Digest of the settings of an image processor, or of a processor of transformers with its chat template.

    The path it was read from does not enter, nor which of its classes makes the pixels. None without a processor.
    """
    if isinstance(processor, Mapping):  # of a Video-LLaVA, by kind
        digests = {kind: digest_image_processor(one) for kind, one in processor.items()}
        return digest_text([f"{kind} {digest}" for kind, digest in sorted(digests.items())])
    if processor is None:
        return None
    if not hasattr(processor, "image_processor"):
        held = processor.to_dict()
        return digest_text([json.dumps({name: held.get(name) for name in _PIXELS}, sort_keys=True, default=str)])
    parts = (getattr(processor, name, None) for name in ("image_processor", "video_processor"))
    settings = [None if part is None else part.to_dict() for part in parts]
    kept = [held and {name: held[name] for name in held if name not in _OF_THE_CLASS} for held in settings]
    template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    return digest_text([json.dumps(kept, sort_keys=True, default=str), str(template)])
