"""Text that is packed, has gaps, or comes behind a filled cache; every family, LLaVA's own among them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_families import BOTH, KINDS, T2V
from tiny_vlms import EVERY, NATIVE, QWEN, batch, prompt, vlm
from transformers import LlamaForCausalLM

from llava import compress

NEW = torch.tensor([[5, 6]])


def shown(family: str) -> dict[str, Any]:
    return batch([prompt(family, 1, KINDS[family][0])])


@pytest.mark.parametrize("family", EVERY)
def test_what_comes_behind_a_cache_stands_where_the_cache_goes_on(family: str) -> None:
    model, inputs = compress(vlm(family), BOTH), shown(family)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    held, following = cache.get_seq_length(), int(cache.stages[0].next_position)
    hidden = torch.ones(1, held + 2).index_fill(1, torch.tensor([0, 1]), 0)
    far, near = torch.tensor([[50, 51]]), torch.tensor([[following, following + 1]])
    several = [()] if family not in QWEN else [(), (3,), (4,)]
    for options, words in (
        *(({"position_ids": far.expand(*axes, 1, 2)}, "but behind past_key_values") for axes in several),
        ({"position_ids": far.tolist()}, "position_ids is a list"),
        ({"attention_mask": hidden}, "What is in the cache cannot be hidden"),
        ({"compression": T2V}, "compression cannot be changed behind a filled cache"),
        ({"image": torch.zeros(1, 3, 4, 4)}, "image is not read by this model"),
    ):
        for call in (model, model.generate) if family in NATIVE else (model,):
            with pytest.raises(ValueError, match=words):
                call(NEW, past_key_values=copy.deepcopy(cache), **options)
    if family in NATIVE:  # whose inner model continues a cache, too
        with pytest.raises(ValueError, match="but behind past_key_values"):
            model.model(NEW, past_key_values=copy.deepcopy(cache), position_ids=far)
    with torch.no_grad():
        expected = model(NEW, past_key_values=copy.deepcopy(cache)).logits
        for options in (
            *({"position_ids": near.expand(*axes, 1, 2)} for axes in several),
            {"attention_mask": torch.ones(1, held + 2)},
            {"compression": BOTH},
        ):
            assert torch.equal(model(NEW, past_key_values=copy.deepcopy(cache), **options).logits, expected)
        other = model(**inputs, use_cache=True, compression=T2V).past_key_values
        again = model(NEW, past_key_values=copy.deepcopy(other), compression=T2V).logits
        assert torch.equal(again, model(NEW, past_key_values=other).logits)


@pytest.mark.parametrize("family", EVERY)
def test_gaps_in_the_positions_of_text_are_taken_as_the_stock_model_takes_them(family: str) -> None:
    stock, ids = vlm(family), torch.tensor([[1, 5, 6, 7, 8], [0, 0, 1, 9, 4]])
    model, mask = compress(stock, BOTH), torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    options = {"attention_mask": mask, "position_ids": torch.tensor([[0, 1, 2, 7, 8], [1, 1, 0, 3, 4]])}
    with torch.no_grad():
        for given in ({"input_ids": ids}, {"inputs_embeds": stock.get_input_embeddings()(ids)}):
            expected, got = stock(**given, **options).logits, model(**given, **options).logits
            torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="do not count the tokens"):
        model.generate(ids, **options)


@pytest.mark.parametrize("family", EVERY)
def test_packed_text_has_its_loss_by_shift_labels_and_its_logits_when_wanted(family: str) -> None:
    model, ids = compress(vlm(family), BOTH), torch.tensor([[1, 5, 6, 1, 8, 9]])
    labels = torch.tensor([[-100, 5, 6, -100, 8, 9]])
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    for options in (
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])},
        {"attention_mask": torch.ones(1, 1, 6, 6).tril().bool()},
    ):
        with torch.no_grad():
            loss = model(ids, labels=labels, **options).loss
            torch.testing.assert_close(model(ids, shift_labels=shifted, **options).loss, loss)
            torch.testing.assert_close(model(ids, shift_labels=shifted, labels=ids, **options).loss, loss)
            assert model(ids, return_logits=False, **options).logits is None
        model.train()
        assert model(ids, labels=labels, **options).logits is None
        assert model(ids, labels=labels, return_logits=True, **options).logits is not None
        model.eval()
        with pytest.raises(ValueError, match="shift_labels has shape"):
            model(ids, shift_labels=shifted[:, :-1], **options)


def test_generate_names_what_transformers_would_stumble_over() -> None:
    stock, inputs = vlm("llava"), shown("llava")
    model, twin = compress(stock, BOTH), compress(stock, "none")
    for options, words in (
        ({"past_key_values": ((None, None),)}, "past_key_values is a tuple"),
        ({"attention_mask": {"full_attention": None}}, "attention_mask is a dict"),
        ({"attention_mask": inputs["attention_mask"].tolist()}, "attention_mask is a list"),
        ({"position_ids": [[0, 1]]}, "position_ids is a list"),
        ({"return_logits": False}, "generate chooses tokens by their logits"),
        ({"vision_feature_select_strategy": "foo"}, "is 'foo'; give one of default, full"),
    ):
        with pytest.raises(ValueError, match=words):
            model.generate(**inputs | options, max_new_tokens=2)
    text = batch([prompt("llava", 3, ())])
    draft = LlamaForCausalLM(stock.config.text_config).double().eval()
    options = {"assistant_model": draft, "max_new_tokens": 3, "do_sample": False}
    with pytest.raises(ValueError, match="hand on to the assistant"):
        model.generate(**text, **options, compression="none")
    assert torch.equal(twin.generate(**text, **options, compression="none"), stock.generate(**text, **options))
