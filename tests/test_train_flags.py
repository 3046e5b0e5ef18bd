"""No flag is taken and passed over: each is honoured, or refused in words when flags are read."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from distributed import losses, summary, weights
from safetensors.torch import load_file, save_file
from tiny_llava import flags, write_assets

from llava.model.builder import load_pretrained_model
from llava.train import supported
from llava.train.arguments import TrainingArguments, parse_arguments
from llava.train.building import load_model, load_tokenizer
from llava.train.foreign_flags import FOREIGN
from llava.train.train import train
from llava.train.trainer import LlavaTrainer
from llava.train.workers import fitting_workers

BASE = ["--data_path", "d.json", "--output_dir", "out", "--use_cpu", "True"]
LORA: dict[str, object] = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
LEFT_OUT = ("image_aspect_ratio", "mm_vision_select_layer")


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tower, language model and data, and under `lora` adapters of rank 4."""
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    train(flags(folder, folder / "lora", "finetune", max_steps=1, **LORA))
    return folder


def refusal(*words: str) -> str:
    with pytest.raises(ValueError) as caught:
        parse_arguments([*BASE, *words])
    return str(caught.value)


# === transformers' arguments ===


def test_every_argument_of_transformers_stands_in_exactly_one_table() -> None:
    """A new release with new arguments fails here: read what they do, and put them into a table."""
    fields = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    tables = (supported.HONOURED, supported.SOME_VALUES, supported.REFUSED, supported.WITHOUT_EFFECT_HERE)
    named = [name for table in tables for name in table]
    assert sorted(named) == sorted(set(named)), "no name stands in two tables"
    assert set(named) == fields


ASKED = {
    "label_smoothing_factor": "0.1",
    "optim_target_modules": "all-linear",
    "neftune_noise_alpha": "5",
    "eval_do_concat_batches": "False",
    "include_for_metrics": "inputs",
    "label_names": "labels",
    "hub_token": "secret",
    "hub_private_repo": "True",
    "hub_model_id": "me/model",
    "hub_strategy": "end",
    "hub_revision": "main",
    "accelerator_config": '{"split_batches": true}',
    "fsdp": "full_shard",
    "fsdp_config": '{"min_num_params": 1}',
    "dataloader_in_order": "False",
    "length_column_name": "size",
    "skip_memory_metrics": "False",
    "debug": "underflow_overflow",
}


OBJECTS = {"parallelism_config", "liger_kernel_config"}  # no command line can hold them


@pytest.mark.parametrize("name", sorted(set(supported.REFUSED) - OBJECTS))
def test_what_a_run_cannot_do_is_refused_before_anything_is_loaded(name: str) -> None:
    said = refusal(f"--{name}", ASKED.get(name, "True"))
    assert said.startswith(f"--{name} ") and supported.REFUSED[name] in said and "Leave it out." in said


@pytest.mark.parametrize(
    "words",
    [
        ["--label_smoothing_factor", "0"],
        ["--torch_compile", "False"],
        ["--use_liger_kernel", "False"],
        ["--torch_compile_backend", "None"],
        ["--torch_compile_mode", "none"],
        ["--fsdp", ""],
        ["--push_to_hub", "False"],
        ["--remove_unused_columns", "False"],
        ["--eval_do_concat_batches", "True"],
        ["--hub_strategy", "every_save"],
        ["--include_num_input_tokens_seen", "no"],
        ["--skip_memory_metrics", "True"],
        ["--do_train", "True"],
        ["--prediction_loss_only", "True"],
        ["--optim", "adamw_torch"],
        ["--debug", ""],
        ["--parallelism_config", "None"],
        ["--liger_kernel_config", "none"],
        ["--fsdp_config=None"],
        ["--accelerator_config", "None"],
        ["--label_names", "None"],
        ["--hub_token", "null"],
        ["--past_index", "-1"],
        ["--ray_scope", "last"],
        ["--fp16_opt_level", "O1"],
    ],
)
def test_a_flag_that_asks_for_what_happens_anyway_is_taken(words: list[str]) -> None:
    parse_arguments([*BASE, *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optim", "galore_adamw"], "--optim is 'galore_adamw'; accepted are adamw_torch"),
        (["--optim", "lomo"], "--optim is 'lomo'"),
        (["--train_sampling_strategy", "batch_rebalance"], "accepted are random, sequential, group_by_length"),
        (["--metric_for_best_model", "accuracy"], "accepted are loss, eval_loss"),
        (["--optim", "sgd", "--optim_args", "momentum=0.9,beta=1"], "'beta=1', which sgd does not have"),
        (["--optim_args", "momentum=0.9"], "adamw_torch_fused does not have; it has none"),
        (["--torch_compile_mode", "reduce-overhead"], "accepted are default, max-autotune-no-cudagraphs"),
        (["--torch_compile_backend", "cudagraphs"], "accepted are inductor, aot_eager, eager"),
        (["--torch_compile", "True", "--packing", "on"], "packed rows need one for each set of lengths"),
        (["--use_liger_kernel", "True"], "--use_liger_kernel needs an NVIDIA or AMD GPU"),
        (["--eval_on_start", "True"], "--eval_on_start asks for a measurement"),
        (["--do_eval", "True"], "--do_eval asks for a measurement"),
        (["--train_sampling_strategy", "sequential", "--group_by_modality_length", "True"], "choose one"),
    ],
)
def test_values_that_would_be_passed_over_are_refused(words: list[str], said: str) -> None:
    assert said in refusal(*words)


