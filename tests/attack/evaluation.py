"""Attacks on evaluation: kills, Ctrl-C, damaged answers, full disks, second starts."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from eval_small import Squares, texts, write_squares
from tiny_folder import write_model

from attack.damage import damages as damage_kinds
from attack.figures import Figures
from attack.programs import Ended, Running, limit_file_size, run
from llava.common.program import INTERRUPTED, as_program
from llava.eval.run import main
from llava.eval.runner.result_files import BenchmarkFiles

QUESTIONS = 24
MODEL = "llava-v1.5-tiny"
PATIENCE_OF_A_USER = 60.0  # seconds from Ctrl-C to the end


class Evaluations:
    """Evaluations of a tiny LLaVA in one scratch folder, and the answers of one that nothing disturbed."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.model = write_model(scratch / "models" / MODEL, max_position_embeddings=2048)
        write_squares(scratch / "eval", QUESTIONS)
        self._numbers = itertools.count()
        self.undisturbed = self.folder()
        ended = self.finish(self.undisturbed)
        if ended.status != 0:
            raise RuntimeError(f"The undisturbed evaluation failed: {ended.said[-2000:]}")
        self.seconds = ended.seconds

    def program(self, output: Path, *words: str) -> Callable[[], int]:
        """An evaluation as its command line starts it."""
        base = ["--model-path", str(self.model), "--eval-folder", str(self.scratch / "eval"), "--output", str(output)]
        base += ["--max-new-tokens", "4", "--batch-size", "2", "--device", "cpu"]
        return lambda: main([*base, *words], [Squares()])

    def log(self) -> Path:
        """A new file for what a run says."""
        return self.scratch / f"run-{next(self._numbers)}.log"

    def folder(self) -> Path:
        """A new output folder, not made yet."""
        return self.scratch / f"out-{next(self._numbers)}"

    def start(self, output: Path, *words: str) -> Running:
        """Begin one."""
        return Running(self.program(output, *words), self.log())

    def finish(self, output: Path) -> Ended:
        """Give the command again, as a user would."""
        return run(self.program(output), self.log())

    def judge(self, figures: Figures, output: Path, ended: Ended, what: str) -> None:
        """Count how an evaluation that was disturbed and started again ended."""
        if ended.status != 0:
            figures.note("not finished", f"{what}: status {ended.status}: {ended.last_line}")
        elif self.answers(output) != self.answers(self.undisturbed):
            figures.note("other answers", f"{what}: other answers than undisturbed")
        else:
            figures.note("the same answers and score")
            shutil.rmtree(output)

    def answers(self, output: Path) -> tuple[list[str], str]:
        """The answers in order, and the headline of the result."""
        place = self.place(output)
        return texts(place.answers.path), place.result.read_text().partition('"headline"')[2].partition(",")[0]

    def place(self, output: Path) -> BenchmarkFiles:
        """Where the files of the benchmark lie."""
        return BenchmarkFiles(output / MODEL / "own", "squares")


def kills(runs: Evaluations, count: int, seed: int) -> Figures:
    """`kill -9` at a random moment, one to three times, then the same command again."""
    figures, draw = Figures("kill -9 of evaluation"), random.Random(seed)
    for _ in range(count):
        output, moments = runs.folder(), []
        for _ in range(draw.randint(1, 3)):
            moments.append(draw.uniform(0.0, 1.1) * runs.seconds)
            running = runs.start(output)
            time.sleep(moments[-1])
            running.kill()
            running.wait()
        runs.judge(figures, output, runs.finish(output), f"killed after {[round(m, 2) for m in moments]} s")
    return figures


def interrupts(runs: Evaluations, count: int, seed: int) -> Figures:
    """Ctrl-C at a random moment: a word and status 130 in time, then the same command again."""
    figures, draw = Figures("Ctrl-C in evaluation"), random.Random(seed)
    for _ in range(count):
        output, moment = runs.folder(), draw.uniform(0.1, 0.9) * runs.seconds
        program, log = runs.program(output), runs.log()
        running = Running(lambda program=program: as_program(program), log)
        time.sleep(moment)
        running.kill(signal.SIGINT)
        began = time.monotonic()
        ended = running.wait()
        what = f"Ctrl-C after {moment:.2f} s"
        if ended.status == 0:
            figures.note("ended before", None)
        elif ended.status != INTERRUPTED or not ended.last_line.startswith("Stopped."):
            figures.note("no word", f"{what}: status {ended.status}: {ended.last_line}")
        elif time.monotonic() - began > PATIENCE_OF_A_USER:
            figures.note("late", f"{what}: it took more than {PATIENCE_OF_A_USER:g} s")
        else:
            runs.judge(figures, output, runs.finish(output), what)
    return figures


KINDS = ("zeroed", "garbled", "cut short", "half a line more", "removed")  # a bit of a stored answer has no digest


def damages(runs: Evaluations, count: int, seed: int) -> Figures:
    """Every file of an unfinished evaluation damaged: the command names the file, or ends with the same answers."""
    figures, draw = Figures("damaged evaluations"), random.Random(seed)
    half_way = runs.folder()
    running = runs.start(half_way)
    while not runs.place(half_way).answers.all_parts() and running.poll() is None:
        time.sleep(0.002)
    running.kill()
    running.wait()
    names = sorted(str(path.relative_to(half_way)) for path in half_way.rglob("*") if _filled(path))
    trials = [(name, kind, damage) for name in names for kind, damage in damage_kinds(draw).items() if kind in KINDS]
    draw.shuffle(trials)
    for name, kind, damage in trials[:count]:
        output = runs.folder()
        shutil.copytree(half_way, output)
        damage(output / name)
        ended = runs.finish(output)
        if ended.status != 0 and not ended.traceback and Path(name).name in ended.said:
            figures.note("refused, naming the file")
        else:
            runs.judge(figures, output, ended, f"{name} {kind}")
    return figures


def full_disks(runs: Evaluations, count: int, seed: int) -> Figures:
    """Files cannot grow beyond a random size, then they can: a sentence first, the same answers after."""
    figures, draw = Figures("full disks under evaluation"), random.Random(seed)
    for _ in range(count):
        output, size = runs.folder(), draw.randrange(1000, 4000)  # what it says goes to a file as well
        first = run(runs.program(output), runs.log(), limit_file_size(size))
        what = f"files of at most {size} bytes, first status {first.status}"
        if first.traceback or (first.status != 0 and str(output) not in first.said):
            figures.failures.append(f"{what}: no sentence that names the folder: {first.last_line}")
        runs.judge(figures, output, runs.finish(output), what)
    return figures


def second_starts(runs: Evaluations, count: int, seed: int) -> Figures:
    """The same command once more while it runs: at the end the answers are those of one run."""
    figures, draw = Figures("second starts of evaluation"), random.Random(seed)
    for _ in range(count):
        output = runs.folder()
        first = runs.start(output)
        time.sleep(draw.uniform(0.05, 0.6) * runs.seconds)
        second = runs.start(output, *(["--fresh"] if draw.random() < 0.5 else [])).wait()
        ended = first.wait()
        if second.traceback or ended.traceback:
            figures.failures.append(f"a traceback: {(second if second.traceback else ended).last_line}")
        what = f"second start ended with {second.status}, first with {ended.status}"
        runs.judge(figures, output, ended if ended.status == 0 else runs.finish(output), what)
    return figures


def _filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
