"""Liger's kernels and compiled layers, in one model and in no other."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
import transformers.models.llama.modeling_llama as modeling_llama
from distributed import losses, weights
from liger_stand_in import (
    LigerFusedLinearCrossEntropyLoss,
    LigerRMSNorm,
    LigerSwiGLUMLP,
    installed,
    liger_rotary_pos_emb,
    rotated,
)
from tiny import DUET, chat, collate, pixels, tiny_llava
from tiny_llava import flags, write_assets
from tiny_vlms import FAMILIES, batch, prompt, vlm
from torch import Tensor, nn
from torch._dynamo.utils import counters

from llava import compress
from llava.model.compiled_layers import compile_layers
from llava.model.head_loss import summed_cross_entropy
from llava.model.liger import DECODERS, require_liger, use_liger
from llava.train.train import train

GPU = torch.device("cuda")
SHORT = {"v2v": {"dominant": 5, "contextual": 2}, "t2v": {"layers": [1, 2], "keep": [0.5, 0.2]}}
BUDGET = {"v2v": {"dominant": 5, "contextual": 2}, "t2v": {"layers": [2, 4], "keep": [0.5, 0.2]}}


def train_step(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients by name."""
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    weights = model.named_parameters()
    return loss.detach(), {name: weight.grad.clone() for name, weight in weights if weight.grad is not None}


def assert_alike(found: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    assert found[1].keys() == expected[1].keys() and expected[1]
    for name, grad in expected[1].items():
        torch.testing.assert_close(found[1][name], grad, rtol=tolerance, atol=tolerance, msg=name)


def inputs_of(family: str, seed: int = 0) -> dict[str, Any]:
    return batch(
        [prompt(family, seed, dtype=torch.float32), prompt(family, seed + 1, dtype=torch.float32)], answers=True
    )


# === Liger ===


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3_vl_moe"])
def test_liger_takes_the_decoder_of_one_model_and_leaves_every_other_as_it_was(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch)
    plain, model = (compress(vlm(family, torch.float32), BUDGET).train() for _ in range(2))
    expected, inputs = train_step(plain, inputs_of(family)), inputs_of(family)
    kinds = [type(module) for module in plain.modules()]
    towers = [type(module) for tower in model.vision_towers() for module in tower.modules()]
    names, pointers = list(model.state_dict()), [weight.data_ptr() for weight in model.parameters()]
    use_liger(model)
    assert list(model.state_dict()) == names
    assert sorted(pointers) == sorted(weight.data_ptr() for weight in model.parameters())
    assert_alike(train_step(model, inputs), expected, 1e-5)
    assert len(LigerFusedLinearCrossEntropyLoss.calls) == 1 and len(rotated) == len(model.decoder.layers)
    layers = model.decoder.layers
    found = [type(module) for module in model.decoder.modules()]
    heads = 2 * len(layers) * hasattr(layers[0].self_attn, "q_norm")
    assert found.count(LigerRMSNorm) == 2 * len(layers) + 1 + heads and found.count(LigerSwiGLUMLP) == len(layers)
    assert not set(DECODERS[type(model.decoder).__name__]) & {kind.__name__ for kind in found}
    assert [type(module) for tower in model.vision_towers() for module in tower.modules()] == towers
    assert [type(module) for module in plain.modules()] == kinds
    assert_alike(train_step(plain, inputs), expected, 1e-6)
    assert len(LigerFusedLinearCrossEntropyLoss.calls) == 1 and len(rotated) == len(layers)


def test_liger_changes_nothing_in_transformers_and_new_models_have_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    before = dict(vars(modeling_llama))
    of_class = dict(vars(modeling_llama.LlamaForCausalLM))
    model = tiny_llava(compression=DUET, dtype=torch.float32)
    use_liger(model)
    assert vars(modeling_llama) == before and dict(vars(modeling_llama.LlamaForCausalLM)) == of_class
    kinds = {type(module) for module in tiny_llava(compression=DUET).modules()}
    assert not kinds & {LigerRMSNorm, LigerSwiGLUMLP} and modeling_llama.LlamaRMSNorm in kinds
    assert tiny_llava().summed_loss is summed_cross_entropy is not model.summed_loss


def test_a_copy_of_a_model_with_liger_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    model = tiny_llava(compression=DUET, dtype=torch.float32).train()
    use_liger(model)
    copied = copy.deepcopy(model)
    rows = [chat(1), chat(2, (0,))]
    inputs = collate(rows, labels=True) | {"images": pixels(1, dtype=torch.float32)}
    assert_alike(train_step(copied, inputs), train_step(model, inputs), 0)
    assert copied.decoder.norm.weight.data_ptr() != model.decoder.norm.weight.data_ptr()
    copied.decoder.layers[0].self_attn.q_proj.weight.data.zero_()
    assert copied(**inputs).loss != model(**inputs).loss, "its attention is its own, too"


def test_where_liger_cannot_run_a_sentence_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"needs an NVIDIA or AMD GPU, and this run is on the device 'cpu'"):
        require_liger(torch.device("cpu"))
    if find_spec("liger_kernel") is None:
        with pytest.raises(ValueError, match=r"needs the package liger_kernel, .* pip install 'duet-llava\[cuda\]'"):
            require_liger(GPU)
    installed(monkeypatch)
    require_liger(GPU)