def test_checkpoints_of_weights_alone_are_written_aloud_and_never_gone_on_from(
    assets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"save_only_model": True, "save_strategy": "steps", "save_steps": 1}
    train(flags(assets, tmp_path / "out", "finetune", max_steps=2, **options))
    assert "--save_only_model: checkpoints hold weights alone" in caplog.text
    (tmp_path / "out/model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-2 cannot be resumed: it holds weights but no optimizer"):
        train(flags(assets, tmp_path / "out", "finetune", max_steps=3, **options))


HONOURED: list[dict[str, object]] = [
    *({"optim": name} for name in ("adamw_torch", "adafactor", "adagrad", "rmsprop", "adamw_8bit", "lion_32bit")),
    {"optim": "sgd", "optim_args": "momentum=0.9"},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr": 1e-5}', "warmup_steps": 1},
    {"train_sampling_strategy": "sequential"},
    {"train_sampling_strategy": "group_by_length", "data_seed": 3},
    {"average_tokens_across_devices": False, "gradient_accumulation_steps": 2},
    {"activation_checkpointing": True, "activation_checkpointing_kwargs": '{"use_reentrant": false}'},
    {"torch_empty_cache_steps": 1, "logging_first_step": True},
    {"max_grad_norm": 0.1, "adam_beta1": 0.5},
]


@pytest.mark.parametrize("options", HONOURED, ids=lambda options: "-".join(map(str, options.values()))[:40])
def test_what_is_called_honoured_runs(assets: Path, tmp_path: Path, options: dict[str, object]) -> None:
    """Two steps; the rate of the projector's own group is kept whatever the optimizer."""
    more = {"max_steps": 2, "mm_projector_lr": 1e-3}
    train(flags(assets, tmp_path / "out", "finetune", **more | options))
    found = losses(tmp_path / "out")
    assert len(found) == 2 and all(loss == loss for loss in found)


def test_the_best_model_is_kept_by_its_held_out_loss(assets: Path, tmp_path: Path) -> None:
    options = {
        "eval_data_path": assets / "chats.json",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_on_start": True,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "learning_rate": 3.0,
        "max_steps": 2,
    }
    train(flags(assets, tmp_path / "out", "finetune", **options))
    found = [entry["eval_loss"] for entry in summary(tmp_path / "out")["evaluations"]]
    assert len(found) == 4 and found[-1] == pytest.approx(min(found[1:3]), rel=1e-5)


