"""MM-Vet: open questions that need several capabilities at once, graded by a language model (arXiv 2308.02490)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from llava.common.json_files import write_json
from llava.common.yaml_files import table_beside
from llava.eval.benchmarks.base import JudgedBenchmark
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.benchmarks.reading import need_list, need_text, read_json, read_questions
from llava.eval.judging.judge import Grade, Judge, JudgeRequest, grades_of, judged_scores
from llava.eval.scoring.scores import Scores

PUBLISHED_JUDGE = "gpt-4-0613"
REMINDER = "Predict the correctness of the answer (digit): "
MAX_TOKENS = 16

_FOLDERS = ("mm-vet", "mmvet", "mm-vet/mm-vet", "mmvet/mm-vet")
_WORDING = table_beside(__file__)
_SCORE = re.compile(
    r"""[\s*`|"']*(?:correctness score|correctness|score)?[\s*`|"':=]*([01]?\.[0-9]+|[01])(?![0-9]|\.[0-9]|\s*[/%])""",
    re.IGNORECASE,
)


class _Truth(NamedTuple):
    """What mm-vet.json says of a question."""

    question: str
    answer: str
    capabilities: list[str]


class MMVet(JudgedBenchmark):
    """MM-Vet's 218 questions; the score is the mean of the judge's grades times 100."""

    name = "mmvet"
    title = "MMVet"
    max_new_tokens = 1024

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark`; the folder may be named `mm-vet`, as in LLaVA's scripts, or `mmvet`, as in its documents."""
        return read_questions(_place(root, "llava-mm-vet.jsonl"), _place(root, "images"), self.name)

    def judged(self, root: Path, answers: Sequence[Answer], judge: Judge, reviews: Path) -> Scores:
        """See `JudgedBenchmark`."""
        path = _place(root, "mm-vet.json")
        facts = read_json(path, self.name)
        truths = [_truth(facts, answer.question, path) for answer in answers]
        requests = [
            JudgeRequest(
                ({"role": "user", "content": grading_prompt(truth.question, truth.answer, answer.text)},),
                {"question_id": answer.question.question_id},
            )
            for truth, answer in zip(truths, answers, strict=True)
        ]
        verdicts = judge.grade(requests, read_score, reviews, REMINDER, MAX_TOKENS)
        grades_of(verdicts)
        scores: dict[str, list[float]] = {}
        for truth, verdict in zip(truths, verdicts, strict=True):
            if verdict.grade is not None:
                for name in ("total", *sorted(truth.capabilities)):
                    scores.setdefault(name, []).append(100 * verdict.grade["score"])
        values = {name: fmean(numbers) for name, numbers in scores.items()}
        return judged_scores(values["total"], values, verdicts, PUBLISHED_JUDGE)

    def write_submission(self, root: Path, answers: Sequence[Answer], stem: Path) -> Path | None:
        """The file that MM-Vet's evaluator takes; see `Benchmark`."""
        path = stem.with_name(stem.name + ".json")
        write_predictions(path, ({"question_id": a.question.question_id, "text": a.text} for a in answers))
        return path


def write_predictions(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write answers as MM-Vet's evaluator reads them: `{"v1_<question_id>": text}`.

    Args:
        path: JSON file.
        lines: lines of an answer file.

    Raises:
        ValueError: if a line has no question_id or no text.
    """
    predictions = {}
    for number, line in enumerate(lines, start=1):
        if "question_id" not in line or "text" not in line:
            raise ValueError(f"Answer {number} has no question_id or no text; remove the line or the file.")
        predictions[f"v1_{line['question_id']}"] = line["text"]
    write_json(path, predictions, indent=2, end="")


def grading_prompt(question: str, truth: str, prediction: str) -> str:
    """What the judge is asked about one answer, ending where the score has to stand.

    Args:
        question: question of MM-Vet.
        truth: right answer, with `<AND>` and `<OR>` between its parts.
        prediction: prediction of the model.
    """
    spaced = truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    table = [_WORDING["header"], ["---"] * len(_WORDING["header"])]
    for shown in _WORDING["examples"]:
        table += ([shown["question"], shown["truth"], *graded] for graded in shown["graded"])
    rows = "\n".join(" | ".join(row) for row in table)
    return f"{_WORDING['task']}\n\n{rows}\n\n" + " | ".join((question, spaced, prediction, ""))


def read_score(text: str) -> Grade | None:
    """The number between 0 and 1 that a reply begins with, perhaps behind the word correctness."""
    found = _SCORE.match(text)
    score = float(found[1]) if found else 2.0
    return {"score": score} if score <= 1 else None


def _truth(facts: Any, question: Question, path: Path) -> _Truth:
    name = f"v1_{question.question_id}"
    if not isinstance(facts, dict) or not isinstance(facts.get(name), dict):
        raise ValueError(f"{path} has no question {name}; it does not fit llava-mm-vet.jsonl, download both again.")
    record, place = facts[name], f"{path}, {name}"
    asked, answer = (need_text(record, field, place) for field in ("question", "answer"))
    return _Truth(asked, answer, [str(capability) for capability in need_list(record, "capability", place)])


def _place(root: Path, name: str) -> Path:
    """A file or folder of MM-Vet: LLaVA's zip and MM-Vet's own unpack side by side or into one another."""
    return next((path for folder in _FOLDERS if (path := root / folder / name).exists()), root / _FOLDERS[0] / name)
