"""The loss on held-out conversations: a mean over their answer tokens, whatever the batch size and number of ranks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from llava.common.child_processes import leave_signals_to_parent
from llava.constants import IGNORE_INDEX
from llava.data.collator import REPORTED


class _Repeated(Dataset):
    """A data set padded with copies of its first sample without labels, so that all ranks have as many batches."""

    def __init__(self, dataset: Any, length: int) -> None:
        self.dataset = dataset
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.dataset):
            return self.dataset[index]
        sample = self.dataset[0]
        return sample | {"labels": torch.full_like(sample["labels"], IGNORE_INDEX), "problem": None}


def require_measurable(dataset: Any) -> None:
    """Refuse held-out data without any label, whose loss would be 0 and so the best of all.

    Raises:
        ValueError: if no sample has a label, or, with `--on_bad_sample skip`, can be read.
    """
    if not any(bool((dataset[index]["labels"][1:] != IGNORE_INDEX).any()) for index in range(len(dataset))):
        raise ValueError(
            "No sample of --eval_data_path has a label, so there is no held-out loss: their answers are empty or lie "
            "beyond --model_max_length, or --on_bad_sample skip leaves all of their images and videos out. Look at the "
            "data with python -m llava.data.check, and at --image_folder and --video_folder."
        )


def held_out_loader(
    dataset: Any, collator: Any, batch_size: int, rank: int, world_size: int, workers: int = 0
) -> DataLoader:
    """This rank's share of a data set, in batches; all ranks have the same number of them."""
    whole = world_size * batch_size
    length = -(-len(dataset) // whole) * whole
    share = Subset(_Repeated(dataset, length), range(rank, length, world_size))
    return leave_signals_to_parent(DataLoader(share, batch_size, collate_fn=collator, num_workers=workers))


@torch.no_grad()
def held_out_loss(model: nn.Module, loader: DataLoader, prepare: Any, reduce: Any) -> dict[str, float]:
    """Mean cross entropy of a token, and of how many; the model is left in the mode it was in.

    Beside them stands, as `skipped`, how many samples could not be read, where there are any.

    Args:
        model: maps a batch to an output with `loss`, the mean over the batch's targets.
        loader: loader of `held_out_loader`.
        prepare: puts a batch where the model is.
        reduce: sums a tensor over ranks; every rank calls it once.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in loader:
        unread = sum(problem is not None for problem in batch.get("problems", ()))
        for name in REPORTED:
            batch.pop(name, None)
        targets = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        loss = model(**prepare(batch), return_logits=False, output_layouts=True, num_items_in_batch=1).loss
        sums += torch.tensor([float(loss), targets, unread], dtype=torch.float64)
    model.train(was_training)
    total, tokens, skipped = reduce(sums).tolist()
    result = {"loss": total / tokens if tokens else math.nan, "tokens": tokens}
    return result | {"skipped": skipped} if skipped else result
