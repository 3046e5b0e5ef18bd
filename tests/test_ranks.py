"""Data-parallel ranks call the same modules in the same order whatever their samples hold (promise 6)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rank_worker import CASES, samples
from tiny import collate, tiny_llava

TESTS = Path(__file__).parent


PATIENCE = 900  # seconds for start and all cases; a collective call that a rank waits for in vain fails after 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks, started once for all cases, left what they did."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(TESTS / "rank_worker.py"), str(folder)]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    started = time.monotonic()
    ranks = []
    for rank in (0, 1):
        environment = os.environ | {"RANK": str(rank), "PYTHONPATH": path}
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=PATIENCE - (time.monotonic() - started))
            assert rank.returncode == 0, errors
    except subprocess.TimeoutExpired:
        pytest.fail("the ranks hang: they do not make the same collective calls")
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    return folder


@pytest.mark.parametrize("case", CASES)
def test_ranks_make_the_same_calls(case: str, folder: Path):
    calls = [json.loads((folder / f"{case}-{rank}.json").read_text()) for rank in (0, 1)]
    assert calls[0] == calls[1]
    for name in ("embeddings.patch_embedding", "mm_projector.0", "layers.4.self_attn.k_proj", "lm_head"):
        assert any(name in call for call in calls[0]["training"]), f"{name} ran"
    scoring = [call for call in calls[0]["training"] if call == "model.layers.2.self_attn.k_proj"]
    assert len(scoring) == (1 if case in ("controls", "no-compression") else 2), "once to rank, once to run"


@pytest.mark.parametrize("case", CASES)
def test_ranks_average_their_gradients(case: str, folder: Path):
    expected: dict[str, torch.Tensor] = {}
    for rank in (0, 1):
        model = tiny_llava(compression=CASES[case][0]).train()
        rows, images = samples(case, rank)
        model(**collate(rows, labels=True), images=images).loss.backward()
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                expected[name] = expected.get(name, 0) + weight.grad / 2
    for rank in (0, 1):
        gradients = torch.load(folder / f"{case}-{rank}.pt", weights_only=True)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-9, rtol=1e-6)
