"""A model remembers the conversation template that it was trained in, and every program asks it in that one."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_folder import write_pictures
from tiny_llava import flags, write_assets
from tiny_text import llama
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM

from llava.checkpoints.conversion import convert
from llava.conversation import get_template, recorded_template
from llava.data.families.llava import LlavaInputs
from llava.eval.harnesses.lmms_eval_model import DuetLlava
from llava.eval.model_vqa_loader import parser as vqa_parser
from llava.eval.run_llava import eval_model
from llava.eval.runner.from_flags import evaluated_model
from llava.inference.chat import Chat
from llava.inference.ending import end_tokens, stopping_at
from llava.inference.engine import Engine, ModelSpec
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.train.arguments import parse_arguments
from llava.train.building import load_model, load_tokenizer
from llava.train.train import train
from playground.quickstart.evaluate import engine_for

LORA: dict[str, object] = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
MARKS = ("<|im_start|>", "<|im_end|>")


def write_language_model(folder: Path) -> None:
    """A language model whose tokenizer knows the marks of ChatML, and ends texts with another token."""
    tokenizer = llama()
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS], special_tokens=True)
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(language).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `whole`, `lora` and `projector`, each after one step; the first two in ChatML."""
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    write_language_model(folder / "lm")
    train(flags(folder, folder / "whole", "finetune", max_steps=1, version="chatml"))
    train(flags(folder, folder / "lora", "finetune", max_steps=1, version="chatml", **LORA))
    train(flags(folder, folder / "projector", "pretrain", max_steps=1))
    return folder


def recorded_in(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text()).get("conversation_template")


def opened(assets: Path, **changes: object) -> Any:
    model_args, data_args, args = parse_arguments(flags(assets, assets / "unused", "finetune", **changes))
    return load_model(model_args, data_args, args, load_tokenizer(model_args, args)), model_args


def test_every_kind_of_folder_records_it(assets: Path) -> None:
    assert [recorded_in(assets / name) for name in ("whole", "lora", "projector")] == ["chatml", "chatml", "plain"]
    for name, base in (("whole", None), ("lora", assets / "lm"), ("projector", assets / "lm")):
        _, model, _, _ = load_pretrained_model(str(assets / name), base and str(base), device="cpu")
        assert recorded_template(model.config) == (None if name == "projector" else "chatml")


