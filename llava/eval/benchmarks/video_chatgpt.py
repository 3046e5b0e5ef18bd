"""Video-ChatGPT's benchmarks of generation (arXiv 2306.05424): free answers about videos, graded from 0 to 5.

`Video_ChatGPT/Benchmarking_QA/` holds `generic_qa.json`, `temporal_qa.json` and `consistency_qa.json`, and
`Video_ChatGPT/Test_Videos/` the videos. The answers to the generic questions are graded three times (correctness of
information, detail orientation, contextual understanding), so these are one benchmark here and are answered once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from llava.common.json_files import write_json
from llava.common.yaml_files import table_beside
from llava.data.video import VIDEO_SUFFIXES
from llava.eval.benchmarks.base import JudgedBenchmark
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.benchmarks.reading import file_in, need_question, need_text, require_characters, require_some
from llava.eval.benchmarks.video_qa import MAX_TOKENS, PUBLISHED_JUDGE, json_records, read_score, videos_by_name
from llava.eval.judging.judge import Judge, JudgeRequest, grades_of, judged_scores
from llava.eval.scoring.scores import Scores

FOLDER = "Video_ChatGPT"
QUESTION_FOLDER = "Benchmarking_QA"
VIDEO_FOLDER = "Test_Videos"
REMINDER = "Only provide the Python dictionary string, such as {'score': 4}."

# The wording is that of Video-ChatGPT's program: grades depend on it, and others are not comparable.
_SYSTEM = (
    "You are an intelligent chatbot designed for evaluating the {purpose}Here's how you can accomplish the task:"
    "------##INSTRUCTIONS: {instructions}"
)
_REQUEST = (
    "Please evaluate the following video-based question-answer pair:\n\n{pair}\n\n"
    "Provide your evaluation only as a {score} score where the {score} score is an integer value between 0 and 5, "
    "with 5 indicating the highest level of {quality}. Please generate the response in the form of a Python dictionary "
    "string with keys 'score', where its value is {article}{score} score in INTEGER, not STRING.DO NOT PROVIDE ANY "
    "OTHER OUTPUT TEXT OR EXPLANATION. Only provide the Python dictionary string. For example, your response should "
    "look like this: {{''score': 4.8}}."
)
_PAIR = "Question: {question}\nCorrect Answer: {answer}\nPredicted Answer: {prediction}"
_TWO_PAIRS = (
    "Question 1: {questions[0]}\nQuestion 2: {questions[1]}\nCorrect Answer: {answer}\n"
    "Predicted Answer to Question 1: {predictions[0]}\nPredicted Answer to Question 2: {predictions[1]}"
)


@dataclass(frozen=True)
class Aspect:
    """What the judge is to look at.

    Attributes:
        name: name of its value in results.
        score: what the request calls the number.
        quality: what the number measures, in the words of the request.
        purpose: first sentences of the system prompt, behind "designed for evaluating the".
        instructions: lines of the system prompt.
        article: article in front of the score's second mention.
    """

    name: str
    score: str
    quality: str
    purpose: str
    instructions: tuple[str, ...]
    article: str = "the "

    def request(self, identity: Any, pair: str) -> JudgeRequest:
        """The request to grade an answer, or two.

        Args:
            identity: question id.
            pair: questions, right answer and predictions as text.
        """
        system = _SYSTEM.format(purpose=self.purpose, instructions="\n".join(f"- {line}" for line in self.instructions))
        words = _REQUEST.format(pair=pair, score=self.score, quality=self.quality, article=self.article)
        messages = ({"role": "system", "content": system}, {"role": "user", "content": words})
        return JudgeRequest(messages, {"question_id": identity, "aspect": self.name})


ASPECTS = {
    name: Aspect(name, **fields | {"instructions": tuple(fields["instructions"])})
    for name, fields in table_beside(__file__).items()
}
"""Aspects by their names, from video_chatgpt.yaml."""


class VideoGeneration(JudgedBenchmark):
    """One question file of Video-ChatGPT.

    Attributes:
        file: its name.
        keys: fields of a record that hold its questions.
        aspects: what the judge looks at; each has a mean from 0 to 5, and the headline is the mean of these.
    """

    max_new_tokens = 1024
    file: ClassVar[str]
    keys: ClassVar[tuple[str, ...]] = ("Q",)
    aspects: ClassVar[tuple[Aspect, ...]]

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark`; the files may also lie in `Video_ChatGPT` itself."""
        folder = root / FOLDER
        path = folder / QUESTION_FOLDER / self.file
        if not path.is_file() and (folder / self.file).is_file():
            path = folder / self.file
        present = videos_by_name(folder / VIDEO_FOLDER)
        questions = []
        for number, record in enumerate(json_records(path, self.name)):
            place = f"{path}, record {number + 1}"
            name = need_text(record, "video_name", place)
            require_characters(name, "video_name", place)
            usual = file_in(folder / VIDEO_FOLDER, f"{name}{VIDEO_SUFFIXES[0]}", place)
            facts = {"answer": need_text(record, "A", place), "video_name": name, "record": number}
            for key in self.keys:
                text = need_question(record, key, place)
                questions.append(Question(f"{number}/{key}", text, video=present.get(name, usual), facts=facts))
        return require_some(questions, path)

    def judged(self, root: Path, answers: Sequence[Answer], judge: Judge, reviews: Path) -> Scores:
        """See `JudgedBenchmark`."""
        graded = self.requests(answers)
        requests = [request for by_aspect in graded.values() for request in by_aspect]
        if not requests:
            return Scores(None, notes=("No record has answers to both of its questions.",))
        verdicts = judge.grade(requests, read_score, reviews, REMINDER, MAX_TOKENS)
        values, first = {}, 0
        whole = {request.fields["question_id"] for request in requests}
        for name, by_aspect in graded.items():
            of_aspect = verdicts[first : first + len(by_aspect)]
            values[name] = fmean(grade["score"] for grade in grades_of(of_aspect))
            for request, verdict in zip(by_aspect, of_aspect, strict=True):
                whole -= {request.fields["question_id"]} if verdict.grade is None else set()
            first += len(by_aspect)
        scores = judged_scores(fmean(values.values()), values, verdicts, PUBLISHED_JUDGE, *self.notes())
        counted = len(self.keys) * len(whole)
        return replace(scores, counted=None if counted == len(answers) else counted)

    def requests(self, answers: Sequence[Answer]) -> dict[str, list[JudgeRequest]]:
        """What the judge is asked, by name of the aspect."""
        pairs = {
            answer.question.question_id: _PAIR.format(
                question=answer.question.text, answer=answer.question.facts["answer"], prediction=answer.text
            )
            for answer in answers
        }
        return {
            aspect.name: [aspect.request(identity, pair) for identity, pair in pairs.items()] for aspect in self.aspects
        }

    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers has to know besides."""
        return ()

    def write_submission(self, root: Path, answers: Sequence[Answer], stem: Path) -> Path | None:
        """See `Benchmark`: the prediction file that Video-ChatGPT's evaluation reads."""
        predictions = []
        for given in self.by_record(answers).values():
            facts = given[0].question.facts
            asked = {key: answer.question.text for key, answer in zip(self.keys, given, strict=True)}
            said = {key.replace("Q", "pred"): answer.text for key, answer in zip(self.keys, given, strict=True)}
            predictions.append({**asked, "A": facts["answer"], "video_name": facts["video_name"], **said})
        return write_json(stem.with_name(f"{stem.name}.json"), predictions, end="")

    def by_record(self, answers: Sequence[Answer]) -> dict[int, list[Answer]]:
        """The answers of each record of which every question has one, by the record's number."""
        records: dict[int, list[Answer]] = {}
        for answer in answers:
            records.setdefault(answer.question.facts["record"], []).append(answer)
        return {number: given for number, given in records.items() if len(given) == len(self.keys)}


