"""LoRA and QLoRA: what is trained, what is left alone, what is written, and that merging changes nothing."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from distributed import weights
from safetensors.torch import load_file
from tiny_llava import flags, write_assets
from torch import Tensor

from llava.checkpoints.lora import load_adapters
from llava.model import LlavaLlamaForCausalLM
from llava.model.builder import load_pretrained_model
from llava.train.adapters import add_lora
from llava.train.arguments import parse_arguments
from llava.train.building import choose_trained, load_model, load_tokenizer
from llava.train.train import train

ROOT = Path(__file__).resolve().parents[1]
LORA: dict[str, object] = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
LINEAR_MAPS = 7  # of one decoder layer: four of the attention, three of the MLP
FILES = {"adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin", "config.json"}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tower, language model and data, and under `llava` a model fine-tuned from them."""
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    train(flags(folder, folder / "llava", "finetune", max_steps=2))
    return folder


@pytest.fixture(scope="module")
def trained(assets: Path) -> Path:
    """A LoRA run of a few steps over a LLaVA, with a checkpoint in the middle."""
    options = LORA | {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "early_save_check": True,
        "model_name_or_path": assets / "llava",
    }
    return train(flags(assets, assets / "lora", "finetune", **options))


def build(assets: Path, **changes: object):
    """Peft's model, ready to train, and its arguments."""
    model_args, data_args, args = parse_arguments(flags(assets, assets / "unused", "finetune", **LORA | changes))
    model = load_model(model_args, data_args, args, load_tokenizer(model_args, args))
    choose_trained(model, model_args, args)
    return add_lora(model, args), args


def prompt() -> dict[str, Tensor]:
    """A question about an image, as ids of the tiny tokenizer."""
    ids = torch.tensor([[1, 40, 41, -200, 50, 51, 52, 53]])
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "images": images}


# === What is trained ===


def test_adapters_and_projector_are_trained_and_nothing_else(assets: Path) -> None:
    model, _ = build(assets)
    on = [name for name, weight in model.named_parameters() if weight.requires_grad]
    lora = [name for name in on if "lora_" in name]
    assert len(lora) == 2 * LINEAR_MAPS * model.config.num_hidden_layers
    assert all("vision_tower" not in name for name in on)
    assert sorted(name.split("mm_projector.")[1] for name in set(on) - set(lora)) == [
        "0.bias",
        "0.weight",
        "2.bias",
        "2.weight",
    ]


