"""POPE: whether an object is in the image, asked of random, popular and adversarial objects.

Files under `pope/`, as LLaVA has them: `llava_pope_test.jsonl` (questions with their category), `val2014/`, and
`coco/coco_pope_{adversarial,popular,random}.json` with the labels: the n-th line of one is about the n-th question of
its category.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from llava.common.shown import shown
from llava.eval.benchmarks.base import Benchmark
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.benchmarks.reading import need_field, need_text, read_json_lines, read_questions, require
from llava.eval.scoring.scores import Scores
from llava.eval.scoring.yes_no import Confusion, pope_reads, pope_says_yes

SPLITS = ("adversarial", "popular", "random")
"""Categories of the published benchmark."""

_FOLDER = "pope"
_PREFIX = "coco_pope_"
_SCORES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


class POPE(Benchmark):
    """F1 averaged over the three splits, in per cent; accuracy, precision, recall and share of yes beside it."""

    name = "pope"
    title = "POPE"
    unread_as = "yes"

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`."""
        folder = root / _FOLDER
        return read_pope_questions(folder / "llava_pope_test.jsonl", folder / "val2014")

    def score(self, root: Path, answers: Sequence[Answer]) -> Scores:
        """See `Benchmark.score`."""
        splits = pope_splits(root / _FOLDER / "coco", ((answer.question, answer.text) for answer in answers))
        values: dict[str, float] = {}
        for name in _SCORES:
            shares = {split: 100 * float(getattr(counts, name)) for split, counts in splits.items()}
            values |= {name: mean(shares.values())} | {f"{split}/{name}": share for split, share in shares.items()}
        notes = ["The headline is F1 averaged over the splits, which papers built on LLaVA report as POPE."]
        missing = [split for split in SPLITS if split not in splits]
        if missing:
            notes.append(f"No question of the split {' or '.join(missing)} was answered; averages are over the others.")
        return Scores(values["f1"], values, tuple(notes))

    def reads(self, answer: Answer) -> bool:
        """See `Benchmark.reads`."""
        return pope_reads(answer.text)


def read_pope_questions(path: Path, images: Path) -> list[Question]:
    """The questions of POPE, each with its place among those of its category.

    Args:
        path: LLaVA's question file.
        images: folder of COCO's val2014.

    Raises:
        ValueError: if the file is missing or a line lacks a field.
    """
    questions: list[Question] = []
    places: Counter[str] = Counter()
    for number, question in enumerate(read_questions(path, images, POPE.name), start=1):
        category = need_text(question.facts, "category", f"{path}, line {number}")
        facts = {**question.facts, "category": category, "place": places[category]}
        questions.append(dataclasses.replace(question, facts=facts))
        places[category] += 1
    return questions


def pope_splits(folder: Path, answers: Iterable[tuple[Question, str]]) -> dict[str, Confusion]:
    """Answers of each split, counted; splits in the order of their names.

    Args:
        folder: folder of the files `coco_pope_<split>.json`.
        answers: questions as `read_pope_questions` gives them, with answers.

    Raises:
        ValueError: if a file is missing, has no label for a question, or is about another image.
    """
    by_category: dict[str, list[tuple[Question, str]]] = defaultdict(list)
    for question, text in answers:
        by_category[question.facts["category"]].append((question, text))
    splits = {}
    for category, pairs in sorted(by_category.items()):
        path = folder / f"{_PREFIX}{category}.json"
        labels = read_json_lines(require(path, POPE.name), POPE.name)
        splits[category] = Confusion.count(
            (pope_says_yes(text), _label_of(question, labels, path)) for question, text in pairs
        )
    return splits


def split_names(folder: Path) -> list[str]:
    """Splits that a folder has label files of, in order.

    Raises:
        ValueError: if there is none.
    """
    names = sorted(path.stem.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*.json"))
    if not names:
        raise ValueError(f"{folder} has no file {_PREFIX}<split>.json; give the folder coco of POPE's repository.")
    return names


def _label_of(question: Question, labels: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Whether yes is right."""
    place = question.facts["place"]
    advice = "the question file and this one do not belong together, get POPE's files of the commit that LLaVA names."
    if place >= len(labels):
        raise ValueError(f"{path} has {len(labels)} labels, but question {question.question_id} needs more; {advice}")
    label = labels[place]
    image, own = label.get("image"), question.facts.get("image")
    if image and own and Path(str(image)).name != Path(str(own)).name:
        raise ValueError(
            f"{path}, line {place + 1} is about {shown(str(image))[1:-1]}, but question "
            f"{question.question_id} is about {shown(str(own))[1:-1]}; {advice}"
        )
    said = need_field(label, "label", f"{path}, line {place + 1}")
    if said not in ("yes", "no"):
        raise ValueError(f"{path}, line {place + 1} has the label {shown(said)}; it must be yes or no. Get it anew.")
    return bool(said == "yes")
