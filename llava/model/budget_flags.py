"""The flags by which a command line asks for a budget of visual tokens, and the budget that they make."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

from llava.common.shown import shown
from llava.common.yaml_files import parse_yaml
from llava.compression.config import CompressionConfig, T2VConfig, V2VConfig
from llava.cost.scaling import for_depth

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BudgetFlags:
    """What a command line says of a budget; None where a flag is not given.

    Attributes:
        compression: a preset's name or a YAML file.
        dominant, contextual, cluster_width: `--dominant_num`, `--context_num` and `--cluster_width`, of V2V.
        layers, keep: `--layer_list` and `--image_token_ratio_list`, of T2V, such as '[16,24]' and '[0.5,0.0]'.
        salient: whether salient words of the question vote.
        scale_to_depth: whether the layers of `compression` are scaled to the model's depth.
    """

    compression: str | None = None
    dominant: int | float | None = None
    contextual: int | float | None = None
    cluster_width: int | None = None
    layers: str | None = None
    keep: str | None = None
    salient: bool | None = None
    scale_to_depth: bool = False

    def over(self, present: CompressionConfig, num_layers: int | None = None) -> CompressionConfig:
        """The compression that the flags ask for; without any, the one that the model has.

        The published flags override single values of `--compression` (or of the model's own) and say so in the log.

        Args:
            present: the model's own.
            num_layers: number of layers of the model's decoder; `scale_to_depth` needs it.

        Raises:
            ValueError: if a value is out of range, a stage is asked for only in part, or there is nothing to scale.
        """
        if self.scale_to_depth and (self.compression is None or self.layers is not None):
            what = "no --compression is given" if self.compression is None else "--layer_list names them already"
            raise ValueError(f"--scale-to-depth scales the layers of --compression, but {what}; leave it out.")
        base = present if self.compression is None else self._named(num_layers)
        v2v = {
            "dominant": _count_or_share(self.dominant),
            "contextual": _count_or_share(self.contextual),
            "cluster_width": self.cluster_width,
        }
        t2v = {
            "layers": parse_list("--layer_list", self.layers),
            "keep": parse_list("--image_token_ratio_list", self.keep),
            "queries": None if self.salient is None else _queries(self.salient, base.t2v),
        }
        if self.layers is not None and base.t2v is None and self.salient is None:
            logger.info(
                "t2v.queries is last, the paper's variant C; the released code's is text: name it in a YAML file."
            )
        chosen = CompressionConfig(
            v2v=_override(V2VConfig, base.v2v, v2v, "--dominant_num and --context_num"),
            t2v=_override(T2VConfig, base.t2v, t2v, "--layer_list and --image_token_ratio_list"),
        )
        return base if chosen == base else chosen  # a preset as it is fits only the models that it was made for

    def _named(self, num_layers: int | None) -> CompressionConfig:
        """What `--compression` names, for a decoder of so many layers."""
        if not self.scale_to_depth:
            return CompressionConfig.resolve(self.compression)
        if num_layers is None:
            raise ValueError("--scale-to-depth needs a model, whose depth is not known here.")
        return for_depth(self.compression, num_layers, scale=True)


def _count_or_share(value: int | float | None) -> int | float | None:
    """A number of tokens as a whole number, also where the program's flag reads 300 as 300.0; shares stay."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def parse_list(flag: str, text: str | None) -> list[float] | None:
    """Read a list such as '[16,24]'; None stays None.

    Raises:
        ValueError: if the text is not a list of numbers.
    """
    if text is None:
        return None
    problem = f"{flag} is {shown(text)}; it must be a list of numbers such as '[16,24]'"
    try:
        value = parse_yaml(text, "the value")
    except ValueError as error:
        raise ValueError(f"{problem} ({error}).".replace(".).", ").")) from error
    if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
        raise ValueError(f"{problem}.")
    return value


def _queries(use_salient_tokens: bool, t2v: T2VConfig | None) -> str:
    if use_salient_tokens:
        return "salient"
    return t2v.queries if t2v is not None and t2v.queries != "salient" else "last"


def _override(kind: Any, base: Any, values: dict[str, Any], needed: str) -> Any:
    """`base` with the values that are not None; a new stage needs all values that have no default."""
    given = {name: value for name, value in values.items() if value is not None}
    if not given:
        return base
    if base is not None:
        for name, value in given.items():
            logger.info("%s: %s overrides %s.", name, value, getattr(base, name))
        return dataclasses.replace(base, **given)
    required = [entry.name for entry in dataclasses.fields(kind) if entry.default is dataclasses.MISSING]
    if any(name not in given for name in required):
        raise ValueError(f"To switch a compression stage on by flags, give {needed}, or name a --compression.")
    return kind(**given)
