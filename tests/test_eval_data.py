"""What `python -m llava.eval.data` says of data that is there, not there, or not what it should be."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import eval_files_choice
import eval_files_judged
import eval_files_vqa
import pytest

from llava.eval.benchmarks import NAMES, get_benchmark
from llava.eval.benchmarks.datasets import DATASETS, EVAL_ZIP, Dataset
from llava.eval.data import check, evenly, find, main

WRITERS = eval_files_choice.WRITERS | eval_files_judged.WRITERS | eval_files_vqa.WRITERS


def written(root: Path, name: str) -> Dataset:
    """Small data of a benchmark, and what is expected of it."""
    WRITERS[name](root)
    questions = get_benchmark(name).questions(root)
    within = DATASETS[name].within
    count = sum(not within or within in question.images[0].parts for question in questions)
    return dataclasses.replace(DATASETS[name], questions=count)


def test_every_benchmark_has_a_source_for_every_part() -> None:
    assert tuple(DATASETS) == NAMES
    for name, dataset in DATASETS.items():
        for part in (*dataset.parts, *dataset.instead):
            assert part.url.startswith(("https://", "http://images.cocodataset.org/")), (name, part)
            assert part.places and not any(place.startswith("/") for place in part.places)
        assert dataset.parts[0].what.startswith("questions"), name
    # POPE asks 2910 random questions and 3000 in each of the other splits.
    assert DATASETS["pope"].questions == 2910 + 3000 + 3000


@pytest.mark.parametrize("name", NAMES)
def test_each_part_is_where_the_benchmark_looks_for_it(tmp_path: Path, name: str) -> None:
    dataset = written(tmp_path, name)
    found = check(get_benchmark(name), dataset, tmp_path, all_images=True)
    assert found.problems == () and found.questions == dataset.questions
    assert found.looked_for == found.named
    for part in dataset.parts:
        place = find(part, tmp_path)
        assert place is not None
        aside = tmp_path / "aside"
        place.rename(aside)
        found = check(get_benchmark(name), dataset, tmp_path)
        aside.rename(place)
        said = found.left_out if part.optional else found.problems
        assert any(part.url in sentence and part.places[0] in sentence for sentence in said), part


def test_a_wrong_number_of_questions_is_said(tmp_path: Path) -> None:
    dataset = dataclasses.replace(written(tmp_path, "pope"), questions=8910)
    found = check(get_benchmark("pope"), dataset, tmp_path)
    assert found.problems == (f"There are {found.questions} questions; 8910 are published.",)


def test_images_that_the_questions_name_and_nobody_has(tmp_path: Path) -> None:
    dataset = written(tmp_path, "textvqa")
    questions = get_benchmark("textvqa").questions(tmp_path)
    names = list(dict.fromkeys(question.images[0] for question in questions))
    names[1].unlink()
    names[-1].unlink()
    (problem,) = check(get_benchmark("textvqa"), dataset, tmp_path).problems
    assert problem == f"2 of {len(names)} images or videos are missing, {names[1]} first."


def test_a_sample_is_spread_over_all_images() -> None:
    paths = [Path(str(number)) for number in range(10)]
    assert [path.name for path in evenly(paths, 5)] == ["0", "2", "4", "6", "8"]
    assert evenly(paths, 10) == paths and evenly(paths, 99) == paths


def test_seed_needs_no_frames_of_videos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS, "seed", written(tmp_path, "seed"))
    assert DATASETS["seed"].questions == 5
    arguments = ["--check", "--images", "--benchmarks", "seed", "--eval-folder", str(tmp_path)]
    assert main(arguments) == 0
    assert "8 of 8 images or videos were looked for" in capsys.readouterr().out
    frames = tmp_path / "seed_bench" / "SEED-Bench-video-image"
    shutil.rmtree(frames)
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "seed: ready, 5 questions; 5 of 5 images or videos were looked for" in out
    assert f"Optional: {frames} (middle frames of videos) is missing; get the frames that" in out
    assert main(arguments[2:]) == 0
    assert "missing seed_bench/SEED-Bench-video-image: middle frames of videos (optional)" in capsys.readouterr().out


def test_an_empty_folder_is_no_data(tmp_path: Path) -> None:
    dataset = written(tmp_path, "gqa")
    images = tmp_path / "gqa" / "data" / "images"
    shutil.rmtree(images)
    images.mkdir()
    problems = check(get_benchmark("gqa"), dataset, tmp_path).problems
    assert f"{images} (images) is an empty folder; get images.zip" in problems[0]
    assert "images or videos are missing" in problems[1]


def test_a_folder_in_the_place_of_a_table_keeps_no_other_benchmark_from_its_check(tmp_path: Path) -> None:
    dataset = written(tmp_path, "mmbench")
    path = tmp_path / "mmbench" / "mmbench_dev_20230712.tsv"
    path.unlink()
    (path / "inside").mkdir(parents=True)
    assert any(
        "it is a folder; name a file" in said for said in check(get_benchmark("mmbench"), dataset, tmp_path).problems
    )


def test_a_question_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    dataset = written(tmp_path, "mme")
    path = tmp_path / "MME" / "llava_mme.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    found = check(get_benchmark("mme"), dataset, tmp_path)
    assert found.questions is None and "is not JSON" in found.problems[0] and str(path) in found.problems[0]


@pytest.mark.parametrize(
    ("name", "write"),
    [("vqav2", eval_files_vqa.write_vqav2_validation), ("vizwiz", eval_files_vqa.write_vizwiz_validation)],
)
def test_a_validation_split_will_do_where_its_server_alone_scores_the_test_split(
    tmp_path: Path, name: str, write: eval_files_vqa.Callable[[Path], None]
) -> None:
    write(tmp_path)
    dataset = dataclasses.replace(DATASETS[name], questions_instead=6)
    assert check(get_benchmark(name), dataset, tmp_path).problems == ()
    shutil.rmtree(next(tmp_path.rglob("val*/*.jpg")).parent)
    problems = check(get_benchmark(name), dataset, tmp_path).problems
    assert any(dataset.parts[0].places[0] in problem for problem in problems), "the usual split is asked for"


def test_directions_say_what_goes_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "llava_pope_test.jsonl").write_text("")
    assert main(["--benchmarks", "pope,sqa", "--eval-folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert EVAL_ZIP in out and str(tmp_path) in out
    assert "pope (POPE, 8910 questions)" in out and "sqa (SQA-I, 4241 questions); licence: CC BY-NC-SA 4.0" in out
    assert "there   pope/llava_pope_test.jsonl" in out and "missing pope/coco/coco_pope_random.json" in out
    assert "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco" in out
    assert "gqa" not in out


def test_the_status_says_whether_all_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sqa", "mmbench"):
        monkeypatch.setitem(DATASETS, name, written(tmp_path, name))
    arguments = ["--check", "--images", "--eval-folder", str(tmp_path), "--benchmarks"]
    assert main([*arguments, "sqa,mmbench"]) == 0
    assert capsys.readouterr().out.endswith("2 of 2 benchmarks are ready.\n")
    assert main([*arguments, "sqa,vizwiz"]) == 1
    out = capsys.readouterr().out
    assert "sqa: ready, " in out and "vizwiz: not ready, no questions" in out and "1 of 2 benchmarks are ready." in out
    (tmp_path / "scienceqa" / "problems.json").unlink()
    assert main([*arguments, "sqa"]) == 1
    assert "problems.json (right answers) is missing; get problems.json" in capsys.readouterr().out


def test_bad_arguments_are_refused_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in (
        (["--benchmarks", "gqa,coco"], "no benchmark 'coco'"),
        (["--benchmarks", ","], "No benchmark is named"),
        (["--images"], "--images is about what --check looks for"),
    ):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and reason in err
