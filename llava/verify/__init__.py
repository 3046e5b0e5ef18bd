"""Replays recorded cases of the published program and says whether this installation computes the method correctly.

`python -m llava.verify CASES_DIR` is the command line.
"""

from llava.verify.case import Case, UnreadableCaseError, find_cases, read_case
from llava.verify.replaying import CaseOutcome, verify_folder

__all__ = ["Case", "CaseOutcome", "UnreadableCaseError", "find_cases", "read_case", "verify_folder"]
