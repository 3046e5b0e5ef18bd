"""What `llava.serve.embed` writes for other engines: from it they compute what the model here computes."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
import transformers
from PIL import Image
from test_chat import pictures
from tiny_backbones import WRITERS, write_media
from torch import Tensor
from transformers import AutoModelForCausalLM

from llava.checkpoints.conversion import convert
from llava.compression.config import CompressionConfig, presets
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates, fill_template
from llava.inference.batches import Prompt
from llava.inference.engine import Engine, ModelSpec
from llava.inference.generation import GenerationSettings
from llava.serve import embed
from llava.serve.embeddings import chat_template

V2V = {"v2v": {"dominant": 5, "contextual": 2}}
QUESTION = "What is on the left?"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write(root / name) for name, write in WRITERS.items()}


@pytest.fixture(scope="module")
def budget(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("budget") / "v2v.yaml"
    file.write_text(json.dumps(V2V))
    return file


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    return write_media(tmp_path_factory.mktemp("media"))


def run(model: Path, output: Path, *more: Any) -> int:
    return embed.main(["--model-path", str(model), "--device", "cpu", "--output", str(output), *map(str, more)])


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def decoded(text: str) -> Tensor:
    """As vLLM reads it (vllm 0.33.0, `ImageEmbeddingMediaIO.load_bytes`)."""
    tensor: Tensor = torch.load(io.BytesIO(base64.b64decode(text, validate=True)), weights_only=True)
    return tensor


def own_answer(model: Path, prompt: Prompt) -> str:
    engine = Engine.open(ModelSpec(str(model), compression=V2V, dtype="float32"), "cpu")
    return engine.answer([prompt], GenerationSettings(0.0, max_new_tokens=6))[0]


def placed_as_vllm_does(model: Any, ids: list[int], image: Tensor, token: int) -> Tensor:
    """Embeddings [1, T, D] of a prompt whose image token became as many as the image's embeddings have rows."""
    where, embed_text = ids.index(token), model.get_input_embeddings()
    before, behind = (embed_text(torch.tensor(part)) for part in (ids[:where], ids[where + 1 :]))
    return torch.cat([before, image.to(before), behind])[None]


@pytest.mark.parametrize("family", ["llava-1.5", "llava-next", "llava-onevision"])
def test_an_image_embedding_gives_vllms_model_the_answer_that_is_given_here(
    folders: dict[str, Path], budget: Path, media: tuple[list[Path], Path], family: str, tmp_path: Path
) -> None:
    files, _ = media
    status = run(
        folders[family], tmp_path / "out", "--image-file", *files, "--compression", budget, "--question", QUESTION
    )
    assert status == 0
    rows, requests = lines(tmp_path / "out" / embed.INDEX), lines(tmp_path / "out" / embed.REQUESTS)
    assert [row["of"] for row in rows] == [str(file) for file in files] and len(requests) == 2
    is_own = family != "llava-onevision"  # which is in transformers' format
    folder = convert(str(folders[family]), tmp_path / "hf", "hf") if is_own else folders[family]
    there = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    mark = IMAGE_TOKEN_INDEX if is_own else there.config.image_token_id
    engine = Engine.open(ModelSpec(str(folders[family]), compression=V2V, dtype="float32"), "cpu")
    for file, row, request in zip(files, rows, requests, strict=True):
        picture = Image.open(file).convert("RGB")
        image = torch.load(tmp_path / "out" / row["file"], weights_only=True)
        part, said = request["messages"][0]["content"]
        assert torch.equal(decoded(part["image_embeds"]), image) and said["text"] == QUESTION
        assert image.dim() == 2 and list(image.shape) == row["shape"] and row["visual_tokens"] == len(image)
        assert image.shape[1] == there.config.get_text_config().hidden_size
        ids = engine.sample(Prompt(QUESTION, (picture,)))["input_ids"].tolist()
        first = ids.index(mark)
        ids = [*ids[: first + 1], *(one for one in ids[first:] if one != mark)]  # as a client writes it: one mark
        embeds = placed_as_vllm_does(there, ids, image, mark)
        new = there.generate(inputs_embeds=embeds, max_new_tokens=6, do_sample=False)
        assert engine.tokenizer.decode(new[0], skip_special_tokens=True).strip() == own_answer(
            folders[family], Prompt(QUESTION, (picture,))
        )


