"""One opener of images: what a photo looks like is the same in training, evaluation, chat and the harnesses."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folder import write_model
from tiny_text import byte_level, llava_inputs
from transformers import CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from video_frames import read_frames

from llava.checkpoints.transformers_format import config_there
from llava.common.image_opening import as_rgb, opening_of
from llava.compression.config import CompressionConfig
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.families.llava import LlavaInputs
from llava.data.images import BadImageError, image_path, open_picture, open_rgb
from llava.data.records import Record
from llava.eval.benchmarks.questions import Question
from llava.eval.harnesses.harness import prompt_of
from llava.eval.runner.answer_file import AnswerFile
from llava.eval.runner.jobs import EvaluatedModel, Job
from llava.inference.batches import Preparer, media_of
from llava.inference.engine import ModelSpec
from llava.inference.generation import GenerationSettings
from llava.inference.typed_images import open_image, read_image
from llava.mm_utils import preprocess_image, process_images
from llava.model.llava_config import LlavaConfig
from llava.model.splice import PlanSettings
from llava.serve.cli import Session, _parser

ORIENTATION = 0x0112
SIDE = 8


def corner_photo() -> np.ndarray:
    """Four quarters of different colours [8, 16, 3], so that every turn and mirror image differs."""
    photo = np.zeros((8, 16, 3), dtype=np.uint8)
    photo[:4, :8], photo[:4, 8:], photo[4:, :8] = (250, 10, 10), (10, 250, 10), (10, 10, 250)
    return photo


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera stores an upright picture under each EXIF orientation; written down from the EXIF standard."""
    flipped_over = upright.transpose(1, 0, 2)
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: flipped_over,
        6: flipped_over[::-1],  # row 0 of what is stored is the right-hand side of the picture
        7: flipped_over[::-1, ::-1],
        8: flipped_over[:, ::-1],
    }[orientation]


def save(path: Path, pixels: np.ndarray, orientation: int, **options: Any) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif, **options)
    return path


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, Path]:
    """Files that today's cameras, scanners and drawing programs write."""
    lying = save(tmp_path / "lying.png", stored(corner_photo(), 6), 6)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)).save(deep)
    glass = tmp_path / "glass.png"
    Image.fromarray(np.dstack([corner_photo(), np.full((8, 16), 0, np.uint8)])).save(glass)
    return {"lying": lying, "deep": deep, "glass": glass}


# === The rules ===


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
def test_a_photo_stands_upright_whatever_its_camera_marked(tmp_path: Path, orientation: int, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"photo.{suffix}", stored(corner_photo(), orientation), orientation, **options)
    assert np.array_equal(open_rgb(path), corner_photo())


def test_a_rotated_jpeg_is_upright_and_llavas_is_not(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.jpg", stored(corner_photo(), 6), 6, quality=95, subsampling=0)
    assert open_rgb(path).size == (16, 8) and open_rgb(path, "llava").size == (8, 16)
    assert np.abs(np.asarray(open_rgb(path), dtype=int) - corner_photo()).max() < 40
    assert np.array_equal(open_rgb(path, "llava"), Image.open(path).convert("RGB"))


def test_a_rotation_mark_is_applied_once(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.png", stored(corner_photo(), 6), 6)
    once = open_rgb(path)
    assert np.array_equal(as_rgb(once), once) and np.array_equal(as_rgb(open_rgb(path, "llava")), Image.open(path))
    assert np.array_equal(as_rgb(Image.open(path).convert("RGB")), corner_photo())


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b""])
def test_damaged_metadata_keeps_nobody_from_seeing_the_pixels(tmp_path: Path, exif: bytes) -> None:
    Image.fromarray(corner_photo()).save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(open_rgb(tmp_path / "photo.png"), corner_photo())


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "TIFF of 32 bits", "I;16B"])
def test_sixteen_bit_grey_is_neither_white_nor_clipped(tmp_path: Path, kind: str) -> None:
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    path = tmp_path / "scan"
    if kind == "TIFF of 32 bits":
        Image.fromarray(values.astype(np.int32)).save(path, "TIFF")
    elif kind == "PPM":
        path.write_bytes(b"P5 16 16 65535\n" + values.astype(">u2").tobytes())
    elif kind == "I;16B":
        Image.frombytes("I;16B", (16, 16), values.astype(">u2").tobytes()).save(path, "TIFF")
    else:
        Image.fromarray(values).save(path, kind)
    assert np.array_equal(np.asarray(open_rgb(path))[..., 0], np.arange(256).reshape(16, 16))


