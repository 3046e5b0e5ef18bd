"""Write answers to GQA as GQA's evaluation script reads them.

python scripts/convert_gqa_for_eval.py --src merge.jsonl --dst testdev_balanced_predictions.json
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
from llava.eval.benchmarks.gqa import GQA, gqa_prediction, gqa_predictions
from llava.eval.scoring.unread import Unread


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Write answers to GQA as its evaluation script reads them.")
    parser.add_argument("--src", type=FILE_TO_READ, required=True, help="answers, JSON lines")
    parser.add_argument("--dst", type=OUTPUT, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    try:
        require_apart({"--dst": options.dst}, [options.src])
        lines = answers_by_id(options.src).values()
        texts = [str(line["text"]) for line in lines]
        Unread.count(texts, lambda text: bool(gqa_prediction(text))).tell(GQA.unread_as)
        write_json(options.dst, gqa_predictions([(line["question_id"], str(line["text"])) for line in lines]))
    except (ValueError, OSError) as error:
        print(f"convert_gqa_for_eval: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(as_program(main))
