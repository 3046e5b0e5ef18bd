"""The table at the end of `scripts/reproduce.sh`: what a run gave beside the paper's row.

    python scripts/reproduce_table.py --preset duet-192 --folder ./checkpoints/reproduce/llava-v1.5-7b-duet-192

It reads `pretrain/train_summary.json`, `finetune/train_summary.json` and, if there, `results.json` from the folder: an
object with a number for each benchmark that `configs/paper/llava-1.5-7b.yaml` names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

PAPER = Path(__file__).resolve().parents[1] / "configs" / "paper" / "llava-1.5-7b.yaml"
PHASES = ("pretrain", "finetune")
AVERAGE = "Avg"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True, help="budget that was trained")
    parser.add_argument("--folder", type=Path, required=True, help="output of scripts/reproduce.sh")
    parser.add_argument("--uncompressed", type=Path, help="output for the preset none, to compare training times")
    options = parser.parse_args(arguments)
    print(report(options.preset, options.folder, options.uncompressed))


def report(preset: str, folder: Path, uncompressed: Path | None = None) -> str:
    """The scores and, below them, tokens and training times.

    Args:
        preset: name of a row of the paper; one that it lacks leaves the row empty.
        folder: of the run.
        uncompressed: of a run without compression on the same machine, for the share of time saved.
    """
    paper: dict[str, Any] = yaml.safe_load(PAPER.read_text(encoding="utf-8"))
    row = paper["rows"].get(preset, {})
    measured = read_json(folder / "results.json")
    if set(paper["benchmarks"]) <= set(measured):
        measured[AVERAGE] = relative_average(measured, paper["baseline"])
    columns = [*paper["benchmarks"], AVERAGE]
    lines = [
        table_line(preset, columns),
        table_line("paper", [written(row.get(name)) for name in columns]),
        table_line("measured", [written(measured.get(name)) for name in columns]),
        "",
        *(phase_line(name, read_json(folder / name / "train_summary.json")) for name in PHASES),
    ]
    if uncompressed is not None:
        lines.append(saving_line(folder, uncompressed, row.get("training_time_saved")))
    return "\n".join(lines)


def relative_average(scores: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Mean share of the baseline's scores, in per cent: the paper's last column."""
    return mean(100 * float(scores[name]) / whole for name, whole in baseline.items())


def phase_line(name: str, summary: Mapping[str, Any]) -> str:
    """Training time and visual tokens of a phase."""
    if not summary:
        return f"{name:<9} not trained yet"
    hours = summary["result"].get("train_runtime", 0.0) / 3600
    tokens = summary["average_visual_tokens"]
    return f"{name:<9} {hours:.2f} h, {tokens:.2f} visual tokens per image and layer on average"


def saving_line(folder: Path, uncompressed: Path, paper: float | None) -> str:
    """Training time of both phases as against the run without compression."""
    seconds = [sum(training_seconds(run / name) for name in PHASES) for run in (folder, uncompressed)]
    if not all(seconds):
        return "training time saved: one of the runs has no train_summary.json"
    saved = 100 * (1 - seconds[0] / seconds[1])
    return f"training time saved: {saved:.1f} % (paper: {written(paper)} %)"


def training_seconds(folder: Path) -> float:
    """Seconds that a phase took; 0 if it left no summary."""
    return float(read_json(folder / "train_summary.json").get("result", {}).get("train_runtime", 0.0))


def table_line(title: str, cells: Sequence[str]) -> str:
    """One row, cells set flush right."""
    return " ".join([f"{title:<14}", *(f"{cell:>7}" for cell in cells)]).rstrip()


def written(value: float | None) -> str:
    """A score with at most one decimal; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.1f}".removesuffix(".0") if value >= 1000 else f"{value:.1f}"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty without the file.

    Raises:
        ValueError: if the file holds anything else.
    """
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must hold a JSON object.")
    return content


if __name__ == "__main__":
    main()
