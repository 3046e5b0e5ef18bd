"""The fields of a chat completion's request: read strictly, so that none is passed over in silence.

What OpenAI's schema has and this server has not is refused in a sentence, but for values that ask for nothing
(`_NEUTRAL`) and fields that change no answer (`HARMLESS`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llava.common.presets import presets
from llava.common.shown import shown
from llava.compression.config import T2V_SCORES, V2V_SCORES, CompressionConfig
from llava.inference.row_sampling import RowSettings
from llava.serve.api.failures import NOT_FOUND, ApiError, refused
from llava.serve.api.messages import SentConversation, read_messages
from llava.serve.limits import ServingLimits

HARMLESS = ("metadata", "prompt_cache_key", "safety_identifier", "user")
"""Fields that say who asks and why; they are accepted, and change nothing."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
_UNSUPPORTED = (
    "audio",
    "prediction",
    "prompt_cache_retention",
    "reasoning_effort",
    "verbosity",
    "web_search_options",
)
_READ = (
    "compression",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "model",
    "n",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
)
_MOST_STOPS, _LONGEST_STOP = 4, 256
_SEEDS = 2**63


@dataclass(frozen=True)
class AskingDefaults:
    """What holds where a request says nothing.

    Attributes:
        model: name of the model, the only one that is answered to.
        temperature, top_p: as in `RowSettings`.
        new_tokens: longest answer.
    """

    model: str
    temperature: float = 0.2
    top_p: float = 1.0
    new_tokens: int = 512


@dataclass(frozen=True)
class CompletionRequest:
    """A request, read.

    Attributes:
        conversation: what it asks about.
        rows: settings of each of its answers.
        asked_length: whether it says how long an answer may be.
        compression: budget; None for the model's own.
        stream: whether pieces are sent as they come.
        include_usage: whether a stream ends with what it took.
    """

    conversation: SentConversation
    rows: tuple[RowSettings, ...]
    asked_length: bool
    compression: CompressionConfig | None
    stream: bool
    include_usage: bool


def read_completion(body: Any, defaults: AskingDefaults, limits: ServingLimits) -> CompletionRequest:
    """A request out of the JSON of its body.

    Raises:
        ApiError: names the field that does not fit, and what is accepted.
    """
    if not isinstance(body, Mapping):
        raise refused(f"The body is {shown(body)}; it must be a JSON object with model and messages.")
    given = {name: value for name, value in body.items() if value is not None}
    _check_names(body)
    _check_model(given.get("model"), defaults.model)
    conversation = read_messages(given.get("messages"))
    if len(conversation.media) > limits.images:
        raise refused(
            f"messages hold {len(conversation.media)} images and videos, more than the {limits.images} that are "
            "accepted here; send fewer.",
            "messages",
        )
    stream = _flag(given, "stream")
    length = _length(given, limits.new_tokens)
    settings = RowSettings(
        temperature=_number(given, "temperature", 0.0, 2.0, defaults.temperature),
        top_p=_share(given, defaults.top_p),
        max_new_tokens=defaults.new_tokens if length is None else length,
        stop=_stops(given.get("stop")),
    )
    choices = _whole(given, "n", 1, limits.choices, 1)
    seed = _whole(given, "seed", -_SEEDS, _SEEDS - 1, None)
    first = secrets.randbelow(_SEEDS) if seed is None else seed
    rows = tuple(_seeded(settings, first + choice) for choice in range(choices or 1))
    usage = _stream_options(given.get("stream_options"), stream)
    return CompletionRequest(
        conversation, rows, length is not None, read_budget(given.get("compression")), stream, usage
    )


def read_budget(value: Any) -> CompressionConfig | None:
    """The field `compression`: name of a preset, or a mapping; no file of this machine, no code of other packages.

    Raises:
        ApiError: if it is none.
    """
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return CompressionConfig.from_preset(value)
        if not isinstance(value, Mapping):
            raise ValueError(
                f"compression is {shown(value)}; it must be the name of a preset ({', '.join(presets())}) or an object "
                "with the keys v2v and t2v."
            )
        for stage, accepted in (("v2v", V2V_SCORES), ("t2v", T2V_SCORES)):
            score = value[stage].get("score") if isinstance(value.get(stage), Mapping) else None
            if score is not None and score not in accepted:
                raise ValueError(f"{stage}.score is {shown(score)}; accepted here are {', '.join(accepted)}.")
        return CompressionConfig.from_dict(value)
    except (TypeError, ValueError) as error:
        raise refused(str(error), "compression", "invalid_compression") from error


