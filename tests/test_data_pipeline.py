"""Records, images, data set, collator and sampler."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import warnings
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_text import byte_level, llama, llava_inputs
from transformers import AutoTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.collator import SupervisedCollator
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.images import BadImageError, image_path, open_rgb
from llava.data.records import Record, parse_record, read_records, wrap_image_marks
from llava.data.sampler import EpochSampler
from llava.data.statistics import DataStatistics, measure
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    expand2square,
    get_model_name_from_path,
    load_image_from_base64,
    process_images,
)

SIDE = 8


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": turn} for i, turn in enumerate(turns)]


def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("red.png", (255, 0, 0)), ("blue.png", (0, 0, 255))):
        Image.new("RGB", (12, 8), colour).save(tmp_path / name)
    return tmp_path


def make_dataset(folder: Path, records: list[dict], max_length: int = 64, **changes) -> LazySupervisedDataset:
    parsed = [parse_record(record, index) for index, record in enumerate(records)]
    config = DataConfig(max_length, visual_tokens=4, image_folder=folder, **changes)
    return LazySupervisedDataset(parsed, llava_inputs(byte_level(), processor(), image_aspect_ratio="pad"), config)


# === Records ===


def test_image_mark_moves_to_the_front_of_its_turn() -> None:
    record = parse_record({"id": 7, "image": "a.png", "conversations": talk("Look at <image> this", "ok")}, 0)
    assert record == Record("7", ("Look at <image> this", "ok"), ("a.png",))
    assert llava_inputs(llama()).taught(record.turns[0], record.kinds) == "<image>\nLook at  this"


def test_several_images_stay_where_they_are() -> None:
    data = {"image": ["a.png", "b.png"], "conversations": talk("left <image> right <image>", "ok")}
    assert parse_record(data, 3) == Record("3", ("left <image> right <image>", "ok"), ("a.png", "b.png"))


def test_leading_assistant_turn_is_skipped() -> None:
    turns = [{"from": "gpt", "value": "Hello"}, *talk("Hi", "Yes?")]
    assert parse_record({"conversations": turns}, 0).turns == ("Hi", "Yes?")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"id": "a", "conversations": []}, "record 'a' has no human turn"),
        ({"conversations": talk("x", "y")[::-1][:1]}, "no human turn"),
        (
            {"id": "a", "image": "i.png", "conversations": talk("no mark", "y")},
            "names 1 image.*has 0 <image>",
        ),
        (
            {"id": "a", "image": ["i.png", "j.png"], "conversations": talk("<image>", "<image>")},
            "names 2 image.*has 1 <image> mark.*in human turns; 1 more in answers",
        ),
        ({"id": "a", "image": [3], "conversations": talk("<image>", "y")}, "must be a file name"),
        ({"id": "a", "conversations": talk("x", "y") + talk("z") + talk("z")}, "turn 3 is from 'human'"),
        ({"id": "a", "conversations": [{"from": "human", "value": None}]}, "turn 0 has no text"),
        ({"id": "a"}, "'conversations' must be a list"),
        ("text", "record 5 is str"),
    ],
)
def test_faulty_record_is_told_in_words(data, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_record(data, 5)


def test_json_and_jsonl_read_alike_and_faults_are_counted(tmp_path: Path) -> None:
    good = [{"id": str(i), "conversations": talk("q", "a")} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(good))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(record) for record in good) + "\n")
    assert read_records(tmp_path / "a.json") == read_records(tmp_path / "a.jsonl")
    (tmp_path / "bad.json").write_text(json.dumps([*good, {"id": "broken"}]))
    with pytest.raises(ValueError, match="1 of 4 records are unusable:\n  record 'broken'"):
        read_records(tmp_path / "bad.json")
    with pytest.raises(ValueError, match=r"no data file .*check --data_path"):
        read_records(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(ValueError, match="neither a JSON list nor JSON lines"):
        read_records(tmp_path / "broken.json")


def test_marks_around_images() -> None:
    assert wrap_image_marks("<image>\nx", True, False) == "<im_start><image><im_end>\nx"
    assert wrap_image_marks("<image>\nx", False, True) == "<Image><image></Image>\nx"
    assert wrap_image_marks("<image>\nx", False, False) == "<image>\nx"


# === Images ===


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../b.png", ""])
def test_image_names_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(BadImageError, match="does not lie in the image folder"):
        image_path("/data", name)
    assert image_path("/data", "coco/./a.jpg") == Path("/data/coco/a.jpg")


def test_fault_9_unusual_images_open_and_broken_ones_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "gif.jpg", format="GIF")
    Image.new("CMYK", (4, 4)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)).save(tmp_path / "deep.png")
    for name in ("gif.jpg", "cmyk.jpg", "deep.png"):
        assert open_rgb(tmp_path / name).mode == "RGB"
    assert open_rgb(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    (tmp_path / "empty.jpg").write_bytes(b"")
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:2000])
    for name in ("empty.jpg", "half.png"):
        with pytest.raises(BadImageError, match=f"{name}' cannot be read"):
            open_rgb(tmp_path / name)
    with pytest.raises(BadImageError, match=r"no image file .*gone.png.*check --image_folder"):
        open_rgb(tmp_path / "gone.png")


def test_fault_9_cut_off_images_are_no_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("whole.jpg", "whole.png", "whole.webp", "whole.gif", "whole.tiff", "whole.bmp"):
        path = tmp_path / name
        Image.fromarray(noise).save(path)
        assert open_rgb(path).size == (64, 64)
        content = path.read_bytes()
        for length in (0, 3, len(content) // 2):
            path.write_bytes(content[:length])
            with pytest.raises(BadImageError, match=f"{name}' cannot be read"):
                open_rgb(path)


def test_fault_9_decompression_bombs_are_refused_and_warnings_stay_as_they_were(tmp_path: Path, monkeypatch) -> None:
    """Pillow only warns up to twice its limit, and raises beyond."""
    Image.new("RGB", (10, 10)).save(tmp_path / "big.png")
    for limit in (99, 49):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        filters = list(warnings.filters)
        with pytest.raises(BadImageError, match=r"big.png' is too large: .*100 pixels"):
            open_rgb(tmp_path / "big.png")
        assert warnings.filters == filters
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert open_rgb(tmp_path / "big.png").size == (10, 10)


def test_pad_keeps_the_whole_image_on_the_mean_colour() -> None:
    square = expand2square(Image.new("RGB", (6, 2), (255, 0, 0)), (1, 2, 3))
    assert square.size == (6, 6)
    assert square.getpixel((0, 0)) == (1, 2, 3) and square.getpixel((0, 2)) == (255, 0, 0)

    class Options:
        image_aspect_ratio = "pad"

    pixels = process_images([Image.new("RGB", (6, 2)), Image.new("RGB", (3, 9))], processor(), Options())
    assert isinstance(pixels, torch.Tensor) and pixels.shape == (2, 3, SIDE, SIDE)
    assert pixels[0, :, 0, 0].abs().max() < 0.02
    Options.image_aspect_ratio = "anyres"
    with pytest.raises(ValueError, match="image_grid_pinpoints is None"):
        process_images([Image.new("RGB", (6, 2))], processor(), Options())


def test_small_helpers() -> None:
    buffer = BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, format="PNG")
    assert load_image_from_base64(base64.b64encode(buffer.getvalue())).size == (3, 2)
    assert get_model_name_from_path("/a/llava-v1.5-7b/") == "llava-v1.5-7b"
    assert get_model_name_from_path("/a/llava-v1.5-7b/checkpoint-20") == "llava-v1.5-7b_checkpoint-20"


@pytest.mark.parametrize("with_prompt", [True, False])
def test_keywords_stop_each_row_by_itself(with_prompt: bool) -> None:
    tokenizer = llama()
    prompt = torch.tensor([tokenizer("USER: red </s>").input_ids] * 2)
    rows = [
        tokenizer(text, add_special_tokens=False).input_ids[:4] for text in (" top left seven</s>", " red red red red")
    ]
    new = torch.tensor(rows)
    assert new[0, -1] == tokenizer.eos_token_id
    stop = KeywordsStoppingCriteria(["</s>"], tokenizer, prompt)
    output = torch.cat([prompt, new], dim=1) if with_prompt else new
    assert stop(output, None).tolist() == [True, False]
    assert stop(output[:, :-1], None).tolist() == [False, False]


def test_a_keyword_that_the_model_spells_byte_by_byte_stops_it() -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "playground" / "assets" / "language_model")
    spelled = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in b"seven"])
    assert len(tokenizer("seven", add_special_tokens=False).input_ids) < len(spelled)
    new = torch.tensor([spelled])
    stop = KeywordsStoppingCriteria(["seven"], tokenizer, torch.zeros(1, 9, dtype=torch.long))
    assert [stop(new[:, :length], None).item() for length in range(1, 6)] == [False] * 4 + [True]


# === Data set and collator ===


def test_samples_hold_their_images_in_order(folder: Path) -> None:
    data = {"id": "x", "image": ["red.png", "blue.png"], "conversations": talk("<image> or <image>?", "red")}
    sample = make_dataset(folder, [data], max_length=200)[0]
    assert [image.shape for image in sample["images"]] == [(3, SIDE, SIDE)] * 2
    middle = [image[:, SIDE // 2, SIDE // 2].argmax().item() for image in sample["images"]]
    assert middle == [0, 2]
    assert sample["input_ids"].tolist().count(IMAGE_TOKEN_INDEX) == 2 and not sample["truncated"]


def test_fault_2_cut_samples_bring_only_the_images_left(folder: Path) -> None:
    data = {"id": "x", "image": ["red.png", "blue.png"], "conversations": talk("<image> or <image>?", "red")}
    dataset = make_dataset(folder, [data], max_length=1000)
    until_second = dataset.encode(0).input_ids.index(IMAGE_TOKEN_INDEX) + 8
    sample = make_dataset(folder, [data], max_length=until_second)[0]
    assert sample["truncated"] and len(sample["images"]) == 1
    assert set(sample["labels"].tolist()) == {IGNORE_INDEX}


def test_fault_9_missing_image_names_record_and_file(folder: Path) -> None:
    dataset = make_dataset(folder, [{"id": "x", "image": "gone.png", "conversations": talk("<image>", "a")}])
    with pytest.raises(BadImageError, match=r"record 'x': .*gone.png"):
        dataset[0]


def test_fault_9_skipping_keeps_the_shape_and_the_place_and_teaches_nothing(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no image")

    def sample(policy: str, *names: str):
        records = [{"id": "x", "image": list(names), "conversations": talk("<image> or <image>?", "red")}]
        return make_dataset(folder, records, max_length=200, on_bad_sample=policy)[0]

    good = sample("fail", "red.png", "blue.png")
    assert good["problem"] is None and (good["labels"] != IGNORE_INDEX).any()
    skipped = sample("skip", "broken.png", "../blue.png")
    for name in ("input_ids", "query_mask"):
        assert torch.equal(skipped[name], good[name])
    assert skipped["labels"].tolist() == [IGNORE_INDEX] * len(good["labels"])
    assert [image.shape for image in skipped["images"]] == [image.shape for image in good["images"]]
    assert not any(image.any() for image in skipped["images"])
    assert skipped["problem"].startswith("record 'x': ")
    assert "broken.png' cannot be read" in skipped["problem"] and "'../blue.png' does not lie" in skipped["problem"]
    half = sample("skip", "red.png", "gone.png")
    assert torch.equal(half["images"][0], good["images"][0]) and not half["images"][1].any()
    batch = SupervisedCollator(pad_token_id=0, image_size=SIDE)([good, skipped, half])
    assert batch["problems"] == [None, skipped["problem"], half["problem"]]
    assert batch["unsupervised"] == [False, True, True] and batch["images"].shape == (6, 3, SIDE, SIDE)
    assert torch.equal(sample("skip", "red.png", "blue.png")["labels"], good["labels"])
    with pytest.raises(BadImageError, match=r"record 'x': .*broken\.png"):
        sample("fail", "red.png", "broken.png")
    with pytest.raises(ValueError, match="on_bad_sample is 'ignore'; accepted are fail, skip"):
        sample("ignore", "red.png", "blue.png")


def test_a_record_may_bring_its_own_image_folder(folder: Path) -> None:
    (folder / "own").mkdir()
    Image.new("RGB", (8, 8), (0, 255, 0)).save(folder / "own" / "red.png")
    records = [Record("a", ("<image>", "b"), ("red.png",), where) for where in (None, str(folder / "own"))]
    dataset = LazySupervisedDataset(
        records, llava_inputs(byte_level(), processor()), DataConfig(64, 4, image_folder=folder)
    )
    assert [sample["images"][0][:, 4, 4].argmax().item() for sample in (dataset[0], dataset[1])] == [0, 1]


def test_images_without_a_tower_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="give --vision_tower"):
        LazySupervisedDataset(
            [Record("a", ("<image>", "b"), ("red.png",))], llava_inputs(byte_level()), DataConfig(9, 4)
        )


def test_collator_pads_on_the_right_and_keeps_images_in_reading_order(folder: Path) -> None:
    records = [
        {"id": "text", "conversations": talk("How many digits are here, all in all?", "seven of them")},
        {"id": "pair", "image": ["red.png", "blue.png"], "conversations": talk("<image> or <image>?", "red")},
        {"id": "one", "image": "blue.png", "conversations": talk("<image>", "blue")},
    ]
    dataset = make_dataset(folder, records, max_length=500)
    samples = [dataset[i] for i in range(3)]
    batch = SupervisedCollator(pad_token_id=7, image_size=SIDE)(samples)
    longest = max(len(sample["input_ids"]) for sample in samples)
    for row, sample in enumerate(samples):
        length = len(sample["input_ids"])
        assert batch["attention_mask"][row].tolist() == [True] * length + [False] * (longest - length)
        for name, filler in (("input_ids", 7), ("labels", IGNORE_INDEX), ("query_mask", 0)):
            assert torch.equal(batch[name][row, :length], sample[name])
            assert (batch[name][row, length:] == filler).all()
    assert batch["images"].shape == (3, 3, SIDE, SIDE)
    assert batch["images"][:, :, 4, 4].argmax(1).tolist() == [0, 2, 2]
    assert batch["sample_ids"] == ["text", "pair", "one"]


def test_fault_7_batch_of_text_brings_exactly_one_zero_image(folder: Path) -> None:
    dataset = make_dataset(folder, [{"id": i, "conversations": talk("q", "a")} for i in range(3)])
    samples = [dataset[i] for i in range(3)]
    batch = SupervisedCollator(pad_token_id=0, image_size=SIDE)(samples)
    assert batch["images"].shape == (1, 3, SIDE, SIDE) and not batch["images"].any()
    assert "images" not in SupervisedCollator(pad_token_id=0)(samples)


# === Sampler ===


def sampler(seed: int = 0, epoch: int = 0, samples: int = 103, **changes) -> EpochSampler:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 500, (samples,), generator=generator).tolist()
    kinds = [index % 3 != 0 for index in range(samples)]
    options = {"batch_size": 4, "world_size": 2, "accumulation": 3, "lengths": lengths, "kinds": kinds}
    made = EpochSampler(samples, seed, **{**options, **changes})
    made.set_epoch(epoch)
    return made


def test_fault_5_order_depends_on_seed_and_epoch_only() -> None:
    torch.manual_seed(1)
    first = list(sampler())
    torch.manual_seed(2)
    torch.rand(5)
    assert list(sampler()) == first
    state = torch.random.get_rng_state()
    assert list(sampler(epoch=1)) != first and list(sampler(seed=1)) != first
    assert torch.equal(torch.random.get_rng_state(), state)
    other_epoch_first = sampler(epoch=1)
    list(other_epoch_first)
    other_epoch_first.set_epoch(0)
    assert list(other_epoch_first) == first


# Orders that runs were made with, of the first release: a resumed run must continue in the same one.
KNOWN_ORDERS = [
    (
        {"samples": 23, "batch_size": 2, "accumulation": 2, "scale": 20},
        [9, 21, 15, 18, 6, 12, 0, 3, 8, 14, 16, 20, 4, 19, 7, 22, 13, 2, 11, 5, 1, 17, 10],
    ),
    (
        {"samples": 23, "epoch": 1, "batch_size": 2, "accumulation": 2, "kinds": None},
        [9, 4, 20, 13, 6, 22, 12, 11, 18, 0, 16, 7, 2, 3, 1, 19, 15, 14, 8, 21, 5, 17, 10],
    ),
    ({"samples": 11, "seed": 3, "epoch": 2, "lengths": None, "kinds": None}, [5, 9, 8, 10, 2, 0, 7, 1, 4, 3, 6]),
    ({"samples": 5}, [4, 0, 2, 1, 3]),
    (
        {"samples": 19, "seed": 9, "batch_size": 1, "world_size": 3, "accumulation": 1, "lengths": [7] * 19},
        [7, 1, 10, 11, 13, 14, 12, 18, 3, 2, 8, 5, 17, 16, 4, 15, 6, 9, 0],
    ),
    ({"samples": 3000, "seed": 5, "epoch": 1, "world_size": 8, "accumulation": 2}, "1c77e60a894082db"),
    (
        {"samples": 1001, "seed": 5, "epoch": 1, "batch_size": 16, "world_size": 1, "accumulation": 1},
        "41463e2c82646cad",
    ),
    ({"samples": 5000, "seed": 5, "epoch": 1, "batch_size": 1, "world_size": 64}, "c5866034ded3011c"),
]


@pytest.mark.parametrize(("options", "expected"), KNOWN_ORDERS)
def test_the_order_of_a_seed_never_changes(options: dict, expected: list[int] | str) -> None:
    """Long orders are known by the start of their SHA-256."""
    scale = options.get("scale", 1)
    made = sampler(**{name: value for name, value in options.items() if name != "scale"})
    if made.lengths is not None:
        made.lengths = [length // scale for length in made.lengths]
    order = made.order()
    found = order if isinstance(expected, list) else hashlib.sha256(json.dumps(order).encode()).hexdigest()[:16]
    assert found == expected
    if made.lengths is not None:
        made.lengths, made.kinds = np.array(made.lengths), None if made.kinds is None else np.array(made.kinds)
        assert made.order() == order


def test_a_large_data_set_is_ordered_quickly() -> None:
    draw = np.random.default_rng(0)
    lengths, kinds = draw.integers(1, 3000, 665_000), draw.random(665_000) < 0.9
    started = time.process_time()
    order = EpochSampler(665_000, 0, 2, world_size=64, lengths=lengths, kinds=kinds).order()
    assert time.process_time() - started < 20, "about half a second on an idle core; Python loops need much longer"
    assert np.array_equal(np.sort(order), np.arange(665_000))


@pytest.mark.parametrize("changes", [{}, {"kinds": None}, {"lengths": None}, {"samples": 5}, {"samples": 24}])
def test_every_sample_comes_once(changes: dict) -> None:
    samples = changes.get("samples", 103)
    assert sorted(sampler(**changes)) == list(range(samples)) and len(sampler(**changes)) == samples


def test_batches_are_of_one_kind_like_length_and_equal_work() -> None:
    made = sampler(samples=600)
    order, lengths = list(made), made.lengths
    step = 24
    mixed_steps = 0
    for start in range(0, len(order) - len(order) % step, step):
        group = order[start : start + step]
        mixed_steps += len({made.kinds[index] for index in group}) > 1
        passes = [group[i : i + 8] for i in range(0, step, 8)]
        for longer, shorter in pairwise(passes):
            assert min(lengths[i] for i in longer) >= max(lengths[i] for i in shorter)
        for one in passes:
            ranks = [sum(lengths[i] for i in one[:4]), sum(lengths[i] for i in one[4:])]
            spread = max(lengths[i] for i in one) - min(lengths[i] for i in one)
            assert abs(ranks[0] - ranks[1]) <= spread
    assert mixed_steps <= 2
    plain = sampler(samples=600, lengths=None)
    assert padding(order, lengths) < 0.6 * padding(list(plain), lengths)


def padding(order: list[int], lengths) -> float:
    batches = [[lengths[i] for i in order[start : start + 4]] for start in range(0, len(order), 4)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


# === Measuring ===


def test_statistics_by_hand(folder: Path) -> None:
    records = [
        {"id": "a", "image": "red.png", "conversations": talk("<image>\nx", "y")},
        {"id": "b", "conversations": talk("x x x x", "y")},
    ]
    dataset = make_dataset(folder, records, max_length=500)
    text = [len(dataset.encode(0).input_ids) - 1, len(dataset.encode(1).input_ids)]
    found = measure(dataset, [0, 1], batch_size=2)
    assert found.mean_text_tokens == sum(text) / 2
    assert found.mean_sequence_tokens == (text[0] + 4 + text[1]) / 2
    longest = max(text[0] + 4, text[1])
    assert found.padding_share == pytest.approx(1 - (text[0] + 4 + text[1]) / (2 * longest))
    assert (found.samples, found.truncated, found.unsupervised) == (2, 0, 0)


def test_fault_1_more_than_one_percent_without_labels_is_fatal(folder: Path) -> None:
    record = {"id": "short", "conversations": talk("x", "y")}
    long = {"id": "long", "conversations": talk("x " * 200, "y")}
    dataset = make_dataset(folder, [record] * 99 + [long], max_length=120)
    found = measure(dataset, range(100), batch_size=4)
    assert (found.unsupervised, found.truncated, found.unsupervised_ids) == (1, 1, ["long"])
    found.require_supervision()
    dataset = make_dataset(folder, [record] * 98 + [long] * 2, max_length=120)
    with pytest.raises(ValueError, match=r"2 of the first 100 samples have no label .*1%.*'long'.*--model_max_length"):
        measure(dataset, range(100), batch_size=4).require_supervision()


def test_statistics_are_plain_values() -> None:
    assert json.loads(json.dumps(DataStatistics(1, 2.0, 3.0, 0.5, 0, 0).to_dict()))["padding_share"] == 0.5
