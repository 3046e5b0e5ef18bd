"""Inputs and logits of Qwen3-VL and LLaVA-OneVision against transformers' own processors and models, with videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_qwen2_5_vl import CONVERSATIONS, as_ours, as_stock, inputs_of, marks, picture
from tiny_onevision import LINES, PINPOINTS, SPACED, write_onevision
from tiny_qwen3 import write_qwen3
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration, Qwen3VLForConditionalGeneration
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches
from transformers.video_utils import VideoMetadata

from llava.checkpoints.opening import Opened, open_model
from llava.data.frames import Frames
from llava.data.media_limits import MediaLimits

BOTH = {
    "v2v": {"dominant": 0.3, "contextual": 2, "score": "received", "cluster_width": 2},
    "t2v": {"layers": [1, 2], "keep": [0.5, 0.25], "queries": "text"},
}
FAMILIES = {
    "qwen3_vl": (write_qwen3, Qwen3VLForConditionalGeneration, {}),
    "spaced": (write_onevision, LlavaOnevisionForConditionalGeneration, {"template": SPACED}),
    "lines": (write_onevision, LlavaOnevisionForConditionalGeneration, {"template": LINES}),
}


class Family:
    """A folder, what this package opens of it, and what transformers does."""

    def __init__(self, name: str, folder: Path) -> None:
        write, stock, options = FAMILIES[name]
        self.name = name
        self.folder = write(folder, dtype=torch.float64, **options)
        self.own: Opened = open_model(str(folder), device="cpu", dtype=torch.float64)
        self.stock: Any = stock.from_pretrained(folder, dtype=torch.float64).eval()
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.inputs = inputs_of(self.own)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


IN_FRONT: dict[str, list[str]] = {
    "text alone": ["What digit is red?", "red three", "And blue?", "two"],
    "an image": ["<a>What digit is red?", "red three"],
    "several images": ["<a><b>Which?", "no", "<c>And?", "seven"],
    "an image in the second turn": ["Hello", "polite", "<c>How many?", "nine"],
    "a video": ["<v>Where is the seven?", "top left"],
    "an image and a video": ["<a><v>Where?", "seven", "<w>Which colour?", "blue"],
}
"""Media in front of the words, images before videos, as LLaVA-OneVision's template has them."""


def conversations(family: Family) -> dict[str, list[str]]:
    return CONVERSATIONS if family.name == "qwen3_vl" else IN_FRONT


def five(name: str) -> Frames:
    """Five frames, for models that take as many of every video."""
    numbers = (0, 6, 12, 18, 24)
    return Frames(tuple(picture(name, number) for number in numbers), numbers, 31, 10.0)


def ours_of(family: Family, turns: list[str], ask: bool) -> Any:
    if family.name == "qwen3_vl":
        return as_ours(family.inputs, turns, ask)
    media, written = [], []
    for turn in turns:
        for name in marks(turn):
            kind = "video" if name in "vw" else "image"
            inputs = family.inputs
            media += inputs.video(five(name), "A video") if kind == "video" else [inputs.image(picture(name), "It")]
            turn = turn.replace(f"<{name}>", f"<{kind}>\n", 1)
        written.append(family.inputs.marked(turn) if "\n" in turn else turn)
    return family.inputs.prompt(written[:-1], media) if ask else family.inputs.conversation(written, media)


