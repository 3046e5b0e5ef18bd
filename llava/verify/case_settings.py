"""From the settings of a case to a configuration, and where published behaviour was not copied.

The published program accepts settings that mean something else than they say. Where what it does can be said
by another setting, that one is replayed; else the case is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from llava.compression import CompressionConfig, T2VConfig, V2VConfig
from llava.verify.case import Case, UnreadableCaseError
from llava.verify.models import PUBLISHED_SELECT_LAYER

_Made = TypeVar("_Made")


class RefusedError(ValueError):
    """A setting that the published program accepts and this project does not; the message says why."""


@dataclass(frozen=True)
class Deviation:
    """A difference from the published program that a case's settings bring about.

    Attributes:
        reason: reason in words.
        excuses: regular expression of the quantities that may differ; empty where an equivalent setting is
            replayed, so that everything must agree.
    """

    reason: str
    excuses: str = ""


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        compression: both stages.
        select_layer: layer of the tower, None for the model's own.
        deviations: found on the way.
    """

    compression: CompressionConfig
    select_layer: int | None
    deviations: tuple[Deviation, ...]


def read_settings(case: Case, model_config: dict[str, Any]) -> Settings:
    """Settings of a case of the kinds `v2v`, `full` and `generate`.

    Raises:
        UnreadableCaseError: if a setting is missing or of the wrong type.
        RefusedError: if a setting makes no sense and the published program ran all the same.
    """
    v2v, deviations = _read_v2v(case.settings.get("v2v"))
    t2v = _read_t2v(case.settings.get("t2v"))
    select_layer = None
    model_layer = model_config.get("mm_vision_select_layer", PUBLISHED_SELECT_LAYER)
    if v2v is not None and model_layer != PUBLISHED_SELECT_LAYER:
        select_layer = PUBLISHED_SELECT_LAYER
        reason = (
            f"mm_vision_select_layer is {model_layer}: the published V2V ignores it and takes layer -2, this project "
            "follows it; replayed with -2"
        )
        deviations.append(Deviation(reason))
    depth = model_config.get("num_hidden_layers")
    if t2v is not None and depth is not None:
        or_refuse(t2v.check_depth, depth)
    return Settings(CompressionConfig(v2v, t2v), select_layer, tuple(deviations))


def _read_v2v(data: Any) -> tuple[V2VConfig | None, list[Deviation]]:
    if data is None:
        return None, []
    dominant, contextual, width = (
        _typed(data, f"v2v.{key}", key, int) for key in ("dominant", "contextual", "cluster_width")
    )
    if contextual > 0 and width > 0:
        return or_refuse(V2VConfig, dominant, contextual, width), []
    setting = f"contextual {contextual}" if contextual <= 0 else f"cluster_width {width}"
    made = "no contextual token" if contextual == 0 else "an error"
    reason = (
        f"{setting}: the published V2V makes 1 contextual token all the same, here it is {made}; "
        "replayed with contextual 1, cluster_width 1"
    )
    return or_refuse(V2VConfig, dominant, 1, 1), [Deviation(reason)]


def _read_t2v(data: Any) -> T2VConfig | None:
    if data is None:
        return None
    layers = _typed(data, "t2v.layer_list", "layer_list", list)
    ratios = _typed(data, "t2v.ratio_list", "ratio_list", list)
    for value in (*layers, *ratios):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UnreadableCaseError(f"t2v holds {value!r} in case.json; layer_list and ratio_list must be numbers.")
    if not layers and not ratios:
        return None
    queries = "salient" if data.get("use_salient_idxs") else "text"
    return or_refuse(T2VConfig, tuple(layers), tuple(ratios), queries=queries)


def _typed(data: Any, name: str, key: str, kind: type) -> Any:
    value = data.get(key) if isinstance(data, dict) else None
    if isinstance(value, bool) or not isinstance(value, kind):
        raise UnreadableCaseError(f"{name} is {value!r} in case.json; it must be of type {kind.__name__}.")
    return value


def or_refuse(make: Callable[..., _Made], *args: Any, **kwargs: Any) -> _Made:
    """Call; a ValueError, which is how this project rejects a setting, becomes a RefusedError."""
    try:
        return make(*args, **kwargs)
    except ValueError as error:
        raise RefusedError(f"the published program runs this setting, here it is an error: {error}") from error
