"""Packed rows: the same losses, gradients, choices and outputs as padded ones, and no row sees another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from tiny import Row, chat, collate, pixels, tiny_llava
from tiny_vlms import EVERY, OWN, OWN_NEXT, PEBBLES, QWEN, batch, prompt, vlm
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask

from llava import compress
from llava.compression import TokenLayout
from llava.compression.t2v import choose_visual_tokens, gather_kept
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import staged_decoder
from llava.model import varlen_attention as attention
from llava.model.packing import in_rows, in_stream, packs

V2V = {"dominant": 5, "contextual": 3, "cluster_width": 2}
BUDGETS: dict[str, Any] = {
    "none": "none",
    "both": {"v2v": V2V, "t2v": {"layers": [2, 4], "keep": [0.5, 0.25], "scored_by": "before"}},
    "to zero": {"v2v": V2V, "t2v": {"layers": [1, 3], "keep": [0.6, 0.0], "queries": "text"}},
    "original": {"v2v": V2V, "t2v": {"layers": [2, 4], "keep": [0.6, 0.0], "positions": "original"}},
}
KINDS = {
    **dict.fromkeys(("llava", "llava_next", PEBBLES, OWN, OWN_NEXT), (("image",), ("image", "image"), ())),
    "video_llava": (("video",), ("image", "video"), ()),
    **dict.fromkeys((*QWEN, "llava_onevision"), (("image", "video"), ("image",), ())),
}
ROWS = [chat(1), chat(2, (0,)), chat(3, (2, 1)), chat(4)]
IMAGES = pixels(5)


@pytest.fixture(scope="module")
def stock() -> dict[str, Any]:
    """One model of each family."""
    return {family: vlm(family) for family in EVERY}


def step(model: Any, inputs: dict[str, Any], **options: Any) -> tuple[Any, dict[str, Tensor]]:
    """Outputs and gradients of a training step."""
    model.zero_grad(set_to_none=True)
    output = model(**inputs, output_layouts=True, **options)
    output.loss.backward()
    return output, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def assert_same_step(model: Any, inputs: dict[str, Any], tolerance: float = 1e-12, **options: Any) -> None:
    """Loss, every gradient, what was kept, and all that is returned at the columns of the input."""
    padded, expected = step(model, inputs, packing="off", **options)
    packed, found = step(model, inputs, packing="on", **options)
    assert packed.layouts[0].is_packed and not padded.layouts[0].is_packed
    close = {"atol": tolerance, "rtol": tolerance}
    torch.testing.assert_close(packed.loss, padded.loss, atol=max(tolerance, 1e-6), rtol=0)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], **close, msg=lambda text, name=name: f"{name}: {text}")
    for one, other in zip(packed.layouts, padded.layouts, strict=True):
        assert (one.lengths, one.visual, one.entered) == (other.lengths, other.visual, other.entered)
        assert one.valid.shape == (1, sum(one.lengths)) and torch.equal(one.alive(), other.alive())
        assert torch.equal(one.positions.flatten(-2), other.positions[..., other.valid])
        assert torch.equal(one.vote[0], other.vote[other.valid])
    shown = inputs["attention_mask"].bool()
    for values, those in zip(packed.hidden_states or (), padded.hidden_states or (), strict=True):
        torch.testing.assert_close(values[shown], those[shown], **close)
    if packed.logits is not None:
        torch.testing.assert_close(packed.logits[shown], padded.logits[shown], **close)


@pytest.mark.parametrize("budget", ["none", "both", "to zero"])
@pytest.mark.parametrize("family", EVERY)
def test_a_step_on_packed_rows_is_that_on_padded_ones(stock: dict[str, Any], family: str, budget: str) -> None:
    model = compress(stock[family], BUDGETS[budget]).train()
    side = "left" if budget == "both" else "right"
    inputs = batch([prompt(family, seed, kinds) for seed, kinds in enumerate(KINDS[family])], side, answers=True)
    assert_same_step(model, inputs, return_logits=True, output_hidden_states=True)


@pytest.mark.parametrize("family", EVERY)
def test_choices_are_the_same_in_single_precision(family: str) -> None:
    model = compress(vlm(family, dtype=torch.float32), BUDGETS["both"]).train()
    prompts = [prompt(family, seed, kinds, torch.float32) for seed, kinds in enumerate(KINDS[family])]
    assert_same_step(model, batch(prompts, answers=True), tolerance=2e-4)


@pytest.mark.parametrize(
    "t2v",
    [
        {"scored_by": "before", "positions": "original", "queries": "salient"},
        {"scored_by": "after", "positions": "original", "queries": "text"},
        {"score": "random", "seed": 3},
        {"score": "uniform", "positions": "original"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_every_way_to_choose_is_the_same_on_packed_rows(t2v: dict[str, Any]) -> None:
    model = tiny_llava(compression={"t2v": {"layers": [1, 3], "keep": [0.6, 0.2], **t2v}}).train()
    assert_same_step(model, {**collate(ROWS, labels=True), "images": IMAGES})
    assert_same_step(model, {**collate(ROWS, "left", labels=True), "images": IMAGES})


def test_rows_of_an_image_alone_and_of_one_token_can_be_packed() -> None:
    model = tiny_llava(compression={"t2v": {"layers": [1, 3], "keep": [0.5, 0.0]}}).train()
    alone = Row([IMAGE_TOKEN_INDEX], [7], [-100])
    rows = [alone, chat(2, (0,)), Row([5], [0], [-100]), chat(1), Row([IMAGE_TOKEN_INDEX] * 2, [7, 7], [-100] * 2)]
    inputs = {**collate(rows, labels=True), "images": pixels(4)}
    assert_same_step(model, inputs)
    last = model(**inputs, packing="on").layouts[-1]
    assert last.lengths[0] == last.visual[0] == 1, "something is left to answer from"


def test_rows_of_padding_alone_are_nothing() -> None:
    model = tiny_llava(compression=tiny.DUET).train()
    inputs = {**collate(ROWS, labels=True), "images": IMAGES}
    empty = {name: torch.cat([inputs[name], torch.full_like(inputs[name][:1], fill)]) for name, fill in EMPTY.items()}
    with_it, gradients = step(model, {**empty, "images": IMAGES}, packing="on")
    without, expected = step(model, inputs, packing="on")
    assert with_it.layouts[0].lengths == (*without.layouts[0].lengths, 0)
    torch.testing.assert_close(with_it.loss, without.loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-12, rtol=1e-9)


EMPTY = {"input_ids": 0, "attention_mask": 0, "query_mask": 0, "labels": -100}


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "qwen3_vl", OWN])
def test_no_row_sees_another(stock: dict[str, Any], family: str) -> None:
    """What a row's neighbours say and show changes nothing of its own hidden states, to the last bit."""
    model = compress(stock[family], BUDGETS["both"]).train()
    kinds = KINDS[family]
    shown = [prompt(family, seed, kind) for seed, kind in enumerate(kinds)]
    found = []
    for change in (0, 1):  # other words in the middle row, and another image
        middle, seen = prompt(family, 1, kinds[1])
        words = [token if token < 3 or token > 59 else (token + change - 3) % 57 + 3 for token in middle]
        if change:
            seen = [dataclasses.replace(one, inputs=_louder(one.inputs)) for one in seen]
        inputs = batch([shown[0], (words, seen), shown[2]], "right", answers=True)
        with torch.no_grad():
            output = model(**inputs, packing="on", output_hidden_states=True, return_logits=True)
        found.append([*output.hidden_states, output.logits])
    mask = inputs["attention_mask"].bool()
    for one, other in zip(*found, strict=True):
        for row in (0, 2):
            assert torch.equal(one[row][mask[row]], other[row][mask[row]])
    assert not torch.allclose(found[0][-1][1], found[1][-1][1])


