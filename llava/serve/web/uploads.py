"""Files that visitors upload: read at once, within the limits of the chat program, and deleted; none is ever served."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from llava.common.image_headers import UnfitFileError
from llava.common.image_limits import check_prepared, open_image_file
from llava.common.image_opening import as_rgb
from llava.data.families.base import ModelInputs
from llava.data.frames import Frames
from llava.data.images import explained, shown_name
from llava.data.video import DRAWN_SUFFIXES, VIDEO_SUFFIXES, open_video
from llava.mm_utils import aspect_ratio_of

MOST_UPLOAD_BYTES = 256 * 2**20
FORGOTTEN_AFTER = 600.0
"""Seconds after which a file that was uploaded and never read is deleted."""
_SAME_MOMENT = 20.0
"""Seconds for which what a file showed is known by its name, which its content makes."""
_TEMPORARY = "GRADIO_TEMP_DIR"
_SERVING = ("/file=", "/file/", "/proxy=", "/stream/", "/custom_component/", "/component_server")
_RECORDING = ("/runs", "/run-history", "/deep_link", "/monitoring", "/profiling", "/process_recording")
_OTHERS = ("/call/", "/api/", "/info", "/openapi.json", "/vibe", "/undo-vibe", "/token", "/user")
_CLOSED = (*_SERVING, *_RECORDING, *_OTHERS)
"""Beginnings of gradio's addresses that the page does without."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class UploadFolder:
    """A folder of this process alone into which gradio writes uploads; gone when it is closed.

    Attributes:
        path: the folder.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="duet-llava-web-"))  # mode 0700, a random name
        os.environ[_TEMPORARY] = str(self.path)
        self._lock = threading.Lock()
        self._read: dict[str, tuple[float, Image.Image | Frames]] = {}

    def read(self, name: str, inputs: ModelInputs) -> Image.Image | Frames:
        """Read an upload and delete its file.

        Gradio names a file by its content: of two visitors who upload the same one at the same moment, the second may
        find that it was read already. What it showed is therefore kept for some seconds.

        Args:
            name: path that gradio gave it.
            inputs: `ModelInputs` of the model.

        Raises:
            ValueError: as `take` and `read_upload`.
        """
        now = time.monotonic()
        with self._lock:
            self._read = {known: one for known, one in self._read.items() if now - one[0] < _SAME_MOMENT}
            try:
                taken = self.take(name)
            except ValueError:
                if name not in self._read:
                    raise
                return self._read[name][1]
            try:
                shown = read_upload(taken, name, inputs)
            finally:
                self.discard(taken)
            self._read[name] = now, shown
        return shown

    def take(self, name: str) -> Path:
        """Move an upload to a random name of the same ending, out of the folder that its content names.

        Args:
            name: path that gradio gave it.

        Raises:
            ValueError: if it lies anywhere else.
        """
        source = Path(name)
        if self.path.resolve() not in source.resolve().parents or source.is_symlink() or not source.is_file():
            raise ValueError("This file was not uploaded here; upload it once more.")
        target = Path(tempfile.mkdtemp(dir=self.path)) / f"upload{source.suffix.lower()[:8]}"
        source.rename(target)
        with suppress(OSError):
            source.parent.rmdir()
        return target

    def discard(self, taken: Path) -> None:
        """Delete a file of `take`, and what was uploaded before and forgotten."""
        shutil.rmtree(taken.parent, ignore_errors=True)
        before = time.time() - FORGOTTEN_AFTER
        for entry in list(self.path.iterdir()):
            with suppress(OSError):
                if entry.stat().st_mtime < before:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def files(self) -> list[Path]:
        """Files that hold anything."""
        return [path for path in self.path.rglob("*") if path.is_file() and path.stat().st_size]

    def close(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if os.environ.get(_TEMPORARY) == str(self.path):
            del os.environ[_TEMPORARY]


def read_upload(path: Path, name: str, inputs: ModelInputs) -> Image.Image | Frames:
    """An upload as the model is shown it: files of videos, and animations of several frames, as videos.

    Args:
        path: path of the file.
        name: what its owner calls it, for messages.
        inputs: `ModelInputs` of the model.

    Raises:
        ValueError: if it cannot be read, is too large, or the model cannot be shown it; names it.
    """
    called = shown_name(Path(name).name)
    if path.suffix.lower() in VIDEO_SUFFIXES or _is_animation(path):
        try:
            frames = open_video(path, inputs.frame_numbers, inputs.image_opening)
            inputs.video(frames, f"Video {called}")  # to say now what would be said when it is asked about
        except ValueError as error:
            raise ValueError(str(error).replace(shown_name(path), called).replace(str(path), called)) from error
        return frames
    with explained(f"Image {called}"):
        image = open_image_file(path)
        check_prepared(image.size, aspect_ratio_of(inputs.config))
        seen = as_rgb(image, inputs.image_opening)
    inputs.image(seen, f"Image {called}")
    return seen


def _is_animation(path: Path) -> bool:
    """Whether an image file that may be an animation has several frames; files that cannot be read are none."""
    if path.suffix.lower() not in DRAWN_SUFFIXES:
        return False
    try:
        with explained("The file"), open_image_file(path) as image:
            return int(getattr(image, "n_frames", 1)) > 1
    except (ValueError, UnfitFileError):
        return False


class ServesNoFiles:
    """Middleware before gradio that closes what the page does without: its files, those of other hosts, its records.

    Nothing on the page needs them: pictures stand in it as data. So nobody can fetch what another visitor uploaded, nor
    have this machine fetch an address.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        path = str(scope.get("path", ""))
        within = path.partition("/gradio_api")[2]  # what follows may hold the same words once more
        if scope["type"] == "http" and (path.startswith(_CLOSED) or within.startswith(_CLOSED)):
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Files are not served here."})
            return
        await self.app(scope, receive, send)


def quiet_libraries() -> None:
    """Switch off what gradio and its web server would tell others, and what they log of every request."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    logging.getLogger("httpx").setLevel(logging.WARNING)
