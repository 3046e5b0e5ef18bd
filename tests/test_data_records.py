"""What records may look like: read as meant, or refused in words by the training and by the data check alike."""

from __future__ import annotations

import datetime
import gzip
import json
import logging
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_data import checked, kinds
from tiny_llava import flags, write_assets
from tiny_text import byte_level, llama, llava_inputs

from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates, fill_template
from llava.data.check.command import main
from llava.data.check.sources import SourceError, read_objects, write_clean
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.json_stream import iterate_json
from llava.data.mixture import open_mix
from llava.data.records import Record, parse_record, read_records
from llava.data.tokenization import encode_prompt
from llava.data.tokens import RecordEncoder
from llava.train.arguments import parse_arguments
from llava.train.building import load_model, load_tokenizer, make_data


def talk(*turns: Any) -> list[dict[str, Any]]:
    return [{"from": ("human", "gpt")[i % 2], "value": turn} for i, turn in enumerate(turns)]


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in turns]


SHOWN = {"conversations": talk("<image>\nWhich?", "red")}
TWO_SHOWN = {"conversations": talk("<image> or <image>?", "red")}
TEXT = {"conversations": talk("Hi", "Hello")}


# === Media ===


@pytest.mark.parametrize(
    ("data", "images"),
    [
        (SHOWN | {"image": "a.png"}, ("a.png",)),
        (SHOWN | {"images": ["a.png"]}, ("a.png",)),
        (SHOWN | {"images": "a.png", "image": None}, ("a.png",)),
        (TWO_SHOWN | {"images": ["b.png", "a.png"]}, ("b.png", "a.png")),
        (TWO_SHOWN | {"images": ["b.png", "a.png"], "image": ["b.png", "a.png"]}, ("b.png", "a.png")),
        (
            SHOWN | {"image": "a.png", "image_path": "a.png", "image_url": "https://x/1", "original_image": "1"},
            ("a.png",),
        ),
        (TEXT | {"image": None, "images": [], "video": None, "videos": [], "audio": ""}, ()),
        (TEXT | {"image_id": "17", "num_images": 0, "has_video": False, "source": "web", "model": "x"}, ()),
        ({"conversations": talk("What is the `<video>` tag, and <audio>...</audio>?", "markup")}, ()),
        ({"conversations": talk("```html\n<image>\n<video>\n```\nWhat is that?", "markup")}, ()),
        ({"conversations": talk("What is the difference between the tags <video> and <audio>?", "markup")}, ()),
        ({"conversations": talk("How do I use the <video> element in HTML5?", "markup")}, ()),
        ({"conversations": talk("In SVG, the <image> element embeds", "yes", "docker run <image> fails", "no")}, ()),
        ({"conversations": talk("In next.js <Image> component", "yes", "Is <image-1> a syntax?", "no")}, ()),
        ({"conversations": talk('<audio> <source src="a.mp3">', "markup")}, ()),
        ({"conversations": talk('Broken?\n<video>\n  <source src="a.mp4">\nWhy?', "markup")}, ()),
        ({"conversations": talk("Look:\n<div>\n  <image>\n</div>", "markup")}, ()),
        ({"conversations": talk("What does `docker run` do with\n`a` <image>, pray?", "markup")}, ()),
        ({"conversations": talk("How do marks look?", "<image>, <video> or <image-1>")}, ()),
    ],
)
def test_images_are_read_and_what_is_no_media_is_let_be(data: dict[str, Any], images: tuple[str, ...]) -> None:
    record = parse_record(data, 0)
    assert record.images == images
    assert record.turns == tuple(turn["value"] for turn in data["conversations"])


