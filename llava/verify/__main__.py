"""`python -m llava.verify CASES_DIR`: check that this installation computes the method correctly."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence

import torch

from llava.common.atomic_write import write_whole
from llava.common.number_flags import checked_later, not_negative
from llava.common.outputs import require_apart, require_folder
from llava.common.path_flags import FILE_TO_WRITE, TO_READ
from llava.common.program import as_program
from llava.verify.compare import DEFAULT_TOLERANCE
from llava.verify.replaying import verify_folder
from llava.verify.report import exit_status, line, summary, to_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(arguments)
    problem = _problem(options)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    device = torch.device(options.device)
    outcomes = []
    for outcome in verify_folder(options.cases, options.tolerance, device):
        outcomes.append(outcome)
        print(line(outcome), flush=True)
    if not outcomes:
        print(f"There is no case (no case.json) in {str(options.cases)!r} or below.", file=sys.stderr)
    else:
        print(summary(outcomes, device))
    if options.json:
        content = json.dumps(to_json(outcomes, options.tolerance, device), indent=1, allow_nan=False)
        write_whole(options.json, content + "\n")
    return exit_status(outcomes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.verify",
        description="Replay recorded cases of the published program and compare every recorded quantity. "
        "Differences where the published program is wrong are listed as 'by design', with the reason.",
        epilog="Exit status: 0 if everything agrees, 1 on any mismatch, 2 if a case cannot be read or none is found.",
    )
    parser.add_argument(
        "cases", metavar="CASES_DIR", type=TO_READ, help="set of cases, one kind's folder or a single case"
    )
    parser.add_argument(
        "--tolerance",
        type=checked_later(not_negative(1.0)),
        default=DEFAULT_TOLERANCE,
        help="accepted absolute error of hidden states and logits; that of other quantities is in proportion "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--json", metavar="FILE", type=FILE_TO_WRITE, help="write all measurements, versions and the device"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (also ROCm); default: %(default)s")
    return parser


def _problem(options: argparse.Namespace) -> str:
    """What is wrong with the arguments, in a sentence; empty if nothing is."""
    if not options.cases.is_dir():
        return f"There is no folder {str(options.cases)!r}; give one with recorded cases."
    if not (math.isfinite(options.tolerance) and options.tolerance > 0):
        return f"--tolerance is {options.tolerance}; it must be a positive number."
    if options.device.partition(":")[0] not in ("cpu", "cuda"):
        return f"--device is {options.device!r}; it must be cpu or cuda (also for ROCm)."
    try:
        require_folder("--json", options.json)
        require_apart({"--json": options.json}, [options.cases, *options.cases.rglob("case.json")])
    except ValueError as error:
        return str(error)
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        return f"--device is {options.device!r}, which this torch cannot use: {str(error).splitlines()[0]}"
    return ""


if __name__ == "__main__":
    sys.exit(as_program(main))
