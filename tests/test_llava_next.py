"""LLaVA-NeXT in LLaVA's own model: transformers' class without compression, V2V crop by crop, plans of data workers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import tiny_text
import torch
from tiny import columns_of_stock, tiny_llava, tower_config
from tiny_next import IMAGE, SIDE, SIZES, next_llava, picture, pixels_of, spelled_out, stock_of
from tiny_vlms import renamed, vlm
from torch import Tensor
from transformers import CLIPImageProcessorPil

from llava import compress
from llava.compression import CompressionConfig, V2VConfig
from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.families import family_of
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.crops import Crops, raster_order
from llava.model.trace import trace_batch

PROMPT = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 7, 8, 9]])
BUDGET = {"v2v": {"dominant": 5, "contextual": 3, "cluster_width": 2}}
STAGED = {**BUDGET, "t2v": {"layers": [2, 4], "keep": [0.5, 0.2]}}


@pytest.fixture(scope="module")
def model() -> Any:
    return next_llava()


@pytest.fixture(scope="module")
def stock(model: Any) -> Any:
    return stock_of(model)


def said(model: Any, inputs: dict[str, Any], count: int = 6) -> list[list[int]]:
    ids = model.generate(**inputs, max_new_tokens=count, do_sample=False, suppress_tokens=[IMAGE])
    return ids[:, -count:].tolist()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_without_compression_it_is_transformers_from_the_picture_on(model, stock, size):
    """Its own processor and pinpoints on one side, LLaVA's on the other: pixels, logits and greedy text."""
    pictures = [picture(size, sum(size))]
    own, theirs = pixels_of(model, pictures), spelled_out(stock, PROMPT, pictures)
    assert torch.equal(own["images"][0], theirs["pixel_values"][0])
    with torch.no_grad():
        expected = columns_of_stock(stock(**theirs).logits, theirs["input_ids"], IMAGE)
        torch.testing.assert_close(model(PROMPT, **own).logits, expected, atol=1e-9, rtol=0)
    assert said(model, {"inputs": PROMPT, **own}) == said(stock, theirs)


def test_loss_and_gradients_are_those_of_transformers(model, stock):
    pictures = [picture((100, 33), 4)]
    own, theirs = pixels_of(model, pictures), spelled_out(stock, PROMPT, pictures)
    model.zero_grad(set_to_none=True)
    labels = torch.full_like(PROMPT, -100).index_copy(1, torch.tensor([4, 5]), PROMPT[:, 4:])
    loss = model(PROMPT, labels=labels, **own).loss
    loss.backward()
    expanded = torch.full_like(theirs["input_ids"], -100)
    expanded[:, -2:] = PROMPT[:, -2:]
    expected = stock(**theirs, labels=expanded).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0, check_dtype=False)
    others = dict(stock.named_parameters())
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, others[renamed(name)].grad, atol=1e-6, rtol=1e-4)
    assert model.model.image_newline.grad.abs().sum() > 0 and model.model.mm_projector[0].weight.grad.abs().sum() > 0


def rows_of(model: Any) -> tuple[list[Tensor], list[list[Any]]]:
    """Prompts of several kinds: one picture, two of other grids, none, and a thin one."""
    kinds = [[(171, 64)], [(56, 56), (37, 300)], [], [(300, 7)]]
    rows = []
    for row, sizes in enumerate(kinds):
        ids = [1, 5 + row]
        for place in range(len(sizes)):
            ids += [IMAGE_TOKEN_INDEX, 9 + place]
        rows.append(torch.tensor(ids + [20 + row, 30] * (row + 1)))
    return rows, [[picture(size, row) for row, size in enumerate(sizes)] for sizes in kinds]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("budget", [None, BUDGET, STAGED])
