"""transformers' Trainer with kernels in the decoder of its own model, and in nothing else."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from llava.model.compiled_layers import compile_layers
from llava.train.arguments import TrainingArguments


class OwnKernels(Trainer):
    """With `--torch_compile`, compiles the layers of the decoder, not the model whole; leaves Liger's as they are."""

    args: TrainingArguments

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.args.torch_compile:
            compile_layers(self.model, self.args.torch_compile_backend or "inductor", self.args.torch_compile_mode)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """As in transformers, without what would compile the whole model, drops between its layers included."""
        made: dict[str, Any] = super()._build_accelerator_args(**kwargs)
        made.pop("dynamo_plugin", None)
        return made

    def train(self, *arguments: Any, **options: Any) -> Any:
        """As in transformers, which would apply Liger's own patches to every model of the process."""
        asked, self.args.use_liger_kernel = self.args.use_liger_kernel, False
        try:
            return super().train(*arguments, **options)
        finally:
            self.args.use_liger_kernel = asked
