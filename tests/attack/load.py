"""Load: long runs whose memory must not grow, large tables, many programs at one cache."""

from __future__ import annotations

import time
from pathlib import Path

from eval_small import Squares, texts, write_squares

from attack.evaluation import MODEL, Evaluations
from attack.figures import Figures
from attack.programs import Ended, Running
from attack.training import Trainings
from llava.bench.data_memory import write_conversations
from llava.data.store import open_records
from llava.eval.run import main

MIB = 2**20
GROWTH = 0.10  # a run's memory may grow by this share between its first and its last quarter


def resident(pid: int) -> int:
    """Bytes of a process that lie in memory; 0 if it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def watched(running: Running) -> tuple[Ended, list[int]]:
    """The end of a program, and its memory at every tenth of a second."""
    sizes = []
    while running.poll() is None:
        sizes.append(resident(running.pid))
        time.sleep(0.1)
    return running.wait(), [size for size in sizes if size]


def growth(sizes: list[int]) -> float:
    """Share by which the median of the last quarter lies above that of the second, when everything is loaded."""
    quarter = max(1, len(sizes) // 4)
    second, last = sorted(sizes[quarter : 2 * quarter] or sizes), sorted(sizes[-quarter:])
    return last[len(last) // 2] / second[len(second) // 2] - 1


def load(scratch: Path, count: int, seed: int) -> Figures:
    """A training of 100 x count steps, 100 x count questions, a table of 5,000 x count records, 8 programs at once."""
    figures = Figures("load")
    _long_training(figures, scratch, 100 * count)
    _many_questions(figures, scratch, 100 * count)
    _large_table(figures, scratch, 5000 * count, seed)
    _one_cache(figures, scratch, 8)
    return figures


def _long_training(figures: Figures, scratch: Path, steps: int) -> None:
    trainings = Trainings(_made(scratch / "training"))
    output = trainings.folder()
    ended, sizes = watched(trainings.start("finetune", output, max_steps=steps, save_steps=steps // 4 or 1))
    grown = growth(sizes)
    figures.measured |= {
        "training: steps": steps,
        "training: seconds": ended.seconds,
        "training: peak MiB": max(sizes) / MIB,
        "training: growth": grown,
    }
    wrong = f"status {ended.status}: {ended.last_line}" if ended.status else f"grew by {grown:.0%}"
    figures.note("a long training", wrong if ended.status or grown > GROWTH else None)


def _many_questions(figures: Figures, scratch: Path, questions: int) -> None:
    runs = Evaluations(_made(scratch / "evaluation"))
    folder = _made(scratch / "many")
    path = write_squares(folder / "eval", questions)
    words = ["--model-path", str(runs.model), "--eval-folder", str(folder / "eval"), "--output", str(folder / "out")]
    words += ["--max-new-tokens", "2", "--batch-size", "8", "--device", "cpu"]
    ended, sizes = watched(Running(lambda: main(words, [Squares()]), runs.log()))
    grown = growth(sizes)
    figures.measured |= {
        "evaluation: questions": questions,
        "evaluation: seconds": ended.seconds,
        "evaluation: peak MiB": max(sizes) / MIB,
        "evaluation: growth": grown,
    }
    answers = folder / "out" / MODEL / "own" / "squares.answers.jsonl"
    said = len(texts(answers)) if answers.is_file() else 0
    wrong = f"status {ended.status}: {ended.last_line}; {said} of {questions} answers of {path}; grew by {grown:.0%}"
    figures.note("many questions", wrong if ended.status or said != questions or grown > GROWTH else None)


def _large_table(figures: Figures, scratch: Path, records: int, seed: int) -> None:
    path = _made(scratch / "table") / "records.json"
    write_conversations(path, records, seed)
    lengths: list[int] = []
    for name in ("first", "second"):
        began = time.monotonic()
        ended, sizes = watched(
            Running(lambda: int(len(open_records(path, path.parent / "cache")) != records), path.with_suffix(".log"))
        )
        figures.measured |= {
            f"table: seconds of the {name} opening": time.monotonic() - began,
            f"table: peak MiB of the {name} opening": max(sizes, default=0) / MIB,
        }
        lengths.append(ended.status)
    figures.measured |= {"table: records": records, "table: MiB of JSON": path.stat().st_size / MIB}
    figures.note("a large table", f"statuses {lengths}" if any(lengths) else None)


def _one_cache(figures: Figures, scratch: Path, programs: int) -> None:
    """Trainings that begin together build the same tables, each trains into its own folder."""
    trainings = Trainings(_made(scratch / "together"))
    trainings.reference("finetune")
    cache = trainings.scratch / "tables"
    outputs = [trainings.folder() for _ in range(programs)]
    started = [trainings.start("finetune", output, data_cache_dir=cache) for output in outputs]
    for output, running in zip(outputs, started, strict=True):
        ended = running.wait()
        wrong = ended.last_line if ended.status else trainings.difference("finetune", output)
        figures.note("one of several at one cache", wrong)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
