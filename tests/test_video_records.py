"""Records with videos: every published form, what is wrong with one, which frames are read, and what a sample holds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_text import byte_level
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.families.llava import LlavaInputs
from llava.data.frames import Frames, frame_numbers
from llava.data.images import BadImageError
from llava.data.mixture import open_mix
from llava.data.records import parse_record
from llava.data.video import open_video
from llava.model.splice import PlanSettings

SIDE = 8


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": turn} for i, turn in enumerate(turns)]


def shown(*marked: str, **files: Any) -> dict[str, Any]:
    """A record whose human turns are given; each is answered with "ok"."""
    return {"id": "r", **files, "conversations": talk(*(turn for text in marked for turn in (text, "ok")))}


# === Forms ===

FORMS = [
    # Video-LLaVA: marks at the start, videos first; one name or a list.
    (shown("<video>\nWhat?", video="a.mp4"), [("video", "a.mp4")]),
    (shown("<video><image>\nWhat?", video=["a.mp4"], image="b.png"), [("video", "a.mp4"), ("image", "b.png")]),
    # LLaVA-NeXT marks a video with <image>.
    (shown("<image>\nWhat?", video="a.mp4"), [("video", "a.mp4")]),
    (shown("<image>\nWhat?", "And <image>?", videos=["a.mp4", "b.mp4"]), [("video", "a.mp4"), ("video", "b.mp4")]),
    # Qwen: anywhere, each kind in its own order.
    (
        shown("A <image> then <video>, and <image>?", image=["1.png", "2.png"], video="a.mp4"),
        [("image", "1.png"), ("video", "a.mp4"), ("image", "2.png")],
    ),
    (shown("First?", "And <video>?", videos=["a.mp4"]), [("video", "a.mp4")]),
    # Nothing of a table, what repeats the video, and where it came from.
    (shown("<video>", video="v/a.mp4", videos=None, image=None, images=[]), [("video", "v/a.mp4")]),
    (
        shown("<video>", video="v/a.mp4", video_path="/data/v/a.mp4", video_folder="v", fps=None, start=""),
        [("video", "v/a.mp4")],
    ),
    (shown("<image> Is `<video>` a tag?", image="b.png", max_pixels=None), [("image", "b.png")]),
    (shown("How many?", max_frames=3, fps=30, start=3), []),
    (shown("<image> When?", image="b.png", start=3, num_frames=1), [("image", "b.png")]),
    (shown("<video> Is `<image>` not one?", video="a.mp4", image=""), None),
    ({"conversations": talk("What is the `<video>` element?", "a tag")}, []),
    (shown("Say <audio controls>? Hi", video=""), []),
]


@pytest.mark.parametrize(("data", "media"), FORMS)
def test_every_published_form_is_read_with_its_media_in_the_order_of_the_marks(data: Any, media: Any) -> None:
    if media is None:
        with pytest.raises(ValueError, match="names no file"):
            parse_record(data, 0)
        return
    record = parse_record(data, 0)
    assert list(record.media) == media
    assert record.videos == tuple(name for kind, name in media if kind == "video")
    written = [turn["value"] for turn in data["conversations"]]
    borrowed = record.videos and not record.images and "<video>" not in "".join(written)
    assert list(record.turns) == [t.replace("<image>", "<video>") if borrowed else t for t in written]


FAULTS = [
    (shown("<video>\nWhat?"), "holds the mark <video>, but names no video"),
    (shown("What?", video="a.mp4"), r"names 1 video\(s\), but has 0 <video>"),
    (shown("<video><video>", video="a.mp4"), r"names 1 video\(s\), but has 2 <video>"),
    (shown("<image><image>", video="a.mp4"), "has 2 <image>.*names no image"),
    (shown("<video> <image>", video=["a.mp4", "b.mp4"]), "names no image"),
    (shown("<video> <image>", video="a.mp4", image=["b.png", "c.png"]), r"names 2 image\(s\), but has 1 <image>"),
    (shown("<video>", video={"bytes": b"x"}), "'video' must be a file name or a list.*write the videos out"),
    (shown("<video>", video=3), "'video' is 3; it must be a file name"),
    (shown("<video>", video=["a.mp4", ""]), "names no file; leave the key out where there is no video"),
    (shown("<video>", video=[["1.jpg", "2.jpg"]]), "must be a file name or a list of them"),
    (shown("<video>", video="a.mp4", videos="b.mp4"), "different files under 'video' and 'videos'"),
    (shown("<video>", video="a.mp4", audio="a.wav"), "media under 'audio'"),
    (shown("<video>", video="a.mp4", video_2="b.mp4"), "media under 'video_2'"),
    (shown("<video>", video="a.mp4", frames=["1.jpg"]), "media under 'frames'"),
    (shown("<video>", video="a.mp4", video_start=3.5), "media under 'video_start'"),
    (
        shown("<video>", video="a.mp4", start=0, end=4.5),
        "a part of its media under 'start': 0, but videos are shown whole",
    ),
    (shown("<video>", videos=["a.mp4"], end_frame=90), "a part of its media under 'end_frame'"),
    (shown("<image>", video="a.mp4", fps=2.0), "has 'fps': 2.0, which is not heeded .*--video_fps"),
    (shown("<video>", video=["a.mp4"], num_frames=[8]), r"has 'num_frames': \[8\], which is not heeded"),
    (shown("<video>", video="a.mp4", nframes=16), "has 'nframes': 16, which is not heeded .*--video_max_frames hold"),
    (shown("<image>", image="a.png", resized_height=280, resized_width=None), "has 'resized_height': 280"),
    (shown("<image>", images=["a.png"], max_pixels=50176), "has 'max_pixels': 50176, which is not heeded"),
    (shown("<video> <audio>", video="a.mp4"), "holds the mark <audio>"),
    (shown("<video> <|video_pad|>", video="a.mp4"), r"holds the mark <\|video_pad\|>"),
    ({**shown("<video>", video="a.mp4"), "system": "See <video>."}, "the system prompt holds <video>"),
    ({"video": "a.mp4", "conversations": talk("What?", "<video>")}, "1 more in answers, which show no videos"),
    (
        {"video": "a.mp4", "conversations": [{**talk("<video>")[0], "video": "a.mp4"}, talk("", "ok")[1]]},
        "turn 0 names media under 'video'",
    ),
    (shown("<video>", video="a\ud800.mp4"), "in the video name"),
]


def test_records_that_are_packed_into_lists_have_to_stand_one_by_one() -> None:
    with pytest.raises(ValueError, match=r"record 4 is list, .*packed into lists, as for Qwen, have to stand one"):
        parse_record([shown("Hi"), shown("<video>", video="a.mp4")], 4)


@pytest.mark.parametrize(("data", "said"), FAULTS)
def test_a_mark_without_a_file_and_a_file_without_a_mark_are_errors_of_the_record(data: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"record '?r'?.*{said}|record '0'.*{said}"):
        parse_record(data, 0)


# === Samples ===


class Films(LlavaInputs):
    """A LLaVA that is trained on videos as so many images; each image is the mean of its red."""

    usual_frames = 4

    @property
    def trains_on_videos(self) -> bool:
        return True

    def image(self, picture: Image.Image, what: str) -> Tensor:
        return torch.full((3, 2, 2), float(np.asarray(picture)[..., 0].mean()))

    def video(self, frames: Frames, what: str) -> list[Any]:
        return [self.image(frame, what) for frame in frames]


class Clips(Films):
    """One whose video is a medium of its own, of any number of frames."""

    @property
    def video_marks(self) -> int:
        return 1

    def frame_numbers(self, total: int, fps: float | None) -> list[int]:
        if total < 2:
            raise BadImageError("it has 1 frame, and 2 are the least")
        return frame_numbers(total, min(total, 6))

    def video(self, frames: Frames, what: str) -> list[Any]:
        return [tuple(self.image(frame, what) for frame in frames)]

    def blank(self, kind: str) -> Any:
        return super().blank("image") if kind == "image" else (super().blank("image"),)


class OfClips(PlanSettings):
    """Two tokens for an image, three for each frame of a video."""

    fixed = None

    def counts(self, medium: Any) -> list[int]:
        return [3 * len(medium)] if isinstance(medium, tuple) else [2]


def inputs(kind: type[LlavaInputs] = Films, **more: Any) -> LlavaInputs:
    clip = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return kind(SimpleNamespace(), byte_level(), clip, "v1", **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a folder of ten frames and one of one; frame n is of the red 10 n."""
    folder = tmp_path_factory.mktemp("media")
    for name, count in (("film", 10), ("still", 1)):
        (folder / name).mkdir()
        for number in range(count):
            Image.new("RGB", (6, 4), (10 * number, 0, 0)).save(folder / name / f"frame{number}.png")
    Image.new("RGB", (6, 4), (200, 0, 0)).save(folder / "a.png")
    (folder / "empty").mkdir()
    (folder / "broken.mp4").write_bytes(b"nothing")
    return folder