def test_a_run_that_was_moved_ends_with_its_own_best_checkpoint_not_with_that_of_the_old_place(
    assets: Path, tmp_path: Path
) -> None:
    options: dict[str, object] = {
        "eval_data_path": assets / "chats.json",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "learning_rate": 3.0,
        "max_steps": 2,
    }
    before = train(flags(assets, tmp_path / "before", "finetune", **options))
    best = min(summary(before)["evaluations"][:2], key=lambda one: one["eval_loss"])["step"]
    assert best == 1, "the rate is far too large"
    shutil.copytree(before / "checkpoint-2", tmp_path / "after/checkpoint-2")
    (before / "checkpoint-1").rename(tmp_path / "aside")
    with pytest.raises(ValueError, match=r"before/checkpoint-1 has the lowest held-out loss so far.*Copy it there"):
        train(flags(assets, tmp_path / "after", "finetune", **options))
    (tmp_path / "aside").rename(tmp_path / "after/checkpoint-1")
    after = train(flags(assets, tmp_path / "after", "finetune", **options))
    first, found = weights(after / "checkpoint-1"), weights(after)
    assert all(torch.equal(found[name], first[name]) for name in found)


def test_held_out_images_that_cannot_be_read_do_not_make_a_loss_of_zero(assets: Path, tmp_path: Path) -> None:
    records = [record for record in json.loads((assets / "chats.json").read_text()) if "image" in record]
    lost = [record | {"image": "nowhere.png"} for record in records]
    held = {"eval_data_path": tmp_path / "held.json", "on_bad_sample": "skip", "max_bad_share": 1.0, "max_steps": 1}
    (tmp_path / "held.json").write_text(json.dumps(lost))
    with pytest.raises(ValueError, match=r"No sample of --eval_data_path has a label.*--image_folder"):
        train(flags(assets, tmp_path / "out", "finetune", **held))
    (tmp_path / "held.json").write_text(json.dumps([lost[0], *records[1:]]))
    train(flags(assets, tmp_path / "out", "finetune", **held))
    (measured,) = summary(tmp_path / "out")["evaluations"]
    assert measured["eval_skipped"] == 1 and measured["eval_loss"] > 1


def test_a_trainer_is_not_given_what_it_would_pass_over(assets: Path, tmp_path: Path) -> None:
    model_args, data_args, args = parse_arguments(flags(assets, tmp_path, "finetune"))
    model = load_model(model_args, data_args, args, load_tokenizer(model_args, args))
    for name in ("compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func"):
        options: dict[str, Any] = {name: lambda *_: 0}
        with pytest.raises(ValueError, match=f"{name} cannot be honoured"):
            LlavaTrainer(model=model, args=args, **options)
    args.label_smoothing_factor = 0.1
    with pytest.raises(ValueError, match=r"--label_smoothing_factor 0\.1 cannot be honoured"):
        LlavaTrainer(model=model, args=args)


# === Flags of other programs ===


@pytest.mark.parametrize("name", FOREIGN)
def test_a_flag_of_another_program_is_refused_with_a_reason_unless_it_is_off(name: str) -> None:
    for words in ([f"--{name}", "4"], [f"--{name}=some,thing"], [f"--{name}"]):
        assert refusal(*words) == f"--{' '.join(words)[2:].replace('=', ' ')} is not supported: {FOREIGN[name]}."
    for value in ("False", "None", "auto"):
        parse_arguments([*BASE, f"--{name}", value])


def test_no_flag_of_our_own_counts_as_foreign() -> None:
    _, _, args = parse_arguments(BASE)
    known = {field.name for kind in parse_arguments(BASE) for field in dataclasses.fields(kind)}
    assert not known & set(FOREIGN) and args.given == {"data_path", "output_dir", "use_cpu"}


def test_a_misspelled_flag_is_named_with_the_one_that_is_meant() -> None:
    said = refusal("--mm_projectortype", "mlp2x_gelu")
    assert "'--mm_projectortype mlp2x_gelu'" in said and "Perhaps --mm_projector_type is meant." in said


# === Parts that do not go together ===


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mm_patch_merge_type", "tiles"], "--mm_patch_merge_type is 'tiles'; it must be one of flat, spatial"),
        (["--image_aspect_ratio", "anyres_9"], "--image_aspect_ratio is 'anyres_9'; it must be one of square, pad"),
        (["--image_aspect_ratio", "highres"], "must be one of square, pad"),
        (["--mm_vision_select_feature", "cls"], "must be one of patch, cls_patch"),
        (["--mm_projector_type", "pooler"], "must be linear, identity or mlpNx_gelu"),
        (["--tune_mm_mlp_adapter", "True", "--unfreeze_mm_vision_tower", "True"], "--unfreeze_mm_vision_tower cannot"),
        (["--tune_mm_mlp_adapter", "True", "--mm_vision_tower_lr", "2e-6"], "--mm_vision_tower_lr cannot"),
        (["--unfreeze_mm_vision_tower", "False", "--mm_vision_tower_lr", "2e-6"], "forbids it"),
        (["--freeze_mm_mlp_adapter", "True", "--mm_projector_lr", "2e-6"], "does not train"),
    ],
)
def test_parts_that_cannot_be_had_are_refused_when_flags_are_read(words: list[str], said: str) -> None:
    assert said in refusal(*words)


