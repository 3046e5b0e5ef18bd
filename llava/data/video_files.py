"""Decodes chosen frames of a video file; no other frame becomes a picture.

Frames of a video are numbered in the order in which they are shown. To decode one, all since the key frame before it
have to be decoded, so in files whose index is exact (`_SEEKABLE`) reading jumps to that key frame; elsewhere it goes on
from the front and ends behind the last frame that is wanted.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from llava.common.image_headers import UnfitFileError
from llava.common.image_limits import ImageLimitError
from llava.data.video_ends import require_whole
from llava.data.video_torchcodec import SAME_COLOURS, frames_like, torchcodec_decoder

Kept = TypeVar("Kept")
MOST_FRAME_PIXELS = 8192 * 4352
"""Most pixels of a frame of a video file (8K); a decoder holds up to seventeen frames in memory."""
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg"
"""Accepted formats of video files, as FFmpeg names them; playlists, which name other files, are refused."""
_MOST_INDEXED = 2**21
"""Most frames whose times are noted, about twenty hours; a longer video is read from the front."""
_SEEKABLE = {"mov", "mp4", "matroska", "webm"}
"""Formats whose index leads to the very packet that is asked for."""
_ONE_EACH = ("h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg", "png", "ffv1", "prores", "dnxhd")
"""Codecs that show a frame for each packet; in others a packet may hold a frame that is never shown."""


@dataclass(frozen=True)
class VideoIndex:
    """What the packets of a video say, before any is decoded.

    Attributes:
        total: frames, at least 1.
        fps: frames a second; None where the file does not say.
        times: presentation time of each frame in the stream's unit, ascending; None where it is not exact to jump.
        keys: numbers of the key frames, ascending; empty without times.
        stream: number of the stream in the file.
        unit: seconds of the stream's unit of time.
    """

    total: int
    fps: float | None
    times: Sequence[int] | None = None
    keys: Sequence[int] = ()
    stream: int = 0
    unit: float = 0.0


class _InexactError(Exception):
    """A jump did not lead to the frame that the index promised."""


def decode_frames(
    path: Path,
    choose: Callable[[int, float | None], list[int]],
    keep: Callable[[Any, int], Kept],
    keep_pixels: Callable[[np.ndarray], Kept],
) -> tuple[dict[int, Kept], list[int], VideoIndex]:
    """The chosen frames of a video file.

    Args:
        path: the file.
        choose: says which frames to take, from how many there are and how many a second.
        keep: called with each chosen frame, as PyAV has it, and their number; returns what is kept of it.
        keep_pixels: called with a chosen frame as torchcodec has it, uint8 [H, W, 3]; it needs no turning.

    Returns:
        what is kept, by number of the frame; the chosen numbers; the index. Where the file ends before its packets
        said, the last frame stands for those missing.

    Raises:
        UnfitFileError, ImageLimitError: if its end is missing, it holds no pictures, or larger ones than are accepted.
        av.FFmpegError: if it cannot be read.
        ValueError: whatever `choose` and `keep` raise.
    """
    import av

    require_whole(path)
    index = _read_index(av, path)
    chosen = choose(index.total, index.fps)
    numbers = sorted(set(chosen))
    taken: dict[int, Kept] | None = None
    if index.times is not None:
        try:
            taken = _with_torchcodec(av, path, index, numbers, keep, keep_pixels)
            taken = _jump(av, path, index, numbers, keep) if taken is None else taken
        except _InexactError:
            taken = None
    return (_read_on(av, path, numbers, keep) if taken is None else taken), chosen, index


def frames_by_header(path: Path) -> int | None:
    """Frames of a video file as its header has them; None where it says nothing.

    Raises:
        UnfitFileError, ImageLimitError, av.FFmpegError: as in `decode_frames`.
    """
    import av

    require_whole(path)
    with _open(av, path) as container:
        return _stream(container).frames or None


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames from where a container stands, each decoded when it is asked for."""
    yield from container.decode(stream)


def _open(av: Any, path: Path) -> Any:
    return av.open(str(path), options={"format_whitelist": CONTAINERS})


def _stream(container: Any) -> Any:
    """The first video stream of a container."""
    if not container.streams.video:
        raise UnfitFileError("it holds no pictures")
    stream = container.streams.video[0]
    check_frame(stream.width or 0, stream.height or 0)
    return stream


