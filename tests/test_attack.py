"""A little of the attack in every run of the tests; docs/reliability.md has the figures of the whole."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from warm_python import warm_python

TESTS = Path(__file__).parent
QUICK = {
    "training": {"kills": 2, "signals": 1, "damages": 3, "full-disks": 1, "second-starts": 1},
    "evaluation": {
        "eval-kills": 2,
        "eval-interrupts": 1,
        "eval-damages": 2,
        "eval-full-disks": 1,
        "eval-second-starts": 1,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("program", QUICK)
def test_nothing_is_lost_by_an_attack(program: str, tmp_path: Path) -> None:
    """One process for all trials: each forks it instead of importing the libraries again."""
    output = tmp_path / "figures.json"
    words = [f"{name}={count}" for name, count in QUICK[program].items()]
    command = [warm_python(), "-m", "attack", *words, "--seed", "7", "--output", str(output)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent)))}
    ended = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, timeout=1500)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    attacks = json.loads(output.read_text())["attacks"]
    assert [attack["tried"] for attack in attacks] == list(QUICK[program].values())
    assert not any(attack["failures"] for attack in attacks)
