"""One question from the command line, with LLaVA's flags and the published ones."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from PIL import Image
from tiny_folder import write_model, write_pictures

from llava.compression.config import CompressionConfig
from llava.data.families.llava import LlavaInputs
from llava.data.tokenization import encode_prompt
from llava.eval.run_llava import DEFAULTS, budget, eval_model, image_files, main
from llava.inference.generation import GenerationSettings
from llava.inference.typed_images import read_image
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model

QUESTION = "What digit is red?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 2)


def by_hand(folder: Path, question: str, files: list[str], **options) -> str:
    """The greedy answer through the model's own `generate`."""
    tokenizer, model, image_processor, _ = load_pretrained_model(str(folder), device="cpu")
    prompt = encode_prompt([question], tokenizer, "llava_v1").tensors()
    images = process_images([Image.open(name).convert("RGB") for name in files], image_processor, model.config)
    settings = {"max_new_tokens": 8, "do_sample": False} | options
    ids = model.generate(prompt["input_ids"][None], images=images, query_mask=prompt["query_mask"][None], **settings)
    return tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def arguments(folder: Path, files: str, **changes) -> SimpleNamespace:
    """Everything that LLaVA's own callers set."""
    given = {
        "model_path": str(folder),
        "model_base": None,
        "model_name": "llava-v1.5-tiny",
        "query": QUESTION,
        "conv_mode": None,
        "image_file": files,
        "sep": ",",
        "temperature": 0,
        "top_p": None,
        "num_beams": 1,
        "max_new_tokens": 8,
        "device": "cpu",
    }
    return SimpleNamespace(**given | changes)


def test_eval_model_answers_as_in_llava(folder: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]):
    expected = by_hand(folder, f"<image>\n{QUESTION}", pictures[:1])
    assert eval_model(arguments(folder, pictures[0])) == expected
    assert capsys.readouterr().out == f"{expected}\n"
    both = by_hand(folder, f"<image>\n<image>\n{QUESTION}", pictures)
    assert eval_model(arguments(folder, ",".join(pictures))) == both
    placed = "Is <image-placeholder> like <image-placeholder>?"
    expected = by_hand(folder, "Is <image> like <image>?", pictures)
    assert eval_model(arguments(folder, "|".join(pictures), query=placed, sep="|")) == expected
    beams = by_hand(folder, f"<image>\n{QUESTION}", pictures[:1], num_beams=3)
    assert eval_model(arguments(folder, pictures[0], num_beams=3)) == beams


def test_attributes_that_are_missing_have_llavas_defaults(folder: Path, pictures: list[str]):
    least = SimpleNamespace(model_path=str(folder), image_file=pictures[0], query=QUESTION, temperature=0)
    expected = by_hand(folder, f"<image>\n{QUESTION}", pictures[:1], max_new_tokens=512)
    assert eval_model(least) == expected


def test_the_command_line_takes_a_budget_and_the_published_flags(
    folder: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
):
    base = ["--model-path", str(folder), "--image-file", pictures[0], "--query", QUESTION, "--device", "cpu"]
    base += ["--temperature", "0", "--max_new_tokens", "8"]
    said = set()
    for flags, compression in (
        ([], tiny.DUET),
        (["--compression", "none"], "none"),
        (
            ["--compression", "none", "--dominant", "5", "--contextual", "2", "--cluster_width", "2"],
            {"v2v": {"dominant": 5, "contextual": 2, "cluster_width": 2}},
        ),
        (
            ["--layer_list", "[1, 3]", "--image_token_ratio_list", "[0.4, 0.1]"],
            {"v2v": tiny.DUET["v2v"], "t2v": {"layers": [1, 3], "keep": [0.4, 0.1]}},
        ),
    ):
        assert main([*base, *flags]) == 0
        printed = capsys.readouterr().out.strip()
        assert printed == by_hand(folder, f"<image>\n{QUESTION}", pictures[:1], compression=compression)
        said.add(printed)
    assert len(said) > 2, "the budgets can be told apart"


