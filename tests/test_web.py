"""The page behind its browser: every family, both budgets, uploads that are refused, visitors who do not meet."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import struct
import threading
import zlib
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_backbones import BUDGET, WRITERS, write_media
from tiny_folder import write_model
from tiny_site import Site

from llava.cost.flops import kv_bytes, prefill_flops, visual_tokens_per_layer
from llava.cost.seen_media import seen_by
from llava.cost.shapes import DecoderShape
from llava.inference.chat import Chat
from llava.inference.made_batches import realised
from llava.inference.usage import size
from llava.serve.web import __main__ as program
from llava.serve.web import visitors as visitors_module
from llava.serve.web.comparison import comparison_html, flops
from llava.serve.web.example_questions import example_questions
from llava.serve.web.followed_prompt import FollowedPrompt
from llava.serve.web.measured_answer import medium_of
from llava.serve.web.offered_budgets import BY_HAND, NONE, OWN, OfferedBudgets, Sliders
from llava.serve.web.uploads import ServesNoFiles, UploadFolder
from llava.serve.web.visitors import MOST_SHOWN

FAMILIES = tuple(WRITERS)
SEES_VIDEOS = ("llava-1.5", "llava-next", "video-llava")
"""Those whose videos need no torchvision."""


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Two pictures, and a video as an animation."""
    folder = tmp_path_factory.mktemp("media")
    files, clip = write_media(folder)
    frames = [Image.open(frame).convert("RGB") for frame in sorted(clip.iterdir())]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:], duration=250)
    return files, folder / "clip.gif"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Site]]:
    made = {}
    for name, write in WRITERS.items():
        folder = write(tmp_path_factory.mktemp(name.replace(".", "-")))
        made[name] = Site(folder)
        made[name].handlers.engine.model.set_compression(BUDGET)
        made[name].budgets.named[OWN] = made[name].handlers.engine.model.compression
        made[name].sliders = made[name].budgets.sliders_of(made[name].budgets.named[OWN])
    yield made
    for site in made.values():
        site.folder.close()


@pytest.fixture
def site(sites: dict[str, Site]) -> Site:
    return sites["llava-1.5"]


def data_of(html: str) -> dict[str, Any]:
    """What the browser is told of a view's patches."""
    return dict(json.loads(unescape(re.search(r'data-view="([^"]*)"', html)[1])))