def _louder(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same media with other pixels."""
    return {name: value * 2 if torch.is_floating_point(value) else value for name, value in inputs.items()}


@pytest.mark.parametrize("budget", ["both", "original"])
@pytest.mark.parametrize("family", EVERY)
def test_answers_behind_packed_prompts_are_those_behind_padded_ones(
    stock: dict[str, Any], family: str, budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `generate` prompts of unequal length are packed; what their layers cache are rows."""
    packed: list[Any] = []
    borders = staged_decoder.borders_of
    monkeypatch.setattr(staged_decoder, "borders_of", lambda layout: packed.append(layout) or borders(layout))
    model = compress(stock[family], BUDGETS[budget])
    inputs = batch([prompt(family, seed, kinds) for seed, kinds in enumerate(KINDS[family])])
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [60, 61], "num_beams": 1}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    for options["num_beams"] in (1, 2):
        padded = model.generate(**inputs, **options, packing="off")
        assert not packed
        found = model.generate(**inputs, **options)
        assert len(packed) == 3, "one layout for each stage"
        assert torch.equal(found.sequences, padded.sequences)
        torch.testing.assert_close(torch.stack(found.logits), torch.stack(padded.logits), atol=1e-6, rtol=0)
        packed.clear()


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl"])
def test_a_model_without_compression_answers_behind_packed_prompts_too(stock: dict[str, Any], family: str) -> None:
    """It ended in a sentence about a cache that nobody had given."""
    model = compress(stock[family], "none")
    inputs = batch([prompt(family, seed, kinds) for seed, kinds in enumerate(KINDS[family])])
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [60, 61]}
    for beams in (1, 2):
        expected = model.generate(**inputs, **options, num_beams=beams)
        assert torch.equal(model.generate(**inputs, **options, num_beams=beams, packing="on"), expected)


