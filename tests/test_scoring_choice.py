"""The multiple-choice benchmarks: what is asked, how answers are read, and the numbers, worked out by hand."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import eval_files_choice as files
import pytest

from llava.eval.benchmarks import get_benchmark
from llava.eval.benchmarks.answer_lines import answer_line
from llava.eval.benchmarks.mmbench import SUFFIXES, is_right, read_option, rotated, table_questions, write_table
from llava.eval.benchmarks.questions import Answer, Question, question_keys
from llava.eval.benchmarks.sqa import FAILED, option_index, read_letter, science_questions
from llava.eval.eval_science_qa import main as eval_science_qa

ROOT = Path(__file__).resolve().parents[1]
LETTER = "Answer with the option's letter from the given choices directly."


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    for write in files.WRITERS.values():
        write(folder)
    return folder


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module


def answered(root: Path, name: str, texts: Mapping[int | str, str]) -> list[Answer]:
    """The questions that `texts` has an answer to, by id."""
    questions = get_benchmark(name).questions(root)
    return [Answer(question, texts[question.question_id]) for question in questions if question.question_id in texts]


def write_answers(path: Path, items: list[Answer]) -> Path:
    lines = [answer_line(item.question, item.text, f"a{number}", "tiny") for number, item in enumerate(items)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", files.WRITERS)
def test_every_question_has_its_own_key_and_images_that_exist(root: Path, name: str):
    questions = get_benchmark(name).questions(root)
    assert 6 <= len(questions) <= 12
    keys = question_keys(questions)
    assert len(set(keys)) == len(keys)
    for question in questions:
        assert "<image>" not in question.text
        json.dumps(answer_line(question, "A", "id", "model"))
        for image in question.images:
            content = image if isinstance(image, bytes) else image.read_bytes()
            assert content.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", files.WRITERS)
def test_missing_files_are_named(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=rf"is missing.*--benchmarks {name}"):
        get_benchmark(name).questions(tmp_path)


# === ScienceQA ===


def test_a_science_question_about_text_may_spell_the_mark_of_images(tmp_path: Path):
    record = {"id": "1", "conversations": [{"from": "human", "value": "What does \\<image> mean?"}]}
    [question] = science_questions([record], tmp_path, "questions.json")
    assert question.text.startswith("What does \\<image> mean?") and not question.images
    record["conversations"] = [{"from": "human", "value": "What does <image> mean?"}]
    with pytest.raises(ValueError, match="holds <image> in its text, but names no image"):
        science_questions([record], tmp_path, "questions.json")


def test_science_questions_are_asked_as_llava_asks(root: Path):
    first, second, *_ = get_benchmark("sqa").questions(root)
    assert first.text == f"Context: N/A\nWhich colour is it (4)?\nA. red\nB. green\n{LETTER}"
    assert first.images == () and first.recorded_prompt == first.text
    assert second.images == (root / "scienceqa/images/test/5/image.png",)
    assert second.recorded_prompt == f"<image>\n{second.text}"
    assert second.text.startswith("Context: N/A\nWhich colour is it (5)?") and second.text.endswith(LETTER)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. green", "B"),
        ("B. ", "B"),
        ("The answer is C.", "C"),
        ("Well. The answer is C!", "C"),
        ("The answer is C because", "C"),
        ("The answer is G.", "G"),
        (" B ", FAILED),
        ("B\nbecause", FAILED),
        ("B.", FAILED),
        ("b", FAILED),
        ("Bird", FAILED),
        ("", FAILED),
        ("F. six", FAILED),
        ("The answer is C", FAILED),
        ("The answer is C\n", FAILED),
        ("The answer is c.", FAILED),
        ("The answer is B. No. The answer is C.", FAILED),
        ("The correct option is B", FAILED),
    ],
)
def test_letters_are_read_as_llava_reads_them(text: str, letter: str):
    assert read_letter(text) == letter


def test_a_letter_counts_only_if_the_question_offers_it():
    assert [option_index(letter, 3) for letter in ("A", "C", "D", "G", FAILED)] == [0, 2, -1, -1, -1]


SQA_TEXTS = {
    "4": "B",  # right, text
    "5": "A. red",  # right, image
    "11": "The answer is C.",  # right, image
    "14": "C",  # wrong, text: only A and B are offered
    "15": "A",  # wrong, image
    "26": "green",  # wrong, text: no letter
    "27": "B",  # wrong, image
}


def test_science_accuracy_by_hand(root: Path):
    scores = get_benchmark("sqa").score(root, answered(root, "sqa", SQA_TEXTS))
    # 3 of the 7 that were answered; 2 of the 4 with an image; 1 of the 3 without.
    assert scores.headline == scores.values["image_accuracy"] == 50
    assert scores.values["accuracy"] == pytest.approx(300 / 7)
    assert scores.values["text_accuracy"] == pytest.approx(100 / 3)


def test_science_without_images_has_no_headline_and_other_splits_do_not_count(root: Path):
    benchmark = get_benchmark("sqa")
    scores = benchmark.score(root, answered(root, "sqa", {"4": "B", "14": "C"}))
    assert scores.headline is None and scores.values == {"accuracy": 50} and scores.notes
    stranger = Answer(Question("1", "Seen in training?"), "A")
    assert benchmark.score(root, [*answered(root, "sqa", {"5": "A"}), stranger]).values["accuracy"] == 100
    with pytest.raises(ValueError, match="None of the answered questions is in the split 'test'"):
        benchmark.score(root, [stranger])


def test_eval_science_qa_prints_and_writes_what_llava_does(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    result = write_answers(tmp_path / "answers.jsonl", answered(root, "sqa", SQA_TEXTS))
    words = ["--base-dir", str(root / "scienceqa"), "--result-file", str(result)]
    words += ["--output-file", str(tmp_path / "output.json"), "--output-result", str(tmp_path / "result.json")]
    assert eval_science_qa(words) == 0
    # 31 has no answer: wrong, and without a prompt no question with an image. 3 of 8 = 37.5 %, images 2 of 4.
    assert capsys.readouterr().out == "Total: 8, Correct: 3, Accuracy: 37.50%, IMG-Accuracy: 50.00%\n"
    results = json.loads((tmp_path / "result.json").read_text())
    assert (results["acc"], results["correct"], results["count"]) == (37.5, 3, 8)
    assert results["results"] == {"4": 1, "5": 0, "11": 2, "14": -1, "15": 0, "26": -1, "27": 1, "31": -1}
    assert results["outputs"]["5"] == "A. red" and results["outputs"]["31"] == FAILED
    analyses = json.loads((tmp_path / "output.json").read_text())
    assert [analysis["question_id"] for analysis in analyses["correct"]] == ["4", "5", "11"]
    wrong = {analysis["question_id"]: analysis for analysis in analyses["incorrect"]}
    assert wrong["31"] == {
        "question_id": "31",
        "parsed_ans": FAILED,
        "ground_truth": "B",
        "question": "Unknown",
        "pred": FAILED,
        "is_multimodal": False,
    }
    assert wrong["15"]["is_multimodal"] and wrong["15"]["parsed_ans"] == "A"


def test_eval_science_qa_says_what_is_wrong(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result = write_answers(tmp_path / "answers.jsonl", answered(root, "sqa", SQA_TEXTS))
    base = ["--base-dir", str(root / "scienceqa"), "--result-file", str(result)]
    textless = tmp_path / "textless.jsonl"
    textless.write_text('{"question_id": "4", "prompt": "Which?"}\n')
    for words, reason in (
        ([*base, "--split", "minival"], "has no split 'minival'; it has train, test."),
        ([*base, "--options", "ABC"], "--options has 3 letters, but right answers need 4"),
        ([*base, "--result-file", "nowhere.jsonl"], "There is no answer file 'nowhere.jsonl'"),
        ([*base, "--result-file", str(textless)], "answer 1 has no text"),
        ([*base, "--base-dir", str(tmp_path)], "pid_splits.json is missing"),
    ):
        assert eval_science_qa(words) == 2
        assert reason in capsys.readouterr().err


# === MMBench ===


def test_mmbench_questions_are_asked_as_llava_asks(root: Path):
    questions = {question.question_id: question for question in get_benchmark("mmbench").questions(root)}
    assert list(questions) == [7, 8, 12, 1_000_007, 1_000_008, 1_000_012, 2_000_007, 2_000_012, 3_000_012]
    plain, hinted = questions[7], questions[8]
    assert plain.recorded_prompt == "What is shown?\nA. cat\nB. dog\nC. bird"
    assert plain.text == f"{plain.recorded_prompt}\n{LETTER}"
    assert plain.fields == {"round_id": 0, "options": ["cat", "dog", "bird"], "option_char": ["A", "B", "C"]}
    assert hinted.recorded_prompt == "The picture is bright.\nIs it day?\nA. yes\nB. no"
    assert questions[1_000_007].recorded_prompt == "What is shown?\nA. bird\nB. cat\nC. dog"
    assert plain.images == (files.png(70),)
    line = answer_line(plain, "B", "id", "tiny")
    assert set(line) == {
        "question_id",
        "round_id",
        "prompt",
        "text",
        "options",
        "option_char",
        "answer_id",
        "model_id",
        "metadata",
    }
    chinese = get_benchmark("mmbench_cn").questions(root)[0]
    assert chinese.text == "图中是什么？\nA. 猫\nB. 狗\nC. 鸟\n请直接回答选项字母。"


def test_all_rounds_rotate_options_and_keep_the_letters_in_order(root: Path):
    question = get_benchmark("mmbench").questions(root)[0]
    first, second, third = rotated(question, SUFFIXES["en"])
    assert first == question
    assert second.recorded_prompt == "What is shown?\nA. dog\nB. bird\nC. cat" and second.text.endswith(LETTER)
    assert second.fields == {"round_id": 1, "options": ["dog", "bird", "cat"], "option_char": ["B", "C", "A"]}
    assert third.fields["option_char"] == ["C", "A", "B"] and third.fields["round_id"] == 2
    # The right answer is the dog: B, then A, then C.
    for turn, letter in ((first, "B"), (second, "A"), (third, "C")):
        assert [other for other in "ABC" if is_right(Answer(turn, other))] == [letter]
    assert rotated(question, None)[1].text == second.recorded_prompt


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("B. dog", "B"),
        ("(C) bird", "C"),
        ("A: cat", "A"),
        ("A\nIt purrs.", "A"),
        ("The answer is B.", "B"),
        ("The answer is A.", "A"),
        ("Answer: B", "B"),
        ("**B**", "B"),
        ("Option B", "B"),
        ("答案：B。", "B"),
        ("A。猫", "A"),
        ("A, B and C are all visible", None),
        ("B or C", None),
        ("A large dog sits here.", "B"),
        ("A. A cat sits here.", "A"),
        ("A: it purrs quite loudly.", "A"),
        ("(A) it purrs quite loudly.", "A"),
        ("A and B are pets.", None),
        ("A dog", "A"),
        ("Bird A", "A"),
        ("D", None),
        ("D. fish", None),
        ("It is a dog.", "B"),
        ("Dog.", "B"),
        ("a cat and a dog", None),
        ("hot dog", "C"),
        ("", None),
        ("none of them", None),
        ("Because of ABC", None),
    ],
)
def test_options_are_read_from_answers(text: str, letter: str | None):
    assert read_option(text, ["cat", "dog", "hot dog" if "hot" in text else "bird"]) == letter


# Right: all three rotations of 7 (B, C, A), one of two of 8 (A, but not B), three of four of 12 (D, A, B, not C).
MMBENCH_TEXTS = {
    7: "B",
    1_000_007: "C. dog",
    2_000_007: "dog",
    8: "A",
    1_000_008: "A",
    12: "D",
    1_000_012: "A",
    2_000_012: "B",
    3_000_012: "D",
}


def test_circular_and_plain_accuracy_by_hand(root: Path):
    scores = get_benchmark("mmbench").score(root, answered(root, "mmbench", MMBENCH_TEXTS))
    # Plain: 7, 8 and 12 are right. Circular: of the three groups only that of 7; it is one of two of its ability.
    assert scores.values == {
        "plain_accuracy": 100,
        "circular_accuracy": pytest.approx(100 / 3),
        "perception": 50,
        "reasoning": 0,
    }
    assert scores.headline == scores.values["circular_accuracy"] and scores.notes == ()


def test_questions_without_all_rotations_are_left_out_and_said(root: Path):
    benchmark = get_benchmark("mmbench")
    some = {index: MMBENCH_TEXTS[index] for index in (7, 1_000_007, 2_000_007, 12)}
    scores = benchmark.score(root, answered(root, "mmbench", some))
    assert scores.headline == 100 and scores.values["plain_accuracy"] == 100
    assert scores.notes[0].startswith("1 questions were not asked under every rotation")
    scores = benchmark.score(root, answered(root, "mmbench", {7: "B", 8: "B"}))
    assert scores.headline is None and scores.values == {"plain_accuracy": 50}


def test_a_table_without_answers_has_no_headline(tmp_path: Path):
    columns = tuple(name for name in files.COLUMNS if name != "answer")
    rows = files.mmbench_rows(files.MMBENCH, with_answers=False)
    files.write_rows(tmp_path / "mmbench" / "mmbench_dev_20230712.tsv", rows, columns)
    scores = get_benchmark("mmbench").score(tmp_path, answered(tmp_path, "mmbench", {7: "B"}))
    assert scores.headline is None and scores.values == {} and "holds no answers" in scores.notes[0]


def test_images_may_refer_to_other_rows(tmp_path: Path):
    rows = files.mmbench_rows(files.MMBENCH[1:2])
    rows[1]["image"] = "8"
    files.write_rows(tmp_path / "table.tsv", rows)
    first, second = table_questions(tmp_path / "table.tsv", None)
    assert second.images == first.images == (files.png(80),)


LOOKS_EMPTY = ("None", "NA", "null", "nan", "N/A", "NaN", "n/a", "NULL", "#N/A", "<NA>", "-nan", "none", "0", "False")


@pytest.mark.parametrize("text", LOOKS_EMPTY)
def test_an_option_or_question_that_reads_like_nothing_is_asked_and_scored(text: str, tmp_path: Path):
    asked = [(7, text, text, (text, "dog", "bird"), "A", "object", "perception"), *files.MMBENCH[1:]]
    rows = files.mmbench_rows(tuple(asked))
    files.write_rows(tmp_path / "mmbench" / "mmbench_dev_20230712.tsv", rows)
    benchmark = get_benchmark("mmbench")
    questions = {question.question_id: question for question in benchmark.questions(tmp_path)}
    assert questions[7].recorded_prompt == f"{text}\n{text}\nA. {text}\nB. dog\nC. bird"
    assert questions[1_000_007].recorded_prompt == f"{text}\n{text}\nA. bird\nB. {text}\nC. dog"
    assert questions[8].fields["options"] == ["yes", "no"], "an empty field is no option"
    assert questions[12].facts["hint"] is None
    right = answered(tmp_path, "mmbench", {7: "A", 1_000_007: text, 2_000_007: "C"})
    assert benchmark.score(tmp_path, right).headline == 100


def test_a_submission_keeps_texts_that_look_like_numbers_formulas_or_nothing(tmp_path: Path):
    openpyxl = pytest.importorskip("openpyxl", reason="xlsx is written with openpyxl")
    said = ["007", "1e5", "True", "None", "=1+1", "#N/A", "NA", "-3.50", "+cmd|' /C calc'!A0", "", " B "]
    options = ("007", "=2", "#DIV/0!", "null")
    asked = tuple((index, "N/A", "", options, "B", "object", "perception") for index in range(1, len(said) + 1))
    rows = [row for row in files.mmbench_rows(asked) if row["index"] < 1_000_000]
    files.write_rows(tmp_path / "mmbench" / "mmbench_dev_20230712.tsv", rows)
    items = answered(tmp_path, "mmbench", dict(enumerate(said, start=1)))
    path = get_benchmark("mmbench").write_submission(tmp_path, items, tmp_path / "mmbench.submission")
    head, *lines = openpyxl.load_workbook(path).active.iter_rows()
    cells = [dict(zip([cell.value for cell in head], line, strict=True)) for line in lines]
    assert [line["index"].value for line in cells] == list(range(1, len(said) + 1))
    assert [line["prediction"].value or "" for line in cells] == said
    assert {line["prediction"].data_type for line in cells if line["prediction"].value} == {"s"}
    for line in cells:
        assert tuple(line[letter].value for letter in "ABCD") == options and line["question"].value == "N/A"


def test_tables_that_cannot_be_asked_are_named(tmp_path: Path):
    path = tmp_path / "table.tsv"
    rows = files.mmbench_rows(files.MMBENCH[:1])
    for change, reason in (
        ({"image": ""}, "index 7 has no image"),
        ({"image": "9999"}, "index 7 has no image"),
        ({"question": ""}, "index 7 has no question or no option A"),
        ({"A": "", "B": "", "C": ""}, "index 7 has no question or no option A"),
        ({"A": ""}, "index 7 has an option C, but not all before it"),
        ({"B": " "}, "index 7 has an option C, but not all before it"),
        ({"answer": "b"}, "index 7 has the answer 'b'; it must be one of A, B, C"),
        ({"answer": "D"}, "index 7 has the answer 'D'; it must be one of A, B, C"),
        ({"index": "seven"}, "is not a table of MMBench"),
    ):
        files.write_rows(path, [rows[0] | change])
        with pytest.raises(ValueError, match=reason):
            table_questions(path, None)
    path.write_text("index\tquestion\n7\tWhat?\n")
    with pytest.raises(ValueError, match="has no column 'image'"):
        table_questions(path, None)


def test_mmbench_submission_has_llavas_columns(
    root: Path, tmp_path: Path, script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("openpyxl", reason="xlsx is written with openpyxl")
    benchmark = get_benchmark("mmbench")
    items = answered(root, "mmbench", {7: "B", 1_000_007: "C. \x07dog"})
    path = benchmark.write_submission(root, items, tmp_path / "mmbench.submission")
    assert path == tmp_path / "mmbench.submission.xlsx"
    table = pandas.read_excel(path)
    assert list(table.columns) == ["index", "question", "A", "B", "C", "D", "prediction", "answer"]
    said = dict(zip(table["index"], table["prediction"], strict=True))
    assert len(said) == 9 and said[7] == "B" and said[1_000_007] == "C. dog" and said[8] != said[8]
    write_answers(tmp_path / "run.jsonl", items)
    words = ["--annotation-file", str(root / benchmark.place), "--result-dir", str(tmp_path)]
    words += ["--upload-dir", str(tmp_path / "upload"), "--experiment"]
    convert = script("convert_mmbench_for_submission")
    assert convert.main([*words, "run"]) == 0
    assert pandas.read_excel(tmp_path / "upload" / "run.xlsx").equals(table)
    assert convert.main([*words, "other"]) == 2
    assert "There is no answer file" in capsys.readouterr().err
    (tmp_path / "strange.jsonl").write_text('{"question_id": 999, "prompt": "?", "text": "A"}\n')
    assert convert.main([*words, "strange"]) == 2, "every prediction would be empty"
    assert "lacks 1 of 1 questions that were answered, such as 999" in capsys.readouterr().err


def test_without_openpyxl_a_sentence_says_so(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in {"openpyxl", *(name for name in sys.modules if name.startswith("openpyxl."))}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="needs openpyxl; install it"):
        write_table(root / "mmbench" / "mmbench_dev_20230712.tsv", {}, tmp_path / "out.xlsx")
    assert list(tmp_path.iterdir()) == []


# === SEED-Bench ===

SEED_TEXTS = {101: "A", 102: "B", 103: "C. three", 104: "D", "v0": "B", "v1": "B"}


def test_seed_accuracy_by_hand(root: Path):
    benchmark = get_benchmark("seed")
    first = benchmark.questions(root)[0]
    assert first.images == (root / "seed_bench/SEED-Bench-image/101_0",)
    assert first.text == first.recorded_prompt == f"What is it (101)?\nA. one\nB. two\nC. three\nD. four\n{LETTER}"
    scores = benchmark.score(root, answered(root, "seed", SEED_TEXTS))
    # Scenes: A, B right, "C. three" is not the letter alone: 2 of 3. Counting: 1 of 1. Video: 1 of 2. All: 4 of 6.
    assert scores.values == {
        "Scene Understanding": pytest.approx(200 / 3),
        "Instances Counting": 100,
        "Action Recognition": 50,
        "image": 75,
        "video": 50,
        "total": pytest.approx(400 / 6),
    }
    assert scores.headline == 75
    scores = benchmark.score(root, answered(root, "seed", {"v0": "B"}))
    assert scores.headline is None and scores.values["video"] == 100 and scores.notes
    with pytest.raises(ValueError, match="has no question '999'"):
        benchmark.score(root, [Answer(Question(999, "What?"), "A")])


def test_seed_refuses_a_right_answer_that_nobody_can_give(tmp_path: Path):
    files.write_seed(tmp_path)
    path = tmp_path / "seed_bench" / "SEED-Bench.json"
    content = json.loads(path.read_text())
    content["questions"][1]["answer"] = "b"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="question 2 has the answer 'b'; it must be one of A, B, C, D"):
        get_benchmark("seed").score(tmp_path, answered(tmp_path, "seed", SEED_TEXTS))


def test_seed_without_frames_is_about_images_alone(tmp_path: Path):
    files.write_seed(tmp_path)
    (tmp_path / "seed_bench/SEED-Bench-video-image").rename(tmp_path / "aside")
    questions = get_benchmark("seed").questions(tmp_path)
    assert [question.question_id for question in questions] == [101, 102, 103, 104, 105]
    scores = get_benchmark("seed").score(tmp_path, [Answer(question, "A") for question in questions])
    # A is right for 101 and 105, 2 of 5.
    assert scores.headline == 40 and "video" not in scores.values
    (note,) = scores.notes
    assert note.startswith("seed_bench/SEED-Bench-video-image is missing, so only the questions about images")
    # Without any images, as where answers are only scored again, all questions count.
    shutil.rmtree(tmp_path / "seed_bench/SEED-Bench-image")
    assert len(get_benchmark("seed").questions(tmp_path)) == 8


def test_seed_submission(
    root: Path, tmp_path: Path, script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
):
    items = answered(root, "seed", SEED_TEXTS)
    path = get_benchmark("seed").write_submission(root, items, tmp_path / "seed.submission")
    lines = [json.loads(line) for line in (tmp_path / "seed.submission.jsonl").read_text().splitlines()]
    assert path == tmp_path / "seed.submission.jsonl"
    assert lines[0] == {"question_id": "101", "prediction": "A"} and len(lines) == 6
    convert = script("convert_seed_for_submission")
    words = ["--annotation-file", str(root / "seed_bench" / "SEED-Bench.json"), "--result-upload-file"]
    words += [str(tmp_path / "up.jsonl"), "--result-file"]
    assert convert.main([*words, str(write_answers(tmp_path / "part.jsonl", items))]) == 2
    printed = capsys.readouterr()
    # As LLaVA: what has no answer is wrong. Images: 3 of 5, videos: 1 of 3, all: 4 of 8.
    assert "image accuracy: 60.00%\nvideo accuracy: 33.33%\nTotal accuracy: 50.00%\n" in printed.out
    assert "Instances Counting: 50.00%" in printed.out
    assert "2 of 8 questions have no answer, the first is 105" in printed.err
    assert not (tmp_path / "up.jsonl").exists()
    whole = answered(root, "seed", SEED_TEXTS | {105: "A", "v2": "D"})
    assert convert.main([*words, str(write_answers(tmp_path / "whole.jsonl", whole))]) == 0
    ids = [json.loads(line)["question_id"] for line in (tmp_path / "up.jsonl").read_text().splitlines()]
    assert ids == [str(key) for key, *_ in files.SEED]