def cells(html: str, row: str) -> list[str]:
    """A row of the table of costs."""
    line = re.search(rf'<th scope="row">{re.escape(row)}</th>(.*?)</tr>', html)[1]
    return [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", line)]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_budgets_answer_as_the_chat_does_and_are_told_apart(
    family: str, sites: dict[str, Site], media: tuple[list[Path], Path]
) -> None:
    site, visitor = sites[family], sites[family].visitor(f"both-{family}")
    pictures, status = site.upload(visitor, media[0][0])
    assert status == "" and 'alt="picture 1, 120 by 61 pixels"' in pictures and not site.folder.files()
    page = site.ask(visitor, "What is red?")
    model = site.handlers.engine.model
    picture = Image.open(media[0][0]).convert("RGB")
    for number, budget in enumerate((model.compression, "none")):
        chat = Chat.over(site.handlers.engine, visitor.sides[number].chat.settings, budget)
        text = chat.answer("What is red?", [picture])
        assert visitor.sides[number].messages[-1].text.strip() == text.strip()
        assert chat.usage is not None and chat.usage.visual_tokens == visitor.sides[number].measured.visual_tokens
        told = cells(page["comparison"], "KV cache")[number]
        assert told.startswith(size(visitor.sides[number].chat.usage.kv_bytes)), told
    tokens = cells(page["comparison"], "Visual tokens, mean")
    own, none = (side.measured for side in visitor.sides)
    assert tokens == [f"{own.average:.1f} of {own.patches}".replace(".0 ", " "), f"{none.patches} of {none.patches}"]
    assert own.visual_tokens[3] < own.visual_tokens[2] < own.visual_tokens[0] < none.visual_tokens[3] == none.patches
    assert page["question"] == "" and page["status"] == "" and visitor.pending == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_costs_that_are_told_are_those_of_the_formulas(
    family: str, sites: dict[str, Site], media: tuple[list[Path], Path]
) -> None:
    """Of one picture, by `llava.cost` from the model's configuration and the picture's size alone."""
    site, visitor = sites[family], sites[family].visitor(f"costs-{family}")
    site.upload(visitor, media[0][1])
    page = site.ask(visitor, "What is blue?")
    model = site.handlers.engine.model
    decoder = DecoderShape.of(model.config.get_text_config())
    medium = realised(site.handlers.engine.inputs, medium_of(Image.open(media[0][1])))
    vision = seen_by(model.config.to_dict(), medium)
    for number, budget in enumerate((model.compression, model.checked("none"))):
        measured = visitor.sides[number].measured
        tokens = visual_tokens_per_layer(budget, decoder.layers, vision)
        assert measured.visual_tokens == tokens
        assert measured.flops == prefill_flops(tokens, measured.text_tokens, decoder, vision)
        held = measured.text_tokens + max(measured.new_tokens - 1, 0)
        assert measured.kv_bytes == kv_bytes(measured.visual_tokens, held, decoder, model.dtype.itemsize)
        assert cells(page["comparison"], "FLOPs of the prefill")[number].startswith(flops(measured.flops))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_picture_crop_and_frame_has_its_patches(
    family: str, sites: dict[str, Site], media: tuple[list[Path], Path]
) -> None:
    site, visitor = sites[family], sites[family].visitor(f"units-{family}")
    site.upload(visitor, media[0][0], *([media[1]] if family in SEES_VIDEOS else []))
    page = site.ask(visitor, "What moves?")
    data = data_of(page["patches_a"])
    drawn = page["patches_a"].count('<svg class="dv-map"')
    assert drawn == len(data["units"]) > (family in SEES_VIDEOS) and data["cuts"] == [2, 3]
    assert page["patches_a"].count('<rect class="dv-p') == sum(len(unit["tokens"]) for unit in data["units"])
    after = visitor.sides[0].measured.visual_tokens
    assert len(data["gone"]) == after[0] and data["gone"].count(0) == after[3]
    assert after[0] - data["gone"].count(2) == after[2]
    assert set(data["attention"]) == set(map(str, range(data["layers"])))
    assert all(0 <= share <= 100 for layer in data["attention"].values() for share in layer)
    if family in SEES_VIDEOS:
        names = [unit["name"] for unit in data["units"]]
        frames = [name for name in names if name.startswith("video 2, frame ")]
        assert [f"video 2, frame {number} of {len(frames)}" for number in range(1, len(frames) + 1)] == frames
        assert len(frames) >= 4 and all(name.startswith("image 1") for name in names if name not in frames)


@pytest.mark.parametrize("family", ["llava-next", "llava-onevision"])
def test_crops_that_are_joined_are_shown_joined(
    family: str, sites: dict[str, Site], media: tuple[list[Path], Path]
) -> None:
    """120 by 61 pixels on a canvas of 112 by 112: of 8 by 8 patches, or 14 by 14, those in the middle, and newlines."""
    site, visitor = sites[family], sites[family].visitor("dense crops")
    site.upload(visitor, media[0][0])
    page = site.ask(visitor, "What is this?")
    data, side, seen = data_of(page["patches_b"]), *{"llava-next": (4, 4), "llava-onevision": (7, 8)}[family]
    small, joined = data["units"]
    assert (small["name"], joined["name"]) == ("the image, all of it, small", "the image, its 4 crops, joined")
    assert small["tokens"] == list(range(side**2)) and joined["columns"] == 2 * side
    rows = [range(first, first + 2 * side) for first in range(side**2, len(data["gone"]), 2 * side + 1)]
    assert joined["tokens"] == [token for row in rows for token in row] and len(rows) == seen
    assert len(data["gone"]) == visitor.sides[1].measured.patches == side**2 + seen * (2 * side + 1)
    assert "some more show nothing" in page["patches_b"]


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_of_a_conversation_over_several_media_are_told_or_said_to_be_unknown(
    family: str, sites: dict[str, Site], media: tuple[list[Path], Path]
) -> None:
    """More than those of its first picture alone, but of LLaVA-OneVision, which cuts no image that is not alone."""
    site, visitor = sites[family], sites[family].visitor(f"several-{family}")
    site.upload(visitor, media[0][0])
    site.ask(visitor, "What is red?")
    first = visitor.sides[0].measured.flops
    site.upload(visitor, media[0][1], *([media[1]] if family in SEES_VIDEOS else []))
    page = site.ask(visitor, "And now?")
    measured = visitor.sides[0].measured
    assert page["status"] == ""
    if family == "llava-next":  # whose frames have a newline each, which the formulas do not count
        assert measured.flops is None and "not known for this model" in page["comparison"]
    else:
        assert measured.flops is not None and (measured.flops > 1.5 * first or family == "llava-onevision")
    assert len(visitor.sides[0].chat.images) == 2 + (family in SEES_VIDEOS)


