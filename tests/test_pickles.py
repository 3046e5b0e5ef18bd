"""No file of a checkpoint can run code: neither DeepSpeed's, nor the Trainer's, nor a model's."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from hostile import SHAPES, Writes, around, new_zip
from tiny_llava import flags, write_assets
from transformers import TrainerState

from llava.checkpoints.pickles import (
    OF_DEEPSPEED,
    OF_RANDOM_STATES,
    UnsafePickleError,
    require_safe_pickles,
    weights_only_loading,
)
from llava.train.checked_loading import CheckedLoading
from llava.train.manifest import seal
from llava.train.train import train

PLACES = (
    "global_step3/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "global_step3/zero_pp_rank_1_mp_rank_00_model_states.pt",
    "global_step3/zero/model.norm.weight/exp_avg.pt",
    "rng_state_1.pth",
    "optimizer.pt",
    "training_args.bin",
    "global_step3/layer_00-model_states.PT",
)


def state() -> dict[str, object]:
    """What DeepSpeed and the Trainer keep, every kind of record at least once."""
    return {
        "module": {"weight": torch.ones(3, dtype=torch.bfloat16), "tied": torch.nn.Parameter(torch.ones(2))},
        "param_shapes": [{"weight": torch.Size([3])}],
        "zero_stage": ZeroStageEnum.weights,
        "loss_scaler": DynamicLossScaler(2.0**16, 2, 1000, 1, 1, False, dtype=torch.float16),
        "fixed": LossScaler(1.0),
        "slice": fragment_address(numel=3, start=7),
        "ds_config": {"bf16": {"enabled": True}, "lists": [1, 2.5, None, "x"]},
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "shared": {1, 2},
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder as a training with DeepSpeed leaves it; the files are torch's own."""
    folder = tmp_path / "checkpoint-3"
    (folder / "global_step3").mkdir(parents=True)
    (folder / "latest").write_text("global_step3")
    for name in PLACES[:2]:
        torch.save(state(), folder / name)
    torch.save(state(), folder / "rng_state_0.pth")
    return folder


def test_what_deepspeed_and_trainer_write_is_let_through(checkpoint: Path) -> None:
    require_safe_pickles(checkpoint)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_hostile_file_is_refused_by_name_and_nothing_runs(checkpoint: Path, tmp_path: Path, shape: str) -> None:
    marker = tmp_path / "marker"
    path = checkpoint / PLACES[0]
    SHAPES[shape](path, marker)
    with pytest.raises(UnsafePickleError) as refused:
        require_safe_pickles(checkpoint)
    sentence = str(refused.value)
    assert str(path) in sentence and "--resume_from_checkpoint" in sentence and not marker.exists()
    with pytest.raises(Exception), weights_only_loading():  # noqa: B017 - that nothing runs is what counts
        torch.load(path, weights_only=False)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ("new_zip", "posix.system"),
        ("old_pickle", "posix.system"),
        ("bare_pickle", "posix.system"),
        ("text_pickle", "posix.system"),
        ("instance_opcode", "os.system"),
        ("object_opcode", "os.system"),
        ("computed_name", "os.system"),
        ("old_name", "builtins.eval"),
        ("extension_code", "extension 1"),
        ("pickle_before_zip", "posix.system"),
        ("beside_good_records", "posix.system"),
    ],
)
def test_the_refusal_says_what_would_have_been_called(checkpoint: Path, shape: str, name: str) -> None:
    SHAPES[shape](checkpoint / PLACES[0], checkpoint / "marker")
    with pytest.raises(UnsafePickleError, match=name):
        require_safe_pickles(checkpoint)


@pytest.mark.parametrize("place", PLACES)
def test_every_pickled_file_of_a_checkpoint_is_looked_at(checkpoint: Path, tmp_path: Path, place: str) -> None:
    (checkpoint / place).parent.mkdir(parents=True, exist_ok=True)
    new_zip(checkpoint / place, tmp_path / "marker")
    with pytest.raises(UnsafePickleError, match=Path(place).name):
        require_safe_pickles(checkpoint)
    assert not (tmp_path / "marker").exists()


def test_links_lead_to_what_is_looked_at_and_circles_end(checkpoint: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "round").symlink_to(checkpoint)
    (checkpoint / "global_step3" / "more").symlink_to(elsewhere)
    require_safe_pickles(checkpoint)
    new_zip(elsewhere / "fp32.pt", tmp_path / "marker")
    with pytest.raises(UnsafePickleError, match="fp32"):
        require_safe_pickles(checkpoint)