def _prepared(container: Any) -> Any:
    """The video stream, within the limits; its decoder holds no more frames back than the format asks for."""
    stream = container.streams.video[0]
    stream.thread_type = "SLICE"
    stream.codec_context.options = {"max_pixels": str(MOST_FRAME_PIXELS)}
    return stream


def _read_index(av: Any, path: Path) -> VideoIndex:
    with _open(av, path) as container:
        stream = _stream(container)
        fps = None if not stream.average_rate else float(stream.average_rate)
        number, unit = stream.index, float(stream.time_base or 0)
        exact = not _SEEKABLE.isdisjoint(container.format.name.split(","))
        exact = exact and stream.codec_context.codec.canonical_name in _ONE_EACH
        total, times, keys = 0, array("q"), array("q")
        for packet in container.demux(stream):
            if not packet.size:
                continue
            total += 1
            exact = exact and packet.pts is not None and not packet.is_discard and not packet.is_corrupt
            exact = exact and total <= _MOST_INDEXED
            if exact:
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
    ordered = sorted(times) if exact else []
    starts = set(keys)
    at = [place for place, time in enumerate(ordered) if time in starts]
    if not at or at[0] != 0 or len(set(ordered)) != total:
        return VideoIndex(max(total, 1), fps)
    return VideoIndex(total, fps, ordered, at, number, unit)


def _jump(
    av: Any, path: Path, index: VideoIndex, numbers: Sequence[int], keep: Callable[[Any, int], Kept]
) -> dict[int, Kept]:
    """Decode frames by number, from the key frame before each where that lies ahead.

    Raises:
        _InexactError: if one is not where the index has it.
    """
    assert index.times is not None
    taken = {}
    with _open(av, path) as container:
        stream = _prepared(container)
        frames, at = decoded(container, stream), 0  # number of the next frame that would be decoded
        for number in numbers:
            key = index.keys[bisect_right(index.keys, number) - 1]
            if key > at:
                container.seek(index.times[key], stream=stream)
                frames = decoded(container, stream)
            taken[number] = keep(_frame_at(frames, index.times[number]), len(numbers))
            at = number + 1
    return taken


def _with_torchcodec(
    av: Any,
    path: Path,
    index: VideoIndex,
    numbers: Sequence[int],
    keep: Callable[[Any, int], Kept],
    keep_pixels: Callable[[np.ndarray], Kept],
) -> dict[int, Kept] | None:
    """As `_jump`, all frames but the first by torchcodec; None where PyAV is to decode them all."""
    decoder = torchcodec_decoder()
    if decoder is None or len(numbers) < 2:
        return None
    assert index.times is not None

    def looked_at(frame: Any, _: int) -> tuple[Any, Kept]:
        return frame, keep(frame, len(numbers))

    frame, first = _jump(av, path, index, numbers[:1], looked_at)[numbers[0]]
    if frame.format.name not in SAME_COLOURS or any(data.type.name == "DISPLAYMATRIX" for data in frame.side_data):
        return None
    seconds = {number: index.times[number] * index.unit for number in numbers}
    pixels = frame.to_ndarray(format="rgb24")
    taken = frames_like(decoder, path, index.stream, seconds, index.total, pixels, keep_pixels)
    return None if taken is None else taken | {numbers[0]: first}


def _frame_at(frames: Iterator[Any], time: int) -> Any:
    for frame in frames:
        if frame.pts == time and not frame.is_corrupt:
            return frame
        if frame.pts is None or frame.pts >= time:
            break
    raise _InexactError


def _read_on(av: Any, path: Path, numbers: Sequence[int], keep: Callable[[Any, int], Kept]) -> dict[int, Kept]:
    """Decode from the front to the last of some frames."""
    waiting, taken, last = set(numbers), {}, None
    with _open(av, path) as container:
        for number, last in enumerate(decoded(container, _prepared(container))):
            if number in waiting:
                taken[number] = keep(last, len(numbers))
            if number == numbers[-1]:
                break
    if last is None:
        raise UnfitFileError("it holds no pictures")
    missing = waiting - taken.keys()
    return taken | (dict.fromkeys(missing, keep(last, len(numbers))) if missing else {})


def check_frame(width: int, height: int) -> None:
    """Raise ImageLimitError for frames with more than `MOST_FRAME_PIXELS`."""
    if width * height > MOST_FRAME_PIXELS:
        raise ImageLimitError(
            f"its frames are {width} x {height}, {width * height} pixels; at most {MOST_FRAME_PIXELS} are accepted"
        )
