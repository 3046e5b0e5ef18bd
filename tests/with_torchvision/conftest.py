"""Makes torchvision importable beside a torch for CPUs, before anything imports transformers.

PyPI's torchvision declares its operators in a part that the CPU build of torch does not load; two of them are asked for
on import. What is Python over torch works without them. transformers picks other image processors where torchvision is
there, so these tests run in a process of their own; see tests/test_stock_processors.py.
"""

from __future__ import annotations

import os
import sys

import torch

assert "transformers" not in sys.modules
sys.path.insert(0, os.environ["TORCHVISION_AT"])
try:
    import torchvision
except RuntimeError:
    sys.modules.pop("torchvision", None)
    OPERATORS = torch.library.Library("torchvision", "DEF")
    OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    OPERATORS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]
    import torchvision  # noqa: F401
