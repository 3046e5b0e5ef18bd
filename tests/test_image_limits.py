"""What an image may cost is bounded before it is decoded, and whatever is wrong with one is said in a sentence."""

from __future__ import annotations

import base64
import io
import os
import random
import resource
import socket
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bytes_server import BytesServer, reply
from PIL import Image, ImageFile
from tiny_text import byte_level, llava_inputs
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from video_frames import read_frames

from llava.common import image_limits
from llava.common.image_headers import check_directory
from llava.common.image_limits import ImageLimitError, check_prepared, prepared_pixels
from llava.common.image_opening import as_rgb, orientation
from llava.data.check.check_settings import CheckSettings
from llava.data.check.image_files import check_images
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.families.llava import LlavaInputs
from llava.data.images import BadImageError, open_rgb
from llava.data.records import Record
from llava.eval.benchmarks.questions import Question
from llava.inference.batches import Preparer, Prompt, Task, media_of
from llava.inference.typed_images import open_image, read_image
from llava.mm_utils import load_image_from_base64, preprocess_image, process_images
from llava.model.splice import PlanSettings


def processor(side: int = 28) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def png(width: int, height: int, depth: int = 1, color: int = 0, body: bytes = b"", chunks: bytes = b"") -> bytes:
    """A PNG that says it is of some size, with little in it."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunks + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def directory(entries: list[tuple[int, int, int, int]], more: bytes = b"") -> bytes:
    """A TIFF with one directory: tag, type, count and value of each entry."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + more


def overlapping(megabytes: float = 1, tags: int = 500) -> bytes:
    """Tags that all name the same bytes, each of which Pillow copies."""
    size = int(megabytes * 2**20)
    return directory([(1000 + number, 7, size, 8) for number in range(tags)], bytes(size))


def saved(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or Image.new("RGB", (16, 12), (200, 30, 30))).save(file, kind, **options)
    return file.getvalue()


def jpeg_with_exif(exif: bytes) -> bytes:
    plain = saved("JPEG")
    segments = b""
    for start in range(0, len(exif), 65000):
        piece = b"Exif\0\0" + exif[start : start + 65000]
        segments += b"\xff\xe1" + struct.pack(">H", len(piece) + 2) + piece
    behind = 4 + struct.unpack(">H", plain[4:6])[0]  # JFIF's own resolution keeps Pillow from looking at EXIF
    return plain[:2] + segments + plain[behind:]


def scans(count: int) -> bytes:
    whole = saved("JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * count + b"\xff\xd9"


BOMBS: dict[str, bytes] = {
    "wide.png": png(60_000, 60_000),
    "high.png": png(2**31 - 1, 2**31 - 1, 16, 6),
    "wide.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "wide.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
    "late.gif": b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b",\0\0\0\0" + b"\xff" * 4 + b"\0\2\2D\1\0;",
    "wide.ppm": b"P6 60000 60000 255\n",
    "wide.pgm": b"P5 2000000000 1 65535\n",
    "wide.tiff": directory([(256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (262, 3, 1, 1)]),
    "tile.tiff": directory(
        [
            (256, 4, 1, 16),
            (257, 4, 1, 16),
            (258, 3, 1, 8),
            (259, 3, 1, 8),
            (262, 3, 1, 1),
            (277, 3, 1, 1),
            (322, 4, 1, 40_000),
            (323, 4, 1, 40_000),
            (324, 4, 1, 8),
            (325, 4, 1, 99),
        ]
    ),
    "tags.tiff": overlapping(),
    "exif.jpg": jpeg_with_exif(overlapping()),
    "scans.jpg": scans(400),
    "text.png": png(4, 4, 8, 2, bytes(52), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7), 9))),
    "profile.png": png(4, 4, 8, 2, bytes(52), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**7), 9))),
}
"""Small files that would take gigabytes or minutes; the last two no longer do in Pillow."""


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("opening", ["upright", "llava"])
def test_a_small_file_does_not_take_all_memory(tmp_path: Path, name: str, opening: str) -> None:
    path = tmp_path / name
    path.write_bytes(BOMBS[name])
    assert len(BOMBS[name]) < 1.1 * 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImageError, match=rf"^Image file '.*{name}' (is too large|cannot be read): .*\w") as refused:
        open_rgb(path, opening)
    assert str(refused.value).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    for read in (lambda: open_image(str(path)), lambda: load_image_from_base64(base64.b64encode(BOMBS[name])).load()):
        with pytest.raises((ValueError, OSError)):
            read()
    (found,) = check_images([(str(tmp_path), name)], CheckSettings(images="full"))
    assert any(finding.is_error for finding in found), found


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "hexadecimal"])
def test_a_bomb_in_the_metadata_is_left_alone_and_the_pixels_are_seen(tmp_path: Path, kind: str) -> None:
    if kind == "hexadecimal":  # as ImageMagick writes EXIF; Pillow takes a megabyte of text
        text = b"\nexif\n  99\n" + overlapping(0.4, 5000).hex().encode()
        content = png(16, 12, 8, 2, bytes(49 * 12), chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)))
    else:
        content = saved(kind, exif=b"Exif\0\0" + overlapping())
    path = tmp_path / "photo"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert open_rgb(path).size == (16, 12)
    assert check_images([(str(tmp_path), "photo")], CheckSettings())[0][0].kind == "image_tiny"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_honest_metadata_passes_whatever_its_size() -> None:
    many = directory([(1000 + number, 7, 4, number) for number in range(3000)])
    large = directory([(270, 2, 2**20, 26)], bytes(2**20))
    for content in (many, large, b"", b"II", b"MM\0*" + bytes(4), b"MM\0*" + b"\xff" * 40, large[:50]):
        check_directory(content, 100)
    back_and_forth = b"II*\0" + struct.pack("<IHI", 8, 0, 8)
    check_directory(back_and_forth)
    with pytest.raises(ValueError, match="its tags name"):
        check_directory(b"Exif\0\0" + overlapping())


