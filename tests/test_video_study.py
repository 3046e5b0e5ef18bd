"""The study of videos: budgets that match, a whole small run that goes on where it was stopped, and its table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from llava.checkpoints.opening import open_model
from playground.study.__main__ import INTERRUPTED
from playground.study.cells import UNCOMPRESSED
from playground.study.video import __main__ as program
from playground.study.video import summary as counting
from playground.study.video import work
from playground.study.video.cells import BUDGETS, FRAME_TOKENS, METHODS, TRAINED, VideoCell, video_cells
from playground.study.video.report import plot, table
from playground.study.video.summary import VideoSummary, tokens_of
from playground.study.video.work import PHASES

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("pretrain-steps", "picture-steps", "clip-steps", "last-steps")
SMALL = {"pictures": 4, "clips": 3, "held-out": 2} | dict.fromkeys(STEPS, 1)


@pytest.mark.parametrize("cell", [cell for cell in video_cells() if cell.budget], ids=lambda cell: cell.name)
def test_every_method_has_the_budget_of_its_column(cell: VideoCell) -> None:
    assert cell.budget in BUDGETS
    assert abs(100 * (1 - tokens_of(cell) / tokens_of(VideoCell(UNCOMPRESSED))) - cell.budget) < 0.6


def test_rows_are_files_of_their_own_and_other_methods_are_refused() -> None:
    names = [cell.name for cell in video_cells()]
    assert len(set(names)) == len(names) == 1 + (len(METHODS) + len(TRAINED)) * len(BUDGETS) + 3
    assert VideoCell(UNCOMPRESSED, shown="last").name == "last-frame"
    with pytest.raises(ValueError, match=r"no 'FastV' at 53 .* the methods are DUET C, random, uniform"):
        VideoCell("FastV", 53).compression(0)


def test_a_small_study_is_stopped_goes_on_and_writes_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--out", str(tmp_path / "study")]
    for flag, value in SMALL.items():
        command += [f"--{flag}", str(value)]
    cells = [VideoCell(UNCOMPRESSED), VideoCell("DUET C", 93), VideoCell("DUET C", 93, trained=True)]
    for module in (counting, work):
        monkeypatch.setattr(module, "video_cells", lambda: cells)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(program, "summarise", stop)
        assert program.main(command) == INTERRUPTED
    models = tmp_path / "study" / "seed-0" / "models"
    model, _, _, _ = open_model(str(models / "uncompressed"), device="cpu")
    assert model.config.mm_video_config["num_frames"] == 3 and FRAME_TOKENS == 1 + 12 * 12
    before = {path: path.stat().st_mtime_ns for path in models.glob("*/train_summary.json")}
    names = {path.parent.name for path in before}
    assert names == {*(phase.name for phase in PHASES), "uncompressed", "duet-c-93-trained"}
    under = {name: json.loads((models / name / "train_summary.json").read_text())["compression"] for name in names}
    assert under["duet-c-93-trained"] == cells[1].compression(0).to_dict()
    assert all(one == {"v2v": None, "t2v": None} for name, one in under.items() if name != "duet-c-93-trained")
    assert program.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in models.glob("*/train_summary.json")} == before
    summary = VideoSummary.load(tmp_path / "study" / "summary.json")
    found = [(row.method, row.trained, row.questions) for row in summary.rows]
    assert found == [(UNCOMPRESSED, False, 4), ("DUET C", False, 4), ("DUET C", True, 4)]
    text = (tmp_path / "study" / "study.md").read_text()
    assert "| all frames | uncompressed | DUET C | 94% | 28.0 |" in text
    assert "| all frames | trained under it | DUET C | 94% | 28.0 |" in text
    assert "<svg" in (tmp_path / "study" / "study-video.svg").read_text()
    capsys.readouterr()
    assert program.main([*command[:-1], "2"]) == 2
    assert "holds a study of other settings" in capsys.readouterr().err


def test_rows_say_shares_intervals_and_kinds() -> None:
    row = counting._row(
        VideoCell("DUET C", 53),
        right=counting.np.array([[True, False, True, True]]),
        dense=counting.np.array([[True, True, True, True]]),
        kinds=["move", "move", "change", "appear"],
    )
    assert row.accuracy == row.relative == 0.75 and row.right == (3,)
    assert row.right_of == {"move": 1, "change": 1, "appear": 1} and row.questions_of["move"] == 2
    nothing = dataclasses.replace(row, relative=None, relative_interval=None)
    about = {"seeds": 1, "pretrain_steps": 2, "methods": "x, 4 of pictures, 5 of clips", "seconds": 125}
    said = table(VideoSummary(about, [row, nothing]), Path("images"))
    for words in ("75.0 %", "| - |", "2 of captions, 4 of pictures, 5 of clips", "2 minutes in all"):
        assert words in said


def test_the_document_shows_what_was_measured() -> None:
    """Made again from the stored numbers: a changed table, plot or budget means that the study has to be run again."""
    summary = VideoSummary.load(ROOT / "docs" / "benchmarks" / "video-study.json")
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert table(summary, Path("images")) in text
    assert (ROOT / "docs" / "images" / "study-video.svg").read_text(encoding="utf-8") == plot(summary)
    for row, cell in zip(summary.rows, video_cells(), strict=True):
        assert (row.shown, row.method, row.budget, row.trained) == (cell.shown, cell.method, cell.budget, cell.trained)
        assert row.tokens == tokens_of(cell) and len(row.right) == summary.about["seeds"]
