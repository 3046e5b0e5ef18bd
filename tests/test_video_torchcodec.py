"""Frames by torchcodec: the same as PyAV's, or PyAV's; its place is taken by a stand-in with its documented interface.

The real one needs FFmpeg's shared libraries. `test_frames_of_the_installed_torchcodec` runs where it works.
"""

from __future__ import annotations

import logging
import struct
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_video_decoding import film
from video_frames import decoded_times

from llava.data import video_torchcodec
from llava.data.images import BadImageError
from llava.data.video import open_video
from llava.data.video_torchcodec import VARIABLE, torchcodec_decoder

NUMBERS = [2, 11, 11, 29]


class StandIn:
    """`VideoDecoder` with the arguments and results that the documentation of torchcodec 0.13 names."""

    shift = 0.0
    """Seconds that its times are off."""
    fault: dict[int, int] = {}  # noqa: RUF012
    """Numbers of frames, and what is added to their pixels."""
    opened: list[tuple[str, int]] = []  # noqa: RUF012

    def __init__(
        self,
        source: str,
        *,
        stream_index: int | None = None,
        dimension_order: str = "NCHW",
        num_ffmpeg_threads: int = 1,
        seek_mode: str = "exact",
    ) -> None:
        import av

        assert dimension_order == "NHWC" and stream_index is not None and seek_mode == "exact"
        self.opened.append((source, num_ffmpeg_threads))
        with av.open(source) as container:
            self.frames = [
                (frame.to_ndarray(format="rgb24"), float(frame.pts * frame.time_base))
                for frame in container.decode(container.streams[stream_index])
            ]

    def __len__(self) -> int:
        return len(self.frames)

    def get_frame_at(self, index: int) -> Any:
        pixels, time = self.frames[index]
        pixels = pixels + np.uint8(self.fault.get(index, 0))
        return SimpleNamespace(data=torch.from_numpy(pixels), pts_seconds=time + self.shift, duration_seconds=0.1)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    """A torchcodec that can be imported."""

    class Decoder(StandIn):
        fault: dict[int, int] = {}  # noqa: RUF012
        opened: list[tuple[str, int]] = []  # noqa: RUF012

    for name, content in (("torchcodec", {}), ("torchcodec.decoders", {"VideoDecoder": Decoder})):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv(VARIABLE, raising=False)
    video_torchcodec._imported.cache_clear()
    yield Decoder
    video_torchcodec._imported.cache_clear()


@pytest.fixture
def by_pyav(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times of the frames that PyAV decodes."""
    return decoded_times(monkeypatch)


def pictures(path: Path, numbers: list[int] = NUMBERS, **options: Any) -> list[np.ndarray]:
    return [np.asarray(picture) for picture in open_video(path, lambda *_: numbers, **options)]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mpeg4"), ("b.mkv", "mjpeg")])
def test_frames_are_pyavs_whoever_decodes_them(
    name: str, codec: str, tmp_path: Path, installed: Any, by_pyav: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film(tmp_path / name, 30, codec, g=3)
    monkeypatch.setenv(VARIABLE, "pyav")
    expected = pictures(path)
    alone = len(by_pyav)
    assert not installed.opened
    for choice in ("auto", "torchcodec", ""):
        monkeypatch.setenv(VARIABLE, choice)
        by_pyav.clear()
        assert same(pictures(path), expected)
        assert len(by_pyav) <= 3 and len(by_pyav) < alone, "the first one alone, from its key frame"
    assert installed.opened == [(str(path), 1)] * 3


@pytest.mark.parametrize("fault", ["pixels", "times", "count", "shape", "raises", "interface"])
def test_where_torchcodec_differs_pyav_decodes_all_of_them(
    fault: str, tmp_path: Path, installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film(tmp_path / "a.mp4", 30, g=3)
    expected = pictures(path)
    assert len(installed.opened) == 1

    def broken(*_: Any) -> Any:
        raise RuntimeError("Could not seek file to pts=3")

    match fault:
        case "pixels":
            installed.fault = {2: 1}
        case "times":
            installed.shift = 0.1
        case "count":
            monkeypatch.setattr(installed, "__len__", lambda self: 31)
        case "shape":
            stock = installed.get_frame_at
            small = lambda self, n: SimpleNamespace(**vars(stock(self, n)) | {"data": torch.zeros(8, 8, 3).byte()})  # noqa: E731
            monkeypatch.setattr(installed, "get_frame_at", small)
        case "raises":
            monkeypatch.setattr(installed, "get_frame_at", broken)
        case "interface":
            monkeypatch.setattr(installed, "__init__", lambda self, source: None)
    assert same(pictures(path), expected)


def test_files_that_the_two_may_read_otherwise_are_pyavs(tmp_path: Path, installed: Any) -> None:
    pictures(film(tmp_path / "a.avi", 30), NUMBERS)  # its index is not exact
    turned = film(tmp_path / "b.mp4", 3)
    content = turned.read_bytes()
    begin = content.index(b"tkhd") + 44  # the track header's matrix, ISO 14496-12: turned by a quarter
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    turned.write_bytes(content[:begin] + matrix + content[begin + 36 :])
    pictures(turned, [0, 1])
    pictures(film(tmp_path / "c.mp4", 3), [1])  # one frame: nothing is left for torchcodec
    assert not installed.opened


def test_what_is_refused_is_refused_in_the_same_words(
    tmp_path: Path, installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    whole = film(tmp_path / "a.mp4", 30).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    said = {}
    for choice in ("pyav", "auto"):
        monkeypatch.setenv(VARIABLE, choice)
        for name in ("empty.mp4", "cut.mp4"):
            with pytest.raises(BadImageError) as caught:
                pictures(tmp_path / name)
            said[choice, name] = str(caught.value)
    assert all(said["pyav", name] == said["auto", name] for name in ("empty.mp4", "cut.mp4"))


def test_a_torchcodec_that_cannot_be_imported_is_named_once_or_refused_where_it_was_asked_for(
    tmp_path: Path, installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, broken = film(tmp_path / "a.mp4", 30), ModuleType("torchcodec.decoders")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", broken)
    with caplog.at_level(logging.WARNING):
        pictures(path)
        pictures(path)
    assert caplog.text.count("torchcodec cannot be imported") == 1 and f"{VARIABLE}=pyav" in caplog.text
    monkeypatch.setenv(VARIABLE, "torchcodec")
    with pytest.raises(BadImageError, match="LLAVA_VIDEO_DECODER asks for torchcodec, which cannot be imported"):
        pictures(path)
    monkeypatch.setenv(VARIABLE, "decord")
    with pytest.raises(BadImageError, match="LLAVA_VIDEO_DECODER is 'decord', which is none of auto, pyav, torchcodec"):
        pictures(path)


def test_frames_of_the_installed_torchcodec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torchcodec_decoder({}) is None:
        pytest.skip("torchcodec is not installed, or does not work")
    for name, codec in (("a.mp4", "mpeg4"), ("b.mkv", "mjpeg"), ("c.webm", "libvpx-vp9")):
        path = film(tmp_path / name, 30, codec, g=5)
        monkeypatch.setenv(VARIABLE, "pyav")
        expected = pictures(path)
        monkeypatch.setenv(VARIABLE, "torchcodec")
        assert same(pictures(path), expected)
