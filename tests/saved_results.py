"""Result files and trainings as the project writes them, and the tables that are made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.compression.config import CompressionConfig, presets
from llava.eval.scoring.benchmark_result import RESULT_SUFFIX, Result
from llava.eval.table import main

BASE = "liuhaotian/llava-v1.5-7b"
TITLES = {"pope": "POPE", "sqa": "SQA-I", "textvqa": "VQA-T", "mme": "MME", "gqa": "GQA"}
WHOLE = {"pope": 80.0, "sqa": 70.0, "textvqa": 50.0, "mme": 1500.0, "gqa": 60.0}
HALF_POPE = WHOLE | {"pope": 40.0}  # half in one of five benchmarks: 90 per cent on average


def save(
    folder: Path, scores: dict[str, float | None], model: str = BASE, compression: str = "none", **more: object
) -> None:
    """Result files of one model under one compression, in a folder of their own."""
    more = {"num_questions": 100, "num_answered": 100, "average_tokens": 576.0} | more
    place = folder / f"{len(list(folder.rglob('*')))}"
    place.mkdir(parents=True)
    known = (
        CompressionConfig.from_preset(compression).to_dict() if compression in presets() else {"v2v": {"dominant": 9}}
    )
    known = more.pop("config", known)
    for name, score in scores.items():
        result = Result(name, TITLES.get(name, name), model, compression, known, headline=score, **more)
        result.save(place / f"{name}{RESULT_SUFFIX}")


def save_training(folder: Path, compression: str, hours: float, **more: object) -> None:
    for phase, share in (("pretrain", 0.25), ("finetune", 0.75)):
        summary = {
            **more,
            "compression": CompressionConfig.from_preset(compression).to_dict(),
            "average_visual_tokens": 191.75,
            "result": {"train_runtime": 3600 * hours * share},
        }
        (folder / phase).mkdir(parents=True)
        (folder / phase / "train_summary.json").write_text(json.dumps(summary))


def table_of(text: str, title: str) -> tuple[list[dict[str, str]], list[str]]:
    """Lines, by heading, and notes of one table of a Markdown text."""
    part = next(part for part in text.split("## ")[1:] if part.startswith(title))
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines() if line.startswith("|")
    ]
    notes = [line.removeprefix("- ") for line in part.splitlines() if line.startswith("- ")]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]], notes


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err
