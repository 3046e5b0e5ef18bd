"""Tiny tensors are fastest on one thread; several threads would wait for each other."""

import torch

torch.set_num_threads(1)
