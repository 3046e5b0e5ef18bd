"""A run goes on only as itself: whatever changed between two starts is refused, applied aloud, or warned about."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import losses, summary, weights
from safetensors.torch import load_file, save_file
from tiny_llava import flags, write_assets
from transformers import LlamaForCausalLM

from llava.doctor.document import ROOT, resuming
from llava.model import LlavaLlamaForCausalLM
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, modern_spelling, parse_arguments
from llava.train.checkpoint import starting_point
from llava.train.digests import READ_WHOLE, digest_model, digest_weights
from llava.train.facts import FACTS_FILE, RunFacts
from llava.train.manifest import seal
from llava.train.resuming import GROUPS, Change, change_of, differences, plain
from llava.train.run_summary import count_parameters
from llava.train.train import train

RUN: dict[str, object] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "weight_decay": 0.1}
LORA: dict[str, object] = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def whole(assets: Path) -> Path:
    """A fine-tuning that nobody interrupted."""
    return train(flags(assets, assets / "whole", "finetune", **RUN))


@pytest.fixture
def half(whole: Path, tmp_path: Path) -> Path:
    """The same, interrupted after two steps."""
    shutil.copytree(whole / "checkpoint-2", tmp_path / "out/checkpoint-2")
    return tmp_path / "out"


def changed_facts(checkpoint: Path, **changes: Any) -> None:
    """Write other facts into a checkpoint, as an earlier version would; None takes an entry out."""
    held = json.loads((checkpoint / FACTS_FILE).read_text()) | changes
    (checkpoint / FACTS_FILE).write_text(json.dumps({key: value for key, value in held.items() if value is not None}))
    seal(checkpoint)


# === Refused ===


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optim": "sgd"}, "--optim was adamw_torch_fused and is sgd"),
        ({"adam_beta2": 0.99}, "--adam_beta2 was 0.999 and is 0.99"),
        ({"lr_scheduler_type": "constant"}, "--lr_scheduler_type was linear and is constant"),
        ({"warmup_steps": 0.25}, r"--warmup_steps was 0(\.0)? and is 0.25"),
        ({"warmup_ratio": 0.25}, r"--warmup_steps was 0(\.0)? and is 0.25"),
        ({"version": "llava_llama_2"}, "--version was v1 and is llava_llama_2"),
        ({"mm_vision_select_layer": -1}, "--mm_vision_select_layer was -2 and is -1"),
        ({"image_aspect_ratio": "square"}, "--image_aspect_ratio was pad and is square"),
        ({"model_max_length": 128}, "--model_max_length was 256 and is 128"),
        ({"freeze_backbone": True}, "--freeze_backbone was False and is True"),
        ({"unfreeze_mm_vision_tower": True}, "--unfreeze_mm_vision_tower was False and is True"),
        ({"mm_projector_lr": 1e-3}, "--mm_projector_lr was not given and is 0.001"),
        ({"group_by_modality_length": True}, "--group_by_modality_length was False and is True"),
        ({"tune_mm_mlp_adapter": True}, "it trained model, this run adapter_only"),
        ({"freeze_mm_mlp_adapter": True, "bf16": True}, "--bf16 was False and is True; --freeze_mm_mlp_adapter was"),
    ],
)
def test_another_run_is_refused_in_words(assets: Path, half: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"checkpoint-2 cannot be resumed: .*{sentence}"):
        train(flags(assets, half, "finetune", **RUN | changes))
    assert (half / "checkpoint-2").is_dir()


def test_the_scale_of_adapters_is_part_of_the_run(assets: Path, tmp_path: Path) -> None:
    train(flags(assets, tmp_path / "out", "finetune", **RUN | LORA | {"max_steps": 2}))
    for path in [*(tmp_path / "out").glob("adapter*"), tmp_path / "out/non_lora_trainables.bin"]:
        path.unlink()
    for changes, sentence in (({"lora_alpha": 16}, "--lora_alpha was 8 and is 16"), ({"lora_r": 8}, "lora of rank 4")):
        with pytest.raises(ValueError, match=sentence):
            train(flags(assets, tmp_path / "out", "finetune", **RUN | LORA | changes))


@pytest.mark.parametrize("what", ["base model", "vision tower"])
def test_another_start_is_refused_and_the_same_elsewhere_is_not(
    assets: Path, half: Path, whole: Path, tmp_path: Path, what: str
) -> None:
    flag, folder = ("model_name_or_path", "lm") if what == "base model" else ("vision_tower", "tower")
    shutil.copytree(assets / folder, tmp_path / "copy")
    train(flags(assets, half, "finetune", **RUN | {flag: tmp_path / "copy"}))
    assert losses(half) == losses(whole)
    (half / "model.safetensors").unlink()
    shutil.rmtree(half / "checkpoint-4")
    held = load_file(tmp_path / "copy/model.safetensors")
    next(iter(held.values())).view(-1)[0] += 1
    save_file(held, tmp_path / "copy/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"the {what} is another than at its beginning .--{flag}"):
        train(flags(assets, half, "finetune", **RUN | {flag: tmp_path / "copy"}))


def test_weights_without_an_optimizer_are_not_a_run(assets: Path, half: Path) -> None:
    (half / "checkpoint-2/optimizer.pt").unlink()
    seal(half / "checkpoint-2")
    with pytest.raises(ValueError, match=r"no optimizer and no schedule .--save_only_model.*--model_name_or_path"):
        train(flags(assets, half, "finetune", **RUN))


# === Applied and warned about ===


def rates(folder: Path) -> list[float]:
    return [point["learning_rate"] for point in summary(folder)["curve"]]


def test_another_rate_and_length_hold_from_the_next_step_on(
    assets: Path, half: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Linear decay: 1e-2 over 4 steps at first, 1e-3 over 5 steps then."""
    changes = {"learning_rate": 1e-3, "weight_decay": 0.2, "max_steps": 5, "max_grad_norm": 0.5}
    train(flags(assets, half, "finetune", **RUN | changes | {"save_strategy": "steps", "save_steps": 5}))
    assert rates(half) == pytest.approx([1e-2, 7.5e-3, 6e-4, 4e-4, 2e-4])
    held = torch.load(half / "checkpoint-5/optimizer.pt", weights_only=True)["param_groups"]
    assert [group["weight_decay"] for group in held] == [0.2, 0.0]
    for said in ("--learning_rate was 0.01 and is 0.001", "--weight_decay was", "--max_steps was 4", "--max_grad_norm"):
        assert said in caplog.text