@pytest.mark.parametrize("order", ["crops", "raster"])
def test_each_row_of_a_batch_is_the_row_alone(model, budget, side, order):
    if budget is None and order == "raster":
        pytest.skip("without V2V there is one order")
    chosen = "none" if budget is None else budget | {"v2v": budget["v2v"] | {"crop_order": order}}
    rows, pictures = rows_of(model)
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for row, words in enumerate(rows):
        at = slice(longest - len(words), None) if side == "left" else slice(len(words))
        ids[row, at], mask[row, at] = words, 1
    every = [image for shown in pictures for image in shown]
    together = {"attention_mask": mask, "compression": chosen, **pixels_of(model, every)}
    with torch.no_grad():
        logits = model(ids, **together).logits
    answers = said(model, {"inputs": ids, **together})
    for row, words in enumerate(rows):
        alone: dict[str, Any] = {"compression": chosen}
        if pictures[row]:
            alone |= pixels_of(model, pictures[row])
        with torch.no_grad():
            expected = model(words[None], **alone).logits[0]
        torch.testing.assert_close(logits[row][mask[row].bool()], expected, atol=1e-9, rtol=0)
        assert answers[row] == said(model, {"inputs": words[None], **alone})[0]


def test_images_are_taken_as_a_list_row_by_row_and_stacked(model):
    pictures = [picture((112, 112), 1), picture((120, 61), 2)]
    given = pixels_of(model, pictures)
    ids = PROMPT.expand(2, -1)
    forms = [
        (given["images"], given["image_sizes"]),
        (torch.stack(given["images"]), torch.tensor(given["image_sizes"])),
        ([[image] for image in given["images"]], [[size] for size in given["image_sizes"]]),
        ([image.numpy() for image in given["images"]], [torch.tensor(size) for size in given["image_sizes"]]),
    ]
    with torch.no_grad():
        first, *others = (model(ids, images=images, image_sizes=sizes).logits for images, sizes in forms)
    assert all(torch.equal(other, first) for other in others)


def test_an_uncut_image_has_a_newline_in_a_list_and_none_in_a_stack(model):
    pixels = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    ids = PROMPT.expand(2, -1)
    for budget, tokens in (("none", 16), (BUDGET, 8)):
        for images, count in ((pixels, tokens), (list(pixels), tokens + 1)):
            layouts = model(ids, images=images, compression=budget, output_layouts=True).layouts
            assert layouts[0].visual == (count, count)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (None, "came without image_sizes"),
        ([(56, 112)], "came as 5 crops, but one of .* is cut into 3"),
        ([(112, 112), (112, 112)], "image_sizes holds 2 sizes, but 1 images were given"),
        ([(0, 5)], "The size of an image is"),
        ("large", "image_sizes holds a str"),
        ([("a", "b")], "The size of an image is"),
    ],
)
def test_sizes_that_do_not_belong_to_the_crops_are_refused(model, sizes, words):
    given = pixels_of(model, [picture((112, 112))])
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=words):
            call(PROMPT, images=given["images"], image_sizes=sizes)


