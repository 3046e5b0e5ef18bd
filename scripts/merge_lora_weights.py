"""Work LoRA adapters into the model they were trained on, and write it as a model of its own.

python scripts/merge_lora_weights.py --model-path LORA_FOLDER [--model-base MODEL] --save-model-path OUT
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.checkpoints.conversion import DTYPES, convert
from llava.checkpoints.lora import is_lora_folder
from llava.common.path_flags import FOLDER_TO_WRITE, MODEL, as_text
from llava.common.program import as_program


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Merge LoRA adapters into their model.")
    parser.add_argument("--model-path", type=MODEL, required=True, help="folder of the adapters")
    parser.add_argument(
        "--model-base", type=MODEL, help="the model they were trained on; by default the one they recorded"
    )
    parser.add_argument(
        "--save-model-path", type=as_text(FOLDER_TO_WRITE), required=True, help="new folder for the merged model"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the written weights")
    options = parser.parse_args(arguments)
    try:
        if not is_lora_folder(options.model_path):
            raise ValueError(
                f"{options.model_path!r} holds no adapter_config.json; give the folder of a LoRA training."
            )
        convert(options.model_path, options.save_model_path, "llava", options.model_base, DTYPES[options.dtype])
    except ValueError as error:
        sys.exit(f"merge_lora_weights: {error}")
    print(f"Wrote the merged model to {options.save_model_path}.")


if __name__ == "__main__":
    if status := as_program(main):
        sys.exit(status)
