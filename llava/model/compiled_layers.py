"""The decoder's layers compiled with `torch.compile`, each by itself.

What lies between layers (drops, masks, the cache) stays as it is, so a graph is made once for all layers of a decoder
rather than for the whole model, and lengths are symbols in it: a drop or a longer batch compiles nothing again. That
holds for padded rows; attention over packed ones goes by the lengths of rows, which a graph takes for constants, so
calls should say `packing="off"`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

BACKENDS = ("inductor", "aot_eager", "eager")
"""`inductor` makes kernels; the other two are for finding faults."""
MODES = ("default", "max-autotune-no-cudagraphs")
"""torch's other modes record CUDA graphs, which hold for one length."""


def compile_layers(model: Any, backend: str = "inductor", mode: str | None = None) -> None:
    """Compile each decoder layer at its first call, in place: names of weights, modules and hooks stay as they are.

    Args:
        model: model of any family; peft's model may stand around it.
        backend: one of `BACKENDS`.
        mode: one of `MODES`; None is `default`.

    Raises:
        ValueError: if the backend or the mode is another.
    """
    if backend not in BACKENDS:
        raise ValueError(f"--torch_compile_backend is {backend!r}; accepted are {', '.join(BACKENDS)}.")
    if mode is not None and mode not in MODES:
        raise ValueError(
            f"--torch_compile_mode is {mode!r}; accepted are {', '.join(MODES)}: the others record CUDA graphs, which "
            "hold for one length, and lengths change from batch to batch and from stage to stage."
        )
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers: nn.ModuleList = inner.decoder.layers
    for layer in layers:
        layer.compile(backend=backend, dynamic=True, mode=None if mode == "default" else mode)
