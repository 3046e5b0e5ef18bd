"""What a compressed model may be given: the checks that need to know its family.

Shapes: B rows, T positions as the processor made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from llava.compression.config import CompressionConfig
from llava.constants import IGNORE_INDEX
from llava.model.accepted_inputs import (
    check_causal,
    check_counting,
    check_matrix,
    check_no_media,
    check_normalised,
    check_packing,
    check_padding_mask,
    check_position_shape,
    check_tokens,
    is_attention_matrix,
    refuse_apart,
    refuse_soft_prompt,
)
from llava.model.behind_cache import check_behind_cache
from llava.model.cache_name import CACHE
from llava.model.columns import labels_of
from llava.model.splice import check_shapes
from llava.model.staged_cache import StagedCache, is_filled

if TYPE_CHECKING:
    from llava.model.staged_model import StagedModel

BYPASS = "uncompressed"
"""Argument by which a compressed model says that its inner model may run as it stands, for one call without budget."""

_GRIDS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}
_STRATEGIES = ("default", "full")


def asks_nothing(compression: Any) -> bool:
    """Whether a configuration in any form compresses nothing; cheap for the block of a `config.json`."""
    if compression is None:
        return True
    if isinstance(compression, dict) and not any(compression.values()):
        return True
    return CompressionConfig.resolve(compression) == CompressionConfig()


def check_call(model: StagedModel, inputs: Mapping[str, Any], more: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Look at what forward was given, before it computes anything.

    Args:
        model: the compressed model.
        inputs: arguments of the stock signature, by name.
        more: what else was given.
        own: the front's own inputs, see `OWN_INPUTS`.

    Returns:
        whether it is text that needs an attention of its own: packed sequences, or a 4-D mask.

    Raises:
        ValueError: names what cannot be done and what to change.
    """
    embeds, mask, cache = (inputs.get(name) for name in ("inputs_embeds", "attention_mask", CACHE))
    check_causal(more)
    check_no_media(more, model.pixels_are)
    if cache is not None and is_filled(cache):
        check_new_text(model, inputs, more, cache)
        return False
    prefill, layout = own["prefill"], own["layout"]
    if prefill is not None or layout is not None:
        shape = layout.valid.shape if prefill is None else prefill.embeddings.shape[:2]
        fits = embeds is not None and embeds.shape[:2] == shape
        if not fits if prefill is None else embeds is not None and not (prefill.of_embeddings and fits):
            raise refuse_soft_prompt()
        return False
    rows, columns = check_one_prompt(model, inputs).shape[:2]
    _check_labels(inputs, more, (rows, columns))
    check_position_shape(inputs.get("position_ids"), rows, columns, model.position_axes)
    planned, ids = own["plan"] is not None, inputs.get("input_ids")
    if planned and (model.position_axes or ids is None):
        raise ValueError(
            "plan is given, but the prompt came as embeddings; leave one of them out."
            if ids is None
            else f"plan is given, but a {type(model).__name__} knows the positions of its tokens only once its images "
            "are encoded; leave it out."
        )
    if planned or shown(model, inputs) or (ids is not None and bool(model.is_placeholder(ids).any())):
        check_packing(more, packed=False)
        if planned and isinstance(mask, Tensor):  # the plan was made by it; its numbers would be waited for
            inputs = {**inputs, "attention_mask": mask.bool()}
        check_prompt(model, inputs, generating=False)
        return False
    caching = inputs.get("use_cache", more.get("use_cache"))
    apart = model.stands_apart(inputs, model.decoder.config.use_cache if caching is None else bool(caching))
    check_packing(more, apart)
    if mask is not None and is_attention_matrix(mask):
        check_matrix(mask, rows, columns)
    else:
        check_padding_mask(mask, rows, columns)
    if apart and (cache is not None or caching):
        raise refuse_apart("use_cache=True" if cache is None else "past_key_values")
    return apart


