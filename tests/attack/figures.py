"""What an attack counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Figures:
    """Counts of outcomes, and the trials that must not have ended as they did.

    Attributes:
        attack: its name.
        tried: number of trials.
        outcomes: how many ended in which way.
        failures: a line for each trial that lost something, hung, or said nothing useful.
        measured: other numbers: seconds, bytes.
    """

    attack: str
    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    def note(self, outcome: str, failure: str | None = None) -> None:
        """Count a trial; `failure` says what went wrong in it."""
        self.tried += 1
        self.outcomes[outcome] += 1
        if failure is not None:
            self.failures.append(failure)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "attack": self.attack,
            "tried": self.tried,
            "outcomes": dict(self.outcomes.most_common()),
            "failures": self.failures,
            "measured": self.measured,
        }

    def report(self) -> str:
        """For a terminal."""
        lines = [f"{self.attack}: {self.tried} tried, {len(self.failures)} failed"]
        lines += [f"  {count:6d}  {outcome}" for outcome, count in self.outcomes.most_common()]
        lines += [f"  {name}: {value:g}" for name, value in self.measured.items()]
        return "\n".join(lines + [f"  FAILED {line}" for line in self.failures])
