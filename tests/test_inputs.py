"""What reaches the decoder: masks only where needed, text as it stands, warnings where something goes unseen."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny import tiny_llava
from transformers import LlamaForCausalLM

from llava.compression import CompressionConfig, T2VConfig, V2VConfig
from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.records import read_records
from llava.model import staged_decoder
from llava.model.image_inputs import warn_unseen
from llava.model.placeholders import VisualSpan
from llava.model.query_roles import warn_without_query_mask
from llava.model.splice import plan_splice

DUET = CompressionConfig(V2VConfig(6, 2, 2), T2VConfig((2, 4), (0.5, 0.25)))


def test_training_on_right_padding_builds_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    build = staged_decoder.create_causal_mask
    monkeypatch.setattr(
        staged_decoder,
        "create_causal_mask",
        lambda **options: asked.append((options["attention_mask"], build(**options))) or asked[-1][1],
    )
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 5, 6, 7], [1, IMAGE_TOKEN_INDEX, 5, 0, 0]])
    model = tiny_llava().train()
    model(ids, ids != 0, labels=ids.clamp(min=3), images=torch.randn(2, 3, 56, 56), compression=DUET, packing="off")
    assert asked == [(None, None)] * 3


def test_text_keeps_its_places() -> None:
    """Left-padded text comes back aligned with its ids, as from the stock model."""
    model = tiny_llava()
    stock = LlamaForCausalLM(model.config)
    stock.load_state_dict(model.state_dict(), strict=False)
    ids, mask = torch.tensor([[0, 0, 1, 5, 6], [0, 1, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(ids, mask, compression=DUET).logits
    expected = stock.eval().to(model.dtype)(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


def test_only_text_votes_by_default() -> None:
    ids = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 6, 7, 8]])
    vote = plan_splice(ids, None, {IMAGE_TOKEN_INDEX: [VisualSpan(torch.empty(4, 0), 1)]}, queries="text").layout.vote
    assert vote[0].nonzero().flatten().tolist() == [6, 7, 8]


def test_salient_without_a_query_mask_is_said(caplog: pytest.LogCaptureFixture) -> None:
    warn_without_query_mask.cache_clear()  # it is said once in a process
    ids, config = torch.tensor([[1, IMAGE_TOKEN_INDEX, 6]]), T2VConfig((2,), (0.5,), queries="salient")
    with caplog.at_level(logging.WARNING):
        tiny_llava()(ids, images=torch.randn(1, 3, 56, 56), compression=CompressionConfig(t2v=config))
    assert "no query_mask says which tokens are" in caplog.text


def test_images_that_no_prompt_shows_are_said(caplog: pytest.LogCaptureFixture) -> None:
    warn_unseen.cache_clear()
    with caplog.at_level(logging.WARNING):
        tiny_llava()(torch.tensor([[1, 5, 6]]), images=torch.randn(1, 3, 56, 56))
    assert "Images were given, but no prompt holds an <image>" in caplog.text


def test_an_unseen_image_cannot_spoil_half_precision() -> None:
    """The dummy image of a text batch counts nothing even where the sum of its features overflows."""
    model = tiny_llava().half().train()
    with torch.no_grad():
        model.model.mm_projector[-1].bias.fill_(6e4)
    assert torch.isfinite(model(torch.tensor([[1, 5, 6]]), images=torch.zeros(1, 3, 56, 56)).logits).all()


def test_json_lines_may_hold_other_line_separators(tmp_path) -> None:
    path = tmp_path / "data.jsonl"
    turns = '[{"from": "human", "value": "a\u2028b\x85c"}, {"from": "gpt", "value": "d"}]'
    path.write_text(f'{{"id": "1", "conversations": {turns}}}\n', encoding="utf-8")
    assert read_records(path)[0].turns[0] == "a\u2028b\x85c"
