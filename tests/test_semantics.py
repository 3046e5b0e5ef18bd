"""The numbered promises of docs/design.md, each against a computation that shares no code with the model.

The oracle is `reference.answer`: one sample, no padding, no cache, plain loops.
"""

from __future__ import annotations

import pytest
import reference
import tiny
import torch
from tiny import Row, chat, collate, images_of, pixels, run_spliced, stock_llama, stock_tower, tiny_llava
from torch import Tensor
from torch.nn import functional as F

from llava.compression import QueryRole
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

CLOSE = {"atol": 5e-5, "rtol": 0}  # transformers' eager attention computes in float32 whatever the data type
EXACT = {"atol": 1e-9, "rtol": 0}
COMPRESSIONS = {
    "none": None,
    "duet": tiny.DUET,
    "t2v-only": tiny.T2V_ONLY,
    "to-zero": tiny.TO_ZERO,
    "v2v-only": tiny.V2V_ONLY,
    "original-positions": tiny.ORIGINAL,
    "scored-before": tiny.BEFORE,
}
MIXED = [chat(1), chat(2, (0,)), chat(3, (2, 1)), chat(4, (5,)), chat(5, (0, 1))]


def run(model, rows: list[Row], images: Tensor, side: str = "right", **kwargs):
    return run_spliced(model, collate(rows, side), images if len(images) else None, **kwargs)


def by_row(output, layout) -> list[Tensor]:
    """Logits of each row without padding."""
    return [logits[valid] for logits, valid in zip(output.logits, layout.valid, strict=True)]


def image_count(rows: list[Row]) -> int:
    return sum(row.images for row in rows)


# 1 ------------------------------------------------------------------------------------- no compression = stock model


def test_without_compression_logits_equal_the_stock_llama_fed_the_same_embeddings():
    model, rows = tiny_llava(), MIXED
    stock, images = stock_llama(model), pixels(image_count(MIXED))
    output = run(model, rows, images)
    for row, pictures, logits in zip(rows, images_of(rows, images), by_row(output, output.layouts[-1]), strict=True):
        embeddings = []
        waiting = list(pictures)
        for token in row.ids:
            if token == IMAGE_TOKEN_INDEX:
                embeddings += list(reference.visual_tokens(model, waiting.pop(0), None))
            else:
                embeddings.append(stock.model.embed_tokens.weight[token])
        expected = stock(inputs_embeds=torch.stack(embeddings)[None]).logits[0]
        torch.testing.assert_close(logits, expected, **CLOSE)


def test_a_budget_that_drops_nothing_changes_nothing():
    nothing = {"v2v": {"dominant": 17, "contextual": 0}, "t2v": {"layers": [1, 4], "keep": [1.0, 1.0]}}
    keep_cls = tiny_llava(mm_vision_select_feature="cls_patch")
    rows, images = MIXED, pixels(image_count(MIXED))
    expected = run(keep_cls, rows, images).logits
    torch.testing.assert_close(run(tiny_llava(compression=nothing), rows, images).logits, expected, **EXACT)


# 2, 3 ----------------------------------------------------------------- cached = recomputed; neighbours do not matter


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", COMPRESSIONS)
def test_prefill_and_cached_decoding_equal_the_sample_alone_without_a_cache(name: str, side: str):
    model = tiny_llava(compression=COMPRESSIONS[name])
    rows = [chat(1, answered=False), chat(2, (0,), answered=False), chat(3, (2, 1), answered=False), chat(4, (5,))]
    images = pixels(image_count(rows))
    output = run(model, rows, images, side, use_cache=True)
    new = torch.randint(3, tiny.VOCABULARY, (len(rows), 3), generator=torch.Generator().manual_seed(1))
    steps = [output.logits]
    for step in range(new.shape[1]):
        step_output = model(input_ids=new[:, step : step + 1], past_key_values=output.past_key_values)
        steps.append(step_output.logits)
    prefill = by_row(output, output.layouts[-1])
    for number, (row, pictures) in enumerate(zip(rows, images_of(rows, images), strict=True)):
        cached = torch.cat([prefill[number], *(logits[number] for logits in steps[1:])])
        alone = reference.answer(model, row.then(*new[number].tolist()), pictures, model.compression)
        torch.testing.assert_close(cached, alone.logits, **CLOSE)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["none", "duet", "original-positions"])
