"""Where the study keeps what: one folder, whose settings never change."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llava.common.atomic_write import write_whole
from llava.common.folder_lock import LOCK_FILE
from llava.common.json_files import read_object, write_json
from playground.study.cells import Cell


@dataclass(frozen=True)
class StudySettings:
    """What decides the numbers.

    Attributes:
        seeds: models of every kind; seed s starts its projector and shuffles its data by s.
        pretrain_steps: steps of the projector, uncompressed, once a seed.
        finetune_steps: steps of projector and language model, once a cell and seed.
        data: sizes, and the identity of tower and language model.
        methods: identity of the recipes' flags and of all compressions.
    """

    seeds: int
    pretrain_steps: int
    finetune_steps: int
    data: str
    methods: str


@dataclass(frozen=True)
class Place:
    """The study's folder.

    Attributes:
        began: `time.perf_counter()` when the study that runs in it now was started, or started again.
    """

    root: Path
    settings: StudySettings
    began: float | None = None

    @classmethod
    def open(cls, root: Path, settings: StudySettings) -> Place:
        """Begin a study in a folder, or go on with it, with more seeds, too.

        Raises:
            ValueError: if the folder holds a study of other settings or of more seeds, or something else.
        """
        record = root / "study.json"
        if record.is_file():
            found = read_object(record, "remove the folder, or name another with STUDY_OUTPUT")
            if not _goes_on(found, settings):
                raise ValueError(
                    f"{root} holds a study of other settings ({found}; now {dataclasses.asdict(settings)}). Remove the "
                    "folder, or name another with STUDY_OUTPUT."
                )
        elif root.exists() and (not root.is_dir() or not only_locked(root)):
            raise ValueError(
                f"{root} holds something else than a study, which is left as it is; name a folder that is empty or new "
                "with STUDY_OUTPUT."
            )
        root.mkdir(parents=True, exist_ok=True)
        write_json(record, dataclasses.asdict(settings), indent=2)
        return cls(root, settings)

    @property
    def seconds(self) -> float | None:
        """How long the study has run, up to now; None where it does not run and no time is noted."""
        return self.noted if self.began is None else (self.noted or 0.0) + time.perf_counter() - self.began

    @property
    def noted(self) -> float | None:
        """How long it had run when it last ended; None where nobody noted it, or the note is damaged."""
        record = self.root / "seconds.txt"
        try:
            seconds = float(record.read_text()) if record.is_file() else math.nan
        except (OSError, ValueError):
            return None
        return seconds if 0 <= seconds < math.inf else None

    @property
    def data(self) -> Path:
        """Images and question files."""
        return self.root / "data"

    def projector(self, seed: int) -> Path:
        """Output of the first phase."""
        return self.root / f"seed-{seed}" / "projector"

    def model(self, seed: int, cell: Cell) -> Path:
        """Output of the second phase."""
        return self.root / f"seed-{seed}" / "models" / cell.name

    def training_free(self, seed: int) -> Path:
        """Answers of the uncompressed model under every compression."""
        return self.root / f"seed-{seed}" / "training-free.json"

    def trained(self, seed: int, cell: Cell) -> Path:
        """Answers of the model that was trained under the cell's compression."""
        return self.root / f"seed-{seed}" / "trained" / f"{cell.name}.json"

    def log(self, seed: int, name: str) -> Path:
        """What training and evaluation said."""
        return self.root / f"seed-{seed}" / "logs" / f"{name}.log"

    def compression_file(self, seed: int, cell: Cell) -> Path:
        """The cell's compression as YAML, written when it is asked for."""
        path = self.root / f"seed-{seed}" / "compressions" / f"{cell.name}.yaml"
        text = yaml.safe_dump(cell.compression(seed).to_dict(), sort_keys=False)
        return path if path.is_file() and path.read_bytes() == text.encode() else write_whole(path, text)


def only_locked(folder: Path) -> bool:
    """Whether a folder holds nothing but the lock of a study that is about to begin in it."""
    return all(path.name.startswith(LOCK_FILE) for path in folder.iterdir())


def _goes_on(found: Mapping[str, Any], settings: StudySettings) -> bool:
    """Whether a study of these settings may go on where one was recorded: nothing but the number of seeds has grown."""
    asked = dataclasses.asdict(settings)
    seeds = found.get("seeds")
    grown = isinstance(seeds, int) and seeds < settings.seeds
    return found == asked or (grown and {**found, "seeds": settings.seeds} == asked)
