"""The inputs of the project's own model: right as transformers or the row alone has them, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import DUET, pixels, stock_llama, tiny_llava
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BatchFeature,
    CLIPImageProcessorPil,
    DataCollatorWithFlattening,
    DynamicCache,
    GenerationConfig,
)

from llava.compression import CompressionConfig
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.language_model.llava_llama import LlavaLlamaModel

SEQUENCES = [[1, 5, 6, 7], [1, 8, 9], [1, 10, 11, 12, 13]]
PROMPT = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 6, 7]])


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llava(compression=DUET)


def packed(**collator: Any) -> dict[str, Any]:
    made = DataCollatorWithFlattening(**collator)([{"input_ids": ids} for ids in SEQUENCES], return_tensors="pt")
    return {name: made[name] for name in made if name != "labels"}


@pytest.mark.parametrize("compression", ["none", DUET])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_sequences_do_not_see_each_other(attention: str, compression: Any) -> None:
    model = tiny_llava(compression=compression, attention=attention)
    inputs = packed(return_flash_attn_kwargs=True, return_seq_idx=True)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
        alone = [model(torch.tensor([ids]), output_hidden_states=True) for ids in SEQUENCES]
        stock = stock_llama(model, attention)(inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False)
    torch.testing.assert_close(output.logits[0], torch.cat([one.logits[0] for one in alone]), atol=1e-9, rtol=0)
    torch.testing.assert_close(output.logits, stock.logits, atol=1e-9, rtol=0)
    for layer, states in enumerate(output.hidden_states):
        expected = torch.cat([one.hidden_states[layer][0] for one in alone])
        torch.testing.assert_close(states[0], expected, atol=1e-9, rtol=0)


def test_packed_sequences_train_as_rows(model: Any) -> None:
    made = DataCollatorWithFlattening()([{"input_ids": ids} for ids in SEQUENCES], return_tensors="pt")
    rows = [torch.tensor([ids]) for ids in SEQUENCES]
    sums = sum(model(row, labels=row).loss * (row.shape[1] - 1) for row in rows)
    loss = model(**made).loss
    torch.testing.assert_close(loss, sums / sum(row.shape[1] - 1 for row in rows), atol=1e-6, rtol=0)
    loss.backward()


def test_packed_rows_may_be_padded_on_either_side(model: Any) -> None:
    first, second = [1, 5, 6, 1, 8, 9], [1, 7, 1, 4]
    for side in ("left", "right"):
        pad = (lambda row, fill: [fill] * 2 + row) if side == "left" else (lambda row, fill: row + [fill] * 2)
        ids = torch.tensor([first, pad(second, 0)])
        mask = torch.tensor([[1] * 6, pad([1] * 4, 0)])
        positions = torch.tensor([[0, 1, 2, 0, 1, 2], pad([0, 1, 0, 1], 1)])
        with torch.no_grad():
            logits = model(ids, mask, positions).logits
            for row, columns, tokens in (
                (0, slice(0, 3), first[:3]),
                (0, slice(3, 6), first[3:]),
                (1, slice(2, 4) if side == "left" else slice(0, 2), second[:2]),
                (1, slice(4, 6) if side == "left" else slice(2, 4), second[2:]),
            ):
                expected = model(torch.tensor([tokens])).logits[0]
                torch.testing.assert_close(logits[row, columns], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("use_cache", [None, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("positions", [[3, 4, 5, 6, 7], [0, 1, 2, 7, 8], [0, 1, 2, 3, 4]])
def test_offsets_and_gaps_are_taken_as_transformers_takes_them(
    model: Any, positions: list[int], masked: bool, use_cache: bool | None
) -> None:
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    mask = torch.ones_like(ids) if masked else None
    options = {"attention_mask": mask, "position_ids": torch.tensor([positions]), "use_cache": use_cache}
    with torch.no_grad():
        expected = stock_llama(model)(ids, labels=ids, **options)
        torch.testing.assert_close(model(ids, **options).logits, expected.logits, atol=1e-9, rtol=0)
        loss = model(ids, labels=ids, **options).loss
        torch.testing.assert_close(loss, expected.loss, atol=1e-6, rtol=0, check_dtype=False)


def matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.ones(rows, 1, columns, columns).tril().bool()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": pixels(1), "position_ids": torch.tensor([[0, 1, 0, 1, 2]])}, "do not count"),
        ({"images": pixels(1), "position_ids": torch.arange(5)}, r"position_ids has shape \(5,\)"),
        ({"images": pixels(1), "cu_seq_lens_q": torch.tensor([0, 2, 5])}, "describe several packed sequences"),
        ({"images": pixels(1), "inputs_embeds": torch.zeros(1, 5, 32)}, "exactly one of input_ids"),
        ({"images": pixels(1), "is_causal": False}, "is_causal"),
        ({"pixel_values": pixels(1)}, "pixel_values is not read by this model; give the pixels as images"),
        ({"images": Image.new("RGB", (4, 4))}, "images is a Image; the model takes pixels"),
        ({"images": [Image.new("RGB", (4, 4))]}, r"images\[0\] is a Image; the model takes pixels"),
        ({"images": ["cat.png"]}, r"images\[0\] is a str"),
        ({"images": {"pixels": 1}}, "pixel_values is missing"),
        ({"images": np.zeros((1, 56, 56, 3), np.uint8)}, r"images has shape \(1, 56, 56, 3\)"),
        ({"images": np.zeros((1, 3, 56, 56), np.uint8)}, "holds uint8"),
        ({"images": [pixels(1)[:0]]}, r"images\[0\] has shape \(0, 3, 56, 56\)"),
        ({"attention_mask": torch.zeros(1, 5)}, "No row holds a token: attention_mask hides all of them"),
        ({"images": [[pixels(1)[0], pixels(1)[0]]]}, r"row 0 holds 1 image placeholders, but images\[0\] holds 2"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(model: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model(PROMPT, **options)


def test_text_refusals_are_sentences(model: Any) -> None:
    ids, embeds = torch.tensor([[1, 5, 6, 7]]), torch.zeros(1, 4, 32, dtype=torch.float64)
    restart = torch.tensor([[0, 1, 0, 1]])
    for options, words in (
        ({"position_ids": restart, "use_cache": True}, "is given with use_cache=True"),
        ({"cu_seq_lens_q": [0, 2, 4]}, "describe several packed sequences"),
        ({"seq_idx": torch.tensor([[0, 0, 1, 1]])}, "describe several packed sequences"),
        ({"attention_mask": matrix(1, 5)}, r"attention_mask has shape \(1, 1, 5, 5\)"),
        ({"attention_mask": matrix(1, 4).long()}, "give booleans"),
        ({"attention_mask": torch.ones(1, 6)}, r"attention_mask has shape \(1, 6\)"),
        ({"attention_mask": torch.tensor([[0.0, 0.0, 0.0, -1e9]])}, "additive masks"),
    ):
        with pytest.raises(ValueError, match=words):
            model(ids, **options)
    for given, words in (
        (ids[0], r"input_ids has shape \(4,\)"),
        (ids[:, :0], "at least one"),
        ([[1, 5]], "is a list"),
    ):
        with pytest.raises(ValueError, match=words):
            model(given)
    with pytest.raises(ValueError, match="images were given beside inputs_embeds"):
        model(inputs_embeds=embeds, images=pixels(1))
    cache = model(PROMPT, images=pixels(1), use_cache=True).past_key_values
    for options in ({"images": pixels(1)}, {"input_ids": PROMPT}):
        with pytest.raises(ValueError, match="Images cannot be added behind a filled cache"):
            model(**{"input_ids": ids, "past_key_values": cache} | options)


def test_images_come_as_callers_have_them(model: Any) -> None:
    """Two rows, with two images and with one: tensors, arrays, a list for each row, what a processor returns."""
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 5, IMAGE_TOKEN_INDEX, 6], [1, IMAGE_TOKEN_INDEX, 7, 8, 9]])
    images = pixels(3)
    a, b, c = images
    with torch.no_grad():
        expected = model(ids, images=images).logits
        for given in (
            [a, b, c],
            [[a, b], [c]],
            [[a, b], c],
            images.numpy(),
            [a.numpy(), b, c.numpy()],
            BatchFeature({"pixel_values": images}),
            {"pixel_values": [a, b, c]},
            images[:, None],
        ):
            assert torch.equal(model(ids, images=given).logits, expected)
        assert torch.equal(model(ids[1:], images=c).logits, model(ids[1:], images=images[2:]).logits)
        answers = [model.generate(ids, images=given, max_new_tokens=2) for given in (images, [[a, b], [c]])]
    assert torch.equal(*answers)
    with pytest.raises(ValueError, match=r"have the shapes \(3, 42, 56\), \(3, 56, 56\); make all of them"):
        model(ids, images=[a, b[:, :42], c])
    with pytest.raises(ValueError, match="row 0 holds 2 image placeholders"):
        model(ids, images=[[a], [b, c]])
    with pytest.raises(ValueError, match="lists for 1 rows, but 2 prompts"):
        model(ids, images=[[a, b, c]])


def test_media_under_a_name_that_nothing_reads_are_named(model: Any) -> None:
    ids, images = torch.tensor([[1, 5, 6, 7]]), pixels(1)
    for given in ({"image": images}, {"image_features": images[0]}, {"videos": [images]}, {"image": "cat.png"}):
        for call in (model, model.generate):
            with pytest.raises(ValueError, match=f"{next(iter(given))} is not read by this model; give the pixels as"):
                call(ids, **given)
    with pytest.raises(ValueError, match="images is not read by this model; call the model with its head"):
        model.model(ids, images=images)
    with pytest.raises(ValueError, match=r"images is an array of <U7"):
        model(PROMPT, images=np.array(["cat.png"]))
    rows = np.empty(1, dtype=object)
    rows[0] = images[0].numpy()
    assert torch.equal(model(PROMPT, images=rows).logits, model(PROMPT, images=images).logits)


@pytest.mark.parametrize("given", ["none", {}, {"t2v": DUET["t2v"]}, CompressionConfig()])
def test_forward_takes_a_compression_in_every_form(model: Any, given: Any) -> None:
    images = pixels(1)
    with torch.no_grad():
        expected = model(PROMPT, images=images, compression=CompressionConfig.resolve(given)).logits
        assert torch.equal(model(PROMPT, images=images, compression=given).logits, expected)
        assert not torch.equal(model(PROMPT, images=images).logits[:, -1], expected[:, -1])


def test_a_folder_opens_by_every_name_transformers_gives_it(tmp_path: Path) -> None:
    """`AutoModel` gives the decoder with its tower, and each way of naming the folder is the same."""
    model = tiny_llava(compression=DUET, dtype=torch.float32)
    model.get_vision_tower()._image_processor = CLIPImageProcessorPil()
    model.save_pretrained(tmp_path)
    images, folder = pixels(1, dtype=torch.float32), str(tmp_path)
    with torch.no_grad():
        expected = model(PROMPT, images=images).logits
        for opened in (
            LlavaLlamaForCausalLM.from_pretrained(pretrained_model_name_or_path=folder),
            LlavaLlamaForCausalLM.from_pretrained(folder),
            AutoModelForCausalLM.from_pretrained(pretrained_model_name_or_path=tmp_path),
        ):
            assert type(opened) is LlavaLlamaForCausalLM
            assert torch.equal(opened(PROMPT, images=images).logits, expected)
    decoder, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(decoder) is LlavaLlamaModel and not info["missing_keys"]
    assert decoder.get_vision_tower().is_loaded
    weights = model.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in decoder.state_dict().items())
    ids = torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        assert torch.equal(decoder(ids).last_hidden_state, model.model(ids).last_hidden_state)
    assert type(AutoConfig.from_pretrained(folder)) is LlavaConfig
    with pytest.raises(ValueError, match="LlavaLlamaConfig"):  # never transformers' own LLaVA with random weights
        AutoModelForImageTextToText.from_pretrained(folder)


def test_max_length_counts_what_the_language_model_sees(model: Any) -> None:
    """One begin, one word, ten visual tokens, two words: 14 before the answer."""
    options = {"images": pixels(1), "do_sample": False}
    for words, given in (("max_length is 8", 8), ("max_length is 14", 14)):
        with pytest.raises(ValueError, match=f"{words}, but the prompt alone has 14 tokens"):
            model.generate(PROMPT, max_length=given, **options)
    expected = model.generate(PROMPT, max_new_tokens=3, **options)
    for more in ({"max_length": 17}, {"generation_config": GenerationConfig(max_length=17)}):
        assert torch.equal(model.generate(PROMPT, **more, **options), expected)
    first = model.generate(PROMPT, max_new_tokens=3, return_dict_in_generate=True, **options)
    cache, last = first.past_key_values, first.sequences[:, -1:]
    with pytest.raises(ValueError, match="max_length is 17, but the prompt alone has 17 tokens"):
        model.generate(last, past_key_values=cache, max_length=17)
    assert model.generate(last, past_key_values=cache, max_length=19).shape == (1, 2)


@pytest.mark.parametrize("more", [{}, {"negative_prompt_ids": torch.tensor([[3, 4], [5, 6]])}])
def test_guidance_is_that_of_transformers(more: dict[str, Any]) -> None:
    model, ids = tiny_llava(), torch.tensor([[1, 5, 6, 7], [1, 8, 9, 10]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "do_sample": False, "guidance_scale": 1.7}
    expected = stock_llama(model).generate(ids, pad_token_id=0, **options, **more)[:, 4:]
    assert torch.equal(model.generate(ids, **options, **more), expected)
    assert not torch.equal(model.generate(ids, **options | {"guidance_scale": 1.0}), expected)
    with pytest.raises(ValueError, match="does not work with num_beams"):
        model.generate(ids, num_beams=2, **options)
    with pytest.raises(ValueError, match="compares with a prompt without images"):
        model.generate(PROMPT[:, :3], images=pixels(1), guidance_scale=1.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder_repetition_penalty": 1.2}, "encoder_repetition_penalty is 1.2, but"),
        ({"token_healing": True}, "token_healing is True, but"),
        ({"cache_implementation": "paged"}, "cache_implementation is 'paged', but"),
        ({"custom_generate": "someone/search"}, "custom_generate is 'someone/search', but"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha is 0.6, but"),
        ({"generation_config": GenerationConfig(prompt_lookup_num_tokens=2)}, "prompt_lookup_num_tokens is 2, but"),
        ({"position_ids": torch.tensor([[0, 1, 0, 1, 2]])}, "do not count the tokens"),
        ({"attention_mask": matrix(1, 5)}, "whole attention matrix"),
        ({"input_ids": PROMPT}, "Give the prompt once"),
        ({"past_key_values": DynamicCache()}, "it must be a StagedCache, or left out"),
        ({"past_key_values": ((None, None),)}, "past_key_values is a tuple; it must be a StagedCache"),
        ({"attention_mask": [[1] * 5]}, "attention_mask is a list"),
        ({"position_ids": [[0, 1, 2, 3, 4]]}, "position_ids is a list"),
        ({"return_logits": False}, "generate chooses tokens by their logits"),
    ],
)
def test_generate_refuses_before_it_computes(model: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model.generate(PROMPT, images=pixels(1), max_new_tokens=2, **options)
    with pytest.raises(ValueError, match="Continuous batching"):
        model.generate_batch([[1, 5, 6]])


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_soft_prompts_work_for_text_and_are_refused_elsewhere(kind: str) -> None:
    peft = pytest.importorskip("peft")
    sizes = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4, "num_layers": 6}
    if kind == "prompt":
        config = peft.PromptTuningConfig(**sizes, token_dim=32, num_attention_heads=4)
    else:
        config = peft.PrefixTuningConfig(**sizes, token_dim=16, num_attention_heads=2)
    model, ids = peft.get_peft_model(tiny_llava(compression=DUET), config).double().eval(), torch.tensor([[1, 5, 6]])
    for call in (
        lambda: model.generate(input_ids=PROMPT, images=pixels(1), max_new_tokens=2),
        lambda: model.generate(input_ids=ids, max_new_tokens=2),
        lambda: model(input_ids=PROMPT, images=pixels(1)),
    ):
        with pytest.raises(ValueError, match="use LoRA"):
            call()
    if kind == "prompt":
        embeds = torch.cat([model.get_prompt(1), model.word_embeddings(ids)], dim=1)
        with torch.no_grad():
            expected = stock_llama(model.base_model)(inputs_embeds=embeds).logits
            torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-9, rtol=0)