def test_adapter_flags_without_adapters_are_said_to_do_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "llava")
    parse_arguments([*BASE, "--lora_r", "128", "--lora_alpha", "256"])
    assert "--lora_r, --lora_alpha does nothing without --lora_enable True." in caplog.text


@pytest.mark.parametrize("rates", [{"mm_projector_lr": 1e-4}, {"mm_vision_tower_lr": 1e-4}])
def test_an_optimizer_of_deepspeed_leaves_no_room_for_rates_of_parts(tmp_path: Path, rates: dict[str, float]) -> None:
    settings = {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}, "zero_optimization": {"stage": 2}}
    settings["train_micro_batch_size_per_gpu"] = "auto"
    (tmp_path / "zero.json").write_text(json.dumps(settings))
    words = [word for name, value in rates.items() for word in (f"--{name}", str(value))]
    said = refusal("--deepspeed", str(tmp_path / "zero.json"), *words)
    assert f"--{next(iter(rates))} would do nothing" in said


def test_quantised_weights_are_not_cut_by_zero3(tmp_path: Path) -> None:
    (tmp_path / "zero3.json").write_text(
        json.dumps({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": "auto"})
    )
    words = ["--deepspeed", str(tmp_path / "zero3.json"), "--bits", "4", "--lora_enable", "True"]
    assert "cannot be cut into ZeRO-3's pieces" in refusal(*words)


# === Going on with adapters ===


def opened(assets: Path, **changes: object) -> Any:
    model_args, data_args, args = parse_arguments(flags(assets, assets / "unused", "finetune", **changes))
    load_model(model_args, data_args, args, load_tokenizer(model_args, args))
    return args


def test_adapters_that_go_on_keep_their_rank_and_scale(assets: Path, tmp_path: Path) -> None:
    options = {"lora_enable": True, "lora_weight_path": assets / "lora", "max_steps": 1, "learning_rate": 0.0}
    train(flags(assets, tmp_path / "on", "finetune", mm_projector_type=None, **options))
    before, after = (
        json.loads((path / "adapter_config.json").read_text()) for path in (assets / "lora", tmp_path / "on")
    )
    assert (after["r"], after["lora_alpha"]) == (before["r"], before["lora_alpha"]) == (4, 8)
    kept, went_on = weights(assets / "lora"), weights(tmp_path / "on")
    assert kept.keys() == went_on.keys() and all(torch.equal(kept[name], went_on[name]) for name in kept)


@pytest.mark.parametrize(
    ("flag", "value"), [("lora_r", 8), ("lora_alpha", 16), ("lora_alpha", 4), ("lora_bias", "all")]
)
def test_adapters_with_another_rank_or_scale_are_refused(assets: Path, flag: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"--{flag} is {value!r}, but the adapters in .* have .*Leave --{flag} out"):
        opened(assets, lora_enable=True, lora_weight_path=assets / "lora", **{flag: value})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_modules": ["q_proj", "qkv"]}, "have target_modules"),
        ({"use_rslora": True}, "have use_rslora True"),
        ({"use_dora": True}, "have use_dora True"),
        ({"alpha_pattern": {"q_proj": 3}}, "have alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "have init_lora_weights 'pissa'"),  # the weights below were changed, too
        ({"alora_invocation_tokens": [5]}, r"have alora_invocation_tokens \[5\]"),
    ],
)
def test_adapters_of_another_kind_are_refused(
    assets: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    shutil.copytree(assets / "lora", tmp_path / "lora")
    path = tmp_path / "lora/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=said):
        opened(assets, lora_enable=True, lora_weight_path=tmp_path / "lora")


def test_adapters_that_are_none_or_of_another_base_are_said(
    assets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"holds no adapter_config\.json"):
        opened(assets, lora_enable=True, lora_weight_path=assets / "lm")
    shutil.copytree(assets / "lm", tmp_path / "other")
    opened(assets, lora_enable=True, lora_weight_path=assets / "lora", model_name_or_path=tmp_path / "other")
    assert "were trained on" in caplog.text and str(tmp_path / "other") in caplog.text
    said = {"lora_weight_path": assets / "lora", "mm_vision_select_layer": -1, "lora_enable": True}
    with pytest.raises(ValueError, match=r"mm_vision_select_layer is -1 on the command line, but -2 in"):
        opened(assets, **said)


@pytest.mark.parametrize("held", [{"image_aspect_ratio": None, "mm_vision_select_layer": None}, {}])
def test_what_a_llava_leaves_out_is_read_as_llava_reads_it(
    assets: Path, tmp_path: Path, held: dict[str, object]
) -> None:
    train(flags(assets, tmp_path / "llava", "finetune", max_steps=1, image_aspect_ratio=None))
    path = tmp_path / "llava/config.json"
    written = {name: value for name, value in json.loads(path.read_text()).items() if name not in LEFT_OUT}
    path.write_text(json.dumps(written | held))
    base = {"model_name_or_path": tmp_path / "llava", "image_aspect_ratio": None}
    opened(assets, **base)
    opened(assets, **base | {"mm_vision_select_layer": 2, "image_aspect_ratio": "square"})
    with pytest.raises(ValueError, match="image_aspect_ratio is 'pad' on the command line, but 'square' by default in"):
        opened(assets, **base | {"image_aspect_ratio": "pad"})
    with pytest.raises(ValueError, match="mm_vision_select_layer is -1 on the command line, but -2 by default in"):
        opened(assets, **base | {"mm_vision_select_layer": -1})


# === Bases that cannot be trained ===


def test_a_padding_token_without_an_embedding_is_named_before_the_model_is_made(assets: Path, tmp_path: Path) -> None:
    shutil.copytree(assets / "lm", tmp_path / "lm")
    path = tmp_path / "lm/config.json"
    held = json.loads(path.read_text())
    for beyond in (held["vocab_size"], 10**6):
        path.write_text(json.dumps(held | {"pad_token_id": beyond}))
        with pytest.raises(ValueError, match=f"config.json' has the pad_token_id {beyond}, but the embeddings have"):
            opened(assets, model_name_or_path=tmp_path / "lm")
        with pytest.raises(ValueError, match=f"has the pad_token_id {beyond}"):
            load_pretrained_model(str(tmp_path / "lm"), None, "llava", device_map="cpu")


@pytest.mark.parametrize(
    ("flag", "folder", "part"),
    [("model_name_or_path", "lm", "model.norm"), ("vision_tower", "tower", "post_layernorm")],
)
def test_a_start_with_a_weight_that_is_not_finite_is_refused(
    assets: Path, tmp_path: Path, flag: str, folder: str, part: str
) -> None:
    shutil.copytree(assets / folder, tmp_path / folder)
    held = load_file(tmp_path / folder / "model.safetensors")
    name = next(name for name in held if part in name)
    held[name][0] = float("nan")
    save_file(held, tmp_path / folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"cannot be trained: \S*{part}\S* is not finite"):
        opened(assets, **{flag: tmp_path / folder})


def test_as_many_processes_load_data_as_fit_the_machine() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert fitting_workers(cpu, 96, {}) == 0, "the model takes all cores"
    assert [fitting_workers(gpu, cores, {}) for cores in (1, 2, 4, 96)] == [1, 1, 3, 8]
    assert [fitting_workers(gpu, 32, {"LOCAL_WORLD_SIZE": text}) for text in ("8", "4", "1", "64", "")] == [
        3,
        7,
        8,
        1,
        8,
    ]
    assert TrainingArguments(use_cpu=True).dataloader_num_workers == 0
    assert TrainingArguments(use_cpu=True, dataloader_num_workers=3).dataloader_num_workers == 3
    assert TrainingArguments(use_cpu=True, dataloader_persistent_workers=True).dataloader_num_workers == 1
