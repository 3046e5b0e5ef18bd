"""The same checks on every family: those of transformers, LLaVA's own, and one from outside the package."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from pebbles import CompressedPebbles, Pebbles
from tiny import columns_of_stock
from tiny_vlms import (
    CUT,
    EVERY,
    FAMILIES,
    FRAMES,
    IMAGE,
    LAYERS,
    MARKS,
    NATIVE,
    OWN,
    OWN_NEXT,
    PEBBLES,
    QWEN,
    VIDEO,
    batch,
    prompt,
    renamed,
    spelled_out,
    stock_of_own,
    vlm,
)
from torch import Tensor

from llava import compress
from llava.compression import CompressionConfig, QueryRole
from llava.cost.flops import kv_bytes
from llava.cost.shapes import DecoderShape
from llava.model.loss import labels_at
from llava.model.plugin import CompressedModel, VisualSpan, register_family
from llava.model.splice import plan_splice
from llava.model.staged_cache import StagedCache, key_value_bytes

NO_DROP = {"t2v": {"layers": [2, 4], "keep": [1.0, 1.0]}}
T2V = {"t2v": {"layers": [2, 4], "keep": [0.5, 0.25]}}
BOTH = {"v2v": {"dominant": 5, "contextual": 3, "cluster_width": 2}, **T2V}
TO_ZERO = {"v2v": {"dominant": 4, "contextual": 2}, "t2v": {"layers": [1, 3], "keep": [0.6, 0.0], "queries": "text"}}
KINDS = {
    "llava": [("image",), ("image", "image"), ()],
    "llava_next": [("image",), ("image", "image"), ()],
    "video_llava": [("video",), ("image", "video"), ()],
    "qwen2_5_vl": [("image", "video"), ("image",), ()],
    "qwen3_vl": [("image", "video"), ("image",), ()],
    "qwen3_vl_moe": [("image", "video"), ("image",), ()],
    "llava_onevision": [("image", "video"), ("image",), ()],
    PEBBLES: [("image",), ("image", "image"), ()],
    OWN: [("image",), ("image", "image"), ()],
    OWN_NEXT: [("image",), ("image", "image"), ()],
}
PROJECTORS = {
    "qwen2_5_vl": "merger",
    "qwen3_vl": "merger",
    "qwen3_vl_moe": "merger",
    PEBBLES: "eye",
    OWN: "mm_projector",
    OWN_NEXT: "mm_projector",
}
IN_DECODER = [(family, config) for family in EVERY for config in (T2V, BOTH, TO_ZERO)]


@pytest.fixture(scope="module")
def stock() -> dict[str, Any]:
    """One model of each family."""
    return {family: vlm(family) for family in EVERY}


def prompts(family: str, dtype: torch.dtype = torch.float64) -> list[Any]:
    return [prompt(family, seed, kinds, dtype) for seed, kinds in enumerate(KINDS[family])]


def answered(model: Any, inputs: dict[str, Tensor], count: int = 4, **options: Any) -> list[list[int]]:
    ids = model.generate(**inputs, max_new_tokens=count, do_sample=False, suppress_tokens=[IMAGE, VIDEO], **options)
    return ids[:, -count:].tolist()


@pytest.mark.parametrize("family", (*FAMILIES, PEBBLES))
def test_none_is_the_stock_model_exactly(stock: dict[str, Any], family: str) -> None:
    model, inputs = stock[family], batch(prompts(family), answers=True)
    same = compress(model, "none")
    with torch.no_grad():
        expected, got = model(**inputs), same(**inputs)
    assert type(got) is type(expected)
    assert torch.equal(got.logits, expected.logits) and torch.equal(got.loss, expected.loss)
    del inputs["labels"]
    for options in ({}, {"num_beams": 2}, {"use_cache": False}):
        if family != PEBBLES or "num_beams" not in options:  # whose stock class does not repeat its heaps for beams
            assert answered(same, inputs, **options) == answered(model, inputs, **options)


def test_none_is_transformers_llava_for_llavas_own_weights(stock: dict[str, Any]) -> None:
    """Logits, text, loss and every gradient, from pixels on; transformers computes eager attention in float32."""
    model, theirs = stock[OWN], stock_of_own(stock[OWN])
    for text in prompts(OWN):
        inputs = batch([text], answers=True)
        model.zero_grad(set_to_none=True)
        theirs.zero_grad(set_to_none=True)
        got, spelled = model(**inputs), spelled_out(inputs)
        expected = theirs(**spelled)
        there = columns_of_stock(expected.logits, spelled["input_ids"], IMAGE)
        torch.testing.assert_close(got.logits, there, atol=5e-5, rtol=0)
        torch.testing.assert_close(got.loss, expected.loss, atol=1e-5, rtol=0, check_dtype=False)
        got.loss.backward()
        expected.loss.backward()
        others = dict(theirs.named_parameters())
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                torch.testing.assert_close(weight.grad, others[renamed(name)].grad, atol=1e-5, rtol=1e-4)
        assert not text[1] or model.model.mm_projector[0].weight.grad.abs().sum() > 0
        del inputs["labels"], spelled["labels"]
        assert answered(model, inputs, 8) == answered(theirs, spelled, 8)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", EVERY)
def test_a_staged_run_that_drops_nothing_is_the_stock_model(stock: dict[str, Any], family: str, side: str) -> None:
    model, inputs = stock[family], batch(prompts(family), side, answers=True)
    staged = compress(model, NO_DROP)
    with torch.no_grad():
        expected, got = model(**inputs, output_hidden_states=True), staged(**inputs, output_hidden_states=True)
    valid = inputs["attention_mask"].bool()
    torch.testing.assert_close(got.logits[valid], expected.logits[valid], atol=3e-5, rtol=0)
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-5, rtol=0, check_dtype=False)
    assert got.loss.isfinite() and len(got.hidden_states) == len(expected.hidden_states)
    for ours, theirs in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours[valid], theirs[valid], atol=3e-5, rtol=0)
    del inputs["labels"]
    if side == "left":
        assert answered(staged, inputs) == answered(model, inputs)


@pytest.mark.parametrize("family", EVERY)
def test_the_first_drop_keeps_what_the_stock_model_attends_to(family: str) -> None:
    """Against attention weights that transformers materialises: layer 2 of the uncompressed, eager model."""
    model, text = vlm(family, attention="eager"), prompt(family, 3, KINDS[family][0])
    inputs = batch([text])
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions[2][0].mean(dim=0)[-1]
        layouts = compress(model, T2V)(**inputs, output_layouts=True).layouts
    visual = layouts[0].is_visual[0].nonzero().flatten().tolist()
    assert len(visual) > 4
    best = weights[visual].topk(len(visual) // 2).indices.sort().values
    assert layouts[1].visual_index[0][layouts[1].is_visual[0]].tolist() == best.tolist()


@pytest.mark.parametrize(("family", "config"), IN_DECODER)
def test_realised_tokens_equal_the_schedule(stock: dict[str, Any], family: str, config: dict[str, Any]) -> None:
    """Tokens of each layer and bytes of the cache, row by row."""
    model, compression = compress(stock[family], config), CompressionConfig.from_dict(config)
    for text in prompts(family):
        inputs = batch([text])
        entered = sum(_entered(family, item, compression) for item in text[1])
        alive = [entered, *(int(entered * share) for share in compression.t2v.keep)]
        output = model(**inputs, output_layouts=True, use_cache=True)
        assert [layout.visual for layout in output.layouts] == [(count,) for count in alive]
        spans = pairwise([0, *compression.t2v.layers, LAYERS])
        tokens = [count for count, (first, last) in zip(alive, spans, strict=True) for _ in range(first, last)]
        words = sum(token not in MARKS for token in text[0])
        cache = output.past_key_values
        assert [layer.keys.shape[2] for layer in cache.layers] == [words + count for count in tokens]
        shape = DecoderShape.of(model.config.get_text_config())
        assert key_value_bytes(cache) == kv_bytes(tokens, words, shape, bytes_per_value=8)


def _entered(family: str, item: Any, compression: CompressionConfig) -> int:
    """Worked by hand: what one image or video brings into the language model."""
    cut = CUT.get((item.inputs["image_sizes"][0][::-1], len(item.inputs["images"][0]))) if family == OWN_NEXT else 0
    if compression.v2v is None:
        return {OWN: 16, OWN_NEXT: cut}.get(family, item.count)
    budget = compression.v2v.dominant + compression.v2v.contextual
    if family == OWN_NEXT:
        return budget * len(item.inputs["images"][0])
    if family == PEBBLES:
        return min(budget, item.count)
    if family == "llava_next":
        return budget * {16 + 8 * 9: 5, 16 + 4 * 9: 3, 16 + 8 * 7: 5}[item.count]
    if family == "video_llava":
        return budget * (FRAMES if item.token == VIDEO else 1)
    if family == "llava_onevision" and item.token == VIDEO:
        return FRAMES * min(budget, 16) + 1
    if family == "llava_onevision" and item.count == 49 + 9 * 10:  # its map is twice as large as allowed
        return budget + 4 * (compression.v2v.dominant // 2 + compression.v2v.contextual // 2)
    if family == "llava_onevision":
        return budget * {49 + 7 * 15: 3, 49 + 7 * 8: 2}[item.count]
    if family in QWEN:
        frames = 2 if item.token == VIDEO else 1
        return frames * min(budget, item.count // frames)
    return budget


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "config"), IN_DECODER)
def test_fault_12_each_row_of_a_batch_equals_the_row_alone(
    stock: dict[str, Any], family: str, config: dict[str, Any], side: str
) -> None:
    model, texts = compress(stock[family], config), prompts(family)
    inputs = batch(texts, side)
    with torch.no_grad():
        output = model(**inputs)
    together = answered(model, inputs)
    for row, text in enumerate(texts):
        with torch.no_grad():
            alone = model(**batch([text])).logits[0]
        valid = inputs["attention_mask"][row].bool()
        torch.testing.assert_close(output.logits[row][valid], alone, atol=1e-9, rtol=0)
        assert together[row] == answered(model, batch([text]), use_cache=row == 0)[0]


@pytest.mark.parametrize("family", EVERY)
def test_fault_13_beams_equal_the_beams_of_the_row_alone(stock: dict[str, Any], family: str) -> None:
    """Several images in one row: repeated image by image, as transformers does it, they would change places."""
    model, texts = compress(stock[family], BOTH), prompts(family)
    together = answered(model, batch(texts), num_beams=3)
    assert together == [answered(model, batch([text]), num_beams=3)[0] for text in texts]


@pytest.mark.parametrize(("family", "config"), IN_DECODER)
def test_cached_decoding_equals_recomputing_everything(
    stock: dict[str, Any], family: str, config: dict[str, Any]
) -> None:
    model, texts = compress(stock[family], config), prompts(family)
    inputs, new = batch(texts), 4
    said = model.generate(
        **inputs,
        max_new_tokens=new,
        do_sample=False,
        suppress_tokens=[IMAGE, VIDEO],
        output_logits=True,
        return_dict_in_generate=True,
    )
    word, last = int(QueryRole.INSTRUCTION), int(QueryRole.INSTRUCTION | QueryRole.LAST)
    for row, (ids, seen) in enumerate(texts):
        answer = said.sequences[row, -new:].tolist()
        whole = batch([(ids + answer, seen)])
        roles = [word * (token not in MARKS) for token in ids[:-1]]
        votes = torch.tensor([roles + [last] + [0] * new])
        with torch.no_grad():
            logits = model(**whole, query_mask=votes, use_cache=False).logits[0, -new - 1 : -1]
        for step in range(new):
            torch.testing.assert_close(said.logits[step][row], logits[step].float(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", EVERY)
def test_gradients_are_those_of_a_graph_with_the_kept_tokens_given(stock: dict[str, Any], family: str) -> None:
    """The reference gathers by hand, between plain calls of transformers' decoder layers."""
    model = compress(stock[family], BOTH).train()
    text = prompt(family, 5, KINDS[family][0])
    inputs = batch([text], answers=True)
    model.zero_grad()
    output = model(**inputs, output_layouts=True)
    output.loss.backward()
    assert output.logits is None
    got = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    projected = PROJECTORS.get(family, "multi_modal_projector")
    for part in (projected, "layers.0.self_attn.q_proj", "layers.5.mlp", "embed_tokens"):
        assert any(part in name and grad.abs().sum() > 0 for name, grad in got.items()), part
    assert all(grad.isfinite().all() for grad in got.values())

    model.zero_grad()
    compression = model.compression
    labels = labels_at(output.layouts[-1], inputs["labels"])[0]
    spans = {} if family in NATIVE else model.visual_spans(compression, _seen(model, inputs))
    prefill = model.prefill(inputs, compression)
    expected = loss_with_given_tokens(model, prefill, spans, output.layouts, compression, labels)
    torch.testing.assert_close(expected, output.loss, atol=1e-6, rtol=0, check_dtype=False)
    expected.backward()
    for name, weight in model.named_parameters():
        assert (name in got) == (weight.grad is not None), name
        if weight.grad is not None:
            torch.testing.assert_close(got[name], weight.grad, atol=1e-5, rtol=1e-4)
    model.eval()


