"""Loads models of the families that stay transformers' own: whole, or a projector or adapters over their base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.checkpoints.contents import Checkpoint, Kind
from llava.checkpoints.fit import (
    conversions_of,
    on_meta,
    require_complete,
    require_same_language_model,
    without_reports,
)
from llava.checkpoints.lora import merge_lora
from llava.checkpoints.settings_files import read_by_library
from llava.model.weights import load_projectors


def load_family(checkpoint: Checkpoint, options: Mapping[str, Any], config: Any = None) -> Any:
    """A model of transformers' class, every weight of it.

    Args:
        checkpoint: checkpoint of a whole model.
        options: options of transformers' `from_pretrained`.
        config: configuration used instead of the checkpoint's, where a projector or adapters bring one.

    Raises:
        ValueError: if a weight is missing, unknown or of another shape; names it. Or if the files are quantised.
    """
    folder, stock = checkpoint.folder, checkpoint.family.stock
    config = checkpoint.config if config is None else config
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{str(folder)!r} is a {config.model_type} whose files are quantised (quantization_config in its "
            "config.json); open the model it was made from, where --load-4bit and --load-8bit quantise while loading."
        )
    outline = on_meta(stock, config)
    renaming = None if checkpoint.key_mapping is None else dict(checkpoint.key_mapping)
    require_complete(outline, checkpoint.files, renaming)
    with without_reports(), read_by_library(folder):
        model = stock.from_pretrained(folder, config=config, key_mapping=renaming, **options)
    # A model of another layout is saved in transformers', under the names that a new one gets.
    model._weight_conversions = conversions_of(outline, checkpoint.files) if renaming is None else None
    return model


def load_family_over(base: Checkpoint, checkpoint: Checkpoint, options: Mapping[str, Any]) -> Any:
    """A compressed model of transformers with the projector or the adapters that were trained on it.

    Raises:
        ValueError: if they do not fit the base.
    """
    config = base.config if checkpoint.config is None else checkpoint.config
    require_same_language_model(config.get_text_config(), base.config.get_text_config(), base.folder)
    model = base.family.of(load_family(base, options, config), None)
    if checkpoint.kind is Kind.LORA:
        return merge_lora(model, checkpoint.folder)
    load_projectors(model, checkpoint.files[0])
    return model
