"""Records and image files with every fault that a data set can have."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava.data.check.budgets import CostAssumptions
from llava.data.check.check_report import in_order
from llava.data.check.check_settings import CheckSettings
from llava.data.check.checking import CheckResult, check
from llava.data.check.sources import DataFile

ASSUMED = CostAssumptions("tiny", batch_size=3, devices=2, peak_tflops=1.0, mfu=0.5, passes=4)


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": turn} for i, turn in enumerate(turns)]


def shown(name: str, image: Any, answer: str = "red three") -> dict[str, Any]:
    return {"id": name, "image": image, "conversations": talk("<image>\nWhich digit?", answer)}


def png(width: int, height: int, depth: int = 8) -> bytes:
    """An RGB file of that size by its header; all its pixels' rows are there only if it is small."""

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    rows = min(height, 64) * (b"\0" + b"\x80" * (min(width, 64) * 3 * depth // 8))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def noise(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def write_images(at: Path) -> None:
    """Image files, each with the fault that its name says."""
    noise().save(at / "good.png")
    noise().save(at / "good.jpg")
    noise().save(at / "gif_named.jpg", format="GIF")
    noise().convert("CMYK").save(at / "cmyk.jpg")
    Image.fromarray(np.full((20, 20), 0x8000, dtype=np.uint16)).save(at / "deep_grey.png")
    (at / "deep_rgb.png").write_bytes(png(20, 20, depth=16))
    Image.fromarray(np.full((20, 20), 1.5, dtype=np.float32)).save(at / "deep_float.tiff")
    (at / "empty.jpg").write_bytes(b"")
    (at / "cut.jpg").write_bytes((at / "good.jpg").read_bytes()[:-700])
    damaged = bytearray((at / "good.png").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (at / "damaged.png").write_bytes(damaged)
    (at / "page.jpg").write_text("<html>404 Not Found</html>")
    (at / "bomb.png").write_bytes(png(10_000, 10_000))
    (at / "big_bomb.png").write_bytes(png(60_000, 60_000))
    Image.new("1", (30_000, 20)).save(at / "wire.png")
    noise(300, 20).save(at / "thin.png")
    Image.new("1", (5_100, 5_000)).save(at / "large.png")
    noise(1, 1).save(at / "tiny.png")
    noise().save(at / "moving.gif", save_all=True, append_images=[Image.new("RGB", (64, 48))])
    Image.new("RGBA", (20, 20), (255, 0, 0, 128)).save(at / "glass.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(at / "lying.jpg", exif=exif)
    noise().save(at / "ocr.gif")
    (at / "folder.png").mkdir()
    os.mkfifo(at / "pipe.png")
    return at


def checked(data: list[Any], folder: Path | str = ".", workers: int = 0, **settings: Any) -> CheckResult:
    return check([DataFile(Path("data.json"), str(folder), objects=data)], CheckSettings(**settings), workers)


def kinds(result: CheckResult) -> list[tuple[int, str]]:
    return [(index, finding.kind) for index, finding in in_order(result)]
