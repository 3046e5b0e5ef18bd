"""The data check on records with videos and on every shape of the native tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faulty_data import kinds, talk
from PIL import Image
from tiny_text import byte_level

from llava.data.check import command, conversations
from llava.data.check.budgets import visual_tokens_of
from llava.data.check.check_settings import CheckSettings
from llava.data.check.checking import check
from llava.data.check.model_media import ModelMedia
from llava.data.check.sources import DataFile, read_sources
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.families.video_llava import VideoLlavaInputs
from llava.data.records import parse_record
from llava.model.splice import PlanSettings


def shown(name: str, answer: str = "ok", text: str = "<video>\nWhat?", **files: Any) -> dict[str, Any]:
    return {"id": name, **files, "conversations": talk(text, answer)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, each with the fault that its name says; folders of frames need no decoder."""
    av = pytest.importorskip("av", reason="reads video files")
    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (64, 48)).save(folder / "good.png")
    for name, count in (("film", 10), ("short", 3), ("hollow", 0), ("damaged", 9)):
        (folder / name).mkdir()
        for number in range(count):
            Image.new("RGB", (64, 48)).save(folder / name / f"{number}.png")
    (folder / "damaged/4.png").write_bytes((folder / "damaged/4.png").read_bytes()[:60])
    Image.new("RGB", (9, 9)).save(
        folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (9, 9), (n, 0, 0)) for n in range(9)]
    )
    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for _ in range(12):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode())
    (folder / "thin").mkdir()
    for number in range(8):
        Image.new("RGB", (1, 9000)).save(folder / f"thin/{number}.png")
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:300])
    (folder / "page.mp4").write_text("<html>404 Not Found</html>")
    (folder / "empty.mp4").write_bytes(b"")
    return folder


FILES = [
    ("film", []),
    ("a.mp4", []),
    ("moving.gif", []),
    ("short", ["video_short"]),
    ("hollow", ["video_empty"]),
    ("empty.mp4", ["video_empty"]),
    ("gone.mp4", ["video_missing"]),
    ("../gone.mp4", ["video_outside_folder"]),
    ("cut.mp4", ["video_broken"]),
    ("page.mp4", ["video_broken"]),
    ("damaged", ["video_broken"]),
    ("good.png", ["video_short"]),
    ("thin", ["video_bomb"]),
    ("a\0.mp4", ["video_unreadable"]),
]
VIDEO = {"family": "video-llava", "frames": 8, "visual_tokens": (4,), "frame_tokens": (5,)}


def checked(data: list[Any], folder: Path, **settings: Any) -> Any:
    source = DataFile(Path("data.json"), str(folder), objects=data, video_folder=str(folder))
    return check([source], CheckSettings(**VIDEO | settings))


@pytest.mark.parametrize(("name", "expected"), FILES)
def test_videos_are_looked_at_as_images_are(name: str, expected: list[str], folder: Path) -> None:
    result = checked([shown("a", video=name)], folder)
    assert [kind for _, kind in kinds(result)] == expected
    by_header = [kind for _, kind in kinds(checked([shown("a", video=name)], folder, images="header"))]
    assert by_header == expected or (name in ("damaged", "cut.mp4", "thin") and by_header in ([], ["video_broken"]))
    assert kinds(checked([shown("a", video=name)], folder, images="skip")) == []


def test_each_video_is_looked_at_once_and_all_its_records_are_told(folder: Path) -> None:
    data = [shown("a", video="gone.mp4"), shown("b", video="film"), shown("c", video="gone.mp4")]
    result = checked([*data, shown("d", text="<image>", image="good.png")], folder)
    assert kinds(result) == [(0, "video_missing"), (2, "video_missing")]
    assert (result.distinct_videos, result.distinct_images) == (2, 1)


@pytest.mark.parametrize("family", ["llava-1.5", "llava-next"])
def test_a_video_for_a_model_of_images_is_an_error_of_its_record(family: str, folder: Path) -> None:
    result = checked([shown("a", video="film"), shown("b", text="Hi")], folder, family=family, frames=0)
    assert kinds(result) == [(0, "video_unshown")]


class Counted(VideoLlavaInputs):
    """A Video-LLaVA whose media are their kinds."""

    def image(self, picture: Image.Image, what: str) -> Any:
        return "image"

    def video(self, frames: Any, what: str) -> Any:
        return ["video"]

    def marks(self, medium: Any) -> int:
        return 1 if medium == "image" else 8

    @property
    def trains_on_videos(self) -> bool:
        return True


class OfCounted(PlanSettings):
    fixed = None

    def counts(self, medium: Any) -> list[int]:
        return [4] if medium == "image" else [5] * 8


def test_what_is_left_of_a_record_is_what_training_keeps(folder: Path) -> None:
    """Tokens of text and media at several lengths, against the data set of a run."""
    turns = talk("<video> one", "first", "<image> two", "second", "<video>", "third")
    record = parse_record({"id": "a", "image": "good.png", "video": ["film", "a.mp4"], "conversations": turns}, 0)
    inputs, plan, seen = Counted(None, byte_level(), object(), "v1"), OfCounted(4, "last"), set()
    for length in range(20, 480, 11):
        config = DataConfig(length, None, image_folder=folder, settings=plan)
        sample = LazySupervisedDataset([record], inputs, config)[0]
        settings = CheckSettings(**VIDEO | {"max_length": length})
        (fit,), _ = conversations._encode(record, byte_level(), settings)
        assert fit.text == int((sample["input_ids"] >= 0).sum()) and fit.truncated == sample["truncated"]
        assert fit.visual == inputs.visual_tokens(sample, plan)
        assert (fit.images, fit.videos) == tuple(sample["images"].count(kind) for kind in ("image", "video"))
        seen.add((fit.images, fit.videos, fit.visual))
    assert seen == {(0, 0, 0), (0, 1, 40), (1, 1, 44), (1, 2, 84)}


