"""Both phases, run for real on a tiny LLaVA: what they train, save, refuse, and how they resume."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from distributed import losses, run, summary
from safetensors.torch import load_file
from tiny_llava import flags, write_assets
from torch import Tensor

from llava.compression.config import CompressionConfig
from llava.data.sampler import EpochSampler
from llava.model import LlavaLlamaForCausalLM
from llava.model import weights as weight_files
from llava.train import building
from llava.train.arguments import parse_arguments
from llava.train.building import choose_trained, load_model, load_tokenizer, make_data
from llava.train.checkpoint import find_checkpoint
from llava.train.manifest import seal
from llava.train.train import train
from llava.train.trainer import LlavaTrainer


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def projector(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "mm_projector.bin", weights_only=True)


def build(assets: Path, output: Path, phase: str, **changes: object):
    model_args, data_args, args = parse_arguments(flags(assets, output, phase, **changes))
    tokenizer = load_tokenizer(model_args, args)
    model = load_model(model_args, data_args, args, tokenizer)
    choose_trained(model, model_args, args)
    return model, args, make_data(model, tokenizer, model_args, data_args)


# === What a phase leaves ===


def test_pretraining_saves_projector_and_config_alone(assets: Path, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "early_save_check": True}
    train(flags(assets, tmp_path / "pre", "pretrain", gradient_checkpointing=True, **saving))
    assert {"mm_projector.bin", "config.json", "train_summary.json", "trainer_state.json"} == {
        name for name in files(tmp_path / "pre") if not name.startswith("checkpoint-")
    }
    weights = projector(tmp_path / "pre")
    assert sorted(weights) == [f"model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("bias", "weight")]
    assert {"config.json", "mm_projector.bin", "optimizer.pt", "trainer_state.json"} <= files(
        tmp_path / "pre/checkpoint-2"
    )
    assert not any("safetensors" in name for name in files(tmp_path / "pre/checkpoint-2"))
    config = json.loads((tmp_path / "pre/config.json").read_text())
    assert CompressionConfig.from_dict(config["compression"]) == CompressionConfig.from_yaml(assets / "tiny.yaml")
    assert config["tune_mm_mlp_adapter"] is True
    early = projector(tmp_path / "pre/checkpoint-2")
    assert all(not torch.equal(weights[name], early[name]) for name in weights)


def test_finetuning_saves_a_whole_model_that_loads(assets: Path, tmp_path: Path) -> None:
    train(flags(assets, tmp_path / "pre", "pretrain"))
    adapter = tmp_path / "pre/mm_projector.bin"
    train(
        flags(
            assets,
            tmp_path / "llava-ft",
            "finetune",
            pretrain_mm_mlp_adapter=adapter,
            group_by_modality_length=True,
            early_save_check=True,
        )
    )
    assert {"config.json", "model.safetensors", "tokenizer.json", "train_summary.json"} <= files(tmp_path / "llava-ft")
    assert "mm_projector.bin" not in files(tmp_path / "llava-ft")
    model = LlavaLlamaForCausalLM.from_pretrained(tmp_path / "llava-ft")
    assert model.compression == CompressionConfig.from_yaml(assets / "tiny.yaml")
    saved = load_file(tmp_path / "llava-ft/model.safetensors")
    start = load_file(assets / "lm/model.safetensors")
    tower = load_file(assets / "tower/model.safetensors")
    assert not torch.equal(saved["model.layers.0.mlp.up_proj.weight"], start["model.layers.0.mlp.up_proj.weight"])
    assert not torch.equal(
        saved["model.mm_projector.0.weight"], projector(tmp_path / "pre")["model.mm_projector.0.weight"]
    )
    name = next(key for key in saved if key.endswith("pre_layrnorm.weight"))
    assert torch.equal(saved[name], next(value for key, value in tower.items() if key.endswith("pre_layrnorm.weight")))
    written = summary(tmp_path / "llava-ft")
    assert written["phase"] == "finetune" and written["average_visual_tokens"] == (9 + 9 + 4 + 0) / 4
    assert written["counts"]["samples"] == 16 and len(written["curve"]) == 4


def test_training_learns(assets: Path, tmp_path: Path) -> None:
    train(flags(assets, tmp_path / "out", "finetune", max_steps=30))
    curve = losses(tmp_path / "out")
    assert curve[-1] < 0.5 * curve[0]


def test_final_folder_named_checkpoint_puts_the_projector_beside_it(assets: Path, tmp_path: Path) -> None:
    train(flags(assets, tmp_path / "run/checkpoint-9", "pretrain", max_steps=1))
    assert (tmp_path / "run/mm_projector/checkpoint-9.bin").is_file()
    assert "config.json" in files(tmp_path / "run/checkpoint-9")


def test_start_is_logged_once(assets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llava")
    train(flags(assets, tmp_path / "out", "pretrain", max_steps=1))
    text = caplog.text
    assert text.count("mm_projector            1,600 weights, trained") == 1
    assert text.count("7,792 weights, frozen") == 1
    assert text.count("Visual tokens by layer: 0-1: 9, 2-2: 4, 3-3: 0; average 5.50.") == 1
    assert text.count("mean text") == text.count("% padding") == 1


# === Freezing and learning rates ===


def test_flags_choose_what_is_trained(assets: Path, tmp_path: Path) -> None:
    def trained(phase: str, **changes: object) -> set[str]:
        model, *_ = build(assets, tmp_path, phase, **changes)
        return {name.split(".")[1] for name, weight in model.named_parameters() if weight.requires_grad}

    assert trained("pretrain") == {"mm_projector"}
    assert trained("finetune") == {"mm_projector", "embed_tokens", "layers", "norm", "weight"}
    assert trained("finetune", freeze_mm_mlp_adapter=True) == {"embed_tokens", "layers", "norm", "weight"}
    with pytest.raises(ValueError, match="Everything is frozen"):
        trained("finetune", freeze_backbone=True, freeze_mm_mlp_adapter=True)


def test_a_trained_tower_trains_only_the_layers_it_uses(assets: Path, tmp_path: Path) -> None:
    model, *_ = build(assets, tmp_path, "finetune", unfreeze_mm_vision_tower=True)
    tower = model.get_vision_tower()
    layers = [all(weight.requires_grad for weight in layer.parameters()) for layer in tower.model.encoder.layers]
    assert layers == [True, True, False]


def test_frozen_weights_are_stored_in_bfloat16_and_trained_ones_in_float32(assets: Path, tmp_path: Path) -> None:
    model, *_ = build(assets, tmp_path, "pretrain", bf16=True)
    kinds = {(weight.requires_grad, weight.dtype) for weight in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


def test_projector_has_its_own_learning_rate(assets: Path, tmp_path: Path) -> None:
    model, args, (dataset, collator) = build(
        assets, tmp_path, "finetune", mm_projector_lr=0.5, weight_decay=0.1, optim="adamw_torch"
    )
    optimizer = LlavaTrainer(model=model, args=args, train_dataset=dataset, data_collator=collator).create_optimizer()
    names = {id(weight): name for name, weight in model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for weight in group["params"]:
            name = names[id(weight)]
            seen.append(name)
            assert group["lr"] == (0.5 if "mm_projector" in name else args.learning_rate)
            assert group["weight_decay"] == (0.0 if "norm" in name or "bias" in name else 0.1)
    assert sorted(seen) == sorted(name for name, weight in model.named_parameters() if weight.requires_grad)


# === Faults ===


def test_fault_1_data_without_labels_stops_before_training(assets: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"16 of the first 16 samples have no label at all.*--model_max_length"):
        train(flags(assets, tmp_path / "out", "finetune", model_max_length=20))


def test_fault_3_a_loss_that_is_not_finite_stops_the_run_before_the_step(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The projector is refused when it is read; of weights that nobody looks at, the first loss tells."""
    train(flags(assets, tmp_path / "pre", "pretrain", max_steps=1))
    weights = projector(tmp_path / "pre")
    weights["model.mm_projector.2.bias"][0] = float("nan")
    torch.save(weights, tmp_path / "nan.bin")
    options: dict[str, object] = {"compression": "none", "pretrain_mm_mlp_adapter": tmp_path / "nan.bin"}
    with pytest.raises(ValueError, match=r"mm_projector\.2\.bias' in '.*nan\.bin' holds NaN"):
        train(flags(assets, tmp_path / "out", "finetune", **options))
    for module, check in ((weight_files, "_require_trained"), (building, "require_finite_start")):
        monkeypatch.setattr(module, check, lambda *arguments: None)
    with pytest.raises(FloatingPointError, match=r"The loss is nan in step 1.*'chat-\d'.*--learning_rate"):
        train(flags(assets, tmp_path / "out", "finetune", **options))
    assert not (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
def test_fault_4_a_resumed_run_equals_the_uninterrupted_one(assets: Path, tmp_path: Path, phase: str) -> None:
    """Interrupted in the middle of the second epoch, so that order, optimizer and random state all matter."""
    changes: dict[str, object] = {"max_steps": 9, "save_strategy": "steps", "save_steps": 6, "weight_decay": 0.1}
    changes["group_by_modality_length"] = phase == "finetune"
    train(flags(assets, tmp_path / "whole", phase, **changes))
    shutil.copytree(tmp_path / "whole/checkpoint-6", tmp_path / "again/checkpoint-6")
    train(flags(assets, tmp_path / "again", phase, **changes))
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")
    load = projector if phase == "pretrain" else lambda folder: load_file(folder / "model.safetensors")
    whole, again = load(tmp_path / "whole"), load(tmp_path / "again")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_fault_4_an_interrupted_save_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find_checkpoint(tmp_path / "nowhere") is None
    for step, complete in ((9, True), (10, True), (200, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if complete:
            (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text("{}")
            seal(tmp_path / f"checkpoint-{step}")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert "checkpoint-200 is not whole (no manifest.json)" in caplog.text
    (tmp_path / "checkpoint-10/trainer_state.json").write_text("")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert "trainer_state.json has 0 bytes instead of 2" in caplog.text


def test_fault_5_the_trainer_draws_the_seeded_order(assets: Path, tmp_path: Path) -> None:
    model, args, (dataset, collator) = build(assets, tmp_path, "finetune", group_by_modality_length=True)
    trainer = LlavaTrainer(model=model, args=args, train_dataset=dataset, data_collator=collator)
    drawn = [name for batch in trainer.get_train_dataloader() for name in batch["sample_ids"]]
    sampler = EpochSampler(len(dataset), 7, 4, lengths=dataset.lengths, kinds=dataset.has_image)
    assert drawn == [dataset.records[index].id for index in sampler]
    assert len({name.startswith("text") for name in drawn[:4]}) == 1


def test_fault_8_sampling_options_without_sampling_do_not_break_the_save(assets: Path, tmp_path: Path) -> None:
    broken = tmp_path / "lm"
    shutil.copytree(assets / "lm", broken)
    options = {"_from_model_config": False, "do_sample": False, "temperature": 0.9, "top_p": 0.6}
    (broken / "generation_config.json").write_text(json.dumps(options))
    train(flags(assets, tmp_path / "out", "finetune", model_name_or_path=broken, max_steps=1))
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["do_sample"] is True


def test_fault_15_a_finished_run_with_checkpoints_is_neither_resumed_nor_relabelled(
    assets: Path, tmp_path: Path
) -> None:
    """Shaped as the recipes run, with a checkpoint at the last step beside the final weights."""
    recipe: dict[str, object] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 50000}
    train(flags(assets, tmp_path / "out", "pretrain", **recipe))
    assert (tmp_path / "out/checkpoint-2").is_dir()
    other = {**recipe, "compression": "none"}
    with pytest.raises(ValueError, match="already holds a trained model"):
        train(flags(assets, tmp_path / "out", "pretrain", **other))
    broken = {**other, "overwrite_output_dir": True, "data_path": tmp_path / "nowhere.json"}
    with pytest.raises((ValueError, OSError)):
        train(flags(assets, tmp_path / "out", "pretrain", **broken))
    assert (tmp_path / "out/checkpoint-2").is_dir(), "a mistake in the flags must not cost work that was done"
    train(flags(assets, tmp_path / "out", "pretrain", **other, overwrite_output_dir=True))
    assert summary(tmp_path / "out")["counts"]["samples"] == 8
    assert json.loads((tmp_path / "out/config.json").read_text())["compression"] == {"v2v": None, "t2v": None}


def test_fault_4_a_run_is_not_resumed_under_another_budget(assets: Path, tmp_path: Path) -> None:
    train(flags(assets, tmp_path / "out", "pretrain", max_steps=2, save_strategy="steps", save_steps=1))
    (tmp_path / "out/mm_projector.bin").unlink()
    with pytest.raises(ValueError, match=r"was trained with compression .* but this run asks for"):
        train(flags(assets, tmp_path / "out", "pretrain", max_steps=3, compression="none"))
    with pytest.raises(ValueError, match="give a checkpoint"):
        train(flags(assets, tmp_path / "new", "pretrain", max_steps=3, resume_from_checkpoint=tmp_path / "nowhere"))


def test_fault_15_a_finished_run_is_not_overwritten_unasked(assets: Path, tmp_path: Path) -> None:
    train(flags(assets, tmp_path / "out", "pretrain", max_steps=1))
    for other in ({"max_steps": 2}, {"max_steps": 1, "learning_rate": 2e-2}, {"max_steps": 1, "compression": "none"}):
        with pytest.raises(ValueError, match=r"already holds a trained model .*--overwrite_output_dir"):
            train(flags(assets, tmp_path / "out", "pretrain", **other))
    train(flags(assets, tmp_path / "out", "pretrain", max_steps=1, overwrite_output_dir=True))


# === Launching ===


@pytest.mark.slow
def test_two_processes_train_like_one_and_end_cleanly(assets: Path, tmp_path: Path) -> None:
    options = {"group_by_modality_length": True, "max_steps": 8}
    train(flags(assets, tmp_path / "one", "finetune", **options))
    two = flags(assets, tmp_path / "two", "finetune", per_device_train_batch_size=2, **options)
    run("forked", two, tmp_path / "log")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert summary(tmp_path / "two")["counts"]["samples"] == 32
    assert (tmp_path / "log").read_text(encoding="utf-8").count("Visual tokens by layer") == 1
