"""The result file of one benchmark: numbers, and the model, budget, settings and machine that they belong to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from llava.common.json_files import LARGEST_SETTINGS, need, parse_json, write_json
from llava.common.outside_files import files_below, read_bytes
from llava.common.shown import shown

RESULT_SUFFIX = ".result.json"


@dataclass(frozen=True)
class Result:
    """What one model under one compression scored on one benchmark.

    Attributes:
        benchmark: name, as `--benchmarks` takes it.
        title: column of the paper's tables.
        model: path or hub name.
        compression: its name: a preset, the name of a file, `none`, or `own` for what the checkpoint carries and no
            preset equals.
        compression_config: what `CompressionConfig.to_dict` gives.
        average_tokens: visual tokens that a decoder layer saw, mean over layers and over the questions with images, as
            counted while answering; None where no question had an image.
        num_questions: number of questions of the benchmark.
        num_answered: number of these that have an answer.
        headline, values, notes: as in `Scores`.
        num_counted: answers that the headline is about, where a judge left some ungraded; else None.
        empty: answers without a visible character; None in files that did not count them.
        unreadable: others that no rule of scoring reads, or that a judge's grade could not be read for.
        versions: versions of Python, torch, transformers and this project.
        device: device in words, e.g. `NVIDIA H100` or `x86_64 CPU, 2 cores`.
        seed: seed of sampling and of random choices.
        settings: temperature, conv_mode, batch_size, max_new_tokens and so on.
        judge: model as it was asked for (`model`) and as the server names it (`answered_as`), endpoint, prompt version
            and temperature of the judge; None where none was asked.
        seconds: spent answering, over all devices' common clock.
        date: ISO 8601, in UTC.
        answers: digest of the questions and answers that the numbers are about.
    """

    benchmark: str
    title: str
    model: str
    compression: str
    compression_config: Mapping[str, Any]
    average_tokens: float | None
    num_questions: int
    num_answered: int
    headline: float | None
    values: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    num_counted: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    judge: Mapping[str, Any] | None = None
    seconds: float | None = None
    date: str = ""
    answers: str = ""
    empty: int | None = None
    unreadable: int | None = None

    @property
    def complete(self) -> bool:
        """Whether every question has an answer that counts."""
        counted = self.num_answered if self.num_counted is None else self.num_counted
        return counted == self.num_questions

    def save(self, path: Path) -> None:
        """Write the file in one step, so that a kill leaves the old one or the new one."""
        write_json(path, dataclasses.asdict(self), indent=2)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read a result file.

        Raises:
            ValueError: if it is not one.
        """
        try:
            data = parse_json(read_bytes(path, LARGEST_SETTINGS), strict=True)
            if not isinstance(data, dict):
                raise ValueError(f"it holds {shown(data, 60)}, not a JSON object.")
            return cls(**_checked(data))
        except ValueError as error:
            said = str(error).removesuffix(".")
            raise ValueError(
                f"{path} is not a result file of llava.eval.run: {said}; remove it, or score the answers again."
            ) from error


def _json_type(hint: Any) -> tuple[type, bool]:
    """The type that a field has in JSON, and whether null may stand there."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kind = get_origin(kinds[0]) or kinds[0]
    return {Mapping: dict, tuple: list}.get(kind, kind), type(None) in kinds


def _checked(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a result file.

    Raises:
        ValueError: if one is missing, unknown or of another type.
    """
    kinds = {name: _json_type(hint) for name, hint in get_type_hints(Result).items()}
    unknown = [key for key in data if key not in kinds]
    if unknown:
        raise ValueError(f"it has the unknown field {shown(unknown[0])}.")
    needed = {entry.name for entry in fields(Result) if entry.default is MISSING and entry.default_factory is MISSING}
    for key, (kind, optional) in kinds.items():
        if key in data or key in needed:
            need(data, key, kind, "it", optional and key in data)
    for key in data.get("values", {}):
        need(data["values"], key, float, "its values")
    for note in data.get("notes", ()):
        need({"a note": note}, "a note", str, "it")
    if isinstance(data.get("judge"), dict) and not isinstance(data["judge"].get("answered_as"), list | None):
        raise ValueError(f"answered_as in its judge is {shown(data['judge']['answered_as'])}; it must be a list.")
    return data | {"notes": tuple(data.get("notes", ()))}


def find_results(folder: Path) -> list[tuple[Path, Result]]:
    """All result files below a folder, in the order of their paths.

    Raises:
        ValueError: if the folder does not exist, or a file is not a result file.
        OSError: if a folder below cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the --output of llava.eval.run.")
    return [(path, Result.load(path)) for path in files_below(folder, RESULT_SUFFIX)]
