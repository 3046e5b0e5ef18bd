"""Measures a training run: tokens, visual tokens of every stage, padding, FLOPs, waiting for data, memory.

Everything is counted on the host from the lengths that a batch's layouts carry; nothing waits for the device. A
*stage* is a run of decoder layers between two drops. FLOPs are those of `llava.cost.flops`, summed over rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from llava.compression.layout import TokenLayout
from llava.cost.hardware import peak_memory_bytes
from llava.cost.workload import Workload
from llava.model.collectives import of_all_ranks

_Batch = TypeVar("_Batch")


@dataclass
class Tally:
    """Sums over batches: of one process or several, of part of a run or all of it.

    Attributes:
        seconds: seconds of training, those of every process.
        waited: seconds of them spent fetching batches.
        batches: forward passes.
        samples, shown, images: rows; those among them with visual tokens; images that the tower saw for them.
        flops, recomputed: see `Workload.flops`.
        peak_memory: bytes, the most of any process.
        positions, tokens, visual: padded positions, tokens, and visual tokens among these, stage by stage.
    """

    seconds: float = 0.0
    waited: float = 0.0
    batches: int = 0
    samples: int = 0
    shown: int = 0
    images: int = 0
    flops: int = 0
    recomputed: int = 0
    peak_memory: int = 0
    positions: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    visual: tuple[int, ...] = ()

    @classmethod
    def zero(cls, stages: int) -> Tally:
        """A tally of no batch."""
        none = (0,) * stages
        return cls(positions=none, tokens=none, visual=none)

    @classmethod
    def of(cls, layouts: Sequence[TokenLayout], images: int, flops: tuple[int, int]) -> Tally:
        """The tally of one batch."""
        first = layouts[0]
        return cls(
            batches=1,
            samples=len(first.lengths),
            shown=sum(count > 0 for count in first.visual),
            images=images,
            flops=flops[0],
            recomputed=flops[1],
            positions=tuple(layout.valid.shape[0] * layout.valid.shape[1] for layout in layouts),
            tokens=tuple(sum(layout.lengths) for layout in layouts),
            visual=tuple(sum(layout.visual) for layout in layouts),
        )

    @classmethod
    def merged(cls, tallies: Sequence[Tally]) -> Tally:
        """Several tallies as one: sums, and the largest memory."""
        together: dict[str, Any] = {}
        for name in _NAMES:
            values = [getattr(tally, name) for tally in tallies]
            if name in _BY_STAGE:
                together[name] = tuple(map(sum, zip(*values, strict=True)))
            else:
                together[name] = max(values) if name == "peak_memory" else sum(values)
        return cls(**together)


_BY_STAGE = ("positions", "tokens", "visual")
_NAMES = tuple(field.name for field in dataclasses.fields(Tally))


class TrainingMeter:
    """Counts batches as they pass and says what they amounted to.

    The clock starts with the first batch that is fetched.

    Args:
        work: what a step computes.
        device: whose memory is reported.
        peak_flops: peak of one device, FLOP/s; None leaves utilisation out.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        work: Workload,
        device: torch.device,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.work = work
        self.device = device
        self.peak_flops = peak_flops
        self._clock = clock
        self._since: float | None = None
        self._window = Tally.zero(len(work.stages))
        self._before = Tally.zero(len(work.stages))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around fetching batches; starts the clock if it stands."""
        self._start()
        start = self._clock()
        try:
            yield
        finally:
            self._window.waited += self._clock() - start

    def fetched(self, batches: Iterator[_Batch]) -> Iterator[_Batch]:
        """The same batches, with `waiting` around each of them."""
        while True:
            with self.waiting():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is not training (evaluating, saving): its time counts for nothing."""
        running = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self._start()

    def stop(self) -> None:
        """Training ends, or is interrupted."""
        self._advance()
        self._since = None

    def add(
        self, layouts: Sequence[TokenLayout], images: int, tower_tokens: Sequence[int | None] | None = None
    ) -> None:
        """Count a forward pass in training.

        Args:
            layouts: layouts of the model's output, one for each stage.
            images: that came with the batch. A batch of text alone brings a dummy; it counts for nothing.
            tower_tokens: tokens of the tower for each image, crop or frame, without dummies; None where the model has
                one size for all.

        Raises:
            ValueError: if there is not one layout for each stage.
        """
        if len(layouts) != len(self.work.stages):
            raise ValueError(
                f"The model ran {len(layouts)} stages, but this meter counts {len(self.work.stages)} (drops after "
                f"layers {self.work.drops}); make a new meter when the compression changes."
            )
        self._start()
        seen = images if any(layouts[0].visual) else 0
        seen = seen if tower_tokens is None else len(tower_tokens)
        batch = Tally.of(layouts, seen, self.work.flops(layouts, seen, tower_tokens))
        self._window = Tally.merged((self._window, batch))

    def snapshot(self) -> dict[str, float]:
        """Metrics of all processes since the last snapshot, for a log. All ranks must call it."""
        self._advance()
        self._window.peak_memory = peak_memory_bytes(self.device).bytes
        window, self._window = self._window, Tally.zero(len(self.work.stages))
        self._before = Tally.merged((self._before, window))
        return metrics(*_over_processes(window), self.work, self.peak_flops)

    def totals(self) -> dict[str, Any]:
        """Metrics and counts of all processes since the meter was made, for a report. All ranks must call it."""
        self._advance()
        memory = peak_memory_bytes(self.device)
        self._window.peak_memory = memory.bytes
        tally, devices = _over_processes(Tally.merged((self._before, self._window)))
        return {
            "devices": devices,
            "seconds": tally.seconds / devices,
            "batches": tally.batches,
            "samples": tally.samples,
            "samples_with_image": tally.shown,
            "images": tally.images,
            "tokens": tally.tokens[0],
            "visual_tokens": tally.visual[0],
            "flops": tally.flops,
            "recomputed_flops": tally.recomputed,
            "peak_memory_kind": memory.kind,
            "assumptions": self.work.describe(self.peak_flops),
            **metrics(tally, devices, self.work, self.peak_flops),
        }

    def _start(self) -> None:
        if self._since is None:
            self._since = self._clock()

    def _advance(self) -> None:
        """Count the time until now."""
        if self._since is not None:
            now = self._clock()
            self._window.seconds += now - self._since
            self._since = now


