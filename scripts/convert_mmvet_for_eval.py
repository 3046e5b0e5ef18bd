"""Write the answers to MM-Vet as its evaluator takes them.

python scripts/convert_mmvet_for_eval.py --src ANSWERS.jsonl --dst RESULTS.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.common.outputs import require_apart
from llava.common.path_flags import FILE_TO_READ, OUTPUT
from llava.common.program import as_program
from llava.eval.benchmarks.answer_lines import read_answer_lines
from llava.eval.benchmarks.mmvet import write_predictions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description="Write the answers to MM-Vet as its evaluator takes them.")
    parser.add_argument("--src", type=FILE_TO_READ, required=True, help="answer file, JSON lines")
    parser.add_argument("--dst", type=OUTPUT, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    try:
        require_apart({"--dst": options.dst}, [options.src])
        write_predictions(options.dst, read_answer_lines(options.src))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(as_program(main))
