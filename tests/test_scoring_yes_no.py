"""Scores of POPE and MME, against cases worked out by hand in the comments."""

from __future__ import annotations

import zipfile
from pathlib import Path

import eval_files_vqa as files
import pytest
from eval_files_vqa import answer, score, write_answers

from llava.eval import eval_pope
from llava.eval.benchmarks import get_benchmark
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.scoring.yes_no import Confusion, mme_points, mme_reading, pope_says_yes

# POPE.


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("yes, there is no doubt", False),  # as LLaVA reads it
        ("No", False),
        ("No, there is not", False),
        ("There is not. Yes", False),
        ("Yes. There is no dog", True),  # only the first sentence counts
        ("NO", True),  # as LLaVA reads it: only No and no are known
        ("no\nyes", True),  # words end at spaces alone
        ("None", True),
        ("", True),
    ],
)
def test_pope_reads_answers_as_llava_does(text: str, yes: bool) -> None:
    assert pope_says_yes(text) is yes


def test_confusion() -> None:
    """Two right yes, one wrong yes, three right no, four wrong no."""
    pairs = [(True, True)] * 2 + [(True, False)] + [(False, False)] * 3 + [(False, True)] * 4
    counts = Confusion.count(pairs)
    assert counts == Confusion(2, 1, 3, 4)
    assert (counts.accuracy, counts.precision, counts.recall) == (5 / 10, 2 / 3, 2 / 6)
    assert counts.f1 == pytest.approx(2 * (2 / 3) * (1 / 3) / (2 / 3 + 1 / 3))
    assert counts.yes_ratio == 3 / 10
    never = Confusion.count([(False, True), (False, False)])
    assert (never.precision, never.recall, never.f1, never.yes_ratio, never.accuracy) == (0, 0, 0, 0, 0.5)


# Labels are yes, no, yes, no. Adversarial: all right, F1 1. Popular: yes to all, precision 1/2, recall 1, F1 2/3.
# Random: never yes, F1 0. Average F1 5/9; accuracies 1, 1/2, 1/2.
POPE_TEXTS = ["Yes", "No", "Yes.", "no, it is not", *["Yes"] * 4, *["No"] * 4]


def test_pope(tmp_path: Path) -> None:
    files.write_pope(tmp_path)
    scores = score(tmp_path, "pope", POPE_TEXTS)
    assert scores.headline == scores.values["f1"] == pytest.approx(100 * 5 / 9)
    assert scores.values["adversarial/f1"] == 100
    assert scores.values["popular/f1"] == pytest.approx(200 / 3)
    assert scores.values["random/f1"] == scores.values["random/precision"] == scores.values["random/yes_ratio"] == 0
    assert scores.values["accuracy"] == pytest.approx(200 / 3)
    assert scores.values["popular/recall"] == 100 and scores.values["yes_ratio"] == pytest.approx(50)
    assert "F1 averaged over the splits" in scores.notes[0] and len(scores.notes) == 1


def test_pope_labels_go_by_place_where_answers_are_missing(tmp_path: Path) -> None:
    """Answers 2 to 4 of a split are right; paired with labels 1 to 3 every one would be wrong."""
    files.write_pope(tmp_path)
    scores = score(tmp_path, "pope", [None, "No", "Yes", "No", *[None] * 8])
    assert scores.headline == scores.values["accuracy"] == 100
    assert "popular or random" in scores.notes[1]


