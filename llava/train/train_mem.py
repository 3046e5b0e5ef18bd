"""LLaVA's entry to training: `python llava/train/train_mem.py ...`, also under torchrun and deepspeed, or with `-m`."""

import sys
from pathlib import Path

if not __package__:
    # Run as a file, Python looks for modules beside it; the package lies two folders up.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from llava.train.launch import run_and_exit
from llava.train.train import train

if __name__ == "__main__":
    run_and_exit(train)
