"""Makes the playground's assets: `python -m playground.make_assets` writes tower, language model and tokenizer.

Each modality is pretrained alone: the vision tower on labelled images, the language model on text.  Measured on 2
CPU cores: see `playground/assets/README.md`.  Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import torch
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.common.file_modes import follow_umask
from llava.common.json_files import read_object, write_json
from llava.common.number_flags import MOST_PROCESSES, SEED, count
from llava.common.outputs import claim_folder
from llava.common.path_flags import FOLDER_TO_WRITE
from llava.common.program import as_program
from playground.pretrain.language_model import train_language_model
from playground.pretrain.tokenizer import train_tokenizer
from playground.pretrain.tower import IMAGE_MEAN, IMAGE_STD, train_tower
from playground.world.scene import IMAGE_SIZE

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent / "assets"
TOWER_STEPS = 2000
LANGUAGE_STEPS = 1400


def save_tower(tower: CLIPVisionModel, folder: Path) -> None:
    """Writes the tower with its image processor."""
    _save_small(tower, folder)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
    processor.save_pretrained(folder)


def save_language_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the language model with its tokenizer, whose class is named as every release of transformers knows it."""
    _save_small(model, folder)
    tokenizer.save_pretrained(folder)
    _set_entry(folder / "tokenizer_config.json", "tokenizer_class", "PreTrainedTokenizerFast")


def _save_small(model: PreTrainedModel, folder: Path) -> None:
    """Stores the weights in half precision, but lets them be loaded in single precision: training needs that."""
    model.to(torch.float16).save_pretrained(folder)
    follow_umask(folder)
    _set_entry(folder / "config.json", "dtype", "float32")


def _set_entry(path: Path, key: str, value: str) -> None:
    """Sets one entry of a JSON file."""
    write_json(path, read_object(path, "make it anew") | {key: value}, indent=2)


def main() -> None:
    """Parses the command line, pretrains what was asked for and says how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=FOLDER_TO_WRITE, default=ASSETS, help="folder to write into")
    parser.add_argument("--only", choices=("tower", "language"), help="make only one of the two")
    parser.add_argument("--tower-steps", type=count(), default=TOWER_STEPS)
    parser.add_argument("--language-steps", type=count(), default=LANGUAGE_STEPS)
    parser.add_argument(
        "--threads", type=count(0, MOST_PROCESSES), default=0, help="threads of torch; 0 leaves its own choice"
    )
    parser.add_argument("--seed", type=SEED, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("playground").setLevel(logging.INFO)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    if arguments.out != ASSETS:
        try:
            claim_folder(arguments.out, "playground.make_assets", "--out")
        except ValueError as error:
            sys.exit(f"make_assets: {error}")

    begun = time.perf_counter()
    if arguments.only != "language":
        tower = train_tower(arguments.tower_steps, seed=arguments.seed)
        save_tower(tower, arguments.out / "vision_tower")
    if arguments.only != "tower":
        tokenizer = train_tokenizer()
        model = train_language_model(tokenizer, arguments.language_steps, seed=arguments.seed)
        save_language_model(model, tokenizer, arguments.out / "language_model")
    print(f"Wrote {arguments.out} in {time.perf_counter() - begun:.0f} s on {torch.get_num_threads()} threads.")


if __name__ == "__main__":
    sys.exit(as_program(main))
