"""Counting and drawing what the quickstart's evaluation measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.common.atomic_write import write_whole
from llava.common.json_lines import write_lines
from playground.quickstart.evaluate import new_settings, read_questions, varied_questions
from playground.quickstart.results import Accuracy, Question, Results, Setting, plain, rows, text_table, wilson_interval
from playground.quickstart.svg import ticks


def example() -> Results:
    questions = [Question(i, f"{i}.png", "What digit is red?", f"red {word}") for i, word in enumerate(("one", "two"))]
    dense = Setting("none", {}, [8.0, 8.0], 1000, ["red one", "Red two."], [(0.2, 2), (0.1, 1), (9.0, 1)])
    half = Setting("duet-67", {}, [6.0, 2.0], 400, ["red one", "red four"], [(0.1, 2)])
    return Results({}, {"decoder_layers": 2}, questions, [dense, half])


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1900, 2000, 0.9396, 0.9587)],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    """Against values computed by hand from the closed form."""
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_an_accuracy_needs_answers() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Accuracy.of([])


def test_answers_are_compared_without_what_does_not_matter() -> None:
    assert plain(" Red  Three. ") == plain("red three")
    assert plain("red three") != plain("red")


def test_rows_are_relative_to_the_first_setting() -> None:
    dense, half = rows(example())
    assert (dense.accuracy.value, half.accuracy.value) == (1.0, 0.5)
    assert (half.fewer_tokens, half.flops_share) == (0.5, 0.4)
    assert dense.milliseconds == pytest.approx(100)  # the median: one slow batch does not count
    assert half.time_share == pytest.approx(0.5)


def test_the_table_names_every_setting() -> None:
    lines = text_table(example()).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("none") and lines[3].startswith("duet-67")


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    results = example()
    results.save(tmp_path / "results.json")
    again = Results.load(tmp_path / "results.json")
    assert text_table(again) == text_table(results)
    with pytest.raises(ValueError, match="none, duet-67"):
        again.setting("fastv")


def test_a_line_that_is_no_question_is_named(tmp_path: Path) -> None:
    line = {"question_id": 0, "image": "a.png", "text": "?", "answer": "one"}
    path = tmp_path / "test.jsonl"
    for wrong, said in (
        (line | {"kind": "digit"}, "'kind', which is not known"),
        (line | {"text": 3}, "text is 3, not"),
    ):
        write_lines(path, [line, wrong])
        with pytest.raises(ValueError, match=rf"{said}.* in .*test.jsonl, line 2"):
            read_questions(path, None)
        assert [question.answer for question in read_questions(path, 1)] == ["one"]


def test_budgets_that_are_called_alike_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a/half.yaml", "b/half.yaml", "blank images.yaml")]
    for number, path in enumerate(files, start=1):
        write_whole(path, f"t2v: {{layers: [{number}], keep: [0.5]}}\n")
    assert [setting.name for setting in new_settings(files[1:2])] == ["half", "blank images"]
    for wrong in (files[:2], files[2:]):
        with pytest.raises(ValueError, match=rf"more than one '{wrong[0].stem}'"):
            new_settings(wrong)


def test_questions_are_taken_in_turn_from_each_category() -> None:
    kinds = ["colour", "colour", "place", "digit", "colour", "place"]
    questions = [Question(i, "", "", "", kind) for i, kind in enumerate(kinds)]
    assert varied_questions(questions, 5) == [0, 2, 3, 1, 5]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.03), (0, 151.2), (0, 7), (-2, 2)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert 2 <= len(found) <= 7
    assert found == sorted(found) and found[0] >= low and found[-1] <= high
