"""The modes of the benchmark: what each of them times, beside the work that it must do.

Work is computed by `llava.cost` on the tokens that the rows really have: padding is no work that anybody asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from llava.bench.cases import Case, Setting, as_trained
from llava.bench.inputs import rows_of
from llava.bench.memory_choice import level_by_memory, recomputed_layers
from llava.bench.peers import PEERS, peer_cases, peer_towers
from llava.bench.recipe import recipe_cases
from llava.compression.config import CompressionConfig
from llava.cost.flops import average_visual_tokens, kv_bytes, training_passes, visual_tokens_per_layer
from llava.cost.seen_media import seen_by
from llava.cost.shapes import DecoderShape
from llava.model import measured_work
from llava.model.measured_work import row_flops, shapes_of_model, tower_run
from llava.model.parts import bytes_of


def tower_cases(setting: Setting) -> list[Case]:
    """The vision tower on the images of the batch, with V2V and without; V2V is no work that FLOPs count."""
    model = setting.model.eval()
    batch = rows_of(model, setting.lengths, medium=setting.medium)
    flops = seen_by(model.config.to_dict(), setting.medium).flops() * len(setting.lengths)
    own = [
        Case(
            name,
            "off",
            partial(_without_gradient, tower_run(model, batch, config)),
            partial(model.train, False),
            flops,
            flops,
            len(setting.lengths),
            about=_tokens(setting, config),
        )
        for name, config in setting.compressions.items()
    ]
    return [*own, *peer_towers(setting, own, batch)]


def prefill_cases(setting: Setting) -> list[Case]:
    """From pixels and ids to the logits of the first answer token and a filled cache.

    Shorter rows are padded on the left, as `generate` pads. A cache holds padded rows, so rows that are packed whatever
    it costs (`on`) fill none.
    """
    batch = rows_of(setting.model, setting.lengths, padding_side="left", medium=setting.medium)
    own = [
        Case(
            name,
            packing,
            partial(_prefill, setting.model, batch, config, packing),
            partial(setting.model.train, False),
            *_flops(setting, config),
            len(setting.lengths),
            about=_tokens(setting, config),
        )
        for name, config, packing in setting.variants()
    ]
    return [*own, *peer_cases(setting, own, batch)]


def train_cases(setting: Setting) -> list[Case]:
    """Forward and backward of everything but the frozen tower; no optimizer.

    With each batch comes its plan, as from a data worker, wherever the model's family makes one there.
    """
    model = setting.model
    batch = rows_of(model, setting.lengths, labels=True, medium=setting.medium)
    for tower in model.vision_towers():
        tower.requires_grad_(False)
    own: list[Case] = []
    for kind in setting.checkpointing:
        for name, config, packing in setting.variants():
            if own and packing not in setting.packings:
                continue  # the reference, once
            level = level_by_memory(setting, config) if kind == "auto" else kind
            again = recomputed_layers(config, len(model.decoder.layers), level)
            planned = with_plan(model, batch, config)
            own.append(
                Case(
                    name,
                    packing,
                    partial(_train_step, model, planned, config, packing),
                    partial(as_trained, model, again),
                    *_training_flops(setting, config, again),
                    len(setting.lengths),
                    about=_tokens(setting, config) | {"checkpointing": kind, "recomputed_layers": again},
                )
            )
    return [*own, *peer_cases(setting, own, batch)]


def decode_cases(setting: Setting) -> list[Case]:
    """Tokens behind a filled cache, one a row at a time; the prefill is not timed.

    The work is the bytes that each pass must read: the language model's weights once, and the keys and values of every
    row. At batch 1 the weights are nearly all of it, whatever is compressed.
    """
    model, rows = setting.model, len(setting.lengths)
    batch = rows_of(model, setting.lengths, padding_side="left", medium=setting.medium)
    cases = []
    for name, config in setting.compressions.items():
        weights, cached = decode_bytes(setting, config)
        cases.append(
            Case(
                name,
                "off",
                partial(_decode, model, setting.new_tokens, config),
                partial(_filled, model, batch, config),
                setting.new_tokens * weights + cached,
                setting.new_tokens * weights + cached,
                rows * setting.new_tokens,
                about=_tokens(setting, config) | {"bytes_of_weights": weights, "bytes_of_cache": cached},
            )
        )
    return cases


MODES: Mapping[str, Callable[[Setting], Sequence[Case]]] = {
    "tower": tower_cases,
    "prefill": prefill_cases,
    "train": train_cases,
    "decode": decode_cases,
    "recipe": recipe_cases,
}


_PEERS_OF = {"tower": ("published",), "prefill": PEERS, "train": PEERS}
_NOT_PACKED = {
    "tower": "towers see images alone",
    "decode": "behind a cache every row has one token",
}


def left_out(mode: str, setting: Setting) -> str:
    """What was asked for and is not run in a mode, as sentences; empty if there is nothing."""
    peers = [peer for peer in setting.peers if peer not in _PEERS_OF.get(mode, ())]
    said = [f"Peers that are not run in this mode: {', '.join(peers)}."] if peers else []
    if mode in _NOT_PACKED and "on" in setting.packings:
        said.append(f"Nothing is packed in this mode: {_NOT_PACKED[mode]}.")
    return " ".join(said)


def decode_bytes(setting: Setting, config: CompressionConfig) -> tuple[int, int]:
    """Bytes of weights that one decoding pass reads, and of keys and values that all passes of all rows read."""
    model = setting.model
    weights = [*model.decoder.layers.parameters(), *model.decoder.norm.parameters(), *model.lm_head.parameters()]
    tokens, decoder = _layers(setting, config)
    cached = sum(
        kv_bytes(tokens, length + passed, decoder, model.dtype.itemsize)
        for length in setting.lengths
        for passed in range(setting.new_tokens)
    )
    return bytes_of(weights), cached


def with_plan(model: Any, batch: Mapping[str, Any], config: CompressionConfig) -> dict[str, Any]:
    """A training batch with its plan, where all images bring as many tokens; others are planned in the forward."""
    settings = model.plan_settings(config)
    if settings is None or settings.fixed is None:
        return dict(batch)
    ids = batch["input_ids"].cpu()
    mask = batch["attention_mask"].cpu() if "attention_mask" in batch else torch.ones_like(ids)
    given = {"input_ids": ids, "attention_mask": mask, "labels": batch["labels"].cpu(), "query_mask": None}
    return dict(batch) | {"plan": settings.plan(given, list(batch["images"]))}


def _layers(setting: Setting, config: CompressionConfig) -> tuple[tuple[int, ...], DecoderShape]:
    """Visual tokens of a row in each layer, and the language model's dimensions."""
    decoder, vision = shapes_of_model(setting.model.config, setting.medium)
    return visual_tokens_per_layer(config, decoder.layers, vision), decoder


