"""Attacks on training: kills, signals, damaged checkpoints, full disks, second starts."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from distributed import weights
from tiny_llava import flags, write_assets
from torch import equal

from attack.damage import damages as damage_kinds
from attack.figures import Figures
from attack.programs import Ended, Running, limit_file_size, run
from llava.train.launch import run_and_exit
from llava.train.train import train

PREEMPTED = 75  # exit status of a run that was told to stop and saved
STEPS = 12
SAVING: dict[str, object] = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 3}
PHASES: dict[str, dict[str, object]] = {
    "pretrain": {},
    "finetune": {},
    "lora": {"lora_enable": True, "lora_r": 4},
}


class Trainings:
    """Runs of a tiny LLaVA in one scratch folder, and the weights that an undisturbed run ends with."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.assets = write_assets(scratch / "assets")
        self.undisturbed: dict[str, Path] = {}
        self.seconds: dict[str, float] = {}
        self._numbers = itertools.count()

    def program(self, phase: str, output: Path, **changes: object) -> Callable[[], object]:
        """A training as its command line starts it."""
        kind = "pretrain" if phase == "pretrain" else "finetune"
        words = flags(self.assets, output, kind, **(SAVING | PHASES[phase] | changes))
        return lambda: run_and_exit(lambda: train(words))

    def start(self, phase: str, output: Path, **changes: object) -> Running:
        """Begin one."""
        return Running(self.program(phase, output, **changes), self.log())

    def log(self) -> Path:
        """A new file for what a run says."""
        return self.scratch / f"run-{next(self._numbers)}.log"

    def folder(self) -> Path:
        """A new output folder, not made yet."""
        return self.scratch / f"out-{next(self._numbers)}"

    def reference(self, phase: str) -> Path:
        """The output of an undisturbed run."""
        if phase not in self.undisturbed:
            output = self.scratch / f"undisturbed-{phase}"
            ended = run(self.program(phase, output), self.log())
            if ended.status != 0:
                raise RuntimeError(f"The undisturbed run failed: {ended.said[-2000:]}")
            self.undisturbed[phase], self.seconds[phase] = output, ended.seconds
        return self.undisturbed[phase]

    def finish(self, phase: str, output: Path) -> Ended:
        """Give the command again, as a user would."""
        return run(self.program(phase, output), self.log())

    def difference(self, phase: str, output: Path) -> str | None:
        """What of the final weights differs from an undisturbed run's; None if nothing."""
        try:
            found, wanted = weights(output), weights(self.reference(phase))
        except (AssertionError, OSError) as error:
            return str(error)
        if found.keys() != wanted.keys():
            return f"other weights: {sorted(found.keys() ^ wanted.keys())[:3]}"
        different = [name for name in wanted if not equal(found[name], wanted[name])]
        return f"{len(different)} weights differ, {different[0]} among them" if different else None


def judge(figures: Figures, trainings: Trainings, phase: str, output: Path, ended: Ended, what: str) -> None:
    """Count how a run that was disturbed and started again ended."""
    if ended.status != 0:
        figures.note("not finished", f"{what}: status {ended.status}: {ended.last_line}")
    elif (wrong := trainings.difference(phase, output)) is not None:
        figures.note("other weights", f"{what}: {wrong}")
    else:
        figures.note("bit-identical end")
        shutil.rmtree(output)


def kills(trainings: Trainings, count: int, seed: int) -> Figures:
    """`kill -9` at a random moment, one to three times, then the same command again."""
    figures, draw = Figures("kill -9 of training"), random.Random(seed)
    for number in range(count):
        phase = list(PHASES)[number % len(PHASES)]
        trainings.reference(phase)
        output, moments, killed = trainings.folder(), [], 0
        for _ in range(draw.randint(1, 3)):
            moments.append(draw.uniform(0.0, 1.1) * trainings.seconds[phase])
            running = trainings.start(phase, output)
            time.sleep(moments[-1])
            killed += running.poll() is None
            running.kill()
            running.wait()
        figures.measured["kills that met a running process"] = (
            figures.measured.get("kills that met a running process", 0) + killed
        )
        ended = trainings.finish(phase, output)
        judge(figures, trainings, phase, output, ended, f"{phase} killed after {[round(m, 2) for m in moments]} s")
    return figures


SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGUSR1,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR2,
    signal.SIGPIPE,
    signal.SIGCONT,
    signal.SIGALRM,
    signal.SIGSTOP,
)