@pytest.mark.parametrize("family", ["qwen3_vl", OWN])
def test_a_conversation_goes_on_behind_a_packed_prompt(stock: dict[str, Any], family: str) -> None:
    model = compress(stock[family], BUDGETS["original"])
    inputs = batch([prompt(family, seed, kinds) for seed, kinds in enumerate(KINDS[family])])
    more = torch.tensor([[5, 6, 7]] * 3)
    found = []
    for packing in ("off", "on"):
        first = model(**inputs, use_cache=True, packing=packing, output_layouts=True)
        assert first.layouts[0].is_packed == (packing == "on")
        second = model(more, past_key_values=first.past_key_values, packing=packing)
        third = model(more[:, :1], past_key_values=second.past_key_values)
        found.append((first.logits[inputs["attention_mask"].bool()], second.logits, third.logits))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("reentrant", [True, False])
def test_packed_rows_can_be_recomputed_for_the_backward_pass(reentrant: bool) -> None:
    model = tiny_llava(compression=tiny.DUET).train()
    inputs = {**collate(ROWS, labels=True), "images": IMAGES}
    plain, expected = step(model, inputs, packing="on")
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    output, found = step(model, inputs, packing="on")
    assert torch.equal(output.loss, plain.loss) and found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_adapters_train_on_packed_rows_as_on_padded_ones() -> None:
    model = tiny_llava(compression=tiny.DUET)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    assert_same_step(adapted.train(), {**collate(ROWS, labels=True), "images": IMAGES})


def test_a_prompt_of_embeddings_can_be_packed() -> None:
    model = tiny_llava(compression=tiny.DUET).train()
    inputs = collate(ROWS, labels=True)
    embeddings, layout = model.prepare_multimodal_inputs(**inputs, images=IMAGES)
    given = {"inputs_embeds": embeddings.detach(), "layout": layout, "labels": inputs["labels"]}
    auto, padded, packed = (model(**given, packing=packing) for packing in ("auto", "off", "on"))
    assert packed.layouts[0].is_packed
    torch.testing.assert_close(packed.loss, padded.loss)
    assert not auto.layouts[0].is_packed, "results stand at the positions of the layout that was given"
    together, index = layout.packed()
    given |= {"inputs_embeds": embeddings.detach().flatten(0, 1)[index][None], "layout": together}
    torch.testing.assert_close(model(**given).loss, padded.loss)
    with pytest.raises(ValueError, match="packing is 'off', but"):
        model(**given, packing="off")


# === When rows are packed ===


def test_auto_packs_in_training_where_there_would_be_padding() -> None:
    model = tiny_llava(compression=tiny.DUET)
    pairs = ([ROWS[0], ROWS[3]], [ROWS[0]] * 2)
    ragged, even = ({**collate(rows, labels=True), "images": pixels(2)} for rows in pairs)
    packed = [model(**inputs, use_cache=False).layouts[0].is_packed for inputs in (ragged, even)]
    model.train()
    packed += [model(**inputs).layouts[0].is_packed for inputs in (ragged, even)]
    assert packed == [False, False, True, False]
    assert model.eval()(**ragged, packing="on").layouts[0].is_packed


