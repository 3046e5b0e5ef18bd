"""Batches that are timed: rows of one length, or of lengths as they are in instruction data.

How long the texts of LLaVA's 665k mix are is not published. Log-normal lengths with a spread of 0.8 (natural logarithm)
are an assumption: for four rows of 64 tokens on average they are 21, 40, 66 and 129. The trainer prints the lengths of
real data (`mean_text_tokens`, share of padding), `python -m llava.data.check` counts them; give those with `--lengths`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.cost.seen_media import Medium
from llava.model.random_weights import random_batch

TEXTS = ("equal", "ragged")
SPREAD = 0.8
SHORTEST = 8
PAD = 0


def text_lengths(text: str, rows: int, mean: int) -> tuple[int, ...]:
    """Text tokens of each row: `mean`, or log-normal lengths with that mean, at evenly spaced quantiles.

    Raises:
        ValueError: if `text` is neither `equal` nor `ragged`.
    """
    match text:
        case "equal":
            return (mean,) * rows
        case "ragged":
            normal = NormalDist()
            drawn = [math.exp(SPREAD * normal.inv_cdf((row + 0.5) / rows)) for row in range(rows)]
            return tuple(max(SHORTEST, round(mean * rows * length / sum(drawn))) for length in drawn)
    raise ValueError(f"--text is {text!r}; it must be {' or '.join(TEXTS)}.")


def text_of(lengths: Sequence[int]) -> str:
    """Which of `TEXTS` rows of these lengths are."""
    return "equal" if len(set(lengths)) == 1 else "ragged"


def answer_tokens(length: int) -> int:
    """Text tokens of a row, behind its instruction, that it is trained on: the last fifth."""
    return max(1, length // 5)


def rows_of(
    model: Any,
    lengths: Sequence[int],
    *,
    labels: bool = False,
    padding_side: str = "right",
    medium: Medium | None = None,
) -> dict[str, Any]:
    """Rows with one image (or video) and so many text tokens each; the same numbers every time.

    Args:
        model: a model in LLaVA's own format.
        lengths: text tokens of each row.
        labels: whether the last fifth of the text of a row is its answer.
        padding_side: side on which shorter rows are padded.
        medium: as in `random_batch`.

    Returns:
        `input_ids` and, where lengths differ, `attention_mask` [rows, longest + placeholders]; what is shown, as
        `random_batch` gives it; `labels` if asked.
    """
    shortest, longest = min(lengths), max(lengths)
    batch = random_batch(model, len(lengths), shortest, medium=medium)
    head = batch["input_ids"].cpu()
    noise = torch.Generator().manual_seed(1)
    tail = torch.randint(3, model.config.vocab_size, (len(lengths), longest - shortest), generator=noise)
    ids = torch.cat([head, tail], dim=1)
    marks = int((head[0] == IMAGE_TOKEN_INDEX).sum())
    valid = torch.tensor(lengths)[:, None] + marks > torch.arange(ids.shape[1])  # [rows, longest + placeholders]
    behind = torch.tensor([length + marks - answer_tokens(length) for length in lengths])[:, None]
    targets = ids.masked_fill(~valid | (torch.arange(ids.shape[1]) < behind), IGNORE_INDEX)
    ids = ids.masked_fill(~valid, PAD)
    made = {"input_ids": ids, "attention_mask": valid.long(), "labels": targets}
    if padding_side == "left":
        made = {name: _to_the_right(values, valid) for name, values in made.items()}
    if shortest == longest:
        del made["attention_mask"]
    if not labels:
        del made["labels"]
    return batch | {name: values.to(model.device) for name, values in made.items()}


def _to_the_right(values: Tensor, valid: Tensor) -> Tensor:
    """Values [rows, columns] with the padding of each row in front."""
    length = values.shape[1]
    moved = [
        F.pad(row[:count], (length - count, 0), value=int(row[-1]) if count < length else 0)
        for row, count in zip(values, valid.sum(dim=1).tolist(), strict=True)
    ]
    return torch.stack(moved)