def signals(trainings: Trainings, count: int, seed: int) -> Figures:
    """Other signals at a random moment, to the process or its group, then the same command again."""
    figures, draw = Figures("signals to training"), random.Random(seed)
    for number in range(count):
        phase, sent = list(PHASES)[number % len(PHASES)], SIGNALS[number % len(SIGNALS)]
        trainings.reference(phase)
        output, moment = trainings.folder(), draw.uniform(0.1, 1.0) * trainings.seconds[phase]
        running = trainings.start(phase, output)
        time.sleep(moment)
        running.kill(sent, group=bool(number % 2))
        if sent == signal.SIGSTOP:
            time.sleep(1)
            running.kill(signal.SIGCONT)
        first = running.wait()
        what = f"{phase}, {sent.name} after {moment:.2f} s, first status {first.status}"
        if first.traceback and sent != signal.SIGINT:
            figures.failures.append(f"{what}: a traceback: {first.last_line}")
        judge(figures, trainings, phase, output, trainings.finish(phase, output), what)
    return figures


def damages(trainings: Trainings, count: int, seed: int) -> Figures:
    """Every file of the newest checkpoint damaged in every way: the run goes on from the one before, bit for bit."""
    figures, draw = Figures("damaged checkpoints"), random.Random(seed)
    trials = []
    for phase in PHASES:
        stopped = _half_way(trainings, phase)
        newest = max(stopped.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
        names = sorted(str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file())
        kinds = [(kind, damage) for kind, damage in damage_kinds(draw).items() if kind != "half a line more"]
        trials += [(phase, stopped, newest.name, name, kind, damage) for name in names for kind, damage in kinds]
    draw.shuffle(trials)
    for phase, stopped, newest_name, name, kind, damage in trials[:count]:
        output = trainings.folder()
        shutil.copytree(stopped, output)
        damage(output / newest_name / name)
        ended = trainings.finish(phase, output)
        what = f"{phase}: {name} of {newest_name} {kind}"
        if ended.status == 0 and newest_name not in ended.said:
            figures.failures.append(f"{what}: not said")
        judge(figures, trainings, phase, output, ended, what)
    return figures


def _half_way(trainings: Trainings, phase: str) -> Path:
    """A run that was killed after two checkpoints."""
    trainings.reference(phase)
    output = trainings.folder()
    running = trainings.start(phase, output)
    while not (output / "checkpoint-6").is_dir() and running.poll() is None:
        time.sleep(0.005)
    running.kill()
    running.wait()
    return output


def full_disks(trainings: Trainings, count: int, seed: int) -> Figures:
    """Files cannot grow beyond a random size, then they can: a sentence first, a bit-identical end after."""
    figures, draw = Figures("full disks"), random.Random(seed)
    for number in range(count):
        phase = list(PHASES)[number % len(PHASES)]
        largest = max(path.stat().st_size for path in trainings.reference(phase).rglob("*") if path.is_file())
        output, size = trainings.folder(), int(largest * draw.uniform(0.02, 1.0))
        first = run(trainings.program(phase, output), trainings.log(), limit_file_size(size))
        what = f"{phase} with files of at most {size} bytes, first status {first.status}"
        if first.traceback or (first.status != 0 and str(output) not in first.said):
            figures.failures.append(f"{what}: no sentence that names the folder: {first.last_line}")
        judge(figures, trainings, phase, output, trainings.finish(phase, output), what)
    return figures


def second_starts(trainings: Trainings, count: int, seed: int) -> Figures:
    """Three more starts into the folder of a run: they are refused in words, and the first ends as if alone."""
    figures, draw = Figures("second starts"), random.Random(seed)
    for number in range(count):
        phase = list(PHASES)[number % len(PHASES)]
        trainings.reference(phase)
        output = trainings.folder()
        first = trainings.start(phase, output)
        others = []
        for _ in range(3):
            time.sleep(draw.uniform(0.05, 0.3) * trainings.seconds[phase])
            changes = {"overwrite_output_dir": True} if draw.random() < 0.5 else {}
            others.append((first.poll() is None, trainings.start(phase, output, **changes)))
        ended = first.wait()
        for early, other in others:
            second = other.wait()
            if second.traceback or (early and second.status == 0 and "checkpoint" not in second.said.lower()):
                figures.failures.append(f"{phase}: a second start ended with {second.status}: {second.last_line}")
            figures.measured["second starts refused"] = figures.measured.get("second starts refused", 0) + (
                second.status not in (0, PREEMPTED)
            )
        judge(figures, trainings, phase, output, ended, f"{phase} with three more starts")
    return figures
