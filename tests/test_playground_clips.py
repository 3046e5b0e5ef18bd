"""The playground's clips: reproducible, true to what they show, not to be answered from one frame; their towers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from PIL import Image
from transformers import CLIPVisionModel

from llava.model.multimodal_encoder.languagebind_towers import LanguageBindImageTower, LanguageBindVideoTower
from playground.clips.__main__ import ASSETS, main
from playground.clips.build import SHOWN, ClipsSize, build_clips, folder_of
from playground.clips.clip import FRAMES, KINDS, Clip, draw_clip
from playground.clips.towers import LENGTH, write_towers
from playground.world.language import COLOURS, NUMBERS, PLACES
from playground.world.scene import CELL, split_digits


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few clips and the towers on disk."""
    out = tmp_path_factory.mktemp("clips") / "made"
    sizes = ("--pictures", "6", "--train", "5", "--test", "4")
    main(["--out", str(out), *sizes, "--seed", "3", "--workers", "1"])
    return out


def some(count: int = 60) -> list[Clip]:
    rng = np.random.default_rng(0)
    return [draw_clip("train", rng) for _ in range(count)]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and "towers" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.name != ".made-by"}


def test_same_seed_same_bytes_whatever_the_workers(clips: Path, tmp_path: Path) -> None:
    build_clips(tmp_path, ClipsSize(6, 5, 4), seed=3, workers=2)
    assert files(tmp_path) == files(clips)
    with pytest.raises(ValueError, match="The size 'train' is 0; it must be at least 1"):
        ClipsSize(6, 0, 4)


def test_answers_say_what_all_frames_show_together() -> None:
    seen = set()
    for clip in some():
        digits = [item.digit for frame in clip.frames for item, _ in frame]
        assert len(clip.held_out()) == 2
        for question in clip.questions:
            seen.add(question.kind)
            words = question.text.rstrip("?").split()
            if question.kind == "further":
                (colour,) = {one.colour for one in digits if NUMBERS[one.number] == words[-1]}
                assert question.answer == f"{words[-1]} {COLOURS[colour]}"
                continue
            asked = words[3::2]  # one colour, or two with "and" between
            shown = {name: {one for one in digits if COLOURS[one.colour] == name} for name in asked}
            values = [
                f"{name} {PLACES[one.place] if question.kind == 'move' else NUMBERS[one.number]}"
                for name in asked
                for one in sorted(shown[name], key=lambda one: (one.place, one.number))
            ]
            assert question.answer == " and ".join(values) and len(values) == 2
    assert seen == {*KINDS, "further"}


def test_no_frame_alone_shows_both_halves_of_an_answer() -> None:
    for clip in some(200):
        for question in clip.held_out():
            halves = question.answer.split(" and ")
            for frame in clip.frames:
                shown = {f"{COLOURS[item.digit.colour]} {NUMBERS[item.digit.number]}" for item, _ in frame}
                shown |= {f"{COLOURS[item.digit.colour]} {PLACES[item.digit.place]}" for item, _ in frame}
                assert not set(halves) <= shown


def test_digits_of_a_frame_never_cover_each_other_and_come_from_the_split() -> None:
    allowed = set(split_digits("train"))
    for clip in some():
        assert len(clip.frames) == FRAMES
        for frame in clip.frames:
            cells = [(item.row, item.column) for item, _ in frame]
            for number, (row, column) in enumerate(cells):
                assert all(max(abs(row - r), abs(column - c)) >= CELL for r, c in cells[:number])
            assert {item.sample for item, _ in frame} <= allowed
            assert len({item.digit.colour for item, _ in frame}) == len(frame)


def test_pictures_are_asked_where_digits_stand(clips: Path) -> None:
    captions = {one["image"]: one["conversations"][1]["value"] for one in read(clips / "pretrain.json")}
    for record in read(clips / "pictures.json"):
        assert (clips / "images" / record["image"]).is_file()
        turns = [turn["value"] for turn in record["conversations"]]
        assert turns[0].startswith("<image>\n") and len(turns) == 10
        places = [answer for question, answer in zip(turns[::2], turns[1::2], strict=True) if "Which place" in question]
        assert len(places) == 2
        for answer in places:
            colour, place = answer.split(" ", 1)
            assert re.search(rf"a {colour} \w+ {place}", captions[record["image"]])


def test_files_are_video_llavas(clips: Path) -> None:
    records = read(clips / "clips.json")
    for record in records:
        assert record["conversations"][0]["value"].startswith("<video>\n")
        frames = sorted((clips / "videos" / record["video"]).iterdir())
        assert [frame.name for frame in frames] == [f"{number}.png" for number in range(FRAMES)]
    whole = clips / "eval" / folder_of("clips")
    questions, answers = read(whole / "test_q.json"), read(whole / "test_a.json")
    assert [one["question_id"] for one in questions] == [one["question_id"] for one in answers]
    assert len(questions) == 8 and {one["question_id"].split("-")[1] for one in questions} <= set(KINDS)
    for name, shown in SHOWN.items():
        folder = clips / "eval" / folder_of(name)
        assert read(folder / "test_q.json") == questions and read(folder / "test_a.json") == answers
        for question in questions:
            video = folder / "videos" / question["video_name"]
            assert sorted(path.name for path in video.iterdir()) == [f"{frame}.png" for frame in shown]
            for frame in shown:
                same = whole / "videos" / question["video_name"] / f"{frame}.png"
                assert (video / f"{frame}.png").read_bytes() == same.read_bytes()


def test_the_video_tower_sees_frames_as_the_playgrounds_tower_does_and_says_which_is_which(clips: Path) -> None:
    clip_tower = CLIPVisionModel.from_pretrained(ASSETS / "vision_tower").eval()
    image = LanguageBindImageTower(str(clips / "towers" / "image"), -2)
    video = LanguageBindVideoTower(str(clips / "towers" / "video"), -2)
    image.load_model()
    video.load_model()
    noise = torch.randn(FRAMES, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = clip_tower(noise, output_hidden_states=True).hidden_states[-2]
        assert torch.allclose(image.model(noise, output_hidden_states=True).hidden_states[-2], wanted, atol=1e-5)
        marked = video.model(noise, output_hidden_states=True).hidden_states[-2]
        assert not torch.allclose(marked, wanted, atol=1e-2)
        marks = [layer.temporal_embedding[0].clone() for layer in video.model.encoder.layers]
        for layer in video.model.encoder.layers:
            layer.temporal_embedding.zero_()
        assert torch.allclose(video.model(noise, output_hidden_states=True).hidden_states[-2], wanted, atol=1e-5)
    used = [number for number, mark in enumerate(marks) if mark.any()]
    assert used == [3]  # of five; what is read is the state behind the fourth
    assert torch.allclose(marks[3] @ marks[3].T, LENGTH**2 * torch.eye(FRAMES), atol=1e-3)


def test_towers_of_more_frames_than_dimensions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no more than 96 frames apart; 97 were asked for"):
        write_towers(ASSETS / "vision_tower", tmp_path, frames=97)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(SystemExit, match=r"not empty and was not made by playground\.clips"):
        main(["--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_backgrounds_stay_while_digits_come_and_go(clips: Path) -> None:
    frames = [
        np.asarray(Image.open(clips / "videos" / "train" / "000000" / f"{n}.png"), dtype=int) for n in range(FRAMES)
    ]
    for one, other in zip(frames, frames[1:], strict=False):
        changed = np.abs(one - other).max(axis=-1) > 0
        assert changed.mean() < 0.25
