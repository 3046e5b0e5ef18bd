"""What a run keeps and refuses: trial saves, whole checkpoints, skipped samples, validation, facts of the run."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from distributed import summary, weights
from tiny_llava import flags, write_assets
from torch.nn import functional as F

from llava.data.collator import REPORTED, SupervisedCollator
from llava.model import LlavaLlamaForCausalLM
from llava.train import checkpoint, trainer
from llava.train.arguments import parse_arguments
from llava.train.building import choose_trained, load_model, load_tokenizer, make_data
from llava.train.early_check import expected_weights, require_room, require_whole
from llava.train.facts import RunFacts, require_same_run, say_what_changed
from llava.train.manifest import faults, seal
from llava.train.train import train
from llava.train.validation import held_out_loader

SAVING: dict[str, object] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def half_way(assets: Path) -> Path:
    """A pre-training that was interrupted after its first checkpoint."""
    train(flags(assets, assets / "half", "pretrain", **SAVING))
    for name in ("mm_projector.bin", "train_summary.json"):
        (assets / "half" / name).unlink()
    shutil.rmtree(assets / "half/checkpoint-4")
    return assets / "half"


# === The trial save ===


@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
def test_fault_8_everything_is_saved_once_before_the_first_step(
    assets: Path, tmp_path: Path, phase: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llava")
    steps: list[int] = []
    seal_files = trainer.seal

    def noted(folder: Path) -> int:
        steps.append(int(Path(folder).name.removeprefix("checkpoint-").replace("final", "-1")))
        return seal_files(folder)

    monkeypatch.setattr(trainer, "seal", noted)
    train(flags(assets, tmp_path / "out", phase, **SAVING, early_save_check=True))
    assert steps == [0, 2, 4, -1]
    assert "A checkpoint takes about" in caplog.text
    assert not list((tmp_path / "out").glob("*checkpoint-0")) and not (tmp_path / "out" / checkpoint.STAGING).exists()


def test_fault_8_a_save_that_fails_fails_before_training(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "save_adapter", full)
    with pytest.raises(OSError, match="No space left"):
        train(flags(assets, tmp_path / "out", "pretrain", early_save_check=True))
    assert not (tmp_path / "out/trainer_state.json").exists()


def test_fault_8_checkpoints_that_will_not_fit_are_announced(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_room(tmp_path, written=1, trained_weights=1, optimizer_is_saved=False, limit=None)
    with pytest.raises(OSError, match=r"4 checkpoints of about .* do not fit .*--save_total_limit"):
        require_room(tmp_path, free // 3, trained_weights=0, optimizer_is_saved=True, limit=3)
    with pytest.raises(OSError, match="1 checkpoints of about"):
        require_room(tmp_path, 0, trained_weights=free // 4, optimizer_is_saved=False, limit=None)


def test_fault_6_a_trial_save_without_the_projector_is_refused(assets: Path, tmp_path: Path) -> None:
    model_args, data_args, args = parse_arguments(flags(assets, tmp_path, "finetune"))
    model = load_model(model_args, data_args, args, load_tokenizer(model_args, args))
    expected = expected_weights(model, "model")
    model.save_pretrained(tmp_path / "whole")
    require_whole(tmp_path / "whole", expected)
    state = {name: tensor for name, tensor in model.state_dict().items() if "mm_projector.0.weight" not in name}
    model.save_pretrained(tmp_path / "part", state_dict=state)
    with pytest.raises(OSError, match=r"model\.mm_projector\.0\.weight is missing, expected \(32, 16\)"):
        require_whole(tmp_path / "part", expected)
    torch.save({"model.mm_projector.0.weight": torch.zeros(0)}, tmp_path / "part/mm_projector.bin")
    with pytest.raises(OSError, match=r"has shape \(0,\), expected \(32, 16\)"):
        require_whole(tmp_path / "part", expected)


# === Whole checkpoints ===


def test_fault_4_every_damage_to_a_checkpoint_is_seen(half_way: Path, tmp_path: Path) -> None:
    whole = half_way / "checkpoint-2"
    assert faults(whole) == []
    for name in ("optimizer.pt", "mm_projector.bin", "trainer_state.json", "rng_state.pth", "scheduler.pt"):
        for damage in ("cut", "gone"):
            broken = tmp_path / f"{name}-{damage}"
            shutil.copytree(whole, broken)
            if damage == "gone":
                (broken / name).unlink()
            else:
                with (broken / name).open("r+b") as file:
                    file.truncate((broken / name).stat().st_size // 2)
            assert len(faults(broken)) == 1 and faults(broken)[0].startswith(name)
            with pytest.raises(ValueError, match=r"is not whole|there is no trainer_state\.json"):
                checkpoint.starting_point(tmp_path, False, str(broken))


def test_a_file_that_was_not_written_whole_is_not_sealed(half_way: Path, tmp_path: Path) -> None:
    for name in ("optimizer.pt", "trainer_state.json"):
        shutil.copytree(half_way / "checkpoint-2", tmp_path / name)
        with (tmp_path / name / name).open("r+b") as file:
            file.truncate((tmp_path / name / name).stat().st_size - 10)
        with pytest.raises(OSError, match=rf"{name} was not written whole"):
            seal(tmp_path / name)


def test_fault_4_an_interrupted_save_leaves_the_previous_checkpoint(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies while the second checkpoint is written; one is kept at a time."""
    options = SAVING | {"save_total_limit": 1, "max_steps": 6}
    train(flags(assets, tmp_path / "whole", "pretrain", **options))
    real = trainer.seal

    def die(folder: Path) -> int:
        if Path(folder).name == "checkpoint-4":
            raise KeyboardInterrupt
        return real(folder)

    monkeypatch.setattr(trainer, "seal", die)
    with pytest.raises(KeyboardInterrupt):
        train(flags(assets, tmp_path / "out", "pretrain", **options))
    assert (tmp_path / "out" / checkpoint.STAGING / "checkpoint-4").is_dir()
    assert checkpoint.find_checkpoint(tmp_path / "out") == tmp_path / "out/checkpoint-2"
    monkeypatch.setattr(trainer, "seal", real)
    train(flags(assets, tmp_path / "out", "pretrain", **options))
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-6"]