def data_of(folder: Path, *records: Any, kind: type[LlavaInputs] = Films, **changes: Any) -> LazySupervisedDataset:
    config = {"max_length": 400, "visual_tokens": 2, "image_folder": folder, **changes}
    if kind is Clips:
        config |= {"visual_tokens": None, "settings": OfClips(2, "last")}
    parsed = [parse_record(record, number) for number, record in enumerate(records)]
    return LazySupervisedDataset(parsed, inputs(kind), DataConfig(**config))


def reds(sample: dict[str, Any]) -> list[Any]:
    return [[int(f.mean()) for f in m] if isinstance(m, tuple) else int(m.mean()) for m in sample["images"]]


def test_frames_of_a_folder_are_in_the_order_of_their_numbers_whatever_their_names(tmp_path: Path) -> None:
    names = ["1.png", "2b.png", "10.png", "a\u00b2 3.png", "a\u00b2 20.png", "\u00b24.png", "\u00b2.png"]
    for number, name in enumerate(names):
        Image.new("RGB", (6, 4), (10 * number, 0, 0)).save(tmp_path / name)
    shown_frames = open_video(tmp_path, lambda total, fps: list(range(total)))
    assert [picture.getpixel((0, 0))[0] // 10 for picture in shown_frames] == list(range(len(names)))


def test_images_and_videos_of_a_sample_stand_in_the_order_of_their_marks(folder: Path) -> None:
    mixed = shown("See <image>, then <video>.", "And <image>?", image=["a.png", "a.png"], video="film")
    sample = data_of(folder, mixed)[0]
    assert reds(sample) == [200, 0, 30, 60, 90, 200] and sample["problem"] is None
    ids = sample["input_ids"]
    marks = (ids == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist()
    assert np.diff(marks).tolist()[1:4] == [1, 1, 1] and len(marks) == 6, "four frames stand together"
    whole = data_of(folder, mixed, kind=Clips)[0]
    assert reds(whole) == [200, [0, 10, 30, 50, 70, 90], 200]
    assert int((whole["input_ids"] == IMAGE_TOKEN_INDEX).sum()) == 3


def test_a_single_mark_goes_to_the_front_and_the_word_video_stays_a_word(folder: Path) -> None:
    made = inputs()
    assert made.taught("What is in <video>?", {"video"}) == "<image>" * 4 + "\nWhat is in ?"
    assert made.taught("<image> a `<video>`?", {"image"}).replace("\ufdd0", "<") == "<image>\na `<video>`?"
    both = made.taught("`<image>` in <video>", {"video"})
    assert both.count("<image>") == 4, "the other one is a word"
    for record in (shown("<video> or `<image>`?", video="film"), shown("<image> or `<video>`?", image="a.png")):
        ids = data_of(folder, record).encode(0).input_ids
        word = "<image>" if record.get("video") else "<video>"
        assert f"or `{word}`?" in byte_level().decode([token for token in ids if token >= 0])


@pytest.mark.parametrize("kind", [Films, Clips])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone.mp4", "There is no video"),
        ("broken.mp4", "broken.mp4 cannot be read"),
        ("empty", "the folder holds no image"),
        ("../a.mp4", "does not lie in the video folder"),
    ],
)
def test_a_video_that_cannot_be_read_follows_on_bad_sample(folder: Path, kind: Any, name: str, said: str) -> None:
    bad = shown("<image><video>?", image="a.png", video=name)
    with pytest.raises(BadImageError, match=rf"record 'r': .*{said}"):
        data_of(folder, bad, kind=kind)[0]
    sample = data_of(folder, bad, kind=kind, on_bad_sample="skip")[0]
    assert said in sample["problem"] and (sample["labels"] == IGNORE_INDEX).all()
    marks = int((sample["input_ids"] == IMAGE_TOKEN_INDEX).sum())
    assert reds(sample) == ([200, 0, 0, 0, 0] if kind is Films else [200, [0]])
    assert marks == sum(map(inputs(kind).marks, sample["images"]))