FAULTY_MEDIA = [
    (SHOWN, "has 1 <image> mark.*names no image"),
    ({"conversations": talk("What is this?\n<image>", "red")}, "has 1 <image> mark.*names no image"),
    ({"conversations": talk("What is this?\n<image>\nSay it.", "red")}, "has 1 <image> mark.*names no image"),
    ({"conversations": talk("What is this?\n(<image>)\nSay it.", "red")}, "has 1 <image> mark.*names no image"),
    ({"conversations": talk("One: <image>\nImage 2: <image>\nWhich?", "red")}, "has 2 <image> mark.*names no image"),
    ({"conversations": talk("<im_start><image><im_end>\nWhich?", "red")}, "has 1 <image> mark.*names no image"),
    ({"conversations": talk("See:\n<Img><image></Img>\nWhich?", "red")}, "has 1 <image> mark.*names no image"),
    ({"conversations": talk("<image><image>\nWhich?", "red")}, "has 2 <image> mark.*names no image"),
    ({"conversations": talk("Hi", "Hello", "What is this? <image> <image>", "red")}, "has 2 <image> mark"),
    ({"conversations": talk("What happens?\n<video>", "rain")}, "the mark <video>"),
    ({"conversations": talk("First:\n<image_1>\nThen?", "rain")}, "the mark <image_1>"),
    ({"conversations": talk("Look at <image> and say what it is.", "red")}, "has 1 <image> mark.*names no image"),
    ({"conversations": talk("Say what happens in <video> now.", "rain")}, "the mark <video>"),
    (SHOWN | {"image": "a.png", "second_image": "b.png"}, "media under 'second_image'"),
    (SHOWN | {"image": "a.png", "other_image": "b.png"}, "media under 'other_image'"),
    (SHOWN | {"image": "a.png", "image_b": "b.png"}, "media under 'image_b'"),
    (SHOWN | {"image": "a.png", "imageB": "b.png"}, "media under 'imageB'"),
    (SHOWN | {"image": "a.png", "image2": "b.png"}, "media under 'image2'"),
    (SHOWN | {"image": "a.png", "image_url_2": "https://x/b.png"}, "media under 'image_url_2'"),
    (SHOWN | {"image": "a.png", "image_1_path": "b.png"}, "media under 'image_1_path'"),
    (SHOWN | {"image": "a.png", "image_alt": "b.png"}, "media under 'image_alt'"),
    (SHOWN | {"image": "a.png", "image_location": ["c/b.JPG"]}, "media under 'image_location'"),
    (TEXT | {"clip": "v.mp4"}, "media under 'clip'"),
    (SHOWN | {"image": "a.png", "image_right": "b.png"}, "media under 'image_right'"),
    (SHOWN | {"image": "a.png", "reference_image": "b.png"}, "media under 'reference_image'"),
    (SHOWN | {"image": "c/a.png", "image_path": "/data/d/a.png"}, "media under 'image_path'"),
    (SHOWN | {"image": "a.png", "image_paths": ["a.png", "b.png"]}, "media under 'image_paths'"),
    (SHOWN | {"image": "a.png", "image_data": "iVBORw0KGgo/AAAN=="}, "media under 'image_data'"),
    (SHOWN | {"image": "a.png", "video_folder": "v/1"}, "media under 'video_folder'"),
    (TEXT | {"image_b": "b.png"}, "media under 'image_b'"),
    (SHOWN | {"image": {"bytes": b"x", "path": "a.png"}}, "a mapping of bytes, path; write the images out as files"),
    (SHOWN | {"image": b"x"}, "holds bytes; write the images out as files"),
    (SHOWN | {"image": []}, "has 1 <image> mark.*names no image"),
    (SHOWN | {"image": None}, "has 1 <image> mark.*names no image"),
    (SHOWN | {"image": ""}, "'image' is '', which names no file"),
    (TEXT | {"image": ""}, "'image' is '', which names no file"),
    (TEXT | {"image": ["a.png", " "]}, "which names no file"),
    (SHOWN | {"image": {"path": "a.png"}}, "'image' must be a file name"),
    (SHOWN | {"images": [{"bytes": "x"}]}, "'images' must be a file name"),
    (TWO_SHOWN | {"images": ["a.png"]}, "names 1 image.*has 2 <image> mark"),
    (SHOWN | {"images": ["a.png", "b.png"]}, "names 2 image.*has 1 <image> mark"),
    (TEXT | {"images": ["a.png"]}, "names 1 image.*has 0 <image> mark"),
    (SHOWN | {"image": "a.png", "images": ["b.png"]}, "different files under 'image' and 'images'"),
    (TEXT | {"video": "v.mp4"}, "names 1 video.*has 0 <video> mark"),
    (SHOWN | {"image": "a.png", "video": "v.mp4"}, "names 1 video.*has 0 <video> mark"),
    (SHOWN | {"image": "v.mp4", "conversations": talk("<image><video>", "rain")}, "names no video"),
    (TWO_SHOWN | {"videos": ["v.mp4"]}, "names no image"),
    (SHOWN | {"image_path": "a.png"}, "media under 'image_path'"),
    (SHOWN | {"imagePath": "a.png"}, "media under 'imagePath'"),
    (TEXT | {"img": "a.png"}, "media under 'img'"),
    (TEXT | {"image_file": "a.png"}, "media under 'image_file'"),
    (TEXT | {"image-url": "https://x/a.png"}, "media under 'image-url'"),
    (TEXT | {"image_1": "a.png"}, "media under 'image_1'"),
    (TEXT | {"input_images": ["a.png"]}, "media under 'input_images'"),
    (TEXT | {"audio": {"path": "a.wav"}}, "media under 'audio'"),
    (TEXT | {"audios": ["a.wav"]}, "media under 'audios'"),
    ({"conversations": talk("<video>\nWhat happens?", "rain")}, "the mark <video>"),
    ({"conversations": talk("Listen: <audio>", "rain")}, "the mark <audio>"),
    ({"conversations": talk("<image-1> or <image_2>?", "red")}, "the mark <image-1>"),
    (SHOWN | {"image": "a.png", "conversations": talk("<image>\nAnd <video>?", "red")}, "the mark <video>"),
    ({"conversations": talk("<|image_1|>\nWhich?", "red")}, r"the mark <\|image_1\|>"),
    ({"conversations": talk("<Image>\nWhich?", "red")}, "the mark <Image>"),
    ({"conversations": said(("system", "<image>"), ("human", "Hi"), ("gpt", "Hello"))}, "has 1 <image> mark"),
    (
        {"image": "a.png", "conversations": said(("system", "<image>"), ("human", "Hi"), ("gpt", "Hello"))},
        "the system prompt holds <image>",
    ),
    (
        {"conversations": [{"from": "human", "value": "<image>", "image": "a.png"}, *said(("gpt", "red"))]},
        "turn 0 names media under 'image'",
    ),
]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_name", "1.jpg"),
        ("image_name", "1"),
        ("image_file", "train2017/1.jpg"),
        ("image_folder", "coco"),
        ("image_path", "/data/coco/train2017/1.jpg"),
        ("image_path", ".\\train2017\\1.jpg"),
        ("image_root", "/data/x"),
        ("image_dir", "coco/train2017"),
        ("img", "train2017"),
        ("image_data", "src"),
        ("image_src", "coco"),
        ("image_paths", ["1.jpg"]),
        ("image_1", "1.jpg"),
        ("second_image", "1.jpg"),
        ("source_image", "2.jpg"),
        ("image_link", "file:///data/7"),
        ("num_images", "2"),
        ("frames_dir", "coco"),
        ("image_width", "640"),
        ("image_h", "3"),
        ("image_caption", "as in 2.jpg"),
        ("image_format", "jpg"),
        ("image_source_path", "2.jpg"),
        ("image_full_path", "/data/coco/train2017/1.jpg"),
    ],
)
def test_what_repeats_an_image_or_says_whence_it_came_is_let_be(key: str, value: Any) -> None:
    assert parse_record(SHOWN | {"image": "coco/train2017/1.jpg", key: value}, 0).images == ("coco/train2017/1.jpg",)