def test_the_command_reads_data_of_every_shape(folder: Path, tmp_path: Path, capsys: Any) -> None:
    data = tmp_path / "data.json"
    records = [shown("a", video="film"), shown("b", text="<image>", image="good.png"), shown("c", text="Hi")]
    data.write_text(json.dumps(records))
    words = ["--data-path", str(data), "--image-folder", str(folder), "--video_folder", str(folder), "--workers", "0"]
    report = tmp_path / "report.json"
    assert command.main([*words, "--model", "video-llava-7b", "--report", str(report)]) == 0
    told = json.loads(report.read_text())
    assert told["records_by_kind"] == {"text": 1, "image": 1, "video": 1, "both": 0} and told["distinct_videos"] == 1
    assert list(told["budgets"]) == ["none", "video-960", "video-136"]
    half = ["--data-path", f"{data}%67", *words[2:], "--model", "video-llava-7b", "--report", str(report)]
    assert command.main(half) == 0
    (source,) = json.loads(report.read_text())["sources"]
    assert (source["part"], source["records"]) == ("random:67%", 3)
    longest = {name: figures["max_sequence_tokens"] for name, figures in told["budgets"].items()}
    assert longest["none"] > 8 * 257 > longest["video-960"] > 8 * 192 > longest["video-136"] > 8 * 27
    assert "1 image files and 1 videos, decoded; 1 records show images, 1 videos, 0 both" in capsys.readouterr().out
    assert command.main(words) == 1
    assert "video_unshown" in capsys.readouterr().out
    assert command.main([*words[:3], str(tmp_path / "none"), *words[4:], "--model", "video-llava-7b"]) == 2
    (tmp_path / "images.json").write_text(json.dumps([shown("b", text="<image>", image="good.png")]))
    words = ["--data-path", str(tmp_path / "images.json"), *words[2:]]
    assert command.main([*words, "--image-aspect-ratio", "anyres", "--report", str(report)]) == 0
    told = json.loads(report.read_text())
    assert list(told["budgets"]) == ["none", "next-640", "next-320", "next-160"]
    with pytest.raises(SystemExit):
        command.main([*words, "--image-aspect-ratio", "round"])


def tokens(media: ModelMedia, *budgets: str) -> tuple[tuple[int, ...], ...]:
    shown = [medium for medium in (media.image, media.video) if medium is not None]
    return tuple(visual_tokens_of(budgets, media.decoder, medium, media.family) for medium in shown)


def test_usual_tokens_are_those_of_the_papers() -> None:
    video, cut = ModelMedia.of("video-llava-7b"), ModelMedia.of("llava-next-7b")
    assert tokens(video, "none", "video-960", "video-136") == ((256, 192, 27), (8 * 257, 8 * 192, 8 * 27))
    assert (cut.image.units, cut.video, tokens(cut, "next-640")) == (5, None, ((5 * 205,),))
    assert ModelMedia.of("llava-1.5-7b", "anyres_max_9").family == "llava-next"
    with pytest.raises(ValueError, match="is made for"):
        tokens(video, "duet-64")


def test_a_checkpoint_says_what_it_is_shown(tmp_path: Path) -> None:
    language = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    tower = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "image_size": 56, "patch_size": 14}
    language |= {"model_type": "llava_llama", "vocab_size": 64}
    of_video = {"mm_video_tower": "x", "mm_image_config": tower, "mm_video_config": tower | {"num_frames": 4}}
    (tmp_path / "config.json").write_text(json.dumps(language | of_video))
    media = ModelMedia.of(str(tmp_path))
    assert (media.family, media.frames, tokens(media, "none")) == ("video-llava", 4, ((16,), (4 * 17,)))
    of_crops = {"mm_vision_config": tower, "image_aspect_ratio": "anyres", "mm_patch_merge_type": "flat"}
    of_crops["image_grid_pinpoints"] = [[112, 56], [56, 112]]
    (tmp_path / "config.json").write_text(json.dumps(language | of_crops))
    media = ModelMedia.of(str(tmp_path))
    assert (media.family, media.image.units, tokens(media, "none")) == ("llava-next", 3, ((48,),))


def test_files_of_records_that_no_epoch_sees_need_not_be_there(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([shown("a", video="film"), shown("b", video="gone")]))
    (tmp_path / "mix.yaml").write_text("datasets: [{json_path: a.json, sampling_strategy: 'first:1'}]\n")
    sources = read_sources([tmp_path / "mix.yaml", f"{tmp_path}/{{a,a}}.json"], "none", video_folder=str(folder))
    assert [(source.part, len(source.objects)) for source in sources] == [("first:1", 2), ("all", 2), ("all", 2)]
    result = check(sources, CheckSettings(**VIDEO))
    assert [index for index, kind in kinds(result) if kind == "video_missing"] == [3, 5]