def check_new_text(model: StagedModel, inputs: Mapping[str, Any], more: Mapping[str, Any], cache: StagedCache) -> None:
    """Look at what is to come behind a filled cache: text; a single placeholder may be a word that was generated.

    Raises:
        ValueError: for images, labels, and what does not fit the cache.
    """
    tokens, ids, held = check_one_prompt(model, inputs), inputs.get("input_ids"), ""
    if ids is not None and (ids.shape[1] > 1 or ids.device.type == "cpu"):
        typed = model.is_placeholder(ids) if ids.shape[1] > 1 else ids < 0
        held = "The text behind past_key_values holds placeholders of images or videos, which cannot be added there. "
        held = held if bool(typed.any()) else ""
    if held or shown(model, inputs):
        raise ValueError(
            f"{held}Images cannot be added behind a filled cache, whose layers have chosen their visual tokens; give "
            "the whole conversation anew, without past_key_values, or take out placeholders that somebody typed."
        )
    if labels_given({**inputs, **more}):
        raise ValueError("There is no loss for tokens behind a filled cache; give the whole sequence with labels.")
    check_packing(more, packed=False)
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    check_behind_cache(cache, tokens.shape[:2], mask, positions, model.position_axes)


def labels_given(inputs: Mapping[str, Any]) -> bool:
    """Whether a loss is asked for."""
    return inputs.get("labels") is not None or inputs.get("shift_labels") is not None


def _check_labels(inputs: Mapping[str, Any], more: Mapping[str, Any], shape: tuple[int, int]) -> None:
    """Raise ValueError where labels are no whole numbers, or have another shape than the input, [B, T]."""
    for name, given in (("labels", inputs.get("labels")), ("shift_labels", more.get("shift_labels"))):
        if given is not None and (not isinstance(given, Tensor) or given.is_floating_point()):
            kind = f"of {given.dtype}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
            raise ValueError(f"{name} is {kind}; give a tensor {list(shape)} of whole numbers.")
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}, but the input has {shape}; give one label for each column, "
                f"{IGNORE_INDEX} where there is no target."
            )


def check_prompt(model: StagedModel, inputs: Mapping[str, Any], generating: bool) -> None:
    """Look at a whole prompt, of forward or of `generate`.

    Raises:
        ValueError: names what cannot be done and what to change.
    """
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    _check_pixels(model, inputs)
    strategy = inputs.get("vision_feature_select_strategy")
    if strategy not in (None, *_STRATEGIES):
        raise ValueError(f"vision_feature_select_strategy is {strategy!r}; give one of {', '.join(_STRATEGIES)}.")
    if inputs.get("mm_encoder_outputs"):
        raise ValueError("mm_encoder_outputs holds features without V2V; give the pixels instead.")
    rows, columns = check_one_prompt(model, inputs).shape[:2]
    check_padding_mask(mask, rows, columns)
    check_position_shape(positions, rows, columns, model.position_axes)
    ids = inputs.get("input_ids")
    if ids is not None and "mm_token_type_ids" in model.visual_inputs:
        check_shapes(ids, mm_token_type_ids=inputs.get("mm_token_type_ids"))
    if positions is None:
        return
    if positions.dim() == 2 and (generating or shown(model, inputs)):
        check_counting(positions, mask)
    elif model.stands_apart(inputs, caching=True):
        raise refuse_apart("generate" if generating else "images")


def check_unstaged(cache: StagedCache) -> None:
    """Raise ValueError for a cache whose layers differ, where the stock model would take them for alike."""
    if cache.stages:
        raise ValueError(
            "past_key_values was filled under a compression, and there is none now; continue it under that "
            "compression, or give the whole conversation without past_key_values."
        )