def test_a_video_that_is_too_short_for_the_family_follows_it_too(folder: Path) -> None:
    still = shown("<video>?", video="still")
    assert reds(data_of(folder, still)[0]) == [0, 0, 0, 0], "one frame, shown as often as the family has frames"
    with pytest.raises(BadImageError, match=r"record 'r': Video .*still cannot be read: it has 1 frame, and 2 are the"):
        data_of(folder, still, kind=Clips)[0]
    assert "2 are the least" in data_of(folder, still, kind=Clips, on_bad_sample="skip")[0]["problem"]


def test_media_of_many_sizes_are_cut_whole_when_they_have_been_read(folder: Path) -> None:
    record = shown("<video> one", "<image> two", image="a.png", video="film")
    text = len(data_of(folder, record, kind=Clips).encode(0).input_ids) - 2
    whole = data_of(folder, record, kind=Clips, max_length=text + 18 + 2)[0]
    assert not whole["truncated"] and len(whole["images"]) == 2
    behind = data_of(folder, record, kind=Clips, max_length=text + 18 + 1)[0]
    assert behind["truncated"] and len(behind["images"]) == 2 and len(behind["input_ids"]) == text + 1
    first = data_of(folder, record, kind=Clips, max_length=text)[0]
    assert (
        first["truncated"] and [len(first[name]) for name in ("labels", "query_mask")] == [len(first["input_ids"])] * 2
    )
    length = inputs(Clips).length(first, OfClips(2, "last"))
    assert length <= text and reds(first) == [[0, 10, 30, 50, 70, 90]]
    none = data_of(folder, record, kind=Clips, max_length=40)[0]
    assert none["images"] == [] and not (none["input_ids"] == IMAGE_TOKEN_INDEX).any()


