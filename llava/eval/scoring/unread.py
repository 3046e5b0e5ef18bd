"""How many answers are empty, and how many say something that no scoring rule reads.

The published rules score such answers all the same, as wrong or, in POPE, as yes: a model that says nothing at all has
an F1 of 66.7 there. They stay as they are, and every result says how many answers they could not read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

NOTED_SHARE = 0.05
"""Share of the answers (0 to 1) above which a result carries a note."""


@dataclass(frozen=True)
class Unread:
    """Answers that nothing was read from.

    Attributes:
        answers: all of them.
        empty: number of answers without a visible character.
        unreadable: others that no rule reads.
    """

    answers: int
    empty: int
    unreadable: int

    @classmethod
    def count(cls, texts: Iterable[str], reads: Callable[[str], bool] = lambda text: True) -> Unread:
        """Count answers.

        Args:
            texts: texts of the answers.
            reads: whether a rule reads one that is not empty.
        """
        stripped = [(text, bool(text.strip())) for text in texts]
        unreadable = sum(said and not reads(text) for text, said in stripped)
        return cls(len(stripped), sum(not said for _, said in stripped), unreadable)

    def notes(self, scored_as: str) -> tuple[str, ...]:
        """A sentence where more than `NOTED_SHARE` of the answers are empty or unreadable, else none.

        Args:
            scored_as: what the rules take such answers for, such as "wrong".
        """
        if self.empty + self.unreadable <= NOTED_SHARE * self.answers:
            return ()
        return (
            f"Of {self.answers} answers {self.empty} are empty, and {self.unreadable} others cannot be read by the "
            f"rules of scoring; all of these count as {scored_as}.",
        )

    def tell(self, scored_as: str) -> None:
        """Say the same on standard error, behind the lines that a command prints as LLaVA does."""
        for note in self.notes(scored_as):
            print(note, file=sys.stderr)