@pytest.mark.parametrize(("data", "words"), FAULTY_MEDIA)
def test_media_that_would_not_be_seen_are_errors(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"record '?5'?.*{words}"):
        parse_record(data, 5)
    assert kinds(checked([data], images="skip")) == [(0, "schema")]


@pytest.mark.parametrize("data", [SHOWN, TEXT | {"video": "v.mp4"}, TEXT | {"image": ""}])
def test_training_and_the_check_refuse_the_file_and_name_the_record(
    data: dict[str, Any], tmp_path: Path, capsys
) -> None:
    path, clean = tmp_path / "data.json", tmp_path / "clean.json"
    path.write_text(json.dumps([TEXT | {"id": "good"}, data | {"id": "bad"}]))
    config = DataConfig(99, 4, cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"1 of 2 records are unusable:\n  record 'bad'.*\n.*--write-clean"):
        LazySupervisedDataset(path, llava_inputs(byte_level()), config)
    told = ["--data-path", str(path), "--image-folder", str(tmp_path), "--workers", "0", "--write-clean", str(clean)]
    assert main(told) == 1 and "record 'bad'" in capsys.readouterr().out
    assert [record.id for record in read_records(clean)] == ["good"]


# === Roles ===


def test_both_spellings_of_roles_and_keys_train_alike() -> None:
    plain = parse_record({"conversations": talk("Hi", "Hello", "So?", "Yes")}, 0)
    texts = plain.turns
    for speakers in (("user", "assistant"), ("human", "assistant"), ("user", "gpt")):
        for who, what in (("from", "value"), ("role", "content"), ("from", "content")):
            turns = [{who: speakers[i % 2], what: text} for i, text in enumerate(texts)]
            for key in ("conversations", "messages"):
                assert parse_record({key: turns}, 0) == plain
    assert parse_record({"conversations": None, "messages": talk(*texts)}, 0) == plain


