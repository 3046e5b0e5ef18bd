"""LLaVA-NeXT's checkpoints: as published, as transformers keeps them, and from one layout to the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import published
import pytest
import tiny_text
import torch
from published import IMAGE, PATCH, VOCABULARY, WIDTH
from safetensors.torch import load_file
from tiny import columns_of_stock
from tiny_next import picture
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from llava.checkpoints.contents import Kind, examine
from llava.checkpoints.conversion import convert
from llava.checkpoints.opening import open_model
from llava.data.families import family_of
from llava.mm_utils import image_sizes, process_images, tokenizer_image_token
from llava.model import LlavaLlamaForCausalLM
from llava.model.families.llava_next import CompressedLlavaNext
from llava.model.weights import weight_files

PINPOINTS = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
SIZES = [(1, 1), (16, 16), (31, 17), (17, 31), (64, 64), (100, 9), (9, 100), (37, 1999)]
ROUNDED = [(47, 188), (343, 392)]
"""Sizes of which transformers keeps a line more of the map, because it rounds to seven digits."""
OF_1_6 = {
    "image_aspect_ratio": "anyres",
    "image_crop_resolution": 224,
    "image_grid_pinpoints": PINPOINTS,
    "image_split_resolution": 224,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_lr": None,
    "mm_vision_tower_lr": 2e-06,
    "tokenizer_model_max_length": 4096,
    "tokenizer_padding_side": "right",
    "unfreeze_mm_vision_tower": True,
    "use_image_newline_parameter": True,
}
"""What `liuhaotian/llava-v1.6-vicuna-7b` has in its `config.json` beside LLaVA-1.5's fields."""


def newline() -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(9)) / WIDTH**0.5


def weights() -> published.Weights:
    return published.whole() | {"model.image_newline": newline()}


def write_next(folder: Path, **config: Any) -> Path:
    """A folder like `liuhaotian/llava-v1.6-vicuna-7b`: its tower was trained and lies inside."""
    published.write_shards(folder, weights() | published.old_buffers(), pickled=False, count=3)
    tower = "openai/clip-vit-large-patch14-336"
    published.write_json(
        folder / "config.json",
        published.llava_config(tower, **OF_1_6 | {"mm_vision_config": published.VISION} | config),
    )
    size = {"crop_size": {"height": IMAGE, "width": IMAGE}, "size": {"shortest_edge": IMAGE}}
    published.write_json(folder / "preprocessor_config.json", size | {"image_processor_type": "CLIPImageProcessor"})
    tiny_text.llama_legacy().save_pretrained(folder)
    return folder


def hf_names(new: bool = False) -> published.Weights:
    names = published.hf_names(published.whole(), new)
    return names | {"model.image_newline" if new else "image_newline": newline()}


def hf_config(**changes: Any) -> dict[str, Any]:
    """`config.json` of `llava-hf/llava-v1.6-vicuna-7b-hf`."""
    own = {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "image_grid_pinpoints": [[height, width] for width, height in PINPOINTS],
        "use_image_newline_parameter": True,
    }
    return published.hf_config(**own | changes)


