"""Qwen3-VL's mixtures of experts: the loss of the routers, weights as they are published, adapters, what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_qwen3 import transpose_experts, write_qwen3_moe
from tiny_vlms import batch, prompt, vlm
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.integrations import deepspeed

from llava import compress
from llava.checkpoints.fit import conversions_of, on_meta, read_weights
from llava.checkpoints.opening import open_model
from llava.cost.shapes import ModelShape
from llava.train.adapters import add_lora
from llava.train.arguments import TrainingArguments

NO_DROP = {"t2v": {"layers": [2, 4], "keep": [1.0, 1.0]}}
BOTH = {"v2v": {"dominant": 4, "contextual": 2, "cluster_width": 2}, "t2v": {"layers": [1, 3], "keep": [0.5, 0.0]}}
EXPERTS, CHOSEN = 5, 2
ROWS = [prompt("qwen3_vl_moe", seed, kinds) for seed, kinds in enumerate([("image", "video"), ("image",), ()])]


@pytest.fixture(scope="module")
def stock() -> Any:
    return vlm("qwen3_vl_moe")


@pytest.mark.parametrize("packing", ["off", "on"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_of_the_routers_is_that_of_transformers_where_nothing_is_dropped(
    stock: Any, side: str, packing: str
) -> None:
    inputs = batch(ROWS, side, answers=True) | {"output_router_logits": True}
    model = compress(stock, NO_DROP)
    with torch.no_grad():
        expected, got = stock(**inputs), model(**inputs, packing=packing)
        without = model(**inputs | {"output_router_logits": False}, packing=packing)
    torch.testing.assert_close(got.aux_loss, expected.aux_loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-6, rtol=0)
    assert got.loss > without.loss and without.aux_loss is None and len(got.router_logits) == 6


def test_each_layer_counts_the_tokens_that_it_works_on(stock: Any) -> None:
    """The formula in plain loops, on what the routers of each row by itself say; the configuration asks for it."""
    model = compress(stock, BOTH)
    model.decoder.config.output_router_logits = True
    try:
        with torch.no_grad():
            together = [model(**batch(ROWS, answers=True), packing=packing) for packing in ("off", "on")]
            alone = [model(**batch([row], answers=True), output_layouts=True) for row in ROWS]
    finally:
        model.decoder.config.output_router_logits = False
    first, second, third = (layout.lengths[0] for layout in alone[0].layouts)
    assert [len(layer) for layer in alone[0].router_logits] == [first, second, second, third, third, third]
    assert first > second > third
    expected = balance([row for one in alone for layer in one.router_logits for row in layer])
    for one in together:
        torch.testing.assert_close(one.aux_loss.double(), expected, atol=1e-6, rtol=0)


def balance(rows: list[Tensor]) -> Tensor:
    chosen, shares = [0.0] * EXPERTS, [0.0] * EXPERTS
    for row in rows:
        probabilities = row.softmax(-1).tolist()
        for expert in sorted(range(EXPERTS), key=lambda number: -probabilities[number])[:CHOSEN]:
            chosen[expert] += 1 / len(rows)
        shares = [share + probability / len(rows) for share, probability in zip(shares, probabilities, strict=True)]
    return EXPERTS * torch.tensor([one * two for one, two in zip(chosen, shares, strict=True)]).double().sum()


def gradients(model: Any, inputs: dict[str, Any], **more: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(**inputs, output_router_logits=True, **more).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_micro_batches_add_up_to_one_loss_of_the_routers(stock: Any) -> None:
    """Twice the same rows with half of the step's targets each are the rows once, and so are rows computed again."""
    inputs = batch(ROWS, answers=True)
    model = compress(stock, BOTH).train()
    targets = int((inputs["labels"][:, 1:] != -100).sum())
    once = gradients(model, inputs)
    halves = [gradients(model, inputs, num_items_in_batch=many) for many in (2 * targets, torch.tensor(2 * targets))]
    model.activation_checkpointing_enable()
    again = gradients(model, inputs)
    name = "model.language_model.layers.5.mlp.gate.weight"
    model.decoder.config.router_aux_loss_coef, weight = 0.0, model.decoder.config.router_aux_loss_coef
    assert not torch.allclose(gradients(model, inputs)[name], once[name], atol=1e-7)
    model.decoder.config.router_aux_loss_coef = weight
    for key, grad in once.items():
        torch.testing.assert_close(halves[0][key] + halves[1][key], grad, atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(again[key], grad, atol=1e-9, rtol=1e-6)
    model.activation_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(ValueError, match="has no gradient where layers are computed again with use_reentrant; give"):
        gradients(model, inputs)


def test_the_loss_of_the_routers_is_refused_where_padding_cannot_be_told(stock: Any) -> None:
    model = compress(stock, NO_DROP)
    ids, positions = torch.tensor([[1, 5, 6, 1, 7, 0]]), torch.tensor([[0, 1, 2, 0, 1, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    packed = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    with torch.no_grad():
        with pytest.raises(ValueError, match="which tokens are padding cannot be told where a row packs several"):
            model(**packed, attention_mask=mask, output_router_logits=True)
        assert model(**packed, attention_mask=torch.ones_like(mask), output_router_logits=True).aux_loss > 0


@pytest.mark.parametrize("config", ["none", BOTH], ids=str)
def test_a_model_that_was_trained_with_the_loss_of_the_routers_answers_as_without(stock: Any, config: Any) -> None:
    """transformers' own `generate` fails on such a configuration."""
    model, inputs = compress(stock, config), batch(ROWS)
    expected = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    model.decoder.config.output_router_logits = model.config.text_config.output_router_logits = True
    try:
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), expected)
    finally:
        model.decoder.config.output_router_logits = model.config.text_config.output_router_logits = False


# === Weights ===


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3_moe(tmp_path_factory.mktemp("moe") / "model")


def opened(folder: Path) -> Any:
    return open_model(str(folder), device="cpu", dtype=torch.float32).model


def test_experts_are_read_as_published_and_as_transformers_holds_them_and_saved_as_published(
    published: Path, tmp_path: Path
) -> None:
    name = "model.language_model.layers.1.mlp.experts.gate_up_proj"
    model, stock = opened(published), AutoModelForImageTextToText.from_pretrained(published, dtype=torch.float32)
    assert load_file(published / "model.safetensors")[name].shape == (4, 32, 24)
    assert model.get_parameter(name).shape == (4, 24, 32)
    stock.save_pretrained(tmp_path / "stock")
    (tmp_path / "stock/tokenizer.json").write_text((published / "tokenizer.json").read_text())
    for path in published.glob("*config.json"):
        if path.name != "config.json":
            (tmp_path / "stock" / path.name).write_text(path.read_text())
    assert load_file(tmp_path / "stock/model.safetensors")[name].shape == (4, 24, 32)
    for folder in (published, tmp_path / "stock"):
        again = opened(folder)
        assert all(torch.equal(weight, stock.get_parameter(key)) for key, weight in again.named_parameters())
        again.save_pretrained(tmp_path / "saved")
        assert load_file(tmp_path / "saved/model.safetensors")[name].shape == (4, 32, 24)
        theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", dtype=torch.float32)
        assert torch.equal(theirs.get_parameter(name), stock.get_parameter(name))
        torch.nn.init.zeros_(again.get_parameter(name))
        read_weights(again, tmp_path / "saved")
        assert torch.equal(again.get_parameter(name), stock.get_parameter(name))


def test_under_zero_3_files_that_would_be_transposed_wrongly_are_refused(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outline = on_meta(*(lambda model: (model.stock, model.config))(opened(published)))
    (tmp_path / "model.safetensors").write_bytes((published / "model.safetensors").read_bytes())
    monkeypatch.setattr(deepspeed, "is_deepspeed_zero3_enabled", lambda: True)
    assert len(conversions_of(outline, [tmp_path / "model.safetensors"])) == 2
    transpose_experts(tmp_path)
    with pytest.raises(ValueError, match=r"holds '[\w.]+experts.\w+' as \[experts, outputs, inputs\].*save_pretrained"):
        conversions_of(outline, [tmp_path / "model.safetensors"])


def test_adapters_and_quantisation_say_that_they_leave_experts_alone(
    published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, lora_enable=True, lora_r=2)
    args.given = set()
    with caplog.at_level(logging.WARNING):
        model = add_lora(opened(published), args)
    assert "no linear maps gate_proj, up_proj, down_proj: all experts of a layer are one tensor" in caplog.text
    assert not any("lora" in name and "mlp" in name for name, _ in model.named_parameters())
    args.given, args.lora_target_modules = {"lora_target_modules"}, "q,v,up"
    with pytest.raises(ValueError, match=r"--lora_target_modules is 'q,v,up'. .* Give --lora_target_modules q,k,v,o."):
        add_lora(opened(published), args)


# === Costs ===


def test_costs_tell_active_experts_from_all(tmp_path: Path) -> None:
    """Of the published dimensions: 30.5 billion weights of the language model, of which a token meets 3.3."""
    text = {
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "vocab_size": 151936,
    }
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 2048}
    config = {"model_type": "qwen3_vl_moe", "text_config": text, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = ModelShape.of(str(tmp_path))
    decoder = shape.decoder
    assert shape.language == pytest.approx(30.5e9, rel=0.01)
    active = shape.embedding + shape.head + decoder.layers * decoder.passed_parameters
    assert active == pytest.approx(3.35e9, rel=0.02)
    expert = 3 * 2048 * 768
    attention = 2048 * 128 * (2 * 32 + 2 * 4)
    assert decoder.layer_parameters == attention + 128 * expert + 2048 * 128
    assert decoder.passed_parameters == attention + 8 * expert + 2048 * 128
    assert shape.layer_linears == 48 * attention and shape.family == "qwen3-vl"
    mixed = config | {"text_config": text | {"mlp_only_layers": [0]}}
    (tmp_path / "config.json").write_text(json.dumps(mixed))
    with pytest.raises(ValueError, match="Only some layers of this language model hold a mixture of experts"):
        ModelShape.of(str(tmp_path))