def _seen(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: inputs.get(name) for name in model.visual_inputs}


def loss_with_given_tokens(
    model: Any, prefill: Any, spans: Any, layouts: Any, compression: CompressionConfig, labels: Tensor
) -> Tensor:
    """`spans`, of one row, say what its visual tokens add behind the first decoder layers."""
    decoder, hidden = model.decoder, prefill.embeddings[0]
    adding = [list(zip(*span.added, strict=True)) for held in spans.values() for span in held if span.added]
    to_add = [token for span in adding for token in span]  # by the visual token's number, what it adds to each layer
    bounds = [0, *compression.t2v.layers, LAYERS]
    before = layouts[0]
    for stage, after in enumerate(layouts):
        if stage:
            kept = set(after.visual_index[0][after.is_visual[0]].tolist())
            index = before.visual_index[0].tolist()
            rows = [place for place, number in enumerate(index) if number < 0 or number in kept]
            hidden = hidden[rows]
        places = after.positions[..., 0, :]
        rotary = decoder.rotary_emb(hidden[None], position_ids=places[..., None, :])
        numbers = after.visual_index[0].tolist()
        for index in range(bounds[stage], bounds[stage + 1]):
            hidden = decoder.layers[index](hidden[None], attention_mask=None, position_embeddings=rotary)[0]
            if to_add and index < len(to_add[0]):
                nothing = torch.zeros_like(hidden[0])
                hidden = hidden + torch.stack([to_add[n][index] if n >= 0 else nothing for n in numbers])
        before = after
    targets, logits = labels[1:], model.lm_head(decoder.norm(hidden))[:-1].float()
    return torch.nn.functional.cross_entropy(logits[targets >= 0], targets[targets >= 0])


