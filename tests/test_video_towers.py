"""Video-LLaVA's towers and pixels: against loops in float64, transformers' classes, and clips that do not fit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, VideoLlavaConfig, VideoLlavaForConditionalGeneration

from llava.compression import V2VConfig
from llava.data.frames import frame_numbers
from llava.data.video_marks import expand_marks
from llava.model.multimodal_encoder.languagebind_pixels import LanguageBindImageProcessor, LanguageBindVideoProcessor
from llava.model.multimodal_encoder.languagebind_towers import LanguageBindImageTower, LanguageBindVideoTower
from llava.verify import verify_folder

GOLDEN = Path(__file__).parent / "golden/backbones"
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "hidden_act": "gelu",
    "projection_dim": 8,
    "lora_r": 0,
}
Array = np.ndarray[Any, np.dtype[np.float64]]


def video_tower(frames: int = 3, timed: bool = True) -> LanguageBindVideoTower:
    """A tower with random weights, biases, norms and embeddings of time, so that leaving one out shows."""
    torch.manual_seed(0)
    tower = LanguageBindVideoTower("tower", -2, {**SIZES, "num_frames": frames, "add_time_attn": timed})
    with torch.no_grad():
        for weight in tower.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return tower.eval()


def layer_norm(row: Array, weights: dict[str, Array], name: str) -> Array:
    scaled = (row - row.mean()) / math.sqrt(row.var() + 1e-5)
    result: Array = scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return result


def linear(row: Array, weights: dict[str, Array], name: str) -> Array:
    result: Array = weights[f"{name}.weight"] @ row + weights[f"{name}.bias"]
    return result


def attend(rows: list[Array], weights: dict[str, Array], name: str, heads: int = 2) -> list[Array]:
    """Attention among rows, each by each."""
    query, key, value = ([linear(row, weights, f"{name}.{part}_proj") for row in rows] for part in "qkv")
    size = len(rows[0]) // heads
    found = []
    for one in query:
        parts = []
        for head in range(heads):
            cut = slice(head * size, (head + 1) * size)
            scores = np.array([one[cut] @ other[cut] / math.sqrt(size) for other in key])
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            parts.append(sum(share * other[cut] for share, other in zip(shares, value, strict=True)))
        found.append(linear(np.concatenate(parts), weights, f"{name}.out_proj"))
    return found


def gelu(value: float) -> float:
    return value * 0.5 * (1 + math.erf(value / math.sqrt(2)))


def clip_in_loops(clip: Array, weights: dict[str, Array], layers: int) -> list[list[Array]]:
    """Hidden states behind a number of layers, [T][N][D], of a clip [3, T, height, width]."""
    frames = []
    for frame in clip.transpose(1, 0, 2, 3):
        rows = [weights["embeddings.class_embedding"]]
        for top in range(0, frame.shape[1], 14):
            for left in range(0, frame.shape[2], 14):
                patch = frame[:, top : top + 14, left : left + 14]
                rows.append((weights["embeddings.patch_embedding.weight"] * patch).sum(axis=(1, 2, 3)))
        rows = [row + place for row, place in zip(rows, weights["embeddings.position_embedding.weight"], strict=True)]
        frames.append([layer_norm(row, weights, "pre_layrnorm") for row in rows])
    for layer in (f"encoder.layers.{number}" for number in range(layers)):
        for place in range(len(frames[0])):
            series = [frame[place] for frame in frames]
            if len(series) > 1:
                series = [
                    row + step for row, step in zip(series, weights[f"{layer}.temporal_embedding"][0], strict=True)
                ]
            normed = [layer_norm(row, weights, f"{layer}.temporal_layer_norm1") for row in series]
            for frame, row, seen in zip(frames, series, attend(normed, weights, f"{layer}.temporal_attn"), strict=True):
                frame[place] = row + seen
        for frame in frames:
            seen = attend(
                [layer_norm(row, weights, f"{layer}.layer_norm1") for row in frame], weights, f"{layer}.self_attn"
            )
            for place, row in enumerate(frame):
                row = row + seen[place]
                inner = linear(layer_norm(row, weights, f"{layer}.layer_norm2"), weights, f"{layer}.mlp.fc1")
                frame[place] = row + linear(np.array([gelu(one) for one in inner]), weights, f"{layer}.mlp.fc2")
    return frames


@pytest.mark.parametrize("frames", [3, 1])
def test_the_video_tower_is_what_loops_over_frames_and_positions_compute(frames: int) -> None:
    tower = video_tower(frames)
    clips = torch.randn(2, 3, frames, 28, 28, generator=torch.Generator().manual_seed(1))
    weights = {name: tensor.double().numpy() for name, tensor in tower.model.state_dict().items()}
    found = tower(clips).detach().unflatten(0, (2, frames))
    for clip, given in zip(found, clips, strict=True):
        truth = torch.tensor(np.array(clip_in_loops(given.double().numpy(), weights, 2)))
        assert (clip.double() - truth).abs().max() < 2e-5


def test_without_attention_over_time_it_is_the_tower_of_transformers() -> None:
    """Both with the branch off and with its output at zero, on every frame by itself."""
    clips = torch.randn(2, 3, 3, 28, 28)
    for timed in (False, True):
        tower = video_tower(3, timed)
        if timed:
            with torch.no_grad():
                for layer in tower.model.encoder.layers:
                    layer.temporal_embedding.zero_()
                    layer.temporal_attn.out_proj.weight.zero_()
                    layer.temporal_attn.out_proj.bias.zero_()
        config = VideoLlavaConfig(
            text_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "vocab_size": 64,
            },
            vision_config={"model_type": "clip_vision_model", **SIZES},
            image_token_index=62,
            video_token_index=63,
        )
        theirs = VideoLlavaForConditionalGeneration(config).eval()
        own = {name: tensor for name, tensor in tower.model.state_dict().items() if "temporal" not in name}
        theirs.model.video_tower.load_state_dict(own)
        theirs.model.multi_modal_projector = torch.nn.Identity()
        with torch.no_grad():
            found = theirs.model.get_video_features(clips.transpose(1, 2), vision_feature_layer=-2, return_dict=True)
        torch.testing.assert_close(tower(clips), found.pooler_output.view(6, 5, 16), rtol=0, atol=1e-5)


def test_the_image_tower_is_clips_without_cls() -> None:
    tower = LanguageBindImageTower("tower", -2, config=SIZES).eval()
    clip = CLIPVisionModel(CLIPVisionConfig(**{key: value for key, value in SIZES.items() if key != "lora_r"})).eval()
    clip.load_state_dict(tower.model.state_dict())
    images = torch.randn(2, 3, 28, 28)
    truth = clip(images, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(tower(images), truth, rtol=0, atol=1e-6)


def test_v2v_scores_and_merges_what_the_layer_within_frames_gets() -> None:
    """Scores from in front of the attention over time would rank by another frame's picture."""
    tower, v2v = video_tower(3), V2VConfig(3, 1, 1)
    clips = torch.randn(2, 3, 3, 28, 28)
    with torch.no_grad():
        seen = tower.encode(clips, v2v)
        states = tower.model.pre_layrnorm(tower.model.embeddings(clips.transpose(1, 2).flatten(0, 1)))
        first, layer = tower.model.encoder.layers[:2]
        inside = layer.layer_norm1(layer.over_time(first(states, None)))
        query, key = (
            part(inside).unflatten(-1, (2, 8)).transpose(1, 2)
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        shares = (query @ key.transpose(2, 3) / math.sqrt(8)).softmax(dim=-1)
    torch.testing.assert_close(seen.cls_attention, shares[:, :, 0, 1:].sum(dim=1))
    torch.testing.assert_close(seen.keys, key.mean(dim=1))
    assert tower.merge(clips, v2v).tokens.shape == (6, 4, 16)
    assert tower.tokens_per_image(v2v) == 4 and tower.tokens_per_image(None) == 5


def test_a_clip_of_another_length_is_refused_and_not_cut_into_other_clips() -> None:
    tower = video_tower(4)
    for frames in (2, 8, 5):
        with pytest.raises(ValueError, match=f"has {frames} frames, but the video tower attends over 4"):
            tower(torch.randn(2, 3, frames, 28, 28))
    assert video_tower(4, timed=False)(torch.randn(1, 3, 6, 28, 28)).shape == (6, 5, 16)


def test_a_tower_without_its_temporal_weights_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "models/vt4_quick", tmp_path / "tower")
    weights = load_file(folder / "model.safetensors")
    del weights["vision_model.encoder.layers.2.temporal_embedding"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks the weight 'encoder.layers.2.temporal_embedding'"):
        LanguageBindVideoTower(str(folder)).load_model()


@pytest.mark.parametrize("layer_name", ["", "base_layer."])
def test_adapters_inside_the_image_tower_are_merged_as_peft_applies_them(tmp_path: Path, layer_name: str) -> None:
    """`LanguageBindImage` wraps its encoder in LoRA: W becomes W + alpha / r * B A under plain names."""
    folder = shutil.copytree(GOLDEN / "models/it_gelu", tmp_path / "tower")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= {"lora_r": 2, "lora_alpha": 6}
    (folder / "config.json").write_text(json.dumps(config))
    held = load_file(folder / "model.safetensors")
    wrapped: dict[str, Tensor] = {}
    added = {}
    for name, tensor in held.items():
        inside = name.replace("vision_model.encoder.", "vision_model.encoder.base_model.model.")
        if inside != name and name.endswith("q_proj.weight"):
            draw = torch.Generator().manual_seed(len(added))
            low, high = torch.randn(2, 32, generator=draw), torch.randn(32, 2, generator=draw)
            wrapped |= {inside.replace("weight", "lora_A.default.weight"): low}
            wrapped |= {inside.replace("weight", "lora_B.default.weight"): high}
            added[name.removeprefix("vision_model.")] = 3 * high @ low
        if name.endswith(("q_proj.weight", "q_proj.bias")) and inside != name:
            inside = inside.replace("q_proj.", f"q_proj.{layer_name}")
        wrapped[inside] = tensor
    save_file(wrapped, folder / "model.safetensors", metadata={"format": "pt"})
    tower = LanguageBindImageTower(str(folder))
    tower.load_model()
    state = tower.model.state_dict()
    for name, tensor in held.items():
        own = name.removeprefix("vision_model.")
        if own in state:
            torch.testing.assert_close(state[own], tensor + added.get(own, 0))
    assert len(added) == 4
    del wrapped[next(name for name in wrapped if "lora_B" in name)]
    save_file(wrapped, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is incomplete or of another rank than lora_r, which is 2"):
        LanguageBindImageTower(str(folder)).load_model()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def cubic(distance: float) -> float:
    near, a = abs(distance), -0.75
    if near <= 1:
        return (a + 2) * near**3 - (a + 3) * near**2 + 1
    return a * near**3 - 5 * a * near**2 + 8 * a * near - 4 * a if near < 2 else 0.0


def resized_line(line: Array, length: int, weight: Callable[[float], float], reach: int) -> Array:
    """A line of pixels at another length, without antialiasing: places beyond an end take the end."""
    result = np.zeros(length)
    for place in range(length):
        at = (place + 0.5) * len(line) / length - 0.5
        for near in range(math.floor(at) - reach + 1, math.floor(at) + reach + 1):
            result[place] += weight(at - near) * line[min(max(near, 0), len(line) - 1)]
    return result


def resized_plane(plane: Array, height: int, width: int, weight: Callable[[float], float], reach: int) -> Array:
    wide = np.array([resized_line(row, width, weight, reach) for row in plane])
    return np.array([resized_line(column, height, weight, reach) for column in wide.T]).T


def test_pixels_of_an_image_are_cubic_without_antialiasing() -> None:
    processor, picture = LanguageBindImageProcessor(side=20), noise(53, 31)
    plane = np.asarray(picture)[..., 0] / 255
    truth = resized_plane(plane, 20, int(20 * 53 / 31), cubic, 2)[:, 7:27]  # (34 - 20) / 2 = 7
    truth = (truth - 0.48145466) / 0.26862954
    pixels = processor.preprocess(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 20, 20)
    assert np.abs(pixels[0, 0].numpy() - truth).max() < 5e-5


def test_pixels_of_a_video_are_linear_without_antialiasing_and_mirrored_on_demand_only() -> None:
    processor, frames = LanguageBindVideoProcessor(2, side=20), [noise(31, 53, 1), noise(31, 53, 2)]
    plane = (np.asarray(frames[1])[..., 2] / 255 - 0.40821073) / 0.27577711
    truth = resized_plane(plane, math.floor(53 / 31 * 20), 20, lambda distance: max(0.0, 1 - abs(distance)), 1)[7:27]
    for _ in range(8):
        pixels = processor.preprocess(frames)["pixel_values"]
        assert pixels.shape == (1, 3, 2, 20, 20)
        assert np.abs(pixels[0, 2, 1].numpy() - truth).max() < 5e-5
    torch.testing.assert_close(processor.pixels(frames, mirrored=True), pixels[0].flip(-1))
    lots = [LanguageBindVideoProcessor(2, flip=0.5, side=20).pixels(frames) for _ in range(40)]
    mirrored = sum(bool((clip == pixels[0].flip(-1)).all()) for clip in lots)
    assert 0 < mirrored < 40 and mirrored + sum(bool((clip == pixels[0]).all()) for clip in lots) == 40


def test_frames_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be of one size; here they are \[\(30, 20\), \(31, 20\)\]"):
        LanguageBindVideoProcessor(2).pixels([noise(30, 20), noise(31, 20)])


def test_what_is_no_picture_is_named() -> None:
    picture = Image.new("RGB", (40, 30))
    for given in ("cat.png", np.zeros((30, 40, 3), np.uint8), torch.zeros(3, 28, 28)):
        with pytest.raises(ValueError, match=f"is a {type(given).__name__}; give PIL images"):
            LanguageBindImageProcessor(28).preprocess([picture, given])
        with pytest.raises(ValueError, match=f"is a {type(given).__name__}; give PIL images"):
            LanguageBindVideoProcessor(2, side=28).preprocess([picture, given])


def test_frames_are_taken_from_the_first_to_the_last() -> None:
    for total in (1, 5, 8, 77, 1000):
        for count in (1, 4, 8):
            wanted = [number * (total - 1) // max(count - 1, 1) for number in range(count)]
            assert frame_numbers(total, count) == wanted


def test_marks_stay_where_they_were_written() -> None:
    assert expand_marks("a <video> b <image>", 2) == "a <image><image> b <image>"
    wrapped = "<vid_start><image><image><vid_end> b <im_start><image><im_end>"
    assert expand_marks("<video> b <image>", 2, use_im_start_end=True) == wrapped


def damaged(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    outputs = load_file(folder / "outputs.safetensors")
    outputs[name] = change(outputs[name])
    save_file({key: value.contiguous() for key, value in outputs.items()}, folder / "outputs.safetensors")


def nudged(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[-1] += 1 if not tensor.is_floating_point() else 2e-1
    return changed


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("video_tower/a_t8_gelu_b1", ("features", "hidden_states", "attention_second_last", "pooler_output")),
        ("image_tower/b_quick_b2", ("features", "attention_second_last", "pooler_output")),
        ("video_processing/e_56x56_4of9", ("sample", "frame_ids", "sum", "sum_of_squares")),
        ("image_processing/f_61x45_square", ("sample", "variant_antialias_sample", "sum")),
        ("frame_ids/a_table", ("total_9_frames_8",)),
    ],
)
def test_a_damaged_case_is_seen(tmp_path: Path, case: str, names: tuple[str, ...]) -> None:
    (tmp_path / "models").symlink_to(GOLDEN / "models")
    for name in names:
        folder = shutil.copytree(GOLDEN / case, tmp_path / case)
        damaged(folder, name, nudged)
        (outcome,) = verify_folder(folder)
        assert outcome.status == "FAIL" and name in outcome.reasons[0]
        shutil.rmtree(folder)


def test_damaged_marks_are_seen(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "marks/a_eight_frames", tmp_path / "marks/a")
    case = json.loads((folder / "case.json").read_text())
    case["turns"][3]["out"] += " "
    case["turns"][0] = {"in": case["turns"][0]["in"], "error": "ValueError"}
    (folder / "case.json").write_text(json.dumps(case))
    (outcome,) = verify_folder(folder)
    assert outcome.status == "FAIL" and [reason.split()[1] for reason in outcome.reasons] == ["0", "3"]
