"""Damaged checkpoints: whatever is wrong with the newest, the run says so and goes on from the one before."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import ROOT, assert_equal, run, start, tail, wait, weights
from safetensors.torch import load_file, save_file
from tiny_llava import flags, write_assets

from llava.model.builder import load_pretrained_model
from llava.train import checkpoint as checkpoints
from llava.train import manifest, soundness
from llava.train.checkpoint import (
    STAGING,
    clear_staging,
    find_checkpoint,
    prune_checkpoints,
    publish_checkpoint,
    starting_point,
)
from llava.train.manifest import MANIFEST_FILE, seal
from llava.train.train import train

RUN: dict[str, object] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
LORA: dict[str, object] = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8}
PHASES: dict[str, tuple[str, dict[str, object]]] = {
    "projector": ("pretrain", RUN | {"max_steps": 4}),
    "model": ("finetune", RUN),
    "lora": ("finetune", RUN | LORA | {"max_steps": 4}),
}


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def garbage(path: Path) -> None:
    path.write_bytes(bytes((7 * index * index + 13 * index) % 251 for index in range(path.stat().st_size)))


def one_bit(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) * 2 // 3] ^= 1
    path.write_bytes(held)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(7))


def gone(path: Path) -> None:
    path.unlink()


DAMAGES = [zeroed, garbage, one_bit, cut, longer, gone]


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def runs(assets: Path) -> dict[str, Path]:
    """One run of each kind that nobody interrupted, and a checkpoint shaped as DeepSpeed's."""
    found = {}
    for name, (phase, options) in PHASES.items():
        found[name] = train(flags(assets, assets / name, phase, **options))
    for step in (2, 4):
        pieces = assets / f"zero/checkpoint-{step}"
        shutil.copytree(found["projector"] / f"checkpoint-{step}", pieces)
        (pieces / f"global_step{step}").mkdir()
        for rank in range(2):
            state = {"optimizer_state_dict": {"step": step, "moments": torch.randn(64)}}
            torch.save(state, pieces / f"global_step{step}/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        (pieces / "latest").write_text(f"global_step{step}")
        (pieces / "optimizer.pt").unlink()
        seal(pieces)
    shards = assets / "sharded"
    for step in (2, 4):
        shutil.copytree(found["model"] / f"checkpoint-{step}", shards / f"checkpoint-{step}")
        whole = shards / f"checkpoint-{step}/model.safetensors"
        held = sorted(load_file(whole).items())
        whole.unlink()
        index = {}
        for number, part in enumerate((held[::2], held[1::2]), 1):
            name = f"model-{number:05}-of-00002.safetensors"
            save_file(dict(part), shards / f"checkpoint-{step}" / name, {"format": "pt"})
            index |= {weight: name for weight, _ in part}
        (whole.parent / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        seal(whole.parent)
    return found | {"zero": assets / "zero", "sharded": shards}


@pytest.fixture
def pair(runs: dict[str, Path], tmp_path: Path) -> Path:
    """Two whole checkpoints of a fine-tuning, 2 and 4."""
    return copied(runs["model"], tmp_path / "pair")


def copied(run: Path, target: Path) -> Path:
    for step in (2, 4):
        shutil.copytree(run / f"checkpoint-{step}", target / f"checkpoint-{step}")
    return target


def as_earlier_versions_sealed(checkpoint: Path) -> None:
    held = json.loads((checkpoint / MANIFEST_FILE).read_text())
    (checkpoint / MANIFEST_FILE).write_text(json.dumps({"files": held["files"]}))


# === Every file and every damage ===


@pytest.mark.parametrize("kind", ["projector", "model", "lora", "zero", "sharded"])
@pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)
def test_damage_to_any_file_falls_back_to_the_checkpoint_before(
    runs: dict[str, Path], tmp_path: Path, kind: str, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    out = copied(runs[kind], tmp_path / "out")
    newest = out / "checkpoint-4"
    files = [path for path in sorted(newest.rglob("*")) if path.is_file() and path.stat().st_size]
    assert len(files) > 6
    for path in files:
        before = path.read_bytes()
        for verify in ("full", "quick"):
            harm(path)
            caplog.clear()
            assert find_checkpoint(out, verify) == out / "checkpoint-2", path
            assert "checkpoint-4 is not whole" in caplog.text
            assert path.name in caplog.text or path.name == MANIFEST_FILE
            assert "The run goes on from" in caplog.text
            path.write_bytes(before)
    assert find_checkpoint(out) == newest


@pytest.mark.parametrize("kind", ["projector", "model", "lora", "zero", "sharded"])
def test_checkpoints_of_earlier_versions_are_read_and_said_to_be_less_sure(
    runs: dict[str, Path], tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without digests, the formats themselves tell of what they can: zips hold checksums, JSON its syntax."""
    out = copied(runs[kind], tmp_path / "out")
    newest = out / "checkpoint-4"
    as_earlier_versions_sealed(newest)
    assert find_checkpoint(out) == newest
    assert "is of an earlier version, whose manifest.json holds sizes and no digests" in caplog.text
    for path in sorted(newest.rglob("*")):
        if path.suffix in (".pt", ".pth", ".bin", ".safetensors") or path.name == "latest":
            before = path.read_bytes()
            for harm in (zeroed, garbage, cut, gone):
                harm(path)
                assert find_checkpoint(out) == out / "checkpoint-2", (path, harm)
                path.write_bytes(before)
    states = [path for path in newest.rglob("*.pt") if b"data/0" in path.read_bytes()]
    assert states
    for path in states:
        before = bytearray(path.read_bytes())
        at = before.index(b"data/0") + 200  # inside the first tensor
        path.write_bytes(before[:at] + bytes([before[at] ^ 64]) + before[at + 1 :])
        assert find_checkpoint(out) == out / "checkpoint-2", path
        path.write_bytes(before)


def test_numbers_that_are_not_finite_tell_of_damage_where_there_are_no_digests(pair: Path) -> None:
    path = pair / "checkpoint-4/model.safetensors"
    held = bytearray(path.read_bytes())
    held[-4096:] = b"\xff" * 4096
    path.write_bytes(held)
    as_earlier_versions_sealed(pair / "checkpoint-4")
    assert find_checkpoint(pair) == pair / "checkpoint-2"


def changed(name: str, **changes: Any) -> Callable[[Path], None]:
    def write(checkpoint: Path) -> None:
        held = json.loads((checkpoint / name).read_text()) | changes
        (checkpoint / name).write_text(json.dumps({key: value for key, value in held.items() if value != "left out"}))
        seal(checkpoint)

    return write


def replaced(name: str, text: str | bytes, sealed: bool = True) -> Callable[[Path], None]:
    def write(checkpoint: Path) -> None:
        (checkpoint / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        if sealed:
            seal(checkpoint)

    return write


def without_manifest(checkpoint: Path) -> None:
    (checkpoint / MANIFEST_FILE).unlink()


def pipe_as_manifest(checkpoint: Path) -> None:
    (checkpoint / MANIFEST_FILE).unlink()
    os.mkfifo(checkpoint / MANIFEST_FILE)


def as_manifest(text: str | bytes) -> Callable[[Path], None]:
    return replaced(MANIFEST_FILE, text, sealed=False)


def with_entry(name: str, size: object) -> Callable[[Path], None]:
    def write(checkpoint: Path) -> None:
        held = json.loads((checkpoint / MANIFEST_FILE).read_text())
        held["files"][name] = size
        held["digests"][name] = ["0" * 32]
        (checkpoint / MANIFEST_FILE).write_text(json.dumps(held))

    return write


def without(name: str) -> Callable[[Path], None]:
    """Somebody took a file away and sealed what was left."""

    def take(checkpoint: Path) -> None:
        (checkpoint / name).unlink()
        seal(checkpoint)

    return take


CONTENTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "facts of other types": (changed("run_facts.json", seed="42"), "'seed' that is no whole number"),
    "facts with a flag for a number": (changed("run_facts.json", samples=True), "'samples' that is no whole number"),
    "facts without arguments' names": (changed("run_facts.json", arguments=[1]), "'arguments' that is no object"),
    "facts of another version": (changed("run_facts.json", engine="left out", data="left out"), "lacks 'data', 'eng"),
    "facts with an unknown compression": (changed("run_facts.json", compression={"v3v": 1}), "'compression' that is"),
    "facts with a start of numbers": (changed("run_facts.json", start={"base model": 3}), "'base model' of 'start'"),
    "facts that are a list": (replaced("run_facts.json", "[]"), "holds a list, not an object"),
    "facts that are nested": (replaced("run_facts.json", "[" * 90_000 + "]" * 90_000, False), "run_facts.json"),
    "a state of other types": (changed("trainer_state.json", global_step="4"), "global_step of the type str"),
    "a state with a flag": (changed("trainer_state.json", global_step=True), "global_step of the type bool"),
    "a history that is none": (changed("trainer_state.json", log_history={}), "log_history of the type dict"),
    "a state of another step": (changed("trainer_state.json", global_step=2), "trainer_state.json is of step 2"),
    "a state that is text": (replaced("trainer_state.json", '"text"'), "holds no object"),
    "a state that is null": (replaced("trainer_state.json", "null"), "holds no object"),
    "no manifest": (without_manifest, "no manifest.json"),
    "a pipe for a manifest": (pipe_as_manifest, "manifest.json is no file"),
    "an empty manifest": (as_manifest(""), "not JSON"),
    "a manifest of nothing": (as_manifest('{"files": {}}'), "names no files"),
    "a manifest that is a list": (as_manifest("[1, 2]"), "manifest.json cannot be read"),
    "a manifest that is not text": (as_manifest(b"\xff\xfe\x00\x81"), "manifest.json cannot be read"),
    "a manifest that is nested": (as_manifest("[" * 90_000), "manifest.json cannot be read"),
    "a manifest of one file": (as_manifest('{"files": {"config.json": 1}}'), "config.json has"),
    "a manifest of odd sizes": (as_manifest('{"files": {"config.json": "1"}}'), "are not sizes"),
    "a manifest of a list": (as_manifest('{"files": ["config.json"]}'), "are not sizes"),
    "a manifest without its digests": (as_manifest('{"files": {"a": 1}, "piece": 9}'), "as this program writes it"),
    "a manifest that leads outside": (with_entry("../checkpoint-2/optimizer.pt", 1), "are not sizes"),
    "a manifest that names more": (with_entry("model-2.safetensors", 10), "model-2.safetensors is missing"),
    "a manifest of an endless file": (with_entry("optimizer.pt", 10**40), "are not sizes"),
    "a schedule that nobody listed": (without("scheduler.pt"), "scheduler.pt is missing"),
    "random states that nobody listed": (without("rng_state.pth"), "rng_state.pth is missing"),
    "a state that came later": (replaced("rng_state_3.pth", b"x", sealed=False), "is not in manifest.json"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_content_that_no_run_wrote_falls_back(pair: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    harm, said = CONTENTS[name]
    harm(pair / "checkpoint-4")
    assert find_checkpoint(pair) == pair / "checkpoint-2"
    assert said in caplog.text
    with pytest.raises(ValueError, match="checkpoint-4' is not whole"):
        starting_point(pair, False, str(pair / "checkpoint-4"))


def test_weights_that_came_later_are_not_taken_for_the_sharded_ones(
    assets: Path, runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers prefers `model.safetensors` to an index, so that a copied file would replace all weights."""
    place = copied(runs["sharded"], tmp_path / "out")
    whole = load_file(runs["model"] / "checkpoint-4/model.safetensors")
    save_file({name: weight + 1 for name, weight in whole.items()}, place / "checkpoint-4/model.safetensors")
    train(flags(assets, place, "finetune", **RUN))
    assert "model.safetensors is not in manifest.json" in caplog.text
    assert_equal(place, runs["model"])


def test_weights_beside_the_pieces_of_deepspeed_are_no_damage(runs: dict[str, Path], tmp_path: Path) -> None:
    """`zero_to_fp32.py` puts them there, and DeepSpeed does not read them."""
    place = copied(runs["zero"], tmp_path / "out")
    torch.save({"weight": torch.ones(2)}, place / "checkpoint-4/pytorch_model.bin")
    assert find_checkpoint(place) == place / "checkpoint-4"


@pytest.mark.parametrize("kind", ["projector", "model", "lora"])
def test_a_finished_run_whose_model_is_damaged_is_not_called_finished(
    assets: Path, runs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    phase, options = PHASES[kind]
    place = tmp_path / "out"
    shutil.copytree(runs[kind], place)
    command = flags(assets, place, phase, **options)
    assert train(command) == place
    name = {"projector": "mm_projector.bin", "model": "model.safetensors", "lora": "adapter_model.safetensors"}[kind]
    for damaged, harm in ((name, zeroed), ("config.json", cut)):
        before = (place / damaged).read_bytes()
        harm(place / damaged)
        with pytest.raises(ValueError, match=f"{damaged} is damaged .* Remove {name} there"):
            train(command)
        (place / damaged).write_bytes(before)
    (place / "config.json").unlink()
    with pytest.raises(ValueError, match=f"config.json is damaged .it is missing.* Remove {name} there"):
        train(command)
    (place / name).unlink()
    train(command)
    assert_equal(place, runs[kind])
    assert (place / "config.json").is_file()


@pytest.mark.parametrize("kind", ["file", "dangling link", "pipe", "link"])
def test_what_has_the_name_of_the_staging_folder_is_kept_and_does_not_stop_a_save(pair: Path, kind: str) -> None:
    photos = pair / "photos"
    photos.mkdir()
    (photos / "photo").touch()
    if kind == "link":
        (pair / STAGING).symlink_to(photos)
    else:
        odd(pair, STAGING, kind)
    clear_staging(pair)
    assert not os.path.lexists(pair / STAGING) and os.path.lexists(pair / f"{STAGING}.aside0")
    assert (photos / "photo").exists()


# === What is named like a checkpoint and is none ===


def odd(place: Path, name: str, kind: str) -> None:
    path = place / name
    if kind == "file":
        path.write_bytes(b"notes")
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(place / "nowhere")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "copy":
        shutil.copytree(place / "checkpoint-2", path)


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link", "link to itself", "pipe", "copy"])
@pytest.mark.parametrize(
    "name", ["checkpoint-6", "checkpoint-", "checkpoint-99999999999999999999", "checkpoint-\u0661", "checkpoint-\u00b2"]
)
def test_what_is_only_named_like_a_checkpoint_does_not_stop_a_run(pair: Path, name: str, kind: str) -> None:
    odd(pair, name, kind)
    assert find_checkpoint(pair) == pair / "checkpoint-4"
    for step in (2, 4):
        shutil.rmtree(pair / f"checkpoint-{step}")
    with pytest.raises(ValueError, match=rf"{name} is not whole.*--overwrite_output_dir True"):
        starting_point(pair, False, None)


def test_a_link_to_a_whole_checkpoint_is_one(pair: Path, tmp_path: Path) -> None:
    (pair / "checkpoint-4").rename(tmp_path / "elsewhere")
    (pair / "checkpoint-4").symlink_to(tmp_path / "elsewhere")
    assert find_checkpoint(pair) == pair / "checkpoint-4"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_cannot_be_read_is_damage_of_that_checkpoint(
    pair: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_path, list_folder = Path.open, os.listdir

    def failing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "optimizer.pt" and path.parent.name == "checkpoint-4":
            raise OSError(number, os.strerror(number), str(path))
        return open_path(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", failing)
        assert find_checkpoint(pair) == pair / "checkpoint-2"
        assert f"optimizer.pt cannot be read: {os.strerror(number)}" in caplog.text

    def unlisted(path: Any = ".") -> list[str]:
        if Path(path).name == "checkpoint-4":
            raise OSError(number, os.strerror(number), str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "listdir", unlisted)
    assert find_checkpoint(pair) == pair / "checkpoint-2"


# === All of them, or the one that was asked for ===


def test_a_run_whose_checkpoints_are_all_damaged_stops_and_names_each(assets: Path, pair: Path) -> None:
    zeroed(pair / "checkpoint-4/model.safetensors")
    one_bit(pair / "checkpoint-2/optimizer.pt")
    said = r"(?s)checkpoint-4 is not whole \(model.safetensors holds other bytes.*checkpoint-2 is not whole \(optimizer"
    for asked in (None, "True", "False"):
        with pytest.raises(ValueError, match=said + r".*Restore one.*--overwrite_output_dir True"):
            train(flags(assets, pair, "finetune", **RUN | {"resume_from_checkpoint": asked}))
    assert not (pair / "model.safetensors").exists()
    with pytest.raises(ValueError, match=r"checkpoint-2' is not whole \(optimizer.pt holds other bytes"):
        train(flags(assets, pair, "finetune", **RUN | {"resume_from_checkpoint": pair / "checkpoint-2"}))


def test_quick_leaves_out_the_bytes_of_large_files_alone(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_bit(pair / "checkpoint-4/model.safetensors")
    size = (pair / "checkpoint-4/optimizer.pt").stat().st_size
    assert size < (pair / "checkpoint-4/model.safetensors").stat().st_size * 4
    monkeypatch.setattr(soundness, "PIECE", 2000)
    assert find_checkpoint(pair, "quick") == pair / "checkpoint-4"
    assert find_checkpoint(pair, "full") == pair / "checkpoint-2"
    zeroed(pair / "checkpoint-4/model.safetensors")
    assert find_checkpoint(pair, "quick") == pair / "checkpoint-2", "its header is read"


def test_a_file_of_several_pieces_has_a_digest_of_each(
    pair: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(manifest, "PIECE", 1000)
    seal(pair / "checkpoint-4")
    monkeypatch.undo()
    path = pair / "checkpoint-4/model.safetensors"
    held = json.loads((path.parent / MANIFEST_FILE).read_text())
    assert len(held["digests"][path.name]) == -(-path.stat().st_size // 1000)
    assert find_checkpoint(pair) == path.parent
    before = path.read_bytes()
    for at in (0, 999, 1000, len(before) // 2, len(before) - 1):
        path.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        assert find_checkpoint(pair) == pair / "checkpoint-2", at


# === The run itself ===


def test_a_run_falls_back_aloud_and_ends_as_the_uninterrupted_one(
    assets: Path, runs: dict[str, Path], pair: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The damaged checkpoint is written again on the way; odd entries beside it stay."""
    caplog.set_level(logging.WARNING, "llava")
    garbage(pair / "checkpoint-4/model.safetensors")
    odd(pair, "checkpoint-6", "dangling link")
    odd(pair, "checkpoint-", "folder")
    train(flags(assets, pair, "finetune", **RUN | {"save_total_limit": 1}))
    assert "checkpoint-4 is not whole (model.safetensors holds other bytes than when it was saved)" in caplog.text
    assert "The run goes on from" in caplog.text
    first, second = weights(runs["model"]), weights(pair)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert find_checkpoint(pair) == pair / "checkpoint-6"
    left = sorted(path.name for path in pair.glob("checkpoint-*"))
    assert left == ["checkpoint-", "checkpoint-6", "checkpoint-6.aside0"]


def test_what_cannot_be_taken_over_ends_with_a_sentence(assets: Path, pair: Path) -> None:
    """Sealed as it is, so that only the reader of the state itself finds out."""
    torch.save({"state": {}, "param_groups": [{"params": [0]}]}, pair / "checkpoint-4/optimizer.pt")
    seal(pair / "checkpoint-4")
    with pytest.raises(ValueError, match=r"cannot go on from .*checkpoint-4: .*--resume_from_checkpoint"):
        train(flags(assets, pair, "finetune", **RUN))
    torch.save({"python": 1}, pair / "checkpoint-2/rng_state.pth")
    seal(pair / "checkpoint-2")
    with pytest.raises(ValueError, match=r"cannot go on from .*checkpoint-2: "):
        train(flags(assets, pair, "finetune", **RUN | {"resume_from_checkpoint": pair / "checkpoint-2"}))


def test_the_last_whole_checkpoint_is_not_pruned_for_damaged_ones(runs: dict[str, Path], tmp_path: Path) -> None:
    out = copied(runs["model"], tmp_path / "out")
    for name in ("checkpoint-8", "checkpoint-3", "checkpoint-2-kept"):
        shutil.copytree(runs["model"] / "checkpoint-6", out / name)
    gone(out / "checkpoint-8/optimizer.pt")
    gone(out / "checkpoint-3/optimizer.pt")
    prune_checkpoints(out, 2, out / "checkpoint-4", None)
    left = {path.name for path in out.glob("checkpoint-*")}
    assert left == {"checkpoint-2", "checkpoint-4", "checkpoint-8", "checkpoint-2-kept"}
    prune_checkpoints(out, 1, out / "checkpoint-4", str(out / "checkpoint-2"))
    assert (out / "checkpoint-2").is_dir(), "the best one stays"
    prune_checkpoints(out, 1, out / "checkpoint-4", None)
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8", "checkpoint-2-kept"}


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link", "pipe"])
def test_what_stands_in_the_way_of_a_checkpoint_is_kept_under_another_name(pair: Path, kind: str) -> None:
    odd(pair, "checkpoint-6", kind)
    staged = pair / ".unfinished/checkpoint-6"
    shutil.copytree(pair / "checkpoint-4", staged)
    publish_checkpoint(staged, pair / "checkpoint-6")
    assert (pair / "checkpoint-6/model.safetensors").is_file() and os.path.lexists(pair / "checkpoint-6.aside0")


@pytest.mark.parametrize("kind", ["projector", "lora"])
def test_a_damaged_weight_file_that_is_opened_ends_with_a_sentence_that_names_it(
    assets: Path, runs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """By the loader that evaluation, chat and conversion have; PyTorch's files hold checksums, safetensors none."""
    base = str(assets / "lm")
    for path in sorted((runs[kind] / "checkpoint-4").iterdir()):
        if path.suffix in (".safetensors", ".bin") and path.name != "training_args.bin":
            for harm in (zeroed, garbage, cut, gone, *([one_bit] if path.suffix == ".bin" else [])):
                broken = tmp_path / f"{path.name}-{harm.__name__}"
                shutil.copytree(path.parent, broken)
                harm(broken / path.name)
                if (broken / path.name).exists() or path.suffix == ".safetensors":
                    with pytest.raises(ValueError, match=path.name.replace(".", r"\.")):
                        load_pretrained_model(str(broken), base, device="cpu")


def test_a_damaged_best_checkpoint_does_not_become_the_result(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava.train.trainer import LlavaTrainer

    load = LlavaTrainer._load_best_model

    def after_damage(trainer: LlavaTrainer) -> None:
        one_bit(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
        load(trainer)

    monkeypatch.setattr(LlavaTrainer, "_load_best_model", after_damage)
    options: dict[str, object] = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    options |= {"eval_data_path": assets / "chats.json", "max_steps": 2}
    with pytest.raises(ValueError, match=r"lowest held-out loss, is not whole.*--load_best_model_at_end False"):
        train(flags(assets, tmp_path / "out", "finetune", **RUN | options))
    assert not (tmp_path / "out/model.safetensors").exists()


# === Several ranks ===


def _look(rank: int, folder: Path, out: Path) -> None:
    """As one of two processes; the second does not see all that the first sees."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    seen: list[str] = []

    def look(**hidden: Any) -> str:
        kept = (checkpoints._checkpoints, soundness.damage)
        if rank == 1:
            for module, name in ((checkpoints, "_checkpoints"), (soundness, "damage")):
                if name in hidden:
                    setattr(module, name, hidden[name])
        try:
            return str(find_checkpoint(out))
        except ValueError as error:
            return str(error)
        finally:
            checkpoints._checkpoints, soundness.damage = kept

    def unread(path: Any, *_: Any, **options: Any) -> list[str]:
        return ["optimizer.pt cannot be read: Stale file handle"] if Path(path).name == "checkpoint-4" else []

    def nothing(path: Any, *_: Any, **options: Any) -> list[str]:
        return ["it is not there"]

    def refused(_: Any) -> list[Path]:
        raise ValueError("--output_dir cannot be read")

    seen.append(look())
    seen.append(look(damage=unread))
    seen.append(look(damage=nothing, _checkpoints=lambda _: []))
    seen.append(look(_checkpoints=refused))
    (folder / f"seen-{rank}").write_text(json.dumps(seen))


def test_all_ranks_go_on_from_one_checkpoint_whatever_one_of_them_sees(pair: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_look, args=(rank, tmp_path, pair)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
        assert process.exitcode == 0
    first, second = (json.loads((tmp_path / f"seen-{rank}").read_text()) for rank in range(2))
    assert first == second
    assert first[0] == str(pair / "checkpoint-4") and first[1] == str(pair / "checkpoint-2")
    assert "it is not there as process 1 sees it" in first[2] and "--output_dir cannot be read" in first[3]


@pytest.mark.slow
def test_two_ranks_under_zero_pass_over_a_changed_bit_and_stop_where_all_is_damaged(
    assets: Path, tmp_path: Path
) -> None:
    options = RUN | {"per_device_train_batch_size": 2, "deepspeed": ROOT / "configs/deepspeed/zero3.json"}
    run("forked", flags(assets, tmp_path / "whole", "finetune", **options), tmp_path / "log")
    out = copied(tmp_path / "whole", tmp_path / "out")
    held = json.loads((out / "checkpoint-4" / MANIFEST_FILE).read_text())
    pieces = sorted(path for path in (out / "checkpoint-4/global_step4").iterdir())
    assert len(pieces) >= 4 and {f"global_step4/{path.name}" for path in pieces} <= held["digests"].keys()
    for path in pieces:
        one_bit(path)
        assert find_checkpoint(out) == out / "checkpoint-2"
        one_bit(path)
    one_bit(pieces[-1])
    run("forked", flags(assets, out, "finetune", **options), tmp_path / "again")
    assert tail(tmp_path / "again", 10**7).count("holds other bytes than when it was saved") == 1
    assert_equal(tmp_path / "whole", out)
    out = copied(tmp_path / "whole", tmp_path / "none")
    for step in (2, 4):
        zeroed(next((out / f"checkpoint-{step}").rglob("*optim_states.pt")))
    process = start("forked", flags(assets, out, "finetune", **options), tmp_path / "stopped")
    assert wait(process, tmp_path / "stopped") == 1
    assert "No checkpoint in" in tail(tmp_path / "stopped", 10**7)
