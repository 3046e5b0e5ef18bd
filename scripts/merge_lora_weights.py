"""Work LoRA adapters into the model they were trained on, and write it as a model of its own.

python scripts/merge_lora_weights.py --model-path LORA_FOLDER [--model-base MODEL] --save-model-path OUT
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from llava.model.builder import load_pretrained_model
from llava.model.lora import is_lora_folder

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def merge(model_path: str, model_base: str | None, target: str, dtype: torch.dtype) -> None:
    """Write the merged model, its tokenizer and its image processor to `target`.

    Raises:
        ValueError: if `model_path` holds no adapters, they do not fit the base model, or `target` is not empty.
    """
    if not is_lora_folder(model_path):
        raise ValueError(f"{model_path!r} holds no adapter_config.json; give the folder of a LoRA training.")
    if Path(target).is_dir() and any(Path(target).iterdir()):
        raise ValueError(f"{target!r} is not empty; name a new folder with --save-model-path.")
    tokenizer, model, _, _ = load_pretrained_model(model_path, model_base, device="cpu", dtype=dtype)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Merge LoRA adapters into their model.")
    parser.add_argument("--model-path", required=True, help="folder of the adapters")
    parser.add_argument("--model-base", help="the model they were trained on; by default the one they recorded")
    parser.add_argument("--save-model-path", required=True, help="new folder for the merged model")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the written weights")
    options = parser.parse_args(arguments)
    try:
        merge(options.model_path, options.model_base, options.save_model_path, DTYPES[options.dtype])
    except ValueError as error:
        sys.exit(f"merge_lora_weights: {error}")
    print(f"Wrote the merged model to {options.save_model_path}.")


if __name__ == "__main__":
    main()
