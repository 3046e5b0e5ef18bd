"""Inputs, positions and logits of Qwen2.5-VL against transformers' own processor and model, with videos."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_qwen import write_qwen
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from transformers.video_utils import VideoMetadata

from llava.checkpoints.opening import Opened, open_model
from llava.data.check.check_settings import CheckSettings
from llava.data.check.videos import check_videos
from llava.data.families import family_of
from llava.data.frames import Frames, FrameSampling
from llava.data.media_limits import MediaLimits

SIZES = {"a": (70, 40), "b": (20, 20), "c": (31, 90), "v": (48, 32), "w": (33, 50)}
CONVERSATIONS: dict[str, list[str]] = {
    "text alone": ["What digit is red?", "red three"],
    "an image in front": ["<a>What digit is red?", "red three"],
    "images between words": ["Is<a>or<b>blue?", "no", "And<c>?", "seven"],
    "an image in the second turn": ["Hello", "polite", "<c>How many?", "nine"],
    "a video": ["<v>Where is the seven?", "top left"],
    "a video and images": ["<a>and<v>Where?", "seven", "<w><b>Which colour?", "blue"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen(tmp_path_factory.mktemp("qwen"), dtype=torch.float64)


@pytest.fixture(scope="module")
def own(folder: Path) -> Opened:
    return open_model(str(folder), device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float64).eval()


def inputs_of(own: Opened, **sampling: Any) -> Any:
    sampled = FrameSampling(**sampling)
    family = family_of(own.model.config)
    return family(own.model.config, own.tokenizer, own.preprocessor, "chat_template", sampling=sampled)


@lru_cache
def picture(name: str, frame: int = 0) -> Image.Image:
    draw = np.random.default_rng([ord(name), frame])
    return Image.fromarray(draw.integers(0, 255, (*SIZES[name][::-1], 3), dtype=np.uint8))


def frames(name: str) -> Frames:
    """Six of 50 frames, at 25 a second; five of 31 at 10."""
    numbers, total, fps = ((0, 8, 16, 25, 33, 41), 50, 25.0) if name == "v" else ((0, 6, 12, 18, 24), 31, 10.0)
    return Frames(tuple(picture(name, number) for number in numbers), numbers, total, fps)


def marks(turn: str) -> list[str]:
    return [name for place, name in enumerate(turn) if turn[place - 1 : place + 2] == f"<{name}>"]


def as_ours(inputs: Any, turns: list[str], ask: bool) -> Any:
    """A sample from the turns as LLaVA's records have them: a line break behind marks, which is left out."""
    media, written = [], []
    for turn in turns:
        for name in marks(turn):
            kind = "video" if name in "vw" else "image"
            media += inputs.video(frames(name), "A video") if kind == "video" else [inputs.image(picture(name), "It")]
            turn = turn.replace(f"<{name}>", f"<{kind}>\n", 1)
        written.append(inputs.marked(turn) if "\n" in turn else turn)
    return inputs.prompt(written[:-1], media) if ask else inputs.conversation(written, media)