def write_hf(folder: Path, new: bool = False, **config: Any) -> Path:
    published.write_shards(folder, hf_names(new), pickled=False, count=2)
    published.write_json(folder / "config.json", hf_config(**config))
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": IMAGE},
            crop_size={"height": IMAGE, "width": IMAGE},
            image_grid_pinpoints=hf_config()["image_grid_pinpoints"],
        ),
        tiny_text.llama_legacy(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("next")
    write_next(root / "llava-v1.6-vicuna-7b")
    write_hf(root / "llava-v1.6-vicuna-7b-hf")
    return root


@pytest.fixture(scope="module")
def stock() -> Any:
    """transformers' own class with the published weights."""
    text = published.vicuna_config()
    del text["model_type"], text["torch_dtype"], text["rope_scaling"]
    config = LlavaNextConfig(
        text_config=LlamaConfig(**text),
        vision_config=CLIPVisionConfig(**published.VISION),
        image_token_index=VOCABULARY - 2,
        image_grid_pinpoints=[[height, width] for width, height in PINPOINTS],
    )
    model = LlavaNextForConditionalGeneration(config).double()
    model.load_state_dict(hf_names(new=True))
    return model.eval()


def opened(folder: Path, **options: Any) -> Any:
    return open_model(str(folder), device="cpu", dtype=torch.float64, **options)


def ours(found: Any, size: tuple[int, int]) -> Tensor:
    model, processor, tokenizer, _ = found
    pictures = [picture(size, 1)]
    pixels = process_images(pictures, processor, model.config)
    ids = tokenizer_image_token("USER: <image>\nWhat? ASSISTANT:", tokenizer, return_tensors="pt")[None]
    with torch.no_grad():
        images = [image.double() for image in pixels]
        return model(ids, images=images, image_sizes=image_sizes(pictures, model.config)).logits


def theirs(model: Any, processor: Any, size: tuple[int, int]) -> Tensor:
    inputs = processor(images=picture(size, 1), text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs.to(torch.float64)).logits[..., :VOCABULARY]
    return columns_of_stock(logits, inputs["input_ids"], model.config.image_token_index)


@pytest.mark.parametrize("layout", ["llava-v1.6-vicuna-7b", "llava-v1.6-vicuna-7b-hf"])
def test_either_layout_is_opened_as_llavas_own_and_computes_what_transformers_does(folders, stock, layout):
    found = opened(folders / layout)
    assert type(found.model) is LlavaLlamaForCausalLM
    config = found.model.config
    assert (config.image_aspect_ratio, config.mm_patch_merge_type) == ("anyres", "spatial_unpad")
    assert config.image_grid_pinpoints == PINPOINTS
    assert torch.equal(found.model.model.image_newline, newline().double())
    of_transformers = layout.endswith("-hf")
    for size in [*SIZES, *(ROUNDED if of_transformers else ())]:
        torch.testing.assert_close(ours(found, size), spelled(stock, found, size), atol=1e-9, rtol=0)
    assert config.image_unpad_digits == (7 if of_transformers else None)


def spelled(stock: Any, found: Any, size: tuple[int, int]) -> Tensor:
    """transformers' logits for the same ids and its own pixels."""
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": IMAGE},
        crop_size={"height": IMAGE, "width": IMAGE},
        image_grid_pinpoints=stock.config.image_grid_pinpoints,
    )
    made = image_processor([picture(size, 1)], return_tensors="pt")
    ids = tokenizer_image_token("USER: <image>\nWhat? ASSISTANT:", found.tokenizer)
    features = stock.model.get_image_features(
        made["pixel_values"].double(),
        made["image_sizes"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        return_dict=True,
    ).pooler_output
    token = stock.config.image_token_id
    words = [part for word in ids for part in ([token] * len(features[0]) if word == -200 else [word])]
    with torch.no_grad():
        logits = stock(
            input_ids=torch.tensor([words]),
            pixel_values=made["pixel_values"].double(),
            image_sizes=made["image_sizes"],
        ).logits
    return columns_of_stock(logits, torch.tensor([words]), token)


def test_newer_names_of_transformers_are_read_too(folders, tmp_path):
    new = write_hf(tmp_path / "new", new=True)
    assert torch.equal(ours(opened(new), (64, 64)), ours(opened(folders / "llava-v1.6-vicuna-7b-hf"), (64, 64)))


def test_a_newline_that_is_missing_or_wrong_is_an_error(folders, tmp_path):
    for name, newlines, config, words in (
        ("none", {}, {}, "lacks 'model.image_newline' of shape"),
        ("short", {"model.image_newline": torch.ones(3)}, {}, r"'model.image_newline' in .* has shape \(3,\)"),
        (
            "unread",
            {"model.image_newline": newline()},
            {"mm_patch_merge_type": "spatial"},
            "holds 'model.image_newline'",
        ),
        ("nan", {"model.image_newline": newline() * torch.nan}, {}, "holds it as model.image_newline"),
    ):
        folder = write_next(tmp_path / name, **config)
        for path in (*weight_files(folder), folder / "model.safetensors.index.json"):
            path.unlink()
        published.write_shards(folder, published.whole() | newlines, pickled=False)
        with pytest.raises(ValueError, match=words):
            opened(folder)


def test_a_mistral_without_window_is_llavas_own_and_others_stay_transformers(folders, tmp_path):
    text = hf_config()["text_config"] | {"model_type": "mistral", "sliding_window": None}
    assert examine(write_hf(tmp_path / "mistral", text_config=text)).kind is Kind.HF
    assert type(opened(tmp_path / "mistral").model) is LlavaLlamaForCausalLM
    for changes in ({"sliding_window": 4096}, {"model_type": "qwen2"}):
        raw = hf_config(text_config=text | changes)
        published.write_json(tmp_path / "mistral/config.json", raw)
        found = examine(tmp_path / "mistral")
        assert found.kind is Kind.FAMILY and found.family is CompressedLlavaNext


def test_published_siblings_are_asked_in_their_own_templates():
    for name, template in (
        ("llava-v1.6-vicuna-7b", "llava_v1"),
        ("llava-v1.6-vicuna-13b", "llava_v1"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("llava-v1.6-mistral-7b-hf", "mistral_instruct"),
        ("llava-v1.6-34b", "chatml_direct"),
    ):
        config = LlavaLlamaForCausalLM.config_class()
        assert family_of(config).template_for(config, name) == template
    recorded = LlavaLlamaForCausalLM.config_class(conversation_template="chatml_direct")
    assert family_of(recorded).template_for(recorded, "llava-v1.6-vicuna-7b") == "chatml_direct"


@pytest.fixture(scope="module")
def converted(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "hf"
    return convert(str(folders / "llava-v1.6-vicuna-7b"), target, "hf")


def test_a_converted_model_is_an_ordinary_llava_next_with_its_own_processor(folders, converted):
    """From the picture to logits in transformers alone, and here."""
    model = AutoModelForImageTextToText.from_pretrained(converted, dtype=torch.float64).eval()
    assert type(model) is LlavaNextForConditionalGeneration and type(model.config) is LlavaNextConfig
    processor = AutoProcessor.from_pretrained(converted, backend="pil")
    assert type(processor) is LlavaNextProcessor
    found = opened(folders / "llava-v1.6-vicuna-7b")
    for size in SIZES:
        torch.testing.assert_close(ours(found, size), theirs(model, processor, size), atol=1e-9, rtol=0)


def test_there_and_back_nothing_is_lost(folders, converted, tmp_path):
    back = convert(str(converted), tmp_path / "llava", "llava")
    first, again = opened(folders / "llava-v1.6-vicuna-7b"), opened(back)
    for size in ((31, 17), *ROUNDED):
        torch.testing.assert_close(ours(again, size)[..., :VOCABULARY], ours(first, size), atol=1e-9, rtol=0)
    held = {name: tensor for path in weight_files(back) for name, tensor in load_file(path).items()}
    assert held.keys() == weights().keys() and torch.equal(held["model.image_newline"], newline())
    config = json.loads((back / "config.json").read_text())
    for field in ("image_aspect_ratio", "mm_patch_merge_type", "image_grid_pinpoints", "tokenizer_model_max_length"):
        assert config[field] == OF_1_6[field]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio of .* is 'anyres_max_9'; .* has only 'anyres'"),
        ({"image_aspect_ratio": "pad"}, "mm_patch_merge_type of .* is 'spatial_unpad', but its images are not cut"),
        ({"image_aspect_ratio": "anyres", "mm_patch_merge_type": "flat"}, "mm_patch_merge_type of .* is 'flat'"),
    ],
)
def test_what_transformers_cannot_say_is_refused_before_any_work(folders, tmp_path, changes, words):
    folder = write_next(tmp_path / "llava", **changes)
    with pytest.raises(ValueError, match=words):
        convert(str(folder), tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


def test_a_model_of_transformers_rounds_in_llavas_format_too(folders, tmp_path):
    source = folders / "llava-v1.6-vicuna-7b-hf"
    moved = convert(str(source), tmp_path / "llava", "llava")
    again = convert(str(moved), tmp_path / "hf", "hf")
    first = opened(source)
    for folder in (moved, again):
        found = opened(folder)
        for size in ROUNDED:
            torch.testing.assert_close(ours(found, size)[..., :VOCABULARY], ours(first, size), atol=1e-9, rtol=0)


def test_canvases_in_words_become_a_list_there(tmp_path):
    folder = write_next(tmp_path / "llava", image_grid_pinpoints="(1x1),...,(2x2)")
    convert(str(folder), tmp_path / "hf", "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["image_grid_pinpoints"] == [[16, 16], [32, 16], [16, 32], [32, 32]]
    found = opened(tmp_path / "hf").model.config.image_grid_pinpoints
    assert found == [[16, 16], [16, 32], [32, 16], [32, 32]]
