"""A batch's whole numbers as the host has them, so that a prompt is planned without asking the device.

Where its tokens, images and frames stand is planned from ids, masks, labels and sizes. A data loader moves these to the
device with everything else; reading them there would wait for all that the device has to do first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class HostInputs:
    """Copies that stay behind on the host: it has no `to`, by which data loaders move what they find.

    Attributes:
        tensors: tensors of whole numbers and flags on the host, by the names of the model's inputs.
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> HostInputs:
        """From the arguments of a model; waits for the device of those that lie on one."""
        held = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        return cls({name: value.cpu() for name, value in held.items() if not value.is_floating_point()})

    def in_place(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The same inputs, those of which there is a copy as it is on the host.

        Raises:
            ValueError: if a copy has another shape than the input.
        """
        for name in self.tensors.keys() & inputs.keys():
            given = inputs[name]
            if isinstance(given, Tensor) and given.shape != self.tensors[name].shape:
                raise ValueError(
                    f"host_inputs holds {name} of shape {tuple(self.tensors[name].shape)}, but {name} has "
                    f"{tuple(given.shape)}; make both from one batch, or leave host_inputs out."
                )
        return {name: self.tensors.get(name, given) if given is not None else None for name, given in inputs.items()}


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; a copy to an accelerator is not waited for."""
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")


def with_host_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of `forward`, by name, with `host_inputs` where a prompt on a device has to be planned; waits for it.

    Those of a prompt that is planned already, or came as embeddings, need none.
    """
    ids = inputs.get("input_ids")
    planned = any(inputs.get(name) is not None for name in ("host_inputs", "plan", "layout", "prefill"))
    if planned or not isinstance(ids, Tensor) or ids.device.type == "cpu":
        return dict(inputs)
    return {**inputs, "host_inputs": HostInputs.of(inputs)}


def on_host(inputs: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, Any]:
    """Inputs of `forward`, by name, with whole numbers and flags as `host_inputs` has them.

    Args:
        inputs: with `host_inputs`, where there are such.
        names: of those to return; None returns all.
    """
    chosen = dict(inputs) if names is None else {name: inputs[name] for name in names}
    held: HostInputs | None = inputs.get("host_inputs")
    return chosen if held is None else held.in_place(chosen)
