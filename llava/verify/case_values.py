"""What kinds read from a case's settings and inputs; each raises UnreadableCaseError where it is missing or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava.common.shown import shown
from llava.verify.case import Case, UnreadableCaseError
from llava.verify.case_settings import Deviation

Measured = dict[str, Tensor | None]
Replayed = tuple[Measured, dict[str, Tensor], list[Deviation]]
"""What was measured, what was recorded, and what may differ."""
MOST_FRAMES = 4096
"""Frames of a clip that a case may ask for."""


def need(case: Case, name: str) -> Any:
    """A setting of `case.json`, which may not be null."""
    if case.settings.get(name) is None:
        raise UnreadableCaseError(f"case.json has no {name}, which a case of kind {case.kind} needs.")
    return case.settings[name]


def need_number(case: Case, name: str) -> int:
    """A setting that is a whole number from 1 up."""
    value = need(case, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnreadableCaseError(f"{name} is {value!r} in case.json; it must be a whole number of at least 1.")
    return value


def need_frames(case: Case) -> int:
    """`num_frames`, a whole number from 1 to `MOST_FRAMES`."""
    value = need_number(case, "num_frames")
    if value > MOST_FRAMES:
        raise UnreadableCaseError(f"num_frames is {value} in case.json; at most {MOST_FRAMES} are accepted.")
    return value


def need_list(case: Case, name: str) -> list[Any]:
    """A setting that is a list."""
    value = need(case, name)
    if not isinstance(value, list):
        raise UnreadableCaseError(f"{name} is {value!r} in case.json; it must be a list.")
    return value


def need_tensor(case: Case, name: str) -> Tensor:
    """A tensor of `inputs.safetensors`."""
    if name not in case.inputs:
        raise UnreadableCaseError(f"inputs.safetensors has no {name!r}, which a case of kind {case.kind} needs.")
    return case.inputs[name]


def as_picture(pixels: Tensor) -> Image.Image:
    """uint8 [height, width, 3] as an image in RGB."""
    if pixels.dim() != 3 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8:
        raise UnreadableCaseError(
            f"A picture is {pixels.dtype} {list(pixels.shape)}; it must be uint8 [height, width, 3]."
        )
    return Image.fromarray(np.ascontiguousarray(pixels.numpy()))


def recorded_with(case: Case, name: str) -> dict[str, Tensor]:
    """What a case recorded, a whole number or a list of them in its `case.json` among it, if there is one.

    Raises:
        UnreadableCaseError: if it is something else.
    """
    said = case.settings.get(name)
    if said is None:
        return dict(case.outputs)
    if not all(type(number) is int for number in (said if isinstance(said, list) else [said])):
        raise UnreadableCaseError(f"{name} is {shown(said)} in case.json; it must be a whole number or a list of them.")
    return {**case.outputs, name: torch.tensor(said)}


def require_agreement(case: Case, held: Mapping[str, Any]) -> None:
    """Refuse a case whose `case.json` says other things than its tensors and its model.

    Args:
        case: settings that it lacks, or that are null, are not checked.
        held: by the names of settings, what the case holds.

    Raises:
        UnreadableCaseError: if one differs.
    """
    for name, value in held.items():
        said = case.settings.get(name)
        if said is not None and (type(said), said) != (type(value), value):
            raise UnreadableCaseError(f"{name} is {shown(said)} in case.json, but the case holds {shown(value)}.")


def choice_of(case: Case, name: str, accepted: Sequence[Any]) -> Any:
    """A setting that is one of a few; None where the case lacks it, or it is null.

    Raises:
        UnreadableCaseError: if it is another.
    """
    said = case.settings.get(name)
    if said is not None and not any(type(said) is type(one) and said == one for one in accepted):
        raise UnreadableCaseError(
            f"{name} is {shown(said)} in case.json; accepted are {', '.join(map(str, accepted))}."
        )
    return said


def longest_row(case: Case) -> int | None:
    """`tokenizer_model_max_length`: positions that rows are cut to; None cuts none.

    Raises:
        UnreadableCaseError: if it is no whole number from 1 up.
    """
    said = case.settings.get("tokenizer_model_max_length")
    if said is not None and (isinstance(said, bool) or not isinstance(said, int) or said < 1):
        raise UnreadableCaseError(
            f"tokenizer_model_max_length is {shown(said)} in case.json; it must be a whole number from 1 up, or null."
        )
    return said
