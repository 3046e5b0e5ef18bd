"""Turn answers to MMBench into the table that its server takes.

    python scripts/convert_mmbench_for_submission.py --annotation-file TSV \
        --result-dir DIR --upload-dir OUT --experiment NAME

Reads DIR/NAME.jsonl and writes OUT/NAME.xlsx.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.common.outputs import require_apart
from llava.common.path_flags import FILE_TO_READ, FOLDER_TO_READ, FOLDER_TO_WRITE
from llava.common.program import as_program
from llava.eval.benchmarks.answer_lines import answers_by_id
from llava.eval.benchmarks.mmbench import write_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Write MMBench's submission.")
    parser.add_argument("--annotation-file", type=FILE_TO_READ, required=True, help="the table that was asked")
    parser.add_argument("--result-dir", type=FOLDER_TO_READ, required=True, help="folder of the answer file")
    parser.add_argument("--upload-dir", type=FOLDER_TO_WRITE, required=True, help="folder to write to")
    parser.add_argument("--experiment", required=True, help="name of both files, without suffix")
    options = parser.parse_args(arguments)
    path = options.upload_dir / f"{options.experiment}.xlsx"
    answers = options.result_dir / f"{options.experiment}.jsonl"
    try:
        require_apart({"--experiment in --upload-dir": path}, [options.annotation_file, answers])
        given = answers_by_id(answers)
        options.upload_dir.mkdir(parents=True, exist_ok=True)
        write_table(options.annotation_file, {key: str(line["text"]) for key, line in given.items()}, path)
    except (ValueError, OSError) as error:
        print(f"convert_mmbench_for_submission: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {path}.")
    return 0


if __name__ == "__main__":
    sys.exit(as_program(main))
