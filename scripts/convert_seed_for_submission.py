"""Score answers to SEED-Bench, and write them as its leaderboard takes them.

    python scripts/convert_seed_for_submission.py --annotation-file SEED-Bench.json \
        --result-file IN --result-upload-file OUT

A question without an answer counts as wrong; the upload is written only if there is none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.common.outputs import require_apart
from llava.common.path_flags import FILE_TO_READ, OUTPUT
from llava.common.program import as_program
from llava.eval.benchmarks.answer_lines import answers_by_id
from llava.eval.benchmarks.seed import LETTERS, SEED, read_annotation, seed_accuracies, write_predictions
from llava.eval.scoring.unread import Unread

LABELS = {"image": "image accuracy", "video": "video accuracy", "total": "Total accuracy"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Score SEED-Bench and write its submission.")
    parser.add_argument("--annotation-file", type=FILE_TO_READ, required=True, help="SEED-Bench.json")
    parser.add_argument("--result-file", type=FILE_TO_READ, required=True, help="answers, JSON lines")
    parser.add_argument("--result-upload-file", type=OUTPUT, required=True, help="JSON lines to write")
    options = parser.parse_args(arguments)
    try:
        require_apart(
            {"--result-upload-file": options.result_upload_file}, [options.annotation_file, options.result_file]
        )
        given = {key: str(line["text"]) for key, line in answers_by_id(options.result_file).items()}
        questions = read_annotation(options.annotation_file)
        for name, value in seed_accuracies(questions, given).items():
            print(f"{LABELS.get(name, name)}: {value:.2f}%")
        Unread.count(given.values(), lambda text: text in LETTERS).tell(SEED.unread_as)
        write_predictions(options.result_upload_file, questions, given)
    except (ValueError, OSError) as error:
        print(f"convert_seed_for_submission: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(as_program(main))