def test_ordinary_large_pictures_are_prepared() -> None:
    """A photo of 20 megapixels, a long screenshot, a panorama."""
    for width, height in ((5472, 3648), (1000, 12_000), (9000, 1200)):
        for ratio in ("pad", "square"):
            check_prepared((width, height), ratio)
    assert (
        prepared_pixels((1000, 18_918), "pad") < image_limits.MOST_PADDED_PIXELS < prepared_pixels((1, 18_919), "pad")
    )


@pytest.mark.parametrize(
    "size", [(1000, 90), (90, 1000), (997, 1), (1, 997), (500, 499), (700, 333), (35, 801), (64, 64)]
)
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_a_large_picture_is_padded_as_a_small_one_is(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], resample: int
) -> None:
    """The square that is never made whole gives the same pixels, to the last bit."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    clip = processor()
    clip.resample = resample
    expected = preprocess_image(picture, clip, "pad")
    monkeypatch.setattr("llava.mm_utils.LARGE_SIDE", 30)
    monkeypatch.setattr("llava.common.image_padding._BAND", 5000)
    monkeypatch.setattr("llava.mm_utils.expand2square", None)  # is not called any more
    assert torch.equal(preprocess_image(picture, clip, "pad"), expected)


def test_a_long_screenshot_takes_no_more_memory_than_its_own() -> None:
    picture = Image.new("RGB", (1000, 12_000), (1, 2, 3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert preprocess_image(picture, processor(336), "pad").shape == (3, 336, 336)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (40_000, 200)])
@pytest.mark.parametrize("ratio", ["pad", "square", None])
def test_a_thin_image_is_not_blown_up(tmp_path: Path, size: tuple[int, int], ratio: str | None) -> None:
    if size == (40_000, 200) and ratio != "pad":
        return
    path = tmp_path / "thin.png"
    Image.new("1", size).save(path)
    assert path.stat().st_size < 2000
    model = SimpleNamespace(image_aspect_ratio=ratio, max_position_embeddings=999)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = rf"become \d+ pixels with image_aspect_ratio {ratio or 'square'}, more than the (357913940|89478485)"
    said = f"{size[0]} x {size[1]} {made}"
    clip = processor(336)
    with pytest.raises(ImageLimitError, match=said):
        preprocess_image(open_rgb(path), clip, ratio)
    with pytest.raises(ImageLimitError, match=f"^An image is too large: {said}"):
        process_images([Image.open(path)], clip, model)
    with pytest.raises(ValueError, match=f"thin.png' is too large: {said}"):
        read_image(str(path), aspect_ratio=ratio)
    question = Question("q", "What?", images=(path,))
    batch = Preparer(LlavaInputs(model, byte_level(), clip, "v1"), PlanSettings(4, "last"))[Task((0,), (question,))]
    assert len(batch.problems) == 1 and f"{path}' is too large: " in batch.problems[0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def dataset(folder: Path, on_bad_sample: str = "skip", ratio: str = "pad") -> LazySupervisedDataset:
    turns = ("<image>\nWhat?", "Red.")
    records = [Record(name, turns, (name,)) for name in sorted(os.listdir(folder))]
    config = DataConfig(99, 4, image_folder=folder, on_bad_sample=on_bad_sample)
    return LazySupervisedDataset(records, llava_inputs(byte_level(), processor(336), image_aspect_ratio=ratio), config)


def test_training_skips_a_thin_image_and_what_memory_does_not_suffice_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (20_000, 1)).save(tmp_path / "thin.png")
    sample = dataset(tmp_path)[0]
    assert f"'{tmp_path}/thin.png' is too large: 20000 x 1 become 400000000 pixels" in sample["problem"]
    assert not sample["images"][0].any() and set(sample["labels"].tolist()) == {-100}
    with pytest.raises(BadImageError, match=r"record 'thin.png': Image file .*thin.png' is too large"):
        dataset(tmp_path, "fail")[0]
    (tmp_path / "thin.png").unlink()
    Image.new("RGB", (40, 30)).save(tmp_path / "plain.png")
    whole = dataset(tmp_path)
    assert whole[0]["problem"] is None

    def no_memory(error: Exception) -> Callable[..., Any]:
        def fail(*_: Any, **__: Any) -> Any:
            raise error

        return fail

    torchs_own = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried"
    )
    for error in (MemoryError(), MemoryError("Unable to allocate 9 GiB"), torchs_own):
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile.ImageFile, "load", no_memory(error))
            assert "plain.png' is too large: it takes more memory than there is" in whole[0]["problem"]
        with monkeypatch.context() as patch:
            patch.setattr("llava.mm_utils.expand2square", no_memory(error))
            with pytest.raises(ImageLimitError, match="preparing 40 x 30 pixels takes more memory than there is"):
                preprocess_image(Image.new("RGB", (40, 30)), processor(), "pad")


def test_a_fault_of_the_program_is_not_taken_for_one_of_the_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "plain.png")
    whole = dataset(tmp_path)
    monkeypatch.setattr("llava.mm_utils.expand2square", lambda *_: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        whole[0]


def test_what_is_no_file_is_said_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.gif")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "kernel.png").symlink_to("/proc/version")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.png"))
    kinds = {
        "pipe.png": "a pipe",
        "folder.png": "a folder",
        "zero.png": "a device",
        "socket.png": "socket|No such device",
    }
    for name, kind in (kinds | {"kernel.png": "the file is empty"}).items():
        for read in (open_rgb, lambda path: read_image(str(path)), lambda path: open_image(str(path))):
            with pytest.raises(ValueError, match=f"{name}' cannot be read: .*({kind})"):
                read(tmp_path / name)
        inputs = LlavaInputs(SimpleNamespace(max_position_embeddings=999), byte_level(), processor(), "v1")
        asked = Task((0,), (Question("q", "What?", images=(tmp_path / name,)),))
        batch = Preparer(inputs, PlanSettings(4, "last"))[asked]
        assert "cannot be read" in batch.problems[0]
        (found,) = check_images([(str(tmp_path), name)], CheckSettings())
        assert found[0].is_error
    for name in ("pipe.gif", "pipe.mp4", "zero.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read: it is neither a file nor a folder of images"):
            read_frames(tmp_path / name, 2)


@pytest.mark.parametrize(
    "error",
    [
        KeyError(0),
        NotImplementedError("Unimplemented"),
        struct.error("x"),
        OverflowError(),
        ZeroDivisionError(),
        AttributeError("a"),
        RecursionError("deep"),
        EOFError(),
    ],
)
def test_whatever_a_decoder_raises_is_told_with_the_name_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "odd.png"
    Image.new("RGB", (4, 4)).save(path)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    for read in (open_rgb, lambda path: open_image(str(path))):
        with pytest.raises(
            BadImageError, match=rf"odd.png' cannot be read: {type(error).__name__}|odd.png' cannot be read: x"
        ):
            read(path)


@pytest.mark.parametrize("kind", ["DDS", "TGA", "ICO", "JPEG2000", "PCX", "SGI", "IM", "EPS", "PDF", "AVIF"])
def test_formats_that_no_data_set_has_are_not_decoded(tmp_path: Path, kind: str) -> None:
    """EPS would start Ghostscript."""
    path = tmp_path / "picture.jpg"
    try:
        path.write_bytes(saved(kind))
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    for read in (open_rgb, lambda path: open_image(str(path))):
        with pytest.raises(
            BadImageError, match=r"picture.jpg' cannot be read: it is not in one of the accepted formats JPEG"
        ):
            read(path)
    (found,) = check_images([(str(tmp_path), "picture.jpg")], CheckSettings())
    assert found[0].kind == "not_an_image"


@pytest.mark.parametrize("kind", [*image_limits.FORMATS, "MPO"])
def test_accepted_formats_are_read_whatever_the_file_is_called(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(saved(kind))
    picture = open_rgb(path)
    assert picture.size == (16, 12)
    assert np.abs(np.asarray(picture).astype(int) - (200, 30, 30)).max() < 12
    assert open_image(str(path)).size == (16, 12)


def test_a_limit_of_pixels_holds_where_pillows_own_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "wide.png").write_bytes(BOMBS["wide.png"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImageError, match="3600000000 pixels, more than the 89478485 that are accepted"):
        open_rgb(tmp_path / "wide.png")
    with pytest.raises(ImageLimitError):
        as_rgb(SimpleNamespace(size=(10**5, 10**5)))  # type: ignore[arg-type]


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "long.png").open("wb") as file:
        file.write(png(4, 4))
        file.truncate(10**12)
    with pytest.raises(BadImageError, match=r"is too large: the file has 1,000,000,000,000 bytes"):
        open_rgb(tmp_path / "long.png")
    (found,) = check_images([(str(tmp_path), "long.png")], CheckSettings(images="header"))
    assert [finding.kind for finding in found] == ["image_bomb"]


def test_warnings_of_pillow_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "odd.png").write_bytes(saved("PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"))
    (tmp_path / "odd.tiff").write_bytes(saved("TIFF")[:-6])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        open_rgb(tmp_path / "odd.png")
        with Image.open(tmp_path / "odd.png") as image:
            orientation(image)
        with pytest.raises(BadImageError):
            open_rgb(tmp_path / "odd.tiff")
    assert [str(warning.message) for warning in shown] == []


@pytest.mark.parametrize("mode", ["I", "F"])
def test_deep_grey_is_made_band_by_band_as_it_is_at_once(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    values = np.random.default_rng(2).normal(0, 1e4, (50, 7)).astype(np.int32 if mode == "I" else np.float32)
    values[:40] = np.abs(values[:40])  # what decides the range stands in a late band
    at_once = np.asarray(as_rgb(Image.fromarray(values)))
    monkeypatch.setattr("llava.common.image_opening._BAND", 20)
    assert np.array_equal(as_rgb(Image.fromarray(values)), at_once)
    expected = np.rint((values.astype(float) - values.min()) / (float(values.max()) - float(values.min())) * 255)
    assert np.array_equal(at_once[..., 0], expected)


# === Animations and videos ===


def test_an_animation_of_many_frames_is_refused_before_it_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2D\1\0"
    head = b"GIF89a" + struct.pack("<HHBBB", 2000, 2000, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    (tmp_path / "long.gif").write_bytes(head + frame * 5000 + b";")
    with pytest.raises(
        ValueError, match=r"long.gif is too large: 5000 frames of 2000 x 2000 are more than 10000000000"
    ):
        read_frames(tmp_path / "long.gif", 4)
    (tmp_path / "short.gif").write_bytes(head + frame * 3 + b";")
    assert [picture.size for picture in read_frames(tmp_path / "short.gif", 2)] == [(2000, 2000)] * 2
    assert open_rgb(tmp_path / "long.gif").size == (2000, 2000)  # as an image it is its first frame
    monkeypatch.setattr("llava.data.video.MOST_SHOWN_PIXELS", 10**7)
    with pytest.raises(ValueError, match=r"short.gif is too large: the frames of one question have 12000000 pixels"):
        read_frames(tmp_path / "short.gif", 10**6)
    (tmp_path / "folder").mkdir()
    for name in ("1.png", "2.png", "3.png"):
        Image.new("1", (2000, 2000)).save(tmp_path / "folder" / name)
    with pytest.raises(ValueError, match=r"folder is too large: .* 12000000 pixels, more than the 10000000"):
        read_frames(tmp_path / "folder", 3)
    assert len(read_frames(tmp_path / "folder", 2)) == 2


def movie(path: Path, width: int, height: int) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")] * 3
        container.mux([packet for frame in [*frames, None] for packet in stream.encode(frame)])
    return path


def test_a_video_of_huge_frames_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = movie(tmp_path / "a.mp4", 64, 48)
    assert len(read_frames(path, 2)) == 2
    monkeypatch.setattr("llava.data.video_files.MOST_FRAME_PIXELS", 3000)
    with pytest.raises(ValueError, match=r"a.mp4 is too large: its frames are 64 x 48, 3072 pixels; at most 3000 are"):
        read_frames(path, 2)
    monkeypatch.setattr("llava.data.video_files.check_frame", lambda *_: None)  # a container that lies about its frames
    with pytest.raises(ValueError, match=r"a.mp4 cannot be read"):
        read_frames(path, 2)


def test_a_list_of_files_that_is_called_a_video_leads_nowhere(tmp_path: Path) -> None:
    movie(tmp_path / "secret.mp4", 64, 48)
    for text in (
        "ffconcat version 1.0\nfile secret.mp4\n",
        f"#EXTM3U\n#EXTINF:5,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n",
    ):
        (tmp_path / "list.mp4").write_text(text)
        with pytest.raises(ValueError, match=r"list.mp4 cannot be read"):
            read_frames(tmp_path / "list.mp4", 2)


def test_garbage_that_is_called_a_video_is_said(tmp_path: Path) -> None:
    pytest.importorskip("av")
    for content in (b"", b"\0" * 5000, b"\x1aE\xdf\xa3" + bytes(range(256)) * 9, b"\0\0\0\x18ftypmp42" + b"\xff" * 999):
        for name in ("clip.mp4", "clip.mkv", "clip.gif"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(BadImageError, match=f"{name} cannot be read"):
                read_frames(tmp_path / name, 2)


# === Addresses ===


def test_addresses_are_fetched_only_where_that_is_allowed() -> None:
    with BytesServer(lambda _: reply(saved("PNG"))) as server:
        place = f"{server.url}/a.png"
        with pytest.raises(ValueError, match=r"a.png' cannot be read: addresses are not fetched here; give a path"):
            read_image(place)
        with pytest.raises(ValueError, match=r"a.png' cannot be read: .*only public hosts are accepted"):
            read_image(place, addresses="public")
        assert server.requests == []
        assert read_image(place, addresses="any").size == open_image(place, "any").size == (16, 12)
        with pytest.raises(ValueError, match=r"addresses is 'all'; accepted are none, public, any"):
            read_image(place, addresses="all")


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (reply(saved("PNG"), "404 Not Found"), "answered with status 404, not 200"),
        (reply(saved("PNG"), "206 Partial Content"), "answered with status 206, not 200"),
        (reply(b"", "302 Found", location="http://169.254.169.254/"), "only public hosts are accepted here"),
        (reply(b"", "302 Found", location="/again"), "redirects more than 3 times"),
        (reply(b"", "302 Found", location="file:///etc/passwd"), "begins with 'file'"),
        (reply(b"<html>"), "it is not in one of the accepted formats"),
        (reply(b""), "it is not in one of the accepted formats"),
        (reply(b"x", content_length=str(2**30)), "sends more than 32 MiB"),
        (reply(BOMBS["wide.png"]), "3600000000 pixels"),
    ],
)
def test_what_an_address_gives_is_judged(sent: list[bytes | float], said: str) -> None:
    with BytesServer(lambda _: sent) as server, pytest.raises(ValueError, match=f"a.png' .*{said}"):
        read_image(f"{server.url}/a.png", addresses="any")


# === Damage of any kind ===


def samples() -> dict[str, bytes]:
    """An image of every accepted format, in its modes and with what its format carries along."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    color, exif = Image.fromarray(noise[..., :3]), Image.Exif()
    exif[0x0112] = 6
    frames = [color, color.rotate(90), color.rotate(180)]
    found = {
        "jpeg": saved("JPEG", color, exif=exif),
        "progressive": saved("JPEG", color, progressive=True),
        "cmyk": saved("JPEG", color.convert("CMYK")),
        "grey": saved("JPEG", color.convert("L")),
        "mpo": saved("MPO", color, save_all=True, append_images=frames[1:]),
        "png": saved("PNG", color, exif=exif),
        "rgba": saved("PNG", Image.fromarray(noise)),
        "bit": saved("PNG", color.convert("1")),
        "palette": saved("PNG", color.convert("P"), transparency=3),
        "la": saved("PNG", color.convert("LA")),
        "deep": saved("PNG", Image.fromarray(noise[..., 0].astype(np.uint16) * 257)),
        "apng": saved("PNG", color, save_all=True, append_images=frames[1:]),
        "webp": saved("WEBP", color, exif=exif),
        "moving": saved("WEBP", color, save_all=True, append_images=frames[1:]),
        "gif": saved("GIF", color),
        "frames": saved("GIF", color, save_all=True, append_images=frames[1:]),
        "bmp": saved("BMP", color),
        "tiff": saved("TIFF", color, exif=exif),
        "float": saved("TIFF", Image.fromarray(noise[..., 0].astype(np.float32))),
        "ints": saved("TIFF", Image.fromarray(noise[..., 0].astype(np.int32))),
        "ppm": saved("PPM", color),
        "plain": b"P3 2 2 255 " + b"1 2 3 " * 4,
        "pbm": saved("PPM", color.convert("1")),
        "pfm": b"Pf 2 2 -1.0\n" + bytes(16),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        found[compression] = saved("TIFF", color, compression=compression)
    return found


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut out, doubled, zeroed, or the end cut off."""
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(min(len(damaged), chance.choice((40, 200, 10**9)))) if damaged else 0
        match chance.randrange(7):
            case 0:
                damaged[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                damaged[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
            case 2:
                del damaged[at : at + chance.randrange(1, 30)]
            case 3:
                damaged[at:at] = damaged[at : at + chance.randrange(1, 60)]
            case 4:
                damaged[at : at + 1] = bytes([damaged[at] ^ 1 << chance.randrange(8)]) if damaged else b""
            case 5:
                damaged[at : at + 2] = struct.pack("<H", chance.randrange(65536))
            case _:
                del damaged[max(at, 20) :]
    return bytes(damaged)


def read_everyhow(path: Path, ratio: str) -> list[str]:
    """What is said of a file by every reader; anything but a sentence is raised."""
    said = []
    clip, model = processor(), SimpleNamespace(image_aspect_ratio=ratio, max_position_embeddings=999)
    for opening in ("upright", "llava"):
        try:
            preprocess_image(open_rgb(path, opening), clip, ratio)
        except (BadImageError, ImageLimitError) as error:
            said.append(str(error))
    for show in (
        lambda: process_images([open_image(str(path))], clip, model),
        lambda: read_frames(path.rename(path.with_suffix(".gif")), 2),
    ):
        try:
            show()
        except ValueError as error:
            said.append(str(error))
    path.with_suffix(".gif").rename(path)
    check_images([(str(path.parent), path.name)], CheckSettings(aspect_ratio=ratio))
    return said


def fuzz(folder: Path, count: int, seed: int) -> tuple[int, int]:
    """Mutate images and read them; returns how many files were read somehow and how many sentences there were."""
    chance, kinds = random.Random(seed), samples()
    names, sentences = list(kinds), 0
    for number in range(count):
        path = folder / "image.bin"
        path.write_bytes(mutated(kinds[names[number % len(names)]], chance))
        for sentence in read_everyhow(path, chance.choice(("pad", "square"))):
            assert sentence.isprintable() and len(sentence) < 1200, sentence
            assert "image.bin" in sentence or "image.gif" in sentence or sentence.startswith("An image"), sentence
            sentences += 1
    return count, sentences


def test_damaged_images_of_every_format_give_sentences(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    _, sentences = fuzz(tmp_path, 140, 12)
    assert sentences > 100


def test_a_harness_is_told_about_images_in_sentences(tmp_path: Path) -> None:
    """Harnesses hand over images as Pillow opened them, which are decoded here."""
    (tmp_path / "cut.png").write_bytes(saved("PNG", Image.effect_noise((99, 99), 50))[:2000])
    config = SimpleNamespace(image_aspect_ratio="pad")
    inputs = LlavaInputs(config, byte_level(), processor(), "v1")
    for image, said in (
        (Image.open(tmp_path / "cut.png"), "cannot be read"),
        (Image.new("1", (20_000, 1)), "is too large: 20000 x 1 become 400000000 pixels"),
    ):
        with image, pytest.raises(BadImageError, match=f"An image of a question {said}"):
            media_of(Prompt("What?", (image,)), inputs)
