"""Tiny tensors are fastest on one thread; tables of data sets are kept for the length of the tests only."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections import Counter

import pytest
import torch
from forked import COLLECTED

torch.set_num_threads(1)
gc.set_threshold(*COLLECTED)

collect_ignore = [] if "TORCHVISION_AT" in os.environ else ["with_torchvision"]  # see test_stock_processors.py

# Before the library that reads it is imported, and for processes that tests start as well.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="duet-llava-tables-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.hookimpl(optionalhook=True)  # tests/with_torchvision run without xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Test processes: one more than cores, at most 4. Tests that wait for programs and ranks leave theirs idle."""
    return min(len(os.sched_getaffinity(0)) + 1, 4)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the tests, file by file, the files with the most slow ones come first.

    The longest file would otherwise be begun when the other processes have nothing left to do.
    """
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """What the libraries made when they were imported is not searched by every later garbage collection.

    accelerate collects at the start of each training; among all modules that took half the time of a tiny one.
    """
    _set_aside()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Nor is what is left of the files of tests that are done."""
    if nextitem is not None and nextitem.path != item.path:
        _set_aside()


def _set_aside() -> None:
    gc.collect()
    gc.freeze()
