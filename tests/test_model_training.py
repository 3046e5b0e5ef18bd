"""Loss, gradients and the making of batches, against the full computation on one sample at a time."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import reference
import tiny
import torch
from tiny import Row, chat, collate, images_of, pixels, stock_llama, tiny_llava
from torch import Tensor, nn
from torch.nn import functional as F

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.llava_config import LlavaConfig
from llava.model.loss import labels_at
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.weights import load_projector
from llava.train.checkpoint import adapter_weights

ROWS = [chat(1), chat(2, (0,)), chat(3, (2, 1))]
IMAGES = pixels(4)
SETTINGS = {"none": None, "duet": tiny.DUET, "to-zero": tiny.TO_ZERO}


def step(model, rows: list[Row] = ROWS, images: Tensor = IMAGES, side: str = "right", **kwargs):
    return model(**collate(rows, side, labels=True), images=images, **kwargs)


def gradients(model) -> dict[str, Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(measured: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert measured.keys() == expected.keys()
    for name, gradient in measured.items():
        torch.testing.assert_close(gradient, expected[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def full_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """transformers' formula on logits of every position."""
    vocabulary = logits.shape[-1]
    return F.cross_entropy(logits[:, :-1].reshape(-1, vocabulary), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_all_gradients_equal_those_of_the_full_logits(name: str, side: str):
    model = tiny_llava(compression=SETTINGS[name]).train()
    output = step(model, side=side)
    assert output.logits is None and output.past_key_values is None
    output.loss.backward()
    measured = gradients(model)
    whole = step(model, side=side, return_logits=True)
    expected = full_loss(whole.logits, collate(ROWS, side, labels=True)["labels"])
    expected.backward()
    torch.testing.assert_close(output.loss.double(), expected, atol=1e-6, rtol=0)
    assert_same(measured, gradients(model), atol=1e-6, rtol=1e-5)


def test_text_training_equals_the_stock_model():
    model = tiny_llava().train()
    stock = stock_llama(model).train()
    rows = [chat(2, (0,)), chat(6, (0, 0))]
    batch = collate(rows, labels=True)
    step(model, rows, pixels(1)).loss.backward()
    roles = batch.pop("query_mask")
    expected = stock(**batch)
    expected.loss.backward()
    theirs = gradients(stock)
    measured = gradients(model)
    projector = {name for name in measured if "mm_projector" in name}
    assert projector and not any(measured.pop(name).any() for name in projector), "the dummy image adds nothing"
    assert_same(measured, theirs, atol=1e-6, rtol=1e-5)
    assert roles.shape == batch["input_ids"].shape


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_equals_the_samples_one_by_one(name: str):
    model = tiny_llava(compression=SETTINGS[name])
    alone = [
        reference.answer(model, row, own, model.compression)
        for row, own in zip(ROWS, images_of(ROWS, IMAGES), strict=True)
    ]
    expected = sum(answer.loss_sum() for answer in alone) / sum(answer.supervised() for answer in alone)
    torch.testing.assert_close(step(model).loss, expected.float(), atol=1e-5, rtol=0)


def test_the_first_token_of_a_row_is_never_a_target():
    """With left padding it has a column before it, but padding predicts nothing."""
    model, long = tiny_llava(compression=tiny.DUET), chat(6, (0, 0))
    short = Row([5, 6, 7], [0] * 3, [5, 6, 7])
    losses = [step(model, [short, long], pixels(1), side).loss for side in ("right", "left")]
    left = collate([short, long], "left", labels=True)
    places = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    losses.append(model(**left, position_ids=places).loss)  # text that is not spliced keeps its padding
    answers = [reference.answer(model, row, pixels(0), model.compression) for row in (short, long)]
    expected = sum(answer.loss_sum() for answer in answers) / sum(answer.supervised() for answer in answers)
    for loss in losses:
        torch.testing.assert_close(loss, expected.float(), atol=1e-5, rtol=0)


def test_gradient_accumulation_equals_one_big_batch():
    model = tiny_llava(compression=tiny.DUET).train()
    step(model).loss.backward()
    expected = gradients(model)
    items = sum(label != IGNORE_INDEX for row in ROWS for label in row.labels[1:])
    losses = []
    for row, own in zip(ROWS, images_of(ROWS, IMAGES), strict=True):
        own = own if len(own) else pixels(1, seed=5)  # a text sample brings a dummy
        loss = step(model, [row], own, num_items_in_batch=torch.tensor(items)).loss
        losses.append(loss.detach())
        loss.backward()
    torch.testing.assert_close(sum(losses), step(model).loss.detach(), atol=1e-6, rtol=0)
    assert_same(gradients(model), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("items", [None, 7])
def test_a_batch_without_labels_has_loss_zero_with_a_graph(items: int | None):
    model = tiny_llava(compression=tiny.DUET).train()
    silent = [Row(row.ids, row.roles, [IGNORE_INDEX] * len(row.ids)) for row in ROWS]
    loss = step(model, silent, num_items_in_batch=items).loss
    loss.backward()
    assert loss.item() == 0
    found = gradients(model)
    assert "lm_head.weight" in found and "model.mm_projector.0.weight" in found
    assert not any(gradient.any() for gradient in found.values())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`", "ignore:None of the inputs")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", ["none", "duet"])
def test_gradient_checkpointing_changes_nothing(name: str, use_reentrant: bool):
    model = tiny_llava(compression=SETTINGS[name]).train()
    expected_loss = step(model).loss
    expected_loss.backward()
    expected = gradients(model)
    runs: list[int] = []
    model.model.layers[3].mlp.register_forward_pre_hook(lambda *call: runs.append(1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    loss = step(model).loss
    loss.backward()
    assert len(runs) == 2, "the layer was recomputed"
    assert torch.equal(loss, expected_loss)
    assert_same(gradients(model), expected, atol=1e-12, rtol=0)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`", "ignore:None of the inputs")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_frozen_language_model_passes_gradients_to_the_projector(use_reentrant: bool):
    model = tiny_llava(compression=tiny.DUET).train()
    step(model).loss.backward()
    expected = {name: grad for name, grad in gradients(model).items() if "mm_projector" in name}
    model.requires_grad_(False)
    model.model.mm_projector.requires_grad_(True)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    step(model).loss.backward()
    assert_same(gradients(model), expected, atol=1e-12, rtol=0)
    step(model, [chat(2, (0,))], pixels(1)).loss.backward()
    assert not any(gradient.any() for gradient in gradients(model).values()), "text alone teaches it nothing"


def test_the_tower_is_frozen_by_default_and_learns_when_unfrozen():
    model = tiny_llava(compression=tiny.DUET).train()
    step(model).loss.backward()
    assert not any("vision_tower" in name for name in gradients(model))
    model.get_vision_tower().requires_grad_(True)
    step(model).loss.backward()
    found = gradients(model)
    name = "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"
    weight = dict(model.named_parameters())[name].data.view(-1)
    place = found[name].abs().argmax()

    @torch.no_grad()
    def loss_at(change: float) -> Tensor:
        weight[place] += change
        output = step(model, return_logits=True)
        weight[place] -= change
        return full_loss(output.logits, collate(ROWS, labels=True)["labels"])

    slope = (loss_at(1e-4) - loss_at(-1e-4)) / 2e-4
    torch.testing.assert_close(slope, found[name].view(-1)[place], rtol=2e-3, atol=0)


def kept(output) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for layout in output.layouts for row in layout.alive()]


@pytest.mark.parametrize("queries", ["last", "text", "salient"])
@pytest.mark.parametrize("flags", ["given", "derived"])
def test_validation_chooses_like_training_and_never_asks_an_answer(queries: str, flags: str):
    settings = {"t2v": {"layers": [2, 4], "keep": [0.5, 0.25], "queries": queries}}
    model = tiny_llava(compression=settings)
    rows = [chat(3, (2, 1)), chat(8, (1, 0, 0))]
    batch, images = collate(rows, labels=True), pixels(4)
    if flags == "derived":
        del batch["query_mask"]
    training = model.train()(**batch, images=images)
    validation = model.eval()(**batch, images=images, return_logits=False)
    assert validation.logits is None
    assert kept(training) == kept(validation)
    torch.testing.assert_close(training.loss, validation.loss)
    first = training.layouts[0]
    assert not first.vote[labels_at(first, batch["labels"]) != IGNORE_INDEX].any() and first.vote.any(dim=1).all()
    answers = batch["labels"] != IGNORE_INDEX
    last_answer = answers & (answers.flip(1).cumsum(1).flip(1) <= 2)  # nothing that votes stands behind it
    changed = batch | {"input_ids": torch.where(last_answer, 3 + (batch["input_ids"] + 5) % 40, batch["input_ids"])}
    assert not torch.equal(changed["input_ids"], batch["input_ids"])
    assert kept(model(**changed, images=images)) == kept(validation), "the answer does not choose"


def test_every_turn_votes():
    model, row = tiny_llava(compression={"t2v": {"layers": [2], "keep": [0.5]}}), chat(8, (1, 0, 0))
    layout = model(**collate([row], labels=True), images=pixels(1)).layouts[0]
    expected = [
        place + (tiny.PATCHES - 1) * (place > row.ids.index(IMAGE_TOKEN_INDEX))
        for place, role in enumerate(row.roles)
        if role & 4
    ]
    assert len(expected) == 3 and layout.vote[0].nonzero().flatten().tolist() == expected


def test_truncation_says_what_it_cuts_and_keeps_shapes_right(caplog):
    model = tiny_llava(compression=tiny.T2V_ONLY, tokenizer_model_max_length=24).train()
    rows = [chat(1), chat(2, (0,)), chat(3, (2, 1))]
    whole = [
        [label for token, label in zip(row.ids, row.labels, strict=True) for _ in range(16 if token < 0 else 1)]
        for row in rows
    ]
    lost = sum(label != IGNORE_INDEX for labels in whole for label in labels[24:])
    with caplog.at_level(logging.WARNING):
        output = model(**collate(rows, labels=True), images=IMAGES, packing="off")
    too_long = [number for number, labels in enumerate(whole) if len(labels) > 24]
    message = caplog.records[-1].getMessage()
    assert f"{len(too_long)} of 3 rows are longer than 24 tokens" in message
    assert f"{lost} answer tokens among it (rows {too_long})" in message
    first = output.layouts[0]
    assert first.valid.shape[1] == 24 and first.lengths == tuple(min(24, len(labels)) for labels in whole)
    assert first.visual == tuple(first.is_visual.sum(dim=1).tolist()) == first.entered
    assert output.layouts[1].visual == tuple(count // 2 for count in first.entered)
    assert output.loss.isfinite()
    output.loss.backward()
    caplog.clear()
    prompt = model.eval()(**collate(rows), images=IMAGES)
    assert prompt.layouts[0].valid.shape[1] > 24 and not caplog.records, "a prompt is never cut"


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_wrong_number_of_images_is_an_error_that_says_so(count: int):
    with pytest.raises(ValueError, match=f"hold 4 image placeholders in 3 rows, but {count} images were given"):
        step(tiny_llava(), images=pixels(count) if count else None)


def test_one_image_a_row_where_text_rows_bring_dummies():
    model, rows = tiny_llava(compression=tiny.DUET), [chat(1), chat(2, (0,)), chat(7)]
    images = pixels(3)
    expected = step(model, rows, images[[0, 2]])
    torch.testing.assert_close(step(model, rows, images).loss, expected.loss)
    images[1] = 1e6
    torch.testing.assert_close(step(model, rows, images).loss, expected.loss)


def test_images_may_come_as_list_or_in_crops():
    model, row = tiny_llava(compression=tiny.DUET), chat(1)
    images = pixels(3)
    expected = step(model).loss
    torch.testing.assert_close(step(model, images=list(IMAGES)).loss, expected)
    at = row.ids.index(IMAGE_TOKEN_INDEX)
    triple = Row(*(values[:at] + [values[at]] * 3 + values[at + 1 :] for values in (row.ids, row.roles, row.labels)))
    crops, apart = step(model, [row], [images]), step(model, [triple], images)
    torch.testing.assert_close(crops.loss, apart.loss)
    assert crops.layouts[0].entered == apart.layouts[0].entered == (30,)
    assert crops.layouts[0].image.max() == 0 and apart.layouts[0].image.max() == 2


def test_a_model_without_tower_says_so():
    model = tiny_llava(mm_vision_tower=None)
    assert model(**collate([chat(2, (0,))])).logits.isfinite().all()
    with pytest.raises(ValueError, match="no vision tower but was given an image"):
        step(model)


# ------------------------------------------------------------------------------------------------------- projectors


@pytest.mark.parametrize(("kind", "linears"), [("linear", 1), ("mlp1x_gelu", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)])
def test_projector_types(kind: str, linears: int):
    projector = build_vision_projector(SimpleNamespace(mm_projector_type=kind, mm_hidden_size=16, hidden_size=32))
    maps = [module for module in projector.modules() if isinstance(module, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in maps] == [(16, 32)] + [(32, 32)] * (linears - 1)
    assert sum(isinstance(module, nn.GELU) for module in projector.modules()) == linears - 1
    model = tiny_llava(mm_projector_type=kind)
    assert step(model).loss.isfinite()


def test_identity_projector_and_wrong_types():
    assert isinstance(
        build_vision_projector(LlavaConfig(mm_projector_type="identity", mm_hidden_size=8, hidden_size=8)), nn.Identity
    )
    with pytest.raises(
        ValueError, match="mm_projector_type is identity, but the tower is 16 wide and the language model 32"
    ):
        tiny_llava(mm_projector_type="identity")
    for kind in ("mlp0x_gelu", "mlp2x_relu", "qformer"):
        with pytest.raises(
            ValueError, match=f"mm_projector_type is '{kind}'; it must be linear, identity or mlpNx_gelu"
        ):
            tiny_llava(mm_projector_type=kind)


def test_projector_file_round_trip_and_what_does_not_fit(tmp_path):
    source, path = tiny_llava(seed=3), tmp_path / "mm_projector.bin"
    weights = adapter_weights(source)
    assert sorted(weights) == [f"model.mm_projector.{part}" for part in ("0.bias", "0.weight", "2.bias", "2.weight")]
    torch.save(weights, path)
    model = tiny_llava(seed=4)
    load_projector(model.model.mm_projector, str(path))
    for name, weight in model.model.mm_projector.state_dict().items():
        assert torch.equal(weight, weights["model.mm_projector." + name])
    with pytest.raises(ValueError, match=r"holds 'mm_projector.2.weight' of shape .* which the model lacks"):
        load_projector(tiny_llava(mm_projector_type="mlp1x_gelu").model.mm_projector, str(path))
    with pytest.raises(ValueError, match=r"lacks 'mm_projector.4.weight' of shape"):
        load_projector(tiny_llava(mm_projector_type="mlp3x_gelu").model.mm_projector, str(path))
    with pytest.raises(ValueError, match=r"has shape \(32, 16\), but the model needs \(64, 16\)"):
        load_projector(tiny_llava(width=64, heads=8).model.mm_projector, str(path))
    with pytest.raises(ValueError, match="There is no weight file"):
        load_projector(model.model.mm_projector, str(tmp_path / "nothing.bin"))
    name = "model.mm_projector.2.bias"
    for broken, words in (
        ({name: weights[name].index_fill(0, torch.tensor([1]), torch.nan)}, f"'{name}' in .* holds NaN, infinity or"),
        ({name: weights[name].long()}, f"'{name}' in .* holds NaN, infinity or whole numbers, which no training"),
        ({f"base_model.{name}": weights[name] * 0}, rf"holds the projector twice \(.*base_model.{name}\); keep one"),
    ):
        torch.save(weights | broken, path)
        with pytest.raises(ValueError, match=words):
            load_projector(model.model.mm_projector, str(path))
    assert torch.equal(model.model.mm_projector[2].bias, weights[name]), "nothing of it was taken"
    torch.save(weights | {"model.vision_tower.embeddings.position_ids": torch.arange(5)}, path)  # a shard of a model
    load_projector(model.model.mm_projector, str(path))
