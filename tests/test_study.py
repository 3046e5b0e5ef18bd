"""The study: budgets that match, counting with intervals, going on after a stop, and one cell from start to end."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPVisionConfig
from warm_python import warm_python

from llava.common.folder_lock import alone_in
from llava.compression import CompressionConfig
from llava.cost.flops import average_visual_tokens, visual_tokens_per_layer
from llava.cost.shapes import VisionShape
from playground.quickstart.results import BLANK, Question, Results, Setting
from playground.study.__main__ import _cells_to_do, _parser, _settings, add_time, in_place, make_data
from playground.study.cells import BUDGETS, LAYERS, METHODS, PATCHES, UNCOMPRESSED, Cell, all_cells, reaches
from playground.study.place import Place, StudySettings
from playground.study.report import PAPER, plot, tables
from playground.study.summary import TRAINED, TRAINING_FREE, Summary, interval, resampled, summarise
from playground.study.work import recipe_flags

ROOT = Path(__file__).resolve().parents[1]
TOWER = ROOT / "playground" / "assets" / "vision_tower"
SETTINGS = StudySettings(seeds=2, pretrain_steps=1, finetune_steps=1, data="made up", methods="all")


def tokens(cell: Cell) -> float:
    shape = VisionShape.of(CLIPVisionConfig.from_pretrained(TOWER), -2)
    return average_visual_tokens(visual_tokens_per_layer(cell.compression(0), LAYERS, shape))


@pytest.mark.parametrize("cell", all_cells(), ids=lambda cell: cell.name)
def test_every_method_has_the_budget_of_its_column(cell: Cell) -> None:
    assert cell.budget is not None
    fewer = 100 * (1 - tokens(cell) / PATCHES)
    assert abs(fewer - cell.budget) < 0.7 or not reaches(cell)
    if not reaches(cell):  # the first of 8 layers sees 144 patches: 18 a layer are left over if nothing else is
        assert 18 < tokens(cell) < 20


def test_names_are_files_and_differ() -> None:
    names = [cell.name for cell in all_cells()]
    assert len(set(names)) == len(names) == len(METHODS) * len(BUDGETS)
    assert all(name.replace("-", "").isalnum() for name in names)
    assert Cell("DUET C+S", 67).name == "duet-c-s-67"


def test_variants_differ_in_what_the_paper_says() -> None:
    vanilla, c, everyone, salient = (Cell(name, 78).compression(0) for name in METHODS[:4])
    assert vanilla.v2v and c.v2v and vanilla.v2v.clusters == "uniform" and c.v2v.clusters == "anchored"
    assert vanilla.t2v == c.t2v and everyone.v2v == salient.v2v == c.v2v
    assert [one.t2v.queries for one in (c, everyone, salient) if one.t2v] == ["last", "text", "salient"]


def test_the_random_control_draws_anew_for_each_seed() -> None:
    one, other = (Cell("random", 89).compression(seed) for seed in (0, 1))
    assert one.v2v and other.v2v and one.v2v.seed != other.v2v.seed
    with pytest.raises(ValueError, match=r"'DUET' at 67 .* the methods are DUET vanilla"):
        Cell("DUET", 67).compression(0)


def test_flags_are_those_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = recipe_flags("finetune", {"OUTPUT_DIR": "/o", "ADAPTER": "/a", "MAX_STEPS": "7", "SEED": "3"}, ("--x", "y"))
    pairs = dict(zip(flags[:-2:2], flags[1:-2:2], strict=True))
    assert pairs["--max_steps"] == "7" and pairs["--seed"] == "3" and pairs["--pretrain_mm_mlp_adapter"] == "/a"
    assert pairs["--version"] == "v1" and flags[-2:] == ["--x", "y"]
    before = recipe_flags("finetune", {"OUTPUT_DIR": "/o"})
    monkeypatch.setenv("LEARNING_RATE", "7")  # what happens to be set outside changes nothing
    assert recipe_flags("finetune", {"OUTPUT_DIR": "/o"}) == before
    with pytest.raises(ValueError, match=r"finetune\.sh refused: .*NUM_DEVICES"):
        recipe_flags("finetune", {"NUM_DEVICES": "many"})


def test_a_study_begins_in_a_folder_that_is_held_for_it(tmp_path: Path) -> None:
    with alone_in(tmp_path / "new", "it is in use", "wait"):
        assert Place.open(tmp_path / "new", SETTINGS).settings == SETTINGS


def test_a_folder_holds_one_study(tmp_path: Path) -> None:
    Place.open(tmp_path, SETTINGS)
    assert Place.open(tmp_path, SETTINGS).settings == SETTINGS
    with pytest.raises(ValueError, match=r"holds a study of other settings .* STUDY_OUTPUT"):
        Place.open(tmp_path, StudySettings(3, 1, 2, "made up", "all"))


def test_a_study_grows_by_seeds_and_does_not_shrink(tmp_path: Path) -> None:
    Place.open(tmp_path, SETTINGS)
    more = dataclasses.replace(SETTINGS, seeds=3)
    assert Place.open(tmp_path, more).settings == more == Place.open(tmp_path, more).settings
    with pytest.raises(ValueError, match="holds a study of other settings"):
        Place.open(tmp_path, SETTINGS)


@pytest.mark.parametrize("note", ["", "soon", "nan", "inf", "-3", "9" * 5000, "\x1b[2J"])
def test_a_damaged_note_of_the_time_ends_no_study(
    note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path, SETTINGS)
    (tmp_path / "seconds.txt").write_text(note)
    add_time(place, 20.4)
    assert place.seconds == 20 and "seconds.txt is damaged" in capsys.readouterr().err
    add_time(place, 1.6)
    assert place.seconds == 22 and not capsys.readouterr().err
    running = dataclasses.replace(place, began=time.perf_counter() - 30)
    assert running.seconds is not None and running.seconds >= 52 and running.noted == 22


def answered(place: Place) -> None:
    """Files as evaluations leave them: four questions; the uncompressed model has 4 and 2 of them right."""
    questions = [Question(i, f"{i}.png", "What?", "yes") for i in range(4)]

    def setting(name: str, right: int) -> Setting:
        return Setting(name, {}, [8.0] * LAYERS, 10, ["yes"] * right + ["no"] * (4 - right), [(1.0, 4)])

    for seed, right in enumerate((4, 2)):
        free = [setting(UNCOMPRESSED, right), *(setting(cell.name, 1) for cell in all_cells()), setting(BLANK, 0)]
        write(place.training_free(seed), Results({}, {"system": "made up"}, questions, free))
        for cell in all_cells():
            write(place.trained(seed, cell), Results({}, {}, questions, [setting(cell.name, 3 - 2 * seed)]))


def write(path: Path, results: Results) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    results.save(path)


def test_summary_of_made_up_answers(tmp_path: Path) -> None:
    place = Place.open(tmp_path, SETTINGS)
    answered(place)
    summary = summarise(place)
    dense = summary.row(TRAINING_FREE, UNCOMPRESSED)
    assert (dense.right, dense.accuracy, dense.relative) == ((4, 2), 0.75, 1.0)
    # Training-free: 1/4 right for both seeds, so 1/4 and 1/2 of the uncompressed accuracy: 0.375 in the mean.
    free = summary.row(TRAINING_FREE, "DUET C", 67)
    assert (free.accuracy, free.tokens) == (0.25, 8.0)
    # Trained: 3 and 1 right: 3/4 and 1/2 of the uncompressed accuracy.
    assert summary.row(TRAINED, "FastV", 89).right == (3, 1)
    assert summary.row(TRAINED, "FastV", 89).accuracy == 0.5
    assert summary.row(TRAINING_FREE, BLANK).accuracy == 0
    with pytest.raises(ValueError, match="no row for 'ToMe'"):
        summary.row(TRAINED, "ToMe", 67)
    summary.save(tmp_path / "summary.json")
    assert Summary.load(tmp_path / "summary.json") == summary


def test_relative_accuracies_are_means_of_each_seeds_own(tmp_path: Path) -> None:
    place = Place.open(tmp_path, SETTINGS)
    answered(place)
    # With 4 of 4 right by both seeds every draw of the uncompressed model is 1, so relative equals absolute.
    questions = [Question(i, f"{i}.png", "What?", "yes") for i in range(4)]
    whole = Setting(UNCOMPRESSED, {}, [8.0] * LAYERS, 10, ["yes"] * 4, [(1.0, 4)])
    for seed in range(2):
        stored = Results.load(place.training_free(seed))
        write(place.training_free(seed), Results({}, {}, questions, [whole, *stored.settings[1:]]))
    row = summarise(place).row(TRAINED, "DUET C", 67)
    assert row.relative == pytest.approx(0.5) and row.relative_interval == pytest.approx(row.interval)


def test_resampling_is_centred_and_as_wide_as_binomials_are() -> None:
    right = np.random.default_rng(5).random((1, 400)) < 0.8
    low, high = interval(resampled(right)[:, 0])
    spread = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert (low + high) / 2 == pytest.approx(right.mean(), abs=0.005)
    assert (high - low) / 2 == pytest.approx(spread, rel=0.08)
    assert (resampled(right) == resampled(right)).all(), "two methods must be compared on the same draw"


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    place = Place.open(tmp_path, SETTINGS)
    assert _cells_to_do(place, 0) == [Cell(UNCOMPRESSED), *all_cells()]
    answered(place)
    assert _cells_to_do(place, 1) == []
    place.trained(1, Cell("VisionZip", 78)).unlink()
    assert _cells_to_do(place, 1) == [Cell("VisionZip", 78)]
    with pytest.raises(ValueError, match=r"visionzip-78\.json is missing: the study is not finished"):
        summarise(place)


def test_a_compression_that_a_kill_cut_short_is_written_anew(tmp_path: Path) -> None:
    place, cell = Place(tmp_path, SETTINGS), Cell("DUET C", 67)
    path = place.compression_file(0, cell)
    whole = path.read_text()
    path.write_text(whole[:9])
    assert place.compression_file(0, cell).read_text() == whole
    assert CompressionConfig.from_yaml(path) == cell.compression(0)


def test_data_that_cannot_be_made_end_the_study_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def study(place: Place) -> int:
        make_data(place, "playground.no_such_world")
        raise AssertionError

    assert in_place(tmp_path / "study", lambda: SETTINGS, study) == 1
    assert "study: playground.no_such_world ended with status 1" in capsys.readouterr().err
    assert not (tmp_path / "study" / "data" / ".done").exists()


def test_tables_and_plots_show_every_cell(tmp_path: Path) -> None:
    place = Place.open(tmp_path, SETTINGS)
    answered(place)
    summary = summarise(place)
    text = tables(summary, Path("images"))
    assert text.count("| DUET C+S |") == 2 * (1 + len(BUDGETS))
    assert "`bash scripts/quickstart.sh --study`" in text and "made up" in text and "2 seeds" in text
    assert "75.0 % right" in text and "images/study-trained.svg" in text
    assert all(f"*{value}*" in text for values in PAPER.values() for value in values)
    assert plot(summary, TRAINED).count("<circle") == len(METHODS) * len(BUDGETS)


SIZE = {
    "STUDY_SEEDS": "1",
    "STUDY_IMAGES": "16",
    "STUDY_QUESTIONS": "3",
    "STUDY_JOBS": "1",
    "STUDY_PRETRAIN_STEPS": "1",
    "STUDY_FINETUNE_STEPS": "1",
}


def study(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | SIZE | {"STUDY_OUTPUT": str(folder), "PYTHON": warm_python()}
    return subprocess.run(
        ["bash", "scripts/quickstart.sh", "--study"], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_an_unfinished_study_goes_on_to_its_report(tmp_path: Path) -> None:
    """All but one trained cell are there; the command does the rest, from the images to the report."""
    left = Cell("DUET C+S", 89)
    options = ["--out", str(tmp_path), "--seeds", "1", "--images", "16", "--questions", "3"]
    parsed = _parser().parse_args([*options, "--pretrain-steps", "1", "--finetune-steps", "1"])
    place = Place.open(tmp_path, _settings(parsed))
    questions = [Question(i, f"{i}.png", "What?", "yes") for i in range(3)]
    for cell in all_cells():
        if cell != left:
            write(place.trained(0, cell), Results({}, {}, questions, [Setting(cell.name, {}, [1.0], 1, ["no"] * 3)]))
    done = study(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train_runtime" not in done.stdout + done.stderr, "what training says belongs into its log"
    free = Results.load(place.training_free(0))
    names = [UNCOMPRESSED, *(cell.name for cell in all_cells()), BLANK]
    assert [setting.name for setting in free.settings] == names
    assert all(len(setting.answers) == 3 for setting in free.settings)
    for cell in all_cells():  # what was counted while the model ran is what was planned
        assert free.setting(cell.name).average_tokens == pytest.approx(tokens(cell))
    summary = json.loads((place.model(0, Cell(UNCOMPRESSED)) / "train_summary.json").read_text())
    assert summary["average_visual_tokens"] == PATCHES
    own = Results.load(place.trained(0, left))
    assert own.setting(left.name).average_tokens == pytest.approx(tokens(left))
    assert not place.model(0, left).exists(), "answers are kept, weights of a cell are not"
    assert "Wrote model" in place.log(0, left.name).read_text()
    assert "DUET C+S" in (tmp_path / "study.md").read_text() and (tmp_path / "study-trained.svg").is_file()
    before = place.training_free(0).stat().st_mtime_ns
    assert study(tmp_path).returncode == 0
    assert place.training_free(0).stat().st_mtime_ns == before, "nothing may be done twice"


STOPPED = """
import os, signal, time
from playground.study.worker_pool import workers
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the study does; who runs this may ignore SIGINT
with workers(2) as pool:
    for _ in range(20):
        pool.submit(time.sleep, 1000)
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1000)
"""


def test_stopping_the_study_stops_its_workers() -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert "KeyboardInterrupt" in done.stderr


def test_the_quickstart_takes_no_other_word() -> None:
    done = subprocess.run(["bash", "scripts/quickstart.sh", "--studdy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "no argument but --study or --video-study; this was given: --studdy" in done.stderr


def test_the_document_shows_what_was_measured() -> None:
    """Made again from the stored numbers: a changed table, plot or budget means that the study has to be run again."""
    summary = Summary.load(ROOT / "docs" / "benchmarks" / "study.json")
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert tables(summary, Path("images")) in text
    for half in (TRAINING_FREE, TRAINED):
        assert (ROOT / "docs" / "images" / f"study-{half}.svg").read_text(encoding="utf-8") == plot(summary, half)
        for cell in all_cells():
            row = summary.row(half, cell.method, cell.budget)
            assert row.tokens == pytest.approx(tokens(cell)) and len(row.right) == summary.about["seeds"]
    assert summary.row(TRAINING_FREE, UNCOMPRESSED).accuracy >= 0.9
    assert summary.row(TRAINING_FREE, BLANK).accuracy <= 0.4
