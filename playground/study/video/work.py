"""Trains a Video-LLaVA of the playground by the recipes of scripts/videollava, and asks it by `llava.eval.run`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from llava.common.json_lines import read_objects
from llava.eval import run as evaluation
from llava.eval.benchmarks.video_qa import VideoQA, normalised
from playground.clips.build import WHOLE, folder_of
from playground.study.cells import UNCOMPRESSED, Cell
from playground.study.place import Place
from playground.study.video.cells import VideoCell, video_cells
from playground.study.work import ROOT, recipe_flags, said_to, train_by_recipe

RECIPES = "scripts/videollava/v1_5"
PROJECTOR = "mm_projector.bin"


@dataclass(frozen=True)
class Phase:
    """One training.

    Attributes:
        name: folder of its output.
        recipe: `pretrain` or `finetune`.
        data: file of the study's data.
        batch, rate: samples a step, and the learning rate.
    """

    name: str
    recipe: str
    data: str
    batch: int
    rate: float


PHASES = (
    Phase("projector", "pretrain", "pretrain.json", 48, 3e-3),
    Phase("pictures", "finetune", "pictures.json", 24, 1e-3),
    Phase("clips", "finetune", "clips.json", 6, 1e-3),
)
"""Captions teach the projector; then language model and projector learn from pictures, and from clips."""

LAST = Phase("last", "finetune", "clips.json", 6, 5e-4)
"""Training on clips goes on under a compression, or without one; each starts from the model of all phases before."""


@dataclass(frozen=True)
class Steps:
    """How many steps each phase has."""

    pretrain: int
    pictures: int
    clips: int
    last: int


def train(place: Place, seed: int, steps: Steps) -> None:
    """Run the phases of a seed that are not done: those that all its models share, then the last for each model.

    Args:
        place: the study's folder.
        seed: starts the projector and shuffles the data.
        steps: of each phase.
    """
    uncompressed = VideoCell(UNCOMPRESSED)
    before = place.root
    for phase, count in zip(PHASES, (steps.pretrain, steps.pictures, steps.clips), strict=True):
        before = _run(place, seed, phase, count, before, Cell(phase.name), uncompressed)
    for cell in dict.fromkeys(cell.model for cell in video_cells()):
        _run(place, seed, LAST, steps.last, before, cell, cell)


def _run(place: Place, seed: int, phase: Phase, steps: int, before: Path, output: Cell, under: VideoCell) -> Path:
    """Train on from the folder of the phase before; returns the folder of what came out."""
    folder = place.model(seed, output)
    settings = _settings(place, seed, phase) | {"MAX_STEPS": str(steps), "OUTPUT_DIR": str(folder)}
    settings["COMPRESSION"] = str(place.compression_file(seed, under))
    extra: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    if phase.recipe == "finetune":
        extra = ("--mm_projector_lr", str(2 * phase.rate))
        if (before / PROJECTOR).is_file():
            settings["ADAPTER"] = str(before / PROJECTOR)
        else:  # a whole model has its towers and its projector
            settings["MODEL"] = str(before)
            without = ("--image_tower", "--video_tower", "--pretrain_mm_mlp_adapter")
    train_by_recipe(phase.recipe, place.log(seed, output.name), settings, extra, RECIPES, without)
    return folder


def _settings(place: Place, seed: int, phase: Phase) -> dict[str, str]:
    towers = place.data / "towers"
    return {
        "BATCH_SIZE": str(phase.batch),
        "LEARNING_RATE": str(phase.rate),
        "MAX_EXPANDED_LENGTH": "1024",
        "SEED": str(seed),
        "VERSION": "plain" if phase.recipe == "pretrain" else "v1",
        "IMAGE_TOWER": str(towers / "image"),
        "VIDEO_TOWER": str(towers / "video"),
        "DATA_PATH": str(place.data / phase.data),
        "IMAGE_FOLDER": str(place.data / "images"),
        "VIDEO_FOLDER": str(place.data / "videos"),
        "DATA_CACHE_DIR": str(place.root / "cache"),
    }


class Clips(VideoQA):
    """The whole clips."""

    name = title = WHOLE
    folder = folder_of(WHOLE)
    max_new_tokens = 16


class FirstFrame(Clips):
    """Their first frames."""

    name = title = "first"
    folder = folder_of("first")


class MiddleFrame(Clips):
    """Their middle frames."""

    name = title = "middle"
    folder = folder_of("middle")


class LastFrame(Clips):
    """Their last frames."""

    name = title = "last"
    folder = folder_of("last")


SETS = {one.name: one for one in (Clips, FirstFrame, MiddleFrame, LastFrame)}
"""Benchmarks by the frames that they show."""


def ask(place: Place, seed: int, cell: VideoCell) -> list[tuple[str, bool]]:
    """Ask the model of a row its held-out questions; answers that are there are not asked again.

    Returns:
        the kind of each question, and whether its answer is the right one, word by word.

    Raises:
        ValueError: if some question has no answer; says where the log is.
    """
    log, output = place.log(seed, f"ask-{cell.name}"), place.root / f"seed-{seed}" / "answers" / cell.name
    benchmark = SETS[cell.shown]()
    with said_to(log):
        status = evaluation.main(
            [
                "--model-path",
                str(place.model(seed, cell.model)),
                "--eval-folder",
                str(place.data / "eval"),
                "--compression",
                str(place.compression_file(seed, cell)),
                "--output",
                str(output),
                "--no-judge",
                "--batch-size",
                "20",
            ],
            [benchmark],
        )
    if status:
        raise ValueError(f"Not all questions of {cell.name} were answered; {log} says why.")
    (path,) = output.rglob(f"{benchmark.name}.submission.jsonl")
    lines = read_objects(path, "remove it and run the study again")
    return [(line["id"].split("-")[1], normalised(line["pred"]) == normalised(line["answer"])) for line in lines]


def identity() -> str:
    """Changes with the flags of all phases and with what any row does, not with where the repository lies."""
    phases = (*PHASES, LAST)
    flags = [recipe_flags(phase.recipe, {"OUTPUT_DIR": "here"}, (), RECIPES) for phase in phases]
    compressions = [cell.compression(0).to_dict() for cell in video_cells()]
    known = json.dumps([flags, [dataclasses.asdict(phase) for phase in phases], compressions])
    return hashlib.sha256(known.replace(str(ROOT), "").encode()).hexdigest()[:16]