@pytest.mark.parametrize("bits", [4, 8])
def test_fault_11_tower_and_projector_are_never_quantised(assets: Path, bits: int) -> None:
    """Also where the base model is a LLaVA whose checkpoint holds tower and projector."""
    for base in (assets / "lm", assets / "llava"):
        model, _ = build(assets, bits=bits, model_name_or_path=base)
        kinds = {name: type(weight).__name__ for name, weight in model.named_parameters()}
        quantised = [name for name, kind in kinds.items() if kind in ("Params4bit", "Int8Params")]
        assert len(quantised) == LINEAR_MAPS * model.config.num_hidden_layers
        assert not [name for name in quantised if "vision_tower" in name or "mm_projector" in name or "lm_head" in name]
        tower = model.get_vision_tower().state_dict()
        stored = load_file(assets / "tower/model.safetensors")
        name = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
        expected = next(value for key, value in stored.items() if key.endswith("layers.0.self_attn.q_proj.weight"))
        assert torch.equal(tower[name], expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_qlora_learns_on_a_cpu(assets: Path, tmp_path: Path, bits: int) -> None:
    options = LORA | {"bits": bits, "max_steps": 8, "gradient_checkpointing": True, "learning_rate": 2e-2}
    train(flags(assets, tmp_path / "out", "finetune", **options))
    curve = [point["loss"] for point in json.loads((tmp_path / "out/train_summary.json").read_text())["curve"]]
    assert curve[-1] < 0.95 * curve[0]
    assert files(tmp_path / "out") >= FILES
    written = weights(tmp_path / "out")
    b_matrices = [weight for name, weight in written.items() if "lora_B" in name]
    assert all(weight.abs().sum() > 0 for weight in b_matrices), "every adapter received gradients"
    _, merged, _, _ = load_pretrained_model(str(tmp_path / "out"), str(assets / "lm"), device="cpu")
    assert {weight.dtype for weight in merged.parameters()} == {torch.float32}, "opens unquantised, and merges"


def test_small_steps_of_the_projector_beside_4_bits_are_not_lost_in_bfloat16(assets: Path, tmp_path: Path) -> None:
    """A step of 2e-5 is less than half of the distance between bfloat16 numbers beyond 0.01."""
    options = LORA | {"bits": 4, "bf16": True, "learning_rate": 2e-5, "max_steps": 1, "warmup_steps": 0}
    train(flags(assets, tmp_path / "out", "finetune", model_name_or_path=assets / "llava", **options))
    name = "model.mm_projector.0.weight"
    before = weights(assets / "llava")[name].bfloat16().float()  # as it is read beside 4 bits
    steps = (weights(tmp_path / "out")[f"base_model.model.{name}"].float() - before).abs()
    large = before.abs() > 0.01
    assert steps[large].mean() == pytest.approx(2e-5, rel=0.3)


@pytest.mark.parametrize("bits", [16, 4])
def test_biases_are_trained_in_float32(assets: Path, bits: int) -> None:
    model, _ = build(assets, lora_bias="all", bf16=True, bits=bits, model_name_or_path=assets / "llava")
    trained = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad}
    assert sum(name.endswith("bias") for name in trained) > 20 and set(trained.values()) == {torch.float32}


def test_what_does_not_go_together_is_said(assets: Path, tmp_path: Path) -> None:
    def refuse(**changes: object) -> str:
        with pytest.raises(ValueError) as caught:
            parse_arguments(flags(assets, tmp_path, "finetune", **changes))
        return str(caught.value)

    assert refuse(bits=4) == "--bits 4 stores weights that cannot be trained; add --lora_enable True."
    assert "--bits is 3; it must be 16, or 8 (" in refuse(bits=3, lora_enable=True)
    assert "choose one" in refuse(lora_enable=True, tune_mm_mlp_adapter=True)
    assert "add --lora_enable True" in refuse(lora_weight_path="somewhere")


# === What is written ===


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_fault_4_intermediate_lora_checkpoints_are_complete(trained: Path) -> None:
    for folder in (trained, trained / "checkpoint-2"):
        assert files(folder) >= FILES
        assert not any(name.startswith("model") for name in files(folder)), "the base model is not written again"
        held = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
        assert sorted(held) == [
            f"base_model.model.model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("bias", "weight")
        ]
        assert json.loads((folder / "config.json").read_text())["compression"]["v2v"]["dominant"] == 7
        assert len(load_file(folder / "adapter_model.safetensors")) == 2 * LINEAR_MAPS * 4
    early, late = weights(trained / "checkpoint-2"), weights(trained)
    assert all(not torch.equal(early[name], late[name]) for name in late)


def test_fault_4_a_resumed_lora_run_equals_the_uninterrupted_one(assets: Path, trained: Path) -> None:
    again = assets / "again"
    shutil.copytree(trained / "checkpoint-2", again / "checkpoint-2")
    options = LORA | {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "model_name_or_path": assets / "llava"}
    train(flags(assets, again, "finetune", **options))
    whole, resumed = weights(trained), weights(again)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_can_go_on_from_the_adapters_of_another(assets: Path, trained: Path) -> None:
    model, _ = build(assets, model_name_or_path=assets / "llava", lora_weight_path=trained)
    own = {name.replace(".default.", "."): weight for name, weight in model.named_parameters()}
    for name, weight in weights(trained).items():
        assert torch.equal(own[name], weight), name


