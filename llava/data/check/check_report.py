"""The report of a data check: a screen of text for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llava.common.json_lines import write_lines
from llava.common.shown import printable
from llava.data.check.budgets import BudgetFigures, CostAssumptions
from llava.data.check.checking import CheckResult
from llava.data.check.findings import KINDS, Finding, Severity

EXAMPLES = 20
WIDTH = 110
FORMAT = 1
_HEADINGS = {
    Severity.ERROR: "Errors: training would stop at these records, or learn nothing from them",
    Severity.WARNING: "Warnings: these work, but look at them",
}
_IMAGES = {"full": "decoded", "header": "of which the header was read", "skip": "none of them opened"}


@dataclass(frozen=True)
class Report:
    """Everything that the two forms of the report say."""

    result: CheckResult
    figures: dict[str, BudgetFigures]
    assumed: CostAssumptions

    def to_json(self) -> dict[str, Any]:
        """Plain values; every kind of finding is there, also those that did not occur."""
        result = self.result
        with_errors = len(result.faulty)
        return {
            "format": FORMAT,
            "sources": [_source(source) for source in result.sources],
            "settings": asdict(result.settings),
            "records": len(result),
            "good": len(result) - with_errors,
            "with_errors": with_errors,
            "with_warnings_only": len(result.findings) - with_errors,
            "distinct_images": result.distinct_images,
            "distinct_videos": result.distinct_videos,
            "records_by_kind": self._by_media,
            "findings": {name: self._kind(name) for name in KINDS},
            "tokens_are_estimates": result.settings.tokenizer is None,
            "budgets": {name: asdict(figures) for name, figures in self.figures.items()},
            "assumptions": asdict(self.assumed),
            "seconds": round(result.seconds, 3),
        }

    def to_text(self) -> str:
        """A screen full: counts, one example of each kind, and the budgets; nothing in it acts on a terminal."""
        blocks = [self._counts(), *self._findings(), self._tokens(), self._table(), self._assumptions()]
        return "\n\n".join(block for block in blocks if block)

    def _kind(self, name: str) -> dict[str, Any]:
        kind, found = KINDS[name], self._by_kind[name]
        examples = [located(self.result, index, finding) for index, finding in found[:EXAMPLES]]
        return {
            "severity": kind.severity.value,
            "meaning": kind.meaning,
            "records": len({index for index, _ in found}),
            "examples": examples,
        }

    @cached_property
    def _by_kind(self) -> dict[str, list[tuple[int, Finding]]]:
        found: dict[str, list[tuple[int, Finding]]] = {name: [] for name in KINDS}
        for index, finding in in_order(self.result):
            found[finding.kind].append((index, finding))
        return found

    def _counts(self) -> str:
        result, records = self.result, len(self.result)
        faulty = len(result.faulty)
        suspect = len(result.findings) - faulty
        rate = records / max(result.seconds, 1e-9)
        where = ", ".join(printable(source.path) for source in result.sources)
        return (
            f"{records:,} records of {where}\n"
            f"  {records - faulty:,} good, {faulty:,} with errors, {suspect:,} with warnings only\n"
            f"  {self._files()}; {result.seconds:.1f} s, {rate:,.0f} records a second"
        )

    @property
    def _by_media(self) -> dict[str, int]:
        """Records by what they show."""
        images, videos = self.result.num_images > 0, self.result.num_videos > 0
        masks = {"text": ~(images | videos), "image": images & ~videos, "video": videos & ~images}
        return {name: int(mask.sum()) for name, mask in (masks | {"both": images & videos}).items()}

    def _files(self) -> str:
        result = self.result
        files = f"{result.distinct_images:,} image files"
        if result.distinct_videos:
            counts = self._by_media
            files += f" and {result.distinct_videos:,} videos"
            shown = f"; {counts['image']:,} records show images, {counts['video']:,} videos, {counts['both']:,} both"
        return f"{files}, {_IMAGES[result.settings.images]}{shown if result.distinct_videos else ''}"

    def _findings(self) -> Iterator[str]:
        for severity, heading in _HEADINGS.items():
            lines = [self._line(name) for name, kind in KINDS.items() if kind.severity is severity]
            if any(lines):
                yield "\n".join([heading, *filter(None, lines)])

    def _line(self, name: str) -> str:
        found = self._by_kind[name]
        if not found:
            return ""
        index, finding = found[0]
        source, number = self.result.place(index)
        where = f"{source.path.name}:{number}" if len(self.result.sources) > 1 else f"record {number}"
        line = printable(f"  {name:20} {len({index for index, _ in found}):>9,}  {where}: {finding.detail}")
        return line if len(line) <= WIDTH else line[: WIDTH - 4] + " ..."

    def _tokens(self) -> str:
        settings = self.result.settings
        counted = (
            f"counted with {printable(settings.tokenizer)}"
            if settings.tokenizer
            else ("ESTIMATED from letters and marks; give --tokenizer to count them")
        )
        first = next(iter(self.figures.values()))
        return (
            f"Tokens of the good records, {counted}\n"
            f"  template {settings.template}, at most {settings.max_length} tokens, "
            f"mean text {first.mean_text_tokens:.1f} tokens (at {_short(next(iter(self.figures)))})"
        )

    def _table(self) -> str:
        width = max(len("budget"), *(len(_short(name)) for name in self.figures))
        lines = [
            f"{'':{width}} visual tokens  sequence tokens                no      padding     FLOPs of an epoch",
            f"{'budget':{width}} first average   mean   95 %   max     cut   label random grouped   EFLOP  "
            "        hours",
        ]
        first = next(iter(self.figures.values())).flops
        entered = self.result.settings.visual_tokens
        for visual, (name, row) in zip(entered, self.figures.items(), strict=True):
            change = row.flops / first - 1 if first else 0.0
            lines.append(
                f"{_short(name):{width}} {visual:5} {row.average_visual_tokens:7.2f} {row.mean_sequence_tokens:6.0f}"
                f" {row.p95_sequence_tokens:6.0f} {row.max_sequence_tokens:5} {row.truncated:7} {row.unsupervised:7}"
                f" {row.padding_shuffled:6.1%} {row.padding_grouped:7.1%}"
                f" {row.flops / 1e18:7.4g} ({change:+6.1%}) {row.hours:6.3g}"
            )
        return "\n".join(lines)

    def _assumptions(self) -> str:
        assumed = self.assumed
        return (
            f"Assumed: {printable(assumed.model)}; batches of {assumed.batch_size} on {assumed.devices} devices of "
            f"{assumed.peak_tflops:g} TFLOP/s, {assumed.mfu:.0%} of which\nis reached; {assumed.passes} passes a step "
            "(activation checkpointing). Padding and loading data are not in the hours."
        )


def in_order(result: CheckResult) -> Iterator[tuple[int, Finding]]:
    """All findings with the index of their record, by record."""
    for index in sorted(result.findings):
        for finding in result.findings[index]:
            yield index, finding


def located(result: CheckResult, index: int, finding: Finding) -> dict[str, Any]:
    """Plain values that say where a finding is: file, number of the record in it (from 0), its id."""
    source, number = result.place(index)
    return {"source": str(source.path), "record": number, "id": result.ids[index], "detail": finding.detail}


def write_all(result: CheckResult, path: Path) -> None:
    """Every finding as one line of JSON."""
    write_lines(
        path,
        (
            {"kind": finding.kind, "severity": KINDS[finding.kind].severity.value} | located(result, index, finding)
            for index, finding in in_order(result)
        ),
    )


def _short(budget: str) -> str:
    return printable(Path(budget).stem if budget.endswith((".yaml", ".yml")) else budget)


def _source(source: Any) -> dict[str, Any]:
    return {
        "path": str(source.path),
        "image_folder": source.image_folder,
        "video_folder": source.video_folder,
        "weight": source.weight,
        "part": source.part,
        "records": len(source.objects),
    }