def test_one_model_serves_several_budgets_at_a_time(stock: dict[str, Any]) -> None:
    model = compress(stock["llava"], BOTH)
    inputs = batch(prompts("llava"))
    with torch.no_grad():
        other = compress(stock["llava"], TO_ZERO)(**inputs).logits
        assert torch.equal(model(**inputs, compression=TO_ZERO).logits, other)
        assert torch.equal(model(**inputs, compression="none").logits, stock["llava"](**inputs).logits)
    assert answered(model, inputs, compression=TO_ZERO) == answered(compress(stock["llava"], TO_ZERO), inputs)
    assert answered(model, inputs, compression="none") == answered(stock["llava"], inputs)


@pytest.mark.parametrize("family", EVERY)
def test_a_filled_cache_is_continued_with_padded_text(stock: dict[str, Any], family: str) -> None:
    """Two rows go on with two and three tokens, padded in front; each is the row continued alone."""
    model, texts = compress(stock[family], BOTH), prompts(family)[:2]
    more = [[5, 6], [7, 8, 9]]
    with torch.no_grad():
        cache = model(**batch(texts), use_cache=True).past_key_values
        mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
        together = model(torch.tensor([[0, 5, 6], more[1]]), attention_mask=mask, past_key_values=cache).logits
        for row, (text, new) in enumerate(zip(texts, more, strict=True)):
            cache = model(**batch([text]), use_cache=True).past_key_values
            alone = model(torch.tensor([new]), past_key_values=cache).logits[0]
            torch.testing.assert_close(together[row, -len(new) :], alone, atol=1e-9, rtol=0)


