"""Where the time of a case goes, part by part, from a profile of one more call; the timed calls are not disturbed.

What the profiler adds is taken out again: parts add up to what the timed calls took.

Parts are the ranges `llava.NAME` that the model opens for torch's profiler at its seams, and torch's own of data loader
and optimizer. What the backward pass does belongs to the part whose forward made the graph: autograd gives both the
same sequence number. On a GPU the time is that of its kernels, on a CPU that of the operations themselves.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from llava.bench.cases import Case
from llava.cost.timing import wait_for

OWN = "llava."
WHOLE = "llava.whole"
OTHER = "other"
WAITING = "waiting"
"""Of a GPU: the time in which it runs no kernel."""
_OF_TORCH = {"enumerate(DataLoader)#": "data", "Optimizer.step#": "optimizer", "Optimizer.zero_grad#": "optimizer"}
_ORDER = ("data", "images", "tower", "v2v", "projector", "splice", "scoring", "drop", "layers", "loss", "optimizer")
_BACKWARD = "autograd::engine::evaluate_function: "


@dataclass
class Part:
    """Milliseconds of a part, forward (recomputation is backward) and backward."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        """Both."""
        return self.forward + self.backward


@dataclass
class Attribution:
    """What one call did.

    Attributes:
        parts: by name.
        wall: milliseconds from begin to end, with what the profiler adds.
        device: whether parts are of a GPU's kernels; it idles for what is missing of `wall`.
        peak: most bytes that were allocated beyond those that were there; None on a GPU.
    """

    parts: dict[str, Part] = field(default_factory=dict)
    wall: float = 0.0
    device: bool = False
    peak: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Values of a row."""
        return {
            "parts_ms": {
                name: {"forward": round(part.forward, 3), "backward": round(part.backward, 3)}
                for name, part in ordered(self.parts).items()
            },
            "profiled_ms": round(self.wall, 3),
            "parts_are_of": "device kernels" if self.device else "processor",
        }


def matched(found: Attribution, seconds: float) -> Attribution:
    """The same parts, adding up to what a timed call took.

    Args:
        found: parts of a profiled call.
        seconds: seconds of a timed one. On a CPU parts are scaled to it; a GPU waits for what its kernels leave of it.
    """
    whole = sum(part.total for part in found.parts.values())
    if found.device:
        waiting = {WAITING: Part(max(0.0, seconds * 1e3 - whole))}
        return replace(found, parts=found.parts | waiting)
    scale = seconds * 1e3 / whole if whole else 1.0
    parts = {name: Part(part.forward * scale, part.backward * scale) for name, part in found.parts.items()}
    return replace(found, parts=parts)


def attributed(case: Case, device: torch.device) -> Attribution:
    """Run a case once under torch's profiler."""
    on_gpu = device.type == "cuda"
    ready = case.before()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    wait_for(device)
    profiler = profile(activities=activities, profile_memory=not on_gpu, acc_events=True)
    with ExitStack() as stack:
        with profiler:
            with record_function(WHOLE):
                case.run(ready)
                wait_for(device)
            stack.enter_context(_without_collections())
        events = [event for event in profiler.events() if event.device_type == DeviceType.CPU and not event.is_async]
        found = Attribution(device=on_gpu, peak=None if on_gpu else _peak(profiler))
        whole = [event for event in events if event.name == WHOLE]
        found.wall = sum(event.time_range.elapsed_us() for event in whole) / 1e3
        _add_up(events, found)
    return found


@contextmanager
def _without_collections() -> Iterator[None]:
    """No garbage collection: among a profile's records, ten thousands that all stay, collections take half the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _add_up(events: Sequence[Any], found: Attribution) -> None:
    """Give the time of every event, what is nested in it left out, to a part."""
    made_by: dict[int, str] = {}  # the part whose forward made a node of the graph, by sequence number
    roots = sorted((event for event in events if event.cpu_parent is None), key=lambda event: event.time_range.start)
    backward = []
    for event, part in _forward(roots):
        if event.name.startswith(_BACKWARD):
            backward.append(event)
            continue
        if event.sequence_nr >= 0:
            made_by[event.sequence_nr] = part  # the last operation with a number is the one that makes the node
        found.parts.setdefault(part, Part()).forward += _own_time(event, found.device)
    last = OTHER
    for event in sorted(backward, key=lambda event: event.time_range.start):
        # Gradients of weights are added up by nodes without a number, right behind the node that gave them.
        last = made_by.get(event.sequence_nr, last)
        for inner in _inside(event):
            found.parts.setdefault(last, Part()).backward += _own_time(inner, found.device)


def _forward(roots: Iterable[Any]) -> Iterable[tuple[Any, str]]:
    """Events outside the backward pass and its topmost ones, in order of their start, with the part around each."""
    waiting = [(event, OTHER) for event in reversed(list(roots))]
    while waiting:
        event, around = waiting.pop()
        part = part_of(event.name) or around
        yield event, part
        if not event.name.startswith(_BACKWARD):
            inner = sorted(event.cpu_children, key=lambda child: child.time_range.start)
            waiting += [(child, part) for child in reversed(inner)]


def _inside(event: Any) -> Iterable[Any]:
    """An event and all that is nested in it."""
    waiting = [event]
    while waiting:
        inner = waiting.pop()
        yield inner
        waiting += inner.cpu_children


def part_of(name: str) -> str | None:
    """The part that an event opens; None for any other event."""
    if name == WHOLE:
        return OTHER
    if name.startswith(OWN):
        return name.removeprefix(OWN)
    return next((part for begin, part in _OF_TORCH.items() if name.startswith(begin)), None)


def ordered(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Parts in the order in which a step meets them, layers by their numbers, what belongs to none at the end."""

    def place(name: str) -> tuple[int, int]:
        kind, _, numbers = name.partition(" ")
        first = int(numbers.split("-")[0]) if kind == "layers" else 0
        last = {OTHER: 1, WAITING: 2}.get(name, 0)
        return (_ORDER.index(kind) if kind in _ORDER else len(_ORDER) + last, first)

    return {name: parts[name] for name in sorted(parts, key=place)}


def _own_time(event: Any, device: bool) -> float:
    """Milliseconds of an event itself."""
    return float(event.self_device_time_total if device else event.self_cpu_time_total) / 1e3


def _peak(profiler: Any) -> int:
    """Most bytes allocated at once beyond those at the start, by the allocator's records in order of time."""
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = most = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        held += change
        most = max(most, held)
    return most


def table(named: Mapping[str, Attribution]) -> str:
    """A line for each part, a column for each case: milliseconds, forward + backward."""
    every: dict[str, Part] = {}
    for attribution in named.values():
        every |= attribution.parts
    names = list(ordered(every))
    head = "ms, forward + backward"
    width = max(len(name) for name in [*names, head])
    columns = [max(len(name), 15) for name in named]
    lines = [f"{head:{width}}  " + "  ".join(map(str.rjust, named, columns))]
    for name in names:
        cells = [_cell(attribution.parts.get(name)) for attribution in named.values()]
        lines.append(f"{name:{width}}  " + "  ".join(map(str.rjust, cells, columns)))
    sums = [f"{sum(part.total for part in attribution.parts.values()):.1f}" for attribution in named.values()]
    lines.append(f"{'sum':{width}}  " + "  ".join(map(str.rjust, sums, columns)))
    return "\n".join(lines)


def _cell(part: Part | None) -> str:
    if part is None:
        return "-"
    return f"{part.forward:.1f}" if part.backward == 0 else f"{part.forward:.1f} + {part.backward:.1f}"
