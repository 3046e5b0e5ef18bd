"""Write answers to VizWiz as its evaluation server takes them; every question must have one.

python scripts/convert_vizwiz_for_submission.py --annotation-file llava_test.jsonl --result-file answers.jsonl \
    --result-upload-file upload.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.common.json_files import write_json
from llava.common.outputs import require_apart
from llava.common.path_flags import FILE_TO_READ, OUTPUT
from llava.common.program import as_program
from llava.eval.benchmarks.answer_lines import answers_by_id
from llava.eval.benchmarks.vizwiz import VizWiz
from llava.eval.scoring.unread import Unread
from llava.eval.scoring.vqa_normalise import evalai_answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Write answers to VizWiz as its server takes them.")
    parser.add_argument("--annotation-file", type=FILE_TO_READ, required=True, help="llava_test.jsonl")
    parser.add_argument("--result-file", type=FILE_TO_READ, required=True, help="answers, JSON lines")
    parser.add_argument("--result-upload-file", type=OUTPUT, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    try:
        require_apart(
            {"--result-upload-file": options.result_upload_file}, [options.annotation_file, options.result_file]
        )
        given = {number: str(line["text"]) for number, line in answers_by_id(options.result_file).items()}
        submission = VizWiz().submission(options.annotation_file, given)
        Unread.count(given.values(), lambda text: bool(evalai_answer(text))).tell(VizWiz.unread_as)
        write_json(options.result_upload_file, submission)
    except (ValueError, OSError) as error:
        print(f"convert_vizwiz_for_submission: {error}", file=sys.stderr)
        return 2
    print(f"total results: {len(given)}, total split: {len(submission)}")
    return 0


if __name__ == "__main__":
    sys.exit(as_program(main))
