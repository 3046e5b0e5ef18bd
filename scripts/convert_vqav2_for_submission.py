"""Write answers to VQAv2 as its evaluation server takes them.

python scripts/convert_vqav2_for_submission.py --split llava_vqav2_mscoco_test-dev2015 --ckpt llava-v1.5-13b

Reads DIR/answers/SPLIT/CKPT/merge.jsonl and DIR/llava_vqav2_mscoco_test2015.jsonl, writes
DIR/answers_upload/SPLIT/CKPT.json; a question of the latter without an answer gets an empty one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common.json_files import write_json
from llava.common.outputs import require_apart
from llava.common.path_flags import FOLDER_TO_READ
from llava.common.program import as_program
from llava.eval.benchmarks.answer_lines import answers_by_id
from llava.eval.benchmarks.vqav2 import VQAv2
from llava.eval.scoring.unread import Unread
from llava.eval.scoring.vqa_normalise import evalai_answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Write answers to VQAv2 as its server takes them.")
    parser.add_argument(
        "--dir", type=FOLDER_TO_READ, default=Path("./playground/data/eval/vqav2"), help="folder of VQAv2"
    )
    parser.add_argument("--ckpt", required=True, help="name of the model's folder of answers")
    parser.add_argument("--split", required=True, help="name of the question file without its suffix")
    options = parser.parse_args(arguments)
    answers = options.dir / "answers" / options.split / options.ckpt / "merge.jsonl"
    target = options.dir / "answers_upload" / options.split / f"{options.ckpt}.json"
    try:
        require_apart({"the upload": target}, [answers, options.dir / VQAv2.submitted])
        lines = answers_by_id(answers)
        given = {number: str(line["text"]) for number, line in lines.items()}
        submission = VQAv2().submission(options.dir / VQAv2.submitted, given)
        Unread.count(given.values(), lambda text: bool(evalai_answer(text))).tell(VQAv2.unread_as)
        write_json(target, submission)
    except (ValueError, OSError) as error:
        print(f"convert_vqav2_for_submission: {error}", file=sys.stderr)
        return 2
    print(f"total results: {len(given)}, total split: {len(submission)}, written: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(as_program(main))
