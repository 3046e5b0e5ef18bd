"""What costs say of every family, from its `config.json` alone, beside what its models do and hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vlms import FAMILIES, FRAMES, OWN, batch, prompt, vlm
from torch.utils.flop_counter import FlopCounterMode

from llava import compress
from llava.compression import schedule
from llava.compression.config import CompressionConfig
from llava.cost.flops import prefill_flops, visual_tokens_per_layer
from llava.cost.seen_media import Medium, seen
from llava.cost.shapes import DecoderShape, ModelShape, model_shape

DUET = {"v2v": {"dominant": 5, "contextual": 2}, "t2v": {"layers": [2, 4], "keep": [0.5, 0.2]}}
# What `tiny_vlms.look` shows by family, kind and number.
SHOWN = [
    (OWN, "image", 0, Medium(56, 56)),
    ("llava", "image", 0, Medium(80, 30)),
    ("llava_next", "image", 0, Medium(112, 112)),
    ("llava_next", "image", 1, Medium(112, 56)),
    ("llava_next", "image", 2, Medium(84, 112)),
    ("video_llava", "image", 0, Medium(56, 56)),
    ("video_llava", "video", 0, Medium(56, 56, FRAMES)),
    ("qwen2_5_vl", "image", 0, Medium(32, 32)),
    ("qwen2_5_vl", "image", 1, Medium(48, 32)),
    ("qwen2_5_vl", "video", 2, Medium(32, 48, 4)),
    ("qwen3_vl", "image", 2, Medium(32, 48)),
    ("qwen3_vl", "video", 0, Medium(32, 32, 4)),
    ("qwen3_vl_moe", "image", 1, Medium(48, 32)),
    ("llava_onevision", "image", 0, Medium(112, 112)),
    ("llava_onevision", "image", 1, Medium(112, 56)),
    ("llava_onevision", "image", 2, Medium(56, 56)),
    ("llava_onevision", "video", 0, Medium(56, 56, FRAMES)),
]


def folder_of(model: Any, folder: Path) -> str:
    """A checkpoint folder with nothing but what says the model's dimensions."""
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    return str(folder)


def row(family: str, kind: str, number: int) -> tuple[dict[str, Any], int]:
    """A batch of one row that shows one medium, and its text tokens."""
    ids, (seen,) = prompt(family, number, (kind,), torch.float32)
    return batch([(ids, [seen])]), len(ids) - ids.count(seen.token)


@pytest.mark.parametrize(("family", "kind", "number", "medium"), SHOWN, ids=str)
def test_tokens_and_flops_are_those_of_the_model(
    family: str, kind: str, number: int, medium: Medium, tmp_path: Path
) -> None:
    """Multiplications counted by torch while the model runs; causal attention is counted there in full."""
    model = vlm(family, torch.float32, attention="eager")
    if family == "qwen3_vl_moe":
        model.set_experts_implementation("batched_mm")  # torch counts no grouped products
    model = model if family == OWN else compress(model, "none")
    decoder, vision = model_shape(folder_of(model, tmp_path), medium)
    whole = seen(vision)
    if family == OWN:
        model.get_vision_tower().config._attn_implementation = "eager"  # torch counts no fused kernel of CPUs
    elif "llava" in family:  # without V2V transformers' models run layers of the tower that they do not use
        depth = model.config.vision_config.num_hidden_layers
        whole = replace(whole, tower=replace(whole.tower, layers=depth))
    for asked in ({}, DUET):
        config = model.fitted(CompressionConfig.resolve(asked))
        call, text = row(family, kind, number)
        tokens = visual_tokens_per_layer(config, decoder.layers, vision)
        with torch.no_grad():
            output = model(**call, compression=config, logits_to_keep=1, output_layouts=True, use_cache=False)
        realised = [layout.visual[0] for layout in output.layouts]
        assert realised == ([tokens[0]] if config.t2v is None else [tokens[0], tokens[2], tokens[4]])
    call, text = row(family, kind, number)
    plain = visual_tokens_per_layer(CompressionConfig(), decoder.layers, vision)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**call, compression="none", logits_to_keep=1, use_cache=False)
    twice = sum(2 * decoder.heads * decoder.head_dim * (text + count) ** 2 for count in plain)
    computed = prefill_flops(plain, text, decoder, whole) + twice
    assert counter.get_total_flops() == pytest.approx(computed, rel=2e-3)
    assert DecoderShape.of(model.config.get_text_config()) == decoder


@pytest.mark.parametrize("family", [OWN, *FAMILIES])
def test_weights_are_those_of_the_model(family: str, tmp_path: Path) -> None:
    model = vlm(family, torch.float32)
    shape = ModelShape.of(folder_of(model, tmp_path))
    assert shape.total == sum(weight.numel() for weight in model.parameters())
    one = compress(model, "none") if family != OWN else model
    projectors = {id(weight): weight for part in one.projectors() for weight in part.parameters()}
    assert shape.projector - sum(weight.numel() for weight in projectors.values()) in (
        0,
        one.config.get_text_config().hidden_size,
    )


LLAMA = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008}
QWEN_TEXT = {"num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4}
QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
# Published dimensions, what is asked, and the paper's tokens a layer (Tables 13 and 14), or the caps of Table 15.
PUBLISHED: dict[str, tuple[dict[str, Any], list[str], str, str]] = {
    "next-640": (
        {**LLAMA, "model_type": "llava_llama", "vocab_size": 32000, "image_aspect_ratio": "anyres"},
        ["none", "next-640", "next-160"],
        "0-31: 2880 0-15: 1025, 16-23: 512, 24-31: 0 0-15: 255, 16-23: 127, 24-31: 0",
        "640.50 159.25",
    ),
    "video-960": (
        {**LLAMA, "model_type": "llava_llama", "vocab_size": 32000, "mm_video_tower": "x", "mm_image_tower": "y"},
        ["none", "video-960", "video-136"],
        "0-31: 2056 0-15: 1536, 16-23: 768, 24-31: 0 0-15: 216, 16-23: 108, 24-31: 0",
        "960.00 135.00",
    ),
    "qwen-640": (
        {
            "model_type": "qwen2_5_vl",
            "text_config": {**QWEN_TEXT, "intermediate_size": 18944, "vocab_size": 152064},
            "vision_config": {**QWEN_VISION, "patch_size": 14, "window_size": 112},
        },
        ["none", "qwen-640", "qwen-160"],
        "0-27: 1024 0-13: 1023, 14-20: 511, 21-27: 255 0-13: 243, 14-20: 121, 21-27: 60",
        "703.00 166.75",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_schedule_of_a_published_model(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, asked, layers, averages = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    schedule.main(["--model", str(tmp_path), "--preset", *asked])
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("For one image of" if "video" not in name else "For one video of 8 frames")
    assert " ".join(line.split("  ")[-1] for line in lines) == layers
    assert all(average in line for average, line in zip(averages.split(), lines[1:], strict=True))
    schedule.main(["--model", str(tmp_path)])
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]}
    assert name in listed and "duet-128" not in listed
    with pytest.raises(SystemExit, match=r"duet-64 is made for llava-1.5 with 32 decoder layers, but this is a"):
        schedule.main(["--model", str(tmp_path), "--preset", "duet-64"])
    if "video" in name:
        with pytest.raises(SystemExit, match=r"takes clips of 8 frames, not 5"):
            schedule.main(["--model", str(tmp_path), "--frames", "5"])
    else:
        schedule.main(["--model", str(tmp_path), "--preset", "none", "--image-size", "1344x336"])
        assert "image of 1344x336" in capsys.readouterr().out