def test_sizes_of_images_that_are_not_cut_are_not_looked_at():
    plain = tiny_llava()
    pixels = torch.randn(1, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        expected = plain(PROMPT, images=pixels).logits
        assert torch.equal(plain(PROMPT, images=pixels, image_sizes=[(640, 480)] * 3).logits, expected)


def places_by_hand(source: list[list[int]], grid: tuple[int, int], order: str) -> list[tuple[int, int]]:
    """Crop and slot of each token of an image in the order that is asked for, from the patches that they stand for."""
    places = []
    for crop, patches in enumerate(source):
        for slot, patch in enumerate(patches):
            kind = "cls" if slot == 0 else "kept" if slot < 5 else "contextual"
            column, row = (crop - 1) % grid[0] * 4 + patch % 4, (crop - 1) // grid[0] * 4 + patch // 4
            places.append((crop, slot, kind, row, column))
    if order == "raster":
        later = {"kept": 1, "cls": 2, "contextual": 3}
        places.sort(
            key=lambda place: (
                (0, place[1], 0)
                if place[0] == 0
                else (later[place[2]], *(place[3:] if place[2] == "kept" else place[:2]))
            )
        )
    return [place[:2] for place in places]


def merged_by_hand(model: Any, crops: Tensor, grid: tuple[int, int], order: str) -> Tensor:
    """V2V's tokens of one image in the order that is asked for, token by token."""
    result = model.get_vision_tower().merge(crops, V2VConfig(5, 3, 2))
    tokens = model.project(result.tokens)
    return torch.stack([tokens[crop, slot] for crop, slot in places_by_hand(result.source.tolist(), grid, order)])


@pytest.mark.parametrize("order", ["crops", "raster"])
def test_tokens_are_traced_to_their_crops_in_either_order(model, order):
    budget = CompressionConfig.from_dict(STAGED | {"v2v": BUDGET["v2v"] | {"crop_order": order}})
    pictures = [picture((112, 112), 3), picture((300, 20), 4)]
    given = pixels_of(model, pictures)
    media = [Crops(pixels, size) for pixels, size in zip(given["images"], given["image_sizes"], strict=True)]
    ids = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 7, IMAGE_TOKEN_INDEX, 8, 9]])
    trace = trace_batch(model, {"input_ids": ids, **given}, media, budget)
    with torch.no_grad():
        layouts = model(ids, compression=budget, output_layouts=True, **given).layouts
    start, crop, expected = 0, 0, torch.zeros(9 * 8, dtype=torch.bool)
    alive = layouts[1].alive()[0]
    for medium, grid in zip(media, ((2, 2), (3, 1)), strict=True):
        count = len(medium.pixels)
        source = trace.merged.source[crop : crop + count].tolist()
        for place, (number, slot) in enumerate(places_by_hand(source, grid, order)):
            expected[(crop + number) * 8 + slot] = alive[start + place]
        start, crop = start + 8 * count, crop + count
    assert torch.equal(trace.alive[2][0], expected) and trace.entered == (72,)


@pytest.mark.parametrize("order", ["crops", "raster"])
@pytest.mark.parametrize(("size", "grid"), [((112, 112), (2, 2)), ((300, 20), (3, 1)), ((20, 300), (1, 3))])
def test_v2v_shortens_every_crop_and_puts_its_tokens_where_the_order_says(model, order, size, grid):
    given = pixels_of(model, [picture(size, 3)])
    budget = {"v2v": BUDGET["v2v"] | {"crop_order": order}}
    crops = given["images"][0]
    with torch.no_grad():
        embeddings, layout = model.prepare_multimodal_inputs(PROMPT, compression=budget, **given)
        expected = merged_by_hand(model, crops, grid, order)
    assert layout.visual == (8 * len(crops),)
    assert torch.equal(embeddings[0][layout.is_visual[0]], expected)


def test_the_two_orders_hold_the_same_tokens_at_other_places(model):
    given = pixels_of(model, [picture((112, 112), 3)])
    found = []
    for order in ("crops", "raster"):
        budget = {"v2v": BUDGET["v2v"] | {"crop_order": order}}
        with torch.no_grad():
            embeddings, layout = model.prepare_multimodal_inputs(PROMPT, compression=budget, **given)
        found.append(embeddings[0][layout.is_visual[0]])
    assert not torch.equal(*found)
    rows = [sorted(map(tuple, tokens.tolist())) for tokens in found]
    assert rows[0] == rows[1]
    with pytest.raises(ValueError, match=r"v2v.crop_order is 'rows'; it must be one of crops, raster"):
        V2VConfig(5, 3, crop_order="rows")


def test_the_order_runs_over_several_images_and_spares_their_base(model):
    result = model.get_vision_tower().merge(torch.randn(8, 3, SIDE, SIDE, dtype=torch.float64), V2VConfig(5, 3, 2))
    order = raster_order(result, slice(3, 8), (2, 2), 4)
    assert sorted(order.tolist()) == list(range(40)) and order[:8].tolist() == list(range(8))