def _over_processes(tally: Tally) -> tuple[Tally, int]:
    """The tallies of all processes as one, and how many they are."""
    tallies = of_all_ranks([tally])
    return Tally.merged(tallies), len(tallies)


def metrics(tally: Tally, devices: int, work: Workload, peak_flops: float | None) -> dict[str, float]:
    """Rates and means; what there is nothing to divide by, or no peak for, is left out.

    Tokens and samples a second are those of all devices together, FLOP/s and utilisation those of one.
    """
    result: dict[str, float] = {}
    if tally.seconds > 0:
        seconds = tally.seconds / devices
        result["tokens_per_second"] = tally.tokens[0] / seconds
        result["samples_per_second"] = tally.samples / seconds
        result["tflops"] = tally.flops / tally.seconds / 1e12
        if peak_flops is not None:
            result["mfu"] = (tally.flops - tally.recomputed) / tally.seconds / peak_flops
            result["hfu"] = tally.flops / tally.seconds / peak_flops
        result["data_wait_share"] = tally.waited / tally.seconds
    if tally.samples:
        result["padding_share"] = 1 - tally.tokens[0] / tally.positions[0]
        result["padding_share_of_layers"] = 1 - _over_layers(work, tally.tokens) / _over_layers(work, tally.positions)
        result["mean_text_tokens"] = (tally.tokens[0] - tally.visual[0]) / tally.samples
        result["mean_sequence_tokens"] = tally.tokens[0] / tally.samples
    if tally.shown:
        names = ["visual_tokens_entered", *(f"visual_tokens_after_layer_{layer}" for layer in work.drops)]
        result |= {name: count / tally.shown for name, count in zip(names, tally.visual, strict=True)}
        over_layers = _over_layers(work, tally.visual)
        result["average_visual_tokens"] = over_layers / work.decoder.layers / tally.shown
    result["peak_memory_gib"] = tally.peak_memory / 2**30
    return result


def _over_layers(work: Workload, counts: Sequence[int]) -> int:
    """Counts of the stages, summed over their layers."""
    return sum(layers * count for layers, count in zip(work.stages, counts, strict=True))


def summary_table(totals: dict[str, Any]) -> str:
    """A text table of `TrainingMeter.totals`, for a log."""
    lines = [
        (
            "samples",
            f"{totals['samples']:,}, {totals['samples_with_image']:,} of them with {totals['images']:,} images",
        ),
        ("tokens", f"{totals['tokens']:,}, {totals['visual_tokens']:,} of them visual"),
        ("time", f"{totals['seconds']:,.1f} s of training on {totals['devices']} device(s)"),
    ]
    if totals["samples"]:
        lines.append(
            (
                "a sample",
                f"{totals['mean_text_tokens']:.1f} text tokens, {totals['mean_sequence_tokens']:.1f} in all, "
                f"{totals['padding_share']:.1%} of a batch is padding, {totals['padding_share_of_layers']:.1%} of all "
                "layers",
            )
        )
    if "average_visual_tokens" in totals:
        after = "visual_tokens_after_layer_"
        stairs = [f"{totals['visual_tokens_entered']:.2f} enter"]
        stairs += [f"{totals[name]:.2f} after {name.removeprefix(after)} layers" for name in totals if after in name]
        lines.append(("visual tokens", f"{', '.join(stairs)}; average {totals['average_visual_tokens']:.2f}"))
    if "tflops" in totals:
        used = "".join(f", {name.upper()} {totals[name]:.1%}" for name in ("mfu", "hfu") if name in totals)
        speed = f"{totals['tokens_per_second']:,.1f} tokens/s, {totals['samples_per_second']:,.2f} samples/s"
        compute = f"{totals['flops']:.4g} FLOPs, {totals['tflops']:.4g} TFLOP/s a device{used}"
        lines += [("speed", speed), ("compute", compute), ("data", f"waited for {totals['data_wait_share']:.1%}")]
    lines.append(("peak memory", f"{totals['peak_memory_gib']:.2f} GiB {totals['peak_memory_kind']}"))
    return "\n".join(f"{name:14}{text}" for name, text in lines)
