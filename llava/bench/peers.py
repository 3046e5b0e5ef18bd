"""Other programs on the same weights, in the same run: stock transformers, and the published way of scoring.

`transformers`: `LlavaForConditionalGeneration` without compression, its weights those of the measured model, under the
same attention kernel. `published`: the budgets under `llava.bench.published_scoring`. VisionZip, PyramidDrop and FastV
are budgets of this project (`--compression visionzip-128,pyramiddrop,fastv`); `--peers budgets` adds them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from llava.bench.cases import Case, Setting, as_trained
from llava.bench.published_scoring import published_forward, tower_features
from llava.checkpoints.transformers_format import config_there, name_there
from llava.common.presets import family_of
from llava.compression.config import CompressionConfig
from llava.constants import IMAGE_TOKEN_INDEX

PEERS = ("transformers", "published")
BUDGETS = ("visionzip-192", "visionzip-128", "visionzip-64", "pyramiddrop", "fastv")
"""Budgets of other methods on LLaVA-1.5 that this project has."""
IMAGE, PADDING = 2, 0
"""Ids in the vocabulary that random batches do not hold, for what transformers needs a token of."""


def peer_cases(setting: Setting, own: Sequence[Case], batch: Mapping[str, Any]) -> list[Case]:
    """Cases of the peers that were asked for, on a padded batch of prefill or (with `labels`) training.

    Args:
        setting: names them.
        own: this project's cases on the same batch; what they must compute is the peers' to compute, on padded rows.
        batch: as `llava.bench.inputs.rows_of` gives it.

    Raises:
        ValueError: for a model of another family than LLaVA-1.5's.
    """
    if not setting.peers:
        return []
    _require_llava(setting)
    first = {case.compression: case for case in reversed(own)}
    padded = first | {case.compression: case for case in reversed(own) if case.packing == "off"}
    found = []
    if "transformers" in setting.peers:
        found.append(_of_transformers(setting, padded[setting.baseline], batch))
    if "published" in setting.peers:
        for name, config in setting.compressions.items():
            if config.v2v is not None and config.v2v.score == "cls":
                run = partial(_published, setting.model, batch, config)
                found.append(dataclasses.replace(padded[name], packing="off", run=run, peer="published"))
    return found


def peer_towers(setting: Setting, own: Sequence[Case], batch: Mapping[str, Any]) -> list[Case]:
    """Cases of the published way of scoring in the tower, if it was asked for; arguments and errors as above."""
    if "published" not in setting.peers:
        return []
    _require_llava(setting)
    tower, found = setting.model.get_vision_tower(), []
    for case, config in zip(own, setting.compressions.values(), strict=True):
        if config.v2v is not None and config.v2v.score == "cls":
            run = partial(_published_tower, tower, batch["images"], config)
            found.append(dataclasses.replace(case, run=run, peer="published"))
    return found


def _require_llava(setting: Setting) -> None:
    family = family_of(setting.model.config.to_dict())
    if family != "llava-1.5":
        raise ValueError(f"--peers run beside a LLaVA-1.5; this model is a {family}.")


def stock_twin(model: Any) -> Any:
    """transformers' LLaVA on the weights of ours, which are not copied."""
    config: Any = config_there(model.config, {"image": IMAGE, "pad": PADDING}, model.config.vocab_size)
    config._attn_implementation = "sdpa"
    config.text_config._attn_implementation = _kernel(model.decoder.config._attn_implementation)
    config.vision_config._attn_implementation = "sdpa"
    with torch.device("meta"):
        twin = LlavaForConditionalGeneration(config)
    # The published names are those that transformers renames when it opens a folder; here each is found by its end.
    state = {name_there(name): weight for name, weight in model.state_dict(keep_vars=True).items()}
    own = {_bare(name): name for name in twin.state_dict()}
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    twin.load_state_dict({own[_bare(name)]: weight for name, weight in state.items()}, assign=True)
    for name, weight in model.named_parameters():  # torch makes what it assigns trained where the twin's was
        weight.requires_grad_(trained[name])
    _make_buffers(twin, model.device)
    return twin


def _bare(name: str) -> str:
    """A weight's name without the parts that differ between versions of transformers."""
    return ".".join(part for part in name.split(".") if part not in ("model", "language_model", "vision_model"))


def _make_buffers(twin: Any, device: torch.device) -> None:
    """Make what is no weight anew, which the meta device has without numbers."""
    for module in twin.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not buffer.is_meta:
                continue
            if name == "position_ids":
                made = torch.arange(buffer.shape[-1], device=device)[None]
            elif name in ("inv_freq", "original_inv_freq"):
                made = type(module)(module.config).inv_freq.to(device)
            else:
                raise ValueError(f"transformers' LLaVA has a buffer {name!r} that llava.bench.peers does not know.")
            setattr(module, name, made)


def _kernel(name: str | None) -> str:
    """The stock kernel of which a registered one is the variable-length form."""
    return (name or "sdpa").removesuffix("_varlen")


def _of_transformers(setting: Setting, like: Case, batch: Mapping[str, Any]) -> Case:
    twin, model = stock_twin(setting.model), setting.model
    inputs = _stock_inputs(batch, model.visual_tokens_per_image(CompressionConfig()))
    if "labels" in batch:
        before = partial(_as_trained, twin, model, like)
        return dataclasses.replace(like, run=partial(_stock_step, twin, inputs), before=before, peer="transformers")
    run = partial(_stock_prefill, twin, inputs)
    return dataclasses.replace(like, run=run, before=partial(twin.train, False), peer="transformers")


def _as_trained(twin: Any, model: Any, like: Case) -> None:
    """In training mode with the gradients that our model trains, checkpointed as the case that it stands beside."""
    as_trained(twin, None if like.about["recomputed_layers"] else 0)
    twin.zero_grad(set_to_none=True)
    model.zero_grad(set_to_none=True)


def _stock_inputs(batch: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """A batch as transformers takes it: the placeholder repeated for every visual token."""
    repeats = torch.where(batch["input_ids"] == IMAGE_TOKEN_INDEX, tokens, 1)  # [B, T]

    def spread(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([row.repeat_interleave(count) for row, count in zip(values, repeats, strict=True)])

    named = {name: spread(batch[name]) for name in ("input_ids", "attention_mask", "labels") if name in batch}
    named["input_ids"] = named["input_ids"].masked_fill(named["input_ids"] == IMAGE_TOKEN_INDEX, IMAGE)
    if "labels" in named:
        named["labels"] = named["labels"].masked_fill(named["input_ids"] == IMAGE, -100)
    return named | {"pixel_values": batch["images"]}


@torch.no_grad()
def _stock_prefill(twin: Any, inputs: Mapping[str, Any], _: object) -> object:
    return twin(**inputs, use_cache=True, logits_to_keep=1)


def _stock_step(twin: Any, inputs: Mapping[str, Any], _: object) -> None:
    twin(**inputs, use_cache=False).loss.backward()


def _published_tower(tower: Any, images: torch.Tensor, config: CompressionConfig, _: object) -> object:
    return tower_features(tower, images, config)


def _published(model: Any, batch: Mapping[str, Any], config: Any, _: object) -> None:
    """A training step, or a prefill."""
    if "labels" in batch:
        model.zero_grad(set_to_none=True)
        loss = published_forward(model, batch, config).loss
        assert loss is not None
        loss.backward()
    else:
        with torch.no_grad():
            published_forward(model, batch, config)
