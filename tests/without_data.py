"""A device that holds no numbers: whatever would wait for a device fails on it, on any machine.

It is torch's `meta`: tensors with a shape and without content. What asks it for a number, for a shape that depends on
numbers or for a copy cannot go on, as nothing does on an accelerator without waiting. `NothingWaits` names what it was
and also refuses what `meta` would let pass: copies from the host that are waited for.

What it cannot see: kernels that wait inside an accelerator's own code, and branches that a real device would take.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
_ASKS = (
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
)
"""Operators whose result, or its shape, the host has to know from numbers on the device."""


class WaitsForTheDeviceError(AssertionError):
    """Something in a step would have waited."""


class NothingWaits(TorchDispatchMode):
    """Fails on what would wait for the device.

    Args:
        allowed: names of functions inside which anything may wait.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        super().__init__()
        self.allowed = frozenset(allowed)
        self.used: set[str] = set()
        self._of_python = _FromPythonValues(self.refuse)

    def __enter__(self) -> NothingWaits:
        self._of_python.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._of_python.__exit__(*error)

    def refuse(self, what: str) -> None:
        """Raise, unless a function that may wait is running."""
        inside = self.allowed & {frame.name for frame in traceback.extract_stack()}
        if not inside:
            raise WaitsForTheDeviceError(what)
        self.used |= inside

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        problem = _problem(func, args, kwargs, given)
        if problem is not None:
            self.refuse(f"{func} {problem}")
        if _to_the_host(func, args, kwargs):
            (tensor, *_) = args
            return torch.zeros(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype)
        return func(*args, **kwargs)


class _FromPythonValues(TorchFunctionMode):
    """Sees tensors that are made on the device of values of Python, which torch copies from the host and waits for."""

    def __init__(self, refuse: Callable[[str], None]) -> None:
        super().__init__()
        self._refuse = refuse

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and not isinstance(args[0], Tensor):
            device = kwargs.get("device")
            empty = isinstance(args[0], list) and not args[0]
            if device is not None and torch.device(device).type == DEVICE.type and not empty:
                self._refuse(f"{func.__name__} makes a tensor of values of Python and waits for the copy")
        if func is Tensor.new_tensor and _on_device(args[0]) and not isinstance(args[1], Tensor):
            self._refuse("new_tensor makes a tensor of values of Python and waits for the copy")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and _on_device(args[0]):
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in parts):
                self._refuse("an index that is a list of Python is copied from the host and waited for")
        return func(*args, **kwargs)


def _on_device(tensor: Tensor) -> bool:
    return tensor.device.type == DEVICE.type


def _problem(func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> str | None:
    """Why a call waits, in words; None if it does not."""
    name = func.overloadpacket.__name__
    if name in ("_to_copy", "copy_"):
        return _copy_problem(name, args, kwargs)
    if not any(map(_on_device, given)):
        return None
    if name in _ASKS and not (name == "repeat_interleave" and kwargs.get("output_size") is not None):
        return "asks the device for a number"
    if name in ("index", "index_put", "index_put_", "_index_put_impl_") and _on_device(args[0]):
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return "asks the device how many entries of a mask are true"
        if not all(map(_on_device, indices)):
            return "copies indices from the host and waits for that"
    return None


def _copy_problem(name: str, args: Any, kwargs: Any) -> str | None:
    target = kwargs.get("device") if name == "_to_copy" else args[0].device
    source = args[0].device if name == "_to_copy" else args[1].device
    if target is None or torch.device(target).type == source.type:
        return None
    waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
    return f"copies from {source.type} to {torch.device(target).type} and waits for that" if waits else None


def _to_the_host(func: Any, args: Any, kwargs: Any) -> bool:
    target = kwargs.get("device")
    to_host = target is not None and torch.device(target).type == "cpu"
    return func.overloadpacket.__name__ == "_to_copy" and to_host and _on_device(args[0])
