"""Every option of transformers' `generate` and `forward`, and what a model with compression makes of it.

`generate` refuses by the tables of generation_options.yaml, docs/plug-in.md shows them, and a test holds them against
the signatures of the installed transformers: an option of a later release has to be looked at first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import GenerationConfig

from llava.common.yaml_files import by_name, table_beside

_TABLES = table_beside(__file__)
REFUSED = by_name(_TABLES["refused"])
"""What `generate` refuses wherever a compression acts, and why."""
REFUSED_ON_EMBEDDINGS = by_name(_TABLES["refused_on_embeddings"])
"""What `LlavaLlamaForCausalLM.generate` refuses besides, because it hands embeddings on."""
NOTED: dict[str, str] = _TABLES["noted"]
"""What works with a remark."""
WORKS = tuple(name for names in _TABLES["works"].values() for name in names)
"""What works as in the stock model."""
WITHOUT_EFFECT: tuple[str, ...] = tuple(_TABLES["without_effect"])
"""What belongs to options that are refused or to models that cannot be compressed, and is not looked at."""

_HARMLESS: dict[str, Callable[[Any], bool]] = {
    "num_beam_groups": lambda value: value == 1,
    "diversity_penalty": lambda value: value == 0,
    "penalty_alpha": lambda value: value == 0,
    "encoder_repetition_penalty": lambda value: value == 1,
    "encoder_no_repeat_ngram_size": lambda value: value == 0,
    "custom_generate": callable,
    "mm_encoder_outputs": lambda value: not value,
}
"""Values of refused options that ask for nothing."""


def asked(name: str, given: Mapping[str, Any], *configs: GenerationConfig | None) -> Any:
    """An option as `generate` reads it: of the call, else of the first configuration that says something."""
    sources = [given.get(name), *(getattr(config, name, None) for config in configs)]
    return next((value for value in sources if value is not None), None)


def check_options(refused: Mapping[str, str], given: Mapping[str, Any], *configs: GenerationConfig | None) -> None:
    """Refuse what `generate` cannot do, before anything is computed.

    Args:
        refused: options and why they cannot be.
        given: arguments of the call, by name.
        configs: the call's `generation_config` and the model's own.

    Raises:
        ValueError: names the option, its value, why it cannot be, and what to do.
    """
    for name, reason in refused.items():
        value = asked(name, given, *configs)
        if value is None or value is False or _HARMLESS.get(name, lambda _: False)(value):
            continue
        shown = repr(value) if isinstance(value, (str, int, float, bool, list)) else f"a {type(value).__name__}"
        raise ValueError(f"{name} is {shown}, but this cannot be: {reason}.")


def check_chosen_logits(return_logits: Any) -> None:
    """Raise ValueError for `return_logits=False` of `forward`, given to `generate`, which chooses tokens by logits."""
    if return_logits is False:
        raise ValueError("return_logits is False, but generate chooses tokens by their logits; leave it out.")