def _check_names(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name in _READ or name in HARMLESS:
            continue
        if name in _NEUTRAL or name in _UNSUPPORTED:
            neutral = _NEUTRAL.get(name, ())
            if value is None or any(value == one for one in neutral):
                continue
            accepted = f"accepted is {' or '.join(map(shown, neutral))}, which is the same as leaving it out"
            advice = accepted if neutral else "leave it out"
            raise refused(f"{name} is {shown(value)}, which is not supported here; {advice}.", name, "unsupported")
        known = ", ".join(sorted((*_READ, *HARMLESS)))
        raise refused(f"There is no field {shown(name)}; accepted are {known}.", code="unknown_field")


def _check_model(value: Any, known: str) -> None:
    if not isinstance(value, str):
        raise refused(f"model is {shown(value)}; it must be the name of the model, {known!r}.", "model")
    if value != known:
        raise ApiError(
            404, f"There is no model {shown(value)}; this server has {known!r}.", NOT_FOUND, "model", "model_not_found"
        )


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise refused(f"{name} is {shown(value)}; it must be true or false.", name)
    return value


def _number(given: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    if name not in given:
        return default  # of the server, which may be another than what requests may ask for
    value = given[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise refused(f"{name} is {shown(value)}; it must be a number from {low:g} to {high:g}.", name)
    return float(value)


def _share(given: Mapping[str, Any], default: float) -> float:
    value = _number(given, "top_p", 0.0, 1.0, default)
    if value == 0:
        raise refused(
            "top_p is 0; it must be above 0 and at most 1 (temperature 0 takes the likeliest token).", "top_p"
        )
    return value


def _whole(given: Mapping[str, Any], name: str, low: int, high: int, default: int | None) -> int | None:
    value = given.get(name, default)
    if value is default:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise refused(f"{name} is {shown(value)}; it must be a whole number from {low} to {high}.", name)
    return value


def _length(given: Mapping[str, Any], most: int) -> int | None:
    names = ("max_completion_tokens", "max_tokens")
    asked = {name: _whole(given, name, 1, most, None) for name in names if name in given}
    if len(set(asked.values())) > 1:
        raise refused("max_tokens and max_completion_tokens differ; give one of them.", "max_tokens")
    return next(iter(asked.values()), None)


def _stops(value: Any) -> tuple[str, ...]:
    stops = () if value is None else (value,) if isinstance(value, str) else value
    fits = isinstance(stops, list | tuple) and len(stops) <= _MOST_STOPS
    if not fits or not all(isinstance(stop, str) and 0 < len(stop) <= _LONGEST_STOP for stop in stops):
        raise refused(
            f"stop is {shown(value)}; it must be text of 1 to {_LONGEST_STOP} characters, or a list of at most "
            f"{_MOST_STOPS} such texts.",
            "stop",
        )
    return tuple(stops)


def _seeded(settings: RowSettings, seed: int) -> RowSettings:
    return replace(settings, seed=(seed + _SEEDS) % (2 * _SEEDS) - _SEEDS)


def _stream_options(value: Any, stream: bool) -> bool:
    """Whether a stream ends with its usage."""
    if value is None:
        return False
    if not isinstance(value, Mapping) or not stream:
        raise refused("stream_options must be an object, and go with stream: true.", "stream_options")
    for name in value:
        if name not in ("include_usage", "include_obfuscation"):
            raise refused(f"There is no stream_options.{shown(name)}; accepted is include_usage.", "stream_options")
    if value.get("include_obfuscation"):
        raise refused("stream_options.include_obfuscation is not supported here; leave it out.", "stream_options")
    return _flag({name: one for name, one in value.items() if one is not None}, "include_usage")
