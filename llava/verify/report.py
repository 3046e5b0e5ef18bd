"""Reports the outcomes of cases, as lines of text and as JSON."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from llava.cost.machine import version_of
from llava.verify.compare import Measurement, largest
from llava.verify.replaying import BY_DESIGN, FAIL, OK, STATUSES, UNREADABLE, CaseOutcome

_NAME_WIDTH, _STATUS_WIDTH = 38, 10


def exit_status(outcomes: Sequence[CaseOutcome]) -> int:
    """0 if all cases agree (or differ by design), 1 on any mismatch, 2 if any could not be read or none was found."""
    statuses = {outcome.status for outcome in outcomes}
    if not outcomes or UNREADABLE in statuses:
        return 2
    return int(FAIL in statuses)


def line(outcome: CaseOutcome) -> str:
    """One line for a case: its status, largest error, whether indices are equal, and reasons if there are any."""
    parts = [f"{outcome.name:<{_NAME_WIDTH}} {outcome.status:<{_STATUS_WIDTH}}"]
    worst = largest(outcome.measurements)
    if worst is not None:
        parts.append(f"largest error {worst.error:.1e} of {worst.accepted:.2g} ({worst.name})")
    if outcome.measurements:
        parts.append(f"indices {_indices(outcome)}")
    return "  ".join([*parts, "; ".join(outcome.reasons).replace("\n", " ")]).rstrip()


def _indices(outcome: CaseOutcome) -> str:
    if outcome.indices_equal:
        return "equal"
    excused = all(entry.passes for entry in outcome.measurements if entry.exact)
    return "equal but for what differs by design" if excused else "DIFFER"


def summary(outcomes: Sequence[CaseOutcome], device: torch.device) -> str:
    """The last line: how many cases agree, differ or could not be read."""
    counts = ", ".join(f"{count} {status}" for status, count in _counts(outcomes).items())
    versions = ", ".join(f"{name} {version}" for name, version in environment(device).items() if version)
    return f"{len(outcomes)} cases: {counts} ({versions})"


def to_json(outcomes: Sequence[CaseOutcome], tolerance: float, device: torch.device) -> dict[str, Any]:
    """Everything measured, as plain JSON values."""
    return {
        "exit_status": exit_status(outcomes),
        "tolerance": tolerance,
        "environment": environment(device),
        "summary": _counts(outcomes),
        "cases": [_case_to_json(outcome) for outcome in outcomes],
    }


def environment(device: torch.device) -> dict[str, str | None]:
    """Versions and the device; None where something does not apply."""
    on_gpu = device.type == "cuda"
    return {
        "device": f"{device} {torch.cuda.get_device_name(device)}" if on_gpu else str(device),
        "duet-llava": version_of("duet-llava"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "rocm": torch.version.hip if on_gpu else None,
        "python": platform.python_version(),
    }


def _counts(outcomes: Sequence[CaseOutcome]) -> dict[str, int]:
    counts = dict.fromkeys(STATUSES, 0)
    for outcome in outcomes:
        counts[outcome.status] += 1
    return counts


def _case_to_json(outcome: CaseOutcome) -> dict[str, Any]:
    worst = largest(outcome.measurements)
    return {
        "name": outcome.name,
        "status": outcome.status,
        "passes": outcome.status in (OK, BY_DESIGN),
        "reasons": list(outcome.reasons),
        "indices_equal": outcome.indices_equal if outcome.measurements else None,
        "largest_error": None if worst is None else _to_json(worst),
        "measurements": [_to_json(entry) for entry in outcome.measurements],
        "not_needed": list(outcome.skipped),
    }


def _to_json(entry: Measurement) -> dict[str, Any]:
    return {
        "name": entry.name,
        "exact": entry.exact,
        "error": entry.error if math.isfinite(entry.error) else None,
        "accepted": entry.accepted,
        "agrees": entry.agrees,
        "detail": entry.detail,
        "differs_by_design": entry.excused if not entry.agrees else "",
    }