def test_a_dark_sixteen_bit_file_stays_dark(tmp_path: Path) -> None:
    """Its format says what white is, so its brightest value has no say."""
    dark = np.full((4, 4), 200, dtype=np.uint16)
    Image.fromarray(dark).save(tmp_path / "dark.png")
    (tmp_path / "dark.pgm").write_bytes(b"P5 4 4 65535\n" + dark.astype(">u2").tobytes())
    for name in ("dark.png", "dark.pgm"):
        assert open_rgb(tmp_path / name).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("F", [0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]),
        ("F", [0.0, 7.0, 200.0, 255.0], [0, 7, 200, 255]),
        ("F", [0.0, 257.0, 32896.0, 65535.0], [0, 1, 128, 255]),
        ("F", [-1.0, 0.0, 0.5, 1.0], [0, 128, 191, 255]),
        ("F", [float("nan"), 0.0, 1.0, float("inf")], [0, 0, 255, 255]),
        ("F", [-3.0, -3.0, -3.0, -3.0], [0, 0, 0, 0]),
        ("I", [0, 7, 200, 255], [0, 7, 200, 255]),
        ("I", [0, 256, 32768, 65535], [0, 1, 128, 255]),
        ("I", [0, 2**23, 2**30, 2**31 - 1], [0, 1, 128, 255]),
        ("I", [-100, 0, 50, 100], [0, 128, 191, 255]),
    ],
)
def test_deep_grey_spreads_over_the_range_that_holds_it(mode: str, values: list, expected: list[int]) -> None:
    kind = np.float32 if mode == "F" else np.int32
    image = Image.fromarray(np.array([values], dtype=kind))
    assert image.mode == mode
    assert np.asarray(as_rgb(image))[0, :, 0].tolist() == expected


def see_through(mode: str) -> Image.Image:
    """Two pixels: opaque red (or black), and one that is transparent over the same colour."""
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([200, 0, 0, 200, 0, 0])
        image.putdata([0, 1])
        image.info["transparency"] = 1
        return image
    if mode == "I;16":
        image = Image.fromarray(np.array([[0x1234, 0x2345]], dtype=np.uint16))
        image.info["transparency"] = 0x2345
        return image
    if mode in ("L", "RGB"):
        colours = {"L": (10, 20), "RGB": ((200, 0, 0), (0, 200, 0))}[mode]
        image = Image.new(mode, (2, 1))
        image.putdata(colours)
        image.info["transparency"] = colours[1]
        return image
    image = Image.new("RGBA", (2, 1))
    image.putdata([(200, 0, 0, 255), (200, 0, 0, 0)])
    if mode == "PA":
        with_alpha = Image.new("PA", (2, 1))
        with_alpha.putpalette([200, 0, 0] * 2)
        with_alpha.putalpha(image.getchannel("A"))
        return with_alpha
    return image.convert("LA").convert(mode) if mode in ("LA", "La") else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB", "RGBa", "La", "I;16"])
def test_what_is_transparent_is_white_and_not_black(tmp_path: Path, mode: str) -> None:
    image = see_through(mode)
    opaque, clear = (as_rgb(image).getpixel((x, 0)) for x in (0, 1))
    assert clear == (255, 255, 255) and max(opaque[1:]) < 80
    if mode in ("RGBA", "LA", "P", "L", "RGB", "I;16"):
        image.save(tmp_path / "sheet.png", **({"transparency": image.info["transparency"]} if image.info else {}))
        seen = open_rgb(tmp_path / "sheet.png")
        assert [seen.getpixel((x, 0)) for x in (0, 1)] == [opaque, clear]


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 128)).save(tmp_path / "glass.png")
    assert open_rgb(tmp_path / "glass.png").getpixel((0, 0)) == (255, 127, 127)
    assert open_rgb(tmp_path / "glass.png", "llava").getpixel((0, 0)) == (255, 0, 0)