def test_pope_labels_of_other_questions_are_refused(tmp_path: Path) -> None:
    files.write_pope(tmp_path)
    path = tmp_path / "pope" / "coco" / "coco_pope_popular.json"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:3]), encoding="utf-8")
    with pytest.raises(ValueError, match="has 3 labels, but question 1004 needs more"):
        score(tmp_path, "pope", POPE_TEXTS)
    path.write_text("".join(lines[2:] + lines[:2]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1 is about COCO_val2014_000000310197\.jpg, but question 1001"):
        score(tmp_path, "pope", POPE_TEXTS)


def test_eval_pope_prints_llavas_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_pope(tmp_path)
    answered = answer(tmp_path, "pope", POPE_TEXTS)
    folder = tmp_path / "pope"
    flags = ["--annotation-dir", str(folder / "coco"), "--question-file", str(folder / "llava_pope_test.jsonl")]
    results = write_answers(tmp_path / "answers.jsonl", answered[::-1])  # the order of answers does not matter
    assert eval_pope.main([*flags, "--result-file", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("Category")] == [
        f"Category: {split}, # samples: 4" for split in ("adversarial", "popular", "random")
    ]
    assert lines[1:9] == [
        "TP\tFP\tTN\tFN\t",
        "2\t0\t2\t0",
        "Accuracy: 1.0",
        "Precision: 1.0",
        "Recall: 1.0",
        "F1 score: 1.0",
        "Yes ratio: 0.5",
        "1.000, 1.000, 1.000, 1.000, 0.500",
    ]
    assert "0.667, 0.500, 0.500, 1.000, 1.000" in lines and "0.000, 0.500, 0.000, 0.000, 0.000" in lines
    assert float(lines[-1].removeprefix("Average F1: ")) == pytest.approx(5 / 9)
    strange = tmp_path / "strange.jsonl"
    strange.write_text(results.read_text() + '{"question_id": 9999, "prompt": "?", "text": "Yes"}\n')
    assert eval_pope.main([*flags, "--result-file", str(strange)]) == 2, "answers to another version of the questions"
    assert "lacks 1 of 13 questions that were answered, such as 9999" in capsys.readouterr().err
    empty = write_answers(tmp_path / "empty.jsonl", [])
    assert eval_pope.main([*flags, "--result-file", str(empty)]) == 2
    assert "answers no question" in capsys.readouterr().err


# MME.


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("Yes", "yes"),
        ("NO", "no"),
        ("Yes, it is", "yes"),
        ("not so", "no"),  # its first four characters hold "no"
        ("I know", "other"),  # "i kn"
        ("The answer is yes", "other"),
        ("", "other"),
    ],
)
def test_mme_reads_four_characters(text: str, reading: str) -> None:
    assert mme_reading(text) == reading


def test_mme_points() -> None:
    """Three of four answers right, one of two images with both: 75 + 50. Without the complete ones: accuracy alone."""
    images = [[True, True], [True, False]]
    assert mme_points(images, [True, True]) == 125
    assert mme_points(images, [False, True]) == 75
    assert mme_points([[True]], [False]) == 100


# existence: both right on the first image, one of two on the second: 75 + 50 = 125 points.
# code_reasoning: "other" is wrong, the second right: 50 + 0 = 50 points. Total 175.
MME_TEXTS = ["Yes", "No", "yes.", "Yes", "It is python", "No\tit\nis not"]


def test_mme(tmp_path: Path) -> None:
    files.write_mme(tmp_path)
    scores = score(tmp_path, "mme", MME_TEXTS)
    assert scores.headline == 175
    expected = {"total": 175, "perception": 125, "cognition": 50, "existence": 125, "code_reasoning": 50}
    assert scores.values == pytest.approx(expected)
    assert "count, position" in scores.notes[1], "twelve subtasks are not there"
    perfect = score(tmp_path, "mme", ["yes", "no"] * 3)
    assert perfect.headline == 400, "200 a subtask"


def test_mme_incomplete_images_count_for_accuracy_alone(tmp_path: Path) -> None:
    """existence: three answers, two right; one complete image, both right: 66.7 + 100."""
    files.write_mme(tmp_path)
    scores = score(tmp_path, "mme", ["yes", "no", None, "yes", None, None])
    assert scores.headline == pytest.approx(200 / 3 + 100)
    assert scores.notes[-1].startswith("1 images have a question without an answer")


def test_mme_images_are_found_in_the_other_layout(tmp_path: Path) -> None:
    files.write_mme(tmp_path)
    existence = tmp_path / "MME" / "MME_Benchmark_release_version" / "existence"
    (existence / "images").mkdir()
    (existence / "questions_answers_YN").mkdir()
    for path in list(existence.glob("*.*")):
        path.rename(existence / ("images" if path.suffix == ".jpg" else "questions_answers_YN") / path.name)
    questions = get_benchmark("mme").questions(tmp_path)
    assert all(image.exists() for question in questions for image in question.images if isinstance(image, Path))
    assert score(tmp_path, "mme", MME_TEXTS).headline == 175


def test_mme_submission_is_what_its_script_reads(tmp_path: Path) -> None:
    files.write_mme(tmp_path)
    answered = answer(tmp_path, "mme", MME_TEXTS)
    benchmark = get_benchmark("mme")
    path = benchmark.write_submission(tmp_path, answered, tmp_path / "mme.submission")
    assert path == tmp_path / "mme.submission.zip"
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name).decode("utf-8").splitlines() for name in archive.namelist()}
    assert sorted(contents) == ["code_reasoning.txt", "existence.txt"]
    assert contents["existence.txt"][0].split("\t") == [
        "000000006040.jpg",
        "Is there a train in this picture?  Please answer yes or no.",
        "Yes",
        "Yes",
    ]
    assert contents["code_reasoning.txt"][1].split("\t")[2:] == ["No", "No it is not"]
    assert benchmark.write_submission(tmp_path, answered[1:], tmp_path / "part") == tmp_path / "part.zip"
    with zipfile.ZipFile(tmp_path / "part.zip") as archive:
        assert len(archive.read("existence.txt").decode("utf-8").splitlines()) == 2, "lines go by twos"


def test_mme_question_without_a_right_answer_is_named(tmp_path: Path) -> None:
    files.write_mme(tmp_path)
    with pytest.raises(ValueError, match=r"no answer to 'Is it late\?' about existence/000000006040\.jpg"):
        get_benchmark("mme").score(tmp_path, [Answer(Question("existence/000000006040.jpg", "Is it late?"), "yes")])
    broken = tmp_path / "MME" / "MME_Benchmark_release_version" / "existence" / "000000006040.txt"
    broken.write_text("Is there a train?\tmaybe\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"000000006040.txt, line 1 is not a question, a tab and Yes or No"):
        score(tmp_path, "mme", MME_TEXTS)
