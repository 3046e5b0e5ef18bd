"""Reading a recorded case: its settings, what goes in and what came out.

Shapes: B rows, T positions of the prompt, M images.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llava.common.json_files import read_object
from llava.common.shown import shown
from llava.verify.kinds import KINDS, Contents

CASE_FILES = ("case.json", "inputs.safetensors", "outputs.safetensors")


class UnreadableCaseError(ValueError):
    """A case that cannot be replayed; the message says what is missing or wrong in which file."""


@dataclass(frozen=True)
class Case:
    """One recorded case.

    Attributes:
        folder: where it was read.
        kind: one of `llava.verify.kinds.KINDS`.
        model_folder: the model it ran on; the case's own folder where it ran on none.
        training: whether training's rule decides who votes (labels are known), not inference's.
        settings: the whole of `case.json`.
        inputs: tensors that go in.
        outputs: tensors that came out.
    """

    folder: Path
    kind: str
    model_folder: Path
    training: bool
    settings: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def name(self) -> str:
        """`<kind>/<case>`, by its folders."""
        return case_name(self.folder)

    def images(self) -> Tensor | None:
        """Pixel values float32 [M, 3, height, width], or None where the case has no image."""
        pixels = self.inputs.get("pixels_u8")
        if pixels is None:
            return None
        images = pixels.float() / 127.5 - 1
        blank = list(self.settings.get("dummy_images") or [])
        if self.settings.get("zero_image"):
            blank.append(len(images) - 1)
        images[blank] = 0
        return images


def case_name(folder: Path) -> str:
    """How reports call the case in a folder."""
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}"


def find_cases(root: Path) -> list[Path]:
    """Folders under `root` (itself included) that hold at least one file of a case, sorted.

    Links are followed; a folder that is reached twice counts once.
    """
    found, seen = [], set[str]()
    for folder, below, files in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            below.clear()
        elif any(name in files for name in CASE_FILES):
            found.append(Path(folder))
        seen.add(place)
    return sorted(found)


def read_case(folder: Path) -> Case:
    """Read the three files of a case.

    Raises:
        UnreadableCaseError: if a file, a setting or a tensor is missing or is not what `case.json` says.
    """
    settings = read_json(folder / "case.json")
    kind = settings.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UnreadableCaseError(f"kind is {shown(kind)} in case.json; known kinds are {', '.join(KINDS)}.")
    contents = KINDS[kind]
    inputs = _read_tensors(folder, settings, "inputs") if contents.has_inputs else {}
    outputs = _read_tensors(folder, settings, "outputs") if contents.has_outputs else {}
    _check_contents(kind, contents, inputs, outputs)
    model = _model_folder(folder, settings) if contents.has_model else folder
    return Case(folder, kind, model, contents.has_mode and _is_training(settings), settings, inputs, outputs)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UnreadableCaseError if there is none."""
    if not path.is_file():
        raise UnreadableCaseError(f"{path.name} is missing from {path.parent}.")
    try:
        return read_object(path, "record the case anew", strict=False)
    except ValueError as error:
        raise UnreadableCaseError(str(error)) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; UnreadableCaseError if it cannot be read."""
    if not path.is_file():
        raise UnreadableCaseError(f"{path.name} is missing from {path.parent}.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UnreadableCaseError(f"{path.name} is not a readable safetensors file: {error}.") from error


def _read_tensors(folder: Path, settings: dict[str, Any], part: str) -> dict[str, Tensor]:
    """`inputs.safetensors` or `outputs.safetensors`, checked against the list of tensors in `case.json`."""
    tensors = read_weights(folder / f"{part}.safetensors")
    listed = settings.get(part) or {}
    if not isinstance(listed, dict) or not all(isinstance(entry, dict) for entry in listed.values()):
        raise UnreadableCaseError(f"{part} is {shown(listed)} in case.json; it must be an object of objects.")
    for name, entry in listed.items():
        if name not in tensors:
            raise UnreadableCaseError(f"{part}.safetensors has no tensor {name!r}, which case.json lists.")
        shape, said = list(tensors[name].shape), entry.get("shape", list(tensors[name].shape))
        dtype = str(tensors[name].dtype).removeprefix("torch.")
        if shape != said or dtype != entry.get("dtype", dtype):
            raise UnreadableCaseError(
                f"{name!r} in {part}.safetensors is {dtype} {shape}, but case.json says {entry.get('dtype')} {said}."
            )
    return tensors


def _check_contents(kind: str, contents: Contents, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    missing = [name for name in contents.inputs if name not in inputs]
    if missing:
        raise UnreadableCaseError(f"inputs.safetensors has no {missing[0]!r}, which a case of kind {kind} needs.")
    if contents.has_outputs and not any(re.fullmatch(contents.needed, name) for name in outputs):
        raise UnreadableCaseError(
            f"outputs.safetensors has no {contents.needed!r}, so there is nothing to compare with."
        )
    for name in outputs:
        if not any(re.fullmatch(known, name) for known in contents.outputs):
            raise UnreadableCaseError(
                f"outputs.safetensors records {name!r}, which a case of kind {kind} does not have."
            )
    _check_shapes(inputs, contents.pixel_axes)


def _check_shapes(inputs: dict[str, Tensor], pixel_axes: int) -> None:
    """Pixels are uint8 [M, 3, height, width] (clips with frames too); all beside the prompt has its shape [B, T]."""
    pixels = inputs.get("pixels_u8")
    if pixels is not None and (pixels.dim() != pixel_axes or pixels.dtype != torch.uint8):
        expected = "[images, 3, height, width]" if pixel_axes == 4 else "[clips, 3, frames, height, width]"
        raise UnreadableCaseError(f"'pixels_u8' is {pixels.dtype} {list(pixels.shape)}; it must be uint8 {expected}.")
    prompt = inputs.get("input_ids", inputs.get("attention_mask"))
    if prompt is None:
        return
    if prompt.dim() != 2:
        raise UnreadableCaseError(f"The prompt has shape {list(prompt.shape)}; it must be [rows, positions].")
    for name in ("attention_mask", "labels", "position_ids"):
        if name in inputs and inputs[name].shape != prompt.shape:
            raise UnreadableCaseError(
                f"{name!r} has shape {list(inputs[name].shape)}, but the prompt {list(prompt.shape)}; they must agree."
            )


def _model_folder(folder: Path, settings: dict[str, Any]) -> Path:
    """`models/<model>` beside the kinds, wherever above the case that is."""
    model = settings.get("model")
    if not isinstance(model, str):
        raise UnreadableCaseError("case.json names no model.")
    for parent in folder.resolve().parents:
        candidate = parent / "models" / model
        if (candidate / "config.json").is_file():
            return candidate
    raise UnreadableCaseError(f"There is no models/{model}/config.json in any folder above {folder}.")


def _is_training(settings: dict[str, Any]) -> bool:
    mode = str(settings.get("mode"))
    if mode not in ("train", "inference"):
        raise UnreadableCaseError(f"mode is {settings.get('mode')!r} in case.json; it must be train or inference.")
    return mode == "train"
