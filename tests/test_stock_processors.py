"""Runs the tests of tests/with_torchvision, which compare with transformers' processors of images and videos.

Those need torchvision, which must not be among the other packages: transformers would take other image processors
everywhere. `scripts/lib/setup.sh` puts it in a folder of its own, and one process with that folder runs them all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "with_torchvision"
TORCHVISION = Path(sys.prefix) / "torchvision"


@pytest.mark.skipif(not (TORCHVISION / "torchvision").is_dir(), reason=f"there is no torchvision in {TORCHVISION}")
@pytest.mark.slow
def test_inputs_are_those_of_transformers_own_processors() -> None:
    settings = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    settings["TORCHVISION_AT"] = str(TORCHVISION)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", str(FOLDER)]
    done = subprocess.run(command, env=settings, cwd=FOLDER.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