def _flops(setting: Setting, config: CompressionConfig, passes: int | None = None) -> tuple[int, int]:
    """FLOPs of the batch, and those with all rows as long as the longest."""
    of_row = partial(row_flops, setting.model, config, passes=passes, medium=setting.medium)
    lengths = setting.lengths
    return sum(of_row(length) for length in lengths), len(lengths) * of_row(max(lengths))


def _training_flops(setting: Setting, config: CompressionConfig, again: int) -> tuple[int, int]:
    """As `_flops`, of a training step in which the first `again` layers are computed once more."""
    counts, decoder = _layers(setting, config)

    def more(length: int) -> int:
        return sum(decoder.layer_flops(length + count) for count in counts[:again])

    exact, padded = _flops(setting, config, training_passes(True, False))
    lengths = setting.lengths
    return exact + sum(map(more, lengths)), padded + len(lengths) * more(max(lengths))


def _tokens(setting: Setting, config: CompressionConfig) -> dict[str, Any]:
    """Visual tokens that a layer sees on average, and drops as they are after scaling to the depth."""
    about: dict[str, Any] = {
        "rows": len(setting.lengths),
        "visual_tokens": round(average_visual_tokens(_layers(setting, config)[0]), 2),
    }
    return about if config.t2v is None else about | {"drops_after_layers": list(config.t2v.layers)}


def _without_gradient(run: Callable[[], object], _: object) -> object:
    with torch.no_grad():
        return run()


@torch.no_grad()
def _prefill(model: Any, batch: Mapping[str, Any], config: CompressionConfig, packing: str, _: object) -> object:
    return model(**batch, compression=config, use_cache=True, logits_to_keep=1, packing=packing)


def _train_step(model: Any, batch: Mapping[str, Any], config: CompressionConfig, packing: str, _: object) -> None:
    model.zero_grad(set_to_none=True)
    model(**batch, compression=config, use_cache=False, packing=packing).loss.backward()


def _filled(model: Any, batch: Mapping[str, Any], config: CompressionConfig) -> object:
    return measured_work.prefill(model.eval(), dict(batch), config)


def _decode(model: Any, count: int, config: CompressionConfig, filled: Any) -> None:
    measured_work.decode(model, filled, count, config)
