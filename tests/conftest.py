"""Tiny tensors are fastest on one thread; tables of data sets are kept for the length of the tests only."""

import atexit
import os
import shutil
import tempfile

import torch

torch.set_num_threads(1)

# Before the library that reads it is imported, and for processes that tests start as well.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="duet-llava-tables-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