def test_a_model_that_is_not_trained_on_videos_refuses_them_in_words(folder: Path) -> None:
    records = [shown("Hi"), shown("<video>", video="film")]
    with pytest.raises(ValueError, match=r"1 of 2 records name videos .*record 'r': 'film'.*images and text alone"):
        data_of(folder, *records, kind=LlavaInputs)


def test_lengths_and_kinds_count_videos_as_what_is_seen(folder: Path) -> None:
    records = [shown("one two"), shown("<image> one", image="a.png"), shown("<video> one", video="film")]
    data = data_of(folder, *records)
    assert data.lengths.tolist() == [3, 2 + 2, 2 + 4 * 2] and data.has_image.tolist() == [False, True, True]
    assert data_of(folder, *records, kind=Clips).lengths.tolist() == [3, 2 + 2, 2 + 3 * 6]


# === Files ===


def test_several_files_follow_each_other_each_with_its_folders(folder: Path, tmp_path: Path) -> None:
    for name, file in (("a", "film"), ("b", "x/film")):
        (tmp_path / f"{name}.json").write_text(json.dumps([shown("<video>", video=file)] * 2))
    (tmp_path / "c.jsonl").write_text(json.dumps(shown("Hi")) + "\n")
    (tmp_path / "mix.yaml").write_text(
        f"datasets:\n- {{json_path: a.json, sampling_strategy: 'first:1', video_folder: {folder}}}\n"
    )
    config = DataConfig(400, 2, image_folder=folder, video_folder=tmp_path / "none", cache_dir=tmp_path / "cache")
    data = LazySupervisedDataset(
        [tmp_path / "mix.yaml", tmp_path / "c.jsonl", str(tmp_path / "b.json")], inputs(), config
    )
    assert [record.videos for record in data.records] == [("film",), (), ("x/film",), ("x/film",)]
    assert reds(data[0]) == [0, 30, 60, 90]
    with pytest.raises(BadImageError, match=r"none/x/film"):
        data[2]
    assert "videos in" in data.describe() and "(first:1)" in data.describe()