@pytest.mark.parametrize("mark", ["gpt", "assistant"])
def test_only_one_leading_answer_may_go_and_it_is_counted(tmp_path: Path, mark: str) -> None:
    data = {"id": "a", "conversations": [*said((mark, "Welcome!")), *talk("Hi", "Hello")]}
    assert parse_record(data, 0) == Record("a", ("Hi", "Hello"), left_out=1)
    with pytest.raises(ValueError, match=f"turn 1 is from '{mark}', and the human must come first"):
        parse_record({"conversations": [*said((mark, "Welcome!")), *data["conversations"]]}, 0)
    path = tmp_path / "data.json"
    path.write_text(json.dumps([data, data, TEXT]))
    for _ in range(2):  # read, and found in the cache
        told = open_mix(path, tmp_path / "cache").describe()
        assert "the first turn of 2 records is the assistant's and left out" in told
    assert kinds(checked([data, TEXT])) == [(0, "leading_answer")]


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        (said(("user", "Before"), ("human", "Hi"), ("gpt", "Hello")), "turn 1 is from 'human', and so is turn 0"),
        (said(("human", "Hi"), ("gpt", "A"), ("assistant", "B")), "turn 2 is from 'assistant', and so is turn 1"),
        (said(("human", "Hi"), ("gpt", "A"), ("system", "S")), "turn 2 is from 'system'; the system speaks once"),
        (said(("system", "S"), ("system", "S"), ("human", "Hi"), ("gpt", "A")), "turn 1 is from 'system'"),
        (said(("gpt", "A"), ("system", "S"), ("human", "Hi"), ("gpt", "A")), "turn 1 is from 'system'"),
        (said(("human", "Hi"), ("tool", "{}")), "turn 1 is from 'tool'; accepted are"),
        (said(("human", "Hi"), (3, "A")), "turn 1 is from 3; accepted are"),
        ([{"value": "Hi"}], "turn 0 is from None; accepted are"),
        ([{"from": "human", "role": "user", "value": "Hi"}], "turn 0 has both 'from' and 'role'"),
        ([{"from": "human", "value": "Hi", "content": "Ho"}], "turn 0 has both 'value' and 'content'"),
        (said(("system", "S")), "no human turn"),
        (said(("system", "S"), ("gpt", "A")), "no human turn"),
        (talk("Hi", None), "turn 1 has no text"),
        (talk("Hi", 0.5), "turn 1 is 0.5, which is no text"),
        (talk("Hi", True), "turn 1 is True, which is no text"),
        (talk([{"type": "image"}, {"type": "text", "text": "Hi"}], "A"), "turn 0 is made of parts"),
        ({"from": "human", "value": "Hi"}, "'conversations' must be a list of turns"),
        ("Hi", "'conversations' must be a list of turns"),
        (["Hi", "Hello"], "'conversations' must be a list of turns"),
    ],
)
def test_turns_that_nobody_can_place_are_named(turns: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"record 'a'.*{words}"):
        parse_record({"id": "a", "conversations": turns}, 0)


def test_a_run_says_in_how_many_records_without_media_marks_are_read_as_text(tmp_path: Path) -> None:
    prose = {"conversations": talk("How do I use the <video> element in HTML5?", "So.")}
    path = tmp_path / "data.json"
    path.write_text(json.dumps([prose, TEXT, SHOWN | {"image": "a.png"}, prose]))
    for _ in range(2):  # read, and found in the cache
        told = open_mix(path, tmp_path / "cache").describe()
        assert "marks such as <image> are text in 2 records without media" in told
    path.write_text(json.dumps([TEXT, SHOWN | {"image": "a.png"}]))
    assert "marks" not in open_mix(path, tmp_path / "cache").describe()