def test_a_projector_trained_in_plain_over_a_llava_is_asked_in_the_llavas_template(
    assets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    over = {"model_name_or_path": assets / "whole", "max_steps": 1}
    train(flags(assets, tmp_path / "projector", "pretrain", **over))
    assert recorded_in(tmp_path / "projector") == "chatml"
    for older in ("plain", None):  # as earlier versions and LLaVA itself wrote it
        config = json.loads((tmp_path / "projector/config.json").read_text()) | {"conversation_template": older}
        (tmp_path / "projector/config.json").write_text(json.dumps(config))
        tokenizer, model, _, _ = load_pretrained_model(str(tmp_path / "projector"), str(assets / "whole"), device="cpu")
        assert LlavaInputs.template_for(model.config, "llava") == "chatml"
        assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    with caplog.at_level(logging.WARNING):
        model, args = opened(assets, version="plain", **over)
    assert (args.version, recorded_template(model.config)) == ("plain", "chatml")
    assert "--version plain is used for this training, and chatml stays recorded" in caplog.text
    model, _ = opened(assets, version="v0_plain", lora_weight_path=assets / "lora", **LORA)
    assert recorded_template(model.config) == "chatml"


def test_adapters_and_what_is_merged_from_them_end_where_the_whole_model_does(assets: Path, tmp_path: Path) -> None:
    tokenizer, model, _, _ = load_pretrained_model(str(assets / "lora"), str(assets / "lm"), device="cpu")
    ends = [2, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert model.generation_config.eos_token_id == ends
    for form in ("llava", "hf"):
        convert(str(assets / "lora"), tmp_path / form, form, str(assets / "lm"))
        assert json.loads((tmp_path / form / "generation_config.json").read_text())["eos_token_id"] == ends
    _, plain, _, _ = load_pretrained_model(str(assets / "projector"), str(assets / "lm"), device="cpu")
    assert plain.generation_config.eos_token_id == 2


def test_conversion_to_transformers_and_back_keeps_it(assets: Path, tmp_path: Path) -> None:
    convert(str(assets / "whole"), tmp_path / "hf", "hf")
    assert recorded_in(tmp_path / "hf") == "chatml"
    _, model, _, _ = load_pretrained_model(str(tmp_path / "hf"), device="cpu")
    assert recorded_template(model.config) == "chatml"
    convert(str(tmp_path / "hf"), tmp_path / "back", "llava")
    assert recorded_in(tmp_path / "back") == "chatml"


@pytest.fixture(scope="module")
def whole(assets: Path) -> tuple[Any, Any, Any]:
    tokenizer, model, processor, _ = load_pretrained_model(str(assets / "whole"), device="cpu")
    return tokenizer, model, processor


def test_every_program_asks_in_it_unless_told_otherwise(
    assets: Path, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(assets / "whole")
    tokenizer, model, processor = whole
    assert Chat(model, tokenizer, processor).conv_mode == "chatml"
    assert Engine.open(ModelSpec(path), "cpu").inputs.template == "chatml"
    assert DuetLlava(pretrained=path, device="cpu")._engine.inputs.template == "chatml"
    options = vqa_parser().parse_args(["--model-path", path])
    assert evaluated_model(options).spec.template == "chatml"
    asked = Namespace(model_path=path, template=None, image_folder=str(tmp_path), image_opening=None)
    assert engine_for(asked).inputs.template == "chatml"
    seen = []
    place = "llava.data.families.llava.encode_prompt"
    monkeypatch.setattr(place, lambda turns, _, template, *rest: seen.append(template) or 1 / 0)
    picture = write_pictures(tmp_path, 1)[0]
    with pytest.raises(ZeroDivisionError):
        eval_model(SimpleNamespace(model_path=path, image_file=picture, query="What?", device="cpu"))
    assert seen == ["chatml"]


def test_models_that_record_none_go_by_the_rules_of_today() -> None:
    assert LlavaInputs.template_for(SimpleNamespace(), "llava-v1.5-7b") == "llava_v1"
    assert LlavaInputs.template_for(SimpleNamespace(), "llava-v1.5-7b", usual="vicuna_v1") == "vicuna_v1"
    plain, older = SimpleNamespace(conversation_template="plain"), SimpleNamespace(conversation_template="v0")
    assert LlavaInputs.template_for(plain, "llava-v1.6-mistral-7b") == "mistral_instruct"
    assert LlavaInputs.template_for(older, "llava-v1.5-7b", usual="vicuna_v1") == "v0"
    with pytest.raises(ValueError, match=r"conversation_template in config\.json is 'newer', which this version"):
        LlavaInputs.template_for(SimpleNamespace(conversation_template="newer"), "llava-v1.5-7b")
    with pytest.raises(ValueError, match=r"conversation_template in config\.json is \['v1'\], which this version"):
        recorded_template({"conversation_template": ["v1"]})


def test_another_template_is_used_when_asked_for_and_warned_about(
    assets: Path, whole: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer, model, processor = whole
    with caplog.at_level(logging.WARNING):
        assert Chat(model, tokenizer, processor, conv_mode="vicuna_v1").conv_mode == "vicuna_v1"
    assert "was trained in conversation template chatml" in caplog.text and "vicuna_v1 was asked for" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        words = ["--model-path", str(assets / "whole"), "--conv-mode", "v0"]
        assert evaluated_model(vqa_parser().parse_args(words)).spec.template == "v0"
        assert "v0 was asked for and is used" in caplog.text
        caplog.clear()
        v1 = SimpleNamespace(conversation_template="v1")
        assert LlavaInputs.template_for(v1, "m", "vicuna_v1") == "vicuna_v1"  # another name of the same
        assert Chat(model, tokenizer, processor, conv_mode="chatml").conv_mode == "chatml"
    assert "was asked for" not in caplog.text


def test_training_goes_on_in_it_and_says_when_it_is_changed(assets: Path, caplog: pytest.LogCaptureFixture) -> None:
    for changes in (
        {"model_name_or_path": assets / "whole"},
        {"lora_weight_path": assets / "lora", **LORA},
    ):
        _, args = opened(assets, version=None, **changes)
        assert args.version == "chatml"
        with caplog.at_level(logging.WARNING):
            model, args = opened(assets, version="v1", **changes)
        assert args.version == model.config.conversation_template == "v1"
        assert "was trained in template chatml" in caplog.text and "--version v1 is used" in caplog.text
        caplog.clear()


def test_a_template_that_ends_in_no_token_is_warned_about_at_the_start(
    assets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        opened(assets, version="llava_llama_3")
    assert "Template 'llava_llama_3' ends an answer with '<|eot_id|>', which is not one token" in caplog.text
    assert "Use --version v" in caplog.text  # what ends with this tokenizer's </s>
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        opened(assets, version="v1")
        opened(assets, version="chatml")
    assert "ends an answer" not in caplog.text


def test_an_answer_ends_at_the_mark_of_its_template(assets: Path, whole: Any) -> None:
    """The mark is among the saved tokens of end, so that any program stops there."""
    tokenizer, model, _ = whole
    mark = tokenizer.convert_tokens_to_ids("<|im_end|>")
    saved = json.loads((assets / "whole" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [2, mark] and model.generation_config.eos_token_id == [2, mark]
    model_of_another_end = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=7, pad_token_id=0))
    assert end_tokens(model_of_another_end, tokenizer)["eos_token_id"] == [7, 2], "the tokenizer's own end is one too"
    stop = LlavaInputs(model.config, tokenizer, None, "chatml").stop
    assert stop == "<|im_end|>"
    criterion = stopping_at(stop, tokenizer)[0]
    rows = torch.tensor([[40, 41, mark], [40, mark, 41], [40, 41, 42]])
    assert criterion(rows, None).tolist()[0] and not criterion(rows, None).tolist()[2]


def test_the_name_of_the_folder_does_not_decide(assets: Path, tmp_path: Path, whole: Any) -> None:
    folder = tmp_path / "my-mpt-llava-v0"
    folder.symlink_to(assets / "whole", target_is_directory=True)
    _, model, _, _ = load_pretrained_model(str(folder), device="cpu")
    assert LlavaInputs.template_for(model.config, get_model_name_from_path(str(folder))) == "chatml"
    assert get_template("chatml").end_mark == "<|im_end|>"