def test_a_run_killed_after_its_last_checkpoint_takes_no_further_step(
    assets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of an epoch, at a rate that is not 0 at the end."""
    options = RUN | {"max_steps": 6, "lr_scheduler_type": "constant"}
    out = train(flags(assets, tmp_path / "out", "finetune", **options))
    before = weights(out)
    (out / "model.safetensors").unlink()
    train(flags(assets, out, "finetune", **options))
    after = weights(out)
    assert all(torch.equal(before[name], after[name]) for name in before) and len(losses(out)) == 6
    (out / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"checkpoint-6 cannot be resumed: it took 6 steps, but this run is to have 3 .--max"
    ):
        train(flags(assets, out, "finetune", **options | {"max_steps": 3}))
    assert "from here on" not in caplog.text, "what is refused is not said to hold"


def test_a_rate_of_its_own_goes_on_with_another_value(assets: Path, tmp_path: Path) -> None:
    """Equal to that of the rest, it would once have joined the rest's group and not fitted the optimizer's state."""
    own = RUN | {"lr_scheduler_type": "constant", "mm_projector_lr": 1e-3}
    train(flags(assets, tmp_path / "out", "finetune", **own | {"max_steps": 2}))
    (tmp_path / "out/model.safetensors").unlink()
    train(flags(assets, tmp_path / "out", "finetune", **own | {"mm_projector_lr": 1e-2, "learning_rate": 1e-2}))
    held = torch.load(tmp_path / "out/checkpoint-4/optimizer.pt", weights_only=True)["param_groups"]
    assert len(held) == 4 and {group["lr"] for group in held} == {1e-2}


def test_what_the_weights_do_not_depend_on_may_change_unnoticed(
    assets: Path, half: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"logging_steps": 2, "save_steps": 1, "save_total_limit": 1, "report_to": "none", "run_name": "again"}
    train(flags(assets, half, "finetune", **RUN | changes))
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(half).items())
    assert " was " not in caplog.text and "cannot be told" not in caplog.text


def test_other_batches_with_the_same_steps_are_warned_about(
    assets: Path, half: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    train(flags(assets, half, "finetune", **RUN | changes))
    assert "in other batches: the samples of every step are the same" in caplog.text
    assert losses(half) == pytest.approx(losses(whole), abs=1e-4)


def test_what_an_earlier_version_did_not_write_down_is_named(
    assets: Path, half: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = json.loads((half / f"checkpoint-2/{FACTS_FILE}").read_text())
    del known["arguments"]["optim"], known["start"]["tokenizer"]
    changed_facts(half / "checkpoint-2", arguments=known["arguments"], start=known["start"], later="unknown")
    train(flags(assets, half, "finetune", **RUN))
    assert "says nothing of --optim and the tokenizer, as an earlier version wrote it" in caplog.text
    caplog.clear()
    shutil.rmtree(half / "checkpoint-4")
    (half / "model.safetensors").unlink()
    changed_facts(half / "checkpoint-2", arguments=None, start=None)
    train(flags(assets, half, "finetune", **RUN))
    assert "says nothing of the arguments and what the weights started from, as" in caplog.text
    assert "in other batches" not in caplog.text, "nothing tells which they were"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda held: [held], "holds a list, not an object of facts"),
        (lambda held: {name: held[name] for name in held if name not in ("seed", "data")}, "lacks 'data', 'seed'"),
        (lambda held: held | {"arguments": None}, "holds 'arguments' that is no object"),
    ],
)
def test_facts_that_are_damaged_are_not_taken_for_absent(half: Path, write: Callable[[Any], Any], said: str) -> None:
    path = half / "checkpoint-2" / FACTS_FILE
    path.write_text(json.dumps(write(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=f"run_facts.json' {said}.*--resume_from_checkpoint"):
        RunFacts.read(path.parent)


def test_the_pixels_that_the_tower_is_given_are_part_of_the_run(assets: Path, half: Path, tmp_path: Path) -> None:
    shutil.copytree(assets / "tower", tmp_path / "tower")
    path = tmp_path / "tower/preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0, 0, 0]}))
    with pytest.raises(
        ValueError, match=r"the image processor is another .*preprocessor_config.json of the model or of --vision_tower"
    ):
        train(flags(assets, half, "finetune", **RUN | {"vision_tower": tmp_path / "tower"}))


# === The held-out loss decides ===


def test_a_rate_that_the_held_out_loss_steers_goes_on_only_with_the_same(assets: Path, tmp_path: Path) -> None:
    """Such a schedule keeps no first rate, and other held-out data would lower it at other steps."""
    (tmp_path / "other.json").write_text(json.dumps(json.loads((assets / "chats.json").read_text())[:4]))
    options = RUN | {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "eval_data_path": assets / "chats.json",
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    out = train(flags(assets, tmp_path / "out", "finetune", **options | {"max_steps": 2}))
    (out / "model.safetensors").unlink()
    for changes, sentence in (
        ({"learning_rate": 5e-3}, "--learning_rate was 0.01 and is 0.005. Give the old value again"),
        ({"eval_steps": 2}, r"--eval_steps was 1(\.0)? and is 2"),
        ({"eval_data_path": tmp_path / "other.json"}, "the held-out data is another .*--eval_data_path"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train(flags(assets, out, "finetune", **options | changes))
    shutil.copy(assets / "chats.json", tmp_path / "copy.json")
    train(flags(assets, out, "finetune", **options | {"eval_data_path": tmp_path / "copy.json"}))


def test_the_held_out_loss_that_chooses_the_weights_stays_the_same() -> None:
    then = {"load_best_model_at_end": True, "eval_steps": 1, "save_steps": 1, "lr_scheduler_type": "linear"}
    now = then | {"eval_steps": 2, "save_steps": 2}
    assert [one.change for one in differences(then, now)] == [Change.REFUSED] * 2
    harmless = differences(then | {"load_best_model_at_end": False}, now | {"load_best_model_at_end": False})
    assert [one.change for one in harmless] == [Change.HARMLESS] * 2


def test_two_names_of_one_template_or_layer_are_no_difference() -> None:
    then = {"version": "v1", "mm_vision_select_layer": -2}
    assert not differences(then, {"version": "vicuna_v1", "mm_vision_select_layer": 2}, tower_layers=3)
    assert not differences({"version": "plain"}, {"version": "v0_plain"})
    assert len(differences(then, {"version": "llava_llama_2", "mm_vision_select_layer": 1}, tower_layers=3)) == 2


# === The table ===


def test_every_argument_has_its_place_in_the_document() -> None:
    known = {
        field.name for kind in (ModelArguments, DataArguments, TrainingArguments) for field in dataclasses.fields(kind)
    }
    named = [name for names in GROUPS.values() for name in names]
    assert len(named) == len(set(named)) and set(named) <= known, "no argument in two groups, none that is gone"
    assert resuming() in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert all(f"`--{name}`" in resuming() for name in named)


def test_an_argument_that_nobody_thought_of_is_refused() -> None:
    assert change_of("of_a_later_release") is Change.REFUSED
    (found,) = differences({"of_a_later_release": 1, "gone": 2}, {"of_a_later_release": 3, "new": 4})
    assert found.change is Change.REFUSED and str(found) == "--of_a_later_release was 1 and is 3"


def test_facts_hold_no_access_token(assets: Path, tmp_path: Path) -> None:
    model_args, data_args, args = parse_arguments(flags(assets, tmp_path, "finetune"))
    args.hub_token = "hf_secret"
    held = json.dumps(plain(model_args, data_args, args))
    assert "secret" not in held and json.loads(held)["learning_rate"] == args.learning_rate


def test_large_files_are_told_apart_by_samples(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    with path.open("wb") as file:
        file.truncate(READ_WHOLE + 1000)
    before = digest_weights(path)
    assert before == digest_weights(path)
    for place in (0, 2**20 + 4 * 2**20, READ_WHOLE + 999):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        assert digest_weights(path) != before
        before = digest_weights(path)
    assert digest_model(str(tmp_path / "nowhere")) is None


# === Flags about resuming ===


@pytest.mark.parametrize("word", ["False", "false", "no", "0"])
def test_false_does_not_resume_and_removes_nothing(half: Path, tmp_path: Path, word: str) -> None:
    with pytest.raises(
        ValueError, match=r"--resume_from_checkpoint is .*checkpoint-2 is there.*--overwrite_output_dir"
    ):
        starting_point(half, False, word)
    assert starting_point(tmp_path / "empty", False, word) is None
    assert starting_point(half, True, word) is None, "both say: begin anew"
    assert starting_point(half, False, "True") == starting_point(half, False, None) == half / "checkpoint-2"
    with pytest.raises(ValueError, match="choose one"):
        starting_point(half, True, "True")


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        ("--warmup_ratio 0.5 --warmup_steps 0", 0.5, "--warmup_steps 0 has no effect"),
        ("--warmup_steps 0 --warmup_ratio 0.5", 0.5, "--warmup_steps 0 has no effect"),
        ("--warmup_ratio 0.5 --warmup_steps 100", 100, "--warmup_ratio 0.5 has no effect"),
        ("--warmup_steps=100 --warmup-ratio=0.5", 100, "--warmup_ratio 0.5 has no effect"),
        ("--warmup_steps 0.03 --warmup_ratio 0.1", 0.1, "--warmup_steps 0.03 has no effect"),
        ("--warmup_ratio 0.1 --warmup_steps 0.03", 0.03, "--warmup_ratio 0.1 has no effect"),
        ("--warmup_ratio 0.1 --warmup_ratio 0.2", 0.2, "--warmup_ratio is now --warmup_steps"),
        ("--warmup_steps 0.03 --warmup_steps 0", 0, ""),
        ("--warmup_ratio 0", 0, "--warmup_ratio is now --warmup_steps"),
    ],
)
def test_the_warm_up_is_what_both_flags_say(
    assets: Path, tmp_path: Path, given: str, expected: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llava")
    assert parse_arguments([*flags(assets, tmp_path, "finetune"), *given.split()])[2].warmup_steps == expected
    assert said in caplog.text


@pytest.mark.parametrize("given", ["--warmup_ratio 1.5", "--warmup_ratio -0.1", "--warmup_ratio", "--warmup_ratio x"])
def test_a_warm_up_that_is_no_share_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"--warmup_ratio is .*; it must be a share from 0 to below 1"):
        modern_spelling(given.split())


# === What a start says ===


def test_a_tied_head_counts_once(assets: Path, tmp_path: Path) -> None:
    tied = LlamaForCausalLM.from_pretrained(assets / "lm")
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    shutil.copytree(assets / "lm", tmp_path / "tied")
    tied.save_pretrained(tmp_path / "tied")
    model = LlavaLlamaForCausalLM.from_pretrained(tmp_path / "tied")
    counts = count_parameters(model)
    assert sum(part["all"] for part in counts.values()) == sum(weight.numel() for weight in model.parameters())
    assert counts["lm_head"]["all"] == 0 < counts["embed_tokens"]["all"]


def test_a_start_does_not_warn_of_the_kind_of_model(
    assets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        train(flags(assets, tmp_path / "out", "finetune", max_steps=1))
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "using a model of type" not in caplog.text
    facts = RunFacts.read(tmp_path / "out")
    assert facts is None, "facts belong to checkpoints"