def weighed(**weights: Any) -> list[dict[str, Any]]:
    """A conversation whose turns have weights: of the `system`, the `human`, the `first` answer and the `last`."""
    roles = {"system": "system", "human": "human", "first": "gpt", "again": "human", "last": "gpt"}
    return [{"from": role, "value": name, **weights.get(name, {})} for name, role in roles.items()]


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        (weighed(first={"loss": False}), "turn 2 has 'loss': False, which is not heeded: every answer is trained"),
        (weighed(first={"weight": 1}, last={"weight": 0}), "turn 4 has 'weight': 0"),
        (weighed(last={"weight": 0.5}), "turn 4 has 'weight': 0.5"),
        (weighed(last={"train": "false"}), "turn 4 has 'train': 'false'"),
        (weighed(human={"training": True}), "turn 1 has 'training': True"),
    ],
)
def test_a_turn_that_is_to_be_trained_otherwise_than_it_is_is_an_error(turns: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"record 'a': {words}"):
        parse_record({"id": "a", "conversations": turns}, 0)
    assert kinds(checked([{"conversations": turns}])) == [(0, "schema")]


def test_weights_of_turns_may_say_what_is_done_anyway() -> None:
    none, asked, taught = {"weight": None, "loss": None}, {"weight": 0.0, "loss": False}, {"weight": 1.0, "loss": True}
    given = parse_record({"conversations": weighed(system=none, human=asked, first=taught, last=taught)}, 0)
    assert given == parse_record({"conversations": weighed()}, 0)
    left_out = [{"from": "gpt", "value": "Welcome", "loss": False}, *talk("Hi", "Hello")]
    assert parse_record({"conversations": left_out}, 0).turns == ("Hi", "Hello")


def test_one_key_of_turns_is_enough() -> None:
    with pytest.raises(ValueError, match="both 'conversations' and 'messages'"):
        parse_record(TEXT | {"messages": talk("Hi", "Hello")}, 0)


def test_numbers_stand_for_their_digits() -> None:
    assert parse_record({"conversations": talk("How many?", 3, 17, "ok")}, 0).turns == ("How many?", "3", "17", "ok")


@pytest.mark.parametrize(("given", "name"), [(None, "4"), ("", "4"), (7, "7"), ("x", "x"), (0, "0")])
def test_ids_may_be_missing_empty_or_numbers(given: Any, name: str) -> None:
    assert parse_record(TEXT | {"id": given}, 4).id == name and parse_record(TEXT, 4).id == "4"
    assert kinds(checked([TEXT | {"id": None}, TEXT | {"id": ""}, TEXT | {"id": None}])) == []
    for bad in ([1], {"a": 1}, True):
        with pytest.raises(ValueError, match=r"record 4: 'id' is .*; it must be text or a number"):
            parse_record(TEXT | {"id": bad}, 4)


# === System prompts ===


def encode(data: dict[str, Any], template: str):
    tokenizer = llama()
    return RecordEncoder(llava_inputs(tokenizer, template=template)).encode(parse_record(data, 0)), tokenizer


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("v1", "Be brief. USER: red? ASSISTANT: three</s>"),
        ("v0", "Be brief.###Human: red?###Assistant: three###"),
        ("llava_llama_2", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nred? [/INST] three </s>"),
        ("mistral_instruct", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nred? [/INST] three </s>"),
        (
            "chatml_direct",
            "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nred?<|im_end|><|im_start|>assistant\n"
            "three<|im_end|>",
        ),
    ],
)
def test_a_rows_system_turn_is_its_system_prompt(template: str, prompt: str) -> None:
    ways = [
        {"conversations": said(("system", "Be brief."), ("human", "red?"), ("gpt", "three"))},
        {"system": "Be brief.", "conversations": talk("red?", "three")},
    ]
    before = conv_templates[template].system
    for data in ways:
        encoded, tokenizer = encode(data, template)
        assert encoded.input_ids == tokenizer(prompt).input_ids
        plain, _ = encode({"conversations": talk("red?", "three")}, template)
        assert [label for label in encoded.labels if label != IGNORE_INDEX] == [
            label for label in plain.labels if label != IGNORE_INDEX
        ]
        asked = encode_prompt(["red?"], tokenizer, template, system="Be brief.")
        assert encoded.input_ids[: len(asked.input_ids)] == asked.input_ids
    assert conv_templates[template].system == before