@pytest.mark.parametrize(
    ("dominant", "contextual", "counts"),
    [(170, 35, (1025, 615, 820)), (72, 30, (510, 306, 408)), (45, 6, (255, 153, 204))],
)
def test_published_budgets_count_tokens_of_five_three_and_four_crops(dominant, contextual, counts):
    tower = tower_config().to_dict() | {"image_size": 336}
    large = next_llava(mm_vision_config=tower, image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336]])
    settings = large.plan_settings(CompressionConfig(V2VConfig(dominant, contextual)))
    sizes = [(672, 672), (336, 336), (1008, 336)]
    crops = [Crops(torch.empty(1 + count, 0), size) for count, size in zip((4, 2, 3), sizes, strict=True)]
    assert tuple(count for crop in crops for count in settings.counts(crop)) == counts
    without = large.plan_settings(CompressionConfig())
    assert [without.counts(crop) for crop in crops] == [[2928], [1176], [576 + 24 * 73]]


@pytest.fixture(scope="module")
def inputs() -> Any:
    """The family's inputs of a model with the tiny tokenizer's vocabulary."""
    tokenizer = tiny_text.llama()
    own = next_llava(vocab_size=len(tokenizer))
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return family_of(own.config)(own.config, tokenizer, processor, "v1"), own


@pytest.mark.parametrize("budget", [None, BUDGET, STAGED])
def test_the_plan_of_a_data_worker_is_the_models_own(inputs, budget):
    family, own = inputs
    own.set_compression(budget)
    turns = ["Which colour?", "red", "And now?", "blue"]
    samples = []
    for sizes in ([(171, 64)], [(56, 56), (37, 300)], []):
        media = [family.image(picture(size, 1), "An image") for size in sizes]
        assert all(isinstance(medium, Crops) for medium in media)
        samples.append(family.conversation([family.question(turns[0], media), *turns[1:]], media))
    collated = family.collator(SIDE, own.plan_settings())(samples)
    plan = collated.pop("plan")
    arguments = {name: collated[name] for name in family.arguments if name in collated}
    assert [len(image) for image in arguments["images"]] == [4, 3, 4]
    arguments["images"] = [image.to(own.dtype) for image in arguments["images"]]
    with torch.no_grad():
        arguments |= {"return_logits": True, "packing": "off"}
        made, given = (own(**arguments, **more) for more in ({}, {"plan": plan}))
    assert torch.equal(made.loss, given.loss) and torch.equal(made.logits, given.logits)
    lengths = [family.length(sample, own.plan_settings()) for sample in samples]
    assert list(made.layouts[0].lengths) == lengths


def test_frames_of_a_video_are_not_cut(inputs):
    from llava.data.frames import Frames

    family, own = inputs
    frames = Frames((picture((80, 45), 1), picture((80, 45), 2)), (0, 1), 2)
    media = family.video(frames, "A video")
    assert [tuple(medium.shape) for medium in media] == [(3, SIDE, SIDE)] * 2
    settings = own.plan_settings(CompressionConfig())
    assert [settings.counts(medium) for medium in media] == [[17], [17]]
    assert family.media_arguments(media)["image_sizes"] == [(SIDE, SIDE)] * 2


def test_an_image_that_cannot_be_read_is_replaced_by_a_black_one_in_crops(inputs):
    family, _ = inputs
    blank = family.blank("image")
    assert isinstance(blank, Crops) and len(blank.pixels) == 3


def test_a_trained_tower_gets_gradients_through_the_kept_tokens(model):
    """V2V chooses without gradients, what it keeps and merges passes them on."""
    tower = model.get_vision_tower()
    tower.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    try:
        given = pixels_of(model, [picture((112, 112), 5)])
        labels = torch.full_like(PROMPT, -100).index_copy(1, torch.tensor([5]), PROMPT[:, 5:])
        for order in ("crops", "raster"):
            model.zero_grad(set_to_none=True)
            budget = STAGED | {"v2v": BUDGET["v2v"] | {"crop_order": order}}
            model(PROMPT, labels=labels, compression=budget, **given).loss.backward()
            first = tower.model.encoder.layers[0].self_attn.q_proj.weight.grad
            assert first is not None and first.isfinite().all() and first.abs().sum() > 0
            assert tower.model.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    finally:
        tower.requires_grad_(False)
        model.zero_grad(set_to_none=True)


