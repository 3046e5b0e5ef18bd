"""What V2V adds to the vision tower, against the same tower run to the same layer without it.

python -m llava.bench.tower --batch-size 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
from transformers import CLIPVisionConfig

from llava.common.number_flags import count
from llava.common.program import as_program
from llava.compression.config import CompressionConfig
from llava.cost.machine import measured_on
from llava.cost.timing import interleaved, spread
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.known_towers import CLIP_LARGE_336


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Cost of V2V in the vision tower, ViT-L/14-336 with random weights.")
    parser.add_argument("--compression", nargs="+", default=["duet-192", "duet-128", "duet-64"])
    parser.add_argument("--batch-size", type=count(), default=2)
    parser.add_argument("--repeats", type=count(), default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    torch.manual_seed(0)
    tower = CLIPVisionTower("random weights", config=CLIPVisionConfig(**CLIP_LARGE_336))
    tower.to(device, getattr(torch, options.dtype)).eval()
    images = torch.randn(options.batch_size, 3, 336, 336, device=device, dtype=tower.dtype)
    variants: dict[str, Callable[[], object]] = {"without V2V": partial(tower, images)}
    for name in options.compression:
        variants[name] = partial(tower, images, CompressionConfig.resolve(name).v2v)
    with torch.no_grad():
        seconds = interleaved(variants, options.repeats, device)
    print(measured_on(device))
    print(f"ViT-L/14-336, layer -2, batch {options.batch_size}, {options.dtype}, median of {options.repeats} (range)")
    plain = median(seconds["without V2V"])
    for name, runs in seconds.items():
        print(f"{name:12} {spread(runs)}  {median(runs) / plain - 1:+.1%}")


if __name__ == "__main__":
    sys.exit(as_program(main))
