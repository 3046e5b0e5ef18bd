"""Paths, addresses and questions as people type them, in the chat, in one question and in files of questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from test_chat import TALK, TOKENIZER, by_hand, make_chat, make_model, pictures

from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.tokenization import encode_prompt
from llava.eval import model_vqa, model_vqa_loader
from llava.eval.benchmarks.reading import read_questions
from llava.eval.benchmarks.sqa import science_questions
from llava.eval.run_llava import _parser, image_files
from llava.inference.places import typed_place
from llava.inference.typed_images import read_image
from llava.serve.cli import KNOWN, as_command


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture in a home folder, with a name that needs care."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "my photos" / "a,b #1 100%.png"
    path.parent.mkdir()
    Image.new("RGB", (4, 6), (10, 200, 30)).save(path)
    return path


def test_a_picture_opens_however_its_path_is_typed(photo: Path):
    escaped = str(photo).replace(" ", "\\ ").replace("#", "\\#").replace(",", "\\,")
    inside = str(photo.relative_to(photo.parents[1]))
    for typed in (
        str(photo),
        f"  {photo} ",
        f"'{photo}'",
        f'"{photo}"',
        f"“{photo}”",
        f"~/{inside}",
        f"'~/{inside}'",
        escaped,
        photo.as_uri(),
        f"'{photo.as_uri()}'",
        f"file://localhost{photo}",
        f"FILE://{photo}",
        f"file:{photo}",
        f"~/{inside}".replace(" ", "\\ "),
    ):
        assert typed_place(typed) == str(photo), typed
        assert read_image(typed).getpixel((0, 0)) == (10, 200, 30)


def test_a_name_that_exists_is_taken_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("'quoted'.png", "~tilde.png", "a\\ b.png", " edge.png ", "100%25.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name, "PNG")
        assert typed_place(name) == name and read_image(name).size == (2, 2)
    assert typed_place("~nobody-of-this-name/x.png") == "~nobody-of-this-name/x.png"
    assert typed_place("https://example.org/~x/a%20b.png") == "https://example.org/~x/a%20b.png"
    assert typed_place("'https://example.org/a.png'") == "https://example.org/a.png"


def test_an_apostrophe_is_quoted_as_shells_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (2, 2)).save(tmp_path / "it's a.png", "PNG")
    for typed in ("it's a.png", "it\\'s\\ a.png", "'it'\\''s a.png'", "'it'\"'\"'s a.png'", "it\"'\"s' a.png'"):
        assert typed_place(typed) == "it's a.png", typed
    assert typed_place("~/'it'\\''s a.png'") == str(tmp_path / "it's a.png")
    assert typed_place("'nowhere'\\''s.png'") == "nowhere'\\''s.png", "as it was, where there is no such file"


def test_places_that_are_none_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"names a file on the machine 'server'; give a path of this one"):
        read_image("file://server/share/x.png")
    for place in ("nowhere.png", "~/nowhere.png", "file:///nowhere.png", "x" * 5000, "a\0b.png", ""):
        with pytest.raises(ValueError, match="There is no image file"):
            read_image(place)


def test_names_with_commas_in_lists(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("c.png", "d,e.png", "d", "x, y.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name, "PNG")
    url = "https://example.org/w_2,h_3/a.png"
    for names, found in (
        (str(photo), [str(photo)]),
        (f"c.png,{photo}", ["c.png", str(photo)]),
        (f"{photo},c.png,d,e.png", [str(photo), "c.png", "d,e.png"]),
        ("x, y.png, c.png", ["x, y.png", "c.png"]),
        ("d,c.png", ["d", "c.png"]),
        ("'d,e.png',c.png", ["'d,e.png'", "c.png"]),
        (f"{url},c.png", [url, "c.png"]),
        (f"c.png,{url}, {url}", ["c.png", url, url]),
        ("nowhere,else.png", ["nowhere", "else.png"]),
        (["d,e.png", "c.png"], ["d,e.png", "c.png"]),
        (["d,e.png", "c.png,d"], ["d,e.png", "c.png", "d"]),
        ("", []),
        (None, []),
        ([], []),
        (" , ", []),
    ):
        assert image_files(names, ",") == found, names
    assert image_files("d,e.png|c.png", "|") == ["d,e.png", "c.png"]
    assert image_files("d,e.png", "") == ["d,e.png"]


def test_no_image_is_lost_where_the_flag_is_repeated():
    flags = ["--model-path", "m", "--query", "q", "--image-file", "a.png", "--image-file", "b.png", "c.png"]
    assert image_files(_parser().parse_args(flags).image_file, ",") == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("line", "command", "rest"),
    [
        ("/image ~/a b.png ", "/image", "~/a b.png"),
        ("/tokens", "/tokens", ""),
        ("/image\ta.png", "/image", "a.png"),
        ("\ufeff/reset", "/reset", ""),
        ("/juggle", "/juggle", ""),
        ("/imge a.png", "/imge", "a.png"),
        ("/Image a.png", "/Image", "a.png"),
        ("/image a b.png", "/image", "a b.png"),
        ("/images of cats are cute", "", "/images of cats are cute"),
        ("/compressions of JPEG differ how?", "", "/compressions of JPEG differ how?"),
        ("/etc/passwd is in the picture, why?", "", "/etc/passwd is in the picture, why?"),
        ("/home means what?", "", "/home means what?"),
        ("/s at the end is what?", "", "/s at the end is what?"),
        ("/", "", "/"),
        ("//image shows what?", "", "/image shows what?"),
        ("// is a comment?", "", "/ is a comment?"),
        ("What is /image?", "", "What is /image?"),
        ("  ", "", ""),
        ("/usr/bin", "", "/usr/bin"),
    ],
)
def test_a_question_may_begin_with_a_slash(line: str, command: str, rest: str):
    assert as_command(line) == (command, rest)
    assert not command or command in KNOWN or command[1:].isalpha()


def test_the_word_image_in_a_question_and_in_an_answer_shows_no_image(monkeypatch: pytest.MonkeyPatch):
    model, (image,) = make_model(), pictures(1)
    chat = make_chat(model)
    with pytest.raises(ValueError, match=r"holds 1 <image>, but 0 images.*\\<image> is the word itself"):
        chat.ask("What does <image> mean?")
    first = chat.answer("What does \\<image> mean beside <image>?", [image])
    monkeypatch.setattr("llava.inference.engine.answer_text", lambda decoded, stop: "It is written <image>.")
    assert chat.answer("And \\<image>?") == "It is written <image>."
    monkeypatch.undo()
    third = chat.answer(TALK[1])
    asked = ["What does \\<image> mean beside <image>?", "And \\<image>?", TALK[1]]
    assert [question for question, _ in chat.turns] == asked
    words = [chat.engine.inputs.question(question, [None] * question.count(" <image>")) for question in asked]
    told = [words[0], first, words[1], "It is written \ufdd0image>.", words[2]]
    assert third == by_hand(model, told, [image], 2)
    encoded = encode_prompt(told, TOKENIZER, "v1")
    assert encoded.num_images == 1
    plain = encode_prompt([words[1]], TOKENIZER, "v1").input_ids
    assert TOKENIZER.decode(plain).count("<image>") == 1 and IMAGE_TOKEN_INDEX not in plain


# === Files of questions ===

RECORDS = (
    {"question_id": 1, "image": "a.png", "text": "<image>\nWhat is it?"},
    {"question_id": 2, "image": ["a.png", "b.png"], "text": "<image>\n<image>\nWhat differs?"},
    {"question_id": "3", "text": "Is \\<image> a tag?"},
    {"question_id": 4, "image": None, "text": "Why?"},
    {"question_id": 5, "image": "", "text": "When?"},
    {"question_id": 6, "image": [], "text": "Où ?"},
)


def read(path: Path, **options: bool):
    return read_questions(path, path.parent, "mmvet", **options)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("form", ["lines", "windows", "blank", "list", "indented"])
def test_a_question_file_is_read_in_every_form(mark: bytes, form: str, tmp_path: Path):
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    text = {
        "lines": "\n".join(lines),
        "windows": "\r\n".join(lines) + "\r\n",
        "blank": "\n\n" + "\n \n".join(lines) + "\n\n",
        "list": json.dumps(RECORDS),
        "indented": json.dumps(RECORDS, indent=2),
    }[form]
    path = tmp_path / "questions.jsonl"
    path.write_bytes(mark + text.encode())
    questions = read(path, about_text=True)
    assert [question.question_id for question in questions] == [1, 2, "3", 4, 5, 6]
    assert [len(question.images) for question in questions] == [1, 2, 0, 0, 0, 0]
    assert [question.text for question in questions[:2]] == ["What is it?", "<image>\n<image>\nWhat differs?"]
    assert questions[1].images == (tmp_path / "a.png", tmp_path / "b.png") and questions[5].text == "Où ?"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"image": "a.png", "text": "What?"}, "line 3 has no field 'question_id', only image, text; download"),
        ({"question_id": 1, "text": "<image>\nWhat?"}, "line 3 holds <image> in its text, but names no image"),
        ({"question_id": 1, "images": ["a.png"], "text": "What?"}, "line 3 has a field 'images', which is not read"),
        ({"question_id": 1, "video": "a.mp4", "text": "What?"}, "line 3 has a field 'video', which is not read"),
        ({"question_id": 1, "image": {"path": "a.png"}, "text": "What?"}, 'line 3 has the image {"path": "a.png"}'),
        ({"question_id": 1, "image": ["a.png", None], "text": "What?"}, "line 3 has the image null"),
        ({"question_id": 1, "image": ["a.png", "../b.png"], "text": "What?"}, r"names the file '\.\./b\.png'"),
        (["a.png", "What?"], "line 3 is not a JSON object"),
        ({"question_id": 1, "image": "a.png", "text": None}, "line 3 has the text null"),
        ({"question_id": 1, "image": "a.png", "text": ["What?"]}, r'line 3 has the text \["What\?"\]'),
        ({"question_id": None, "image": "a.png", "text": "What?"}, "line 3 has the question_id null"),
        ({"question_id": True, "image": "a.png", "text": "What?"}, "line 3 has the question_id true"),
        ({"question_id": " ", "image": "a.png", "text": "What?"}, "line 3 has a blank question_id"),
        ({"question_id": 1, "image": "a.png", "images": ["b.png"], "text": "What?"}, "field 'images', which is not"),
        ({"question_id": 1, "image": "a.png", "image_b": "b.png", "text": "What?"}, "field 'image_b', which is not"),
    ],
)
def test_what_a_question_file_lacks_is_said_at_its_line(record: object, reason: str, tmp_path: Path):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{json.dumps(RECORDS[0])}\n\n{json.dumps(record)}\n")
    with pytest.raises(ValueError, match=reason):
        read(path, about_text=True)
    path.write_text(json.dumps([RECORDS[0], record]))
    with pytest.raises(ValueError, match=reason.replace("line 3", "entry 2")):
        read(path, about_text=True)


@pytest.mark.parametrize(
    "key",
    [
        "Image",
        "IMAGE",
        "image_0",
        "imagePath",
        "image-path",
        "image_list",
        "image_name",
        "images_path",
        "image_base64",
        "image_bytes",
        "imgs",
        "img_path",
        "picture_path",
        "photo",
        "frames",
        "media",
        "video_path",
        "second_image",
        "imageB",
        "audio_url",
    ],
)
def test_no_spelling_of_a_media_key_is_asked_blind(key: str, tmp_path: Path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question_id": 1, "text": "what?", key: "a.jpg"}))
    with pytest.raises(ValueError, match=f"line 1 has a field '{key}', which is not read"):
        read(path, about_text=True)


@pytest.mark.parametrize("key", ["images", "image_url", "image_path", "original_image", "image_folder"])
def test_keys_that_repeat_a_questions_image_are_no_fault(key: str, tmp_path: Path):
    path = tmp_path / "questions.jsonl"
    value = {"image_url": "https://x/1", "image_folder": "coco", "images": ["c/a.jpg"]}.get(key, "c/a.jpg")
    path.write_text(json.dumps({"question_id": 1, "text": "what?", "image": "c/a.jpg", key: value}))
    assert read(path, about_text=True)[0].images == (tmp_path / "c" / "a.jpg",)


def test_science_questions_with_other_media_or_no_text_are_errors(tmp_path: Path):
    record = {"id": "1", "conversations": [{"from": "human", "value": "Which?"}]}
    for fault, words in (
        ({"images": ["a.png"]}, "question 1 has a field 'images'"),
        ({"Image": "a.png"}, "question 1 has a field 'Image'"),
        ({"id": None}, "question 1 has the id null"),
        ({"conversations": [{"from": "human", "value": None}]}, "has the value null"),
    ):
        with pytest.raises(ValueError, match=words):
            science_questions([record | fault], tmp_path, "file")


@pytest.mark.parametrize("record", RECORDS[2:])
def test_a_benchmark_is_never_asked_without_its_image(record: dict, tmp_path: Path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=r"has no field 'image'|names no image"):
        read(path)


def test_llavas_commands_ask_about_text_too(tmp_path: Path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(RECORDS))
    for command in (model_vqa, model_vqa_loader):
        options = command.parser().parse_args(
            ["--model-path", "m", "--question-file", str(path), "--image-folder", str(tmp_path)]
        )
        assert len(model_vqa.chunk_of_questions(options)) == len(RECORDS)
