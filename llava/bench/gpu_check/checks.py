"""The parts that check: what the machine is, the recorded cases, the tests that need a device."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from llava.bench.gpu_check.task import NotHereError, PartTask
from llava.cost.machine import version_of

ROOT = Path(__file__).resolve().parents[3]
_PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "flash-attn", "triton", "numpy", "pytest")


def environment(task: PartTask) -> bool:
    """One row: card, driver, versions, date, commit. Fails if the device cannot multiply two matrices."""
    device = torch.device(task.device)
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "processors": torch.get_num_threads(),
        "packages": {name: version_of(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        **_commit(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        found |= {
            "card": properties.name,
            "cards": torch.cuda.device_count(),
            "memory_gib": round(total / 2**30, 2),
            "free_gib": round(free / 2**30, 2),
            "architecture": f"{properties.major}.{properties.minor}",
            "driver": _printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    one = torch.ones(64, 64, device=device)
    found["works"] = bool((one @ one == 64).all())
    task.found("row", **found)
    return bool(found["works"])


def _commit() -> dict[str, Any]:
    commit = _printed("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changed = _printed("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed_files": None if changed is None else len(changed.splitlines())}


def _printed(*command: str) -> str | None:
    """What a command prints; None if it is not here or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def golden(task: PartTask) -> bool:
    """A row for each recorded case, and one that counts them. Passes if none fails or cannot be read."""
    from llava.verify.replaying import CaseOutcome, verify_folder
    from llava.verify.report import exit_status

    if not task.cases.is_dir():
        raise NotHereError(f"There is no folder {str(task.cases)!r}; the cases are in the repository, in tests/golden.")
    outcomes: list[CaseOutcome] = []
    for outcome in verify_folder(task.cases, device=torch.device(task.device)):
        outcomes.append(outcome)
        share = max((entry.error / entry.accepted for entry in outcome.measurements if entry.accepted), default=None)
        task.found(
            "row",
            case=outcome.name,
            status=outcome.status,
            reasons=list(outcome.reasons),
            indices_equal=outcome.indices_equal,
            largest_error_of_accepted=share,
        )
    task.found("row", cases=len(outcomes), **Counter(outcome.status for outcome in outcomes))
    return exit_status(outcomes) == 0


class _Reporter:
    """A plugin of pytest that writes down every outcome when it is known."""

    def __init__(self, task: PartTask) -> None:
        self.task = task
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest after set-up, call and clean-up of each test."""
        if report.when == "call" or not report.passed:
            self.counts[report.outcome] += 1
            why = {} if report.passed else {"why": str(report.longrepr)[-2000:]}
            self.task.found("row", test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 3), **why)

    def pytest_collectreport(self, report: Any) -> None:
        """Called by pytest after reading each file."""
        if report.failed:
            self.counts["unreadable"] += 1
            self.task.found("row", file=report.nodeid, outcome="unreadable", why=str(report.longrepr)[-2000:])


def device_tests(task: PartTask) -> bool:
    """`pytest -m cuda` on the files that hold such tests: a row for each, and one that counts them."""
    if importlib.util.find_spec("pytest") is None:
        raise NotHereError("pytest is not installed here; the tests that need a device were not run.")
    import pytest

    files = sorted(str(path) for path in task.tests.rglob("test_*.py") if "mark.cuda" in path.read_text("utf-8"))
    if not files:
        raise NotHereError(f"No file below {str(task.tests)!r} holds a test marked cuda.")
    sys.path.insert(0, str(task.tests))
    reporter = _Reporter(task)
    words = ["-c", str(ROOT / "pyproject.toml"), "-m", "cuda", "-q", "-p", "no:cacheprovider"]
    status = pytest.main([*words, "--continue-on-collection-errors", *files], plugins=[reporter])
    task.found("row", status=int(status), **reporter.counts)
    if not set(reporter.counts) - {"skipped"}:
        raise NotHereError("Every test was skipped: none of them found a device.")
    return int(status) == 0
