"""Published numbers as data: complete, consistent, and named after what exists here."""

from __future__ import annotations

from statistics import mean

import pytest

from llava.compression.config import presets
from llava.eval.benchmarks import NAMES
from llava.eval.tables.published import read_table, relative_average, table_names
from llava.eval.tables.rows import family

BUDGETS = ("192", "128", "64")
ONLY_AVERAGES = {
    "table-5": {("192", "VisionZip"), ("192", "PyramidDrop"), ("192", "DUET (C)"), ("64", "DUET (C)")},
    "table-6": {(budget, "DUET (C)") for budget in BUDGETS},
    "table-8": {(budget, "DUET (C)") for budget in BUDGETS},
    "pyramiddrop-training": {("", "PyramidDrop, lambda 0.4"), ("", "PyramidDrop, lambda 0.6")},
    "table-9-10": {
        *((budget, method) for budget in ("640", "320", "160") for method in ("VisionZip (C)", "DUET (C+all)")),
        *((budget, "DUET (C+S)") for budget in ("640", "320", "160")),
        *((budget, "DUET (vanilla)") for budget in ("320", "160")),
    },
}
"""Rows of which only the average, or no score at all, is kept."""
OTHER_PAPERS = (
    "pyramiddrop",
    "pyramiddrop-training",
    "twigvlm",
    "visionzip-1",
    "visionzip-11",
    "visionzip-next",
    "visionzip-video",
)
WRONG_AVERAGES = {
    ("visionzip-1", "192", "FastV"): 88.110,
    ("visionzip-1", "128", "FastV"): 84.387,
    ("visionzip-1", "128", "VisionZip, projector tuned"): 98.347,
}
"""What follows from the printed scores where the printed average does not."""


@pytest.mark.parametrize("name", table_names())
def test_every_printed_average_follows_from_the_printed_scores(name: str) -> None:
    table = read_table(name)
    incomplete, bare, wrong = set(), set(), set()
    for row in table.rows:
        place = (row.budget, row.method)
        if not row.scores:
            bare.add(place)
        elif row.average is not None:
            shares = [100 * score / table.baseline.scores[column] for column, score in row.scores.items()]
            if mean(shares) != pytest.approx(row.average, abs=0.051):
                wrong.add(place)
                assert mean(shares) == pytest.approx(WRONG_AVERAGES[name, *place], abs=0.001), place
            if len(shares) < len(table.benchmarks):
                incomplete.add(row.method)
        else:
            assert name in OTHER_PAPERS, "every row of the paper with scores has an average"
    assert wrong == {tuple(place) for table_name, *place in WRONG_AVERAGES if table_name == name}
    assert incomplete == ({"PyramidDrop"} if name == "table-1" else set()), "averages over fewer benchmarks"
    assert bare == ONLY_AVERAGES.get(name, set())


def test_the_papers_tables_name_presets_and_benchmarks_that_exist() -> None:
    tables = [read_table(name) for name in table_names()]
    assert [table.name for table in tables] == [
        *(f"table-{number}" for number in range(1, 9)),
        "table-9-10",
        "table-11",
        *OTHER_PAPERS,
    ]
    for table in tables:
        assert {row.preset for row in table.rows} - {None} <= set(presets()), table.name
        assert set(table.benchmarks.values()) <= {*NAMES, None}, table.name
        assert table.baseline.preset == "none"
        assert table.source.startswith("DUET-VLM") != (table.name in OTHER_PAPERS)
        assert family(table.model) == table.model
    duet = read_table("1").row("duet-64")
    assert duet is not None and (duet.scores["MME"], duet.average) == (1751, 95.4)
    assert read_table("3").row("fastv") is None
    assert any("weak" in caveat for caveat in read_table("3").caveats)
    assert read_table("visionzip-1").row("visionzip-64").scores["MMB"] == 60.1
    with pytest.raises(ValueError, match="no published table '12'; there are table-1, "):
        read_table("12")


def test_an_average_is_of_the_same_benchmarks_or_none() -> None:
    assert relative_average({"a": 30, "b": 100}, {"a": 60, "b": 80}) == pytest.approx((50 + 125) / 2)
    assert relative_average({"a": 30}, {"a": 60, "b": 80}) is None
    assert relative_average({}, {}) is None
    assert relative_average({"a": 1}, {"a": 0}) is None
