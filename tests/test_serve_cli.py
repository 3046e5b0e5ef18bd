"""The chat program: through its pipe, its commands, its failures, and the pictures it draws."""

from __future__ import annotations

import builtins
import functools
import http.server
import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from tiny_folder import write_model, write_pictures

from llava.common.program import as_program
from llava.compression.v2v import PatchRole
from llava.inference.chat import Chat
from llava.inference.typed_images import read_image
from llava.inference.usage import size
from llava.model.builder import load_pretrained_model
from llava.serve import overlay
from llava.serve.cli import COMMANDS, main
from llava.serve.overlay import draw_overlay

ROOT = Path(__file__).resolve().parents[1]
TALK = ("What digit is red?", "Where is the seven?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 3)


@pytest.fixture
def talk(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the program on lines; gives its status and the lines it wrote to output and error."""

    def run(lines: list[str], *flags: str) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
        capsys.readouterr()
        words = ["--model-path", str(folder), "--device", "cpu", "--temperature", "0", "--max-new-tokens", "6"]
        status = main([*words, *flags])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    return run


def chat_of(folder: Path, **options) -> Chat:
    tokenizer, model, image_processor, _ = load_pretrained_model(str(folder), device="cpu")
    settings = {"max_new_tokens": 6, "do_sample": False} | options
    return Chat(model, tokenizer, image_processor, "llava_v1", **settings)


def said(answer: str) -> list[str]:
    """An answer as it is printed."""
    return answer.splitlines() or [""]


def test_questions_from_a_pipe_are_answered_one_by_one(folder: Path, pictures: list[str], talk):
    chat = chat_of(folder)
    shown = [read_image(name) for name in pictures[:2]]
    expected = said(chat.answer(TALK[0], shown)) + said(chat.answer(TALK[1]))
    status, out, _ = talk([TALK[0], "", TALK[1]], "--image-file", *pictures[:2])
    assert status == 0
    assert [line.strip() for line in out] == expected


def test_commands_change_the_conversation(folder: Path, pictures: list[str], talk):
    chat = chat_of(folder)
    first = said(chat.answer(TALK[0], [read_image(pictures[0])]))
    later = said(chat.answer(TALK[1], [read_image(pictures[1])]))
    usage = str(chat.usage).splitlines()
    chat.reset()
    chat.set_compression("none")
    fresh = said(chat.answer(TALK[0], [read_image(pictures[2])]))
    lines = [
        "/tokens",
        f"/image {pictures[0]}",
        TALK[0],
        f"/image {pictures[1]}",
        TALK[1],
        "/tokens",
        "/reset",
        "/compression none",
        f"/image {pictures[2]}",
        TALK[0],
        "/exit",
        "never asked",
    ]
    _, out, err = talk(lines)
    told = "1 image(s) will be shown with the next question."
    assert [line.strip() for line in out] == [
        "Nothing has been answered yet.",
        told,
        *first,
        told,
        *later,
        *usage,
        "visual tokens of an image by layer: 0-5: 16",
        told,
        *fresh,
    ]
    assert not [line for line in err if line.strip() and "Loading" not in line]


def test_the_chat_goes_on_after_what_cannot_be_done(folder: Path, pictures: list[str], talk):
    lines = [
        "/image nowhere.png",
        "/image",
        "/compression pyramiddrop",
        "/compression",
        "/juggle",
        "Is <image> red?",
        TALK[0],
    ]
    status, out, err = talk(lines)
    assert status == 0 and [line.strip() for line in out] == said(chat_of(folder).answer(TALK[0]))
    for reason in (
        "There is no image file 'nowhere.png'",
        "Name an image",
        "the decoder has 6 layers",
        "Name a budget",
        "There is no command '/juggle'",
        "holds 1 <image>, but 0 images",
    ):
        assert any(reason in line for line in err), reason


def test_cached_conversations_keep_what_the_first_question_left(folder: Path, pictures: list[str], talk):
    chat = chat_of(folder, reencode=False)
    expected = said(chat.answer(TALK[0], [read_image(pictures[0])])) + said(chat.answer(TALK[1]))
    lines = [TALK[0], f"/image {pictures[1]}", TALK[1]]
    _, out, err = talk(lines, "--cached", "--image-file", pictures[0])
    assert [line.strip() for line in out] == expected
    assert any("images can be shown with the first question only" in line for line in err)
    with pytest.raises(SystemExit):
        talk([], "--cached", "--reencode")


def test_show_tokens_and_debug(folder: Path, pictures: list[str], talk):
    _, out, err = talk([TALK[0]], "--show-tokens", "--debug", "--image-file", pictures[0])
    assert out[-2] == "visual tokens by layer 0-1: 10, 2-3: 5, 4-5: 2"
    assert out[-1].startswith("average 5.67 of 16 (64.6% fewer); KV cache ")
    assert any("'prompt': " in line and "USER: <image>\\nWhat digit is red? ASSISTANT:" in line for line in err)


def test_options_are_checked_before_the_model_is_loaded(folder: Path, talk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llava.inference.engine.open_model", lambda *args, **options: pytest.fail("loaded"))
    for flags, reason in (
        (["--image-file", "nowhere.png"], "There is no image file 'nowhere.png'"),
        (["--conv-mode", "nothing"], "no conversation template 'nothing'"),
        (["--compression", "no-such-budget"], "no-such-budget"),
        (["--device", "toaster"], "--device is 'toaster'"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--save-overlay", "nowhere/x.png"], "--save-overlay names a file in 'nowhere'"),
        (["--save-overlay", "x.txt"], "must end in .png"),
    ):
        status, _, err = talk([], *flags)
        assert status == 2 and any(reason in line for line in err), reason


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert COMMANDS in capsys.readouterr().out


@pytest.mark.parametrize("where", ["llava.inference.engine.Engine.open", "llava.serve.cli.typed_lines"])
def test_ctrl_c_outside_of_an_answer_ends_the_program_in_a_word(
    folder: Path, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """While the model is loaded, or while a pipe is waited for."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    assert as_program(main, ["--model-path", str(folder), "--device", "cpu"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "Stopped."


def test_it_runs_as_a_program_behind_a_pipe(folder: Path):
    words = ["--model-path", str(folder), "--device", "cpu", "--temperature", "0", "--max-new-tokens", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "llava.serve.cli", *words],
        cwd=ROOT,
        input=f"{TALK[0]}\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == chat_of(folder, max_new_tokens=3).answer(TALK[0])


@pytest.fixture
def address(pictures: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the pictures' folder is served."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    handler = functools.partial(_Quiet, directory=str(Path(pictures[0]).parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def test_images_come_by_address_too(pictures: list[str], address: str, talk):
    expected = talk([TALK[0]], "--image-file", pictures[0])[1]
    assert talk([TALK[0]], "--image-file", f"{address}/0.png")[1] == expected
    _, out, err = talk([f"/image {address}/missing.png", f"/image {address}/0.png", TALK[0]])
    assert out[1:] == expected
    assert any("missing.png' cannot be read" in line for line in err)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_prompted_and_ctrl_c_ends_an_answer_only(
    folder: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    prompts: list[str] = []
    lines = iter([TALK[0], TALK[1]])

    def read(prompt: str) -> str:
        prompts.append(prompt)
        if (line := next(lines, None)) is None:
            raise EOFError
        return line

    asked: list[list[Image.Image]] = []
    ask = Chat.ask

    def interrupted(self: Chat, question: str, images: list[Image.Image]) -> Iterator[str]:
        asked.append(images)
        answer = ask(self, question, images)
        yield next(answer)
        if len(asked) == 1:
            answer.close()
            raise KeyboardInterrupt
        yield from answer

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(builtins, "input", read)
    monkeypatch.setattr(Chat, "ask", interrupted)
    words = ["--model-path", str(folder), "--device", "cpu", "--temperature", "0", "--max-new-tokens", "100"]
    assert main([*words, "--image-file", pictures[0]]) == 0
    assert prompts == ["USER: "] * 3
    assert [len(images) for images in asked] == [1, 0], "the image stands in the conversation, not shown twice"
    assert len(capsys.readouterr().out.splitlines()) >= 2


# === Pictures ===


def panel(picture: Image.Image, row: int, column: int, side: int) -> Image.Image:
    """One panel of an overlay."""
    left = overlay.MARGIN + column * (side + overlay.GAP)
    top = overlay.MARGIN + row * (side + overlay.TITLE + overlay.MARGIN) + overlay.TITLE
    return picture.crop((left, top, left + side, top + side))


@pytest.mark.parametrize(
    "settings", [tiny.DUET, tiny.T2V_ONLY, tiny.V2V_ONLY, None], ids=["duet", "t2v", "v2v", "none"]
)
def test_an_overlay_veils_what_no_living_token_stands_for(folder: Path, pictures: list[str], settings):
    chat = chat_of(folder, compression=settings or "none")
    chat.answer(TALK[0], [read_image(name) for name in pictures[:2]])
    trace, pixels = chat.trace()
    picture = draw_overlay(trace, pixels, chat.image_processor, 6)
    columns, side = 4, overlay.SIDE
    stages = [torch.ones(trace.entered[0], dtype=torch.bool), *(alive[0] for alive in trace.alive.values())]
    each = trace.entered[0] // 2
    veiled = 0
    for number in range(2):
        plain = panel(picture, number, 0, side)
        for column, alive in enumerate(stages, start=1):
            marked = panel(picture, number, column, side)
            for patch in range(16):
                role = PatchRole.DOMINANT if trace.merged is None else trace.merged.roles[number, patch]
                token = patch if trace.merged is None else int(trace.merged.target[number, patch])
                there = role != PatchRole.DROPPED and bool(alive[number * each + token])
                # A corner of the patch, clear of dots and frames.
                at = (patch % columns * side // 4 + 8, patch // columns * side // 4 + 8)
                was, now = plain.getpixel(at), marked.getpixel(at)
                faded = tuple(round(c + (255 - c) * overlay.VEIL / 255) for c in was)
                close = all(abs(a - b) <= 1 for a, b in zip(now, faded, strict=True))
                assert close == (not there) or min(was) > 250
                if there and role == PatchRole.DOMINANT:
                    assert now == was
                veiled += not there
    assert (veiled > 0) == (settings is not None)


def test_the_image_of_an_overlay_is_what_the_tower_saw(folder: Path, pictures: list[str]):
    chat = chat_of(folder)
    shown = read_image(pictures[0])
    chat.answer(TALK[0], [shown])
    picture = draw_overlay(*chat.trace(), chat.image_processor, 6)
    plain = panel(picture, 0, 0, overlay.SIDE)
    expected = shown.resize(plain.size, Image.Resampling.BICUBIC)
    inner = (1, 1, overlay.SIDE - 1, overlay.SIDE - 1)
    difference = [abs(a - b) for a, b in zip(plain.crop(inner).tobytes(), expected.crop(inner).tobytes(), strict=True)]
    assert sum(difference) / len(difference) < 2


def test_save_overlay_writes_a_picture_after_each_answer(pictures: list[str], tmp_path: Path, talk):
    target = tmp_path / "seen.png"
    _, out, _ = talk([TALK[0]], "--save-overlay", str(target))
    assert not target.exists(), "without an image there is nothing to draw"
    _, out, _ = talk([TALK[0], TALK[1]], "--save-overlay", str(target), "--image-file", *pictures[:2])
    assert out.count(f"wrote {target}") == 2
    with Image.open(target) as picture:
        assert picture.width > 4 * overlay.SIDE and picture.height > 2 * overlay.SIDE


def test_sizes_are_told_in_the_largest_unit_that_they_fill():
    assert [size(count) for count in (0, 1023, 1024, 3 * 2**19, 5 * 2**30)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "1.5 MiB",
        "5.0 GiB",
    ]
