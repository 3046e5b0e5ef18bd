"""Times cases in turn: wall-clock and processor seconds, and the most memory that the device gave out meanwhile.

All cases run once to warm up, then in rounds (A B C A B C), so that a change of load or clock touches all of them.
Running out of memory is the result of a case, not the end of the run.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from llava.bench.cases import Case
from llava.cost.timing import wait_for


@dataclass(frozen=True)
class Taken:
    """What one call took.

    Attributes:
        wall: seconds of the clock on the wall, the device waited for.
        cpu: seconds of the processor in all threads of this process.
        peak: most bytes of tensors on a GPU, what was there before included; None on a CPU.
    """

    wall: float
    cpu: float
    peak: int | None


@dataclass
class Measured:
    """What all rounds of a case took, the warm-up left out; why it ended, if it ran out of memory."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: int | None = None
    error: str | None = None

    def add(self, taken: Taken) -> None:
        """Another round."""
        self.wall.append(taken.wall)
        self.cpu.append(taken.cpu)
        if taken.peak is not None:
            self.peak = max(self.peak or 0, taken.peak)

    def seconds(self, clock: str) -> float:
        """Median of the rounds, by `wall` or `cpu`."""
        return median(self.cpu if clock == "cpu" else self.wall)


@dataclass(frozen=True)
class Round:
    """What one round took, by the names of the cases; round 0, the warm-up, comes case by case."""

    number: int
    taken: Mapping[str, Taken]
    errors: Mapping[str, str]

    def note_in(self, measured: Mapping[str, Measured]) -> None:
        """Add it to the measurements of its cases; what the warm-up took is left out."""
        for name, error in self.errors.items():
            measured[name].error = error
        for name, taken in self.taken.items():
            if self.number:
                measured[name].add(taken)


def figure_of(device: torch.device) -> str:
    """The clock that counts: that on the wall on a GPU or with several threads, `cpu` where one thread does it all.

    Processor seconds of one thread do not grow while other programs take their turns on its core.
    """
    return "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def rounds(
    cases: Sequence[Case], repeats: int, device: torch.device, left: Callable[[], float] | None = None
) -> Iterator[Round]:
    """Run all cases to warm up, then in rounds.

    Args:
        cases: work to time, with names that differ.
        repeats: rounds behind the warm-up; at least one.
        device: waited for before and behind each.
        left: seconds that are left; another round begins only while there is time for it. None does not ask.
    """
    alive = list(cases)
    for case in cases:
        taken, error = attempt(case, device)
        if error is not None:
            alive.remove(case)
        yield Round(0, {} if taken is None else {case.name: taken}, {} if error is None else {case.name: error})
    last = 0.0
    for number in range(1, repeats + 1):
        if number > 1 and left is not None and left() < 1.5 * last + 2:
            return
        began = time.monotonic()
        found: dict[str, Taken] = {}
        errors: dict[str, str] = {}
        for case in list(alive):
            taken, error = attempt(case, device)
            if taken is not None:
                found[case.name] = taken
            else:
                alive.remove(case)
                errors[case.name] = error or ""
        last = time.monotonic() - began
        yield Round(number, found, errors)


def in_turn(cases: Sequence[Case], repeats: int, device: torch.device) -> dict[str, Measured]:
    """What all rounds of each case took, by its name."""
    measured = {case.name: Measured() for case in cases}
    for one in rounds(cases, repeats, device):
        one.note_in(measured)
    return measured


def attempt(case: Case, device: torch.device) -> tuple[Taken | None, str | None]:
    """What a call takes, or why it ran out of memory; what it had taken is free again then."""
    error = None
    try:
        return _timed(case, device), None
    except torch.OutOfMemoryError as problem:
        error = f"out of memory: {str(problem).splitlines()[0]}"
    gc.collect()  # outside the handler, whose traceback holds the tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, error


def _timed(case: Case, device: torch.device) -> Taken:
    ready = case.before()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    wait_for(device)
    wall, cpu = time.perf_counter(), time.process_time()
    case.run(ready)
    wait_for(device)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Taken(wall, cpu, torch.cuda.max_memory_allocated(device) if on_gpu else None)