def test_a_filled_cache_is_continued_by_forward_and_refused_by_generate(stock: dict[str, Any]) -> None:
    model, inputs = compress(stock["llava"], BOTH), batch(prompts("llava")[:1])
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        assert isinstance(cache, StagedCache)
        more = model(torch.tensor([[5, 6]]), past_key_values=cache)
    assert more.logits.shape == (1, 2, 64)
    with pytest.raises(ValueError, match="whole conversation anew"):
        model(torch.tensor([[5]]), pixel_values=inputs["pixel_values"], past_key_values=cache)
    with pytest.raises(ValueError, match="starts from the whole prompt"):
        model.generate(**inputs, past_key_values=cache, max_new_tokens=1)


def test_a_family_from_outside_the_package_is_found_replaced_and_told_what_it_lacks(stock: dict[str, Any]) -> None:
    assert type(compress(stock[PEBBLES], T2V)) is CompressedPebbles

    class Sieved(CompressedPebbles):
        def visual_spans(self, compression: CompressionConfig, inputs: Any) -> Any:
            spans = super().visual_spans(compression, inputs)
            return {
                token: [VisualSpan(span.features[:3], span.replaced) for span in held] for token, held in spans.items()
            }

    register_family(Sieved)
    inputs = batch(prompts(PEBBLES)[:1])
    assert compress(stock[PEBBLES], NO_DROP)(**inputs, output_layouts=True).layouts[0].visual == (3,)
    register_family(CompressedPebbles)
    assert type(compress(stock[PEBBLES], T2V)) is CompressedPebbles
    with pytest.raises(TypeError, match="Blind does not say visual_inputs, which a family must"):
        type("Blind", (CompressedModel, Pebbles), {"stock": Pebbles})
    with pytest.raises(TypeError, match="Stock does not say forward"):
        told = {"stock": Pebbles, "visual_inputs": ("pebbles",), "visual_spans": CompressedPebbles.visual_spans}
        type("Stock", (CompressedModel, Pebbles), told)
    with pytest.raises(TypeError, match="Apart names Pebbles as stock, but does not inherit from it"):
        type("Apart", (CompressedModel,), {**told, "forward": CompressedPebbles.forward})


