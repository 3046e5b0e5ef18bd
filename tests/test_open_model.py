"""`open_model` on models of every family, and on one that this package has never heard of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_qwen import write_qwen
from tiny_vlms import IMAGE, batch, prompt, vlm
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextProcessor,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from llava.checkpoints.contents import Kind
from llava.checkpoints.conversion import convert
from llava.checkpoints.opening import Opened, open_model, resolve
from llava.compression import schedule
from llava.cost.shapes import ModelShape
from llava.data.check.command import main as check
from llava.doctor.__main__ import main as doctor
from llava.eval.run import main as evaluate
from llava.model.builder import load_pretrained_model
from llava.model.plugin import CompressedModel, VisualSpan, forward_like

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "llava_onevision")


class MyConfig(LlavaConfig):
    model_type = "made_up_vlm"


class MyVLM(LlavaForConditionalGeneration):
    config_class = MyConfig


class MyOtherVLM(LlavaForConditionalGeneration):
    """With the configuration, and the `model_type`, of transformers' LLaVA."""


class _MyFamily(CompressedModel):
    visual_inputs = ("pixel_values",)

    def visual_spans(self, compression: Any, inputs: Any) -> dict[int, list[VisualSpan]]:
        if inputs["pixel_values"] is None:
            return {self.config.image_token_id: []}
        features = self.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        return {self.config.image_token_id: [VisualSpan(image, replaced=len(image)) for image in features]}


class CompressedMyVLM(_MyFamily, MyVLM):
    stock = MyVLM
    forward = forward_like(MyVLM)


class CompressedMyOtherVLM(_MyFamily, MyOtherVLM):
    stock = MyOtherVLM
    forward = forward_like(MyOtherVLM)


def written(model: Any, folder: Path, **config: Any) -> Path:
    """A folder with a model, a tokenizer and LLaVA-NeXT's processor, whose images any of them is content with."""
    model.save_pretrained(folder)
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(), tiny_text.llama(), patch_size=14, vision_feature_select_strategy="default"
    )
    processor.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | config))
    return folder


