"""Question files that hold what nobody can ask, or nothing: every program refuses them where it reads them."""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import eval_files_choice
import eval_files_judged
import eval_files_vqa
import pytest
from eval_small import Squares, write_squares
from PIL import Image
from tiny_folder import write_model

from llava.common.json_files import NotJsonError, parse_json
from llava.data.records import read_records
from llava.eval import (
    eval_gpt_review_bench,
    eval_pope,
    eval_science_qa,
    eval_textvqa,
    eval_video_qa,
    model_vqa,
    model_vqa_loader,
    model_vqa_mmbench,
    model_vqa_science,
    run,
    run_llava,
    score,
    summarize_gpt_review,
)
from llava.eval.benchmarks import get_benchmark
from llava.eval.benchmarks.answer_lines import read_answer_lines
from llava.eval.benchmarks.mmbench import table_questions
from llava.eval.benchmarks.reading import read_questions
from llava.eval.benchmarks.sqa import science_questions
from llava.eval.harnesses.harness import prompt_of
from llava.inference.chat import Chat
from llava.inference.question_text import check_question, fault_in

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

LINE = {"question_id": 1, "image": "a.png", "text": "Why?"}
EMPTY = ("", "[]", "\n \n\t\r\n", "\ufeff", " [\n] \n")
FIELDS = (
    ("question_id", "\udc00", r"half of a surrogate pair.*'question_id': '\\udc00'"),
    ("question_id", "a\0", "question_id 'a.x00', which holds a NUL at character 2"),
    ("question_id", [1], r"question_id \[1\]; it must be text"),
    ("question_id", {"a": 1}, "question_id {"),
    ("question_id", True, "question_id true"),
    ("text", "a\ud83d?", "half of a surrogate pair.*'text'"),
    ("text", "a\0b", "text that holds a NUL at character 2"),
    ("text", "\x1b[31mred", r"control character '\\x1b' at character 1"),
    ("text", "a\x7f", "control character"),
    ("text", 5, "text 5; it must be text"),
    ("text", ["a"], "text .*it must be text"),
    ("text", "\u200b \u2060", "text that is blank, which asks nothing"),
    ("image", 5, "image 5; give the name of a file"),
    ("image", 0, "image 0; give the name of a file"),
    ("image", False, "image false; give the name"),
    ("image", {}, "image {}; give the name"),
    ("image", ["a.png", 5], "image 5; give the name"),
    ("image", ["a.png", " "], 'image " "; give the name'),
    ("image", "\ud800.png", "half of a surrogate pair.*'image'"),
    ("image", "a\0.png", "NUL"),
    ("category", {}, "category {}; it must be text"),
    ("category", [1], r"category \[1\]"),
    ("category", False, "category false"),
    ("category", "\udfff", "half of a surrogate pair.*'category'"),
    ("category", "a\x08", "category .* control character"),
    ("options", "A", 'options "A"; they must be a list of texts'),
    ("options", ["A", 5], "options .*list of texts"),
    ("options", {"A": None}, "options .*list of texts"),
    ("options", ["\x07lpha"], "option .* control character"),
    ("else", {"deep": ["\ud800"]}, r"half of a surrogate pair.*'else.deep\[0\]'"),
    ("\udc00", 1, "half of a surrogate pair"),
    ("else", float("nan"), "NaN, which is no number of JSON, at 'else'"),
    ("else", {"deep": [1, float("-inf")]}, r"-Infinity, which is no number of JSON, at 'else.deep\[1\]'"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny", max_position_embeddings=2048)


@pytest.mark.parametrize(("field", "value", "reason"), FIELDS)
def test_a_field_of_another_kind_is_that_lines_problem(tmp_path: Path, field: str, value: Any, reason: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE | {field: value}) + "\n")
    for about_text in (False, True):
        with pytest.raises(ValueError, match=rf"questions.jsonl, line 2 .*{reason}"):
            read_questions(path, tmp_path, "mmvet", about_text)
    if field != "question_id" and field != "text":
        record = {"id": "2", "conversations": [{"from": "human", "value": "Why?"}], field: value}
        with pytest.raises((ValueError, NotJsonError), match=reason):
            science_questions([parse_json(json.dumps(record), strict=True)], tmp_path, "questions.json")


def test_texts_of_published_files_are_asked(tmp_path: Path) -> None:
    """Blanks of all kinds, marks of direction and what stands behind ASCII are text, as is a name of an image list."""
    texts = ("a\tb\r\nc\x0b\x0cd", "it\x92s", "naïve 日本 👩\u200d👧", "\u202eabc", "\ufeffWhy?", "x" * 2_000_000)
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(LINE | {"text": text, "category": 3}) + "\n" for text in texts))
    assert [question.text for question in read_questions(path, tmp_path, "mmvet")] == list(texts)
    assert all(fault_in(text) is None for text in texts)
    path.write_text(json.dumps(LINE | {"image": ["a.png", "b/ü.png"], "category": None, "options": ["A", "B"]}))
    assert [str(each.relative_to(tmp_path)) for each in read_questions(path, tmp_path, "mmvet")[0].images] == [
        "a.png",
        "b/ü.png",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"question_id": 1, "text": "Why?", "text": "What?"}', "the key 'text' comes twice in one object"),
        ('{"question_id": 1, "x": [{"a": 1, "a": 1}]}', "the key 'a' comes twice in one object, {'a': 1}"),
        ('{"question_id": 1, "x": NaN}', "NaN, which is no number of JSON"),
        ('{"question_id": 1, "x": -Infinity}', "-Infinity, which is no number"),
        ('{"question_id": 1, "x": 1e999}', "'1e999', which is too large"),
    ],
)
def test_what_is_no_json_everywhere_is_told_by_every_reader(tmp_path: Path, text: str, reason: str) -> None:
    """Python's own reader takes the last of equal keys, and numbers that no other program reads."""
    turns = '"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]'
    lines, whole = tmp_path / "a.jsonl", tmp_path / "a.json"
    whole.write_text(f'[{{"id": 0, {turns}}}, {text[:-1]}, {turns}}}]')
    lines.write_text(f'{{"id": 0, {turns}}}\n{text[:-1]}, {turns}}}\n')
    for path, place in ((whole, "entry 1 of the list"), (lines, "line 2")):
        with pytest.raises(ValueError, match=f"(?s){path.name}.*{place}.*{reason}"):
            read_records(path)
    with pytest.raises(ValueError, match=f"a.jsonl, line 2 .*{reason}"):
        read_answer_lines(lines)
    with pytest.raises(NotJsonError, match=reason):
        parse_json(text)
    assert parse_json(text, lenient=True)["question_id"] == 1, "a server's reply, which nobody can mend"


