"""What lmms-eval finds this project's model by: an entry point of the group `lmms_eval.models`."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The model `duet_llava` for lmms-eval's registry; lmms-eval calls this where it is installed."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="duet_llava", simple_class_path="llava.eval.harnesses.lmms_eval_model.DuetLlava")