def opened(folder: Path, **options: Any) -> Opened:
    return open_model(str(folder), device="cpu", dtype=torch.float32, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_transformers_is_opened_as_it_is_published_and_is_the_stock_model(
    family: str, tmp_path: Path
) -> None:
    stock = vlm(family, dtype=torch.float32)
    folder = written(stock, tmp_path / "folder")
    published = set(load_file(folder / "model.safetensors"))
    assert (published == set(stock.state_dict())) == family.startswith("qwen3"), "of the others, published names differ"
    found = opened(folder)
    inputs = batch([prompt(family, seed, dtype=torch.float32) for seed in (1, 2)])
    with torch.no_grad():
        assert torch.allclose(found.model(**inputs).logits, stock(**inputs).logits, atol=1e-5)
    assert isinstance(found.model, CompressedModel) and not found.model.training
    assert found.preprocessor.tokenizer is found.tokenizer and found.context == 512


def test_the_budget_in_config_json_is_the_models_and_another_may_be_given(tmp_path: Path) -> None:
    budget = {"t2v": {"layers": [2], "keep": [0.5]}}
    folder = written(vlm("llava_next", dtype=torch.float32), tmp_path / "folder", compression=budget)
    assert opened(folder).model.compression.t2v.layers == (2,)
    assert open_model(folder, device="cpu", compression="none").model.compression.t2v is None, "a path, too"
    with pytest.raises(ValueError, match="the vision tower gives 17 tokens"):
        opened(folder, compression="qwen-640")


def test_llavas_function_opens_other_families_too(tmp_path: Path) -> None:
    folder = written(vlm("llava_onevision", dtype=torch.float32), tmp_path / "folder")
    tokenizer, model, processor, context = load_pretrained_model(str(folder), device="cpu")
    assert isinstance(model, CompressedModel) and processor.tokenizer is tokenizer and context == 512


@pytest.mark.parametrize("family", [CompressedMyVLM, CompressedMyOtherVLM])
def test_a_family_from_outside_is_opened_by_its_type_or_by_the_name_of_its_class(family: Any, tmp_path: Path) -> None:
    stock = family.stock(family.stock.config_class.from_dict(vlm("llava").config.to_dict())).eval()
    found = opened(written(stock, tmp_path / "folder"))
    assert type(found.model) is family
    inputs = batch([prompt("llava", 3, dtype=torch.float32)])
    assert (inputs["input_ids"] == IMAGE).any()
    with torch.no_grad():
        assert torch.allclose(found.model(**inputs).logits, stock(**inputs).logits, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_of_another_family_is_made_up(family: str, tmp_path: Path) -> None:
    folder = written(vlm(family, dtype=torch.float32), tmp_path / "folder")
    path = folder / "model.safetensors"
    held = load_file(path)
    name = next(name for name in held if name.endswith(("layers.1.mlp.up_proj.weight", "layers.1.mlp.gate.weight")))
    for change, said in (
        ({name: None}, r"lacks '[\w.]+layers.1.mlp.\w+.weight' of shape"),
        ({name: torch.zeros(3, 5)}, r"has shape \(3, 5\), but the model that config.json describes needs"),
        ({"more.weight": torch.zeros(2)}, "holds 'more.weight' of shape"),
        ({name: torch.full_like(held[name], torch.nan)}, "model.safetensors' holds it as"),
    ):
        new: dict[str, Any] = held | change
        save_file({key: tensor for key, tensor in new.items() if tensor is not None}, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=said):
            opened(folder)


def test_what_cannot_be_done_with_another_family_is_said(tmp_path: Path) -> None:
    folder = written(vlm("qwen2_5_vl", dtype=torch.float32), tmp_path / "folder", auto_map={"AutoModel": "evil.Model"})
    assert resolve(str(folder))[0].kind is Kind.FAMILY
    (folder / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="is not what transformers reads"):
        opened(folder)


def test_without_a_package_of_its_processor_a_model_is_opened_without_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise ImportError("ItsVideoProcessor requires the Torchvision library")

    monkeypatch.setattr("llava.checkpoints.processors.AutoProcessor.from_pretrained", missing)
    stock = vlm("llava_next", dtype=torch.float32)
    windowed = stock.config.text_config.to_dict() | {"model_type": "mistral", "sliding_window": 99}
    found = opened(written(stock, tmp_path / "folder", text_config=windowed))
    assert found.preprocessor is None and len(found.tokenizer) > 0
    assert "cannot be made, so images cannot be shown: ItsVideoProcessor requires the Torchvision" in caplog.text


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_5", "llava_next_video", "qwen3_moe"])
def test_models_that_look_like_ours_are_refused_by_their_type_in_every_program(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CONFIG_MAPPING[kind]().save_pretrained(tmp_path / "model")
    save_file({"x": torch.zeros(1)}, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    folder, said = str(tmp_path / "model"), rf"{kind}'; accepted are .*qwen2_5_vl, qwen3_vl, qwen3_vl_moe"
    for asked in (opened, lambda path: convert(path, tmp_path / "made", "llava"), ModelShape.of):
        with pytest.raises(ValueError, match=said):
            asked(folder)
    with pytest.raises(SystemExit, match=said):
        schedule.main(["--model", folder, "--preset", "none"])
    assert evaluate(["--model-path", folder, "--benchmarks", "pope", "--device", "cpu", "--output", folder]) == 2
    for program, words in ((check, ["--data", "none.json"]), (doctor, [])):
        assert program(["--model", folder, *words]) == 2
        printed = capsys.readouterr()
        assert re.search(said, " ".join((printed.out + printed.err).split())), program


def test_adapters_of_peft_with_a_tokenizer_alone_are_shown_images_by_the_processor_of_their_base(
    tmp_path: Path,
) -> None:
    base = write_qwen(tmp_path / "qwen")
    model = AutoModelForImageTextToText.from_pretrained(base)
    targets = r".*language_model\.layers.*\.q_proj"
    get_peft_model(model, LoraConfig(r=2, target_modules=targets)).save_pretrained(tmp_path / "adapters")
    opened = open_model(base, device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(tmp_path / "adapters")
    over = open_model(tmp_path / "adapters", base, device="cpu")
    assert type(over.preprocessor) is type(opened.preprocessor) and over.tokenizer.vocab_size > 0
    tokenizer.add_tokens(["<ours>"])
    tokenizer.save_pretrained(tmp_path / "adapters")
    with pytest.raises(ValueError, match=r"'.*adapters' has a tokenizer without a processor.*with other tokens"):
        open_model(tmp_path / "adapters", base, device="cpu")
