"""GQA: compositional questions about scenes, test-dev, balanced.

Files under `gqa/`, as LLaVA has them: `llava_gqa_testdev_balanced.jsonl` (questions), and under `data/` what GQA's
download unpacks to: `images/` and `testdev_balanced_questions.json` (right answers; a folder `questions` or
`questions1.2` around it is found, too). The official script is not needed: accuracy is equality with the right answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.common.json_files import write_json
from llava.common.shown import shown
from llava.eval.benchmarks.base import Benchmark
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.benchmarks.reading import need_text, read_json_as, read_questions
from llava.eval.scoring.scores import Scores, per_cent

_FOLDER = "gqa"
_ANNOTATION = "testdev_balanced_questions.json"
_PLACES = ("", "questions", "questions1.2")


class GQA(Benchmark):
    """Accuracy in per cent, and by type of question."""

    name = "gqa"
    title = "GQA"

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`."""
        folder = root / _FOLDER
        return read_questions(folder / "llava_gqa_testdev_balanced.jsonl", folder / "data" / "images", self.name)

    def score(self, root: Path, answers: Sequence[Answer]) -> Scores:
        """See `Benchmark.score`; types are the file's structural and semantic ones, and binary or open as in GQA."""
        path = annotation_path(root / _FOLDER / "data")
        records = read_json_as(dict, path, self.name)
        groups: dict[str, list[bool]] = defaultdict(list)
        for answer in answers:
            number = str(answer.question.question_id)
            if number not in records:
                raise ValueError(f"{path} has no question {number}, but it was answered; download both files again.")
            place = f"{path}, question {number}"
            right = gqa_prediction(answer.text) == need_text(records[number], "answer", place)
            for group in ("accuracy", *_types(records[number], place)):
                groups[group].append(right)
        values = {name: per_cent(verdicts) for name, verdicts in groups.items()}
        return Scores(values["accuracy"], values)

    def reads(self, answer: Answer) -> bool:
        """See `Benchmark.reads`; of an answer of full stops alone nothing is left to compare."""
        return bool(gqa_prediction(answer.text))

    def write_submission(self, root: Path, answers: Sequence[Answer], stem: Path) -> Path | None:
        """See `Benchmark.write_submission`: what GQA's script reads as `testdev_balanced_predictions.json`."""
        pairs = [(answer.question.question_id, answer.text) for answer in answers]
        return write_json(stem.with_name(f"{stem.name}.json"), gqa_predictions(pairs), end="")


def annotation_path(data: Path) -> Path:
    """Where GQA's right answers lie; the first place if nowhere.

    Args:
        data: LLaVA's `gqa/data`.
    """
    places = [data / place / _ANNOTATION for place in _PLACES]
    return next((path for path in places if path.exists()), places[0])


def gqa_prediction(text: str) -> str:
    """An answer as it is compared: without full stops at its end, in lower case."""
    return text.strip().rstrip(".").lower()


def gqa_predictions(answers: Sequence[tuple[Any, str]]) -> list[dict[str, Any]]:
    """What GQA's script reads, from question ids with answers."""
    return [{"questionId": number, "prediction": gqa_prediction(text)} for number, text in answers]


def _types(record: Mapping[str, Any], place: str) -> list[str]:
    """Groups that a question counts in; none where the file says no types."""
    types = record.get("types") or {}
    if not isinstance(types, Mapping):
        raise ValueError(f"{place} has the types {shown(types)}; they must be a JSON object. Download the file again.")
    structural, semantic = types.get("structural"), types.get("semantic")
    names = [f"semantic/{semantic}"] if semantic else []
    if structural:
        names += [f"structural/{structural}", "open" if structural == "query" else "binary"]
    return names
