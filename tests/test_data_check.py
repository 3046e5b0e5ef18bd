"""`python -m llava.data.check`: each fault made and found, figures against independent counts, survival of workers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_data import ASSUMED, checked, kinds, shown, talk, write_images
from tiny_text import llama

from llava.cost.shapes import CLIP_L_336, MODELS, DecoderShape, VisionShape
from llava.data.check import conversations
from llava.data.check.budgets import epoch_of, figures, padding_share, visual_tokens_of
from llava.data.check.check_settings import CheckSettings
from llava.data.check.checking import check
from llava.data.check.conversations import check_conversations, load_tokenizer
from llava.data.check.estimate import TokenEstimator
from llava.data.check.findings import KINDS
from llava.data.check.image_files import check_images, prepared_pixels
from llava.data.check.sources import DataFile
from llava.data.images import open_rgb
from llava.data.sampler import EpochSampler

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("images")
    write_images(at)
    return at


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    at = tmp_path_factory.mktemp("tokenizer")
    llama().save_pretrained(at)
    return str(at)


def kinds_of_image(folder: Path, name: str, **settings: Any) -> list[str]:
    return [finding.kind for finding in check_images([(str(folder), name)], CheckSettings(**settings))[0]]


# === Images (fault 9: missing or corrupt image, gif named jpg, CMYK, 16 bit, zero size) ===


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("good.png", []),
        ("good.jpg", []),
        ("gif_named.jpg", ["image_mislabelled"]),
        ("cmyk.jpg", ["image_cmyk"]),
        ("deep_grey.png", ["image_deep"]),
        ("deep_rgb.png", ["image_deep"]),
        ("deep_float.tiff", ["image_deep"]),
        ("empty.jpg", ["image_empty"]),
        ("cut.jpg", ["image_broken"]),
        ("damaged.png", ["image_broken"]),
        ("page.jpg", ["not_an_image"]),
        ("folder.png", ["not_an_image"]),
        ("pipe.png", ["not_an_image"]),
        ("bomb.png", ["image_bomb"]),
        ("big_bomb.png", ["image_bomb"]),
        ("wire.png", ["image_bomb"]),
        ("thin.png", ["image_thin"]),
        ("large.png", ["image_large"]),
        ("tiny.png", ["image_tiny"]),
        ("moving.gif", ["image_animated"]),
        ("glass.png", ["image_transparent"]),
        ("lying.jpg", ["image_rotated"]),
        ("gone.png", ["image_missing"]),
        ("good.png/inside.png", ["image_missing"]),
        ("../good.png", ["image_outside_folder"]),
        ("/etc/passwd", ["image_outside_folder"]),
        ("nul\0.png", ["image_broken"]),
    ],
)
def test_fault_9_each_kind_of_bad_image_is_found(folder: Path, name: str, expected: list[str]) -> None:
    assert kinds_of_image(folder, name) == expected


def test_fault_9_image_under_another_ending_is_pointed_out(folder: Path) -> None:
    (finding,) = check_images([(str(folder), "ocr.jpg")], CheckSettings())[0]
    assert finding.kind == "image_missing" and finding.detail == "ocr.jpg (there is ocr.gif)"


def test_headers_alone_miss_what_is_cut_off_and_nothing_else(folder: Path) -> None:
    assert kinds_of_image(folder, "cut.jpg", images="header") == []
    for name, kind in (("empty.jpg", "image_empty"), ("page.jpg", "not_an_image"), ("bomb.png", "image_bomb")):
        assert kinds_of_image(folder, name, images="header") == [kind]


def test_errors_are_what_training_cannot_open_and_warnings_what_it_can(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        found = kinds_of_image(folder, path.name)
        if path.name in ("pipe.png", "bomb.png", "big_bomb.png", "wire.png"):  # opening them hangs or fills memory
            assert found and KINDS[found[0]].severity == "error"
        elif any(KINDS[kind].severity == "error" for kind in found):
            with pytest.raises(ValueError, match=path.name):
                open_rgb(path)
        else:
            assert open_rgb(path).mode == "RGB"


def test_memory_of_a_thin_image_is_that_of_its_preparation() -> None:
    assert prepared_pixels((30_000, 20), "pad") == prepared_pixels((20, 30_000), "pad") == 30_000**2
    assert prepared_pixels((3_000, 30), "square") == 336 * 33_600


def test_image_fault_reaches_every_record_that_names_the_file_and_it_is_opened_once(folder: Path) -> None:
    data = [shown("a", "empty.jpg"), shown("b", "good.png"), shown("c", "empty.jpg"), shown("d", "good.png")]
    result = checked(data, folder)
    assert kinds(result) == [(0, "image_empty"), (2, "image_empty")] and result.distinct_images == 2
    assert checked(data, folder, images="skip").findings == {}


# === Conversations ===


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"id": "a", "conversations": talk("Hi", "Hello")}, []),
        ({"id": "a"}, ["schema"]),
        ("text", ["schema"]),
        (None, ["schema"]),
        ({"conversations": talk("Hi", "Hello", "So?") + talk("again")}, ["schema"]),
        ({"image": "a.png", "conversations": talk("no mark", "ok")}, ["schema"]),
        ({"image": ["a.png", "b.png"], "conversations": talk("<image>", "ok")}, ["schema"]),
        ({"image": 5, "conversations": talk("<image>", "ok")}, ["schema"]),
        ({"conversations": talk("What is this? <image>", "a mark")}, ["schema"]),
        ({"conversations": talk("What is <image>?", "a mark")}, ["schema"]),
        ({"conversations": talk("What is the tag <image>?", "a mark")}, ["mark_in_prose"]),
        ({"conversations": talk("What is `<image>`?", "a mark")}, []),
        ({"conversations": talk("What is that?", "<image> is a mark")}, ["mark_in_answer"]),
        ({"conversations": talk("x", "Welcome!", "Hi", "Hello")[1:]}, ["leading_answer"]),
        ({"conversations": talk("Hi", "Hello", "And?", " \n")}, ["blank_answer"]),
        ({"conversations": talk("Hi", "half a \ud83d letter")}, ["schema"]),
    ],
)
def test_each_fault_of_a_conversation_is_found(data: Any, expected: list[str], tokenizer: str) -> None:
    (outcome,) = check_conversations([(0, data)], CheckSettings(tokenizer=tokenizer))
    assert [finding.kind for finding in outcome.findings] == expected


def test_error_that_nobody_foresaw_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"id": "a", "conversations": talk("Hi", "Hello")}
    for name in ("parse_record", "truncate"):
        with monkeypatch.context() as patch:
            patch.setattr(conversations, name, lambda *_: {}["gone"])
            result = checked([record, {"id": "b"}])
        found = result.findings[0]
        assert [(f.kind, f.detail) for f in found] == [("unexpected", "KeyError: 'gone'")] and len(result) == 2


@pytest.mark.parametrize("turns", [["Hi"], ["Hi", ""], ["Hi", " ", "And?", "\n"]])
def test_fault_1_records_without_labels_are_errors(turns: list[str]) -> None:
    assert kinds(checked([{"id": "a", "conversations": talk(*turns)}])) == [(0, "no_labels")]


def test_fault_2_answer_cut_off_by_image_expansion_is_an_error_where_it_happens(tokenizer: str) -> None:
    record = shown("a", "a.png", answer="red three " * 20)
    settings = {"tokenizer": tokenizer, "images": "skip", "budgets": ("none", "small"), "visual_tokens": (576, 9)}
    prompt = f"{SYSTEM} USER: <image>\nWhich digit? ASSISTANT: " + "red three " * 20 + "</s>"
    before, after = prompt.split("<image>")
    text = len(ids(before, tokenizer)) + len(ids(after, tokenizer, special=False))
    question = text - len(ids("red three " * 20 + "</s>", tokenizer, special=False))

    assert checked([record], max_length=text + 576, **settings).findings == {}
    cut = checked([record], max_length=text + 575, **settings)
    assert [(f.kind, f.detail) for f in cut.findings[0]] == [
        ("truncated", f"{text + 576} tokens, of which {text + 575} are taken; cut at none")
    ]
    assert cut.text.tolist() == [[text - 1, text]] and cut.truncated.tolist() == [[True, False]]
    lost = checked([record], max_length=question + 500, **settings)
    assert kinds(lost) == [(0, "no_labels")] and lost.findings[0][0].detail.endswith("every answer is cut off at none")
    assert lost.supervised.tolist() == [[False, True]]


def test_plain_template_needs_an_image_and_learns_the_caption(tokenizer: str) -> None:
    data = [shown("a", "a.png", "a photograph"), {"id": "b", "conversations": talk("Hi", "Hello")}]
    result = checked(data, tokenizer=tokenizer, template="plain", images="skip")
    assert kinds(result) == [(1, "not_encodable")]
    assert result.text[0, 0] == 1 + len(ids("a photograph\n", tokenizer, special=False))
    later = {"id": "c", "image": "c.png", "conversations": talk("<image>", " ", "And?", "never read")}
    assert kinds(checked([later], template="plain", images="skip"))[0] == (0, "no_labels")


def test_ids_that_come_back_are_warnings_and_missing_ids_are_not() -> None:
    chat = talk("Hi", "Hello")
    data = [{"id": 7, "conversations": chat}, {"conversations": chat}, {"conversations": chat}]
    result = checked([*data, {"id": "7", "conversations": chat}])
    assert kinds(result) == [(3, "duplicate_id")] and result.findings[3][0].detail == "7: as record 0"
    assert result.faulty == []
    twice = [DataFile(Path(name), ".", objects=data) for name in ("a.json", "b.json")]
    assert check(twice, CheckSettings()).findings == {}


def test_without_tokenizer_tokens_are_estimated_from_letters_and_marks() -> None:
    text = "Describe 42 pictures!"  # Descri be 4 2 pictur es !
    pieces = TokenEstimator()(text, add_special_tokens=False)
    assert [text[a:b] for a, b in pieces["offset_mapping"]] == ["Descri", "be", "4", "2", "pictur", "es", "!"]
    result = checked([{"id": "a", "conversations": talk("Hi", "Hello")}], template="plain", images="skip")
    assert kinds(result) == [(0, "not_encodable")]
    assert checked([shown("a", "a.png", "a man!")], template="plain", images="skip").text.tolist() == [[4]]


def test_tokenizer_that_is_not_there_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--tokenizer is .*which cannot be loaded"):
        load_tokenizer(str(tmp_path))


def ids(text: str, tokenizer: str, special: bool = True) -> list[int]:
    found: list[int] = load_tokenizer(tokenizer)(text, add_special_tokens=special).input_ids
    return found


# === Figures ===

TINY_DECODER = DecoderShape(layers=2, width=8, heads=2, kv_heads=1, head_dim=4, mlp=16, vocab=100)
TINY_VISION = VisionShape(layers=1, width=4, mlp=8, patches=16, patch_values=12)
TINY_BUDGET = "v2v: {dominant: 7, contextual: 2, cluster_width: 2}\nt2v: {layers: [1], keep: [0.5]}\n"


def varied(count: int) -> list[dict[str, Any]]:
    """Records of many lengths; every third has no image, every seventh two."""
    data = []
    for index in range(count):
        images = 0 if index % 3 == 0 else 2 if index % 7 == 0 else 1
        question = "<image> " * images + "Which colour is it?" + " Answer with one word." * (index % 5)
        record: dict[str, Any] = {"id": f"r{index}", "conversations": talk(question, "blue " * (1 + index % 11))}
        data.append(record | ({"image": [f"{index}-{n}.png" for n in range(images)]} if images else {}))
    return data


def test_figures_equal_a_count_by_plain_loops(tokenizer: str) -> None:
    data = varied(50)
    visual = visual_tokens_of(["none", "duet-64"], MODELS["llava-1.5-7b"], CLIP_L_336)
    assert visual == (576, 102)
    settings = CheckSettings(
        tokenizer=tokenizer, images="skip", budgets=("none", "duet-64"), visual_tokens=visual, max_length=4096
    )
    result = check([DataFile(Path("data.json"), ".", objects=data)], settings)
    found = figures(result, ASSUMED, MODELS["llava-1.5-7b"], CLIP_L_336)
    assert result.findings == {}
    for budget, per_image in zip(("none", "duet-64"), visual, strict=True):
        texts, lengths, words = [], [], []
        for record in data:
            question, answer = (turn["value"] for turn in record["conversations"])
            if question.count("<image>") == 1:
                question = "<image>\n" + question.replace("<image>", "").strip()
            pieces = f"{SYSTEM} USER: {question} ASSISTANT: {answer}</s>".split("<image>")
            texts.append(sum(len(ids(piece, tokenizer, special=not number)) for number, piece in enumerate(pieces)))
            lengths.append(texts[-1] + per_image * (len(pieces) - 1))
            spoken = f"{question} {answer}".replace("<image>", " ").split()
            words.append(len(spoken) + per_image * (len(pieces) - 1))
        row = found[budget]
        assert row.mean_text_tokens == pytest.approx(sum(texts) / 50)
        assert row.mean_sequence_tokens == pytest.approx(sum(lengths) / 50)
        assert row.max_sequence_tokens == max(lengths) and row.truncated == row.unsupervised == 0
        kinds_of_records = ["image" in record for record in data]
        for share, sampler in (
            (row.padding_shuffled, EpochSampler(50, 42, 3, 2)),
            (row.padding_grouped, EpochSampler(50, 42, 3, 2, lengths=words, kinds=kinds_of_records)),
        ):
            order, filler, positions = sampler.order(), 0, 0
            for start in range(0, 50, 3):
                batch = [lengths[index] for index in order[start : start + 3]]
                positions += max(batch) * len(batch)
                filler += sum(max(batch) - length for length in batch)
            assert share == pytest.approx(filler / positions)


def test_flops_and_hours_equal_numbers_worked_by_hand(tmp_path: Path) -> None:
    budget = tmp_path / "tiny.yaml"
    budget.write_text(TINY_BUDGET)
    visual = visual_tokens_of([str(budget)], TINY_DECODER, TINY_VISION)
    settings = CheckSettings(images="skip", budgets=(str(budget),), visual_tokens=visual, template="plain")
    data = [shown("a", "a.png", "a man!"), shown("b", "b.png", "a man!"), shown("c", "c.png", "a")]
    row = figures(check([DataFile(Path("d"), ".", objects=data)], settings), ASSUMED, TINY_DECODER, TINY_VISION)[
        str(budget)
    ]
    # 9 visual tokens in layer 0, 4 in layer 1. Text: BOS and the caption's pieces, 4, 4 and 2 tokens.
    # A layer has 2*8*4*(2+1) + 3*8*16 = 576 weights: 2*576*S + 2*8*S*S FLOPs over S tokens.
    four = (1152 * 13 + 16 * 13**2) + (1152 * 8 + 16 * 8**2)
    two = (1152 * 11 + 16 * 11**2) + (1152 * 6 + 16 * 6**2)
    # Head 3*2*8*100 a token; projector 3*2*(4*8 + 8*8) for each of 9 tokens. The tower has 4*4*4 + 2*4*8 = 128
    # weights and 17 tokens: 2*128*17 + 4*4*17*17, and patches 2*12*4*16.
    tower = 4352 + 4624 + 1536
    fixed = 3 * 2 * (4 * 8 + 8 * 8) * 9 + tower
    total = 2 * (4 * four + 4800 * 8 + fixed) + 4 * two + 4800 * 6 + fixed
    assert row.flops == total
    assert row.hours == pytest.approx(total / (2 * 1e12 * 0.5) / 3600)
    assert row.average_visual_tokens == 6.5 and row.mean_text_tokens == pytest.approx(10 / 3)


def test_padding_of_batches_worked_by_hand() -> None:
    lengths = np.array([10, 4, 6, 8, 5])  # batches (5, 10), (4, 8), (6): 20 + 16 + 6 positions, 33 used
    assert padding_share(lengths, [4, 0, 1, 3, 2], 2) == pytest.approx(9 / 42)
    assert padding_share(np.zeros(0, np.int64), [], 2) == 0.0


def test_faulty_records_are_left_out_and_weights_counted() -> None:
    good = {"conversations": talk("Hi", "Hello")}
    first = DataFile(Path("a.json"), ".", 2.5, 0, [good, {}, good, good, good])
    second = DataFile(Path("b.json"), ".", 0.0, 0, [good])
    result = check([first, second], CheckSettings())
    seen = Counter(epoch_of(result).tolist())
    assert set(seen) == {0, 2, 3, 4} and sorted(seen.values()) == [2, 2, 3, 3]
    empty = checked([{}])
    row = figures(empty, ASSUMED, MODELS["llava-1.5-7b"], CLIP_L_336)["none"]
    assert row.flops == 0 and row.mean_sequence_tokens == row.padding_grouped == 0.0