# === Another run than before ===


def facts(**changes: object) -> RunFacts:
    known: dict[str, object] = {
        "compression": {"v2v": None, "t2v": None},
        "data": "abc",
        "samples": 10,
        "world_size": 2,
        "batch_size": 8,
        "trained": "model",
        "engine": "torch",
        "seed": 42,
    }
    return RunFacts(**(known | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": "xyz"}, "the data changed since"),
        ({"samples": 11}, r"10 samples .* now 11"),
        ({"compression": {"v2v": {"dominant": 300, "contextual": 7}}}, "was trained with compression .* asks for"),
        ({"batch_size": 16}, "one step had 8 samples, now it has 16"),
        ({"trained": "lora of rank 8 over 4 bits"}, "trained model, this run lora"),
        ({"engine": "deepspeed-zero2"}, "torch wrote its optimizer state"),
        ({"seed": 1}, "give the same --seed"),
    ],
)
def test_fault_4_what_changed_at_resume_is_told_in_words(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    facts().write(tmp_path)
    require_same_run(tmp_path, facts())
    with pytest.raises(ValueError, match=sentence):
        require_same_run(tmp_path, facts(**changes))


def test_fault_4_another_number_of_processes_is_a_warning_for_torch_and_an_error_for_zero(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts().write(tmp_path)
    require_same_run(tmp_path, facts(world_size=4))
    say_what_changed(tmp_path, facts(world_size=4))
    assert "Resuming with 4 processes what 2 began" in caplog.text
    facts(engine="deepspeed-zero3").write(tmp_path)
    with pytest.raises(ValueError, match=r"into 2 pieces, but there are 4 processes; .*llava\.model\.consolidate"):
        require_same_run(tmp_path, facts(engine="deepspeed-zero3", world_size=4))


def test_fault_4_a_run_whose_data_changed_is_not_resumed(assets: Path, half_way: Path, tmp_path: Path) -> None:
    records = json.loads((assets / "captions.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(records[::-1]))
    shutil.copytree(half_way, tmp_path / "out")
    with pytest.raises(ValueError, match=r"checkpoint-2 cannot be resumed: the data changed"):
        train(flags(assets, tmp_path / "out", "pretrain", **SAVING | {"data_path": tmp_path / "other.json"}))
    shutil.copy(assets / "captions.json", tmp_path / "same.json")
    train(flags(assets, tmp_path / "out", "pretrain", **SAVING | {"data_path": tmp_path / "same.json"}))


# === Bad images ===


def with_broken_images(assets: Path, folder: Path, count: int) -> Path:
    """The tiny conversations, the first `count` of them with an image that cannot be read."""
    shutil.copytree(assets / "images", folder / "images")
    (folder / "images/broken.png").write_bytes(b"")
    records = json.loads((assets / "chats.json").read_text())
    for record in records[:count]:
        record["image"] = "broken.png"
        record["id"] = f"broken-{record['id']}"
    (folder / "data.json").write_text(json.dumps(records))
    return folder / "data.json"


def test_fault_9_unreadable_images_are_skipped_counted_and_named(assets: Path, tmp_path: Path) -> None:
    data = with_broken_images(assets, tmp_path, 2)
    options = {"data_path": data, "image_folder": tmp_path / "images", "max_steps": 8}
    with pytest.raises(ValueError, match=r"broken-chat-\d.*broken\.png"):
        train(flags(assets, tmp_path / "fail", "finetune", **options))
    options |= {"on_bad_sample": "skip", "max_bad_share": 0.5}
    train(flags(assets, tmp_path / "skip", "finetune", **options))
    counts = summary(tmp_path / "skip")["counts"]
    assert counts["samples"] == 32 and counts["skipped"] == 4, "two samples in each of two epochs"
    assert counts["unsupervised"] == 0, "a skipped sample is not counted twice"
    named = [json.loads(line) for line in (tmp_path / "skip/skipped_samples-0.jsonl").read_text().splitlines()]
    assert sorted(entry["id"] for entry in named) == ["broken-chat-0", "broken-chat-1"]
    assert all("broken.png" in entry["problem"] for entry in named)


def test_fault_9_too_many_unreadable_images_stop_the_run(assets: Path, tmp_path: Path) -> None:
    data = with_broken_images(assets, tmp_path, 6)
    options = {"data_path": data, "image_folder": tmp_path / "images", "on_bad_sample": "skip", "max_bad_share": 0.1}
    with pytest.raises(ValueError, match=r"could not be read, more than --max_bad_share 0\.1.*skipped_samples-0"):
        train(flags(assets, tmp_path / "out", "finetune", **options))


def test_fault_9_a_skipped_sample_changes_nothing_for_the_others(assets: Path, tmp_path: Path) -> None:
    """The gradient of a batch with a skipped sample is that of the rest of the batch."""
    data = with_broken_images(assets, tmp_path, 1)
    options = {"data_path": data, "image_folder": tmp_path / "images", "on_bad_sample": "skip"}
    model_args, data_args, args = parse_arguments(flags(assets, tmp_path / "out", "finetune", **options))
    tokenizer = load_tokenizer(model_args, args)
    model = load_model(model_args, data_args, args, tokenizer)
    choose_trained(model, model_args, args)
    dataset, collator = make_data(model, tokenizer, model_args, data_args)

    def gradient(indices: list[int]) -> torch.Tensor:
        batch = collator([dataset[index] for index in indices])
        for name in REPORTED:
            batch.pop(name, None)
        model.zero_grad()
        model.train()(**batch).loss.backward()
        return model.get_model().mm_projector[0].weight.grad.clone()

    torch.testing.assert_close(gradient([0, 1, 2]), gradient([1, 2]), atol=1e-6, rtol=1e-5)


# === Validation ===


def test_validation_loss_is_the_mean_over_held_out_tokens(assets: Path, tmp_path: Path) -> None:
    """Against transformers' own loss, sample by sample; the batch size does not matter."""
    held_out = json.loads((assets / "chats.json").read_text())[:7]
    (tmp_path / "held.json").write_text(json.dumps(held_out))
    options: dict[str, object] = {"eval_data_path": tmp_path / "held.json", "max_steps": 2, "eval_strategy": "steps"}
    found = []
    for size in (2, 4):
        out = tmp_path / f"out{size}"
        train(flags(assets, out, "finetune", eval_steps=1, per_device_eval_batch_size=size, **options))
        found.append([entry["eval_loss"] for entry in summary(out)["evaluations"]])
    assert len(found[0]) == 3 and found[0] == pytest.approx(found[1], rel=1e-5)
    model = LlavaLlamaForCausalLM.from_pretrained(tmp_path / "out2").eval()
    model_args, data_args, args = parse_arguments(
        flags(assets, tmp_path / "x", "finetune", data_path=tmp_path / "held.json")
    )
    dataset, collator = make_data(model, load_tokenizer(model_args, args), model_args, data_args)
    total = count = 0.0
    for index in range(7):
        batch = collator([dataset[index]])
        with torch.no_grad():
            output = model(
                batch["input_ids"],
                batch["attention_mask"],
                images=batch.get("images"),
                labels=batch["labels"],
                query_mask=batch["query_mask"],
            )
        labels = batch["labels"]
        total += float(F.cross_entropy(output.logits[0, :-1].float(), labels[0, 1:], reduction="sum"))
        count += int((labels[0, 1:] != -100).sum())
    assert found[0][-1] == pytest.approx(total / count, rel=1e-4)


def test_every_rank_gets_the_same_number_of_held_out_batches() -> None:
    samples = [{"input_ids": torch.tensor([i, i]), "labels": torch.tensor([i, i])} for i in range(7)]
    seen = []
    for rank in range(3):
        loader = held_out_loader(samples, lambda batch: batch, batch_size=2, rank=rank, world_size=3)
        assert len(loader) == 2
        taught = [sample for batch in loader for sample in batch if (sample["labels"] != -100).any()]
        seen += [int(sample["input_ids"][0]) for sample in taught]
    assert sorted(seen) == list(range(7)), "each once, copies teach nothing"


def test_held_out_data_without_a_path_is_asked_for(assets: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no --eval_data_path"):
        parse_arguments(flags(assets, tmp_path, "finetune", eval_strategy="steps", eval_steps=1))


# === Metrics and learning rates ===


def test_fault_15_speed_memory_and_tokens_stand_in_log_and_summary_from_the_first_step(
    assets: Path, tmp_path: Path
) -> None:
    train(flags(assets, tmp_path / "out", "finetune", max_steps=4, peak_tflops=0.1))
    found = summary(tmp_path / "out")["metrics"]
    # 12 of 16 samples show one image: 9 tokens enter, 4 stay after layer 2, none after layer 3, of 4 layers.
    assert found["samples"] == 16 and found["samples_with_image"] == found["images"] == 12
    assert found["visual_tokens_entered"] == 9 and found["visual_tokens_after_layer_2"] == 4
    assert found["visual_tokens_after_layer_3"] == 0 and found["average_visual_tokens"] == (9 + 9 + 4 + 0) / 4
    assert 0 < found["mfu"] < 1 and 0 <= found["data_wait_share"] < 1 and found["peak_memory_gib"] > 0
    state = json.loads((tmp_path / "out/trainer_state.json").read_text())
    steps = [entry for entry in state["log_history"] if "loss" in entry]
    told = {"tokens_per_second", "samples_per_second", "padding_share", "mfu", "peak_memory_gib", "data_wait_share"}
    assert steps[0]["step"] == 1 and all(told <= entry.keys() for entry in steps)
    tokens = [entry["mean_sequence_tokens"] for entry in steps]
    assert math.fsum(tokens) / 4 == pytest.approx(found["mean_sequence_tokens"])


def test_tower_has_its_own_learning_rate_and_is_trained_by_it(assets: Path, tmp_path: Path) -> None:
    options: dict[str, object] = {"mm_vision_tower_lr": 0.25, "mm_projector_lr": 0.5, "optim": "adamw_torch"}
    model_args, data_args, args = parse_arguments(flags(assets, tmp_path, "finetune", **options))
    tokenizer = load_tokenizer(model_args, args)
    model = load_model(model_args, data_args, args, tokenizer)
    choose_trained(model, model_args, args)
    dataset, collator = make_data(model, tokenizer, model_args, data_args)
    assert isinstance(collator, SupervisedCollator)
    made = trainer.LlavaTrainer(model=model, args=args, train_dataset=dataset, data_collator=collator)
    names = {id(weight): name for name, weight in model.named_parameters()}
    rates = {names[id(w)]: group["lr"] for group in made.create_optimizer().param_groups for w in group["params"]}
    assert {rate for name, rate in rates.items() if "vision_tower" in name} == {0.25}
    assert {rate for name, rate in rates.items() if "mm_projector" in name} == {0.5}
    assert {rate for name, rate in rates.items() if "model.layers" in name} == {args.learning_rate}