def test_the_newline_takes_part_in_every_training_step(model):
    """Also where V2V or a batch of text uses none: processes that share weights reduce their gradients together."""
    model.train()
    try:
        given = pixels_of(model, [picture((112, 112), 5)])
        text = torch.tensor([[1, 5, 6, 7]])
        for ids, budget in ((PROMPT, STAGED), (text, "none"), (text, STAGED)):
            model.zero_grad(set_to_none=True)
            model(ids, labels=ids.masked_fill(ids < 0, -100), compression=budget, **given).loss.backward()
            assert model.model.image_newline.grad is not None and not model.model.image_newline.grad.any()
    finally:
        model.eval()
        model.zero_grad(set_to_none=True)


def test_a_model_that_needs_no_newline_has_none_and_a_new_one_is_as_wide_as_an_embedding():
    assert next_llava(mm_patch_merge_type="spatial").model.image_newline is None
    assert tiny_llava().model.image_newline is None
    text = LlavaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    assert LlavaLlamaForCausalLM(text).model.image_newline is None
    settings = next_llava().config.to_dict() | {"hidden_size": 400, "num_hidden_layers": 1}
    newline = LlavaLlamaForCausalLM(LlavaConfig.from_dict(settings)).model.image_newline
    assert newline.shape == (400,) and 0.04 < newline.std().item() < 0.06


@pytest.mark.parametrize("merge_type", ["flat", "spatial", "spatial_unpad_nobase", "spatial_maxpool2x2"])
def test_other_ways_to_merge_bring_as_many_tokens_as_planned(merge_type):
    other = next_llava(mm_patch_merge_type=merge_type, image_aspect_ratio="anyres_max_2")
    for budget in ("none", BUDGET, {"v2v": BUDGET["v2v"] | {"crop_order": "raster"}}):
        settings = other.plan_settings(CompressionConfig.resolve(budget))
        for size in ((112, 112), (171, 64), (40, 56)):
            given = pixels_of(other, [picture(size)])
            layouts = other(PROMPT, **given, compression=budget, output_layouts=True).layouts
            assert list(layouts[0].visual) == settings.counts(Crops(given["images"][0], size))


def test_cached_decoding_goes_on_as_if_everything_were_computed_anew(model):
    given = pixels_of(model, [picture((112, 112), 6)])
    words = model.generate(
        PROMPT, max_new_tokens=5, do_sample=False, suppress_tokens=[IMAGE], compression=STAGED, **given
    )
    ids, anew = PROMPT, []
    for _ in range(5):
        kept = ids.shape[1] - PROMPT.shape[1] + 1
        with torch.no_grad():
            logits = model(ids, compression=STAGED, use_cache=False, logits_to_keep=kept, **given).logits[0, -1]
        logits[IMAGE] = -torch.inf
        anew.append(int(logits.argmax()))
        ids = torch.cat([ids, torch.tensor([[anew[-1]]])], dim=1)
    assert words[0].tolist() == anew
    assert all(a >= 0 for a, _ in pairwise(anew))


@pytest.mark.parametrize("order", ["crops", "raster"])
def test_transformers_class_with_both_stages_is_llavas_own_under_either_order(model, stock, order):
    budget = STAGED | {"v2v": BUDGET["v2v"] | {"crop_order": order}}
    theirs = compress(stock, budget)
    for size in ((112, 112), (171, 64), (100, 33)):
        pictures = [picture(size, 2)]
        inputs = spelled_out(stock, PROMPT, pictures)
        with torch.no_grad():
            own = model(PROMPT, compression=budget, **pixels_of(model, pictures)).logits
            expected = theirs(**inputs).logits
        text = inputs["input_ids"][0] != IMAGE
        torch.testing.assert_close(own[0, 3:], expected[0, text][2:], atol=1e-9, rtol=0)


def test_an_order_that_a_family_does_not_know_is_refused():
    with pytest.raises(ValueError, match="which a CompressedLlavaOnevision does not know"):
        compress(vlm("llava_onevision"), {"v2v": {"dominant": 5, "contextual": 2, "crop_order": "raster"}})
