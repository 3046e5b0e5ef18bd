"""Which conversation template a model is asked in."""

from __future__ import annotations

import logging
from typing import Any

from llava.conversation import get_template, recorded_template
from llava.inference.inputs import conv_mode_of

logger = logging.getLogger(__name__)


def choose_template(config: Any, model_name: str, asked: str | None = None, usual: str | None = None) -> str:
    """The conversation template to ask a model in.

    What was asked for, else what its `config.json` records of training, else what is usual in the program, else what
    its name says. Where what was asked for makes other prompts than training did, a warning says so.

    Args:
        config: of the model.
        model_name: of `get_model_name_from_path`.
        asked: key of `conv_templates`, None where nothing was asked for.
        usual: where nothing is recorded; None goes by the model's name.

    Raises:
        ValueError: if the template that is asked for or recorded does not exist.
    """
    recorded = recorded_template(config)
    if asked is None:
        return recorded or usual or conv_mode_of(model_name)
    if recorded is not None and get_template(asked) != get_template(recorded):
        logger.warning(
            "The model was trained in conversation template %s, as its config.json says; %s was asked for and is used.",
            recorded, asked,
        )  # fmt: skip
    return asked