@pytest.mark.parametrize("template", [name for name in conv_templates if "plain" not in name])
def test_every_template_takes_another_system_prompt_and_keeps_its_marks(template: str) -> None:
    own = fill_template(template, ["red?", "three"])
    other = fill_template(template, ["red?", "three"], "Be brief.")
    body = own.system.rsplit("system\n", 1)[-1].rsplit("<|end_header_id|>\n\n", 1)[-1]
    assert (body and body in own.get_prompt()) or template in ("mistral_instruct", "chatml", "llama_3")
    assert other.get_prompt().count("Be brief.") == 1 and (not body or body not in other.get_prompt())
    if body:
        assert own.get_prompt().replace(body, "Be brief.") == other.get_prompt()


def test_rows_without_a_system_turn_keep_the_templates_and_plain_has_none() -> None:
    empty = {"conversations": said(("system", ""), ("human", "red?"), ("gpt", "three"))}
    assert encode(empty, "v1")[0] == encode({"conversations": talk("red?", "three"), "system": None}, "v1")[0]
    data = {"image": "a.png", "conversations": [*said(("system", "S")), *talk("<image>", "red")]}
    with pytest.raises(ValueError, match="record '0': Template 'plain' has no system prompt"):
        encode(data, "plain")
    assert kinds(checked([data], template="plain", images="skip")) == [(0, "not_encodable")]
    longer = {"image": "a.png", "conversations": talk("<image>", "red", "And?", "blue")}
    assert kinds(checked([longer], template="plain", images="skip")) == [(0, "turns_unread")]
    assert kinds(checked([longer], images="skip")) == []
    with pytest.raises(ValueError, match="'system' is 3; it must be text"):
        parse_record(TEXT | {"system": 3}, 0)
    with pytest.raises(ValueError, match="a system turn and another text under 'system'"):
        parse_record({"system": "T", "conversations": said(("system", "S"), ("human", "x"), ("gpt", "y"))}, 0)


def test_a_system_prompt_under_another_key_is_an_error_unless_it_repeats_the_one_that_is_read() -> None:
    for data in (TEXT, TEXT | {"system": "Be long."}):
        with pytest.raises(ValueError, match="record '0' has 'system_prompt', which is not read; name it 'system'"):
            parse_record(data | {"system_prompt": "Be brief."}, 0)
    assert parse_record(TEXT | {"system_prompt": ""}, 0).system is None
    assert parse_record(TEXT | {"system_prompt": "Be brief.", "system": "Be brief."}, 0).system == "Be brief."