def theirs_of(family: Family, several: list[list[str]], ask: bool) -> dict[str, Any]:
    """What the stock processor makes; of LLaVA-OneVision, that of a conversation's images together."""
    if family.name == "qwen3_vl":
        return dict(as_stock(family.processor, several, ask))
    texts, images, videos = [], [], []
    for turns in several:
        messages, shown = [], []
        for number, turn in enumerate(turns[:-1] if ask else turns):
            names = marks(turn)
            parts = [{"type": "video" if name in "vw" else "image"} for name in names]
            parts.append({"type": "text", "text": turn.rpartition(">")[2]})
            messages.append({"role": ("user", "assistant")[number % 2], "content": parts})
            shown += [picture(name) for name in names if name not in "vw"]
            videos += [[np.array(one) for one in five(name)] for name in names if name in "vw"]
        images += [shown] if shown else []
        texts.append(family.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
    made = family.processor(
        text=texts,
        images=images or None,
        videos=[torch.from_numpy(np.stack(video)).permute(0, 3, 1, 2) for video in videos] or None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    return dict(made)


def check_equal(family: Family, ours: Any, theirs: dict[str, Any]) -> None:
    ours = {key: value for key, value in ours.items() if key not in ("labels", "query_mask")}
    given = dict(theirs)
    if "image_sizes" in theirs:  # theirs are padded to as many crops
        counts = [len(image) for image in theirs["pixel_values"]]
        together = theirs["batch_num_images"].tolist()
        alone = [count == 1 for count in together for _ in range(count)]
        counts = [
            image_size_to_num_patches(size, PINPOINTS, 56) if cut else 1
            for size, cut in zip(theirs["image_sizes"], alone, strict=True)
        ]
        pixels = [image[:count] for image, count in zip(theirs["pixel_values"], counts, strict=True)]
        theirs = theirs | {"pixel_values": torch.cat(pixels)}
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value.to(ours[key].dtype), atol=0, rtol=0, msg=key)
    valid = theirs["attention_mask"].bool()
    with torch.no_grad():
        expected = family.stock(**given).logits[valid]
        for layouts in (None, True):  # transformers' forward, and the staged one, which training takes
            got = family.own.model(**ours, output_layouts=layouts).logits[valid]
            torch.testing.assert_close(got, expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("ask", [True, False], ids=["asked", "answered"])
def test_a_conversation_is_what_the_stock_processor_and_model_make_of_it(family: Family, ask: bool) -> None:
    for turns in conversations(family).values():
        ours = family.inputs.batch([ours_of(family, turns, ask)])
        check_equal(family, ours, theirs_of(family, [turns], ask))


def test_a_batch_is_what_the_stock_processor_makes_of_all(family: Family) -> None:
    every = list(conversations(family).values())
    ours = family.inputs.batch([ours_of(family, turns, True) for turns in every])
    check_equal(family, ours, theirs_of(family, every, True))


@pytest.mark.parametrize("compression", ["none", "both"])
def test_a_batch_of_all_kinds_answers_as_each_by_itself(compression: str, family: Family) -> None:
    budget = BOTH if compression == "both" else "none"
    samples = [ours_of(family, turns, True) for turns in conversations(family).values()]

    def answered(some: list[Any]) -> list[list[int]]:
        batch = family.inputs.batch(some)
        del batch["labels"]
        given = family.own.model.generate(
            **batch, compression=budget, max_new_tokens=6, min_new_tokens=6, do_sample=False
        )
        return given[:, batch["input_ids"].shape[1] :].tolist()

    assert answered(samples) == [answered([sample])[0] for sample in samples]


def test_frames_of_qwen3_are_those_that_its_processor_takes(family: Family) -> None:
    if family.name != "qwen3_vl":
        return
    processor = family.processor.video_processor
    for total in (2, 3, 5, 24, 50, 301, 1800):
        for fps in (0.5, 1.0, 23.976, 25.0, 60.0):
            metadata = VideoMetadata(total_num_frames=total, fps=fps)
            expected = processor.sample_frames(metadata, fps=2).tolist()
            assert family.inputs.frame_numbers(total, fps) == expected, (total, fps)
            most = inputs_of(family.own, fps=1.0, most=6).frame_numbers(total, fps)
            asked = processor.sample_frames(metadata, fps=1.0)
            assert most == (asked if len(asked) <= 6 else processor.sample_frames(metadata, num_frames=6)).tolist()
    assert inputs_of(family.own, count=4).frame_numbers(100, 25.0) == [0, 33, 66, 99]
    assert family.inputs.frame_numbers(6, None) == [0, 1, 2, 3, 4, 5]
    assert family.inputs.frame_numbers(1, 25.0) == [0, 0]
    assert inputs_of(family.own, most=1).frame_numbers(50, 25.0) == [0, 49], "one frame is fewer than a group"
    limited = inputs_of(family.own)
    limited.processor = MediaLimits(video_min_frames=1, video_fps=0.1).applied_to(family.processor)
    assert limited.frame_numbers(50, 25.0) == [0, 49]
    (shown,) = family.inputs.video(Frames((picture("v"),) * 2, (0, 0), 1, 25.0), "A video")
    assert shown.inputs["video_grid_thw"].tolist()[0][0] == 1
    assert family.inputs.blank("video").kind == "video"


def test_sizes_of_onevision_are_those_of_its_processor(family: Family) -> None:
    """Eighteen sizes, from a pixel to a ribbon."""
    if family.name == "qwen3_vl":
        return
    sizes = [(1, 1), (56, 56), (57, 55), (112, 56), (56, 112), (112, 112), (200, 30), (30, 200), (37, 1999), (640, 480)]
    sizes += [(480, 640), (1999, 37), (113, 111), (13, 12), (336, 336), (1000, 100), (75, 150), (99, 98)]
    for size in sizes:
        image = Image.new("RGB", size, (9, 99, 199))
        made = family.processor(images=[[image]], text=["<image>"], return_tensors="pt")
        shown = family.inputs.image(image, "It")
        assert list(shown.ids) == made["input_ids"][0].tolist(), size
        assert torch.equal(shown.inputs["pixel_values"], made["pixel_values"][0]), size
