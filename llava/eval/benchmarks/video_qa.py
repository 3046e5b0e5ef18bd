"""Questions about videos (MSVD-QA, MSRVTT-QA, TGIF-QA, ActivityNet-QA) in Video-LLaVA's files.

`GPT_Zero_Shot_QA/<data set>_Zero_Shot_QA/` holds `test_q.json`, `test_a.json` and a folder of videos. A language model
decides whether an answer means the same as the right one, with the request that Video-ChatGPT published
(arXiv 2306.05424). Without it only equal words can be counted.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from llava.common.json_lines import write_lines
from llava.common.shown import shown
from llava.data.video import ANIMATION_SUFFIXES, VIDEO_SUFFIXES
from llava.eval.benchmarks.base import JudgedBenchmark
from llava.eval.benchmarks.questions import Answer, Question, texts_by_id
from llava.eval.benchmarks.reading import (
    file_in,
    need_id,
    need_question,
    need_text,
    read_json,
    require_characters,
    require_some,
)
from llava.eval.judging.judge import Grade, Judge, JudgeRequest, grades_of, judged_scores, unjudged_note
from llava.eval.scoring.scores import Scores

PUBLISHED_JUDGE = "gpt-3.5-turbo"
REMINDER = "Only provide the Python dictionary string, such as {'pred': 'yes', 'score': 4}."
MAX_TOKENS = 64
ANSWER_FIELDS = ("id", "question", "answer", "pred")
"""What a line of Video-LLaVA's answer files holds."""

# The wording is that of Video-ChatGPT's program: grades depend on it, and others are not comparable.
_SYSTEM = (
    "You are an intelligent chatbot designed for evaluating the correctness of generative outputs for question-answer "
    "pairs. Your task is to compare the predicted answer with the correct answer and determine if they match "
    "meaningfully. Here's how you can accomplish the task:------##INSTRUCTIONS: "
    "- Focus on the meaningful match between the predicted answer and the correct answer.\n"
    "- Consider synonyms or paraphrases as valid matches.\n"
    "- Evaluate the correctness of the prediction compared to the answer."
)
_REQUEST = (
    "Please evaluate the following video-based question-answer pair:\n\n"
    "Question: {question}\nCorrect Answer: {answer}\nPredicted Answer: {prediction}\n\n"
    "Provide your evaluation only as a yes/no and score where the score is an integer value between 0 and 5, with 5 "
    "indicating the highest meaningful match. Please generate the response in the form of a Python dictionary string "
    "with keys 'pred' and 'score', where value of 'pred' is  a string of 'yes' or 'no' and value of 'score' is in "
    "INTEGER, not STRING.DO NOT PROVIDE ANY OTHER OUTPUT TEXT OR EXPLANATION. Only provide the Python dictionary "
    "string. For example, your response should look like this: {{'pred': 'yes', 'score': 4.8}}."
)
_PRED = re.compile(r"""["']?\bpred["']?\s*[:=]\s*["']?(yes|no)\b""", re.IGNORECASE)
_SCORE = re.compile(r"""["']?\bscore["']?\s*[:=]\s*["']?([0-9]+(?:\.[0-9]+)?)(?![0-9]|\.[0-9]|\s*/)""", re.IGNORECASE)
_SEPARATORS = str.maketrans(dict.fromkeys(string.punctuation, " ") | {"'": None})