def test_several_tokens_in_one_decode_call(name: str, side: str):
    model = tiny_llava(compression=COMPRESSIONS[name])
    for rows in ([chat(7)], [chat(1), chat(2, (0,)), chat(3, (2, 1))]):
        images = pixels(image_count(rows))
        new = torch.randint(3, tiny.VOCABULARY, (len(rows), 5), generator=torch.Generator().manual_seed(1))
        cache = run(model, rows, images, side, use_cache=True).past_key_values
        two = [model(input_ids=part, past_key_values=cache).logits for part in (new[:, :2], new[:, 2:4], new[:, 4:])]
        chunked = torch.cat(two, dim=1)
        for number, (row, pictures) in enumerate(zip(rows, images_of(rows, images), strict=True)):
            alone = reference.answer(model, row.then(*new[number].tolist()), pictures, model.compression)
            torch.testing.assert_close(chunked[number], alone.logits[-5:], **CLOSE)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_fault_12_neighbours_order_and_padding_side_do_not_matter(name: str):
    model = tiny_llava(compression=COMPRESSIONS[name])
    images = pixels(image_count(MIXED))
    pictures = images_of(MIXED, images)
    alone = [run(model, [row], own).logits[0] for row, own in zip(MIXED, pictures, strict=True)]
    for side in ("right", "left"):
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [1, 3], [2, 2]):
            output = run(model, [MIXED[i] for i in order], torch.cat([pictures[i] for i in order]), side)
            for number, logits in zip(order, by_row(output, output.layouts[-1]), strict=True):
                torch.testing.assert_close(logits, alone[number], **EXACT)


def test_rows_of_equal_length_without_a_mask_differ_in_length_after_a_drop():
    model = tiny_llava(compression=tiny.T2V_ONLY)
    with_image = chat(1)
    text = chat(2, (0,), answered=False)
    text = text.then(*range(3, 3 + len(with_image.ids) + tiny.PATCHES - 1 - len(text.ids)))
    ids = torch.full((2, len(text.ids)), 0)
    ids[0, : len(with_image.ids)] = torch.tensor(with_image.ids)
    ids[1] = torch.tensor(text.ids)
    mask = ids != 0
    roles = collate([with_image, text])["query_mask"]
    images = pixels(1)
    output = run_spliced(model, {"input_ids": ids, "attention_mask": mask, "query_mask": roles}, images)
    assert output.layouts[0].attention_mask() is None and not output.layouts[0].is_padded
    for row, own, logits in zip(
        [with_image, text], [images, images[:0]], by_row(output, output.layouts[-1]), strict=True
    ):
        torch.testing.assert_close(logits, reference.answer(model, row, own, model.compression).logits, **CLOSE)


# 4 -------------------------------------------------------------------------------------------------------- positions


@pytest.mark.parametrize("side", ["right", "left"])
def test_positions_are_renumbered_after_each_drop_and_go_on_from_each_stages_length(side: str):
    model = tiny_llava(compression=tiny.DUET)
    rows = [chat(1), chat(2, (0,)), chat(4, (3,))]
    output = run(model, rows, pixels(4), side, use_cache=True)
    text = [len(row.ids) - row.images for row in rows]
    kept = [(10, 5, 2), (0, 0, 0), (30, 15, 6)]
    for stage, layout in enumerate(output.layouts):
        for row in range(3):
            expected = list(range(text[row] + kept[row][stage]))
            assert layout.positions[row][layout.valid[row]].tolist() == expected
    model(input_ids=torch.full((3, 2), 5), past_key_values=output.past_key_values)
    for stage, cached in enumerate(output.past_key_values.stages):
        assert cached.next_position[:, 0].tolist() == [text[row] + kept[row][stage] + 2 for row in range(3)]