def test_system_prompts_survive_the_table_and_count_as_words(tmp_path: Path) -> None:
    rows = [
        {"id": "s", "system": "Be very brief.", "conversations": talk("Hi", "Hello")},
        {"id": "t", "conversations": talk("Hi", "Hello")},
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    config = DataConfig(500, 4, cache_dir=tmp_path / "cache")
    table = LazySupervisedDataset(path, llava_inputs(byte_level()), config)
    memory = LazySupervisedDataset(read_records(path), llava_inputs(byte_level()), config)
    assert [table.encode(i) for i in (0, 1)] == [memory.encode(i) for i in (0, 1)]
    assert list(table.records) == list(memory.records) and table.lengths.tolist() == memory.lengths.tolist() == [5, 2]


# === Files ===

GOOD = [{"id": str(number), "conversations": talk(f"größer {number}?", "ja")} for number in range(3)]
LINES = "\n".join(json.dumps(record, ensure_ascii=False) for record in GOOD)
BOM = b"\xef\xbb\xbf"


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", BOM + json.dumps(GOOD).encode()),
        ("a.jsonl", BOM + LINES.encode()),
        ("a.jsonl", BOM + LINES.encode().replace(b"\n", b"\n" + BOM)),
        ("a.jsonl", LINES.replace("\n", "\r\n\r\n \r\n").encode() + b"\r\n"),
        ("a.json", b"\n\n" + json.dumps(GOOD, indent=2).replace("\n", "\r\n").encode()),
        ("a.json.gz", gzip.compress(json.dumps(GOOD).encode(), mtime=0)),
        ("a.jsonl.gz", gzip.compress(BOM + LINES.encode(), mtime=0)),
        ("named-otherwise.json", gzip.compress(LINES.encode(), mtime=0)),
    ],
)
def test_files_of_other_programs_are_read_alike(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    expected = [parse_record(record, number) for number, record in enumerate(GOOD)]
    assert read_records(path) == expected == list(open_mix(path, tmp_path / "cache"))
    assert read_objects(path) == GOOD and list(iterate_json(path, chunk=16)) == GOOD


def test_parquet_is_read_and_its_nulls_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [
        {"id": "a", "image": "a.png", **SHOWN, "video": None, "day": datetime.date(2024, 1, 2)},
        {"id": None, "image": None, **TEXT, "video": None, "day": None},
    ]
    parquet(path, rows)
    expected = [Record("a", ("<image>\nWhich?", "red"), ("a.png",)), Record("1", ("Hi", "Hello"))]
    assert read_records(path) == expected == list(open_mix(path, tmp_path / "cache"))
    assert checked(read_objects(path), images="skip").findings == {}
    assert write_clean(tmp_path / "clean.json", read_objects(path)) == 2
    assert read_records(tmp_path / "clean.json") == expected
    parquet(path, [{"id": "a", "image": {"bytes": b"x", "path": "a.png"}, **SHOWN}])
    with pytest.raises(ValueError, match="record 'a': 'image' must be a file name"):
        read_records(path)


def test_a_mixture_may_name_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    parquet(tmp_path / "b.parquet", GOOD)
    mix = tmp_path / "mix.YAML"
    mix.write_bytes(BOM + b"sources:\r\n  - {path: a.json.gz}\r\n  - {path: b.parquet, weight: 2}\r\n")
    assert len(open_mix(mix, tmp_path / "cache")) == 9


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04rest", "a ZIP archive; unpack it"),
        (lzma.compress(b"[]"), "compressed with xz; unpack it"),
        (b"\x28\xb5\x2f\xfdrest", "compressed with zstd; unpack it"),
        ("[]".encode("utf-16"), "UTF-16 text, not UTF-8"),
        (json.dumps(GOOD, ensure_ascii=False).encode("latin-1"), "not UTF-8 text"),
        (b"PAR1rest", "damaged Parquet table"),
        (gzip.compress(b"[" * 9, mtime=0)[:-6], "cannot be unpacked"),
    ],
)
def test_files_that_cannot_be_read_say_what_they_are(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json.* {words}"):
        read_records(path)
    with pytest.raises(SourceError, match=f"a.json.* {words}"):
        read_objects(path)


def test_compressed_files_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    whole = gzip.compress(json.dumps([{"text": str(n) * 40} for n in range(20_000)]).encode())
    path.write_bytes(whole[: len(whole) // 2])
    items = iterate_json(path, chunk=64)
    assert next(items) == {"text": "0" * 40}  # the end, which is missing, was not looked at
    with pytest.raises(ValueError, match="cannot be unpacked"):
        list(items)


# === The start of a run ===


def test_a_run_with_a_tower_and_no_image_warns_and_its_opening_is_kept(tmp_path: Path, caplog) -> None:
    assets = write_assets(tmp_path)
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps([TEXT] * 4))

    def build(**changes: Any):
        model_args, data_args, args = parse_arguments(flags(assets, tmp_path / "out", "finetune", **changes))
        tokenizer = load_tokenizer(model_args, args)
        model = load_model(model_args, data_args, args, tokenizer)
        return model, make_data(model, tokenizer, model_args, data_args)[0]

    with caplog.at_level(logging.WARNING):
        model, dataset = build(data_cache_dir=tmp_path / "cache")
        assert "names an image" not in caplog.text
        assert model.config.image_opening == dataset.inputs.image_opening == "upright"
        model, dataset = build(data_path=texts, data_cache_dir=tmp_path / "cache", image_opening="llava")
    assert f"no record of {texts} names an image" in caplog.text
    assert model.config.image_opening == dataset.inputs.image_opening == "llava"
    model.save_pretrained(tmp_path / "lying")
    assert json.loads((tmp_path / "lying" / "config.json").read_text())["image_opening"] == "llava"
    with pytest.raises(ValueError, match="--image_opening is 'sideways'; it must be one of upright, llava"):
        build(image_opening="sideways")
