"""Work that ends its process; apart from the tests, so that the processes import nothing slow."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

from llava.data.check.check_settings import CheckSettings
from llava.data.check.findings import Fit, TextOutcome


def square(items: list[int]) -> list[int]:
    """Squares; a negative item kills the process, and 13 raises."""
    for item in items:
        if item < 0:
            os._exit(3)
        if item == 13:
            raise RuntimeError("thirteen")
    return [item * item for item in items]


def slow(items: list[float]) -> list[float]:
    """Takes as many seconds as each item says."""
    for item in items:
        time.sleep(item)
    return items


def never_starts(items: list[int]) -> list[int]:
    """Kills the process whatever it is given."""
    os._exit(4)


def check_conversations(chunk: Iterable[tuple[int, Any]], settings: CheckSettings) -> list[TextOutcome]:
    """Finds nothing wrong, but a record with the id `killer` ends the process."""
    outcomes = []
    for _, data in chunk:
        if data["id"] == "killer":
            os._exit(3)
        outcomes.append(TextOutcome(data["id"], (), 1, (Fit(10, 0, False, True),) * len(settings.budgets)))
    return outcomes