def test_original_positions_keep_their_gaps_and_go_on_from_the_whole_length():
    model = tiny_llava(compression=tiny.ORIGINAL)
    row, images = chat(1), pixels(1)
    output = run(model, [row], images, use_cache=True)
    whole = len(row.ids) - 1 + tiny.PATCHES
    kept = reference.answer(model, row, images, model.compression).kept
    first = row.ids.index(IMAGE_TOKEN_INDEX)
    for layout, survivors in zip(output.layouts[1:], kept, strict=True):
        visual = [first + number for number in survivors]
        expected = [*range(first), *visual, *range(first + tiny.PATCHES, whole)]
        assert layout.positions[0].tolist() == expected
    assert {int(stage.next_position) for stage in output.past_key_values.stages} == {whole}


def test_layers_get_rotary_angles_but_no_position_ids():
    """FlashAttention takes gaps in position ids for borders between packed sequences."""
    model, seen = tiny_llava(compression=tiny.ORIGINAL), []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    cache = run(model, [chat(1), chat(2, (0,))], pixels(1), "left", use_cache=True).past_key_values
    model(input_ids=torch.full((2, 1), 5), past_key_values=cache)
    assert len(seen) == 12 and all(call["position_ids"] is None and call["position_embeddings"] for call in seen)


# 5 ---------------------------------------------------------------------------------------------------- nobody may vote


def plain_caption() -> Row:
    caption = [5, 6, 7, 8]
    last = int(QueryRole.INSTRUCTION | QueryRole.LAST)
    return Row([tiny.BOS, IMAGE_TOKEN_INDEX, *caption], [0, last, 0, 0, 0, 0], [IGNORE_INDEX] * 2 + caption)


@pytest.mark.parametrize("queries", ["last", "text", "salient"])
@pytest.mark.parametrize("flags", ["given", "derived", "empty"])
def test_in_a_plain_caption_the_last_visual_token_votes(queries: str, flags: str):
    model = tiny_llava(compression={"t2v": {"layers": [2, 4], "keep": [0.5, 0.25], "queries": queries}})
    row, images = plain_caption(), pixels(1)
    expected = reference.answer(model, Row(row.ids, [0, 7, 0, 0, 0, 0], row.labels), images, model.compression)
    batch = collate([row, chat(2)], labels=True)
    if flags == "derived":
        del batch["query_mask"]
    if flags == "empty":
        batch["query_mask"][0] = 0
    output = run_spliced(model, batch, torch.cat([images, pixels(1, 5)]))
    assert output.loss.isfinite()
    for layout, kept in zip(output.layouts[1:], expected.kept, strict=True):
        assert layout.visual_index[0][layout.is_visual[0]].tolist() == kept
    torch.testing.assert_close(by_row(output, output.layouts[-1])[0], expected.logits, **CLOSE)


@pytest.mark.parametrize("queries", ["last", "text", "salient"])
def test_image_as_last_token_of_a_prompt(queries: str):
    model = tiny_llava(compression={"t2v": {"layers": [2, 4], "keep": [0.5, 0.25], "queries": queries}})
    row, images = Row([1, 4, 9, IMAGE_TOKEN_INDEX], [0, 0, 0, 7], [IGNORE_INDEX] * 4), pixels(1)
    expected = reference.answer(model, row, images, model.compression)
    output = run_spliced(model, {"input_ids": torch.tensor([row.ids])}, images)
    torch.testing.assert_close(output.logits[0], expected.logits, **CLOSE)


def test_salient_without_flags_asks_the_last_token_before_the_answer_not_the_answer():
    salient = {"t2v": {"layers": [2, 4], "keep": [0.5, 0.25], "queries": "salient"}}
    model, row, images = tiny_llava(compression=salient), chat(1), pixels(1)
    before_answer = next(place for place, label in enumerate(row.labels) if label != IGNORE_INDEX) - 1
    expected_roles = [4 if place == before_answer else 0 for place in range(len(row.ids))]
    expected = reference.answer(model, Row(row.ids, expected_roles, row.labels), images, model.compression)
    batch = collate([row], labels=True)
    batch["query_mask"] &= int(QueryRole.INSTRUCTION)
    output = model(**batch, images=images)
    assert [layout.visual_index[layout.is_visual].tolist() for layout in output.layouts[1:]] == expected.kept


