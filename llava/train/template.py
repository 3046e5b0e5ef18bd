"""The conversation template of a run: chosen, looked at with the tokenizer, and recorded in what is saved."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava.checkpoints.settings_files import read_config
from llava.checkpoints.tokenizer import stop_at_end_mark
from llava.conversation import SeparatorStyle, get_template, recorded_template
from llava.data.end_marks import end_mark_warning
from llava.train.arguments import ModelArguments, TrainingArguments

logger = logging.getLogger(__name__)


def settle_template(config: Any, model_args: ModelArguments, training_args: TrainingArguments) -> None:
    """Take the template that the checkpoint, or the adapters that training goes on with, were trained in.

    A `--version` that makes other prompts is used, with a warning. So is `plain`, that of pre-training; as nobody can
    be asked in it, `record_template` keeps the recorded one.

    Args:
        config: configuration of the checkpoint.
        model_args: its `version` is changed where the command line does not say it.
        training_args: arguments of the run.

    Raises:
        ValueError: if a template does not exist.
    """
    asked = get_template(model_args.version)
    recorded = _recorded(config, training_args.lora_weight_path)
    if recorded is None or get_template(recorded) == asked:
        return
    default = type(model_args).version
    if "version" not in model_args.given and model_args.version == default:
        logger.info("The checkpoint was trained in template %s, which goes on: no --version was given.", recorded)
        model_args.version = recorded
    elif asked.sep_style is SeparatorStyle.PLAIN:
        level = logging.INFO if model_args.tune_mm_mlp_adapter else logging.WARNING
        logger.log(
            level,
            "The checkpoint was trained in template %s, as its config.json says; --version %s is used for this "
            "training, and %s stays recorded, as nobody can be asked in %s.",
            recorded,
            model_args.version,
            recorded,
            model_args.version,
        )
    else:
        logger.warning(
            "The checkpoint was trained in template %s, as its config.json says; --version %s is used and recorded in "
            "its place.",
            recorded,
            model_args.version,
        )


def record_template(model: Any, tokenizer: PreTrainedTokenizerBase, template: str, adapters: str | None = None) -> None:
    """Write the template into the model's configuration, and what ends an answer among the tokens that end one.

    `plain` takes the place of no other that is recorded. A template whose end mark is not one token of the tokenizer
    is warned about.

    Args:
        model: its `config` and `generation_config` are changed.
        tokenizer: tokenizer of the model.
        template: key of `conv_templates` that is trained in.
        adapters: folder of the adapters that training goes on with.
    """
    plain = get_template(template).sep_style is SeparatorStyle.PLAIN
    recorded = (_recorded(model.config, adapters) if plain else None) or template
    model.config.conversation_template = recorded
    stop_at_end_mark(model.generation_config, tokenizer, recorded)
    warning = end_mark_warning(template, tokenizer) if tokenizer.is_fast else None
    if warning is not None:
        logger.warning("%s", warning)


def _recorded(config: Any, adapters: str | None) -> str | None:
    """The template that the adapters, or else the checkpoint, were trained in; None where neither says."""
    path = Path(adapters or "") / "config.json"
    beside = recorded_template(read_config(path)) if adapters and path.is_file() else None
    return recorded_template(config) if beside is None else beside