def test_print_colours_and_first_frames(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    red = open_rgb(tmp_path / "print.jpg").getpixel((4, 4))
    assert red[0] > 240 and max(red[1:]) < 15
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("lime", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert open_rgb(tmp_path / "moving.gif").getpixel((0, 0)) == (0, 255, 0)


def test_unknown_openings_are_refused() -> None:
    with pytest.raises(ValueError, match="'sideways'; accepted are upright, llava"):
        as_rgb(Image.new("RGB", (1, 1)), "sideways")
    with pytest.raises(ValueError, match="'sideways'; accepted are upright, llava"):
        opening_of(SimpleNamespace(image_opening="sideways"))
    with pytest.raises(ValueError, match="'sideways'; accepted are upright, llava"):
        llava_inputs(byte_level(), image_opening="sideways")
    assert opening_of(SimpleNamespace()) == "upright"
    assert opening_of(SimpleNamespace(image_opening="llava")) == "llava"
    assert opening_of(SimpleNamespace(image_opening="llava"), "upright") == "upright"


# === One opener in every program ===


def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def pixels_in_training(path: Path, opening: str) -> torch.Tensor:
    inputs = llava_inputs(byte_level(), processor(), image_aspect_ratio="pad", image_opening=opening)
    records = [Record("a", ("<image>\nx", "y"), (path.name,))]
    return LazySupervisedDataset(records, inputs, DataConfig(500, 4, image_folder=path.parent))[0]["images"][0]


def pixels_in_evaluation(path: Path, config: Any) -> list[torch.Tensor]:
    inputs = LlavaInputs(config, byte_level(), processor(), "v1")
    questions = [Question(1, "x", images=(path,)), Question(2, "x", images=(path.read_bytes(),))]
    return [Preparer(inputs, PlanSettings(4, "last")).sample(question)[0]["images"][0] for question in questions]


def pixels_in_harnesses(path: Path, config: Any) -> list[torch.Tensor]:
    prompt = prompt_of("x", [Image.open(path)])
    return media_of(prompt, LlavaInputs(config, byte_level(), processor(), "v1"))


@pytest.mark.parametrize("opening", ["upright", "llava"])
@pytest.mark.parametrize("name", ["lying", "deep", "glass"])
def test_a_picture_is_the_same_in_training_evaluation_chat_and_harnesses(odd, name: str, opening: str) -> None:
    path = odd[name]
    config = SimpleNamespace(image_opening=opening, image_aspect_ratio="pad", max_position_embeddings=999)
    expected = pixels_in_training(path, opening)
    plain = preprocess_image(Image.open(path).convert("RGB"), processor(), "pad")
    assert torch.equal(expected, plain) is (opening == "llava")
    shown = {
        "evaluation": pixels_in_evaluation(path, config),
        "harness": pixels_in_harnesses(path, config),
        "chat": list(process_images([read_image(str(path), opening)], processor(), config)),
        "raw images in chat": list(process_images([open_image(str(path))], processor(), config)),
        "LLaVA's own way": list(process_images([Image.open(path)], processor(), config)),
    }
    for program, images in shown.items():
        assert all(torch.equal(image, expected) for image in images), program


def test_frames_follow_the_same_rules(odd, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "1.png").write_bytes(odd["lying"].read_bytes())
    assert np.array_equal(read_frames(tmp_path / "frames", 1)[0], corner_photo())
    assert read_frames(tmp_path / "frames", 1, "llava")[0].size == (8, 16)
    assert open_picture(io.BytesIO(odd["lying"].read_bytes()).getvalue(), "llava").size == (8, 16)


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((0, 1, -1, 0), lambda shown: np.rot90(shown, -1)),
        ((-1, 0, 0, -1), lambda shown: np.rot90(shown, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), lambda shown: shown[:, ::-1]),
        ((1, 0, 0, -1), lambda shown: shown[::-1]),
        ((0, 1, 1, 0), lambda shown: shown.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda shown: shown[::-1, ::-1].transpose(1, 0, 2)),
        ((1, 0, 0, 1), lambda shown: shown),
    ],
)
def test_a_phones_video_is_shown_upright_and_llavas_is_not(matrix, turned, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="reads video files")
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height = 64, 32
        for _ in range(3):
            photo = corner_photo().repeat(4, axis=0).repeat(4, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(photo, format="rgb24")))
        container.mux(stream.encode())
    lying = [np.asarray(frame) for frame in read_frames(path, 2)]
    content = path.read_bytes()
    begin = content.index(b"tkhd") + 44  # the track header's matrix, ISO 14496-12
    a, b, c, d = (value << 16 for value in matrix)
    path.write_bytes(content[:begin] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[begin + 36 :])
    assert all(map(np.array_equal, read_frames(path, 5), map(turned, lying + [lying[1]] * 3)))
    assert all(map(np.array_equal, read_frames(path, 2, "llava"), lying))


