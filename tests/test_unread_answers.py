"""Answers that are empty, or that no rule can read, are scored as published, and counted and said everywhere."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import eval_files_choice
import eval_files_judged
import eval_files_vqa
import pytest
from saved_results import shown

from llava.common.json_files import write_json
from llava.eval import eval_pope, eval_science_qa, eval_textvqa, score
from llava.eval.benchmarks import NAMES, get_benchmark
from llava.eval.benchmarks.answer_lines import answer_line
from llava.eval.benchmarks.questions import Answer
from llava.eval.runner.answer_file import AnswerFile
from llava.eval.runner.answer_settings import hash_of
from llava.eval.runner.result_files import BenchmarkFiles
from llava.eval.runner.scored import score_answers, summary_line
from llava.eval.scoring.benchmark_result import Result
from llava.eval.scoring.scores import Scores
from llava.eval.scoring.unread import Unread
from llava.eval.scoring.yes_no import pope_reads

WRITERS: dict[str, Callable[[Path], None]] = {
    **eval_files_choice.WRITERS,
    **eval_files_vqa.WRITERS,
    **eval_files_judged.WRITERS,
}
READ_BY_RULE = ("pope", "mme", "sqa", "mmbench", "mmbench_cn", "seed")
JUDGED = (
    "mmvet",
    "llava_bench",
    "msvd",
    "msrvtt",
    "tgif",
    "activitynet",
    "vcg_generic",
    "vcg_temporal",
    "vcg_consistency",
)


def scored(tmp_path: Path, name: str, texts: Sequence[str | None]) -> Result:
    """The result of these answers, in turn, as `llava.eval.score` gives it."""
    root, place = tmp_path / "data", BenchmarkFiles(tmp_path / "results", name)
    WRITERS[name](root)
    questions = get_benchmark(name).questions(root)
    lines = [
        answer_line(question, "", f"a{number}", "tiny") | {"text": texts[number % len(texts)]}
        for number, question in enumerate(questions)
    ]
    place.folder.mkdir(parents=True, exist_ok=True)
    place.answers.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    identity = {"questions": hash_of(questions), "compression": {}, "seed": 0}
    about = {"model": "tiny", "compression": "none", "versions": {}, "device": "", "settings": {}}
    write_json(place.settings, {"identity": identity, "run": "5c0f21e7", "about": about})
    return score_answers(place, get_benchmark(name), root, None)


def test_answers_of_a_benchmark_that_is_not_here_keep_no_other_from_its_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Of a package that is not installed on this machine, or of `model_vqa_loader`, which writes such files too."""
    first = scored(tmp_path, "pope", ["yes"])
    (tmp_path / "results" / "colours.settings.json").write_text("{}")
    assert score.main([str(tmp_path / "results"), "--eval-folder", str(tmp_path / "data")]) == 1
    printed = capsys.readouterr()
    assert f"{first.headline:.2f}" in printed.out and "There is no benchmark 'colours'" in printed.err


def test_parts_are_set_aside_line_by_line(tmp_path: Path):
    answers = AnswerFile(tmp_path / "a.jsonl", "5c0f21e7")
    answers.part(0).write_text('{"question_id": 1}\n{"question_id": 2, "te')
    answers.part(1).write_text('{"question_id": 3}\n')
    former = answers.set_aside()
    assert former.read_text().splitlines() == ['{"question_id": 1}', '{"question_id": 2, "te', '{"question_id": 3}']


def test_all_benchmarks_are_here():
    assert set(WRITERS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nothing", ["", " \n", None])
def test_a_model_that_says_nothing_is_told_from_one_that_is_wrong(name: str, nothing: str | None, tmp_path: Path):
    result = scored(tmp_path, name, [nothing])
    assert (result.empty, result.unreadable) == (result.num_answered, 0) and result.empty > 1
    assert sum(f"{result.empty} " in note and "empty" in note for note in result.notes) == 1
    written = json.loads((tmp_path / "results" / f"{name}.result.json").read_text())
    assert written["empty"] == result.empty and written["notes"] == list(result.notes)
    assert f"{result.empty} empty" in summary_line(result)


@pytest.mark.parametrize("name", READ_BY_RULE)
def test_answers_that_no_rule_reads_are_counted(name: str, tmp_path: Path):
    result = scored(tmp_path, name, ["I cannot tell", "¿?", "Perhaps; look."])
    assert (result.empty, result.unreadable) == (0, result.num_answered)
    said = "yes" if name == "pope" else "wrong"
    count = result.num_answered
    unread = f"Of {count} answers 0 are empty, and {count} others cannot be read by the rules of scoring"
    assert f"{unread}; all of these count as {said}." in result.notes


def test_letters_that_a_science_question_does_not_offer_are_unreadable(tmp_path: Path, capsys):
    for letter, offering in (("B", 8), ("C", 2), ("D", 1), ("E", 0), ("The answer is Z.", 0)):
        result = scored(tmp_path / letter, "sqa", [letter])
        assert (result.empty, result.unreadable) == (0, 8 - offering)
        file = tmp_path / letter / "results" / "sqa.answers.jsonl"
        folder = tmp_path / letter / "data" / "scienceqa"
        assert eval_science_qa.main(["--base-dir", str(folder), "--result-file", str(file)]) == 0
        captured = capsys.readouterr()
        assert f"Accuracy: {result.values['accuracy']:.2f}%" in captured.out
        told = f"Of 8 answers 0 are empty, and {8 - offering} others cannot be read" in captured.err
        assert told is (offering < 8)


def test_the_published_number_of_a_silent_model_stays_and_is_explained(tmp_path: Path):
    result = scored(tmp_path, "pope", [""])
    assert result.headline == pytest.approx(200 / 3), "each split is half yes"
    assert any("Of 12 answers 12 are empty" in note and "count as yes" in note for note in result.notes)


@pytest.mark.parametrize("name", READ_BY_RULE)
def test_wrong_answers_are_no_unreadable_ones(name: str, tmp_path: Path):
    for text in ("No", "Yes") if name in ("pope", "mme") else ("A", "D" if name == "seed" else "A"):
        result = scored(tmp_path, name, [text])
        assert (result.empty, result.unreadable) == (0, 0)
        assert not any("cannot be read" in note for note in result.notes)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Yes", True),
        ("yes!", True),
        ("Yes, there is.", True),
        ("No", True),
        ("There is not", True),
        ("NO", False),
        ("YES", True),
        ("None", False),
        ("There is a dog.", False),
        ("Maybe. Yes", False),
        ("yesterday", False),
        ("Definitely yes; look", True),
        ("nope", False),
        ("0", False),
    ],
)
def test_what_popes_rule_reads(text: str, read: bool):
    assert pope_reads(text) is read


