"""Videos on the page for the families whose processors need torchvision: each frame over the tokens it became."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from test_traced_media import followed, redness
from tiny_backbones import WRITERS

from llava.checkpoints.opening import open_model
from llava.data.frames import Frames
from llava.inference.chat import Chat


@pytest.mark.parametrize("budget", ["none", {"v2v": {"dominant": 5, "contextual": 2}}])
@pytest.mark.parametrize("family", ["llava-onevision", "qwen2.5-vl", "qwen3-vl"])
def test_a_spot_that_moves_is_seen_where_it_is_in_each_frame(family: str, budget: object, tmp_path: Path) -> None:
    model, processor, tokenizer, _ = open_model(str(WRITERS[family](tmp_path)), device="cpu")
    chat = Chat(model, tokenizer, processor, compression=budget, max_new_tokens=1, do_sample=False)
    frames = [Image.new("RGB", (64, 64), "#777777") for _ in range(4)]
    for number, frame in enumerate(frames):
        frame.paste("#ee0000", (12 * number, 40 - 10 * number, 12 * number + 16, 56 - 10 * number))
    still = Image.new("RGB", (120, 61), "#777777")
    found = followed(chat, still, Frames(tuple(frames), tuple(range(4)), 4, 2.0))
    clip = [number for number, name in enumerate(found.names) if name.startswith("video 2, frame ")]
    shown_once = 1 if family == "llava-onevision" else 2  # Qwen sees two frames at a time, and the page the first
    assert len(clip) == 4 // shown_once and clip[-1] == len(found.names) - 1
    for place, number in enumerate(clip):
        seen, expected = redness(found.pictures[number]), redness(frames[place * shown_once])
        assert abs(seen[0] - expected[0]) < 0.05 and abs(seen[1] - expected[1]) < 0.05
        tokens = {token for token in found.units[number].tokens if token >= 0}
        assert len(tokens) == (7 if budget != "none" else found.units[number].rows * found.units[number].columns)
        assert max(tokens) < found.tokens