class Generic(VideoGeneration):
    """Correctness of information, detail orientation and contextual understanding of the same answers."""

    name = "vcg_generic"
    title = "VCG generic"
    file = "generic_qa.json"
    aspects = tuple(ASPECTS[name] for name in ("correctness", "detail_orientation", "contextual_understanding"))


class Temporal(VideoGeneration):
    """Temporal understanding."""

    name = "vcg_temporal"
    title = "VCG temporal"
    file = "temporal_qa.json"
    aspects = (ASPECTS["temporal_understanding"],)


class Consistency(VideoGeneration):
    """Consistency of the answers to two questions that mean the same."""

    name = "vcg_consistency"
    title = "VCG consistency"
    file = "consistency_qa.json"
    keys = ("Q1", "Q2")
    aspects = (ASPECTS["consistency"],)

    def requests(self, answers: Sequence[Answer]) -> dict[str, list[JudgeRequest]]:
        """See `VideoGeneration`; a record of which one question has no answer is left out."""
        requests = []
        for number, pair in self.by_record(answers).items():
            words = _TWO_PAIRS.format(
                questions=[answer.question.text for answer in pair],
                answer=pair[0].question.facts["answer"],
                predictions=[answer.text for answer in pair],
            )
            requests.append(self.aspects[0].request(number, words))
        return {self.aspects[0].name: requests}

    def notes(self) -> tuple[str, ...]:
        """See `VideoGeneration`."""
        return (
            "The judge sees both questions; Video-ChatGPT's released program shows it the first one twice, which "
            "published numbers may rest on.",
        )