@pytest.mark.parametrize("name", ["textvqa", "gqa", "vqav2", "vizwiz"])
def test_open_answers_of_which_nothing_is_left_to_compare(name: str, tmp_path: Path):
    result = scored(tmp_path, name, ["red", "..." if name == "gqa" else "the", "7"])
    assert (result.empty, result.unreadable) == (0, 2)


def test_only_a_share_that_matters_is_noted():
    assert Unread(100, 3, 2).notes("wrong") == ()
    assert len(Unread(100, 3, 3).notes("wrong")) == 1
    assert Unread(0, 0, 0).notes("wrong") == ()


@pytest.mark.parametrize("name", JUDGED)
def test_grades_that_cannot_be_read_count_as_unreadable(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scored(tmp_path, name, ["red"])
    benchmark = get_benchmark(name)

    class Judge:
        def describe(self) -> dict[str, str]:
            return {"model": "judge"}

    def judged(root: Path, answered: Sequence[Answer], judge: Judge, reviews: Path) -> Scores:
        return Scores(50.0, {"total": 50.0}, ("said by the judge",), counted=len(answered) - 2)

    monkeypatch.setattr(benchmark, "judged", judged)
    result = score_answers(BenchmarkFiles(tmp_path / "results", name), benchmark, tmp_path / "data", Judge())
    assert (result.empty, result.unreadable) == (0, 2) and result.notes == ("said by the judge",)
    assert "2 unreadable" in summary_line(result)


def test_the_note_stands_below_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    scored(tmp_path, "pope", [""])
    assert "POPE: Of 12 answers 12 are empty" in shown(capsys, tmp_path / "results")


def test_results_of_former_versions_open(tmp_path: Path):
    scored(tmp_path, "pope", ["Yes"])
    path = tmp_path / "results" / "pope.result.json"
    data = json.loads(path.read_text())
    del data["empty"], data["unreadable"]
    path.write_text(json.dumps(data))
    assert Result.load(path).empty is None and "empty" not in summary_line(Result.load(path))


def test_llavas_commands_say_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("pope", "sqa", "textvqa"):
        scored(tmp_path, name, ["", "¿?", None])
    pope, results = tmp_path / "data" / "pope", tmp_path / "results"
    for command, words in (
        (eval_pope, ["--annotation-dir", pope / "coco", "--question-file", pope / "llava_pope_test.jsonl"]),
        (eval_science_qa, ["--base-dir", tmp_path / "data" / "scienceqa"]),
        (eval_textvqa, ["--annotation-file", tmp_path / "data" / "textvqa" / "TextVQA_0.5.1_val.json"]),
    ):
        name = command.__name__.rpartition("_")[2]
        file = results / f"{'sqa' if name == 'qa' else name}.answers.jsonl"
        assert command.main([*map(str, words), "--result-file", str(file)]) == 0
        captured = capsys.readouterr()
        assert " are empty, and " in captured.err and "empty" not in captured.out


def test_the_conversions_for_servers_say_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("gqa", "vqav2", "vizwiz"):
        scored(tmp_path, name, ["", "...", "red"] if name == "gqa" else ["", "the", "red"])
    data, results, out = tmp_path / "data", tmp_path / "results", tmp_path / "out.json"
    merged = data / "vqav2" / "answers" / "llava_vqav2_mscoco_test-dev2015" / "tiny" / "merge.jsonl"
    merged.parent.mkdir(parents=True)
    (results / "vqav2.answers.jsonl").rename(merged)
    questions = data / "vizwiz" / "llava_test.jsonl"
    for name, words in (
        ("convert_gqa_for_eval", ["--src", results / "gqa.answers.jsonl", "--dst", out]),
        ("convert_vqav2_for_submission", ["--dir", data / "vqav2", "--ckpt", "tiny", "--split", merged.parts[-3]]),
        (
            "convert_vizwiz_for_submission",
            [
                "--annotation-file",
                questions,
                "--result-upload-file",
                out,
                "--result-file",
                results / "vizwiz.answers.jsonl",
            ],
        ),
    ):
        main = runpy.run_path(str(Path(__file__).resolve().parents[1] / "scripts" / f"{name}.py"))["main"]
        assert main([str(word) for word in words]) == 0
        said = capsys.readouterr()
        assert "Of 6 answers 2 are empty, and 2 others cannot be read" in said.err and "empty" not in said.out