def _check_pixels(model: StagedModel, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError for pixels that no processor made, or that came without their sizes."""
    for name in shown(model, inputs):
        pixels, grid = inputs[name], _GRIDS.get(name)
        if name.startswith("pixel") and not isinstance(pixels, Tensor):
            raise ValueError(
                f"{name} is a {type(pixels).__name__}; make the inputs with the model's own processor and "
                "return_tensors='pt'."
            )
        if name.startswith("pixel"):
            check_normalised(name, pixels, "make the inputs with the model's own processor")
        if grid in model.visual_inputs and inputs.get(grid) is None:
            raise ValueError(f"{name} came without {grid}; give all that the model's own processor returns.")
        if grid in model.visual_inputs:
            _check_grid(name, pixels, grid, inputs[grid])


def _check_grid(name: str, pixels: Tensor, named: str, grid: Any) -> None:
    """Raise ValueError unless patches [P, d] are as many as their grid, int64 [images, 3], has places."""
    is_grid = isinstance(grid, Tensor) and grid.dim() == 2 and grid.shape[1] == 3 and not grid.is_floating_point()
    if not is_grid:
        shape = f"of shape {tuple(grid.shape)}, {grid.dtype}" if isinstance(grid, Tensor) else type(grid).__name__
        raise ValueError(f"{named} is {shape}; give whole numbers [images, 3], as the model's own processor returns.")
    places = int(grid.prod(dim=1).sum())
    if pixels.dim() != 2 or len(pixels) != places:
        raise ValueError(
            f"{name} has shape {tuple(pixels.shape)}, but {named} {grid.tolist()} is that of {places} patches; give "
            "both as the model's own processor returns them."
        )


def check_one_prompt(model: StagedModel, inputs: Mapping[str, Any]) -> Tensor:
    """The prompt [B, T] or [B, T, D]; raise ValueError unless it is there once: ids, or embeddings of text alone."""
    ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    if embeds is not None:
        if (ids is not None and ids.shape[1]) or shown(model, inputs):  # transformers puts empty ids beside embeddings
            beside = ", ".join(shown(model, inputs)) or "input_ids"
            raise ValueError(
                f"{beside} were given beside inputs_embeds; give exactly one of input_ids and inputs_embeds. With "
                "images give the prompt as input_ids alone: its placeholders say where the visual tokens go. Soft "
                "prompts of peft (prompt tuning, p-tuning) make such embeddings and work for text alone: use LoRA or "
                "another adapter of weights."
            )
        check_tokens("inputs_embeds", embeds)
        return embeds
    if ids is None:
        raise ValueError("Neither input_ids nor inputs_embeds is given; give the prompt as input_ids.")
    check_tokens("input_ids", ids)
    return ids


def check_ids(model: StagedModel, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError for ids on the host that are neither words nor placeholders; padding may hold any."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    words = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if words is None or ids.device.type != "cpu":
        return
    unknown = (ids < 0) | (ids >= words)
    if not bool(unknown.any()):
        return
    unknown &= ~model.is_placeholder(ids)
    if mask is not None and mask.shape == ids.shape:
        unknown &= mask.bool().to(ids.device)
    if bool(unknown.any()):
        raise ValueError(
            f"input_ids holds {int(ids[unknown][0])}, but the model has word embeddings for 0 to {words - 1}. Its "
            "tokenizer is another model's, or was given tokens for which the model has no rows "
            "(resize_token_embeddings)."
        )


def shown(model: StagedModel, inputs: Mapping[str, Any]) -> list[str]:
    """Which of a model's inputs hold images or videos."""
    return [name for name in model.pixel_inputs() if inputs.get(name) is not None]


def guard_inner_model(model: Any) -> None:
    """Let the model inside a compressed one refuse to be called by itself while a compression is configured."""
    inner = getattr(model, "model", None)
    if isinstance(inner, nn.Module) and refuse_direct_call not in inner._forward_pre_hooks.values():
        inner.register_forward_pre_hook(refuse_direct_call, with_kwargs=True)


def refuse_direct_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """A forward hook: raise ValueError where the inner model would run without the compression that is configured."""
    if BYPASS in kwargs:
        return args, {name: value for name, value in kwargs.items() if name != BYPASS}
    if not asks_nothing(getattr(module.config, "compression", None)):
        raise ValueError(
            f"The {type(module).__name__} inside a compressed model was called by itself, where nothing is merged or "
            'dropped; call the compressed model, or make one without a budget: compress(model, "none").'
        )
    return None


def text_alone(model: StagedModel, inputs: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the stock forward of text that needs an attention of its own; see `check_call`."""
    mask = inputs.get("attention_mask")
    changes: dict[str, Any] = {BYPASS: True, "use_cache": False, "return_dict": True}
    if more.get("shift_labels") is not None:  # the stock forward computes a loss where there are labels
        changes["labels"] = labels_of(more["shift_labels"])
    if not is_attention_matrix(mask):
        changes |= {"attention_mask": None, "position_ids": model.separating_positions(inputs["position_ids"], mask)}
    return {**inputs, **more, **changes}
