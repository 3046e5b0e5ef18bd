"""Scores of the benchmarks with short answers, against cases worked out by hand in the comments."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import eval_files_vqa as files
import pytest
from eval_files_vqa import answer, score, write_answers

from llava.eval import eval_textvqa
from llava.eval.benchmarks import get_benchmark
from llava.eval.benchmarks.textvqa import question_of_prompt
from llava.eval.scoring.m4c import m4c_accuracy, soft_accuracy, vqa_accuracy
from llava.eval.scoring.vqa_normalise import CONTRACTIONS, MARKS, NUMBERS, evalai_answer, normalise_answer

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> Callable[[list[str]], int]:
    main = runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["main"]
    assert callable(main)
    return main


# Normalisation.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Two dogs!", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("youve", "you've"),
        ("somebody'd", "somebodyd"),
        ("coca-cola", "coca cola"),  # no space beside the hyphen: it becomes one
        ("5 - 6", "5 6"),  # a space beside it: it goes
        ("rock-n-roll - live", "rocknroll live"),  # a space beside one of its kind: all of them go
        ("1,000-2", "10002"),  # a comma inside a number: every mark goes
        ("a,b", "b"),  # otherwise the comma becomes a space, and "a" is an article
        ("3.5", "3.5"),
        ("p.m.", "pm"),
        ("v1.2.", "v1.2"),
        ("john's\n car\t", "john's car"),
        ("", ""),
    ],
)
def test_official_normalisation(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("John's", "john 's"),  # a word of its own
        ("let's go", "let 's go"),
        ("1,000-2", "1000 2"),  # the comma is gone before the marks are looked at
        ("yes?", "yes"),
        ("red, blue", "red blue"),
        (" The A An ", ""),
        ("Unanswerable", "unanswerable"),
    ],
)
def test_evalai_normalisation_parts_words_first(text: str, expected: str) -> None:
    assert evalai_answer(text) == expected


def test_only_thirty_two_full_stops_go_as_in_the_official_code() -> None:
    assert normalise_answer("." * 33 + "x") == ".x"


def test_tables_are_complete() -> None:
    """120 contractions; apart from apostrophes every word stays. Twelve number words; 21 marks."""
    assert len(CONTRACTIONS) == 120
    assert all(word.replace("'", "") == full.replace("'", "") for word, full in CONTRACTIONS.items())
    assert (
        CONTRACTIONS["let's"] == "let's" and CONTRACTIONS["twas"] == "'twas" and CONTRACTIONS["yall'll"] == "y'all'll"
    )
    assert len(NUMBERS) == 12 and NUMBERS["none"] == NUMBERS["zero"] == "0" and NUMBERS["ten"] == "10"
    assert len(MARKS) == len(set(MARKS)) == 21 and "." not in MARKS and "'" not in MARKS


# Soft accuracy.


@pytest.mark.parametrize(
    ("same", "share"),
    [
        (0, 0.0),
        (1, 0.3),  # one is left out with 0 others, nine with one: (0 + 9 x 1/3) / 10
        (2, 0.6),  # (2 x 1/3 + 8 x 2/3) / 10
        (3, 0.9),  # (3 x 2/3 + 7 x 1) / 10
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_each_person_is_left_out_once(same: int, share: float) -> None:
    assert soft_accuracy("cat", ["cat"] * same + ["dog"] * (10 - same)) == pytest.approx(share)


def test_m4c_normalises_both_sides() -> None:
    assert m4c_accuracy("The Jones.", ["JONES"] * 2 + ["smith"] * 8) == pytest.approx(0.6)
    assert m4c_accuracy("2", ["two"] * 10) == 1


def test_vqa_normalises_people_only_where_they_disagree() -> None:
    assert vqa_accuracy("coca-cola", ["coca-cola"] * 9 + ["pepsi"]) == 1
    assert vqa_accuracy("coca-cola", ["coca-cola"] * 10) == 0, "the answer is submitted as 'coca cola'"
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 1


@pytest.mark.parametrize("metric", [m4c_accuracy, vqa_accuracy])
def test_other_than_ten_people_are_refused(metric: Callable[[str, list[str]], float]) -> None:
    with pytest.raises(ValueError, match="has 9 people's answers; it needs 10"):
        metric("yes", ["yes"] * 9)


# TextVQA.


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        (f"What Is it?\nReference OCR token: A, B\n{files.SHORT}", "what is it?"),
        (f"Reference OCR token: A, B\nWhat is it?\n{files.SHORT}", "what is it?"),
        (f"What is it?\n{files.SHORT}", "what is it?"),
        ("OCR tokens: A, B. Question: What is it? Short answer:", "what is it?"),
    ],
)
def test_textvqa_question_is_found_in_every_form_of_prompt(prompt: str, question: str) -> None:
    assert question_of_prompt(prompt) == question


@pytest.mark.parametrize("prompt", ["What is it?", "OCR tokens: A, B", "one\ntwo\nthree"])
def test_textvqa_prompt_of_no_known_form_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="none of the forms"):
        question_of_prompt(prompt)


# Shares 0.3 (one of ten people), 1, 0.6 (two of ten), 0, 1, 1: their mean is 3.9 / 6 = 65 %.
TEXTVQA_TEXTS = ["Clos culombu", "2", "jones", "no", "STOP!", "red"]


def test_textvqa(tmp_path: Path) -> None:
    files.write_textvqa(tmp_path)
    scores = score(tmp_path, "textvqa", TEXTVQA_TEXTS)
    assert scores.headline == scores.values["accuracy"] == pytest.approx(65)
    assert score(tmp_path, "textvqa", [None, None, None, None, "stop", "blue"]).headline == pytest.approx(50)


def test_textvqa_question_that_is_not_annotated_is_named(tmp_path: Path) -> None:
    files.write_textvqa(tmp_path)
    files.write_json(tmp_path / "textvqa" / "TextVQA_0.5.1_val.json", {"data": []})
    with pytest.raises(ValueError, match="has no question 'what is the brand of this camera\\?' about image 003a8ae2"):
        score(tmp_path, "textvqa", TEXTVQA_TEXTS)


def test_eval_textvqa_prints_llavas_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_textvqa(tmp_path)
    results = write_answers(tmp_path / "out" / "llava.jsonl", answer(tmp_path, "textvqa", TEXTVQA_TEXTS))
    (tmp_path / "out" / "notes.txt").write_text("", encoding="utf-8")
    annotation = ["--annotation-file", str(tmp_path / "textvqa" / "TextVQA_0.5.1_val.json")]
    assert eval_textvqa.main([*annotation, "--result-file", str(results)]) == 0
    assert capsys.readouterr().out == "llava\nSamples: 6\nAccuracy: 65.00%\n\n"
    assert eval_textvqa.main([*annotation, "--result-dir", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "llava\nSamples: 6\nAccuracy: 65.00%\n\nSkipping notes.txt\n"
    assert eval_textvqa.main([*annotation, "--result-file", str(tmp_path / "none.jsonl")]) == 2
    assert "There is no answer file" in capsys.readouterr().err
    assert eval_textvqa.main(annotation) == 2
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("", encoding="utf-8")
    assert eval_textvqa.main([*annotation, "--result-dir", str(tmp_path / "notes")]) == 2, "nothing was scored"
    assert "holds no answers (*.jsonl)" in capsys.readouterr().err


# GQA.

# Right: the first (verify), the second and the fourth (query), the sixth (choose): 4 of 6.
GQA_TEXTS = ["No.", "Woman", "dirty", "wetsuit", "tall", "LEFT."]


def test_gqa(tmp_path: Path) -> None:
    files.write_gqa(tmp_path)
    scores = score(tmp_path, "gqa", GQA_TEXTS)
    assert scores.headline == pytest.approx(100 * 4 / 6)
    expected = {
        "accuracy": 4 / 6,
        "open": 2 / 3,
        "binary": 2 / 3,
        "structural/verify": 1,
        "structural/query": 2 / 3,
        "structural/choose": 1 / 2,
        "semantic/global": 1,
        "semantic/rel": 1,
        "semantic/attr": 0,
    }
    assert scores.values == pytest.approx({name: 100 * share for name, share in expected.items()})


@pytest.mark.parametrize("place", ["questions", "questions1.2"])
def test_gqa_answers_may_lie_in_a_folder_of_their_own(tmp_path: Path, place: str) -> None:
    files.write_gqa(tmp_path)
    data = tmp_path / "gqa" / "data"
    (data / place).mkdir()
    name = "testdev_balanced_questions.json"
    (data / name).rename(data / place / name)
    assert score(tmp_path, "gqa", GQA_TEXTS).headline == pytest.approx(100 * 4 / 6)


def test_gqa_without_its_answers_says_what_is_missing(tmp_path: Path) -> None:
    files.write_gqa(tmp_path)
    answers = tmp_path / "gqa" / "data" / "testdev_balanced_questions.json"
    answered = answer(tmp_path, "gqa", GQA_TEXTS)
    answers.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a JSON object"):
        get_benchmark("gqa").score(tmp_path, answered)
    answers.unlink()
    with pytest.raises(ValueError, match=r"testdev_balanced_questions.json is missing.*--benchmarks gqa"):
        get_benchmark("gqa").score(tmp_path, answered)


def test_gqa_submission_is_what_its_script_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_gqa(tmp_path)
    answered = answer(tmp_path, "gqa", GQA_TEXTS)
    path = get_benchmark("gqa").write_submission(tmp_path, answered, tmp_path / "gqa.submission")
    assert path == tmp_path / "gqa.submission.json"
    predictions = json.loads(path.read_text(encoding="utf-8"))
    assert predictions[0] == {"questionId": "201307251", "prediction": "no"}
    assert [line["prediction"] for line in predictions] == ["no", "woman", "dirty", "wetsuit", "tall", "left"]
    source = write_answers(tmp_path / "merge.jsonl", answered)
    convert = script("convert_gqa_for_eval")
    assert convert(["--src", str(source), "--dst", str(tmp_path / "deep" / "out.json")]) == 0
    assert json.loads((tmp_path / "deep" / "out.json").read_text(encoding="utf-8")) == predictions
    assert convert(["--src", str(tmp_path / "none.jsonl"), "--dst", str(tmp_path / "out.json")]) == 2
    assert "There is no answer file" in capsys.readouterr().err


# VQAv2.


def test_vqav2_test_split_has_a_submission_and_no_headline(tmp_path: Path) -> None:
    files.write_vqav2(tmp_path)
    files.write_vqav2_validation(tmp_path)  # does not count where the test questions are
    answered = answer(tmp_path, "vqav2", ["The floor", "No.", None, "a bat", "yes", "noon"])
    scores = get_benchmark("vqav2").score(tmp_path, answered)
    assert scores.headline is None and scores.values == {} and "server" in scores.notes[0]
    path = get_benchmark("vqav2").write_submission(tmp_path, answered, tmp_path / "vqav2.submission")
    assert path is not None
    # Eight questions of the whole test split; the third was not answered and the last two were not asked.
    submission = json.loads(path.read_text(encoding="utf-8"))
    assert [line["question_id"] for line in submission] == [262144000 + number for number in range(8)]
    assert [line["answer"] for line in submission] == ["floor", "no", "", "bat", "yes", "noon", "", ""]
    listed = tmp_path / "vqav2" / "llava_vqav2_mscoco_test2015.jsonl"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[1:]))  # of another download
    with pytest.raises(ValueError, match="lacks 1 of 5 questions that were answered, the first is 262144000"):
        get_benchmark("vqav2").write_submission(tmp_path, answered, tmp_path / "empty")


@pytest.mark.parametrize("name", ["vqav2", "vizwiz"])
def test_two_answers_under_one_id_are_not_submitted_as_one(name: str, tmp_path: Path) -> None:
    getattr(files, f"write_{name}")(tmp_path)
    answered = answer(tmp_path, name, ["yes"] * 6)
    with pytest.raises(ValueError, match=f"question id '{answered[0].question.question_id}' comes twice"):
        get_benchmark(name).write_submission(tmp_path, [*answered, answered[0]], tmp_path / "x")


def test_vqav2_validation_split(tmp_path: Path) -> None:
    files.write_vqav2_validation(tmp_path)
    questions = get_benchmark("vqav2").questions(tmp_path)
    assert questions[0].text == f"Where is the cat?\n{files.SHORT}"
    assert questions[0].images == (tmp_path / "vqav2" / "val2014" / "COCO_val2014_000000262148.jpg",)
    assert all(image.exists() for question in questions for image in question.images if isinstance(image, Path))
    # ground: one of ten people, 0.3. no: 1. two: three of ten, 0.9. ball: 0. yes: 1. night: 1. Mean 4.2 / 6 = 70 %.
    scores = score(tmp_path, "vqav2", ["ground", "No", "2", "ball", "yes", "Night."])
    assert scores.headline == pytest.approx(70)
    by_type = {"yes/no": 1, "number": 0.9, "other": 1.3 / 3}
    assert scores.values == pytest.approx(
        {"accuracy": 70} | {f"answer_type/{kind}": 100 * share for kind, share in by_type.items()}
    )
    answered = answer(tmp_path, "vqav2", ["ground", "no", "2", "ball", "yes", "night"])
    assert get_benchmark("vqav2").write_submission(tmp_path, answered, tmp_path / "x") is None


def test_vqav2_validation_needs_its_images(tmp_path: Path) -> None:
    files.write_vqav2_validation(tmp_path)
    (tmp_path / "vqav2" / "val2014").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"llava_vqav2_mscoco_test-dev2015.jsonl is missing"):
        get_benchmark("vqav2").questions(tmp_path)


def test_convert_vqav2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_vqav2(tmp_path)
    folder, split = tmp_path / "vqav2", "llava_vqav2_mscoco_test-dev2015"
    answered = answer(tmp_path, "vqav2", ["Don't", "No", "2", "bat", "yes", None])
    write_answers(folder / "answers" / split / "llava" / "merge.jsonl", answered)
    convert = script("convert_vqav2_for_submission")
    assert convert(["--dir", str(folder), "--ckpt", "llava", "--split", split]) == 0
    assert "total results: 5, total split: 8" in capsys.readouterr().out
    written = json.loads((folder / "answers_upload" / split / "llava.json").read_text(encoding="utf-8"))
    assert [line["answer"] for line in written] == ["don't", "no", "2", "bat", "yes", "", "", ""]
    assert convert(["--dir", str(folder), "--ckpt", "other", "--split", split]) == 2


# VizWiz.


def test_vizwiz_submission_needs_every_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_vizwiz(tmp_path)
    files.write_vizwiz_validation(tmp_path)  # does not count where the test questions are
    texts = ["Unanswerable", "Red.", "yes", "5", "beans", "no"]
    answered = answer(tmp_path, "vizwiz", texts)
    benchmark = get_benchmark("vizwiz")
    assert benchmark.score(tmp_path, answered).headline is None
    path = benchmark.write_submission(tmp_path, answered, tmp_path / "vizwiz.submission")
    assert path is not None
    submission = json.loads(path.read_text(encoding="utf-8"))
    assert submission[1] == {"image": "VizWiz_test_00000001.jpg", "answer": "red"}
    assert [line["answer"] for line in submission] == ["unanswerable", "red", "yes", "5", "beans", "no"]
    with pytest.raises(ValueError, match=r"1 of 6 questions of .* have no answer, the first is 5"):
        benchmark.write_submission(tmp_path, answered[:5], tmp_path / "other")
    assert not (tmp_path / "other.json").exists()

    convert, upload = script("convert_vizwiz_for_submission"), tmp_path / "deep" / "upload.json"
    flags = ["--annotation-file", str(tmp_path / "vizwiz" / "llava_test.jsonl"), "--result-upload-file", str(upload)]
    assert convert([*flags, "--result-file", str(write_answers(tmp_path / "part.jsonl", answered[1:]))]) == 2
    assert "1 of 6 questions" in capsys.readouterr().err and not upload.exists()
    assert convert([*flags, "--result-file", str(write_answers(tmp_path / "all.jsonl", answered))]) == 0
    assert json.loads(upload.read_text(encoding="utf-8")) == submission


def test_vizwiz_validation_split(tmp_path: Path) -> None:
    files.write_vizwiz_validation(tmp_path)
    questions = get_benchmark("vizwiz").questions(tmp_path)
    assert questions[0].text == f"What is this?\n{files.UNANSWERABLE}\n{files.SHORT}"
    # Unanswerable where all say so: 1. red: 1. yes: four of ten, 1. 5: two of ten ("five"), 0.6. peas: 0. no: 1.
    scores = score(tmp_path, "vizwiz", ["Unanswerable", "red", "yes", "5", "peas", "no"])
    assert scores.headline == pytest.approx(100 * 4.6 / 6)
    assert scores.values["answer_type/unanswerable"] == pytest.approx(100)
    (tmp_path / "vizwiz" / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"llava_test.jsonl is missing"):
        get_benchmark("vizwiz").questions(tmp_path)


# All of them.


@pytest.mark.parametrize("name", files.WRITERS)
def test_questions_are_llavas_and_missing_files_are_named(tmp_path: Path, name: str) -> None:
    benchmark = get_benchmark(name)
    with pytest.raises(ValueError, match=f"is missing.*--benchmarks {name}"):
        benchmark.questions(tmp_path)
    files.WRITERS[name](tmp_path)
    questions = benchmark.questions(tmp_path)
    assert benchmark.max_new_tokens == 128 and 6 <= len(questions) <= 12
    for question in questions:
        (image,) = question.images
        assert isinstance(image, Path) and image.exists()
        assert question.text.endswith(files.SHORT) and question.recorded_prompt == question.text
