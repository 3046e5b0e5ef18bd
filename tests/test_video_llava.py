"""Video-LLaVA as a whole: mixed batches, counts, refusals, opening, conversion, prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_text import llama
from tiny_video import FRAMES, SIDE, TOWER, pictures, pixels, video_llava, write_video, write_video_llava
from torch import Tensor
from transformers import VideoLlavaForConditionalGeneration

from llava.checkpoints.conversion import convert
from llava.checkpoints.opening import open_model
from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.families import VideoLlavaInputs, family_of
from llava.data.frames import Frames, FrameSampling, frame_numbers
from llava.model import LlavaLlamaForCausalLM
from llava.model.builder import load_pretrained_model
from llava.model.mixed_media import shown_media
from llava.verify import verify_folder

GOLDEN = Path(__file__).parent / "golden/backbones"
BUDGET = {"v2v": {"dominant": 5, "contextual": 2, "cluster_width": 2}, "t2v": {"layers": [2, 4], "keep": [0.5, 0.25]}}
VIDEO = (SIDE, SIDE)


def ids(*parts: int | tuple[int, ...]) -> list[int]:
    """Token ids; a tuple `(n,)` stands for n placeholders in a row."""
    row: list[int] = []
    for part in parts:
        row += [IMAGE_TOKEN_INDEX] * part[0] if isinstance(part, tuple) else [part]
    return row


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    filled = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return filled, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


ROWS = [
    (ids(1, 5, (1,), 6, 7, 9), [pixels(*VIDEO, seed=1)]),
    (ids(1, (FRAMES,), 8, 9), [pixels(FRAMES, *VIDEO, seed=2)]),
    (ids(1, 4, 7), []),
    (
        ids(1, (FRAMES,), (1,), 3, (FRAMES,), 12, 13),
        [pixels(FRAMES, *VIDEO, seed=3), pixels(*VIDEO, seed=4), pixels(FRAMES, *VIDEO, seed=5)],
    ),
]
"""An image; a video; text; two videos and an image."""


@pytest.mark.parametrize("compression", [None, BUDGET, {"v2v": BUDGET["v2v"]}, tiny.T2V_ONLY])
def test_images_and_videos_in_a_batch_give_what_each_gives_alone(compression: Any) -> None:
    model = video_llava(compression=compression)
    tokens, mask = padded([row for row, _ in ROWS])
    flat = [medium for _, media in ROWS for medium in media]
    nested = [media for _, media in ROWS]
    with_dummy = [*ROWS[0][1], *ROWS[1][1], torch.zeros(3, *VIDEO, dtype=torch.float64), *ROWS[3][1]]
    outputs = [model(tokens, attention_mask=mask, images=given).logits for given in (flat, nested, with_dummy)]
    for logits in outputs[1:]:
        assert torch.equal(logits, outputs[0])
    for number, (row, media) in enumerate(ROWS):
        alone = model(torch.tensor([row]), images=media or None).logits[0]
        torch.testing.assert_close(outputs[0][number, : len(row)], alone, rtol=0, atol=1e-9)
        answer = model.generate(torch.tensor([row]), images=media or None, max_new_tokens=4, do_sample=False)
        together = model.generate(tokens, attention_mask=mask, images=flat, max_new_tokens=4, do_sample=False)
        assert together[number].tolist() == answer[0].tolist()


def test_counts_that_are_planned_are_those_that_come() -> None:
    for compression, image, frame in ((None, 16, 17), (BUDGET, 7, 7)):
        model = video_llava(compression=compression)
        settings = model.plan_settings()
        assert settings.counts(pixels(*VIDEO)) == [image]
        assert settings.counts(pixels(FRAMES, *VIDEO)) == [frame] * FRAMES
        assert settings.fixed is None, "a video is kept whole or not at all"
        assert [len(one) for one in model.encode_images(pixels(*VIDEO)[None], model.compression.v2v)] == [image]
        frames = model.encode_videos([pixels(FRAMES, *VIDEO)] * 2, model.compression.v2v)
        assert [len(one) for one in frames] == [frame] * FRAMES * 2


def test_all_frames_of_a_row_compete_for_what_is_kept() -> None:
    """The published program ranks the first frame alone."""
    model = video_llava(compression={"t2v": {"layers": [3], "keep": [0.5]}})
    row, media = ROWS[1]
    output = model(torch.tensor([row]), images=media, output_layouts=True)
    kept = output.layouts[1].alive()[0] if hasattr(output.layouts[1], "alive") else None
    assert output.layouts[1].visual == (17 * FRAMES // 2,)
    assert kept is not None and len({place // 17 for place in kept.nonzero().flatten().tolist()}) == FRAMES


@pytest.mark.parametrize(
    ("rows", "images", "said"),
    [
        ([ids(1, (3,), 5), ids(1, (1,), 5)], [pixels(FRAMES, *VIDEO)], r"hold \[3, 1\] image placeholders row by row"),
        ([ids(1, (FRAMES + 1,), 5)], [pixels(FRAMES, *VIDEO)], r"need 4 one after another"),
        ([ids(1, (1,), 5)], [[pixels(FRAMES, *VIDEO)]], r"row 0 holds 1 image placeholders, but images\[0\] needs 4"),
        ([ids(1, (FRAMES,), 5)], [[pixels(FRAMES, *VIDEO)], []], "holds lists for 2 rows, but 1 prompts"),
        ([ids(1, (2,), 5)], [pixels(2, *VIDEO)], "has 2 frames, but the video tower attends over 4"),
        ([ids(1, (1,), 5)], [pixels(*VIDEO).to(torch.uint8)], "holds uint8"),
        ([ids(1, (1,), 5)], [torch.zeros(4, 3, 5, 6, 7, 8)], "has shape"),
        ([ids(1, (1,), 5)], "cat.png", "images is a str"),
    ],
)
def test_marks_and_media_that_do_not_fit_are_refused(rows: list[list[int]], images: Any, said: str) -> None:
    tokens, mask = padded(rows)
    with pytest.raises(ValueError, match=said):
        video_llava()(tokens, attention_mask=mask, images=images)


def test_one_tensor_is_several_images_several_videos_or_one_of_them() -> None:
    model = video_llava()
    image, video = pixels(*VIDEO), pixels(FRAMES, *VIDEO)
    one, four = torch.tensor([ids(1, (1,), 5)]), torch.tensor([ids(1, (FRAMES,), 5)])
    assert torch.equal(model(one, images=image).logits, model(one, images=[image]).logits)
    assert torch.equal(model(one, images=image[None]).logits, model(one, images=[image]).logits)
    assert torch.equal(model(four, images=video).logits, model(four, images=[video]).logits)
    assert torch.equal(model(four, images=video[None]).logits, model(four, images=[video]).logits)
    assert torch.equal(model(four, images=video.numpy()).logits, model(four, images=[video]).logits)
    with pytest.raises(ValueError, match="may be three images or a video of three frames; put them in a list"):
        video_llava(frames=3)(torch.tensor([ids(1, (3,), 5)]), images=pixels(3, *VIDEO))


def test_without_attention_over_time_frames_are_pictures_and_videos_of_any_length_are_taken() -> None:
    model = video_llava(timed=False)
    video = pixels(5, *VIDEO)
    frames = model.encode_videos([video, pixels(2, *VIDEO)])
    for number, one in enumerate(model.encode_videos(video.transpose(0, 1)[:, :, None])):
        torch.testing.assert_close(one, frames[number])


def test_a_model_with_one_tower_says_what_it_cannot_be_shown() -> None:
    of_images = video_llava(mm_video_tower=None, mm_video_config=None)
    row, media = ROWS[1]
    with pytest.raises(ValueError, match=r"given an video, but it has no tower for such \(mm_video_tower\)"):
        of_images(torch.tensor([row]), images=media)
    assert of_images(torch.tensor([ROWS[0][0]]), images=ROWS[0][1]).logits is not None
    of_videos = video_llava(mm_image_tower=None, mm_image_config=None)
    with pytest.raises(ValueError, match=r"given an image, but it has no tower for such \(mm_image_tower\)"):
        of_videos(torch.tensor([ROWS[0][0]]), images=ROWS[0][1])
    assert of_videos(torch.tensor([row]), images=media).logits is not None


def test_where_ranks_hold_towers_together_both_run_whatever_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    model = video_llava()
    towers = {"image": model.get_image_tower(), "video": model.get_video_tower()}
    tokens, media = torch.tensor([ROWS[0][0]]), ROWS[0][1]
    assert shown_media(tokens, None, media, None, True, towers).towers == ()
    monkeypatch.setattr("llava.model.mixed_media.ranks_must_agree", lambda: True)
    assert shown_media(tokens, None, media, None, True, towers).towers == (), "frozen and whole: nobody waits for it"
    towers["video"].model.pre_layrnorm.weight.requires_grad_(True)
    shown = shown_media(tokens, None, media, None, False, towers)
    assert shown.towers == ("video",) and len(shown.media) == 1
    towers["image"].model.pre_layrnorm.weight.requires_grad_(True)
    text = torch.tensor([ROWS[2][0]])
    assert shown_media(text, None, media, None, True, towers) == type(shown)([], ("image", "video"))
    calls: list[str] = []
    for kind, tower in towers.items():
        tower.register_forward_hook(lambda *_, kind=kind: calls.append(kind))
    for row, images in ROWS:
        model(torch.tensor([row]), images=images or None)
    assert calls == ["image", "video"] * len(ROWS)


def test_a_text_only_batch_of_training_has_a_gradient_at_the_projector() -> None:
    model = video_llava().train()
    model.requires_grad_(False)
    model.model.mm_projector.requires_grad_(True)
    text = torch.tensor([ROWS[2][0]])
    model(text, images=[torch.zeros(3, *VIDEO, dtype=torch.float64)], labels=text).loss.backward()
    assert all(weight.grad is not None for weight in model.model.mm_projector.parameters())


# Opening and converting


def write_published(folder: Path) -> LlavaLlamaForCausalLM:
    """As the published model lies: shards of pickles, towers named but described in folders of their own."""
    written = write_video_llava(folder / "whole")
    model = open_model(str(written), device="cpu").model
    published = folder / "published"
    published.mkdir()
    state = load_file(written / "model.safetensors")
    parts = [dict(list(state.items())[:40]), dict(list(state.items())[40:])]
    index: dict[str, Any] = {"metadata": {"total_size": 1}, "weight_map": {}}
    for number, part in enumerate(parts, 1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save(part, published / name)
        index["weight_map"] |= dict.fromkeys(part, name)
    (published / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    config = json.loads((written / "config.json").read_text())
    for kind, whole in (("image", "LanguageBindImage"), ("video", "LanguageBindVideo")):
        inside = config.pop(f"mm_{kind}_config")
        config[f"mm_{kind}_tower"] = f"{kind}-tower"
        (published / f"{kind}-tower").mkdir()
        described = {"model_type": whole, "vision_config": {**inside, "model_type": "clip_vision_model"}}
        (published / f"{kind}-tower/config.json").write_text(json.dumps(described))
    (published / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(written / name, published / name)
    return model


def test_the_published_layout_opens_with_both_towers_and_a_processor_for_each(tmp_path: Path) -> None:
    truth = write_published(tmp_path)
    _, model, processor, _ = load_pretrained_model(str(tmp_path / "published"), device="cpu")
    assert isinstance(model, LlavaLlamaForCausalLM) and set(processor) == {"image", "video"}
    row, media = ROWS[3]
    media = [medium.float() for medium in media]
    assert torch.equal(model(torch.tensor([row]), images=media).logits, truth(torch.tensor([row]), images=media).logits)
    frames = pictures(FRAMES)
    clip = processor["video"](frames, return_tensors="pt")["pixel_values"]
    assert clip.shape == (1, 3, FRAMES, *VIDEO)
    video = write_video(tmp_path / "video", 7, seed=5)
    (read,) = processor["video"](str(video), return_tensors="pt")["pixel_values"]
    assert torch.equal(read, processor["video"].pixels([pictures(7, seed=5)[number] for number in (0, 2, 4, 6)]))
    assert processor["video"].preprocess([video, str(video)])["pixel_values"].shape == (2, 3, FRAMES, *VIDEO)
    assert processor["image"].preprocess(frames[0], return_tensors="pt")["pixel_values"].shape == (1, 3, *VIDEO)


def test_missing_temporal_weights_are_an_error_and_not_made_up(tmp_path: Path) -> None:
    folder = write_video_llava(tmp_path / "model")
    held = load_file(folder / "model.safetensors")
    name = "model.video_tower.video_tower.encoder.layers.1.temporal_attn.k_proj.weight"
    for lost in ([name], [one for one in held if "temporal" in one]):
        left = {key: tensor for key, tensor in held.items() if key not in lost}
        save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks 'model.video_tower.video_tower.encoder.layers.\d.temporal"):
            open_model(str(folder), device="cpu")


def test_adapters_inside_the_image_tower_of_a_checkpoint_are_merged(tmp_path: Path) -> None:
    folder = write_video_llava(tmp_path / "model", mm_image_config={**TOWER, "lora_r": 2, "lora_alpha": 4})
    held = load_file(folder / "model.safetensors")
    wrapped = {
        name.replace("image_tower.encoder.", "image_tower.encoder.base_model.model."): one for name, one in held.items()
    }
    layer = "model.image_tower.image_tower.encoder.{}layers.1.self_attn.v_proj."
    low, high = torch.randn(2, 16), torch.randn(16, 2)
    wrapped |= {layer.format("base_model.model.") + "lora_A.default.weight": low}
    wrapped |= {layer.format("base_model.model.") + "lora_B.default.weight": high}
    save_file(wrapped, folder / "model.safetensors", metadata={"format": "pt"})
    model = open_model(str(folder), device="cpu").model
    for name, weight in model.state_dict().items():
        added = 2 * high @ low if name == layer.format("") + "weight" else 0
        torch.testing.assert_close(weight, held[name] + added)
    del wrapped["model.video_tower.video_tower.encoder.layers.0.temporal_embedding"]
    save_file(wrapped, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 'model.video_tower.video_tower.encoder.layers.0.temporal_emb"):
        open_model(str(folder), device="cpu")


def test_a_model_with_attention_over_time_is_not_written_as_transformers_model_without(tmp_path: Path) -> None:
    write_video_llava(tmp_path / "model")
    with pytest.raises(ValueError, match=r"attends over time .*without it this would be another model"):
        convert(str(tmp_path / "model"), tmp_path / "hf", "hf")


def test_transformers_form_has_the_same_logits_and_comes_back(tmp_path: Path) -> None:
    folder = write_video_llava(tmp_path / "model", timed=False, compression=BUDGET)
    convert(str(folder), tmp_path / "hf", "hf")
    stock: Any = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    own = open_model(str(folder), device="cpu").model
    again = open_model(str(tmp_path / "hf"), device="cpu")
    assert isinstance(again.model, LlavaLlamaForCausalLM) and again.model.compression == own.compression
    assert again.model.config.mm_video_config["add_time_attn"] is False
    image, video = pixels(*VIDEO, dtype=torch.float32), pixels(FRAMES, *VIDEO, seed=1, dtype=torch.float32)
    row = torch.tensor([ids(1, 300, (1,), 301, (FRAMES,), 302, 303)])
    shown = [stock.config.image_token_id] * 16, [stock.config.video_token_id] * 17 * FRAMES
    theirs = torch.tensor([[1, 300, *shown[0], 301, *shown[1], 302, 303]])
    with torch.no_grad():
        truth = stock(theirs, pixel_values_images=image[None], pixel_values_videos=video.transpose(0, 1)[None]).logits[
            0, -2:
        ]
        for model in (own, again.model):
            found = model(row, images=[image, video], compression="none").logits[0, -2:]
            torch.testing.assert_close(found, truth[:, : found.shape[1]], rtol=0, atol=2e-5)
    convert(str(tmp_path / "hf"), tmp_path / "back", "llava")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "back"))
    assert set(before) == set(after)
    for name, weight in before.items():
        assert torch.equal(weight, after[name][: len(weight)] if weight.dim() else after[name]), name


# Inputs


def inputs(**config: Any) -> tuple[VideoLlavaInputs, LlavaLlamaForCausalLM]:
    model = video_llava(vocab_size=len(llama()) + 8, **config)
    family = family_of(model.config)
    assert family is VideoLlavaInputs
    made = family(model.config, llama(), model.processors(), "v1")
    assert isinstance(made, VideoLlavaInputs)
    return made, model


def clip(made: VideoLlavaInputs, total: int = 7) -> Tensor:
    numbers = made.frame_numbers(total, 25.0)
    found = pictures(total)
    (medium,) = made.video(Frames(tuple(found[number] for number in numbers), tuple(numbers), total, 25.0), "A video")
    return medium


def test_a_question_about_a_video_is_asked_as_the_published_evaluation_asks() -> None:
    made, _ = inputs()
    video = clip(made)
    assert video.shape == (3, FRAMES, *VIDEO) and made.frame_numbers(7, 25.0) == frame_numbers(7, FRAMES) == [
        0,
        2,
        4,
        6,
    ]
    marks = "<image>" * FRAMES
    assert made.question("What happens?", [video]) == f"{marks}\nWhat happens?"
    assert made.question("Look: <video> What happens?", [video]) == f"Look: {marks} What happens?"
    assert made.question(f"{marks}\nWhat happens?", [video]) == f"{marks}\nWhat happens?"
    picture = made.image(pictures(1)[0], "An image")
    assert made.question("<video><image>\nCompare.", [video, picture]) == f"{marks}<image>\nCompare."
    assert made.question("Is <video> a mark?", [picture]) == "<image>\nIs <video> a mark?"
    with pytest.raises(ValueError, match="holds 1 <image> and 0 <video>, but 0 images and 1 videos were given"):
        made.question("<image>\nWhat?", [video])
    sample = made.prompt([f"{marks}\nWhat happens?"], [video])
    assert int((sample["input_ids"] == IMAGE_TOKEN_INDEX).sum()) == FRAMES


def test_frames_stand_between_tokens_of_their_own_where_the_model_was_trained_so() -> None:
    made, _ = inputs(mm_use_im_start_end=True)
    wrapped = "<vid_start>" + "<image>" * FRAMES + "<vid_end>"
    assert (
        made.taught("<video>\nWhat is <image>?", {"image", "video"}) == f"{wrapped}\nWhat is <im_start><image><im_end>?"
    )
    assert made.question("What?", [clip(made)]) == f"{wrapped}\nWhat?"


def test_nothing_is_moved_in_what_is_taught() -> None:
    made, _ = inputs()
    assert made.taught("What is this?\n<image>", {"image"}) == "What is this?\n<image>"
    assert made.taught("A <video> word", {"image"}) == "A \ufdd0video> word"


def test_a_video_that_would_become_too_large_is_refused_before_it_is_scaled() -> None:
    made, _ = inputs()
    thin = tuple(Image.new("RGB", (1, 200_000)) for _ in range(FRAMES))
    with pytest.raises(ValueError, match=r"A video .*become .* pixels"):
        made.video(Frames(thin, tuple(range(FRAMES)), FRAMES, None), "A video")


def test_another_number_of_frames_than_the_tower_attends_over_is_refused() -> None:
    model = video_llava()
    for asked in (FrameSampling(count=8), FrameSampling(fps=1.0), FrameSampling(most=2)):
        with pytest.raises(ValueError, match="attends over 4 frames of a video, at equal distances"):
            VideoLlavaInputs(model.config, llama(), model.processors(), "v1", sampling=asked)
    same = VideoLlavaInputs(model.config, llama(), model.processors(), "v1", sampling=FrameSampling(count=FRAMES))
    assert same.video_marks == FRAMES


@pytest.mark.parametrize(("sampling", "frames"), [({"count": 8}, 8), ({"most": 2}, 2), ({"count": 3, "most": 9}, 3)])
def test_a_tower_that_attends_over_no_time_is_shown_as_many_frames_as_were_asked_for(
    sampling: dict[str, int], frames: int
) -> None:
    free = video_llava(timed=False)
    made = VideoLlavaInputs(free.config, llama(), free.processors(), "v1", sampling=FrameSampling(**sampling))
    numbers = made.frame_numbers(50, 25.0)
    picture = Image.new("RGB", (20, 20))
    (shown,) = made.video(Frames((picture,) * len(numbers), tuple(numbers), 50, 25.0), "A video")
    assert made.taught("<video>", {"video"}).count("<image>") == made.marks(shown) == shown.shape[1] == frames
    with pytest.raises(ValueError, match="fps is 2, but a Video-LLaVA is shown as many of every video"):
        VideoLlavaInputs(free.config, llama(), free.processors(), "v1", sampling=FrameSampling(fps=2.0))


def test_a_batch_of_training_brings_its_plan_and_the_plan_fits() -> None:
    made, model = inputs(compression=BUDGET)
    settings = model.plan_settings()
    samples = [
        made.conversation([made.taught("<video>\nWhat?", {"video"}), "red three"], [clip(made).double()]),
        made.conversation([made.taught("See <image>", {"image"}), "no"], [pixels(*VIDEO)]),
        made.conversation(["How many?", "blue"], []),
    ]
    batch = made.collator(SIDE, settings)(samples)
    assert batch["plan"].counts == (7,) * (FRAMES + 1)
    planned = {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "query_mask", "images")}
    loss = model(**planned).loss
    torch.testing.assert_close(model(**planned, plan=batch["plan"]).loss, loss)
    assert made.length(samples[0], settings) == len(samples[0]["input_ids"]) + FRAMES * 6


def test_a_damaged_mixed_sequence_is_seen(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(GOLDEN / "models")
    for name in (
        "labels",
        "inputs_embeds",
        "image_projected",
        "video_projected",
        "loss",
        "logits_last",
        "position_ids",
    ):
        folder = shutil.copytree(GOLDEN / "video_llava_prepare/a_four_kinds", tmp_path / "video_llava_prepare/a")
        outputs = load_file(folder / "outputs.safetensors")
        outputs[name] = outputs[name].clone()
        outputs[name].view(-1)[0] += 1
        save_file(outputs, folder / "outputs.safetensors")
        (outcome,) = verify_folder(folder)
        assert outcome.status == "FAIL" and name in outcome.reasons[0]
        shutil.rmtree(folder)


@pytest.mark.parametrize("order", [(3, 0, 2, 1), (1, 3, 0, 2), (2, 1, 0, 3)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_in_any_order_are_what_was_recorded_of_them(order: tuple[int, ...], side: str, tmp_path: Path) -> None:
    """The text-only row uses up its zero picture wherever it stands."""
    (tmp_path / "models").symlink_to(GOLDEN / "models")
    folder = shutil.copytree(GOLDEN / "video_llava_prepare/a_four_kinds", tmp_path / "video_llava_prepare/a")
    case = json.loads((folder / "case.json").read_text())
    entries_of = {0: (0,), 1: (1,), 2: (2, 3), 3: (4,)}  # rows -> entries
    entries = [entry for row in order for entry in entries_of[row]]
    case["entries"] = [case["entries"][entry] for entry in entries]
    case["row_lengths"] = lengths = [case["row_lengths"][row] for row in order]
    case |= {"tokenizer_padding_side": side, "inputs": {}, "outputs": {}}
    given = load_file(folder / "inputs.safetensors")
    pixels = {
        f"pixels_u8_{place}": given[f"pixels_u8_{entry}"]
        for place, entry in enumerate(entries)
        if f"pixels_u8_{entry}" in given
    }
    rows = {name: given[name][list(order)] for name in ("input_ids", "attention_mask", "labels")}
    save_file({name: one.contiguous() for name, one in {**rows, **pixels}.items()}, folder / "inputs.safetensors")
    held, moved = load_file(folder / "outputs.safetensors"), {}
    for name in ("inputs_embeds", "attention_mask", "labels", "position_ids"):
        moved[name] = held[name][list(order)]
        for row, length in enumerate(lengths):
            shift = held[name].shape[1] - length if side == "left" else 0
            moved[name][row] = moved[name][row].roll(shift, 0)
    moved |= {"loss": held["loss"], "logits_last": held["logits_last"][list(order)]}
    save_file({name: one.contiguous() for name, one in moved.items()}, folder / "outputs.safetensors")
    (folder / "case.json").write_text(json.dumps(case))
    (outcome,) = verify_folder(folder)
    assert (outcome.status, outcome.reasons) == ("ok", ())


def test_the_golden_model_opens_as_a_checkpoint(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "models/vl8", tmp_path / "vl8")
    llama().save_pretrained(folder)
    found = open_model(str(folder), device="cpu")
    assert found.model.config.mm_video_config["num_frames"] == 8 and found.preprocessor["video"].num_frames == 8
    assert TOWER["hidden_act"] == found.model.config.mm_video_config["hidden_act"]
