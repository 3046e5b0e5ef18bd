"""Learning rates and weight decay of the parts of the model, and those of a run that goes on with other ones."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from llava.model.parts import lies_in, paths_of
from llava.train.arguments import TrainingArguments

logger = logging.getLogger(__name__)


def parameter_groups(model: Any, args: TrainingArguments, decayed: Collection[str]) -> list[dict[str, Any]]:
    """Trained weights by weight decay and by part, each part with its learning rate; empty groups are left out.

    Groups depend on which rates are given and not on their values, so that an optimizer's state fits them again when
    a run goes on with other values.

    Args:
        model: model in training.
        args: arguments with the rates.
        decayed: names of the weights that decay.
    """
    rates = {"projector": args.mm_projector_lr, "tower": args.mm_vision_tower_lr}
    places = {"projector": paths_of(model, model.projectors()), "tower": paths_of(model, model.vision_towers())}
    groups: dict[tuple[bool, str], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            part = next((part for part, paths in places.items() if lies_in(name, paths)), "")
            part = part if rates.get(part) is not None else ""
            groups.setdefault((name in decayed, part), []).append(weight)
    return [
        {
            "params": weights,
            "weight_decay": args.weight_decay if decays else 0.0,
            "lr": rates[part] if part else args.learning_rate,
        }
        for (decays, part), weights in groups.items()
    ]


def asked_rates(optimizer: Any, args: TrainingArguments) -> list[tuple[float, float]]:
    """Learning rate and weight decay of every group of an optimizer that was just made."""
    groups = getattr(optimizer, "param_groups", ())  # one that DeepSpeed makes of its own settings has none yet
    return [(group.get("lr", args.learning_rate), group.get("weight_decay", 0.0)) for group in groups]


def apply_rates(optimizer: Any, scheduler: Any, asked: list[tuple[float, float]]) -> None:
    """Give a restored optimizer the rates that are asked for now, at their place in the schedule of now.

    A checkpoint's optimizer and schedule bring their own rates along. Where nothing changed, all stays bit for bit.

    Args:
        optimizer: optimizer with the state of a checkpoint.
        scheduler: scheduler with the state of the same.
        asked: result of `asked_rates`, in the order of the groups; empty leaves all as it is.
    """
    if not asked:
        return
    while hasattr(scheduler, "scheduler"):
        scheduler = scheduler.scheduler
    for number, (group, (rate, decay)) in enumerate(zip(optimizer.param_groups, asked, strict=True)):
        before = group.get("initial_lr", rate)
        if before != rate:
            logger.warning("The learning rate of group %d is %g from here on; it was %g.", number, rate, before)
        if group.get("weight_decay", decay) != decay:
            logger.warning(
                "The weight decay of group %d is %g from here on; it was %g.", number, decay, group["weight_decay"]
            )
            group["weight_decay"] = decay
        if isinstance(scheduler, LambdaLR):  # as all of transformers' are that know how long a run is
            group["lr"] = rate * scheduler.lr_lambdas[number](scheduler.last_epoch)
        elif before:
            group["lr"] *= rate / before
        group["initial_lr"] = rate
    if isinstance(scheduler, LRScheduler):
        scheduler.base_lrs = [rate for rate, _ in asked]
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