@pytest.mark.parametrize("tag", ["../elsewhere", "/tmp/elsewhere", "..", ".", "a/b", "a\\b", "global_step3/../../x"])
@pytest.mark.parametrize("name", ["latest", "latest_universal"])
def test_latest_that_leads_elsewhere_is_refused(checkpoint: Path, name: str, tag: str) -> None:
    (checkpoint / name).write_text(tag)
    with pytest.raises(UnsafePickleError, match=name):
        require_safe_pickles(checkpoint)


@pytest.mark.parametrize("tag", ["", "global step", "a\nb", "x\x00y", "global_step3\0\0", "\x00\x14/6f\xff"])
def test_latest_that_names_nothing_is_damage(checkpoint: Path, tag: str) -> None:
    (checkpoint / "latest").write_text(tag)
    with pytest.raises(ValueError, match=r"latest.*damaged") as refused:
        require_safe_pickles(checkpoint)
    assert not isinstance(refused.value, UnsafePickleError)


def test_a_pipe_is_refused_without_waiting_for_it(checkpoint: Path) -> None:
    os.mkfifo(checkpoint / "global_step3" / "more.pt")
    problems: list[str] = []

    def look() -> None:
        try:
            require_safe_pickles(checkpoint)
        except UnsafePickleError as error:
            problems.append(str(error))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(timeout=100)
    assert len(problems) == 1 and "pipe" in problems[0]


DAMAGES = (b"", bytes(400), bytes(20_480), b"PK\x03\x04" + bytes(400), b"\x80\x77" * 200, b"PAR1" * 300, b"{}")


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_file_is_told_from_a_hostile_one(checkpoint: Path, tmp_path: Path, damage: bytes) -> None:
    """The run may take the checkpoint before a damaged one; a hostile one must stop it, also with damage in it."""
    (checkpoint / "global_step3/a.pt").write_bytes(damage)
    with pytest.raises(ValueError, match=r"a\.pt.*damaged") as refused:
        require_safe_pickles(checkpoint)
    assert not isinstance(refused.value, UnsafePickleError)
    new_zip(checkpoint / "global_step3/b.pt", tmp_path / "marker")
    with pytest.raises(UnsafePickleError, match=r"b\.pt"):
        require_safe_pickles(checkpoint)


def test_a_flipped_bit_anywhere_in_the_pickle_is_damage(checkpoint: Path) -> None:
    """Not the call that the letter it changed seems to name."""
    path = checkpoint / "rng_state_0.pth"
    whole = path.read_bytes()
    start = whole.index(b"\x80\x02")
    for place in range(start, start + 2000, 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"rng_state_0.*damaged") as refused:
            require_safe_pickles(checkpoint)
        assert not isinstance(refused.value, UnsafePickleError)


# === The second wall ===


def test_the_loading_wall_reads_what_deepspeed_writes(checkpoint: Path) -> None:
    with weights_only_loading():
        held = torch.load(checkpoint / PLACES[0], weights_only=False)
    assert held["zero_stage"] is ZeroStageEnum.weights and held["slice"] == fragment_address(numel=3, start=7)
    assert vars(held["loss_scaler"]) == vars(state()["loss_scaler"])
    assert torch.equal(held["module"]["weight"], torch.ones(3, dtype=torch.bfloat16))


def test_a_file_that_is_exchanged_after_the_look_runs_nothing(checkpoint: Path, tmp_path: Path) -> None:
    require_safe_pickles(checkpoint)
    new_zip(checkpoint / PLACES[0], tmp_path / "marker")
    with pytest.raises(UnsafePickleError, match="system"), weights_only_loading():
        torch.load(checkpoint / PLACES[0], weights_only=False)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "given", [{}, {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "0"}]
)
def test_the_loading_wall_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name in ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    environment, classes = dict(os.environ), set(torch.serialization.get_safe_globals())
    with weights_only_loading(), weights_only_loading():
        assert {name for _, name in set(torch.serialization.get_safe_globals()) - classes} == {
            *OF_DEEPSPEED,
            *OF_RANDOM_STATES,
        }
    with pytest.raises(KeyError), weights_only_loading():
        raise KeyError
    assert dict(os.environ) == environment and set(torch.serialization.get_safe_globals()) == classes


# === Resuming ===


