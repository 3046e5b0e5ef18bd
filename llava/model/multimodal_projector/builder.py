"""Projectors from the vision tower's width to the language model's."""

from __future__ import annotations

import re

from torch import nn

from llava.model.llava_config import LlavaConfig


def build_vision_projector(config: LlavaConfig) -> nn.Module:
    """The projector that `config.mm_projector_type` names: `linear`, `mlpNx_gelu` (N linear layers) or `identity`.

    Raises:
        ValueError: for any other name, and for `identity` between different widths.
    """
    kind, inputs, outputs = config.mm_projector_type, config.mm_hidden_size, config.hidden_size
    if not isinstance(inputs, int):
        raise ValueError("config.json names a vision tower, but not its width; write mm_hidden_size into it.")
    if kind == "linear":
        return nn.Linear(inputs, outputs)
    if kind == "identity":
        if inputs != outputs:
            raise ValueError(
                f"mm_projector_type is identity, but the tower is {inputs} wide and the language model {outputs}; "
                "use linear or mlp2x_gelu."
            )
        return nn.Identity()
    depth = re.fullmatch(r"mlp([1-9]\d*)x_gelu", kind)
    if depth is None:
        raise ValueError(
            f"mm_projector_type is {kind!r}; it must be linear, identity or mlpNx_gelu such as mlp2x_gelu."
        )
    layers: list[nn.Module] = [nn.Linear(inputs, outputs)]
    for _ in range(int(depth.group(1)) - 1):
        layers += [nn.GELU(), nn.Linear(outputs, outputs)]
    return nn.Sequential(*layers)
