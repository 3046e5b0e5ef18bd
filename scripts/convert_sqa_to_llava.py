"""Write ScienceQA as conversations, for training on it or for asking it in another format.

python scripts/convert_sqa_to_llava.py convert_to_llava --base-dir scienceqa --split train --prompt-format QCM-LEA

Reads `problems.json` and `pid_splits.json` in the base folder and writes `llava_<split>_<format>.json` beside them, or,
with `convert_to_jsonl`, `scienceqa_<split>_<format>.jsonl`. Before the hyphen, a format says what is asked: Question,
Context, Multiple options, Lecture, Explanation; behind it, what is answered: Answer, Lecture, Explanation (LEPA puts
each under a heading). Options stand in one line, `(A) red (B) green`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.common.atomic_write import write_whole
from llava.common.path_flags import FOLDER_TO_READ
from llava.common.program import as_program
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.benchmarks.reading import need_field
from llava.eval.benchmarks.sqa import OPTIONS, read_problems

_REASON = "BECAUSE:"
ASKED = {
    "CQM": "Context: {context}\nQuestion: {question}\nOptions: {options}\n",
    "QCM": "Question: {question}\nContext: {context}\nOptions: {options}\n",
    "QCML": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {lecture}\n",
    "QCME": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {solution}\n",
    "QCMLE": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {lecture} {solution}\n",
    "QCLM": "Question: {question}\nContext: {context}\nBECAUSE: {lecture}\nOptions: {options}\n",
    "QCEM": "Question: {question}\nContext: {context}\nBECAUSE: {solution}\nOptions: {options}\n",
    "QCLEM": "Question: {question}\nContext: {context}\nBECAUSE: {lecture} {solution}\nOptions: {options}\n",
}
"""What stands before the hyphen of a format."""

ANSWERED = {
    "A": "Answer: The answer is {answer}.",
    "AL": "Answer: The answer is {answer}. BECAUSE: {solution}",  # in LLaVA, too, L and E change places here
    "AE": "Answer: The answer is {answer}. BECAUSE: {lecture}",
    "ALE": "Answer: The answer is {answer}. BECAUSE: {lecture} {solution}",
    "AEL": "Answer: The answer is {answer}. BECAUSE: {solution} {lecture}",
    "LA": "Answer: {lecture} The answer is {answer}.",
    "EA": "Answer: {solution} The answer is {answer}.",
    "LEA": "Answer: {lecture} {solution} The answer is {answer}.",
    "ELA": "Answer: {solution} {lecture} The answer is {answer}.",
    "LEPA": "{lecture_part}{solution_part}###\nANSWER: {answer}.",
}
"""What stands behind it."""

TASKS = {"convert_to_llava": ("llava_{}_{}.json", "QCM-LEA"), "convert_to_jsonl": ("scienceqa_{}_{}.jsonl", "QCM-LEPA")}
"""Name of the file that a task writes, and its format by default."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(arguments)
    name, default = TASKS[options.task]
    prompt_format = options.prompt_format or default
    path = options.base_dir / name.format(options.split, prompt_format)
    try:
        problems = read_problems(options.base_dir, options.split, "sqa")
        records = [
            record_of(number, problem, prompt_format, options.task, f"{options.base_dir / 'problems.json'}, {number}")
            for number, problem in problems.items()
        ]
        if options.task == "convert_to_llava":
            text = json.dumps(records, indent=2)
        else:
            text = "".join(json.dumps(record) + "\n" for record in records)
        _write(path, text, options.overwrite)
    except (ValueError, OSError) as error:
        print(f"convert_sqa_to_llava: {error}", file=sys.stderr)
        return 2
    print(f"Number of samples: {len(records)}")
    return 0


def record_of(number: str, problem: Mapping[str, Any], prompt_format: str, task: str, place: str) -> dict[str, Any]:
    """One problem as the file of a task holds it.

    Args:
        number: number of the problem.
        problem: entry of problems.json.
        prompt_format: such as "QCM-LEA".
        task: key of `TASKS`.
        place: file and problem, for errors.

    Raises:
        ValueError: if there is no such format or the problem lacks something.
    """
    asked, answer = texts_of(problem, prompt_format, place)
    image = need_field(problem, "image", place)
    record: dict[str, Any] = {"id": number}
    if image is not None:
        record["image"] = f"{number}/{image}"
        asked = f"{asked}\n{DEFAULT_IMAGE_TOKEN}"
    if task == "convert_to_jsonl":
        return record | {"instruction": asked, "output": answer}
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return record | {"conversations": turns}


def texts_of(problem: Mapping[str, Any], prompt_format: str, place: str) -> tuple[str, str]:
    """What is asked and what is answered, character by character as LLaVA's script writes them.

    Args:
        problem: entry of problems.json.
        prompt_format: such as "QCM-LEA".
        place: file and problem, for errors.

    Raises:
        ValueError: if there is no such format or the problem lacks something.
    """
    first, _, second = prompt_format.partition("-")
    if first not in ASKED or second not in ANSWERED:
        raise ValueError(
            f"--prompt-format is {prompt_format!r}; it is one of {', '.join(ASKED)}, a hyphen, and one of "
            f"{', '.join(ANSWERED)}, such as QCM-LEA."
        )
    words = _words(problem, place)
    asked, answer = _tidy(ASKED[first].format(**words)), _tidy(ANSWERED[second].format(**words))
    if asked.startswith("Question: "):
        asked = asked.replace("Question: ", "")
    if answer.startswith("Answer: "):
        answer = answer.replace("Answer: ", "")
    return asked, answer


def _words(problem: Mapping[str, Any], place: str) -> dict[str, str]:
    """What formats are filled with."""
    choices = problem["choices"]
    if len(choices) > len(OPTIONS):
        raise ValueError(f"{place} has {len(choices)} choices, at most {len(OPTIONS)} have letters; download it again.")
    lecture, solution = (str(need_field(problem, name, place)).replace("\\n", "\n") for name in ("lecture", "solution"))
    return {
        "question": str(need_field(problem, "question", place)),
        "context": str(need_field(problem, "hint", place)).strip() or "N/A",
        "options": " ".join(f"({letter}) {choice}" for letter, choice in zip(OPTIONS, choices, strict=False)),
        "answer": OPTIONS[problem["answer"]],
        "lecture": lecture,
        "solution": solution,
        "lecture_part": f"LECTURE: {lecture}\n" if lecture.strip() else "",
        "solution_part": f"SOLUTION: {solution}\n" if solution.strip() else "",
    }


def _tidy(text: str) -> str:
    """Pairs of spaces become one; a reason that is empty goes."""
    text = text.replace("  ", " ").strip()
    return text.replace(_REASON, "").strip() if text.endswith(_REASON) else text


def _write(path: Path, text: str, overwrite: bool) -> None:
    """Write a file in one step; one with other content is kept unless it may be overwritten."""
    if not overwrite and path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(f"{path} is there with other content; move it away or give --overwrite.")
    write_whole(path, text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS, help="what to write")
    parser.add_argument(
        "--base-dir",
        "--base_dir",
        type=FOLDER_TO_READ,
        required=True,
        help="folder of problems.json and pid_splits.json",
    )
    parser.add_argument("--split", required=True, help="train, val, minival, test or minitest")
    parser.add_argument(
        "--prompt-format",
        "--prompt_format",
        help="what is asked and answered (default: QCM-LEA; QCM-LEPA for convert_to_jsonl)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file with other content")
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