def test_text_of_questions_and_answers_is_never_html(site: Site, media: tuple[list[Path], Path]) -> None:
    visitor = site.visitor("html")
    site.upload(visitor, media[0][0])
    page = site.ask(visitor, "<img src=x onerror=alert(1)> &amp; ${1+1} {{x}} is <b>what</b>?")
    for html in page.values():
        assert "<img src=x" not in html and "<b>" not in html
    assert "&lt;b&gt;what&lt;/b&gt;" in page["chat_a"] and "&amp;amp;" in page["chat_a"]
    assert "<script" not in "".join(page.values())
    assert "&lt;s&gt;" in comparison_html(["<s>"], [visitor.sides[0].measured])


@pytest.mark.parametrize("question", ["", "   ", "\x1b[31mred", "what\x00", "x" * 20_001])
def test_a_question_that_cannot_be_asked_is_refused_in_a_sentence(question: str, site: Site) -> None:
    visitor = site.visitor("unasked")
    page = site.ask(visitor, question)
    assert set(page) == {"status"} and 'role="alert"' in page["status"] and page["status"].endswith(".</p>")


def test_a_conversation_goes_on_and_is_shown_whole(site: Site, media: tuple[list[Path], Path]) -> None:
    visitor = site.visitor("two turns")
    site.upload(visitor, media[0][0])
    site.ask(visitor, "What is red?")
    page = site.ask(visitor, "Why?")
    assert page["chat_a"].count("<li class=") == page["chat_b"].count("<li class=") == 4
    assert len(visitor.sides[0].chat.images) == 1 and page["chat_a"].count("<img ") == 1


def test_conversations_of_which_one_lacks_an_answer_begin_anew_together(
    site: Site, media: tuple[list[Path], Path]
) -> None:
    visitor = site.visitor("alone first")
    site.upload(visitor, media[0][0])
    site.ask(visitor, "What is red?", compare=False)
    assert visitor.sides[1].messages == []
    page = site.ask(visitor, "And now?", compare=True)
    assert "begins with the same pictures" in page["status"]
    assert [len(side.chat.turns) for side in visitor.sides] == [1, 1]
    assert all(len(side.chat.images) == 1 for side in visitor.sides)


def test_stop_ends_the_answers_and_keeps_what_was_said(site: Site, media: tuple[list[Path], Path]) -> None:
    visitor = site.visitor("stopped")
    site.upload(visitor, media[0][0])
    rows = site.handlers.ask(visitor, "What is red?", True, (OWN, NONE), (site.sliders, site.sliders))
    next(rows)
    site.handlers.stop(visitor)
    list(rows)
    assert len(visitor.sides[0].messages) == 2 and visitor.sides[1].messages == []
    assert visitor.sides[0].chat.turns and not visitor.sides[0].chat._asking


def test_a_new_conversation_during_an_answer_is_not_overwritten(site: Site, media: tuple[list[Path], Path]) -> None:
    visitor = site.visitor("anew")
    site.upload(visitor, media[0][0])
    rows = site.handlers.ask(visitor, "What is red?", True, (OWN, NONE), (site.sliders, site.sliders))
    next(rows)
    site.handlers.new(visitor)
    assert list(rows) == []
    assert [side.messages for side in visitor.sides] == [[], []] and visitor.sides[0].chat.turns == []


# === Budgets ===


def test_only_presets_that_fit_family_and_depth_are_offered(sites: dict[str, Site]) -> None:
    for family, site in sites.items():
        model = site.handlers.engine.model
        for name, config in site.budgets.named.items():
            assert model.checked(config) == config, (family, name)
    assert "duet-192" not in sites["llava-1.5"].budgets.named  # 300 of the 17 tokens of its tower
    own = set(sites["qwen2.5-vl"].budgets.named)
    assert any(name.startswith("qwen-share-70") for name in own) and not any("duet" in name for name in own)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": (6, 0, 0)}, "the largest accepted entry is 5"),
        ({"layers": (4, 2, 0)}, "rising layer numbers"),
        ({"layers": (2, 4, 0), "shares": (20.0, 60.0, 0.0)}, "must not grow"),
    ],
)
def test_sliders_are_checked_while_they_are_moved(changes: dict[str, Any], words: str, site: Site) -> None:
    sliders = Sliders(True, 5, 2, **({"layers": (2, 0, 0), "shares": (50.0, 0.0, 0.0)} | changes))
    name, said = site.handlers.moved(*sliders.values())
    assert name == BY_HAND and words in said and 'role="alert"' in said
    page = site.ask(site.visitor("wrong sliders"), "What is red?", names=(BY_HAND, NONE), sliders=(sliders, sliders))
    assert set(page) == {"status"} and words in page["status"]


