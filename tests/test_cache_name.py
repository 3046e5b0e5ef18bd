"""`past_key_values` is called `cache` from transformers 5.24 on; both names work here, whichever is installed."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import tiny
import tiny_vlms
import torch
from pebbles import CompressedPebbles, Pebbles
from tiny import chat, collate, pixels, tiny_llava

from llava import compress
from llava.model.cache_name import CACHE, NEW, OLD, as_named, cache_of
from llava.model.plugin import forward_like

T2V = {"t2v": {"layers": [2, 4], "keep": [0.5, 0.25]}}


def prefilled(model: Any, inputs: dict[str, Any]) -> Any:
    return cache_of(model(**inputs, use_cache=True))


@pytest.mark.parametrize("name", [OLD, NEW])
@torch.no_grad()
def test_a_cache_is_continued_under_either_name(name: str) -> None:
    own, row = tiny_llava(compression=tiny.DUET), chat(1, answered=False)
    twin = compress(tiny_vlms.vlm("llava"), T2V)
    cases = [
        (own, collate([row]) | {"images": pixels(1)}),
        (twin, tiny_vlms.batch([tiny_vlms.prompt("llava", 1)])),
    ]
    for model, inputs in cases:
        new = torch.tensor([[5, 6]])
        expected = model(new, **{CACHE: prefilled(model, inputs)}).logits
        assert torch.equal(model(new, **{name: prefilled(model, inputs)}).logits, expected)
        with pytest.raises(ValueError, match="two names of one thing"):
            model(new, past_key_values=prefilled(model, inputs), cache=prefilled(model, inputs))
    plain = compress(twin, "none")
    assert torch.equal(plain(torch.tensor([[5, 6]]), **{name: None}).logits, plain(torch.tensor([[5, 6]])).logits)


@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_conversation_goes_on_by_generate_under_either_name(name: str) -> None:
    model, row = tiny_llava(compression=tiny.DUET), chat(1, answered=False)
    answers = []
    for given in (CACHE, name):
        cache = prefilled(model, collate([row]) | {"images": pixels(1)})
        options = {"max_new_tokens": 3, "do_sample": False, given: cache}
        answers.append(model.generate(torch.tensor([[5, 6]]), **options).tolist())
    assert answers[0] == answers[1]


class NewPebbles(Pebbles):
    """A class of another package that calls the cache by its new name, whichever transformers is installed."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        cache: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        pebbles: Any = None,
        **kwargs: Any,
    ) -> Any:
        passed = {"inputs_embeds": inputs_embeds, "labels": labels, "pebbles": pebbles} | kwargs
        return super().forward(input_ids, attention_mask, past_key_values=cache, **passed)


class CompressedNewPebbles(CompressedPebbles, NewPebbles):
    stock = NewPebbles
    forward = forward_like(NewPebbles)


@pytest.mark.parametrize("family", [CompressedPebbles, CompressedNewPebbles])
@torch.no_grad()
def test_a_class_of_another_package_keeps_its_own_name_for_the_cache(family: type[CompressedPebbles]) -> None:
    stock = tiny_vlms.vlm("pebbles")
    model = family(stock.config).to(stock.dtype).eval()
    model.load_state_dict(stock.state_dict())
    inputs = tiny_vlms.batch([tiny_vlms.prompt("pebbles", 1)])
    new = torch.tensor([[5, 6]])
    for compression in ("none", T2V):
        model.set_compression(compression)
        steps = [model(new, **{name: prefilled(model, inputs)}).logits for name in (OLD, NEW)]
        whole = model(torch.cat([inputs["input_ids"], new], 1), pebbles=inputs["pebbles"]).logits[:, -1]
        assert torch.equal(*steps)
        if compression == "none":
            torch.testing.assert_close(steps[0][:, -1], whole)
            expected = stock.generate(**inputs, max_new_tokens=3, do_sample=False)
            assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), expected)
        assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1


def test_nothing_here_uses_a_name_that_transformers_has_given_up() -> None:
    """With warnings as errors: a prefill, a step behind it, and an answer, of both kinds of model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*past_key_values.*")
        own, row = tiny_llava(compression=tiny.DUET), chat(1, answered=False)
        inputs = collate([row]) | {"images": pixels(1)}
        own(torch.tensor([[5]]), **{CACHE: prefilled(own, inputs)})
        own.generate(inputs.pop("input_ids"), **inputs, max_new_tokens=2)
        twin = compress(tiny_vlms.vlm("llava"), T2V)
        twin.generate(**tiny_vlms.batch([tiny_vlms.prompt("llava", 1)]), max_new_tokens=2)


def test_arguments_are_renamed_and_two_caches_are_refused() -> None:
    assert as_named({"x": 1, OLD: 2}, NEW) == {"x": 1, NEW: 2} and as_named({NEW: 2}, OLD) == {OLD: 2}
    assert as_named({OLD: 2, NEW: None}, OLD) == {OLD: 2} and as_named({"x": 1}) == {"x": 1}
    with pytest.raises(ValueError, match="leave one out"):
        as_named({OLD: 1, NEW: 2})