def test_a_whole_model_in_place_of_adapters_opens_and_sees_as_it_was_trained(
    assets: Path, trained: Path, tmp_path: Path
) -> None:
    """Also where a model of another family lay there, whose processor its own folder would name."""
    shutil.copytree(trained, tmp_path / "out")
    (tmp_path / "out/preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3}))
    whole = train(flags(assets, tmp_path / "out", "finetune", max_steps=1, overwrite_output_dir=True))
    _, model, processor, _ = load_pretrained_model(str(whole), device="cpu")
    assert tuple(processor.image_mean) == tuple(model.get_vision_tower().image_processor.image_mean) != (0.5,) * 3
    assert "adapter_config.json" not in files(whole)


# === Merging ===


@torch.no_grad()
def test_fault_11_merged_equals_unmerged(assets: Path, trained: Path) -> None:
    """Logits in float64: peft's own unmerged forward, the merged model, and W + BA worked out here."""
    unmerged, _ = build(assets, model_name_or_path=assets / "llava")
    load_adapters(unmerged, trained)
    before = unmerged.double().eval()(**prompt()).logits
    _, merged, _, _ = load_pretrained_model(str(trained), device="cpu", dtype=torch.float64)
    torch.testing.assert_close(merged(**prompt()).logits, before, atol=1e-6, rtol=1e-6)
    plain = LlavaLlamaForCausalLM.from_pretrained(assets / "llava", dtype=torch.float64).eval()
    assert (plain(**prompt()).logits - before).abs().max() > 1e-3, "the adapters do something"
    adapters = load_file(trained / "adapter_model.safetensors")
    weight = "model.layers.1.mlp.down_proj.weight"
    a, b = (adapters[f"base_model.model.{weight.removesuffix('weight')}lora_{part}.weight"].double() for part in "AB")
    expected = dict(plain.named_parameters())[weight] + 8 / 4 * b @ a
    torch.testing.assert_close(dict(merged.named_parameters())[weight].data, expected, atol=1e-7, rtol=1e-7)


def test_merge_script_writes_a_model_that_stands_alone(
    assets: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--model-path", trained, "--save-model-path", tmp_path / "merged", "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", ["merge_lora_weights.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "scripts/merge_lora_weights.py"), run_name="__main__")
    _, alone, _, _ = load_pretrained_model(str(tmp_path / "merged"), device="cpu")
    _, merged, _, _ = load_pretrained_model(str(trained), str(assets / "llava"), device="cpu")
    with torch.no_grad():
        assert torch.equal(alone(**prompt()).logits, merged(**prompt()).logits)
    assert alone.compression == merged.compression
    with pytest.raises(SystemExit, match="is not empty"):
        runpy.run_path(str(ROOT / "scripts/merge_lora_weights.py"), run_name="__main__")


def test_extracted_projector_starts_another_run(
    assets: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (trained, assets / "llava"):
        target = tmp_path / f"{folder.name}.bin"
        monkeypatch.setattr(sys, "argv", ["x", "--model-path", str(folder), "--output", str(target)])
        runpy.run_path(str(ROOT / "scripts/extract_mm_projector.py"), run_name="__main__")
        held = torch.load(target, weights_only=True)
        expected = {name: weight for name, weight in weights(folder).items() if "mm_projector" in name}
        assert {
            name.removeprefix("base_model.model."): weight for name, weight in expected.items()
        }.keys() == held.keys()
        train(flags(assets, tmp_path / f"run-{folder.name}", "finetune", max_steps=1, pretrain_mm_mlp_adapter=target))


def test_fault_11_adapters_of_another_model_are_refused(assets: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "other")
    state = torch.load(tmp_path / "other/non_lora_trainables.bin", weights_only=True)
    name = "base_model.model.model.mm_projector.0.weight"
    torch.save(state | {name: torch.zeros(3, 5)}, tmp_path / "other/non_lora_trainables.bin")
    with pytest.raises(ValueError, match=r"mm_projector.0.weight.* has shape \(3, 5\), but the base model needs"):
        load_pretrained_model(str(tmp_path / "other"), str(assets / "llava"), device="cpu")
