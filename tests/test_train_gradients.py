"""A gradient that is not finite never reaches a checkpoint, and the run goes on from the last good one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attack import programs
from distributed import losses, weights
from tiny_llava import flags, write_assets
from torch import distributed, nn

from llava.train import finite_steps, trainer
from llava.train.finite_steps import FiniteSteps
from llava.train.non_finite import broken_weight, require_finite_gradient, require_finite_weights
from llava.train.train import train

SAVING: dict[str, object] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture
def faulty_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """Call it to have the gradient of one weight replaced in a step, as an overflow would; the loss is good."""
    whole = trainer.LlavaTrainer.training_step

    def arm(step: int, value: float) -> None:
        def training_step(self: Any, model: nn.Module, *inputs: Any) -> torch.Tensor:
            weight = self.model.get_model().mm_projector[2].bias
            fault = weight.register_hook(lambda gradient: torch.full_like(gradient, value))
            if self.state.global_step + 1 != step:
                fault.remove()
            try:
                return whole(self, model, *inputs)
            finally:
                fault.remove()

        monkeypatch.setattr(trainer.LlavaTrainer, "training_step", training_step)

    return arm


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("value", "changes"),
    [
        (float("inf"), {}),
        (float("nan"), {"max_grad_norm": 0, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
    ],
)
def test_a_broken_gradient_stops_the_run_and_the_next_start_goes_on(
    assets: Path, tmp_path: Path, faulty_step: Any, value: float, changes: dict[str, object]
) -> None:
    arguments = flags(assets, tmp_path / "out", "finetune", **SAVING | changes)
    faulty_step(3, value)
    with pytest.raises(FloatingPointError, match=r"gradient is (inf|nan) in step 3, though the loss is finite") as stop:
        train(arguments)
    assert str(stop.value).count("chat-") + str(stop.value).count("text-") == 4, "all samples of the step"
    assert checkpoints(tmp_path / "out")[-1] == "checkpoint-2" and not (tmp_path / "out/.unfinished").exists()
    faulty_step(0, value)
    train(arguments)
    train(flags(assets, tmp_path / "undisturbed", "finetune", **SAVING | changes))
    assert losses(tmp_path / "out") == losses(tmp_path / "undisturbed")


def test_weights_that_are_not_finite_are_never_saved(
    assets: Path, tmp_path: Path, faulty_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under an engine that does not tell the norm."""
    monkeypatch.setattr(finite_steps, "require_finite_gradient", lambda *arguments: None)
    faulty_step(3, float("nan"))
    for step in (1, 100):  # at a checkpoint, and at the end of a run that makes none
        out = tmp_path / str(step)
        changes = {"save_steps": step, "save_strategy": "steps" if step == 1 else "no", "max_steps": 3}
        with pytest.raises(FloatingPointError, match=r"After step 3 model\.\S+ is not finite, so nothing was saved"):
            train(flags(assets, out, "finetune", **SAVING | changes))
        assert checkpoints(out) == (["checkpoint-1", "checkpoint-2"] if step == 1 else [])
        assert not (out / "model.safetensors").exists()


