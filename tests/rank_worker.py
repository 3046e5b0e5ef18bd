"""One of two data-parallel processes: trains a step on its own samples of every case, writes down what it called.

RANK=0 python rank_worker.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from tiny import DUET, Row, chat, collate, pixels, tiny_llava
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

TEXT, IMAGE, FIVE = chat(2, (0,)), chat(1), chat(4, (5,))
RANDOM = {"v2v": DUET["v2v"], "t2v": DUET["t2v"] | {"score": "random"}}
BEFORE = {"t2v": {"layers": [3, 5], "keep": [1.0, 0.5], "scored_by": "before"}}
ALL_KEPT = {"t2v": {"layers": [2, 4], "keep": [1.0, 0.5]}}
CASES = {  # compression, and the rows of each rank in turn
    "text-on-one-rank": (DUET, [[TEXT, TEXT], [IMAGE, FIVE]]),
    "text-everywhere": (DUET, [[TEXT], [TEXT, TEXT]]),
    "nothing-to-drop-on-one-rank": (ALL_KEPT, [[TEXT], [IMAGE]]),
    "scored-before-the-drop": (BEFORE, [[TEXT], [IMAGE]]),
    "controls": (RANDOM, [[TEXT], [IMAGE]]),
    "no-compression": (None, [[TEXT], [FIVE]]),
}


def samples(case: str, rank: int) -> tuple[list[Row], Tensor]:
    """Rows of a rank and their images; a text-only batch brings one dummy."""
    rows = CASES[case][1][rank]
    count = sum(row.images for row in rows)
    return rows, pixels(count, seed=rank) if count else torch.zeros(1, 3, 56, 56, dtype=torch.float64)


def record_calls(model) -> list[str]:
    """Fill a list with the names of the modules that hold weights, as they are called."""
    calls: list[str] = []
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda *call, name=name: calls.append(name))
    return calls


def run(folder: Path, case: str, rank: int) -> None:
    """A training step and a validation step; leaves `CASE-RANK.json` and `CASE-RANK.pt`."""
    model = tiny_llava(compression=CASES[case][0]).train()
    calls = record_calls(model)
    rows, images = samples(case, rank)
    parallel = DistributedDataParallel(model)
    parallel(**collate(rows, labels=True), images=images).loss.backward()
    training = list(calls)
    calls.clear()
    with torch.no_grad():
        model.eval()(**collate(rows, labels=True), images=images, return_logits=False)
    (folder / f"{case}-{rank}.json").write_text(json.dumps({"training": training, "validation": calls}))
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    torch.save(gradients, folder / f"{case}-{rank}.pt")


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=300))
    for case in CASES:
        run(folder, case, rank)
    distributed.barrier()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may abort the interpreter's own way out


if __name__ == "__main__":
    main(Path(sys.argv[1]))
