"""As much of lmms-eval and VLMEvalKit as the adapters touch, for where the real ones are not installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class CacheHook:
    """Takes partial results and forgets them."""

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        return None


class lmms:  # noqa: N801  (its name there)
    """Base of lmms-eval's models."""

    is_simple = True

    def __init__(self) -> None:
        self._rank = 0
        self._world_size = 1
        self.cache_hook = CacheHook()
        self.task_dict: dict[str, Any] = {}


@dataclass
class GenerationResult:
    """What lmms-eval takes an answer out of untouched."""

    text: Any
    token_counts: Any = None


@dataclass(frozen=True)
class ModelManifest:
    """How lmms-eval learns about a model."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class BaseModel:
    """Base of VLMEvalKit's models."""

    def __init__(self) -> None:
        self.dump_image_func = None

    def dump_image(self, line: Any, dataset: str) -> list[str]:
        return [f"{dataset}/{line['index']}.jpg"]


def dataset_type(name: str) -> str:
    """What kind of questions a dataset of VLMEvalKit asks."""
    return "MCQ" if name.startswith("MMBench") else "VQA"


CONTENTS: dict[str, dict[str, Any]] = {
    "lmms_eval": {},
    "lmms_eval.api": {},
    "lmms_eval.api.model": {"lmms": lmms},
    "lmms_eval.api.instance": {"GenerationResult": GenerationResult},
    "lmms_eval.models": {},
    "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    "vlmeval": {},
    "vlmeval.vlm": {},
    "vlmeval.vlm.base": {"BaseModel": BaseModel},
    "vlmeval.dataset": {"DATASET_TYPE": dataset_type},
}


def modules(package: str) -> dict[str, ModuleType]:
    """Modules of a package by name."""
    made = {}
    for name, content in CONTENTS.items():
        if name.partition(".")[0] == package:
            module = made[name] = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None, is_package=True)
            module.__dict__.update(content)
    return made
