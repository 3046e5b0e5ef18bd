"""Files that the programs of judging read, and question files through the commands that ask them, as targets."""

from __future__ import annotations

import base64
import io
import json
from argparse import Namespace
from pathlib import Path
from unittest import mock

import eval_files_judged
from PIL import Image

from llava.common.bounded_http import Response
from llava.eval import eval_gpt_review_bench, eval_video_qa, summarize_gpt_review
from llava.eval.benchmarks.llava_bench import read_two_scores
from llava.eval.benchmarks.mmbench import table_questions
from llava.eval.benchmarks.reading import read_json, read_questions
from llava.eval.benchmarks.sqa import science_questions
from llava.eval.judging import chat_api
from llava.eval.judging.chat_api import ChatApi
from llava.eval.judging.judge import Judge, JudgeRequest

BENCH = "llava-bench-in-the-wild"
ENVIRONMENT = {"LLAVA_JUDGE_URL": "http://host.example/v1", "LLAVA_JUDGE_KEY": "none"}


def fetch(address: str, **options: object) -> Response:
    """A judge that gives every review the same two grades, and every answer yes."""
    text = "8 9\n{'pred': 'yes', 'score': 4}"
    body = json.dumps({"model": "judge", "choices": [{"message": {"content": text}}]}).encode()
    return Response(200, {}, body, address)


def reviews(folder: Path) -> dict[str, str]:
    """Reviews as LLaVA's scripts and this project's judge write them."""
    lines = [
        {
            "id": n,
            "question_id": n,
            "answer1_id": "a",
            "answer2_id": "b",
            "category": f"llava_bench_{kind}",
            "content": "8 9",
            "tuple": [8, 9 - n],
        }
        for n, kind in enumerate(("conv", "detail", "conv"))
    ]
    eval_files_judged.write_lines(folder / "review.jsonl", [*lines, {**lines[0], "question_id": 9, "tuple": [-1, -1]}])
    return {"review.jsonl": "lines"}


def summarise(folder: Path) -> int:
    """Their summary."""
    return summarize_gpt_review.main(["-f", str(folder / "review.jsonl")])


def verdicts(folder: Path) -> dict[str, str]:
    """Verdicts of an earlier call."""
    (folder / "verdicts.jsonl").unlink(missing_ok=True)
    take_up(folder)
    return {"verdicts.jsonl": "lines"}


def take_up(folder: Path) -> None:
    """Grade behind them: what they hold is not asked again."""
    judge = Judge(ChatApi("http://host.example/v1", "judge", "none", attempts=1, first_pause=0.0), workers=1)
    tasks = [JudgeRequest(({"role": "user", "content": f"Question {n}?"},), {"question_id": n}) for n in range(4)]
    with mock.patch.object(chat_api, "fetch", fetch):
        graded = judge.grade(tasks, read_two_scores, folder / "verdicts.jsonl", "Again.", 8)
    assert all(verdict.grade is None or len(verdict.grade["tuple"]) == 2 for verdict in graded)


def compared(folder: Path) -> dict[str, str]:
    """Questions, captions, rules and two files of answers to be compared."""
    eval_files_judged.write_llava_bench(folder / "data")
    (folder / "answers.jsonl").write_bytes((folder / "data" / BENCH / "answers_gpt4.jsonl").read_bytes())
    rules = {
        f"llava_bench_{kind}": {"role": "Assistant", "prompt": "Compare."} for kind in ("conv", "detail", "complex")
    }
    eval_files_judged.write_json(folder / "rule.json", rules)
    names = ("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl")
    return {f"data/{BENCH}/{name}": "lines" for name in names} | {"answers.jsonl": "lines", "rule.json": "json"}


def compare(folder: Path) -> None:
    """The comparison."""
    bench = folder / "data" / BENCH
    (folder / "reviews.jsonl").unlink(missing_ok=True)
    options = Namespace(
        question=bench / "questions.jsonl",
        context=bench / "context.jsonl",
        rule=folder / "rule.json",
        answer_list=[bench / "answers_gpt4.jsonl", folder / "answers.jsonl"],
        output=folder / "reviews.jsonl",
        max_tokens=8,
    )
    with mock.patch.object(chat_api, "fetch", fetch):
        eval_gpt_review_bench.review(options, ENVIRONMENT)


def predictions(folder: Path) -> dict[str, str]:
    """An answer file of Video-LLaVA."""
    lines = [{"id": f"v{n}", "question": "What?", "answer": "cat", "pred": "a cat"} for n in range(4)]
    eval_files_judged.write_lines(folder / "merge.jsonl", lines)
    return {"merge.jsonl": "lines"}


def grade_videos(folder: Path) -> None:
    """Its grading."""
    options = Namespace(
        output_json=folder / "results.json",
        pred_path=folder / "merge.jsonl",
        output_dir=folder / "graded",
        api_base=None,
        api_key=None,
        num_tasks=1,
    )
    with mock.patch.object(chat_api, "fetch", fetch):
        eval_video_qa.grade(options, ENVIRONMENT)


def questions(folder: Path) -> dict[str, str]:
    """A file for each of LLaVA's commands that ask."""
    record = {"question_id": 1, "image": "a.png", "text": "Why?", "category": "default", "options": ["A", "B"]}
    lines = [record | {"question_id": n, "image": ["a.png", "b.png"] if n == 2 else "a.png"} for n in range(4)]
    eval_files_judged.write_lines(folder / "loader.jsonl", lines)
    turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "A"}]
    records = [{"id": str(n), "image": "a.png", "conversations": turns} for n in range(3)]
    eval_files_judged.write_json(folder / "science.json", records)
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    rows = [f"{n}\tWhich?\tred\tblue\tA\t{picture if n == 1 else 1}" for n in range(1, 4)]
    (folder / "mmbench.tsv").write_text("index\tquestion\tA\tB\tanswer\timage\n" + "\n".join(rows) + "\n")
    return {"loader.jsonl": "lines", "science.json": "json", "mmbench.tsv": "text"}


def ask(folder: Path) -> None:
    """What they ask has to be text, and something; every image has to have a name."""
    path = folder / "science.json"
    records = read_json(path, "sqa")
    if not isinstance(records, list):
        raise ValueError(f"{path} is not a list.")
    asked = [
        *read_questions(folder / "loader.jsonl", folder, "mmvet", about_text=True),
        *science_questions(records, folder, str(path)),
        *table_questions(folder / "mmbench.tsv", "Which?"),
    ]
    assert all(question.text.strip() and str(question.question_id).encode() for question in asked)
    assert all(isinstance(image, bytes) or str(image).encode() for question in asked for image in question.images)