def as_stock(processor: Any, several: list[list[str]], ask: bool) -> Any:
    """What transformers' processor makes of the same conversations, padded on the left."""
    texts, images, videos, metadata = [], [], [], []
    for turns in several:
        messages = []
        for number, turn in enumerate(turns[:-1] if ask else turns):
            parts: list[dict[str, str]] = []
            for piece in turn.replace("<", "\0<").replace(">", ">\0").split("\0"):
                name = piece[1:2] if piece.startswith("<") else ""
                if name and name in "vw":
                    parts.append({"type": "video"})
                    shown = frames(name)
                    videos.append(torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in shown]))
                    metadata.append(
                        VideoMetadata(total_num_frames=shown.total, fps=shown.fps, frames_indices=[*shown.numbers])
                    )
                elif name:
                    parts.append({"type": "image"})
                    images.append(picture(name))
                elif piece:
                    parts.append({"type": "text", "text": piece})
            messages.append({"role": ("user", "assistant")[number % 2], "content": parts})
        texts.append(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
    more: dict[str, Any] = {}
    if videos:
        more = {"videos": videos, "video_metadata": metadata, "do_sample_frames": False}
    return processor(text=texts, images=images or None, padding=True, padding_side="left", return_tensors="pt", **more)


@pytest.mark.parametrize("ask", [True, False], ids=["asked", "answered"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_is_what_the_stock_processor_and_model_make_of_it(
    name: str, ask: bool, folder: Path, own: Opened, stock: Any
) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    inputs, turns = inputs_of(own), CONVERSATIONS[name]
    ours, theirs = inputs.batch([as_ours(inputs, turns, ask)]), as_stock(processor, [turns], ask)
    check_equal(own, stock, ours, theirs)


def check_equal(own: Opened, stock: Any, ours: Any, theirs: Any) -> None:
    ours = {key: value for key, value in ours.items() if key not in ("labels", "query_mask")}
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value.to(ours[key].dtype), atol=0, rtol=0, msg=key)
    rope = {key: value for key, value in theirs.items() if not key.startswith(("pixel", "query"))}
    positions = stock.model.get_rope_index(**rope)[0]
    found = own.model.rotary_positions(ours["input_ids"], ours["attention_mask"], ours)
    valid = theirs["attention_mask"].bool()
    assert torch.equal(found[:, valid], positions[:, valid])
    with torch.no_grad():
        expected = stock(**theirs).logits[valid]
        for layouts in (None, True):  # transformers' forward, and the staged one, which training takes
            torch.testing.assert_close(
                own.model(**ours, output_layouts=layouts).logits[valid], expected, atol=1e-9, rtol=0
            )


def test_a_batch_is_what_the_stock_processor_makes_of_all(folder: Path, own: Opened, stock: Any) -> None:
    processor, inputs = AutoProcessor.from_pretrained(folder), inputs_of(own)
    every = list(CONVERSATIONS.values())
    ours = inputs.batch([as_ours(inputs, turns, True) for turns in every])
    check_equal(own, stock, ours, as_stock(processor, every, True))


@pytest.mark.parametrize("compression", ["none", "both"])
def test_a_batch_of_all_kinds_answers_as_each_by_itself(compression: str, own: Opened) -> None:
    both = {
        "v2v": {"dominant": 0.4, "contextual": 2, "score": "received", "cluster_width": 2},
        "t2v": {"layers": [1, 2], "keep": [0.5, 0.25], "queries": "text", "positions": "original"},
    }
    budget = both if compression == "both" else "none"
    inputs = inputs_of(own)
    samples = [as_ours(inputs, turns, True) for turns in CONVERSATIONS.values()]

    def answered(some: list[Any]) -> list[list[int]]:
        batch = inputs.batch(some)
        del batch["labels"]
        given = own.model.generate(**batch, compression=budget, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        return given[:, batch["input_ids"].shape[1] :].tolist()

    assert answered(samples) == [answered([sample])[0] for sample in samples]


def test_positions_in_time_are_not_rounded_by_what_a_training_casts_its_tensors_to(own: Opened) -> None:
    """DeepSpeed casts every tensor of real numbers in a batch to bfloat16 where the run is in it."""
    inputs = inputs_of(own)
    sample = as_ours(inputs, CONVERSATIONS["a video and images"], False)
    asked, trained = inputs.batch([sample]), inputs.collator(1)([sample])
    given = {
        name: value.bfloat16() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in trained.items()
        if name in inputs.arguments
    }
    expected = own.model.rotary_positions(asked["input_ids"], asked["attention_mask"], asked)
    assert torch.equal(own.model.rotary_positions(given["input_ids"], given["attention_mask"], given), expected)
    own.model.train()
    try:
        loss = own.model(**{name: trained[name] for name in given}).loss
        torch.testing.assert_close(loss, own.model(**asked).loss, atol=1e-6, rtol=0)
    finally:
        own.model.eval()


def test_frames_are_those_that_the_processor_takes_of_so_many_a_second(folder: Path, own: Opened) -> None:
    processor = AutoProcessor.from_pretrained(folder).video_processor
    for total in (2, 3, 5, 24, 50, 301, 1800):
        for fps in (0.5, 1.0, 23.976, 25.0, 60.0):
            metadata = VideoMetadata(total_num_frames=total, fps=fps)
            for asked, given in (({}, {"fps": 2}), ({"fps": 1.0, "most": 6}, {"fps": 1, "max_frames": 6})):
                expected = processor.sample_frames(metadata, **given).tolist()
                found = inputs_of(own, **asked).frame_numbers(total, fps)
                assert found == [number for number in expected if number < total], (total, fps, asked)
                assert len(found) % 2 == 0 and found == sorted(set(found))
    assert inputs_of(own).frame_numbers(1, 25.0) == [0]
    assert inputs_of(own).frame_numbers(6, None) == [0, 1, 2, 3, 4, 5], "nothing says how fast a folder of frames is"
    assert inputs_of(own, count=4).frame_numbers(100, 25.0) == [0, 25, 50, 75]


def test_limits_below_a_group_of_frames_leave_one_group(own: Opened) -> None:
    assert inputs_of(own, most=1).frame_numbers(50, 25.0) == [0, 25]
    limited = inputs_of(own)
    for limits in ({"video_max_frames": 1, "video_min_frames": 1}, {"video_min_frames": 1, "video_fps": 0.1}):
        limited.processor = MediaLimits(**limits).applied_to(own.preprocessor)
        assert limited.frame_numbers(50, 25.0) == [0, 25]


def test_a_video_of_one_frame_and_frames_of_several_sizes(own: Opened) -> None:
    inputs = inputs_of(own)
    (shown,) = inputs.video(Frames((picture("v"),), (0,), 1, 25.0), "A video")
    assert shown.inputs["video_grid_thw"].tolist()[0][0] == 1
    with pytest.raises(ValueError, match=r"A video has frames of different sizes \(20x20, 70x40\)"):
        inputs.video(Frames((picture("a"), picture("b")), (0, 1), 2, 25.0), "A video")
    assert inputs.blank("video").kind == "video"


def test_the_data_check_has_the_processor_look_at_the_frames_that_are_shown(folder: Path, tmp_path: Path) -> None:
    for name, sizes in (("good", ["v"] * 6), ("mixed", ["v", "w", "v"]), ("late", ["v"] * 6)):
        (tmp_path / name).mkdir()
        for number, size in enumerate(sizes):
            picture(size).save(tmp_path / name / f"{number}.png")
    (tmp_path / "late/5.png").write_bytes(b"cut off")  # of six frames at equal distances two would pass it over
    own = {"template": "chat_template", "tokenizer": str(folder), "counted_frames": False, "frames": 2}
    files = [(str(tmp_path), name) for name in ("good", "mixed", "late")]
    good, mixed, late = check_videos(files, CheckSettings(**own))
    assert good == () and [finding.kind for finding in (*mixed, *late)] == ["video_refused", "video_broken"]
    assert mixed[0].detail.startswith("mixed has frames of different sizes (33x50, 48x32)")
    assert check_videos(files, CheckSettings(**own, images="header")) == [(), (), ()]
