"""Take the projector out of a LLaVA, as `mm_projector.bin` for another fine-tuning.

python scripts/extract_mm_projector.py --model-path MODEL_FOLDER --output mm_projector.bin
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from llava.checkpoints.transformers_format import projector_name
from llava.common.atomic_write import whole_file
from llava.common.outputs import require_apart
from llava.common.path_flags import FILE_TO_WRITE, MODEL, as_text
from llava.common.program import as_program
from llava.model.finite import not_finite
from llava.model.weights import read_header, read_state_dict


def projector_of(folder: str | Path) -> dict[str, Tensor]:
    """The projector's weights under LLaVA's names, from whichever weight files of a folder hold them.

    Raises:
        ValueError: if none does, or a weight is NaN or infinite.
    """
    found: dict[str, Tensor] = {}
    for path in sorted([*Path(folder).glob("*.safetensors"), *Path(folder).glob("*.bin")]):
        if path.name != "training_args.bin":
            names = {name: own for name in read_header(path) if (own := projector_name(name)) is not None}
            held = read_state_dict(path) if names else {}
            found |= {own: held[name] for name, own in names.items()}
    if not found:
        raise ValueError(f"No weight file in {str(folder)!r} holds a projector; give the folder of a LLaVA.")
    broken = not_finite(found.items())
    if broken:
        raise ValueError(
            f"{broken[0]} in {str(folder)!r} is not finite (NaN or infinity); fetch the model anew, or take an earlier "
            "checkpoint."
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Take the projector out of a LLaVA.")
    parser.add_argument(
        "--model-path", type=MODEL, required=True, help="folder of a LLaVA, of LoRA adapters or of a checkpoint"
    )
    parser.add_argument("--output", type=as_text(FILE_TO_WRITE), required=True, help="file to write")
    options = parser.parse_args(arguments)
    try:
        require_apart({"--output": options.output}, [options.model_path])
        weights = projector_of(options.model_path)
    except ValueError as error:
        sys.exit(f"extract_mm_projector: {error}")
    content = io.BytesIO()
    torch.save(weights, content)
    with whole_file(Path(options.output), "wb") as file:
        file.write(content.getbuffer())
    print(f"Wrote {len(weights)} weights to {options.output}.")


if __name__ == "__main__":
    if status := as_program(main):
        sys.exit(status)