def test_rows_that_would_be_padded_after_a_drop_are_packed() -> None:
    """They are equally long, but one shows two images."""
    layout = model_layout(lengths=(6, 6), visual=(4, 2))
    assert packs(layout, "auto") and not packs(layout, "off")
    assert not packs(model_layout(lengths=(6, 6), visual=(4, 4)), "auto")


def model_layout(lengths: tuple[int, ...], visual: tuple[int, ...]) -> TokenLayout:
    """A layout that begins with its visual tokens."""
    column = torch.arange(max(lengths))
    text = TokenLayout.of_text(column < torch.tensor(lengths)[:, None])
    index = torch.where(column < torch.tensor(visual)[:, None], column, -1)
    return dataclasses.replace(text, image=index.clamp(max=0), visual_index=index, visual=visual, entered=visual)


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (None, {"packing": "of"}, "packing is 'of'; it must be one of auto, on, off"),
        ("eager", {"packing": "on"}, "packing is 'on', but the decoder attends by 'eager'"),
    ],
)
def test_what_cannot_be_packed_is_told_in_a_sentence(
    change: str | None, options: dict[str, Any], sentence: str
) -> None:
    model = tiny_llava(compression=tiny.DUET).train()
    if change is not None:
        model.set_attn_implementation(change)
        assert not model(**collate(ROWS, labels=True), images=IMAGES).layouts[0].is_packed
    with pytest.raises(ValueError, match=sentence):
        model(**collate(ROWS, labels=True), images=IMAGES, **options)


def test_text_with_an_attention_of_its_own_is_not_packed() -> None:
    model = tiny_llava(compression=tiny.DUET).train()
    ids = torch.randint(3, tiny.VOCABULARY, (1, 6))
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    assert model(ids, position_ids=positions, labels=ids).loss.isfinite()
    with pytest.raises(ValueError, match="packing is 'on', but"):
        model(ids, position_ids=positions, labels=ids, packing="on")


def test_windows_that_slide_are_padded() -> None:
    config = tiny_llava().config
    assert attention.why_not_packed(config) is None
    config.layer_types = ["full_attention", "sliding_attention"]
    assert "sliding window" in str(attention.why_not_packed(config))


def test_setting_another_attention_and_back_leaves_packing_possible() -> None:
    model = compress(vlm("llava"), BUDGETS["both"]).train()
    inputs = batch([prompt("llava", seed) for seed in range(3)], answers=True)
    for name, packed in (("eager", False), ("sdpa", True), ("eager", False), (attention.VARLEN, True)):
        model.set_attn_implementation(name)
        assert model(**inputs, output_layouts=True).layouts[0].is_packed == packed


def test_a_model_is_saved_without_the_name_of_its_attention(tmp_path: Any) -> None:
    tiny_llava().save_pretrained(tmp_path)
    assert attention.VARLEN not in (tmp_path / "config.json").read_text()


# === What carries it ===


def test_layouts_go_to_rows_and_back() -> None:
    layout = model_layout(lengths=(5, 2, 7), visual=(3, 0, 4))
    packed, index = layout.packed()
    assert torch.equal(index, layout.valid.flatten().nonzero().flatten())
    rows, place = in_rows(packed)
    for name in ("valid", "image", "visual_index", "vote", "positions"):
        assert torch.equal(getattr(rows, name), getattr(layout, name)), name
    values = torch.randn(3, 7)
    assert torch.equal(in_stream(values, packed)[0], values[layout.valid])
    assert torch.equal(values[layout.valid][place][layout.valid], values[layout.valid])


@pytest.mark.parametrize("packed", [False, True])
def test_a_drop_keeps_only_an_index_for_the_backward_pass(packed: bool) -> None:
    layout = model_layout(lengths=(9, 5), visual=(6, 4))
    layout = layout.packed()[0] if packed else layout
    hidden = torch.randn(*layout.valid.shape, 64, requires_grad=True)
    keep = choose_visual_tokens(torch.rand(layout.valid.shape), layout, (2, 2))
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        gathered, _ = gather_kept(hidden, layout, keep, (2, 2))
    assert saved and all(not one.is_floating_point() and one.numel() < hidden[..., 0].numel() for one in saved)
    gathered.sum().backward()
    assert torch.equal(hidden.grad[..., 0].bool(), keep)


