"""What a change of an argument between two starts of a run leads to: one table with every argument.

An argument that stands in no group is refused, so that a new one is refused until somebody has thought about it. The
table in docs/training.md is made from this one.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from llava.common.yaml_files import table_beside
from llava.conversation import conv_templates, get_template


class Change(enum.Enum):
    """What a changed argument leads to; docs/training.md shows these values."""

    REFUSED = "error: restore it, or begin with another `OUTPUT_DIR`"
    BY_CONTENT = "error if what it names or makes is another; another name or place of the same is not"
    APPLIED = "holds from the next step on, and the log says so"
    WARNED = "warning: the result will not be equal bit for bit"
    UNSEEN = "warning: images and videos are not part of the comparison"
    STEERING = (
        "error where the held-out loss steers the rate or chooses the weights (`--lr_scheduler_type "
        "reduce_lr_on_plateau` or `greedy`, `--load_best_model_at_end`; held-out data is compared by its content); "
        "else nothing"
    )
    CHOOSING = "error with `--load_best_model_at_end`, which chooses among what was saved; else nothing"
    HARMLESS = "nothing: the weights do not depend on it"


GROUPS = {Change[change.upper()]: frozenset(names) for change, names in table_beside(__file__).items()}
"""What changes lead to -> the arguments; from resuming.yaml."""
_OPTIONAL_RATES = ("mm_projector_lr", "mm_vision_tower_lr")
_RATES = ("learning_rate", *_OPTIONAL_RATES)
_BY_THE_LOSS = ("reduce_lr_on_plateau", "greedy")  # schedules that change the rate they find, and keep no first one


@dataclasses.dataclass(frozen=True)
class Difference:
    """An argument that changed.

    Attributes:
        name: name of the argument.
        then, now: its values.
        change: what to do about it.
    """

    name: str
    then: Any
    now: Any
    change: Change

    def __str__(self) -> str:
        return f"--{self.name} was {_shown(self.then)} and is {_shown(self.now)}"


def change_of(name: str) -> Change:
    """What a difference of this argument leads to."""
    return next((change for change, names in GROUPS.items() if name in names), Change.REFUSED)


def steered_by_the_loss(arguments: Mapping[str, Any]) -> bool:
    """Whether the held-out loss of a run decides on its learning rate."""
    return arguments.get("lr_scheduler_type") in _BY_THE_LOSS


def depends_on_held_out_data(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the held-out loss decides, at both starts, on the learning rate or on the weights that are kept."""
    return steered_by_the_loss(then) or _chooses(then, now)


def differences(then: Mapping[str, Any], now: Mapping[str, Any], tower_layers: int | None = None) -> list[Difference]:
    """Arguments that both starts know and that differ, those that are compared by their content left out.

    Args:
        then: values of the run that left a checkpoint, as `plain` gives them.
        now: values of the run that is to go on from it.
        tower_layers: layers of the tower, so that those counted from its end and from its front can be compared.
    """
    found = []
    for name in sorted(then.keys() & now.keys()):
        change = change_of(name)
        if _same(name, then[name], now[name], tower_layers) or change is Change.BY_CONTENT:
            continue
        if _is_unused(name, then, now) or name == "eval_data_path":  # its content is compared
            continue
        if name in _OPTIONAL_RATES and None in (then[name], now[name]):
            change = Change.REFUSED  # the optimizer sorts weights by whether they have a rate of their own
        if name in _RATES and steered_by_the_loss(then):
            change = Change.REFUSED  # nothing tells how far such a schedule had lowered the old rate
        if change is Change.STEERING:
            change = Change.REFUSED if depends_on_held_out_data(then, now) else Change.HARMLESS
        if change is Change.CHOOSING:
            change = Change.REFUSED if _chooses(then, now) else Change.HARMLESS
        found.append(Difference(name, then[name], now[name], change))
    return found


def plain(*arguments: Any) -> dict[str, Any]:
    """The values of argument classes as JSON can hold them, by name; access tokens are left out."""
    fields = ((field.name, group) for group in arguments for field in dataclasses.fields(group))
    return {name: _plain(getattr(group, name)) for name, group in fields if not name.endswith("_token")}


def _same(name: str, then: Any, now: Any, tower_layers: int | None) -> bool:
    """Whether two values ask for the same: templates by what they hold, layers of the tower by their place."""
    if name == "version" and then in conv_templates and now in conv_templates:
        return get_template(then) == get_template(now)
    if name == "mm_vision_select_layer" and tower_layers and isinstance(then, int) and isinstance(now, int):
        return then % (tower_layers + 1) == now % (tower_layers + 1)
    return bool(then == now)


def _chooses(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether both starts end with the weights of the lowest held-out loss."""
    return bool(then.get("load_best_model_at_end") and now.get("load_best_model_at_end"))


def _is_unused(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether an argument has no effect beside another one: epochs where steps are given, as in transformers."""
    return name == "num_train_epochs" and min(then.get("max_steps", -1), now.get("max_steps", -1)) > 0


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _shown(value: Any) -> str:
    return "not given" if value is None or value == "" else str(value)