def test_what_does_not_fit_is_a_sentence(folder: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]):
    base = ["--model-path", str(folder), "--query", QUESTION, "--device", "cpu", "--image-file"]
    for words, reason in (
        ([*base, "nowhere.png"], "There is no image file 'nowhere.png'"),
        ([*base, pictures[0], "--layer_list", "__import__('os')"], "it must be a list of numbers such as '[16,24]'"),
        ([*base, pictures[0], "--compression", "pyramiddrop"], "the decoder has 6 layers"),
        ([*base, pictures[0], "--conv-mode", "nothing"], "no conversation template 'nothing'"),
        ([*base, pictures[0], "--temperature", "-1"], "temperature is -1"),
        ([*base, pictures[0], "--top_p", "2"], "top_p is 2"),
        ([*base, pictures[0], "--num_beams", "0"], "num_beams is 0"),
        ([*base, pictures[0], "--device", "toaster"], "--device is 'toaster'"),
        ([*base, ",".join(pictures), "--query", "<image-placeholder>?"], "holds 1 <image>, but 2 images"),
    ):
        assert main(words) == 2
        assert reason in capsys.readouterr().err


def test_another_template_than_the_name_suggests_is_said(folder: Path, pictures, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "llava.eval.run_llava"):
        eval_model(arguments(folder, pictures[0], conv_mode="mpt"))
    assert "suggests conv_mode llava_v1, but mpt was asked for and is used" in caplog.text


def test_published_flags_may_be_lists():
    options = SimpleNamespace(**DEFAULTS | {"layer_list": [16, 24], "image_token_ratio_list": (0.5, 0.0)})
    got = budget(options, CompressionConfig())
    assert got == CompressionConfig.from_dict({"t2v": {"layers": [16, 24], "keep": [0.5, 0.0]}})
    assert budget(SimpleNamespace(**DEFAULTS), got) == got


def test_lists_of_files():
    assert image_files("a.png, b.png", ",") == ["a.png", "b.png"]
    assert image_files("a,b.png", "|") == ["a,b.png"]
    assert image_files("", ",") == image_files(None, ",") == []


# === What programs share ===


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("llava-v1.5-7b", "llava_v1"),
        ("llava-llama-2-13b-chat", "llava_llama_2"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("llava-v1.6-34b", "chatml_direct"),
        ("LLaVA-Lightning-MPT-7B", "mpt"),
        ("llava-v0-7b", "llava_v0"),
        ("my-model", "v1"),
    ],
)
def test_templates_go_by_the_name_as_in_llava(name: str, template: str):
    assert LlavaInputs.template_by_name(name) == template


def test_answers_end_where_templates_say():
    ends = {"v1": "</s>", "llava_llama_2": "</s>", "mpt": "<|im_end|>", "v0": "###", "mistral_instruct": "</s>"}
    for name, end in ends.items():
        assert LlavaInputs(SimpleNamespace(), SimpleNamespace(eos_token="<eos>"), None, name).stop == end
        assert LlavaInputs(SimpleNamespace(), SimpleNamespace(eos_token=end), None, name).stop is None


def test_images_are_placed_with_the_marks_that_the_model_asks_for():
    def place_images(text: str, count: int, config: SimpleNamespace, template: str) -> str:
        return LlavaInputs(config, None, None, template).question(text, [None] * count)

    plain, marked = SimpleNamespace(), SimpleNamespace(mm_use_im_start_end=True)
    assert place_images("Why?", 2, plain, "v1") == "<image>\n<image>\nWhy?"
    assert place_images("Why <image>?", 1, plain, "v1") == "Why <image>?"
    assert place_images("Why?", 0, marked, "v1") == "Why?"
    assert place_images("Why?", 1, marked, "v1") == "<im_start><image><im_end>\nWhy?"
    assert place_images("Why?", 1, plain, "v1_mmtag") == "<Image><image></Image>\nWhy?"


def test_sampling_follows_the_temperature():
    assert GenerationSettings(0, 0.9).options()["do_sample"] is False
    assert GenerationSettings(0.7, 0.9, 2, 5).options() == {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "num_beams": 2,
        "max_new_tokens": 5,
    }
    assert GenerationSettings().options() == {}


def test_images_that_cannot_be_read_are_named(tmp_path: Path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(ValueError, match=r"broken\.png' cannot be read"):
        read_image(str(broken))
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9/x\.png' cannot be read"):
        read_image("http://127.0.0.1:9/x.png")
    with pytest.raises(ValueError, match="cannot be read"):
        read_image("http://[")
    grey = tmp_path / "grey.png"
    Image.new("L", (4, 6), 7).save(grey)
    assert read_image(str(grey)).mode == "RGB"
