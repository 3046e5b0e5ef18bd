"""LLaVA-Bench (in the Wild): open questions, answers compared with GPT-4's by a language model."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from llava.common.shown import shown
from llava.eval.benchmarks.answer_lines import with_text
from llava.eval.benchmarks.base import JudgedBenchmark
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.benchmarks.reading import (
    need_field,
    need_id,
    need_text,
    one_image,
    read_json_as,
    read_json_lines,
    read_questions,
)
from llava.eval.judging.judge import Grade, Judge, JudgeRequest, grades_of, judged_scores
from llava.eval.scoring.scores import Scores

PUBLISHED_JUDGE = "gpt-4-0314"
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
REMINDER = "Output a single line with only the two scores, numbers from 1 to 10 separated by a space."
MAX_TOKENS = 1024
CATEGORY_PREFIX = "llava_bench_"

_FOLDER = "llava-bench-in-the-wild"


class LLaVABench(JudgedBenchmark):
    """LLaVA-Bench's 60 questions; the score is the model's sum of grades in per cent of GPT-4's.

    The request's wording is this project's; a `rule.json` in the benchmark's folder, such as LLaVA's, goes before it.
    """

    name = "llava_bench"
    title = "LLaVA-B"
    max_new_tokens = 1024

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark`."""
        return read_questions(root / _FOLDER / "questions.jsonl", root / _FOLDER / "images", self.name)

    def judged(self, root: Path, answers: Sequence[Answer], judge: Judge, reviews: Path) -> Scores:
        """See `JudgedBenchmark`; `reviews` is in the format that `llava.eval.summarize_gpt_review` reads, too."""
        folder = root / _FOLDER
        own = folder / "rule.json"
        rules = read_json_as(dict, own, self.name) if own.is_file() else shipped_rules()
        captions = read_captions(folder / "context.jsonl")
        references = read_references(folder / "answers_gpt4.jsonl")
        requests = []
        for number, answer in enumerate(answers, start=1):
            facts, identity = answer.question.facts, answer.question.question_id
            question = {"question_id": identity, "text": answer.question.recorded_prompt, **facts}
            reference = reference_of(references, identity, folder / "answers_gpt4.jsonl")
            requests.append(review_request(number, question, captions, rules, reference, {"text": answer.text}))
        verdicts = judge.grade(requests, read_two_scores, reviews, REMINDER, MAX_TOKENS)
        grades_of(verdicts)
        pairs: defaultdict[str, list[Sequence[float]]] = defaultdict(list)
        for answer, verdict in zip(answers, verdicts, strict=True):
            if verdict.grade is not None:
                pairs["all"].append(verdict.grade["tuple"])
                pairs[str(answer.question.facts["category"])].append(verdict.grade["tuple"])
        values = {name: relative_score(pairs[name]) for name in sorted(pairs)}
        note = f"Graded by the rules of {own if own.is_file() else 'this project'}."
        return judged_scores(values["all"], values, verdicts, PUBLISHED_JUDGE, note)


def relative_score(pairs: Sequence[Sequence[float]]) -> float:
    """The second answers' sum of grades in per cent of the first answers'.

    Raises:
        ValueError: if all first answers have the grade 0.
    """
    first, second = (sum(pair[place] for pair in pairs) for place in (0, 1))
    if not first:
        raise ValueError("The judge gave every reference answer the grade 0, so there is nothing to compare with.")
    return 100 * second / first


def shipped_rules() -> dict[str, Any]:
    """The rules in `llava/eval/table/rule.json`."""
    rules: dict[str, Any] = json.loads(files("llava.eval").joinpath("table/rule.json").read_text(encoding="utf-8"))
    return rules


def read_captions(path: Path) -> dict[str, str]:
    """What images show, in words, by name of the image.

    Raises:
        ValueError: if the file is missing or is not what it should be.
    """
    captions = {}
    for number, record in enumerate(read_json_lines(path, LLaVABench.name), start=1):
        place = f"{path}, line {number}"
        caption = need_field(record, "caption", place)
        lines = caption if isinstance(caption, list) else [caption]
        texts = [need_text({"caption": line}, "caption", place) for line in lines]
        captions[one_image(record, place)] = "\n".join(texts)
    return captions


def read_references(path: Path) -> dict[str, Mapping[str, Any]]:
    """GPT-4's answers by question id.

    Raises:
        ValueError: if the file is missing or is not what it should be.
    """
    references: dict[str, Mapping[str, Any]] = {}
    for number, record in enumerate(read_json_lines(path, LLaVABench.name), start=1):
        need_text(with_text(record), "text", f"{path}, line {number}")
        references[str(need_id(record, "question_id", f"{path}, line {number}"))] = with_text(record)
    if not references:
        raise ValueError(f"{path} holds no answers; give the file that they were written to.")
    return references


def reference_of(references: Mapping[str, Mapping[str, Any]], identity: Any, path: Path) -> Mapping[str, Any]:
    """The answer to a question.

    Raises:
        ValueError: if there is none.
    """
    if str(identity) not in references:
        raise ValueError(f"{path} has no answer to question {shown(identity, 60)}; it does not fit the question file.")
    return references[str(identity)]


def review_request(
    number: int,
    question: Mapping[str, Any],
    captions: Mapping[str, str],
    rules: Mapping[str, Any],
    first: Mapping[str, Any],
    second: Mapping[str, Any],
) -> JudgeRequest:
    """Two answers to be compared, in the layout of LLaVA's reviews.

    Args:
        number: number of the question, from 1.
        question: question with `question_id`, `image`, `text` and `category`.
        captions: result of `read_captions`.
        rules: the answers' `role` and the `prompt`, by category with its prefix.
        first, second: answer lines.

    Raises:
        ValueError: if the image has no caption, the category no rule, or a text is none.
    """
    identity = question["question_id"]
    category = CATEGORY_PREFIX + need_text(question, "category", f"Question {identity}")
    rule = rules.get(category)
    if not (isinstance(rule, dict) and isinstance(rule.get("role"), str) and isinstance(rule.get("prompt"), str)):
        raise ValueError(
            f"The rule file has no role and prompt for {shown(category, 60)}; take llava/eval/table/rule.json."
        )
    image = one_image(question, f"Question {identity}")
    if image not in captions:
        raise ValueError(
            f"Question {shown(identity, 60)}: context.jsonl says nothing about image {shown(image, 60)}; the two files "
            "do not belong together, download both again."
        )
    role = rule["role"]
    asked, *answers = (need_text(line, "text", f"Question {identity}") for line in (question, first, second))
    content = (
        f"[Context]\n{captions[image]}\n\n[Question]\n{asked}\n\n"
        f"[{role} 1]\n{answers[0]}\n\n[End of {role} 1]\n\n"
        f"[{role} 2]\n{answers[1]}\n\n[End of {role} 2]\n\n"
        f"[System]\n{rule['prompt']}\n\n"
    )
    fields = {
        "id": number,
        "question_id": identity,
        "answer1_id": first.get("answer_id", identity),
        "answer2_id": second.get("answer_id", identity),
        "category": category,
    }
    return JudgeRequest(({"role": "system", "content": SYSTEM}, {"role": "user", "content": content}), fields)


def read_two_scores(text: str) -> Grade | None:
    """The two numbers from 0 to 10 in the first line of a review."""
    words = text.strip().split("\n")[0].replace(",", " ").strip("()[]* ").split()
    try:
        scores = [float(word) for word in words]
    except ValueError:
        return None
    return {"tuple": scores} if len(scores) == 2 and all(0 <= score <= 10 for score in scores) else None
