"""The log of a run's settings at its start, and the summary `train_summary.json` at its end."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from llava.common.json_files import write_json
from llava.cost.flops import average_visual_tokens, describe, tokens_per_layer
from llava.data.statistics import DataStatistics
from llava.model.staged_model import StagedModel

logger = logging.getLogger(__name__)

SUMMARY_FILE = "train_summary.json"


def count_parameters(model: StagedModel) -> dict[str, dict[str, int]]:
    """Weights of each part of the model: all of them, and those that are trained; LLaVA's names in every family.

    A weight that two parts share, such as a head tied to the embeddings, counts in the first of them alone; a projector
    inside a tower is the projector's.
    """
    decoder, seen = model.decoder, set[int]()
    projector = _count(model.projectors(), seen)
    counts = {
        "vision_tower": _count(model.vision_towers(), seen),
        "mm_projector": projector,
        "embed_tokens": _count((decoder.embed_tokens,), seen),
        "layers": _count((decoder.layers,), seen),
        "norm": _count((decoder.norm,), seen),
        "lm_head": _count((model.lm_head,), seen),
        "others": _count((model,), seen),
    }
    optional = {"vision_tower": model.vision_towers(), "mm_projector": model.projectors()}
    return {name: count for name, count in counts.items() if optional.get(name, count["all"] or name == "lm_head")}


def visual_tokens(model: StagedModel) -> tuple[int, ...]:
    """Visual tokens of one image that each decoder layer sees; empty where images differ, or without a tower."""
    settings = model.plan_settings()
    if settings is None or not settings.fixed:
        return ()
    return tokens_per_layer(model.compression.t2v, settings.fixed, len(model.decoder.layers))


def log_start(model: StagedModel, statistics: DataStatistics) -> None:
    """Log what is trained, how images are compressed, and the statistics of the data."""
    for name, count in count_parameters(model).items():
        state = "trained" if count["trained"] == count["all"] else "in part trained" if count["trained"] else "frozen"
        state = state if count["all"] else "shared with a part above"
        logger.info("%-13s %15s weights, %s", name, f"{count['all']:,}", state)
    tokens = visual_tokens(model)
    if tokens:
        logger.info("Visual tokens by layer: %s; average %.2f.", describe(tokens), average_visual_tokens(tokens))
    if model.vision_towers():
        logger.info("Compression: %s", json.dumps(model.compression.to_dict()))
    logger.info(
        "Data (%d samples): mean text %.1f tokens, mean sequence %.1f tokens, %.1f %% padding, %d cut, %d without "
        "any label.",
        statistics.samples,
        statistics.mean_text_tokens,
        statistics.mean_sequence_tokens,
        100 * statistics.padding_share,
        statistics.truncated,
        statistics.unsupervised,
    )


def write_summary(
    output_dir: str | Path,
    phase: str,
    model: StagedModel,
    statistics: DataStatistics,
    log_history: list[dict[str, Any]],
    totals: dict[str, Any],
    facts: dict[str, Any] | None = None,
) -> Path:
    """Leave `train_summary.json`: the loss curve and everything that `log_start` said, for reports.

    Args:
        output_dir: where it goes.
        phase: `pretrain` or `finetune`.
        model, statistics: trained model, and statistics of its data.
        log_history: log history of the Trainer.
        totals: what `LlavaTrainer.totals` gave; in `counts` the samples trained on, cut, without labels, and skipped.
        facts: facts of the run, by which it recognises itself once it is finished.
    """
    tokens = visual_tokens(model)
    steps = ("step", "epoch", "loss", "grad_norm", "learning_rate")
    summary = {
        "phase": phase,
        "compression": model.compression.to_dict(),
        "visual_tokens_per_layer": tokens,
        "average_visual_tokens": average_visual_tokens(tokens) if tokens else 0.0,
        "parameters": count_parameters(model),
        "data": statistics.to_dict(),
        "counts": totals["counts"],
        "metrics": {name: value for name, value in totals.items() if name != "counts"},
        "evaluations": [entry for entry in log_history if "eval_loss" in entry],
        "curve": [{name: entry.get(name) for name in steps} for entry in log_history if "loss" in entry],
        "result": next((entry for entry in reversed(log_history) if "train_runtime" in entry), {}),
        "run": facts,
    }
    target = Path(output_dir) / SUMMARY_FILE
    write_json(target, summary, indent=2)
    return target


def _count(parts: Sequence[nn.Module], seen: set[int]) -> dict[str, int]:
    """Numbers of weights not seen before; `ds_numel` is the whole size of a weight that ZeRO-3 has partitioned."""
    new = {id(weight): weight for part in parts for weight in part.parameters() if id(weight) not in seen}
    seen.update(new)
    sizes = [(getattr(weight, "ds_numel", weight.numel()), weight.requires_grad) for weight in new.values()]
    return {"all": sum(size for size, _ in sizes), "trained": sum(size for size, trained in sizes if trained)}
