"""Images and videos of a request, out of data URLs and, where that is allowed, http(s) addresses; all within bounds."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from llava.common.bounded_http import FetchError, fetch
from llava.common.image_limits import open_image_file
from llava.common.image_opening import as_rgb
from llava.data.families.base import ModelInputs
from llava.data.images import explained
from llava.data.video import open_video
from llava.inference.places import is_address
from llava.serve.api.failures import refused
from llava.serve.api.messages import SentMedium
from llava.serve.limits import ServingLimits

_DATA_URL = re.compile(r"data:([a-z0-9.+-]+/[a-z0-9.+-]+)?(;[^,;]*)*?;base64,", re.IGNORECASE)
_LONGEST_HEAD = 200
_REDIRECTS = 3
_FRAMES = "video/jpeg"
_MOST_FRAMES = 1024
_VIDEO_SUFFIXES = {
    "image/gif": ".gif",
    "image/webp": ".webp",
    "image/apng": ".apng",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    "video/quicktime": ".mov",
    "video/x-matroska": ".mkv",
    "video/x-msvideo": ".avi",
}


class MediaReader:
    """Reads and prepares what requests show.

    Args:
        inputs: of the model.
        limits: bounds of the server.
        fetches: whether http(s) addresses of public hosts are fetched.
    """

    def __init__(self, inputs: ModelInputs, limits: ServingLimits, fetches: bool) -> None:
        self._inputs = inputs
        self._limits = limits
        self._fetches = fetches

    def media(self, sent: SentMedium, number: int) -> list[Any]:
        """The media of one image or video, as the family prepares them.

        Args:
            sent: as it stands in the request.
            number: its number among those of its kind, from 1, for errors.

        Raises:
            ApiError: if it cannot be read, is too large, or is not shown to this model.
        """
        name = f"{sent.kind.capitalize()} {number}"
        try:
            if sent.kind == "image":
                return [self._inputs.image(self._picture(sent, name), name)]
            return self._video(sent, name)
        except ValueError as error:
            raise refused(str(error), sent.field, f"invalid_{sent.kind}") from error

    def _picture(self, sent: SentMedium, name: str) -> Image.Image:
        content = self._fetched(sent.url, name) if is_address(sent.url) else _of_data_url(sent.url, name)[1]
        with explained(name):
            image = open_image_file(content)
        width, height = image.size
        if width * height > self._limits.image_pixels:
            raise ValueError(
                f"{name} has {width} x {height} pixels, more than the {self._limits.image_pixels:,} that are accepted "
                "here; scale it down."
            )
        with explained(name):
            return as_rgb(image, self._inputs.image_opening)

    def _fetched(self, address: str, name: str) -> bytes:
        if not self._fetches:
            raise ValueError(
                f"{name} is an http(s) address, and this server fetches none (it was started without "
                "--allow-image-urls); send it as a data URL: data:image/png;base64,..."
            )
        try:
            response = fetch(
                address,
                max_bytes=self._limits.body_bytes,
                seconds=self._limits.fetch_seconds,
                redirects=_REDIRECTS,
                public_only=True,
            )
        except FetchError as error:
            raise ValueError(f"{name} cannot be fetched: {error}") from error
        if response.status != 200:
            raise ValueError(f"{name} cannot be fetched: the host answered with status {response.status}, not 200.")
        return response.body

    def _video(self, sent: SentMedium, name: str) -> list[Any]:
        """A video goes through a file in a folder of its own, which is gone afterwards."""
        if is_address(sent.url):
            raise ValueError(f"{name} is an http(s) address; videos are taken as data URLs alone.")
        with tempfile.TemporaryDirectory(prefix="llava-video-") as folder:
            path = _written(sent.url, Path(folder), name)
            try:
                frames = open_video(path, self._inputs.frame_numbers, self._inputs.image_opening)
            except ValueError as error:
                raise ValueError(str(error).replace(f"Video {path}", name).replace(str(path), name)) from error
        return self._inputs.video(frames, name)


def _written(url: str, folder: Path, name: str) -> Path:
    """A video of a data URL as a file, or as a folder of frames."""
    head = _DATA_URL.match(url[:_LONGEST_HEAD])
    kind = (head[1] or "").lower() if head else ""
    if head and kind == _FRAMES:  # vLLM's form: frames as JPEG, each in base64, with commas between them
        frames = url[head.end() :].split(",")
        if len(frames) > _MOST_FRAMES:
            raise ValueError(f"{name} has {len(frames)} frames, more than the {_MOST_FRAMES} that are accepted here.")
        for number, frame in enumerate(frames):
            (folder / f"{number:06}.jpg").write_bytes(_decoded(frame, f"Frame {number + 1} of {name.lower()}"))
        return folder
    if head and kind not in _VIDEO_SUFFIXES:
        raise ValueError(
            f"{name} is of the type {kind!r}; accepted are {', '.join(_VIDEO_SUFFIXES)}, and {_FRAMES} for JPEG frames "
            "with commas between them."
        )
    kind, content = _of_data_url(url, name)
    path = folder / f"video{_VIDEO_SUFFIXES[kind]}"
    path.write_bytes(content)
    return path


def _of_data_url(url: str, name: str) -> tuple[str, bytes]:
    """Type and content of a data URL in base64."""
    head = _DATA_URL.match(url[:_LONGEST_HEAD])
    if head is None:
        raise ValueError(
            f"{name} is no data URL in base64, such as data:{name.split()[0].lower()}/...;base64,...; files of the "
            "server's machine are not read."
        )
    return (head[1] or "").lower(), _decoded(url[head.end() :], name)


def _decoded(text: str, name: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is not whole base64 ({error}); encode it anew.") from error
    if not content:
        raise ValueError(f"{name} is empty; send the content of a file.")
    return content
