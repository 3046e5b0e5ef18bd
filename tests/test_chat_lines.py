"""Lines that a chat cannot ask, answers that would act on a terminal, and what an answer says about marks."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_folder import write_model, write_pictures

from llava.common.shown import printable, say
from llava.data.tokenization import encode_prompt
from llava.eval.benchmarks.llava_bench import read_captions, read_references, review_request
from llava.eval.benchmarks.reading import read_questions
from llava.eval.run_llava import eval_model
from llava.eval.vlmevalkit import choice_prompt
from llava.inference.chat import Chat
from llava.inference.typed_images import read_image
from llava.model.builder import load_pretrained_model
from llava.serve.cli import Session, main
from llava.serve.typed_lines import LONGEST_LINE, typed_lines

ACTING = "a\x1b[31mred\x1b]0;title\x07\rb\x9b2J\u202ec\u2066d\ud800\x00\x7f\u2028e"
SEEN = r"a\x1b[31mred\x1b]0;title\x07\rb\x9b2J\u202ec\u2066d\ud800\x00\x7f\u2028e"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny")


@pytest.fixture(scope="module")
def chat(folder: Path) -> Chat:
    tokenizer, model, image_processor, _ = load_pretrained_model(str(folder), device="cpu")
    return Chat(model, tokenizer, image_processor, "llava_v1", max_new_tokens=3, do_sample=False)


class Answering:
    """A chat that answers every question in given pieces, and keeps what it was asked."""

    def __init__(self, *pieces: str) -> None:
        self.pieces, self.asked, self.turns = pieces, [], []  # type: ignore[var-annotated]
        self.conv_mode, self.images, self.usage = "v1", [], None  # type: ignore[var-annotated]
        self.model = SimpleNamespace(config=SimpleNamespace(image_opening="upright"))

    def ask(self, question: str, images: Any) -> Iterator[str]:
        self.asked.append(question)
        yield from self.pieces
        self.turns.append((question, "".join(self.pieces)))


def talk(chat: Any, lines: bytes) -> None:
    options = SimpleNamespace(debug=False, show_tokens=False, save_overlay=None, image_opening=None)
    Session(chat, options, []).run(io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))


def test_every_line_that_cannot_be_asked_is_said_and_the_next_one_is_answered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = {
        b"caf\xe9?": "not UTF-8: its character 4 is the byte 0xe9",
        "What?".encode("utf-16"): "not UTF-8",
        b"what\x00is": "NUL at character 5",
        b"\x1b[A\x1b[31mred": r"control character '\x1b' at character 1",
        b"a\x08b": "control character",
        b"x" * 10_000_000: "more than 1,000,000 characters",
        b"/image caf\xe9.png": r"There is no image file 'caf\udce9.png'",
        b"/image a\x00b": "",
    }
    for line, reason in lines.items():
        chat = Answering("yes")
        talk(chat, line.replace(b"\n", b"") + b"\nWhy?\nAnd it ends")
        out, err = capsys.readouterr()
        assert chat.asked == ["Why?", "And it ends"] and out == "yes\nyes\n"
        assert reason in err and "Traceback" not in err and err.strip()
        assert not any(character in err for character in "\x00\x1b\x08\udce9")


def test_tabs_carriage_returns_and_lines_of_full_length_are_asked() -> None:
    chat = Answering("yes")
    longest = "x" * LONGEST_LINE
    talk(chat, f"a\tb\r\n{longest}\nend".encode())
    assert chat.asked == ["a\tb", longest, "end"]


def test_a_terminal_may_hold_bytes_of_another_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["caf\udce9", "Why?"])

    def read(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    terminal = SimpleNamespace(isatty=lambda: True)
    assert list(typed_lines(terminal, "> ")) == ["caf\udce9", "Why?"]  # type: ignore[arg-type]


def test_an_answer_does_not_act_on_the_terminal_however_its_pieces_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    for pieces in ([ACTING], list(ACTING), ["a\x1b", ACTING[2:]]):
        talk(Answering(*pieces), b"Why?\n")
        assert capsys.readouterr().out == SEEN + "\n"
    assert printable("a\tb\nnaïve 日本 👩\u200d👧", lines=True) == "a\tb\nnaïve 日本 👩\u200d👧"


def test_an_answer_is_printed_where_the_output_is_not_unicode() -> None:
    raw = io.BytesIO()
    narrow = io.TextIOWrapper(raw, encoding="ascii")
    say("naïve \x1b[2J", file=narrow)
    assert raw.getvalue() == rb"na\xefve \x1b[2J" + b"\n"


def test_run_llava_prints_what_is_safe_and_returns_the_answer(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava.eval.run_llava.Chat.answer", lambda *_: ACTING)
    args = SimpleNamespace(model_path=str(folder), image_file="", query="Why?", device="cpu")
    assert eval_model(args) == ACTING
    assert capsys.readouterr().out.endswith(SEEN + "\n")
    args.query = None
    with pytest.raises(ValueError, match="query is None; it must be text"):
        eval_model(args)


def test_the_program_goes_on_after_marks_and_damaged_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b"What is </s>?\n\xff\xfe\nIs <image> red?\nIs \\<image> red?\nWhy \xed\xa0\x80?\nWhy"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    words = ["--model-path", str(folder), "--device", "cpu", "--temperature", "0", "--max-new-tokens", "3"]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert err.count("not UTF-8") == 2 and err.count("holds 1 <image>, but 0 images") == 1


def test_the_conversation_goes_on_after_an_answer_about_marks(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, end = read_image(write_pictures(tmp_path, 1)[0]), chat.tokenizer.eos_token_id
    said = "Write <image> and </s>."
    with monkeypatch.context() as patched:
        patched.setattr("llava.inference.engine.answer_text", lambda decoded, stop: said)
        chat.answer("What marks an image, </s>?", [image])
    assert chat.turns == [("<image>\nWhat marks an image, </s>?", said)]
    chat.answer("And its end?")
    encoded = encode_prompt([*chat.turns[0], "And its end?"], chat.tokenizer, chat.conv_mode)
    assert encoded.num_images == 1 and encoded.input_ids.count(end) == 1
    text = chat.tokenizer.decode([token for token in encoded.input_ids if token >= 0])
    assert said in text and "What marks an image, </s>?" in text


@pytest.mark.parametrize(
    "text", ["null", "[]", '["a"]', "{}", "true", "NaN", "Infinity", '""', '" \\n"', '"<image>\\n"']
)
def test_a_question_that_is_no_text_is_named_and_not_asked_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "questions.jsonl"
    good = '{"question_id": 1, "image": "a.png", "text": "Why?"}\n'
    path.write_text(good + f'{{"question_id": 2, "image": "a.png", "text": {text}}}\n')
    with pytest.raises(ValueError, match=r"line 2.*text"):
        read_questions(path, tmp_path, "mmvet")
    path.write_text('{"question_id": 2, "image": "a.png"}\n')
    with pytest.raises(ValueError, match="no field 'text'"):
        read_questions(path, tmp_path, "mmvet")


def test_a_judge_is_not_asked_about_none(tmp_path: Path) -> None:
    rules = {"llava_bench_conv": {"role": "Assistant", "prompt": "Compare."}}
    question = {"question_id": 1, "image": "a.png", "text": None, "category": "conv"}
    with pytest.raises(ValueError, match="Question 1 has the text null"):
        review_request(1, question, {"a.png": "a"}, rules, {"text": "a"}, {"text": "b"})
    path = tmp_path / "context.jsonl"
    path.write_text('{"image": "a.png", "caption": ["a", null]}\n')
    with pytest.raises(ValueError, match="line 1 has the caption null"):
        read_captions(path)
    path.write_text('{"question_id": 1, "text": [1]}\n')
    with pytest.raises(ValueError, match=r"line 1 has the text \[1\]"):
        read_references(path)
    with pytest.raises(ValueError, match="row 7 has no question"):
        choice_prompt({"index": 7, "question": float("nan"), "A": "x"})
