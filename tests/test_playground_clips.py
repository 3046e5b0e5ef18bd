"""The playground's clips: reproducible, true to what they show, not to be answered from one frame; their towers."""

from __future__ import annotations

import json
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
from playground.clips.build import SHOWN, build_clips, folder_of
from playground.clips.clip import FRAMES, KINDS, Clip, draw_clip
from playground.clips.towers import LENGTH, write_towers
from playground.world import CELL, split_digits
from playground.world.language import COLOURS, NUMBERS, PLACES


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few clips and the towers on disk."""
    out = tmp_path_factory.mktemp("clips") / "made"
    main(["--out", str(out), "--train", "5", "--test", "4", "--seed", "3", "--workers", "1"])
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
    build_clips(tmp_path, 5, 4, seed=3, workers=2)
    assert files(tmp_path) == files(clips)
    with pytest.raises(ValueError, match="0 clips to learn from"):
        build_clips(tmp_path, 0, 4)


def test_answers_say_what_the_frames_show_in_the_order_of_time() -> None:
    seen = set()
    for clip in some():
        frames = [[item.digit for item, _ in frame] for frame in clip.frames]
        for question in clip.held_out():
            seen.add(question.kind)
            if question.kind == "add":
                new = [
                    [one for one in now if one not in before]
                    for before, now in zip([[], *frames], frames, strict=False)
                ]
                said = [f"{COLOURS[digit.colour]} {NUMBERS[digit.number]}" for (digit,) in new]
                assert question.answer == ", ".join(said)
                continue
            colour = question.text.rstrip("?").split()[-1]
            shown = [next(one for one in frame if COLOURS[one.colour] == colour) for frame in frames]
            values = [PLACES[one.place] if question.kind == "move" else NUMBERS[one.number] for one in shown]
            assert question.answer == f"{colour} {', '.join(values)}"
            assert all(one != other for one, other in zip(values, values[1:], strict=False))
    assert seen == set(KINDS)


def test_one_frame_leaves_several_answers_open() -> None:
    """Clips that look alike in one frame have different answers, whichever frame it is."""
    for kind in KINDS:
        for frame in range(FRAMES):
            answers: dict[object, set[str]] = {}
            for clip in some(3000):
                for question in clip.held_out():
                    if question.kind == kind:
                        digits = sorted((item.digit for item, _ in clip.frames[frame]), key=lambda one: one.place)
                        told = [(one.place, one.colour) for one in digits]
                        key = tuple(told) if kind == "move" else len(told)
                        answers.setdefault((key, question.text), set()).add(question.answer)
            assert max(map(len, answers.values())) >= 4, (kind, frame)


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


def test_files_are_video_llavas(clips: Path) -> None:
    records = read(clips / "instruct.json")
    for record in records:
        assert record["conversations"][0]["value"].startswith("<video>\n")
        frames = sorted((clips / "videos" / record["video"]).iterdir())
        assert [frame.name for frame in frames] == [f"{number}.png" for number in range(FRAMES)]
    whole = clips / "eval" / folder_of("clips")
    questions, answers = read(whole / "test_q.json"), read(whole / "test_a.json")
    assert [one["question_id"] for one in questions] == [one["question_id"] for one in answers]
    assert {one["question_id"].split("-")[1] for one in questions} <= set(KINDS)
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
        assert 0 < changed.mean() < 0.25