def test_what_sliders_say_is_what_the_answer_is_given_under(site: Site, media: tuple[list[Path], Path]) -> None:
    sliders = Sliders(True, 6, 1, (1, 3, 5), (80.0, 50.0, 0.0))
    name, said = site.handlers.moved(*sliders.values())
    assert name == BY_HAND and "by layer 0-0: 7, 1-2: 5, 3-4: 3, 5-5: 0" in said
    visitor = site.visitor("sliders")
    site.upload(visitor, media[0][0])
    site.ask(visitor, "What is red?", names=(BY_HAND, NONE), sliders=(sliders, sliders))
    assert visitor.sides[0].measured.visual_tokens == (7, 5, 5, 3, 3, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_preset_moves_the_sliders_to_where_it_stands(family: str, sites: dict[str, Site]) -> None:
    budgets = sites[family].budgets
    for name, config in budgets.named.items():
        said, *values = sites[family].handlers.named(name, *sites[family].sliders.values())
        sliders = Sliders.at(values)
        assert "dv-fits" in said and sliders.merges == (config.v2v is not None)
        again = budgets.by_hand(sliders)
        if config.t2v is not None:
            assert again.t2v is not None and again.t2v.layers == config.t2v.layers[:3]
        if config.v2v is not None and budgets.counted:
            assert again.v2v.counts(budgets.most) == config.v2v.counts(budgets.most)


# === Uploads ===


def bomb(path: Path) -> Path:
    """A PNG of a few hundred bytes that says it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_an_upload_that_is_no_image_enormous_or_a_bomb_is_refused_in_a_sentence(site: Site, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    (tmp_path / "<b>page.html").write_text("<script>alert(1)</script>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "film.mp4").write_bytes(b"\x00" * 400)
    Image.new("L", (90_000, 1000)).save(tmp_path / "huge.png")
    files = [bomb(tmp_path / "bomb.png"), *(tmp_path / name for name in ("notes.png", "<b>page.html", "empty.jpg"))]
    files += [tmp_path / "film.mp4", tmp_path / "huge.png"]
    visitor = site.visitor("hostile")
    for file in files:
        pictures, status = site.upload(visitor, file)
        sentences = re.findall(r'role="alert">(.*?)</p>', status)
        assert len(sentences) == 1 and sentences[0].endswith("."), (file.name, status)
        assert "img" not in pictures and "<b>" not in status and str(site.folder.path) not in unescape(status)
        assert unescape(file.name) in unescape(status), status
    assert visitor.pending == [] and site.folder.files() == []
    assert "is too large" in site.upload(visitor, tmp_path / "bomb.png")[1]


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_the_picture_of_a_tower_with_patches_of_any_size_is_put_together_again(
    family: str, sites: dict[str, Site], tmp_path: Path
) -> None:
    """Of an image that the processor leaves at its size, pixel for pixel."""
    site, visitor = sites[family], sites[family].visitor(f"pixels-{family}")
    step = site.handlers.engine.model.config.vision_config.patch_size * 2
    noise = torch.randint(
        0, 255, (3 * step, 5 * step, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    Image.fromarray(noise.numpy()).save(tmp_path / "noise.png")
    site.upload(visitor, tmp_path / "noise.png")
    site.ask(visitor, "What is this?")
    followed = FollowedPrompt.behind(visitor.sides[1].chat)
    (unit,) = followed.units
    assert (unit.rows, unit.columns) == (3, 5) and followed.names == ["the image"]
    seen = torch.from_numpy(np.array(followed.pictures[0])).int()
    assert (seen - noise.int()).abs().max() <= 1


def test_good_files_among_bad_ones_are_taken(site: Site, media: tuple[list[Path], Path], tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    visitor = site.visitor("mixed")
    pictures, status = site.upload(visitor, tmp_path / "notes.png", media[0][0], media[1])
    assert len(visitor.pending) == 2 and status.count("role=") == 1 and "video 2, frame 1 of" in pictures
    assert site.handlers.clear_pictures(visitor)[0].count("<img") == 0 and visitor.pending == []


@pytest.mark.parametrize("ending", ["gif", "webp", "apng", "png"])
def test_an_animation_of_any_kind_is_a_video(ending: str, site: Site, tmp_path: Path) -> None:
    """A PNG, too, whose name does not say that it moves."""
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("#ee0000", "#00ee00", "#0000ee")]
    kind = "PNG" if ending == "apng" else None
    frames[0].save(tmp_path / f"moves.{ending}", kind, save_all=True, append_images=frames[1:], duration=100)
    visitor = site.visitor(f"animation {ending}")
    pictures, status = site.upload(visitor, tmp_path / f"moves.{ending}")
    assert status == "" and "video 1, frame 1 of" in pictures
    reddest, _, bluest = (visitor.pending[0].pictures[number].getpixel((20, 15)) for number in (0, 4, -1))
    assert reddest[0] > 200 > reddest[2] and bluest[2] > 200 > bluest[0]


def test_no_more_pictures_wait_than_a_question_may_show(site: Site, media: tuple[list[Path], Path]) -> None:
    visitor = site.visitor("many")
    for _ in range(MOST_SHOWN):
        assert site.upload(visitor, media[0][0])[1] == ""
    assert "the most that one question may show" in site.upload(visitor, media[0][0])[1]


def test_a_file_from_elsewhere_on_the_machine_is_not_an_upload(site: Site, media: tuple[list[Path], Path]) -> None:
    visitor = site.visitor("outside")
    link = site.folder.path / "link.png"
    link.symlink_to(media[0][0])
    for name in (str(media[0][0]), str(link), "/etc/passwd", f"{site.folder.path}/../{site.folder.path.name}"):
        _, _, status = site.handlers.upload(visitor, [name])
        assert "was not uploaded here" in status, name
    assert visitor.pending == [] and media[0][0].is_file()
    link.unlink()


def test_two_visitors_who_upload_the_same_file_at_once_both_see_it(site: Site, media: tuple[list[Path], Path]) -> None:
    """Gradio lays both down under one name, which the first takes away."""
    first, second = site.visitor("same 1"), site.visitor("same 2")
    assert site.upload(first, media[0][1])[1] == ""
    name = str(site.folder.path / "hash-0" / media[0][1].name)
    _, pictures, status = site.handlers.upload(second, [name])
    assert status == "" and pictures.count("<img") == 1 and site.folder.files() == []


@pytest.mark.parametrize("family", FAMILIES)
def test_examples_are_those_that_the_model_can_be_shown(family: str, sites: dict[str, Site]) -> None:
    site, visitor = sites[family], sites[family].visitor(f"examples-{family}")
    assert len(site.handlers.examples) == 2 + (family in SEES_VIDEOS)
    for number in range(len(site.handlers.examples)):
        pictures, question, _ = site.handlers.example(visitor, number)
        page = site.ask(visitor, question, compare=False)
        assert "<img" in pictures and page["status"] == "" and visitor.sides[0].measured is not None


@pytest.mark.parametrize(
    "line", ['{"image": "1.png"}', '{"text": "Who?", "image": 7}', '{"video": "1.mp4", "text": "?"}', ""]
)
def test_questions_of_another_kind_are_refused_in_words_or_passed_over(site: Site, tmp_path: Path, line: str) -> None:
    """Such a file beside the model, or under `--examples`, ended the page with a KeyError."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text(f"{line}\n")
    inputs = site.handlers.engine.inputs
    with pytest.raises(
        ValueError, match=r"test\.jsonl(, line 1 lacks image or text; a question is such as| holds no q)"
    ):
        example_questions("model", inputs, tmp_path / "data")
    beside = example_questions(str(tmp_path / "model"), inputs)
    assert [one.text for one in beside] == [one.text for one in example_questions(str(tmp_path), inputs)]


def test_budgets_that_are_called_alike_are_refused(site: Site, tmp_path: Path) -> None:
    """The second took the place of the first."""
    files = [tmp_path / folder / "mine.yaml" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("v2v: {dominant: 5, contextual: 3}\n")
    engine = site.handlers.engine
    with pytest.raises(ValueError, match=r"b/mine\.yaml', but 'mine' is offered already; rename it"):
        OfferedBudgets(engine.model, engine.inputs, files)


def test_a_video_file_is_shown_frame_by_frame(site: Site, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "film.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(0, 240, 20):
            picture = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (shade, 0, 0)))
            film.mux(stream.encode(picture))
        film.mux(stream.encode())
    visitor = site.visitor("film")
    pictures, status = site.upload(visitor, tmp_path / "film.mp4")
    assert status == "" and 'alt="video 1, frame 8 of 8"' in pictures
    data = data_of(site.ask(visitor, "What moves?")["patches_a"])
    assert len(data["units"]) == 8


def test_temporary_files_are_gone_when_the_folder_is_closed(tmp_path: Path) -> None:
    folder = UploadFolder()
    assert folder.path.stat().st_mode & 0o077 == 0
    (folder.path / "left.png").write_bytes(b"left")
    folder.close()
    assert not folder.path.exists()


# === Visitors ===


@pytest.mark.parametrize("inner", ["etc/passwd", "tmp/gradio_api/a.png", "gradio_api", "a/gradio_api/queue/join"])
@pytest.mark.parametrize(
    "place", ["/gradio_api/file=/", "/file=/", "/proxied/gradio_api/file=/", "/gradio_api/proxy=http://"]
)
def test_no_address_gives_a_file_of_the_machine_or_of_another_host(place: str, inner: str) -> None:
    reached, sent = [], []

    async def gradio(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read of such a request")

    closed = ServesNoFiles(gradio)
    asyncio.run(closed({"type": "http", "path": f"{place}{inner}"}, receive, send))
    assert not reached and sent[0]["status"] == 404
    asyncio.run(closed({"type": "http", "path": "/gradio_api/queue/join"}, receive, send))
    assert reached == ["/gradio_api/queue/join"]


def test_two_questions_at_once_do_not_mix(site: Site, media: tuple[list[Path], Path]) -> None:
    """In threads, each with a picture of its own; every answer is the one that is given alone."""
    expected, given = {}, {}
    for number, file in enumerate(media[0]):
        alone = site.visitor(f"alone {number}")
        site.upload(alone, file)
        site.ask(alone, "What is this?")
        expected[number] = [message.text for side in alone.sides for message in side.messages]
    both = {number: site.visitor(f"at once {number}") for number in expected}
    for number, visitor in both.items():
        site.upload(visitor, media[0][number])

    def work(number: int) -> None:
        site.ask(both[number], "What is this?")
        given[number] = [message.text for side in both[number].sides for message in side.messages]

    threads = [threading.Thread(target=work, args=(number,)) for number in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert given == expected


def test_a_visitor_knows_nothing_of_another_and_is_forgotten_when_he_leaves(
    site: Site, media: tuple[list[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = site.visitor("first"), site.visitor("second")
    site.upload(first, media[0][0])
    assert second.pending == [] and site.visitor("first") is first
    site.visitors.leave(type("Request", (), {"session_hash": "first"}))
    assert site.visitor("first") is not first and site.visitor("first").pending == []
    monkeypatch.setattr(visitors_module, "MOST_VISITORS", 3)
    for number in range(5):
        site.visitor(f"crowd {number}")
    assert len(site.visitors) == 3
    with pytest.raises(ValueError, match="load the page once more"):
        site.visitors.of(object())


# === The program ===


def test_without_a_model_the_quickstart_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUICKSTART_OUTPUT", str(tmp_path))
    assert program.main([]) == 2
    assert "run bash scripts/quickstart.sh first" in capsys.readouterr().err
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert program.quickstart_model() == str(tmp_path / "model")


def test_sigterm_ends_the_program_and_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    places: list[Path] = []

    def launched(page: Any, options: Any) -> str:
        places.append(page.handlers.folder.path)
        (places[0] / "left.png").write_bytes(b"left")
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return "http://127.0.0.1:1/"

    monkeypatch.setattr(program, "launched", launched)
    former = signal.getsignal(signal.SIGTERM)
    model = write_model(tmp_path / "llava-v1.5-tiny")
    assert program.main(["--model-path", str(model), "--device", "cpu", "--host", "0.0.0.0"]) == 0
    said = capsys.readouterr().out
    assert "The page is at http://127.0.0.1:1/" in said and "whoever reaches that address" in said
    assert not places[0].exists() and signal.getsignal(signal.SIGTERM) is former


def test_the_page_is_bound_to_this_machine_and_shares_nothing_unless_told(capsys: pytest.CaptureFixture[str]) -> None:
    options = program._parser().parse_args([])
    assert (options.host, options.share, options.temperature) == ("127.0.0.1", False, 0)
    with pytest.raises(SystemExit):
        program.main(["--port", "70000"])
    assert "70000" in capsys.readouterr().err