@pytest.fixture(scope="module")
def half_way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and data, and under `run` the checkpoints 2 and 4 of a run that did not end."""
    assets = write_assets(tmp_path_factory.mktemp("assets"))
    train(arguments(assets, assets / "run"))
    for path in (assets / "run").iterdir():
        if path.is_file():
            path.unlink()
    return assets


def arguments(assets: Path, output: Path, **changes: object) -> list[str]:
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 3}
    return flags(assets, output, "pretrain", max_steps=6, **saving | changes)


@pytest.mark.parametrize("sealed", [True, False], ids=["with its digest", "without"])
@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "scaler.pt",
        "training_args.bin",
        "mm_projector.bin",
        "pytorch_model.bin",
        "adapter_model.bin",
        "global_step6/mp_rank_00_model_states.pt",
    ],
)
def test_a_run_stops_at_a_hostile_checkpoint_and_takes_no_earlier_one(
    half_way: Path, tmp_path: Path, name: str, sealed: bool
) -> None:
    """Whether its manifest was made to fit or not; it is not passed over as a damaged one would be."""
    shutil.copytree(half_way / "run", tmp_path / "run")
    newest = tmp_path / "run/checkpoint-6"
    (newest / name).parent.mkdir(exist_ok=True)
    new_zip(newest / name, tmp_path / "marker")
    if sealed:
        seal(newest)
    for more in ([], ["--resume_from_checkpoint", str(newest)]):
        with pytest.raises(ValueError, match=rf"{Path(name).name}.*posix\.system"):
            train([*arguments(half_way, tmp_path / "run"), *more])
    assert not (tmp_path / "marker").exists()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))[-1] == "checkpoint-6"


@pytest.mark.parametrize("shape", ["new_zip", "old_pickle", "computed_name"])
def test_transformers_own_loads_run_nothing_should_the_look_be_left_out(
    half_way: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    monkeypatch.setattr("llava.train.soundness.require_safe_pickles", lambda folder: None)
    monkeypatch.setattr("llava.train.checked_loading.require_safe_pickles", lambda folder: None)
    shutil.copytree(half_way / "run", tmp_path / "run")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        SHAPES[shape](tmp_path / "run/checkpoint-4" / name, tmp_path / "marker")
        shutil.rmtree(tmp_path / "run/checkpoint-6", ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr("llava.train.soundness.damage", lambda *_, **__: [])
            with pytest.raises(ValueError):
                train(arguments(half_way, tmp_path / "run"))
        shutil.copyfile(half_way / "run/checkpoint-4" / name, tmp_path / "run/checkpoint-4" / name)
    assert not (tmp_path / "marker").exists()


def test_a_library_that_writes_what_resuming_would_refuse_is_found_before_the_first_step(
    half_way: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer version that pickles another class must not be noticed only when the run is gone on from."""
    monkeypatch.setattr("llava.checkpoints.pickles.OF_RANDOM_STATES", ())
    with pytest.raises(OSError, match=r"rng_state\.pth.*numpy.*constraints\.txt"):
        train(arguments(half_way, tmp_path / "run", early_save_check=True))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize(("name", "is_known"), [("transformers.SomethingNew", True), ("torch.hub.load", False)])
def test_arguments_of_another_version_of_a_library_are_no_attack(checkpoint: Path, name: str, is_known: bool) -> None:
    """`training_args.bin` is opened by nobody; a new class of transformers' in it must not keep a run from going on."""
    module, _, attribute = name.rpartition(".")
    around(checkpoint / "training_args.bin", f"\x80\x02c{module}\n{attribute}\n.".encode("latin-1"))
    if is_known:
        require_safe_pickles(checkpoint)
    else:
        with pytest.raises(UnsafePickleError, match=name):
            require_safe_pickles(checkpoint)


def test_the_best_checkpoint_of_a_state_file_is_looked_at_wherever_it_lies(checkpoint: Path, tmp_path: Path) -> None:
    new_zip(checkpoint / PLACES[0], tmp_path / "marker")
    trainer = CheckedLoading.__new__(CheckedLoading)
    trainer.state = TrainerState(best_model_checkpoint=str(checkpoint))
    with pytest.raises(UnsafePickleError, match="system"):
        trainer._load_best_model()
    assert not (tmp_path / "marker").exists()


def test_a_pickle_that_is_no_mapping_never_runs_either(tmp_path: Path) -> None:
    """The payload is what these tests rest on: opened in the usual way it does leave its marker."""
    pickle.loads(pickle.dumps(Writes(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()