def test_the_scaler_of_fp16_leaves_a_step_out_and_the_run_goes_on(
    assets: Path, tmp_path: Path, faulty_step: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a CPU there is no scaler by itself; it gets PyTorch's."""
    start = trainer.LlavaTrainer.__init__

    def with_scaler(self: Any, **options: Any) -> None:
        start(self, **options)
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    monkeypatch.setattr(trainer.LlavaTrainer, "__init__", with_scaler)
    faulty_step(2, float("inf"))
    train(flags(assets, tmp_path / "out", "finetune", **SAVING | {"fp16": True}))
    assert "overflowed in step 2" in caplog.text
    before, after, last = (
        weights(tmp_path / "out" / name) for name in ("checkpoint-1", "checkpoint-2", "checkpoint-4")
    )
    trained = [name for name in before if "mm_projector" in name]
    assert all(torch.equal(before[name], after[name]) for name in before), "the step was left out"
    assert trained and not any(torch.equal(before[name], last[name]) for name in trained), "and the others were not"


def test_a_norm_is_judged_by_its_value(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for fine in (None, 0.0, 3.5, torch.tensor(2.0)):
        require_finite_gradient(fine, 7, ["a"])
    for broken in (float("nan"), torch.tensor(float("inf")), -1.0):  # DeepSpeed's -1
        with pytest.raises(FloatingPointError, match=r"in step 7.*Samples of the step: 'a', 'b'\."):
            require_finite_gradient(broken, 7, ["a", "b"])
    require_finite_gradient(float("inf"), 7, ["a"], scaled=True, scale=65536.0)
    with pytest.raises(FloatingPointError):
        require_finite_gradient(float("inf"), 7, ["a"], scaled=True, scale=2.0**-20)
    with pytest.raises(FloatingPointError, match=r"'31' and 8 more"):
        require_finite_gradient(float("inf"), 7, [str(number) for number in range(40)])


def test_broken_weights_and_optimizer_states_are_found_and_blamed() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    require_finite_weights(model, optimizer, 1)
    optimizer.state[model[1].weight]["exp_avg_sq"][0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="After step 9 the optimizer's state is not finite"):
        require_finite_weights(model, optimizer, 9)
    model[0].weight.requires_grad_(False)[1, 1] = float("nan")
    assert broken_weight(model, None) is None and broken_weight(model, None, frozen=True) == "0.weight"
    steps = FiniteSteps(model, lambda: False)
    steps.add_loss(torch.tensor(1.0), ["fine"])
    steps.add_loss(torch.tensor(float("nan")), ["x"])
    steps.end_step(torch.tensor(2.0), 3)
    with pytest.raises(FloatingPointError, match=r"nan in step 3;.*: 'x'\. Not these samples are to blame: 0\.weight"):
        steps.look()
    steps.look()  # each step is looked at once


def test_a_step_is_looked_at_when_the_next_one_ends_and_not_before() -> None:
    """Its numbers are on their way meanwhile; what broke in a step is told of that step."""
    model = nn.Linear(2, 1)
    steps = FiniteSteps(model, lambda: True)
    for step, (loss, norm) in enumerate([(1.0, 2.0), (float("inf"), 3.0)], 1):
        steps.add_loss(torch.tensor(loss), [f"sample of {step}"])
        steps.end_step(torch.tensor(norm), step)
    with torch.no_grad():
        model.weight.fill_(float("nan"))  # as the step does that learns from such a loss
    steps.add_loss(torch.tensor(float("nan")), ["later"])
    with pytest.raises(FloatingPointError, match=r"The loss is inf in step 2; .*: 'sample of 2'\. Lower --learning"):
        steps.end_step(torch.tensor(float("nan")), 3)


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_of_them_with_the_same_sentence(tmp_path: Path) -> None:
    def rank(number: int) -> int:
        meeting = f"file://{tmp_path / 'meeting'}"
        distributed.init_process_group("gloo", init_method=meeting, rank=number, world_size=2)
        steps = FiniteSteps(nn.Linear(2, 1), lambda: True)
        steps.add_loss(torch.tensor(float("nan") if number == 1 else 1.0), [f"sample of {number}"])
        steps.end_step(torch.tensor(2.0), 3)
        with pytest.raises(FloatingPointError, match=r"The loss is nan in step 3; .*: 'sample of 1'\."):
            steps.look()
        return 3

    ranks = [programs.Running(partial(rank, number), tmp_path / f"{number}.log") for number in range(2)]
    ended = [one.wait() for one in ranks]
    assert [one.status for one in ended] == [3, 3], [one.said for one in ended]


@pytest.mark.parametrize("norm", [float("nan"), torch.tensor(float("inf")), -1.0])
def test_a_norm_is_looked_at_one_step_late_whoever_computed_it(norm: Any) -> None:
    steps = FiniteSteps(nn.Linear(2, 1), lambda: True)
    steps.add_loss(torch.tensor(1.0), ["a"])
    steps.add_loss(torch.tensor(1.0), ["b"])
    steps.end_step(norm, 7)
    with pytest.raises(FloatingPointError, match=r"norm of the gradient is (nan|inf) in step 7.*: 'a', 'b'\."):
        steps.look()


def test_a_run_that_broke_before_its_first_checkpoint_is_not_told_to_go_on(assets: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="There is no checkpoint to go on from: the next start begins anew"):
        train(flags(assets, tmp_path / "out", "finetune", **SAVING | {"learning_rate": 1e38}))


def test_samples_are_not_blamed_for_weights_that_a_rate_had_ruined(assets: Path, tmp_path: Path) -> None:
    options = SAVING | {"learning_rate": 1e30, "optim": "sgd", "max_grad_norm": 0}
    with pytest.raises(FloatingPointError, match=r"Not these samples are to blame: .* of magnitude .*--learning_rate"):
        train(flags(assets, tmp_path / "out", "finetune", **options))