@pytest.mark.parametrize("queries", ["last", "text", "salient"])
def test_nothing_before_the_first_image_votes_whatever_its_flags(queries: str):
    model = tiny_llava(compression={"t2v": {"layers": [2, 4], "keep": [0.5, 0.25], "queries": queries}})
    row, images = chat(3, (2, 1)), pixels(3)
    loud = Row(row.ids, [7] * len(row.ids), row.labels)
    layout = run(model, [loud], images).layouts[0]
    first, voters = int(layout.is_visual[0].int().argmax()), layout.vote[0].nonzero().flatten()
    assert first > 0 and voters.min() == first + tiny.PATCHES - 1, "the last visual token of the first image"
    expected = reference.answer(model, loud, images, model.compression)
    torch.testing.assert_close(run(model, [loud], images).logits[0], expected.logits, **CLOSE)


# 7 ------------------------------------------------------------------------------------------------------------ order


def test_fault_14_kept_tokens_stay_in_order_and_ties_go_to_the_earlier_token():
    from llava.compression.layout import TokenLayout
    from llava.compression.t2v import choose_visual_tokens

    image = torch.tensor([[-1, 0, 0, 0, 0, 0, -1]])
    number = torch.tensor([[-1, 0, 1, 2, 3, 4, -1]])
    valid = torch.ones(1, 7, dtype=torch.bool)
    layout = TokenLayout(valid, image, number, ~valid, torch.arange(7)[None], (7,), (5,), (5,), 0)
    scores = torch.tensor([[9.0, 0.2, 0.7, 0.2, 0.7, 0.2, 9.0]])
    kept = choose_visual_tokens(scores, layout, (3,))
    assert kept[0].tolist() == [True, True, True, False, True, False, True]
    all_tied = choose_visual_tokens(torch.zeros(1, 7), layout, (2,))
    assert all_tied[0].tolist() == [True, True, True, False, False, False, True]


def test_identical_images_tie_and_the_first_survive():
    flat = torch.zeros(1, 3, 56, 56, dtype=torch.float64)
    model = tiny_llava(compression={"v2v": {"dominant": 5, "contextual": 0}})
    model.get_vision_tower().model.embeddings.position_embedding.weight.data.zero_()
    result = model.get_vision_tower().merge(flat, model.compression.v2v)
    assert (result.roles[0] == 1).nonzero().flatten().tolist() == [0, 1, 2, 3]


# 8 -------------------------------------------------------------------------------------------- scoring is detached


@pytest.mark.parametrize("name", ["duet", "t2v-only", "to-zero"])
def test_gradients_equal_those_of_the_graph_with_the_choice_as_a_constant(name: str):
    model = tiny_llava(compression=COMPRESSIONS[name]).train()
    rows = [chat(1), chat(3, (2, 1)), chat(2, (0,))]
    images = pixels(image_count(rows))
    output = model(**collate(rows, labels=True), images=images)
    assert not any(scores.requires_grad for scores in output.scores if scores is not None)
    output.loss.backward()
    measured = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    model.zero_grad(set_to_none=True)
    total, targets = torch.zeros((), dtype=torch.float64), 0
    for row, pictures in zip(rows, images_of(rows, images), strict=True):
        alone = reference.answer(model, row, pictures, model.compression)  # ranks under no_grad
        labels = torch.tensor(alone.labels[1:])
        total = total + F.cross_entropy(alone.logits[:-1], labels, ignore_index=IGNORE_INDEX, reduction="sum")
        targets += alone.supervised()
    (total / targets).backward()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert measured[name] is not None, name
            torch.testing.assert_close(measured[name], weight.grad, atol=2e-6, rtol=1e-4, msg=lambda m, n=name: n + m)
    assert not any(weight.requires_grad for weight in model.get_vision_tower().parameters())


def test_stock_tower_helper_is_not_the_model_under_test():
    model = tiny_llava()
    assert not any(a is b for a in stock_tower(model).modules() for b in model.modules())
