"""Models by name: a folder of this machine, or a repository of the Hugging Face hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RevisionResolutionError

logger = logging.getLogger(__name__)

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_SETTINGS = ["*.json", "*.model", "*.txt", "*.jinja"]
_SAFETENSORS = ["model*.safetensors", "adapter_model.safetensors", "mm_projector.safetensors"]
_PICKLES = ["adapter_model.bin", "mm_projector.bin", "non_lora_trainables.bin"]


def fetch(name: str, **options: Any) -> Path:
    """The folder of a model; what is on the hub is downloaded first, safetensors rather than pickles.

    Args:
        name: a folder, or `owner/model` on the hub.
        options: of `HUB_OPTIONS`, as in transformers.

    Raises:
        ValueError: if there is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(
            f"There is no folder {name!r}; give the folder of a model, or a name on the hub (owner/model)."
        )
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