def test_looking_for_equal_keys_costs_a_training_table_little() -> None:
    turns = [{"from": name, "value": "What is on the table? " * 3} for name in ("human", "gpt") * 3]
    text = json.dumps([{"id": str(number), "image": "a.jpg", "conversations": turns} for number in range(4000)])
    seconds = {False: 9.0, True: 9.0}
    for lenient in (True, False) * 3:
        began = time.process_time()
        parse_json(text, lenient=lenient)
        seconds[lenient] = min(seconds[lenient], time.process_time() - began)
    assert seconds[False] < 4 * seconds[True]


def png() -> str:
    """A picture as MMBench's tables hold it."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("1\ta\0b\tx\ty\tP", "index 1 has the question .* NUL"),
        ("1\tWhy?\t\x1bx\ty\tP", "index 1 has the A .* control character"),
        ("1\tWhy?\tx\ty\tP\n1\tWhat?\tx\ty\tP", "index 1 .*comes twice"),
        ("-5\tWhy?\tx\ty\tP", "index -5 is negative"),
        (f"{10**30}\tWhy?\tx\ty\tP", "not a table of MMBench"),
        ("", "holds no question"),
    ],
)
def test_rows_of_mmbench_that_cannot_be_told_apart_or_asked_are_named(tmp_path: Path, rows: str, reason: str) -> None:
    path = tmp_path / "table.tsv"
    path.write_text("index\tquestion\tA\tB\timage\n" + rows.replace("P", png()))
    with pytest.raises(ValueError, match=f"table.tsv.*{reason}"):
        table_questions(path, None)
    path.write_text("index\tquestion\tquestion\tA\timage\n1\tWhy?\tWhat?\tx\t" + png())
    with pytest.raises(ValueError, match="the column 'question' comes twice"):
        table_questions(path, None)


def test_programs_refuse_a_file_without_questions(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, answers = tmp_path / "q.json", tmp_path / "a.jsonl"
    words = ["--model-path", str(model), "--device", "cpu", "--question-file", str(path)]
    for command in (model_vqa, model_vqa_loader, model_vqa_science, model_vqa_mmbench):
        for content in (*EMPTY, "index\tquestion\tA\timage\n"):
            if command in (model_vqa, model_vqa_loader) and content.startswith("index"):
                continue
            path.write_text(content)
            assert command.main([*words, "--answers-file", str(answers)]) == 2, (command.__name__, content)
            said = capsys.readouterr().err
            assert "q.json" in said and not answers.exists()
            assert any(words in said for words in ("holds no question", "it is empty", "not a table", "is not JSON"))


def test_a_part_of_the_questions_may_be_empty_as_in_llava(model: Path, tmp_path: Path) -> None:
    path, answers = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    path.write_text(json.dumps(LINE) + "\n")
    words = [
        "--model-path",
        str(model),
        "--device",
        "cpu",
        "--question-file",
        str(path),
        "--answers-file",
        str(answers),
    ]
    assert model_vqa.main([*words, "--num-chunks", "2", "--chunk-idx", "1"]) == 0
    assert answers.read_text() == ""


WRITERS = eval_files_choice.WRITERS | eval_files_vqa.WRITERS | eval_files_judged.WRITERS


@pytest.mark.parametrize("name", WRITERS)
def test_every_benchmark_refuses_a_file_without_questions(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    questions = get_benchmark(name).questions(tmp_path)
    assert questions
    asked = next(path for path in sorted(tmp_path.rglob("*")) if _is_question_file(path, name))
    asked.write_text("" if asked.suffix == ".jsonl" else _without_entries(asked))
    with pytest.raises(ValueError, match=f"{asked.name} holds no question, so there is nothing to answer"):
        get_benchmark(name).questions(tmp_path)


def _is_question_file(path: Path, name: str) -> bool:
    if name == "mmvet":
        return path.name == "llava-mm-vet.jsonl"
    names = ("llava_", "llava-", "questions.jsonl", "test_q.json", "mmbench_dev", "v2_OpenEnded", "val.json")
    names += ("generic_qa", "temporal_qa", "consistency_qa")
    return path.is_file() and path.name.startswith(names)


def _without_entries(path: Path) -> str:
    if path.suffix == ".tsv":
        return path.read_text().split("\n")[0] + "\n"
    content = json.loads(path.read_text())
    return "[]" if isinstance(content, list) else json.dumps(content | {"questions": []})


def test_a_run_over_a_file_without_questions_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_squares(tmp_path / "eval", 1).write_text(" \n")
    words = ["--model-path", str(model), "--eval-folder", str(tmp_path / "eval"), "--output", str(tmp_path / "out")]
    assert run.main([*words, "--device", "cpu"], [Squares()]) == 2
    assert "questions.jsonl holds no question" in capsys.readouterr().err


@pytest.mark.parametrize("query", ["", " \n\t", "\u200b", "<image-placeholder>", "a\0b", "\x1b[A", "\udcff?", "\ud800"])
def test_a_query_that_cannot_be_asked_is_refused_before_the_model_is_loaded(
    model: Path, query: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llava.inference.engine.Engine.open", lambda *_: pytest.fail("it was loaded"))
    assert run_llava.main(["--model-path", str(model), "--image-file", "", "--query", query, "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("--query") and ("asks nothing" in said or "holds" in said or "not UTF-8" in said)


def test_chats_and_other_harnesses_go_by_the_same_rule(caplog: pytest.LogCaptureFixture) -> None:
    chat = Chat.__new__(Chat)
    chat._turns, chat._asking, chat.reencode = [], False, True
    for question in ("", "<image>\n", "a\0b", "\x1b[A", "\ud800"):
        with pytest.raises(ValueError, match=r"The question (is blank|holds)"):
            list(chat.ask(question))
        with pytest.raises(ValueError, match=r"It (is blank|holds)"):
            check_question(question, "It")
    assert prompt_of("\x07lpha?").text == "\x07lpha?"
    with pytest.raises(ValueError, match="A question is None; it must be text"):
        prompt_of(None)  # type: ignore[arg-type]
    assert "control character '\\x07'" in caplog.text and "asked all the same" in caplog.text


def scorers(folder: Path, answers: Path) -> dict[str, Callable[[], int]]:
    """Every program that reads an answer file, by name."""
    import convert_gqa_for_eval
    import convert_mmbench_for_submission
    import convert_mmvet_for_eval
    import convert_seed_for_submission
    import convert_vizwiz_for_submission
    import convert_vqav2_for_submission

    for name in ("pope", "textvqa", "sqa", "seed", "vizwiz", "vqav2", "mmbench", "llava_bench"):
        WRITERS[name](folder)
    upload, given = str(folder / "upload.json"), str(answers)
    merged = folder / "vqav2/answers/s/c/merge.jsonl"
    merged.parent.mkdir(parents=True)
    merged.write_bytes(answers.read_bytes())
    bench = folder / "llava-bench-in-the-wild"
    commands: dict[Any, list[Any]] = {
        eval_pope: [
            "--annotation-dir",
            folder / "pope/coco",
            "--question-file",
            folder / "pope/llava_pope_test.jsonl",
            "--result-file",
            given,
        ],
        eval_textvqa: ["--annotation-file", folder / "textvqa/TextVQA_0.5.1_val.json", "--result-file", given],
        eval_science_qa: ["--base-dir", folder / "scienceqa", "--result-file", given],
        eval_video_qa: ["--pred_path", given, "--output_dir", folder / "out", "--output_json", upload],
        eval_gpt_review_bench: [
            "-q",
            bench / "questions.jsonl",
            "-c",
            bench / "context.jsonl",
            "-a",
            bench / "answers_gpt4.jsonl",
            given,
            "-o",
            folder / "reviews.jsonl",
        ],
        summarize_gpt_review: ["-f", given],
        convert_gqa_for_eval: ["--src", given, "--dst", upload],
        convert_mmvet_for_eval: ["--src", given, "--dst", upload],
        convert_seed_for_submission: [
            "--annotation-file",
            folder / "seed_bench/SEED-Bench.json",
            "--result-file",
            given,
            "--result-upload-file",
            upload,
        ],
        convert_vizwiz_for_submission: [
            "--annotation-file",
            folder / "vizwiz/llava_test.jsonl",
            "--result-file",
            given,
            "--result-upload-file",
            upload,
        ],
        convert_vqav2_for_submission: ["--dir", folder / "vqav2", "--split", "s", "--ckpt", "c"],
        convert_mmbench_for_submission: [
            "--annotation-file",
            folder / "mmbench/mmbench_dev_20230712.tsv",
            "--result-dir",
            answers.parent,
            "--upload-dir",
            folder / "up",
            "--experiment",
            answers.stem,
        ],
    }
    return {each.__name__: partial(each.main, [str(word) for word in words]) for each, words in commands.items()}


@pytest.mark.parametrize("content", [*EMPTY, '{"question_id": 1, "prompt": "a", "text": "b", "text": "c"}'])
def test_no_scorer_scores_a_file_without_answers_or_with_two_texts(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAVA_JUDGE_URL", "http://127.0.0.1:9/v1")
    answers = tmp_path / "given" / "answers.jsonl"
    answers.parent.mkdir()
    answers.write_text(content)
    for name, program in scorers(tmp_path, answers).items():
        assert program() == 2, name
        said = capsys.readouterr().err
        assert "answers.jsonl" in said or "merge.jsonl" in said, name
        assert ("holds no answer" if content in EMPTY else "'text' comes twice") in said, (name, said)
    assert not list(tmp_path.rglob("upload.json")) and not (tmp_path / "up").exists()


def test_a_score_without_answers_is_no_success(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_squares(tmp_path / "eval", 2)
    words = ["--model-path", str(model), "--eval-folder", str(tmp_path / "eval"), "--output", str(tmp_path / "out")]
    assert run.main([*words, "--device", "cpu", "--max-new-tokens", "2"], [Squares()]) == 0
    (answers,) = (tmp_path / "out").rglob("*.answers.jsonl")
    answers.write_text("\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(score, "get_benchmark", lambda name: Squares())
        assert score.main([str(tmp_path / "out")]) == 1
    assert "squares.answers.jsonl holds no answers" in capsys.readouterr().err
