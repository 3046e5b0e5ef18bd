"""Weights that files may hold transposed: of Qwen3-VL's experts, published as [experts, inputs, outputs].

transformers holds them as [experts, outputs, inputs], transposes them where it loads another shape than the model's,
and saves them as it holds them. Under ZeRO-3 it sees no shapes and always transposes. So models that are opened here
save them as they are published, which every program opens.

Where both shapes are the same (as many inputs as outputs) nothing is transposed, as in transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.core_model_loading import Transpose, WeightConverter

Shape = tuple[int, ...]


def fitted_shapes(rules: Sequence[Any], held: Mapping[str, Shape], expected: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of a file's weights as transformers loads them.

    Args:
        rules: transformers' rules for the model.
        held: shapes in the file, by the names in the model.
        expected: shapes in the model.
    """
    turned = _turned(rules, held, expected)
    return {name: _swapped(held[name], turned[name]) if name in turned else held[name] for name in held}


def fitted_weights(
    rules: Sequence[Any], held: Mapping[str, Tensor], expected: Mapping[str, Shape]
) -> dict[str, Tensor]:
    """A file's weights as transformers loads them; arguments as in `fitted_shapes`."""
    turned = _turned(rules, {name: tuple(held[name].shape) for name in held}, expected)
    return {name: held[name].transpose(*turned[name]) if name in turned else held[name] for name in held}


def saved_as_published(rules: Sequence[Any], expected: Mapping[str, Shape]) -> list[Any]:
    """The same rules, but those that transpose by the shape do so by name, which holds for saving under ZeRO-3 too.

    Args:
        rules: transformers' rules that a model was loaded by.
        expected: shapes in the model.
    """
    return [_by_name(rule, expected) for rule in rules]


def held_as_in_model(rules: Sequence[Any], held: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str | None:
    """A weight that a file holds as the model does, and that transformers would transpose under ZeRO-3; else None."""
    names = (name for name in held if held[name] == expected.get(name) and _dims(rules, name) is not None)
    return next(names, None)


def _by_name(rule: Any, expected: Mapping[str, Shape]) -> Any:
    dims = _dims_of(rule)
    if dims is None or any(_swapped(shape, dims) == shape for shape in _of_rule(rule, expected)):
        return rule
    always = rule.copy(rule._original_source_patterns, rule._original_target_patterns, operations=[Transpose(*dims)])
    always._was_used = True
    return always


def _turned(
    rules: Sequence[Any], held: Mapping[str, Shape], expected: Mapping[str, Shape]
) -> dict[str, tuple[int, int]]:
    """Which weights lie transposed in a file, and by which dimensions."""
    found = {}
    for name, shape in held.items():
        dims = _dims(rules, name)
        if dims is not None and shape != expected.get(name) and len(shape) > max(dims):
            found[name] = dims
    return found


def _dims(rules: Sequence[Any], name: str) -> tuple[int, int] | None:
    return next((dims for rule in rules if (dims := _dims_of(rule)) and rule.target_patterns[0] in name), None)


def _dims_of(rule: Any) -> tuple[int, int] | None:
    """The dimensions that a rule swaps where shapes ask for it; None of any other rule."""
    if not isinstance(rule, WeightConverter) or len(rule.operations) != 1:
        return None
    (operation,) = rule.operations
    swaps = isinstance(operation, Transpose) and operation.check_dims
    return (operation.dim0, operation.dim1) if swaps else None


def _of_rule(rule: Any, expected: Mapping[str, Shape]) -> Iterable[Shape]:
    return (shape for name, shape in expected.items() if rule.target_patterns[0] in name)


def _swapped(shape: Shape, dims: tuple[int, int]) -> Shape:
    order = list(shape)
    order[dims[0]], order[dims[1]] = shape[dims[1]], shape[dims[0]]
    return tuple(order)