@pytest.mark.parametrize("family", ["llava-1.5", "llava-next", "video-llava", "llava-onevision"])
def test_a_prompt_embedding_gives_the_language_model_alone_the_answer_that_is_given_here(
    folders: dict[str, Path], budget: Path, media: tuple[list[Path], Path], family: str, tmp_path: Path
) -> None:
    files, clip = media
    shown = ["--image-file", files[0]] + (["--video-file", clip] if family == "video-llava" else [])
    made = [*shown, "--compression", budget, "--question", QUESTION]
    text = tmp_path / "text"
    assert run(folders[family], tmp_path / "vllm", *made, "--form", "prompt_embeds", "--language-model", text) == 0
    assert run(folders[family], tmp_path / "sglang", *made, "--form", "input_embeds") == 0
    alone = AutoModelForCausalLM.from_pretrained(text).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(text)
    prompts = [Prompt(QUESTION, (Image.open(files[0]).convert("RGB"),)), Prompt(QUESTION, video=clip)]
    pairs = zip(lines(tmp_path / "vllm" / embed.REQUESTS), lines(tmp_path / "sglang" / embed.REQUESTS), strict=True)
    for (of_vllm, of_sglang), prompt in zip(pairs, prompts, strict=False):
        embeds = decoded(of_vllm["prompt_embeds"])
        assert torch.equal(torch.tensor(of_sglang["input_embeds"]), embeds.float())
        new = alone.generate(inputs_embeds=embeds[None], max_new_tokens=6, do_sample=False)
        assert tokenizer.decode(new[0], skip_special_tokens=True).strip() == own_answer(folders[family], prompt)


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_a_model_whose_positions_follow_the_grid_is_refused_in_words(
    folders: dict[str, Path],
    budget: Path,
    media: tuple[list[Path], Path],
    family: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = ["--image-file", media[0][0], "--compression", budget, "--question", QUESTION]
    assert run(folders[family], tmp_path / "a", *made) == 2
    assert "by its grid of patches" in capsys.readouterr().err
    assert run(folders[family], tmp_path / "b", *made, "--form", "input_embeds") == 2
    assert "cannot be given as embeddings" in capsys.readouterr().err


def test_video_llava_is_served_by_prompts_because_vllm_has_no_model_for_its_images(
    folders: dict[str, Path],
    budget: Path,
    media: tuple[list[Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(folders["video-llava"], tmp_path / "out", "--image-file", media[0][0], "--compression", budget) == 2
    assert "--form prompt_embeds" in capsys.readouterr().err


def test_a_budget_with_t2v_is_not_taken_silently(
    folders: dict[str, Path], media: tuple[list[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = tmp_path / "both.yaml"
    both.write_text(json.dumps(V2V | {"t2v": {"layers": [1], "keep": [0.5]}}))
    made = ["--image-file", media[0][0], "--compression", both]
    assert run(folders["llava-1.5"], tmp_path / "out", *made) == 2
    assert "--without-t2v" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run(folders["llava-1.5"], tmp_path / "out", *made, "--without-t2v") == 0
    assert lines(tmp_path / "out" / embed.INDEX)[0]["compression"]["t2v"] is None


def test_a_broken_image_keeps_no_other_from_its_file(
    folders: dict[str, Path],
    budget: Path,
    media: tuple[list[Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "0.jpg"
    broken.write_bytes(b"no image")
    made = ["--image-file", media[0][0], broken, tmp_path / "gone.png", media[0][0], "--compression", budget]
    assert run(folders["llava-1.5"], tmp_path / "out", *made) == 1
    said = capsys.readouterr()
    assert "0.jpg" in said.err and "gone.png" in said.err and "wrote 2 of 4" in said.out
    assert [row["file"] for row in lines(tmp_path / "out" / embed.INDEX)] == ["0.pt", "0-2.pt"]
    assert not (tmp_path / "out" / embed.REQUESTS).exists()
    assert run(folders["llava-1.5"], tmp_path / "out", *made) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_name_that_is_not_utf8_keeps_no_other_from_the_index(
    folders: dict[str, Path], budget: Path, media: tuple[list[Path], Path], tmp_path: Path
) -> None:
    """Writing the index failed at its end, when every image had been embedded."""
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(media[0][0], odd)
    made = ["--image-file", odd, media[0][0], "--compression", budget, "--question", QUESTION]
    assert run(folders["llava-1.5"], tmp_path / "out", *made) == 0
    rows = lines(tmp_path / "out" / embed.INDEX)
    assert [row["of"] for row in rows] == [str(odd), str(media[0][0])]
    assert all((tmp_path / "out" / row["file"]).is_file() for row in rows)
    assert len(lines(tmp_path / "out" / embed.REQUESTS)) == 2


def test_a_file_that_is_given_as_an_image_and_as_a_video_is_embedded_as_both(
    folders: dict[str, Path], budget: Path, tmp_path: Path
) -> None:
    """It was taken for a video twice."""
    moving, frames = tmp_path / "moving.gif", pictures(4)
    frames[0].save(moving, save_all=True, append_images=frames[1:], duration=100)
    made = ["--image-file", moving, "--video-file", moving, "--compression", budget, "--question", QUESTION]
    assert run(folders["video-llava"], tmp_path / "out", *made, "--form", "input_embeds") == 0
    image, video = lines(tmp_path / "out" / embed.INDEX)
    assert image["visual_tokens"] < video["visual_tokens"] and image["file"] != video["file"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "nothing to embed"),
        (["--image-file", "{image}", "--question", " "], "--question is blank"),
        (["--image-file", "{image}", "--question", "<image> or <image>?"], "write it once, or not at all"),
        (["--image-file", "{image}", "--question", "Say \\<image>."], "write it once, or not at all"),
        (["--video-file", "{clip}"], "goes with whole prompts"),
        (["--image-file", "{image}", "--form", "input_embeds"], "--question"),
        (["--image-file", "{image}", "--compression", "no-such-budget"], "no-such-budget"),
        (["--image-file", "{image}", "--language-model", "{out}"], "the same folder"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_a_model_is_read(
    media: tuple[list[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    places = {"image": media[0][0], "clip": media[1], "out": tmp_path / "out"}
    assert run(tmp_path / "no-model", tmp_path / "out", *(word.format(**places) for word in more)) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in conv_templates if not name.startswith("plain")])
def test_the_chat_template_writes_what_the_conversation_template_does(name: str) -> None:
    turns = ["<image>\nWhat {is} this?", "A 'cat'.", "Where?"]
    try:
        written = jinja2.Environment().from_string(chat_template(name))
    except ValueError as error:
        assert "not joined alike" in str(error)
        return
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
    for end in (1, 3):
        expected = fill_template(name, [*turns[:end], None]).get_prompt()
        assert written.render(bos_token="<s>", messages=messages[:end]) == "<s>" + expected


@pytest.mark.parametrize("tokens", [192, 128, 64])
def test_presets_for_other_engines_have_their_whole_budget_in_v2v(tokens: int) -> None:
    name = f"duet-v2v-{tokens}"
    assert name in presets()
    chosen, both = CompressionConfig.resolve(name), CompressionConfig.resolve(f"duet-{tokens}")
    assert chosen.t2v is None and chosen.v2v is not None and both.v2v is not None
    assert chosen.v2v.token_count(577) == tokens
    share = both.v2v.dominant / (both.v2v.dominant + both.v2v.contextual)
    assert abs(chosen.v2v.dominant - share * tokens) < 1