def attend_alone(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scaling: float) -> Tensor:
    """[1, S, H, d] by plain softmax, row by row."""
    repeats, first, found = query.shape[1] // key.shape[1], 0, []
    for length in lengths:
        part = slice(first, first + length)
        own, keys, values = (states[0, :, part] for states in (query, key, value))
        weights = own @ keys.repeat_interleave(repeats, 0).transpose(1, 2) * scaling
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = weights.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        found.append((weights @ values.repeat_interleave(repeats, 0)).transpose(0, 1))
        first += length
    return torch.cat(found)[None]


def states_of(lengths: tuple[int, ...], groups: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((1, heads, sum(lengths), 8) for heads in (4, groups, groups))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("lengths", [(5, 1, 0, 9), (4, 4, 4), (6,)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_each_row_attends_to_itself_alone(lengths: tuple[int, ...], groups: int) -> None:
    states = states_of(lengths, groups)
    found, weights = attention.varlen_attention(None, *states, None, scaling=0.3, lengths=lengths)
    expected = attend_alone(*states, lengths, 0.3)
    torch.testing.assert_close(found, expected)
    assert weights is None
    gradients = torch.autograd.grad(found.square().sum(), states), torch.autograd.grad(expected.square().sum(), states)
    torch.testing.assert_close(*gradients)


def kernel_of(seen: list[Any]) -> Callable[..., Tensor]:
    """A variable-length kernel in plain PyTorch."""

    def run(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scaling: float) -> Tensor:
        seen.append((ends.dtype, longest))
        states = (part.transpose(0, 1)[None] for part in (query, key, value))
        return attend_alone(*states, tuple(ends.diff().tolist()), scaling)[0]

    return run


def test_a_kernel_for_rows_of_any_length_is_told_where_they_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    model, inputs = tiny_llava(compression=tiny.DUET).train(), {**collate(ROWS, labels=True), "images": IMAGES}
    expected, gradients = step(model, inputs, packing="off")
    monkeypatch.setattr(attention, "_kernel", lambda query: kernel_of(seen))
    output, found = step(model, inputs, packing="on")
    torch.testing.assert_close(output.loss, expected.loss)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, gradients[name], atol=1e-12, rtol=1e-9)
    longest = [max(layout.lengths) for layout in output.layouts]
    assert {dtype for dtype, _ in seen} == {torch.int32} and sorted({most for _, most in seen}) == sorted(set(longest))


def test_flash_attention_gets_the_borders_by_transformers_names() -> None:
    """Under its own implementation, transformers hands `cu_seq_lens_q` and the like to the kernel."""

    def flash(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **given: Any) -> Any:
        if given.get("cu_seq_lens_q") is None:
            return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)
        ends, lengths = given["cu_seq_lens_k"], tuple(given["cu_seq_lens_q"].diff().tolist())
        assert torch.equal(ends, given["cu_seq_lens_q"]) and mask is None and given.get("position_ids") is None
        assert given["max_length_q"] == given["max_length_k"] == max(lengths)
        return attend_alone(query, key, value, lengths, scaling), None

    AttentionInterface.register("flash_attention_of_the_tests", flash)
    AttentionMaskInterface.register("flash_attention_of_the_tests", flash_attention_mask)
    model, inputs = tiny_llava(compression=tiny.DUET).train(), {**collate(ROWS, labels=True), "images": IMAGES}
    expected = step(model, inputs, packing="off")[0].loss
    model.config._attn_implementation = "flash_attention_of_the_tests"
    output, _ = step(model, inputs)
    assert output.layouts[0].is_packed
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("name", ["sliding_window", "softcap", "s_aux", "position_bias"])
def test_attention_that_is_not_whole_is_refused(name: str) -> None:
    states = states_of((3, 2))
    with pytest.raises(ValueError, match=f"{name} is given for packed rows"):
        attention.varlen_attention(None, *states, None, scaling=1.0, lengths=(3, 2), **{name: 4})


def test_keys_are_not_repeated_for_grouped_queries() -> None:
    states, saved = states_of((6, 3), groups=1), []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.shape)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        attention.varlen_attention(None, *states, None, scaling=1.0, lengths=(6, 3))
    for length in (6, 3):
        assert saved.count(torch.Size([1, 1, length, 8])) == 2, "keys and values of one head"
        assert saved.count(torch.Size([1, 4, length, 8])) == 2, "queries and the result of four"
