"""Programs that are not training, on a tiny model of every family: chat, single questions, cost, harnesses, tables."""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from saved_results import save, shown, table_of
from tiny_backbones import BUDGET, WRITERS, write_media

from llava.checkpoints.opening import open_model
from llava.cost.recipes import recipes_of
from llava.doctor import __main__ as doctor
from llava.doctor import examination
from llava.eval import cost, run, run_llava
from llava.eval.runner.from_flags import evaluated_model
from llava.eval.tables.published import read_table
from llava.eval.vlmevalkit import DuetLlava
from llava.inference.chat import Chat
from llava.inference.typed_videos import read_video
from llava.serve import cli

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = tuple(WRITERS)
SEES_VIDEOS = ("llava-1.5", "llava-next", "video-llava")
"""Those whose videos need no torchvision."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: write(tmp_path_factory.mktemp(name.replace(".", "-"))) for name, write in WRITERS.items()}
    return made


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    return write_media(tmp_path_factory.mktemp("media"))


def chat_with(folder: Path, compression: Any = BUDGET, **options: Any) -> Chat:
    model, processor, tokenizer, _ = open_model(str(folder), device="cpu")
    return Chat(model, tokenizer, processor, compression=compression, max_new_tokens=4, do_sample=False, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_over_images_and_videos_is_what_a_single_prompt_gives(
    family: str, folders: dict[str, Path], media: tuple[list[Path], Path]
) -> None:
    """The second question sees the whole conversation: the answer is that of one call of generate on all of it."""
    images, clip = media
    chat = chat_with(folders[family])
    assert "".join(chat.ask("What is this?", [Image.open(images[0]).convert("RGB")])) == chat.turns[0][1]
    more: list[Any] = [Image.open(images[1]).convert("RGB")]
    if family in SEES_VIDEOS:
        more.append(read_video(str(clip), chat.engine.inputs))
    chat.answer("And these?", more)
    assert len(chat.images) == 1 + len(more) and chat.usage is not None
    inputs = chat.engine.inputs
    batch = chat.engine.batch([inputs.prompt(chat._turns[:3], chat._pixels)])
    del batch["labels"]
    alone = chat.model.generate(**batch, compression=chat.compression, max_new_tokens=4, do_sample=False)
    new = alone[0, batch["input_ids"].shape[1] :] if chat.model.returns_prompt else alone[0]
    assert chat.tokenizer.decode(new, skip_special_tokens=True).strip() == chat.turns[1][1]
    plain = inputs.visual_tokens(chat._prefilled.sample, chat.model.plan_settings(chat.model.checked("none")))
    assert chat.usage.patches == plain and chat.usage.visual_tokens[0] < plain
    assert chat.usage.visual_tokens[3] == int(chat.usage.visual_tokens[0] * 0.2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_chat_program_knows_every_family(
    family: str,
    folders: dict[str, Path],
    media: tuple[list[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, clip = media
    budget = tmp_path / "mine.yaml"
    budget.write_text("v2v: {dominant: 5, contextual: 2}\nt2v: {layers: [2, 3], keep: [0.5, 0.2]}\n")
    lines = [
        f"/image {images[1]}",
        "Why?",
        f"/video {clip}",
        "And now?",
        "/compression none",
        "/video nowhere",
        "/tokens",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    words = ["--model-path", str(folders[family]), "--device", "cpu", "--temperature", "0", "--max-new-tokens", "2"]
    assert cli.main([*words, "--image-file", str(images[0]), "--compression", str(budget), "--debug"]) == 0
    out, err = capsys.readouterr()
    assert "2 image(s) will be shown" in out and "There is no video 'nowhere'" in err and "visual tokens of" in out
    assert "prompt" in err and err.count("outputs") == 2
    if family in SEES_VIDEOS:
        assert "1 video(s) will be shown with the next question." in out
    else:
        assert "Videos cannot be shown to this" in err and "damaged" not in err and "video(s) will be" not in out
    drawn = tmp_path / "drawn.png"
    monkeypatch.setattr("sys.stdin", io.StringIO("Why?"))
    shown = ["--image-file", str(images[0]), *(["--video-file", str(clip)] if family in SEES_VIDEOS else [])]
    status = cli.main([*words, *shown, "--compression", str(budget), "--save-overlay", str(drawn)])
    if family in SEES_VIDEOS:
        assert status == 0 and Image.open(drawn).size[0] > 100
    else:
        assert status == 2 and "(--save-overlay) is told of models in LLaVA's own format" in capsys.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_one_question_is_asked_about_images_and_videos(
    family: str, folders: dict[str, Path], media: tuple[list[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    images, clip = media
    asked = {"model_path": str(folders[family]), "query": "What is it?", "image_file": str(images[0]), "device": "cpu"}
    asked |= {"temperature": 0, "max_new_tokens": 3}
    alone = run_llava.eval_model(argparse.Namespace(**asked))
    assert alone == run_llava.eval_model(argparse.Namespace(**asked, video_file=None))
    if family in SEES_VIDEOS:
        assert isinstance(run_llava.eval_model(argparse.Namespace(**asked, video_file=[str(clip)])), str)
    with pytest.raises(ValueError, match=r"There is no video 'nowhere\.mp4'"):
        run_llava.eval_model(argparse.Namespace(**asked, video_file="nowhere.mp4"))
    with pytest.raises(SystemExit):
        run_llava.main(["--model-path", str(folders[family]), "--query", "What is it?"])
    assert "--image-file/--image_file, or --video-file" in capsys.readouterr().err


@pytest.mark.parametrize("family", SEES_VIDEOS)
def test_a_trace_follows_every_patch_of_crops_and_frames(
    family: str, folders: dict[str, Path], media: tuple[list[Path], Path]
) -> None:
    images, clip = media
    chat = chat_with(folders[family])
    chat.answer("What?", [Image.open(images[0]).convert("RGB"), read_video(str(clip), chat.engine.inputs)])
    trace, units = chat.trace()
    assert trace.merged is not None and trace.entered == (7 * len(units),)
    assert trace.merged.roles.shape == (len(units), 16) and all(unit.shape[0] == 3 for unit in units)
    crops = {"llava-1.5": 1, "llava-next": 1 + 4, "video-llava": 1}[family]
    assert len(units) == crops + (4 if family == "video-llava" else 8)
    assert chat.usage is not None and 0 < int(trace.alive[3].sum()) <= int(chat.usage.visual_tokens[0] * 0.2)
    chat.set_compression({"v2v": None, "t2v": BUDGET["t2v"]})
    chat.answer("And?")
    if family == "llava-1.5":
        assert chat.trace()[0].entered == (16 * len(units),)
    else:
        with pytest.raises(ValueError, match="Without v2v some visual tokens are no patch"):
            chat.trace()
    assert torch.is_tensor(units[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_are_measured_on_every_family_and_caches_hold_what_was_computed(
    family: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cache of other bytes than were computed ends the program, so crops, frames and sizes are counted right."""
    budget, report = tmp_path / "mine.yaml", tmp_path / "cost.json"
    budget.write_text("v2v: {dominant: 5, contextual: 2}\nt2v: {layers: [2, 3], keep: [0.5, 0.2]}\n")
    words = ["--model-path", str(folders[family]), "--device", "cpu", "--repeats", "1", "--new-tokens", "2"]
    words += ["--images", "2", "--image-size", "120x61", "--compression", f"none,{budget}"]
    assert cost.main([*words, "--also", "train", "tower", "--json", str(report)]) == 0
    first, second = json.loads(report.read_text())["budgets"]
    # Of LLaVA-OneVision two images in a prompt are not cut, and a newline stands behind each.
    each = {"llava-next": 7 * 5, "video-llava": 7 * 4, "llava-onevision": 7 + 1}.get(family, 7)
    assert second["visual_tokens"][:4] == [2 * each, 2 * each, each, int(2 * each * 0.2)]
    assert first["visual_tokens"][0] > 2 * each and first["train_flops"] > second["train_flops"] > first["flops"]
    assert all(len(row[f"{what}_seconds"]) == 1 for row in (first, second) for what in ("prefill", "train", "tower"))
    assert cost.main([*words, "--random-weights", "--json", str(report)]) == 0
    assert [row["visual_tokens"] for row in json.loads(report.read_text())["budgets"]] == [
        first["visual_tokens"],
        second["visual_tokens"],
    ]
    capsys.readouterr()
    other = "qwen-160" if family == "video-llava" else "video-136"
    assert cost.main([*words[:-1], other]) == 2
    err = capsys.readouterr().err
    assert f"but this is a {family}" in err or "v2v.dominant is" in err