@pytest.mark.parametrize("config", ["none", BOTH, TO_ZERO])
@pytest.mark.parametrize("family", ["llava", "llava_next", PEBBLES, *NATIVE])
def test_a_plan_made_from_counts_is_the_one_the_model_makes(stock: dict[str, Any], family: str, config: Any) -> None:
    model, texts = compress(stock[family], config), prompts(family)
    inputs = batch(texts, "right", answers=True)
    compression = CompressionConfig.resolve(config)
    spans: dict[int, list[VisualSpan]] = {}
    for item in (item for _, seen in texts for item in seen):
        count = _entered(family, item, compression)
        spans.setdefault(item.token, []).append(VisualSpan(torch.empty(count, 0), item.count))
    queries = compression.t2v.queries if compression.t2v else "last"
    plan = plan_splice(inputs["input_ids"], inputs["attention_mask"], spans, labels=inputs["labels"], queries=queries)
    with torch.no_grad():
        expected, got = model(**inputs), model(**inputs, plan=plan, output_layouts=True)
    assert got.layouts[0].entered == tuple(
        sum(_entered(family, item, compression) for item in seen) for _, seen in texts
    )
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-5, rtol=0, check_dtype=False)
    valid = inputs["attention_mask"].bool()
    torch.testing.assert_close(got.logits[valid], expected.logits[valid], atol=3e-5, rtol=0)


def test_a_plan_is_refused_where_positions_are_known_late(stock: dict[str, Any]) -> None:
    inputs = batch(prompts("qwen2_5_vl")[:1])
    made = plan_splice(inputs["input_ids"], None, {})
    with pytest.raises(ValueError, match="only once its images are encoded; leave it out"):
        compress(stock["qwen2_5_vl"], BOTH)(**inputs, plan=made)
    with pytest.raises(ValueError, match="the prompt came as embeddings; leave one of them out"):
        compress(stock["llava"], BOTH)(inputs_embeds=torch.zeros(1, 3, 32, dtype=torch.float64), plan=made)
