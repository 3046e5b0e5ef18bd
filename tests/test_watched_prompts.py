"""What the page shows of a prompt is what the model computed: attention of every layer, patches, tokens, voters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from tiny_backbones import BUDGET, WRITERS, write_media

from llava.checkpoints.opening import open_model
from llava.compression.v2v import PatchRole
from llava.inference.chat import Chat
from llava.model.layer_attention import watch_prompt
from llava.model.staged_decoder import run_stages
from llava.model.traced_media import TracedUnit, traced_media


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Image.Image:
    files, _ = write_media(tmp_path_factory.mktemp("media"))
    return Image.open(files[0]).convert("RGB")


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory, picture: Image.Image) -> dict[str, Chat]:
    """One of every family that has answered a question about a picture, without a budget."""
    made = {}
    for name, write in WRITERS.items():
        folder = write(tmp_path_factory.mktemp(name.replace(".", "-")))
        model, processor, tokenizer, _ = open_model(str(folder), device="cpu")
        made[name] = Chat(model, tokenizer, processor, compression="none", max_new_tokens=2, do_sample=False)
        made[name].answer("What is red here?", [picture])
    return made


def prompt_of(chat: Chat) -> tuple[dict[str, Any], list[Any]]:
    """Arguments of the model for the last question, and what it shows."""
    assert chat.last_request is not None
    inputs = chat.engine.batch([chat.last_request.sample])
    del inputs["labels"]
    return inputs, chat.last_request.pixels


def units_of(model: Any, inputs: dict[str, Any], media: list[Any], budget: Any) -> list[TracedUnit]:
    return [unit for medium in traced_media(model, inputs, media, budget) for unit in medium.units]


@pytest.mark.parametrize("family", WRITERS)
def test_the_attention_of_a_layer_is_what_an_eager_kernel_gives(family: str, chats: dict[str, Chat]) -> None:
    """Without drops: of transformers' own weights the row of the last token, mean over heads, at the visual tokens."""
    chat = chats[family]
    model = chat.model
    inputs, _ = prompt_of(chat)
    none = model.checked("none")
    watched = watch_prompt(model, inputs, none)
    prefill = model.prefill(inputs, none)
    decoder, former = model.decoder, model.decoder.config._attn_implementation
    decoder.config._attn_implementation = "eager"
    try:
        output = run_stages(
            decoder, prefill.embeddings, prefill.layout, None, None, prefill.added, output_attentions=True
        )
    finally:
        decoder.config._attn_implementation = former
    layout = prefill.layout
    last = int(layout.vote[0].nonzero().max())
    visual = layout.visual_index[0] >= 0
    assert watched.attention.shape == (len(decoder.layers), 1, int(visual.sum()))
    for layer, weights in enumerate(output.attentions):
        expected = weights[0, :, last, visual].mean(dim=0)
        torch.testing.assert_close(watched.attention[layer, 0], expected.float(), atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("scored_by", ["after", "before"])
@pytest.mark.parametrize("family", WRITERS)
def test_drops_are_ranked_by_the_attention_that_is_shown(family: str, scored_by: str, chats: dict[str, Chat]) -> None:
    """With Qwen3-VL's features that are added behind the first layers, in front of and behind a drop among them."""
    model = chats[family].model
    budget = model.checked({**BUDGET, "t2v": {"layers": [1, 3], "keep": [0.6, 0.3], "scored_by": scored_by}})
    inputs, _ = prompt_of(chats[family])
    watched = watch_prompt(model, inputs, budget)
    assert sorted(watched.scores) == [1, 3]
    for cut, scores in watched.scores.items():
        layer = cut if scored_by == "after" else cut - 1
        torch.testing.assert_close(watched.attention[layer], scores, atol=1e-6, rtol=1e-4)
    gone = ~watched.layouts[1].alive()
    assert gone.any() and bool((watched.attention[2][gone] == 0).all())


def cut(joined: TracedUnit, units: list[TracedUnit]) -> list[list[int | None]]:
    """The tokens of two by two crops in the map that they are joined to, which has lost lines above and below."""
    side = units[0].rows
    assert len(units) == 5 and joined.columns == 2 * side
    lost = (2 * side - joined.rows) // 2
    whole: list[int | None] = [None] * (lost * joined.columns) + joined.tokens + [None] * (lost * joined.columns)
    lines = [whole[first : first + 2 * side] for first in range(0, len(whole), 2 * side)]
    return [
        [token for line in lines[down : down + side] for token in line[across : across + side]]
        for down in (0, side)
        for across in (0, side)
    ]


@pytest.mark.parametrize("family", WRITERS)
def test_patches_that_are_kept_are_the_tokens_that_are_named(family: str, chats: dict[str, Chat]) -> None:
    """The embedding of a token is that of its patch without V2V; one of a merged token is not."""
    model = chats[family].model
    inputs, media = prompt_of(chats[family])
    budget = model.checked({"v2v": {"dominant": 9, "contextual": 3, "cluster_width": 2}})
    units = units_of(model, inputs, media, budget)
    merged, plain = model.prefill(inputs, budget), model.prefill(inputs, model.checked("none"))
    tokens = merged.embeddings[0][merged.layout.visual_index[0] >= 0]  # [n0, D]
    patches = plain.embeddings[0][plain.layout.visual_index[0] >= 0]  # [n, D]
    used = [token for unit in units for token in unit.tokens if token >= 0]
    assert max(used) < len(tokens)
    kept = [
        (number, patch, token)
        for number, unit in enumerate(units)
        for patch, (role, token) in enumerate(zip(unit.roles, unit.tokens, strict=True))
        if role == PatchRole.DOMINANT
    ]
    assert len({token for _, _, token in kept}) == len(kept) >= 8 * len(units)
    alone = units_of(model, inputs, media, model.checked("none"))
    places = [unit.tokens for unit in alone] if len(alone) == len(units) else [alone[0].tokens, *cut(alone[1], units)]
    for number, patch, token in kept:
        if places[number][patch] is not None:
            torch.testing.assert_close(tokens[token], patches[places[number][patch]], atol=1e-4, rtol=1e-4)
    for unit in units:
        anchors = {token for role, token in zip(unit.roles, unit.tokens, strict=True) if role == PatchRole.ANCHOR}
        joined = {token for role, token in zip(unit.roles, unit.tokens, strict=True) if role == PatchRole.MERGED}
        assert joined <= anchors and not anchors & {token for _, _, token in kept}
        assert all(
            (token < 0) == (role == PatchRole.DROPPED) for role, token in zip(unit.roles, unit.tokens, strict=True)
        )


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_a_merged_token_of_qwen_is_its_anchor_and_the_mean_of_its_members(family: str, chats: dict[str, Chat]) -> None:
    model = chats[family].model
    inputs, media = prompt_of(chats[family])
    budget = model.checked({"v2v": {"dominant": 6, "contextual": 3, "cluster_width": 3}})
    (unit,) = units_of(model, inputs, media, budget)
    merged, plain = model.prefill(inputs, budget), model.prefill(inputs, model.checked("none"))
    tokens = merged.embeddings[0][merged.layout.visual_index[0] >= 0]
    patches = plain.embeddings[0][plain.layout.visual_index[0] >= 0]
    anchors = [patch for patch, role in enumerate(unit.roles) if role == PatchRole.ANCHOR]
    assert len(anchors) == 3
    for anchor in anchors:
        members = [
            patch
            for patch, (role, token) in enumerate(zip(unit.roles, unit.tokens, strict=True))
            if role == PatchRole.MERGED and token == unit.tokens[anchor]
        ]
        expected = patches[anchor] + (patches[members].mean(dim=0) if members else 0)
        torch.testing.assert_close(tokens[unit.tokens[anchor]], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("queries", ["last", "text"])
@pytest.mark.parametrize("family", WRITERS)
def test_the_voting_words_are_those_of_the_question(family: str, queries: str, chats: dict[str, Chat]) -> None:
    chat = chats[family]
    budget = chat.model.checked({"t2v": {"layers": [2], "keep": [0.5], "queries": queries}})
    inputs, _ = prompt_of(chat)
    columns = watch_prompt(chat.model, inputs, budget).voting_columns()
    said = chat.tokenizer.decode(inputs["input_ids"][0][columns])
    assert len(columns) == 1 if queries == "last" else "red here?" in said
    assert not chat.model.is_placeholder(inputs["input_ids"])[0][columns].any()