@pytest.mark.parametrize(
    ("table", "model", "preset"),
    [
        ("table-2", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen-160"),
        ("table-4", "LanguageBind/Video-LLaVA-7B", "video-136"),
        ("table-9-10", "liuhaotian/llava-v1.6-vicuna-7b", "next-640"),
    ],
)
def test_the_papers_tables_of_other_families_are_filled(
    table: str, model: str, preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The family's own uncompressed row is 100 %: half of one benchmark costs half of one of so many."""
    published = read_table(table)
    names = [name for name in published.benchmarks.values() if name is not None]
    whole: dict[str, float | None] = dict.fromkeys(names, 80.0)
    save(tmp_path / "none", whole, model=model)
    save(tmp_path / "own", {**whole, names[0]: 40.0}, model=model, compression=preset)
    save(tmp_path / "llava", dict.fromkeys(names, 10.0), compression="duet-64")  # another family's, in no row of these
    text = shown(capsys, tmp_path, "--paper")
    rows, _ = table_of(text, published.title)
    (row,) = [row for row in rows if "DUET (C)" in row.values() and any("40.0" in cell for cell in row.values())]
    assert any(f"{100 - 50 / len(names):.1f}" in cell for cell in row.values()), row
    assert not any(" 10.0" in cell for row in rows for cell in row.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_vlmevalkit_shows_images_and_videos_to_every_family(
    family: str, folders: dict[str, Path], media: tuple[list[Path], Path]
) -> None:
    images, clip = media
    model = DuetLlava(str(folders[family]), compression="none", device="cpu", max_new_tokens=3)
    asked = [{"type": "image", "value": str(images[0])}, {"type": "text", "value": "What is it?"}]
    picture = Image.open(images[0]).convert("RGB")
    chat = chat_with(folders[family], "none")
    chat.answer("What is it?", [picture])
    assert chat.turns[0][1].startswith(model.generate_inner(asked)[:1])
    film = [{"type": "video", "value": str(clip)}, *asked]
    if family in SEES_VIDEOS:
        assert isinstance(model.generate_inner(film), str)
        assert (family == "video-llava") == model.VIDEO_LLM
    else:
        with pytest.raises(ValueError, match="Videos cannot be shown to this"):
            model.generate_inner(film)
    with pytest.raises(ValueError, match="There is no video 'nowhere'"):
        model.generate_inner([{"type": "video", "value": "nowhere"}])
    with pytest.raises(ValueError, match="this model takes image, video and text"):
        model.generate_inner([{"type": "sound", "value": "x"}])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_evaluation_says_before_it_loads_what_does_not_fit(family: str, folders: dict[str, Path]) -> None:
    words = ["--model-path", str(folders[family]), "--device", "cpu", "--compression"]
    other = "qwen-160" if "llava" in family else "video-136"
    with pytest.raises(ValueError, match=r"is made for|the decoder has \d layers|v2v.dominant is"):
        evaluated_model(run.parse([*words, other]))
    flags = ["--image_token_ratio_list", "[0.5,0]", "--layer_list"]
    scaled = evaluated_model(run.parse([*words, "none", *flags, "[2,3]"]))
    assert scaled.compression.t2v is not None and scaled.compression.t2v.layers == (2, 3)
    with pytest.raises(ValueError, match=r"the decoder has \d layers"):
        evaluated_model(run.parse([*words, "none", *flags, "[2,9]"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_doctor_tells_the_memory_of_the_familys_own_recipes(
    family: str,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What can be imported here is tried in tests/test_doctor.py, in a process of its own, which takes seconds.
    monkeypatch.setattr(examination, "try_imports", lambda: examination.Imports({}, {}))
    report = tmp_path / "doctor.json"
    words = ["--model", str(folders[family]), "--devices", "2", "--device-memory", "80", "--json", str(report)]
    status, out = doctor.main([*words, "--compression", "none"]), capsys.readouterr()
    scripts = {"llava-1.5": "v1_5", "llava-next": "v1_6", "video-llava": "videollava/v1_5", "qwen2.5-vl": "qwen2_5_vl"}
    scripts |= {"qwen3-vl": "qwen3_vl", "llava-onevision": "llava_onevision"}
    assert status == 0 and f"scripts/{scripts[family]}/finetune.sh" in out.out
    for name, recipe in recipes_of(family).items():
        text = (ROOT / recipe.script).read_text()
        stage, batch = re.search(r"launch_training \S*zero(\d)\S* (\d+ \d+)", text).groups()  # type: ignore[union-attr]
        assert (str(recipe.zero), f"{recipe.global_batch} {recipe.batch_size}") == (stage, batch), name
        assert recipe.trains_tower == bool(
            re.search("unfreeze_mm_vision_tower True|set_model_flags True True True", text)
        )
    assert doctor.main([*words, "--recipe", "finetune_qlora"]) == (0 if family == "llava-1.5" else 2)
