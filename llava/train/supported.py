"""Which of transformers' `TrainingArguments` a run honours, which it refuses, and which change nothing here.

The tables are those of supported.yaml. Every field of the tested transformers release stands in exactly one; a test
fails when one is missing, so that a new release is read before it is used. Those honoured were tried in a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import transformers

from llava.common.yaml_files import by_name, table_beside

_TABLES = table_beside(__file__)
HONOURED = frozenset(name for names in _TABLES["honoured"].values() for name in names)
# Fields of which some values are honoured: those, and what is wrong with the others.
SOME_VALUES: dict[str, tuple[list[str], str]] = {
    name: (values["accepted"], values["others"]) for name, values in _TABLES["some_values"].items()
}
REFUSED = by_name(_TABLES["refused"])
# Field -> why it has no effect here, whatever its value.
WITHOUT_EFFECT_HERE: dict[str, str] = _TABLES["without_effect"]
_NOTHING = ("", "none", "null", "[]", "{}")
_OPTIONAL = ("torch_compile_backend", "torch_compile_mode")


def support_of(field: str) -> str:
    """What becomes of a field: `honoured`, `some values`, `refused` or `no effect`.

    Raises:
        KeyError: if it stands in no table.
    """
    tables: Mapping[str, Any] = {
        "honoured": HONOURED,
        "some values": SOME_VALUES,
        "refused": REFUSED,
        "no effect": WITHOUT_EFFECT_HERE,
    }
    for name, table in tables.items():
        if field in table:
            return name
    raise KeyError(f"transformers' TrainingArguments.{field} stands in no table of llava/train/supported.py.")


def require_supported(said: Mapping[str, Any]) -> None:
    """Check the flags of a command line against the tables, before anything is made from them.

    Args:
        said: values of transformers' arguments by name, as far as they were given; others are passed over.

    Raises:
        ValueError: if one asks for something that a run cannot do; says why, and what is accepted.
    """
    own = {field.name: field for field in dataclasses.fields(transformers.TrainingArguments)}
    for name, value in said.items():
        if name in REFUSED and name in own and not _asks_nothing(value, own[name]):
            raise ValueError(f"--{name} {value} cannot be honoured: {REFUSED[name]}. Leave it out.")
        if name in SOME_VALUES:
            accepted, why = SOME_VALUES[name]
            if str(value) not in accepted:
                raise ValueError(f"--{name} is {value!r}; accepted are {', '.join(accepted)}: {why}.")
    _require_optimizer_arguments(said.get("optim_args"), str(said.get("optim", "adamw_torch_fused")))


def is_left_out(name: str, values: Sequence[str]) -> bool:
    """Whether a flag asks for nothing in a word, such as `None`; of what is refused, or may be None."""
    words = [value.lower() for value in values]
    return (name in REFUSED or name in _OPTIONAL) and words in ([word] for word in _NOTHING)


# Fields that this program sets itself to something else than transformers' default.
_OURS: dict[str, Any] = {"remove_unused_columns": False, "logging_nan_inf_filter": False}


def _asks_nothing(value: Any, field: dataclasses.Field[Any]) -> bool:
    """Whether a value is the one that a run has anyway."""
    if field.name in _OURS:
        return bool(value == _OURS[field.name])
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value == default or value in (None, "", [], {}):
        return True
    if isinstance(default, bool):
        return False
    return value is False or str(value).lower() in ("none", "false", "no", "0", "0.0", "[]", "{}")


def _require_optimizer_arguments(text: str | None, optimizer: str) -> None:
    """transformers passes over arguments that an optimizer does not have."""
    if not text:
        return
    accepted = _TABLES["optimizer_arguments"].get(optimizer, ())
    for pair in text.replace(" ", "").split(","):
        name, equals, value = pair.partition("=")
        if name not in accepted or not (equals and value):
            raise ValueError(
                f"--optim_args holds {pair!r}, which {optimizer} does not have; "
                + (f"accepted are {', '.join(accepted)}, as name=value." if accepted else "it has none; leave it out.")
            )


def require_own_loss(options: Mapping[str, Any], args: transformers.TrainingArguments) -> None:
    """Check what a program hands to the trainer itself.

    Args:
        options: options of transformers' Trainer.
        args: arguments of the run.

    Raises:
        ValueError: if an option would be passed over, or would see logits that are not those of the labels.
    """
    for name in ("compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func", "model_init"):
        if options.get(name) is not None:
            raise ValueError(
                f"{name} cannot be honoured: the loss is computed behind the last drop of visual tokens, and held-out "
                "data gives that loss and no logits. Leave it out, and measure answers with python -m llava.eval.run."
            )
    require_supported({name: getattr(args, name) for name in ("label_smoothing_factor", "neftune_noise_alpha")})
