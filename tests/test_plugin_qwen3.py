"""DeepStack of Qwen3-VL: what is added behind the first decoder layers is merged and dropped with its tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_families import loss_with_given_tokens
from tiny_vlms import IMAGE, VIDEO, batch, prompt, vlm

from llava import compress
from llava.model.loss import labels_at

V2V = {"v2v": {"dominant": 4, "contextual": 2, "cluster_width": 2}}
EARLY = {"t2v": {"layers": [1, 2], "keep": [0.5, 0.25]}}
BEFORE = {"t2v": {"layers": [1, 3], "keep": [0.5, 0.25], "scored_by": "before"}}


@pytest.fixture(scope="module")
def stock() -> Any:
    return vlm("qwen3_vl")


def seen_by(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: inputs.get(name) for name in model.visual_inputs}


def test_deepstack_features_are_merged_with_the_weights_of_their_tokens(stock: Any) -> None:
    """The weights are found from the tokens alone: each is a combination of groups, of which there are less than D."""
    inputs, model = batch([prompt("qwen3_vl", 2, ("image", "video"))]), compress(stock, V2V)
    with torch.no_grad():
        spans = model.visual_spans(model.compression, seen_by(model, inputs))
        seen = {
            IMAGE: stock.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]),
            VIDEO: stock.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"]),
        }
    assert [len(spans[token]) for token in (IMAGE, VIDEO)] == [1, 2]
    for token, held in spans.items():
        first, tokens = 0, torch.cat(seen[token].pooler_output)
        for span in held:
            groups = slice(first, first + span.replaced)
            weights = span.features @ torch.linalg.pinv(tokens[groups])
            assert len(span.features) == 6 and sorted(weights.round(decimals=6).amax(dim=1).tolist())[0] > 0.9
            assert ((weights - 1).abs().amin(dim=1) < 1e-6).sum() >= 4  # dominant: one group, as it is
            assert len(span.added) == 3
            for added, layer in zip(span.added, seen[token].deepstack_features, strict=True):
                torch.testing.assert_close(added, weights @ torch.cat(layer)[groups], atol=1e-6, rtol=0)
            first = groups.stop


def test_merged_tokens_run_as_in_the_stock_decoder_that_is_given_them(stock: Any) -> None:
    """The stock language model with its own DeepStack, on a sequence put together by hand."""
    ids, seen = prompt("qwen3_vl", 2, ("image", "video"))
    inputs, model = batch([(ids, seen)]), compress(stock, V2V)
    sizes = {name: value for name, value in inputs.items() if "pixel" not in name}
    positions, _ = stock.model.get_rope_index(**sizes)
    with torch.no_grad():
        output = model(**inputs)
        spans = model.visual_spans(model.compression, seen_by(model, inputs))
        queue, start, columns, rows, added = [*spans[IMAGE], *spans[VIDEO]], 0, [], [], []
        while start < len(ids):
            if ids[start] in (IMAGE, VIDEO):
                span = queue.pop(0)
                columns += (start + span.slots).tolist()
                rows += [*span.features]
                added += list(zip(*span.added, strict=True))
                start += span.replaced
            else:
                columns.append(start)
                rows.append(stock.get_input_embeddings().weight[ids[start]])
                start += 1
        visual = torch.tensor([[ids[column] in (IMAGE, VIDEO) for column in columns]])
        expected = stock.model.language_model(
            inputs_embeds=torch.stack(rows)[None],
            position_ids=positions[:, :, columns],
            attention_mask=torch.ones_like(visual),
            visual_pos_masks=visual,
            deepstack_visual_embeds=[torch.stack(layer) for layer in zip(*added, strict=True)],
        )
        logits = stock.lm_head(expected.last_hidden_state)[0]
    words = [place for place, column in enumerate(columns) if ids[column] not in (IMAGE, VIDEO)]
    got = output.logits[0, [columns[place] for place in words]]
    torch.testing.assert_close(got, logits[words], atol=1e-9, rtol=0)


@pytest.mark.parametrize("config", [EARLY, BEFORE, V2V | EARLY])
def test_drops_among_the_layers_of_deepstack_take_its_features_with_them(stock: Any, config: dict[str, Any]) -> None:
    """Against plain calls of decoder layers, token by token; so are the gradients of its mergers."""
    model = compress(stock, config).train()
    inputs = batch([prompt("qwen3_vl", 5, ("image", "video"))], answers=True)
    output = model(**inputs, output_layouts=True)
    assert output.layouts[1].visual[0] < output.layouts[0].visual[0]
    output.loss.backward()
    mergers = [name for name, _ in model.named_parameters() if "deepstack" in name]
    got = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    assert len(mergers) == 18 and all(got[name].abs().sum() > 0 for name in mergers if "fc2.weight" in name)
    model.zero_grad()
    prefill = model.prefill(inputs, model.compression)
    spans = model.visual_spans(model.compression, seen_by(model, inputs))
    labels = labels_at(output.layouts[-1], inputs["labels"])[0]
    expected = loss_with_given_tokens(model, prefill, spans, output.layouts, model.compression, labels)
    torch.testing.assert_close(expected, output.loss, atol=1e-6, rtol=0, check_dtype=False)
    expected.backward()
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(got[name], weight.grad, atol=1e-5, rtol=1e-4)
    model.zero_grad()


def test_a_tower_without_deepstack_is_a_model_like_the_others() -> None:
    model = vlm("qwen3_vl")
    model.model.visual.deepstack_visual_indexes = []
    inputs = batch([prompt("qwen3_vl", 1, ("image", "video"))])
    with torch.no_grad():
        expected = model(**inputs).logits
        whole = compress(model, {"t2v": {"layers": [2, 4], "keep": [1.0, 1.0]}})
        torch.testing.assert_close(whole(**inputs).logits, expected, atol=3e-5, rtol=0)
        assert compress(model, V2V)(**inputs).logits.isfinite().all()


def test_visual_tokens_that_come_as_embeddings_are_refused_without_what_they_add(stock: Any) -> None:
    model, inputs = compress(stock, V2V | EARLY), batch([prompt("qwen3_vl", 1, ("image",))])
    with torch.no_grad():
        made = model.prefill(inputs, model.compression)
        with pytest.raises(ValueError, match="without their DeepStack features; give ids and pixels, or all that"):
            model(inputs_embeds=made.embeddings, layout=made.layout)
        expected = model(**inputs, output_layouts=True).logits
        got = model(inputs_embeds=None, prefill=made, output_layouts=True).logits
    assert torch.equal(got, expected)
