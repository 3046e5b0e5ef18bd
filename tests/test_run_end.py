"""A run that is killed anywhere between its last step and its end: the same command ends it, with the same bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import summary
from tiny_llava import flags, write_assets

from llava.train import checkpoint, trainer
from llava.train import train as program
from llava.train.checkpoint import STAGING
from llava.train.finished import require_trained
from llava.train.train import train

SAVING: dict[str, object] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "pretrain": ("pretrain", SAVING),
    "finetune": ("finetune", SAVING),
    "lora": ("finetune", SAVING | {"lora_enable": True, "lora_r": 4, "lora_alpha": 8}),
    "no checkpoints": ("pretrain", SAVING | {"save_strategy": "no"}),
}
NOT_COMPARED = (
    "train_summary.json",
    "trainer_state.json",
    "training_args.bin",
)  # they hold times, and the folder's name


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the programs catches it."""


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def undisturbed(assets: Path) -> dict[str, Path]:
    """Of each kind a run that nobody killed."""
    for kind, (phase, options) in KINDS.items():
        train(flags(assets, assets / kind, phase, **options))
    return {kind: assets / kind for kind in KINDS}


def model_files(folder: Path) -> dict[str, bytes]:
    """Of a finished run, checkpoints and what holds times left out."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name not in NOT_COMPARED and not path.name.startswith(".run.lock")
    }


def dies(function: Callable[..., Any], before: int | None = None) -> Callable[..., Any]:
    """The function, and death after it; with `before`, in place of its call of this number."""
    calls = iter(range(1000))

    def dying(*arguments: Any, **options: Any) -> Any:
        if before is not None and next(calls) < before:
            return function(*arguments, **options)
        if before is None:
            function(*arguments, **options)
        raise KilledError

    return dying


def cut(point: str, patch: pytest.MonkeyPatch) -> None:
    """Have the run killed at a point behind its last step."""
    if point.startswith("file "):
        real, dying = os.replace, dies(os.replace, before=int(point[5:]))

        def replace(source: Path, target: Path) -> None:
            inside, leaves = Path(source).parent.name == "final", Path(target).parent.name != "final"
            (dying if inside and leaves else real)(source, target)

        patch.setattr(checkpoint.os, "replace", replace)
        return
    places: dict[str, tuple[Any, str]] = {
        "state": (trainer.LlavaTrainer, "save_state"),
        "report": (program, "write_summary"),
        "sealing": (trainer, "seal"),
        "published": (trainer, "publish_model"),
        "end": (program, "finish"),
    }
    owner, name = places[point]
    real = getattr(owner, name)
    if point == "sealing":  # checkpoints are sealed, too
        patch.setattr(owner, name, lambda folder: (dies(real) if Path(folder).name == "final" else real)(folder))
    else:
        patch.setattr(owner, name, dies(real))


def end_anew(assets: Path, output: Path, kind: str, undisturbed: dict[str, Path]) -> None:
    """The same command ends the run, and leaves what an undisturbed one does."""
    phase, options = KINDS[kind]
    for _ in range(2):
        assert train(flags(assets, output, phase, **options)) == output
        assert model_files(output) == model_files(undisturbed[kind])
        names = {path.name for path in undisturbed[kind].iterdir()}
        assert {path.name for path in output.iterdir()} == names and STAGING not in names
        assert summary(output)["phase"] == phase and summary(output)["run"]["samples"] == 16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", ["state", "report", "sealing", "published", "end"])
def test_a_run_that_was_killed_behind_its_last_step_is_ended_by_the_same_command(
    assets: Path, tmp_path: Path, undisturbed: dict[str, Path], kind: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase, options = KINDS[kind]
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        cut(point, patch)
        train(flags(assets, tmp_path / "out", phase, **options))
    end_anew(assets, tmp_path / "out", kind, undisturbed)


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "lora"])
def test_a_run_that_was_killed_between_two_files_of_its_model_is_ended_by_the_same_command(
    assets: Path, tmp_path: Path, undisturbed: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run is cut before each file in turn: every start goes on from what the one before left."""
    phase, options = KINDS[kind]
    files = sum(path.is_file() for path in undisturbed[kind].iterdir()) - 1  # trainer_state.json is written before
    for number in range(files):
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            cut(f"file {number}", patch)
            train(flags(assets, tmp_path / "out", phase, **options))
        assert len(list((tmp_path / "out" / STAGING / "final").iterdir())) == files - number
    end_anew(assets, tmp_path / "out", kind, undisturbed)


def test_a_finished_run_of_an_earlier_version_that_lacks_its_summary_is_ended(
    assets: Path, tmp_path: Path, undisturbed: dict[str, Path]
) -> None:
    shutil.copytree(undisturbed["pretrain"], tmp_path / "out")
    (tmp_path / "out/train_summary.json").unlink()
    with pytest.raises(ValueError, match=r"cannot be resumed: .* compression"):
        train(flags(assets, tmp_path / "out", "pretrain", **SAVING, compression="none"))
    end_anew(assets, tmp_path / "out", "pretrain", undisturbed)


def test_the_marks_of_an_overwritten_model_do_not_vouch_for_half_of_a_new_one(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old projector beside the new summary would be taken for the new model."""
    train(flags(assets, tmp_path / "out", "pretrain", max_steps=1))
    other = flags(assets, tmp_path / "out", "pretrain", max_steps=2)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        cut("file 2", patch)
        train([*other, "--overwrite_output_dir", "True"])
    assert not (tmp_path / "out/mm_projector.bin").exists()
    train(other)
    assert summary(tmp_path / "out")["result"]["step"] == 2


def test_what_no_step_was_made_on_is_not_published() -> None:
    require_trained(1)
    with pytest.raises(ValueError, match="made no optimizer step"):
        require_trained(0)