class VideoQA(JudgedBenchmark):
    """One data set of questions about videos.

    Attributes:
        folder: folder of the data set.
        videos: its folder of videos.
        prefix: prefix of the videos' file names, which the question file leaves out.
    """

    max_new_tokens = 1024
    folder: ClassVar[str]
    videos: ClassVar[str] = "videos"
    prefix: ClassVar[str] = ""

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark`; the data set stands in `GPT_Zero_Shot_QA`, as in Video-LLaVA's documents, or in `root`."""
        folder = self._folder(root)
        present = videos_by_name(folder / self.videos)
        questions = []
        path = folder / "test_q.json"
        records = json_records(path, self.name)
        answers = right_answers(records, path, json_records(folder / "test_a.json", self.name), folder / "test_a.json")
        for number, (record, answer) in enumerate(zip(records, answers, strict=True), start=1):
            place = f"{path}, record {number}"
            video = need_text(record, "video_name", place)
            require_characters(video, "video_name", place)
            name = self.prefix + video
            usual = file_in(folder / self.videos, f"{name}{VIDEO_SUFFIXES[0]}", place)
            questions.append(
                Question(
                    question_id=record["question_id"],
                    text=need_question(record, "question", place),
                    video=present.get(name, usual),
                    facts={"answer": answer},
                )
            )
        return require_some(questions, path)

    def score(self, root: Path, answers: Sequence[Answer]) -> Scores:
        """See `Benchmark`; equal words are counted, which is no substitute for the judge."""
        return Scores(None, _word_matches(answers), (unjudged_note(self.title),))

    def judged(self, root: Path, answers: Sequence[Answer], judge: Judge, reviews: Path) -> Scores:
        """See `JudgedBenchmark`."""
        requests = [
            match_request(
                answer.question.question_id, answer.question.text, answer.question.facts["answer"], answer.text
            )
            for answer in answers
        ]
        verdicts = judge.grade(requests, read_match, reviews, REMINDER, MAX_TOKENS)
        values = match_values(grades_of(verdicts)) | _word_matches(answers)
        return judged_scores(values["accuracy"], values, verdicts, PUBLISHED_JUDGE)

    def write_submission(self, root: Path, answers: Sequence[Answer], stem: Path) -> Path | None:
        """See `Benchmark`: the answer file that Video-LLaVA's evaluation and `llava.eval.eval_video_qa` read.

        Raises:
            ValueError: if a question id comes twice: the evaluation tells answers by it.
        """
        lines = [
            {
                "id": answer.question.question_id,
                "question": answer.question.text,
                "answer": answer.question.facts["answer"],
                "pred": text,
            }
            for answer, text in zip(answers, texts_by_id(answers).values(), strict=True)
        ]
        return write_lines(stem.with_name(f"{stem.name}.jsonl"), lines)

    def _folder(self, root: Path) -> Path:
        usual = root / "GPT_Zero_Shot_QA" / self.folder
        return root / self.folder if (root / self.folder).is_dir() and not usual.is_dir() else usual


class MSVD(VideoQA):
    """MSVD-QA."""

    name = "msvd"
    title = "MSVD"
    folder = "MSVD_Zero_Shot_QA"


class MSRVTT(VideoQA):
    """MSRVTT-QA."""

    name = "msrvtt"
    title = "MSRVTT"
    folder = "MSRVTT_Zero_Shot_QA"
    videos = "videos/all"


class TGIF(VideoQA):
    """TGIF-QA's questions about one frame, shown as short videos or as the GIFs that they are made from."""

    name = "tgif"
    title = "TGIF"
    folder = "TGIF_Zero_Shot_QA"
    videos = "mp4"


class ActivityNet(VideoQA):
    """ActivityNet-QA."""

    name = "activitynet"
    title = "ActivityNet"
    folder = "Activitynet_Zero_Shot_QA"
    videos = "all_test"
    prefix = "v_"


def right_answers(
    questions: Sequence[Mapping[str, Any]], asked: Path, answers: Sequence[Mapping[str, Any]], told: Path
) -> list[str]:
    """The right answer to each question, by its id; by its place where an id comes several times.

    Args:
        questions, asked: records of the question file, and its path for errors.
        answers, told: records of the answer file, and its path.

    Raises:
        ValueError: if a record lacks a field, or the two files do not belong together.
    """
    ids, answer_ids = (
        [str(need_id(record, "question_id", f"{path}, record {n}")) for n, record in enumerate(records, start=1)]
        for records, path in ((questions, asked), (answers, told))
    )
    texts = [need_text(record, "answer", f"{told}, record {n}") for n, record in enumerate(answers, start=1)]
    if len(set(ids)) == len(ids) and len(set(answer_ids)) == len(answer_ids):
        by_id = dict(zip(answer_ids, texts, strict=True))
        for number, name in enumerate(ids, start=1):
            if name not in by_id:
                raise ValueError(
                    f"{asked}, record {number}: {told.name} has no answer to question {shown(name)[1:-1]}; download "
                    "both again."
                )
        return [by_id[name] for name in ids]
    if ids != answer_ids:
        raise ValueError(
            f"Question ids come several times in {asked} or {told}, so that an answer belongs to the question at its "
            "place, but the two do not hold the same ids at the same places; download both again."
        )
    return texts


def match_request(identity: Any, question: str, answer: str, prediction: str) -> JudgeRequest:
    """An answer to be compared with the right one.

    Args:
        identity: question id.
        question: that was asked.
        answer: right.
        prediction: prediction of the model.
    """
    request = _REQUEST.format(question=question, answer=answer, prediction=prediction)
    messages = ({"role": "system", "content": _SYSTEM}, {"role": "user", "content": request})
    return JudgeRequest(messages, {"question_id": identity})


def read_match(text: str) -> Grade | None:
    """`pred`, yes or no, and `score`, 0 to 5 without its decimals, as the published evaluation takes it."""
    pred, score = _PRED.search(text), read_score(text)
    return None if pred is None or score is None else {"pred": pred[1].lower()} | score


def read_score(text: str) -> Grade | None:
    """`score`, 0 to 5 without its decimals."""
    score = _SCORE.search(text)
    return None if score is None or float(score[1]) > 5 else {"score": int(float(score[1]))}


def match_values(grades: Sequence[Grade]) -> dict[str, float]:
    """Accuracy in per cent and mean score, of at least one grade."""
    return {
        "accuracy": 100 * fmean(grade["pred"] == "yes" for grade in grades),
        "mean_score": fmean(grade["score"] for grade in grades),
    }


def normalised(text: str) -> str:
    """Lower case, words only, single spaces."""
    return " ".join(text.lower().translate(_SEPARATORS).split())


def _word_matches(answers: Sequence[Answer]) -> dict[str, float]:
    """Shares in per cent: answers that equal the right one, and answers that contain it as whole words."""
    pairs = [(normalised(answer.text), normalised(str(answer.question.facts["answer"]))) for answer in answers]
    return {
        "exact_match": 100 * fmean(bool(right) and said == right for said, right in pairs),
        "contains_answer": 100 * fmean(bool(right) and f" {right} " in f" {said} " for said, right in pairs),
    }


def json_records(path: Path, benchmark: str) -> list[Mapping[str, Any]]:
    """The records of a question or answer file.

    Raises:
        ValueError: if it is missing, or no list of JSON objects.
    """
    records = read_json(path, benchmark)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path} is not a list of JSON objects; download it again.")
    return records


def videos_by_name(folder: Path) -> dict[str, Path]:
    """Videos and folders of frames of a folder; where several have one name, the format that Video-LLaVA prefers."""
    order = [*VIDEO_SUFFIXES, *ANIMATION_SUFFIXES]
    found: dict[str, tuple[int, Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        suffix = path.suffix.lower()
        name, rank = (path.stem, order.index(suffix)) if suffix in order else (path.name, len(order))
        if (suffix in order or path.is_dir()) and (name not in found or rank < found[name][0]):
            found[name] = (rank, path)
    return {name: path for name, (_, path) in found.items()}
