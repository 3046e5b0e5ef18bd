"""Kind `full`: token ids and images through the whole model, to logits, loss and gradients.

Shapes: B rows, T positions of the prompt, L after splicing.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from llava.compression import CompressionConfig, TokenLayout
from llava.constants import IGNORE_INDEX
from llava.model import LlavaLlamaForCausalLM
from llava.model.loss import labels_at
from llava.verify.case import Case, UnreadableCaseError
from llava.verify.case_values import Measured
from llava.verify.stages import measure_stages, recorded_counts
from llava.verify.voters import CasePrompt, leave_alone, match_images

_GRADIENT, _NORM = "grad:", "grad_norm:"


def replay(case: Case, model: LlavaLlamaForCausalLM, prompt: CasePrompt, compression: CompressionConfig) -> Measured:
    """Everything a `full` case records; in training with dropout off, the tower frozen and a backward pass."""
    model.train(case.training)
    with contextlib.nullcontext() if case.training else torch.no_grad():
        embeddings, layout = prepare(case, model, prompt, compression)
        output = model(
            inputs_embeds=embeddings,
            layout=leave_alone(layout, prompt.left_alone),
            labels=None if prompt.labels is None else prompt.labels.to(model.device),
            compression=compression,
            use_cache=False,
            return_logits=True,
        )
    final = output.layouts[-1]
    measured: Measured = {
        "inputs_embeds": embeddings,
        "prepared_mask": layout.valid,
        "prepared_labels": _labels(layout, prompt.labels),
        "logits": output.logits,
        "loss": None if output.loss is None else output.loss[None],
        "final_mask": final.valid,
        "final_labels": _labels(final, prompt.labels),
        "visual_tokens_before": torch.tensor(model.visual_tokens_per_image(compression)),
        **measure_stages(output.layouts, output.scores),
    }
    if case.training and output.loss is not None:
        output.loss.backward()
        measured |= _gradients(model, recorded(case))
    return measured


def recorded(case: Case) -> dict[str, Tensor]:
    """What the case recorded, with the numbers that stand in `case.json`."""
    found = {**case.outputs, **recorded_counts(case)}
    if case.settings.get("visual_tokens_before") is not None:
        found["visual_tokens_before"] = torch.tensor(int(case.settings["visual_tokens_before"]))
    for name, norm in (case.settings.get("grad_norms") or {}).items():
        found[_NORM + name] = torch.tensor(norm or 0.0, dtype=torch.float64)
    return found


def prepare(
    case: Case, model: LlavaLlamaForCausalLM, prompt: CasePrompt, compression: CompressionConfig
) -> tuple[Tensor, TokenLayout]:
    """Embeddings [B, L, D] and layout of a prompt in which exactly the published voters vote."""
    return model.prepare_multimodal_inputs(
        prompt.ids.to(model.device),
        prompt.valid,
        prompt.labels,
        match_images(prompt.is_image, case.images()),
        prompt.query_mask,
        compression,
    )


def _labels(layout: TokenLayout, labels: Tensor | None) -> Tensor:
    """Labels of the prompt at the positions of a layout, int64 [B, L]."""
    return torch.full_like(layout.positions, IGNORE_INDEX) if labels is None else labels_at(layout, labels)


def _gradients(model: LlavaLlamaForCausalLM, recorded: dict[str, Tensor]) -> Measured:
    """Gradients, and their norms in float64, of the parameters that the case recorded them for."""
    parameters = dict(model.named_parameters())
    measured: Measured = {}
    for name in recorded:
        kind = next((prefix for prefix in (_GRADIENT, _NORM) if name.startswith(prefix)), None)
        if kind is None:
            continue
        parameter = parameters.get(name.removeprefix(kind))
        if parameter is None:
            raise UnreadableCaseError(f"{name!r} is recorded, but the model has no parameter of that name.")
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        measured[name] = gradient if kind == _GRADIENT else gradient.double().norm()
    return measured