def test_decoders_that_liger_would_compute_otherwise_are_refused_and_stay_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch)
    model = tiny_llava(hidden_act="gelu", dtype=torch.float32)
    with pytest.raises(ValueError, match="hidden_act of the language model is 'gelu'"):
        use_liger(model)
    model = tiny_llava(dtype=torch.float32)
    model.decoder.layers[3].input_layernorm = nn.LayerNorm(32)
    with pytest.raises(ValueError, match="the LlavaLlamaModel holds LayerNorm instead of LlamaRMSNorm"):
        use_liger(model)
    assert not any(isinstance(module, LigerRMSNorm | LigerSwiGLUMLP) for module in model.modules())
    model = tiny_llava(dtype=torch.float32)
    model.decoder.layers[1].self_attn.forward = lambda *arguments, **options: None
    with pytest.raises(ValueError, match="holds LlamaAttention, which does not call apply_rotary_pos_emb"):
        use_liger(model)

    class OtherModel(nn.Module):
        decoder = nn.Module()

    for other, named in ((OtherModel(), "Module"), (compress(vlm("qwen3_vl_moe"), BUDGET), "Qwen3VLMoeTextModel")):
        with pytest.raises(ValueError, match=f"the language model is a {named}; Liger's kernels are applied to LlamaM"):
            use_liger(other)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_run_with_liger_has_the_losses_and_the_files_of_one_without(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    """transformers' own way, `_apply_liger_kernel_to_instance`, is not there, and would end the run."""
    options: dict[str, object] = {"max_steps": 2, "learning_rate": 1e-3, "lora_enable": lora}
    plain = train(flags(assets, tmp_path / "plain", "finetune", **options))
    installed(monkeypatch)
    monkeypatch.setattr("llava.train.together.require_liger", lambda device: None)
    found = train(flags(assets, tmp_path / "liger", "finetune", use_liger_kernel=True, **options))
    assert losses(found) == pytest.approx(losses(plain), rel=1e-5)
    assert len(LigerFusedLinearCrossEntropyLoss.calls) >= 2
    first, second = weights(plain), weights(found)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("liger_kernel") is None, reason="needs Liger on a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_of_liger_give_the_losses_and_gradients_of_torch(family: str) -> None:
    import liger_kernel.transformers as real

    for ours in (LigerRMSNorm, LigerSwiGLUMLP, LigerFusedLinearCrossEntropyLoss):
        for method in ("__init__", "forward"):
            theirs = inspect.signature(getattr(getattr(real, ours.__name__), method)).parameters
            assert list(inspect.signature(getattr(ours, method)).parameters) == list(theirs)
    theirs = inspect.signature(real.liger_rotary_pos_emb).parameters
    assert list(inspect.signature(liger_rotary_pos_emb).parameters) == list(theirs)
    plain, model = (compress(vlm(family, torch.float32), BUDGET).train().to(GPU) for _ in range(2))
    inputs = {name: value.to(GPU) if isinstance(value, Tensor) else value for name, value in inputs_of(family).items()}
    use_liger(model)
    assert_alike(train_step(model, inputs), train_step(plain, inputs), 1e-3)


# === torch.compile ===


def graphs() -> int:
    """How many graphs were compiled since `dynamo.reset`."""
    return counters["stats"]["unique_graphs"]


@pytest.fixture
def fresh() -> Iterator[None]:
    dynamo.reset()
    counters.clear()
    yield
    dynamo.reset()
    counters.clear()


@pytest.mark.parametrize(
    ("family", "checkpointing"),
    [("llava", True), ("qwen2_5_vl", False), ("qwen3_vl_moe", True), ("llava_onevision", False)],
)
def test_compiled_layers_learn_as_layers_do_and_lengths_compile_nothing_anew(
    family: str, checkpointing: bool, fresh: None
) -> None:
    """One family for each class of layers; graphs with and without a mask, far from the limit behind which torch gives
    up, and none for a length of its own."""
    plain, model = (compress(vlm(family, torch.float32, layers=4), SHORT).train() for _ in range(2))
    names = list(model.state_dict())
    for one in (plain, model):
        if checkpointing:
            one.activation_checkpointing_enable()
    compile_layers(model, backend="eager")
    for seed in (0, 2, 4):
        inputs = inputs_of(family, seed) | {"packing": "off"}
        assert_alike(train_step(model, inputs), train_step(plain, inputs), 1e-5)
    lengths = {int(layout.valid.shape[1]) for layout in model(**inputs, output_layouts=True).layouts}
    assert len(lengths) > 1 and 0 < graphs() <= 4 < dynamo.config.recompile_limit
    assert list(model.state_dict()) == names == list(plain.state_dict())


def test_layers_are_compiled_only_where_that_is_asked_for(assets: Path, tmp_path: Path, fresh: None) -> None:
    options: dict[str, object] = {"max_steps": 2, "learning_rate": 1e-3, "gradient_checkpointing": True}
    plain = train(flags(assets, tmp_path / "plain", "finetune", **options))
    assert graphs() == 0
    found = train(flags(assets, tmp_path / "compiled", "finetune", torch_compile_backend="eager", **options))
    assert 0 < graphs() <= 6 < dynamo.config.recompile_limit
    assert losses(found) == pytest.approx(losses(plain), rel=1e-5)
    assert weights(found).keys() == weights(plain).keys()


def test_backends_and_modes_that_need_one_length_are_refused() -> None:
    model = tiny_llava()
    with pytest.raises(ValueError, match="--torch_compile_backend is 'cudagraphs'; accepted are inductor"):
        compile_layers(model, backend="cudagraphs")
    with pytest.raises(ValueError, match="--torch_compile_mode is 'reduce-overhead'"):
        compile_layers(model, mode="reduce-overhead")
    assert all(layer._compiled_call_impl is None for layer in model.decoder.layers)