PARTS = [("all", 10), ("first:3", 3), ("first:25%", 3), ("end:4", 4), ("end:1%", 1), ("random:6", 6), ("random:50%", 5)]


@pytest.mark.parametrize(("part", "count"), [*PARTS, ("first:99", 10), ("end:10", 10), ("random:100%", 10)])
def test_llava_nexts_mixtures_take_parts_of_files(part: str, count: int, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"id": n, "conversations": talk("Hi", "ok")} for n in range(10)]))
    mix = tmp_path / "mix.yaml"
    mix.write_text(f"datasets:\n  - json_path: a.json\n    sampling_strategy: {part}\n")
    taken = [int(record.id) for record in open_mix(mix, tmp_path / "cache")]
    assert len(taken) == count and taken == sorted(set(taken))
    match part.split(":")[0]:
        case "first":
            assert taken == list(range(count))
        case "end":
            assert taken == list(range(10 - count, 10))
    mix.write_text(f"sources:\n  - {{path: a.json, sampling_strategy: '{part}', weight: 2}}\nseed: 1\n")
    twice = open_mix(mix, tmp_path / "cache")
    assert len(twice) == 2 * count and len({record.id for record in twice}) == count


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("datasets: [{json_path: a.json, sampling_strategy: 'first:0'}]", "it leaves no record"),
        (
            "datasets: [{json_path: a.json, sampling_strategy: 'last:3'}]",
            "it must be all, or first:N, end:N or random:N",
        ),
        ("datasets: [{json_path: a.json, sampling_strategy: 'first:-3'}]", "it must be all, or first:N"),
        ("datasets: [{json_path: a.json, sampling_strategy: 'end:101%'}]", "no more than 100%"),
        ("datasets: [{json_path: a.json, sampling_strategy: 5}]", "'sampling_strategy' is 5"),
        ("datasets: [{path: a.json}]", "a mapping with a 'json_path'"),
        ("sources: [{json_path: a.json}]", "a mapping with a 'path'"),
        ("datasets: [{json_path: a.json, sampling: all}]", "unknown key 'sampling'"),
        ("datasets: [{json_path: a.json, video_folder: 3}]", "'video_folder' is 3; it must be text"),
        ("{sources: [{path: a.json}], datasets: [{json_path: a.json}]}", "both 'sources' and 'datasets'"),
        ("data: [{json_path: a.json}]", "'sources', each entry with a 'path', or LLaVA-NeXT's 'datasets'"),
    ],
)
def test_mixtures_that_ask_for_what_cannot_be_had_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([shown("Hi")]))
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        open_mix(tmp_path / "mix.yaml", tmp_path / "cache")


def test_files_may_be_named_in_llava_nexts_and_qwens_short_forms(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{**shown("Hi"), "id": f"{name}{n}"} for n in range(4)]))
    both = open_mix(f"{tmp_path}/{{a,b}}.json", tmp_path / "cache")
    assert [record.id[0] for record in both] == list("aaaabbbb")
    half = open_mix([f"{tmp_path}/a.json%50", f"{tmp_path}/b.json"], tmp_path / "cache")
    assert [record.id[0] for record in half] == list("aabbbb") and half.fingerprint != both.fingerprint
    with pytest.raises(ValueError, match=r"a.json%0'; it leaves no record"):
        open_mix(f"{tmp_path}/a.json%0", tmp_path / "cache")
    with pytest.raises(ValueError, match="no data file"):
        open_mix([f"{tmp_path}/a.json", f"{tmp_path}/none.json"], tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    (tmp_path / "below/mix.yaml").write_text("datasets: [{json_path: a.json}]\n")
    assert len(open_mix("below/mix.yaml", tmp_path / "cache")) == 4, "LLaVA-NeXT's start where the run does"
    (tmp_path / "below/a.json").write_text(json.dumps([shown("Hi")]))
    with pytest.raises(ValueError, match="write the whole path"):
        open_mix("below/mix.yaml", tmp_path / "cache")
