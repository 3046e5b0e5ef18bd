"""What kinds read from a case's settings and inputs; each raises UnreadableCaseError where it is missing or wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava.verify.case import Case, UnreadableCaseError
from llava.verify.case_settings import Deviation

Measured = dict[str, Tensor | None]
Replayed = tuple[Measured, dict[str, Tensor], list[Deviation]]
"""What was measured, what was recorded, and what may differ."""


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
    """The outputs, with the numbers of a setting among them where `case.json` has it."""
    said = case.settings.get(name)
    return {**case.outputs, **({} if said is None else {name: torch.tensor(said)})}
