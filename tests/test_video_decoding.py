"""Which frames of video files are decoded and kept, and how many are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_text import byte_level
from video_frames import decoded_times

from llava.data import video_files
from llava.data.families.llava import LlavaInputs
from llava.data.frames import FrameSampling, frame_numbers
from llava.data.images import BadImageError
from llava.data.video import count_frames, open_video


def film(path: Path, count: int, codec: str = "mpeg4", rate: int = 10, **options: int) -> Path:
    """A video whose frame n is of the grey 5 n."""
    av = pytest.importorskip("av", reason="reads video files")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = {name: str(value) for name, value in options.items()}
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 5 * number, np.uint8), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of what was decoded: one entry for each frame."""
    return decoded_times(monkeypatch)


FILES = [
    ("a.mkv", "mjpeg", {}, 4, 4),  # every frame stands alone: no other one is decoded
    ("b.mp4", "mpeg4", {"g": 5}, 4, 16),  # jumps to the key frame before each
    ("c.mp4", "mpeg4", {"g": 12, "bf": 2}, 4, 40),
    ("d.avi", "mpeg4", {"g": 5}, 4, 50),  # no exact index: from the front to the last one that is wanted
    ("e.webm", "libvpx-vp9", {"g": 10, "cpu-used": 8}, 4, 40),
]


@pytest.mark.parametrize(("name", "codec", "options", "count", "most"), FILES)
def test_few_frames_are_decoded_and_they_are_the_ones_asked_for(
    name: str, codec: str, options: dict[str, int], count: int, most: int, tmp_path: Path, counted: list[int]
) -> None:
    path = film(tmp_path / name, 50, codec, **options)
    frames = open_video(path, lambda total, fps: frame_numbers(total, count))
    assert frames.numbers == (0, 16, 32, 49) and (frames.total, frames.fps) == (50, 10.0)
    assert [picture.getpixel((9, 9))[0] for picture in frames] == pytest.approx([0, 80, 160, 245], abs=6)
    assert count <= len(counted) <= most
    counted.clear()
    early = open_video(path, lambda total, fps: [1, 3, 3])
    assert [picture.getpixel((9, 9))[0] for picture in early] == pytest.approx([5, 15, 15], abs=6)
    assert len(counted) <= 4, "nothing behind the last one that is wanted"


@pytest.mark.parametrize("name", ["front.mp4", "usual.mov", "a.mkv", "a.webm"])
def test_half_a_download_is_no_shorter_video(name: str, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="reads video files")
    film(tmp_path / "whole.mp4", 30)
    path = tmp_path / name
    with (
        av.open(str(tmp_path / "whole.mp4")) as source,
        av.open(
            str(path), "w", format="matroska" if name.startswith("a.") else "mp4", options={"movflags": "faststart"}
        ) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    whole = path.read_bytes()
    assert open_video(path, lambda total, fps: [0, total - 1]).numbers == (0, 29) and count_frames(path) in (30, None)
    for length in (len(whole) - 1, len(whole) * 3 // 4):
        path.write_bytes(whole[:length])
        for read in (lambda: open_video(path, lambda *_: [0]), lambda: count_frames(path)):
            with pytest.raises(BadImageError, match=f"it has {length} bytes and says that it ends after {len(whole)}"):
                read()
    path.write_bytes(whole + b"\0\0\0\x09free" * 2 if name.endswith(("mp4", "mov")) else whole + bytes(9))
    assert open_video(path, lambda total, fps: [total - 1]).numbers == (29,), "more than it says is no fault"


def test_hidden_files_beside_frames_are_no_frames(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"._{number}.png").write_bytes(b"\0\5\x16\7")  # as macOS leaves them in archives
    frames = open_video(tmp_path, lambda total, fps: frame_numbers(total, total))
    assert [picture.getpixel((1, 1))[0] for picture in frames] == [1, 2, 10] and count_frames(tmp_path) == 3


def test_a_jump_that_leads_elsewhere_is_not_trusted(tmp_path: Path, monkeypatch: Any, counted: list[int]) -> None:
    path = film(tmp_path / "a.mp4", 30, g=5)
    stock = video_files._read_index
    expected = [np.asarray(picture) for picture in open_video(path, lambda *_: [7, 22])]

    def lying(av: Any, path: Path) -> Any:
        index = stock(av, path)
        return video_files.VideoIndex(index.total, index.fps, [time + 1 for time in index.times], index.keys)

    monkeypatch.setattr(video_files, "_read_index", lying)
    counted.clear()
    again = [np.asarray(picture) for picture in open_video(path, lambda *_: [7, 22])]
    assert all(map(np.array_equal, expected, again)) and len(counted) > 22


def test_frames_by_the_second_and_their_bound(tmp_path: Path) -> None:
    by_second = FrameSampling(fps=2)
    assert by_second.numbers(50, 10.0, 8) == list(range(0, 50, 5))
    assert FrameSampling(fps=2, most=4).numbers(50, 10.0, 8) == [0, 16, 32, 49]
    assert FrameSampling(fps=30).numbers(4, 10.0, 8) == [0, 1, 2, 3], "no faster than the video is"
    assert by_second.numbers(50, None, 8) == frame_numbers(50, 8), "a folder of frames says no speed"
    assert FrameSampling(count=3).numbers(7, 10.0, 8) == [0, 3, 6] and FrameSampling(most=2).numbers(9, None, 8) == [
        0,
        8,
    ]
    made = LlavaInputs(SimpleNamespace(), byte_level(), None, "v1", sampling=FrameSampling(fps=2.5))
    path = film(tmp_path / "a.mp4", 20)
    assert open_video(path, made.frame_numbers).numbers == (0, 4, 8, 12, 16)
    for wrong in ({"count": 0}, {"fps": -1.0}, {"fps": float("nan")}, {"most": 0}):
        with pytest.raises(ValueError, match="must be above 0"):
            FrameSampling(**wrong)