# === Names ===


def test_absolute_names_inside_the_image_folder_are_read_and_others_refused(tmp_path: Path) -> None:
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    (images / "coco").mkdir(parents=True)
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(images)
    (images / "vg").symlink_to(elsewhere)
    for folder, name in (
        (images, images / "coco" / "a.jpg"),
        (images, images / "coco" / ".." / "a.jpg"),
        (tmp_path / "link", images / "a.jpg"),
        (images, tmp_path / "link" / "coco" / "a.jpg"),
        (images, images / "vg" / "a.jpg"),
    ):
        found = image_path(folder, str(name))
        assert found.is_relative_to(folder) and found.resolve() == name.resolve()
    for name in (elsewhere / "a.jpg", images / ".." / "a.jpg", tmp_path / "images2" / "a.jpg", images, "/a\0.jpg"):
        with pytest.raises(BadImageError, match="does not lie in the image folder"):
            image_path(images, str(name))


def test_a_relative_image_folder_takes_absolute_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "./images/", "."):
        assert image_path(folder, str(tmp_path / "images" / "a.jpg")).resolve() == tmp_path / "images" / "a.jpg"
    assert json.dumps(str(image_path("images", "a.jpg"))) == '"images/a.jpg"'


# === A model is asked as it was trained ===


def test_chat_opens_photos_as_the_model_was_trained_unless_told_otherwise(odd, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())

    def shown(*more: str) -> tuple[int, int]:
        words = ["--model-path", str(model), "--device", "cpu", "--image-file", str(odd["lying"]), *more]
        return Session.open(_parser().parse_args(words)).pending[0].size

    assert shown() == (16, 8) and shown("--image-opening", "llava") == (8, 16)
    (model / "config.json").write_text(json.dumps(config | {"image_opening": "llava"}))
    assert shown() == (8, 16) and shown("--image-opening", "upright") == (16, 8)


def test_answers_belong_to_the_opening_they_were_given_under(odd, tmp_path: Path) -> None:
    none, settings = CompressionConfig.resolve("none"), GenerationSettings(0, max_new_tokens=8)

    def identity(opening: str, *images: Path) -> dict[str, Any]:
        spec = ModelSpec("m", compression=none, dtype="float32", template="v1", image_opening=opening)
        model = EvaluatedModel(spec, "m", {}, none, "none")
        place = tmp_path / "answers.jsonl"
        return Job("m", model, settings, [Question(1, "x", images)], AnswerFile(place), place, "").identity

    assert identity("upright", odd["lying"]) != identity("llava", odd["lying"])
    assert identity("upright") == identity("llava")


def test_the_opening_survives_the_way_to_transformers_format() -> None:
    config = LlavaConfig(image_opening="llava", mm_vision_config=CLIPVisionConfig().to_dict())
    assert config_there(config, {"image": 1, "pad": 2}, 10).image_opening == "llava"
