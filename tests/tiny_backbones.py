"""A tiny model of every family on disk, as `open_model` opens it: random weights, tokenizer, processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_folder import write_model
from tiny_next import SIDE
from tiny_onevision import write_onevision
from tiny_qwen import write_qwen
from tiny_qwen3 import write_qwen3
from tiny_video import pictures, write_video, write_video_llava

from llava.common.anyres import default_pinpoints


def _write_next(folder: Path, **settings: Any) -> Path:
    return write_model(
        folder,
        mm_patch_merge_type="spatial_unpad",
        image_aspect_ratio="anyres",
        image_grid_pinpoints=default_pinpoints(SIDE),
        compression=None,
        **settings,
    )


def _write_own(folder: Path, **settings: Any) -> Path:
    return write_model(folder, compression=None, **settings)


WRITERS: dict[str, Callable[..., Path]] = {
    "llava-1.5": _write_own,
    "llava-next": _write_next,
    "video-llava": write_video_llava,
    "qwen2.5-vl": write_qwen,
    "qwen3-vl": write_qwen3,
    "llava-onevision": write_onevision,
}
"""By family; each takes a folder and a number of decoder `layers`."""
BUDGET = {"v2v": {"dominant": 5, "contextual": 2}, "t2v": {"layers": [2, 3], "keep": [0.5, 0.2]}}
"""One that every one of them takes."""


def write_media(folder: Path) -> tuple[list[Path], Path]:
    """Two pictures, and a video as a folder of frames."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, picture in enumerate(pictures(2, 120, 61)):
        files.append(folder / f"{number}.png")
        picture.save(files[-1])
    return files, write_video(folder / "clip")
