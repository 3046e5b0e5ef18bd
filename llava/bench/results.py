"""Rows of the result: what was measured beside what the arithmetic allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llava.bench.cases import Case
from llava.bench.clock import Measured

MIB = 2**20


def rows(
    mode: str, text: str, lengths: Sequence[int], cases: Sequence[Case], measured: Mapping[str, Measured], clock: str
) -> list[dict[str, Any]]:
    """A row for each case, compared with the first.

    Args:
        mode, text: of the cases.
        lengths: text tokens of each row of the batch.
        cases: that were timed.
        measured: what they took, by name.
        clock: `wall` or `cpu`: which of both is the figure.

    Returns:
        `mode`, `compression`, `text`, `packing`, `peer`; `seconds` (median), `clock` and both clocks' rounds;
        `speedup`, `limit` (by the work on the rows' tokens), `quotient` of both, and the limit with padded rows on
        both sides (`limit_padded`); `units_per_second`, `peak_mib`. None where nothing was measured or computed.
    """
    first = cases[0]
    reference = _seconds(measured[first.name], clock)
    found = []
    for case in cases:
        taken = measured[case.name]
        seconds = _seconds(taken, clock)
        speedup = reference / seconds if seconds and reference else None
        limit = first.work / case.work if case.work and first.work else None
        row: dict[str, Any] = {
            "mode": mode,
            "compression": case.compression,
            "text": text,
            "packing": case.packing,
            "peer": case.peer,
            "seconds": seconds,
            "clock": clock,
            "speedup": speedup,
            "limit": limit,
            "quotient": speedup / limit if speedup and limit else None,
            "limit_padded": first.padded_work / case.padded_work if case.padded_work and first.padded_work else None,
            "padding_share": 1 - case.work / case.padded_work if case.padded_work else None,
            "work": case.work,
            "work_per_second": case.work / seconds if seconds and case.work else None,
            "units_per_second": case.units / seconds if seconds and case.units else None,
            "peak_mib": taken.peak and round(taken.peak / MIB, 1),
            "lengths": list(lengths),
            "rounds": {"wall": taken.wall, "cpu": taken.cpu},
            **({"error": taken.error} if taken.error else {}),
            **case.about,
        }
        found.append(row)
    return found


def _seconds(taken: Measured, clock: str) -> float | None:
    return taken.seconds(clock) if taken.wall else None


def table(mode: str, found: Sequence[Mapping[str, Any]]) -> str:
    """A line for each row of a mode and a text."""
    names = [label(row) for row in found]
    width = max(map(len, names))
    unit = "tokens/s" if mode == "decode" else "samples/s"
    head = f"{'':{width}}  median ms        range  speed-up   limit  quotient  {unit:>9}  peak MiB  visual tokens"
    return "\n".join([head, *(_line(name, width, row) for name, row in zip(names, found, strict=True))])


def label(row: Mapping[str, Any]) -> str:
    """What a row is called in tables and pictures."""
    parts = [row["compression"], row["peer"], f"packing {row['packing']}" if row["packing"] != "off" else ""]
    if row.get("checkpointing", "off") != "off":
        parts.append(f"checkpointing {row['checkpointing']}")
    return " ".join(filter(None, parts))


def _line(name: str, width: int, row: Mapping[str, Any]) -> str:
    if row["seconds"] is None:
        return f"{name:{width}}  {row.get('error', 'not measured')}"
    taken = row["rounds"][row["clock"]]
    spread = f"{min(taken) * 1e3:.0f}-{max(taken) * 1e3:.0f}"
    numbers = [_number(row["speedup"], "8.2f"), _number(row["limit"], "6.2f"), _number(row["quotient"], "8.3f")]
    numbers += [_number(row["units_per_second"], "9.2f"), _number(row["peak_mib"], "8.0f")]
    numbers.append(str(row.get("visual_tokens", "")))
    return f"{name:{width}} {row['seconds'] * 1e3:10.1f} {spread:>12}  {'  '.join(numbers)}"


def _number(value: float | None, form: str) -> str:
    width = int(form.split(".")[0])
    return f"{'-':>{width}}" if value is None else format(value, form)
