"""Plans of batches, made by the workers that load the data: the same training, and nothing asked of the device."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
import tiny
import torch
from tiny import chat, collate, pixels, tiny_llava
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.data.collator import SupervisedCollator
from llava.model.splice import SplicePlan

ROWS = [chat(1), chat(2, (0,)), chat(3, (2, 1))]
TEXT = [chat(2, (0,)), chat(6, (0, 0))]
SETTINGS = {"none": None, "duet": tiny.DUET, "to-zero": tiny.TO_ZERO, "text": tiny.T2V_ONLY}


def planned(model: Any, rows: list[tiny.Row] = ROWS, packing: str = "off") -> dict[str, Any]:
    """A batch as the trainer gets it, of samples as the data set has them; the plan has been to another process."""
    samples = [
        {
            "input_ids": torch.tensor(row.ids),
            "labels": torch.tensor(row.labels),
            "images": list(pixels(row.images)),
            "query_mask": torch.tensor(row.roles),
            "sample_id": str(number),
            "truncated": False,
        }
        for number, row in enumerate(rows)
    ]
    settings = dataclasses.replace(model.plan_settings(), packing=packing)
    made = SupervisedCollator(0, 56, settings)(samples)
    batch = {name: made[name] for name in ("input_ids", "attention_mask", "labels", "query_mask", "plan")}
    batch["images"] = made["images"].to(model.dtype)
    batch["plan"] = pickle.loads(pickle.dumps(batch["plan"]))
    return batch


def losses_and_gradients(model: Any, batch: dict[str, Any], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = model(**batch, **options).loss
    loss.backward()
    return loss.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("rows", [ROWS, TEXT], ids=["images", "text"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_with_a_plan_is_the_step_without(name: str, rows: list[tiny.Row]) -> None:
    model = tiny_llava(compression=SETTINGS[name]).train()
    batch = planned(model, rows)
    loss, found = losses_and_gradients(model, batch)
    plain, expected = losses_and_gradients(model, {key: batch[key] for key in batch if key != "plan"})
    assert torch.equal(loss, plain) and found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert any("mm_projector" in key for key in found), "tower and projector take part in a batch of text, too"


def test_workers_can_pack_the_rows_of_a_batch() -> None:
    model = tiny_llava(compression=tiny.DUET).train()
    batch = planned(model, packing="auto")
    assert batch["plan"].layout.is_packed and batch["plan"].source.shape == (1, sum(batch["plan"].layout.lengths))
    loss, found = losses_and_gradients(model, batch)
    later, same = losses_and_gradients(model, planned(model), packing="on")
    assert torch.equal(loss, later) and all(torch.equal(found[key], same[key]) for key in found)
    padded, expected = losses_and_gradients(model, planned(model), packing="off")
    torch.testing.assert_close(loss, padded)
    for key in found:
        torch.testing.assert_close(found[key], expected[key], atol=1e-12, rtol=1e-9)
    evaluated = model.eval()(**batch, use_cache=False)
    assert evaluated.layouts[0].is_packed, "as planned"
    with pytest.raises(ValueError, match="packing is 'off', but the plan"):
        model(**batch, packing="off")
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="The plan of the batch is packed, but the decoder attends by 'eager'"):
        model(**batch)


@pytest.mark.parametrize("packing", ["off", "on"])
@pytest.mark.parametrize("rows", [ROWS, TEXT], ids=["images", "text"])
@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_is_asked_of_the_device(name: str, rows: list[tiny.Row], packing: str) -> None:
    """On the meta device there is nothing to ask: every copy to the host, `item` and `nonzero` is an error."""
    model = tiny_llava(compression=SETTINGS[name]).train()
    batch = planned(model, rows)
    lengths = [layout.lengths for layout in model(**batch, packing=packing).layouts]
    model.to("meta")
    there = {key: value.to("meta") if isinstance(value, Tensor) else value for key, value in batch.items()}
    output = model(**there, num_items_in_batch=torch.tensor(7, device="meta"), packing=packing)
    output.loss.backward()
    assert output.loss.is_meta and [layout.lengths for layout in output.layouts] == lengths
    with pytest.raises((NotImplementedError, RuntimeError), match=r"[mM]eta"):
        model(**{key: there[key] for key in there if key != "plan"})


def test_a_plan_of_another_budget_is_refused() -> None:
    model = tiny_llava(compression=tiny.DUET)
    batch = planned(model)
    fewer = {**tiny.DUET, "v2v": {**tiny.DUET["v2v"], "contextual": 1}}
    for other in ("none", fewer, {**tiny.DUET, "t2v": {**tiny.DUET["t2v"], "queries": "text"}}):
        with pytest.raises(ValueError, match=r"The plan of the batch is for images of .* leave plan out"):
            model(**batch, compression=other)
    with pytest.raises(ValueError, match="The plan of the batch is for images"):
        model(**{**batch, "images": batch["images"][:-1]})


def test_other_labels_than_those_of_the_plan_are_counted() -> None:
    """As where a trainer shifts them itself."""
    model = tiny_llava(compression=tiny.DUET)
    batch = planned(model)
    labels = batch.pop("labels")
    assert model(**batch).loss is None
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    torch.testing.assert_close(model(**batch, shift_labels=shifted).loss, model(**batch, labels=labels).loss)


def test_a_plan_goes_to_a_device_whole() -> None:
    plan = planned(tiny_llava(compression=tiny.DUET))["plan"].to("meta")
    assert isinstance(plan, SplicePlan) and plan.ids.is_meta and plan.source.is_meta and plan.targets.shifted.is_meta
    assert all(value.is_meta for value in vars(plan.layout).values() if isinstance(value, Tensor))


def test_rows_that_are_too_long_are_cut_by_the_plan() -> None:
    model = tiny_llava(compression=tiny.T2V_ONLY, tokenizer_model_max_length=24).train()
    batch = planned(model)
    output = model(**batch)
    assert max(output.layouts[0].lengths) == 24
    without = model(**collate(ROWS, labels=True), images=batch["images"])
    assert torch.equal(output.loss, without.loss)
