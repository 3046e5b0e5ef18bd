"""The jobs of the study: train the projector of a seed, train and question one cell.

They run the recipes of scripts/v1_5, as the quickstart does. But they take only the flags from the recipe and call the
trainer in this process: starting Python for each of a hundred short runs would cost a quarter of an hour.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from playground.quickstart.evaluate import evaluate, parse
from playground.study.cells import UNCOMPRESSED, Cell, all_cells
from playground.study.place import Place

ROOT = Path(__file__).resolve().parents[2]
IMAGE_RECIPES = "scripts/v1_5"
SHARED = {
    "LAUNCHER": "python",
    "BF16": "False",
    "ACCUMULATION": "1",
    "GRADIENT_CHECKPOINTING": "False",
    "MODEL": str(ROOT / "playground/assets/language_model"),
    "VISION_TOWER": str(ROOT / "playground/assets/vision_tower"),
    "IMAGE_ASPECT": "square",
    "MAX_LENGTH": "256",
    "WORKERS": "0",
    "LOGGING_STEPS": "10",
    "SAVE_STEPS": "1000000",
    "WARMUP_RATIO": "0.05",
    "COMPRESSION": "none",
}
"""The quickstart's settings of both phases (playground/quickstart/HYPERPARAMETERS.md), but for batches and steps.

Each training names a compression of its own.
"""


PHASES = {
    "pretrain": {"BATCH_SIZE": "64", "LEARNING_RATE": "3e-3"},
    "finetune": {"BATCH_SIZE": "16", "LEARNING_RATE": "1e-3"},
}
"""What the phases do not share."""

PROJECTOR_RATE = ("--mm_projector_lr", "2e-3")
"""Flag of the projector's learning rate in the second phase."""


def recipe_flags(
    recipe: str, settings: dict[str, str], extra: Sequence[str] = (), folder: str = IMAGE_RECIPES
) -> list[str]:
    """The trainer's flags that a recipe resolves to.

    Args:
        recipe: `pretrain` or `finetune`.
        settings: its environment variables.
        extra: flags of the command line.
        folder: folder of the recipe.

    Raises:
        ValueError: if the recipe refuses; says what it said.
    """
    use_cpu = {} if torch.cuda.is_available() else {"USE_CPU": "True"}
    printed = subprocess.run(
        ["bash", f"{folder}/{recipe}.sh", *extra],
        cwd=ROOT,
        env=_outside() | SHARED | PHASES[recipe] | use_cpu | settings | {"DRY_RUN": "1"},
        capture_output=True,
        text=True,
    )
    if printed.returncode:
        raise ValueError(f"{folder}/{recipe}.sh refused: {printed.stderr.strip()}")
    words = shlex.split(printed.stdout.strip().splitlines()[-1])
    return words[next(number for number, word in enumerate(words) if word.endswith("train_mem.py")) + 1 :]


def _outside() -> dict[str, str]:
    """What a recipe may see of this process's environment: nothing that it takes for a setting."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "CUDA_VISIBLE_DEVICES") if name in os.environ}


def identity() -> str:
    """Changes with the flags of both phases and with what any cell does."""
    flags = [recipe_flags("pretrain", {"OUTPUT_DIR": "here"}), recipe_flags("finetune", {"OUTPUT_DIR": "here"})]
    compressions = [cell.compression(0).to_dict() for cell in all_cells()]
    return hashlib.sha256(json.dumps([flags, PROJECTOR_RATE, compressions]).encode()).hexdigest()[:16]


def train_projector(place: Place, seed: int) -> None:
    """The first phase of a seed, uncompressed: all cells of the seed start from it."""
    done = place.projector(seed) / "mm_projector.bin"
    if done.is_file():
        return
    train_by_recipe(
        "pretrain",
        place.log(seed, "projector"),
        {
            "SEED": str(seed),
            "COMPRESSION": str(place.compression_file(seed, Cell(UNCOMPRESSED))),
            "DATA_PATH": str(place.data / "pretrain.json"),
            "IMAGE_FOLDER": str(place.data / "images"),
            "DATA_CACHE_DIR": str(place.root / "cache"),
            "OUTPUT_DIR": str(place.projector(seed)),
            "MAX_STEPS": str(place.settings.pretrain_steps),
        },
    )


def run_cell(place: Place, seed: int, cell: Cell) -> None:
    """The second phase under the cell's compression, then the held-out questions under the same.

    The uncompressed model answers under every compression besides (the training-free half of the study) and is kept.
    """
    uncompressed = cell.method == UNCOMPRESSED
    model = place.model(seed, cell)
    log = place.log(seed, cell.name)
    train_by_recipe(
        "finetune",
        log,
        {
            "SEED": str(seed),
            "COMPRESSION": str(place.compression_file(seed, cell)),
            "DATA_PATH": str(place.data / "instruct.json"),
            "IMAGE_FOLDER": str(place.data / "images"),
            "DATA_CACHE_DIR": str(place.root / "cache"),
            "OUTPUT_DIR": str(model),
            "ADAPTER": str(place.projector(seed) / "mm_projector.bin"),
            "MAX_STEPS": str(place.settings.finetune_steps),
        },
        PROJECTOR_RATE,
    )
    cells = [cell, *all_cells()] if uncompressed else [cell]
    out = place.training_free(seed) if uncompressed else place.trained(seed, cell)
    unfinished = out.with_name("unfinished-" + out.name)
    with said_to(log):
        evaluate(
            parse(
                [
                    "--model-path",
                    str(model),
                    "--questions",
                    str(place.data / "test.jsonl"),
                    "--image-folder",
                    str(place.data / "images"),
                    "--compression",
                    *(str(place.compression_file(seed, one)) for one in cells),
                    "--out",
                    str(unfinished),
                    "--traces",
                    "0",
                    "--blank" if uncompressed else "--no-blank",
                ]
            )
        )
    os.replace(unfinished, out)
    if not uncompressed:
        shutil.rmtree(model)


def train_by_recipe(
    recipe: str,
    log: Path,
    settings: dict[str, str],
    extra: Sequence[str] = (),
    folder: str = IMAGE_RECIPES,
    without: Sequence[str] = (),
) -> None:
    """Run a recipe in this process, unless its output is there already.

    Args:
        recipe, settings, extra, folder: as in `recipe_flags`; `settings` name an OUTPUT_DIR.
        log: file for all that the trainer says.
        without: flags of one value that are left out.
    """
    from llava.train.run_summary import SUMMARY_FILE
    from llava.train.train import train

    if (Path(settings["OUTPUT_DIR"]) / SUMMARY_FILE).is_file():
        return
    with said_to(log):
        words = recipe_flags(recipe, settings, extra, folder)
        for flag in without:
            at = words.index(flag)
            del words[at : at + 2]
        train([*words, "--overwrite_output_dir", "True"])


@contextlib.contextmanager
def said_to(log: Path) -> Iterator[None]:
    """Everything that this process says, from Python or below it, goes to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for copy, number in zip(kept, (1, 2), strict=True):
            os.dup2(copy, number)
            os.close(copy)
