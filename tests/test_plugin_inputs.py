"""What a compressed model of transformers may be given, in every family: right as stock has it, or refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from test_families import BOTH, KINDS, NO_DROP, T2V, answered
from tiny_vlms import EVERY, FAMILIES, QWEN, batch, prompt, vlm
from transformers import (
    DataCollatorWithFlattening,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PixtralVisionConfig,
    SiglipVisionConfig,
    StaticCache,
    WatermarkingConfig,
)
from transformers.utils import TransformersKwargs

from llava import compress
from llava.model.cache_name import NEW
from llava.model.generation_options import NOTED, REFUSED, WITHOUT_EFFECT, WORKS
from llava.model.staged_cache import StagedCache

SEQUENCES = [[1, 5, 6, 7], [1, 8, 9], [1, 10, 11, 12, 13]]


@pytest.fixture(scope="module")
def stock() -> dict[str, Any]:
    return {family: vlm(family) for family in EVERY}


@pytest.fixture(scope="module")
def compressed(stock: dict[str, Any]) -> dict[str, Any]:
    return {family: compress(model, BOTH) for family, model in stock.items()}


def shown(family: str) -> dict[str, Any]:
    return batch([prompt(family, 1, KINDS[family][0])])


def packed(family: str, kind: str) -> dict[str, Any]:
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    made = collator([{"input_ids": ids} for ids in SEQUENCES], return_tensors="pt")
    del made["labels"]
    if kind != "2-D":
        made["position_ids"] = made["position_ids"][None].expand(int(kind[0]), -1, -1)
    return made


@pytest.mark.parametrize("kind", ["2-D", "3-axis", "4-axis"])
@pytest.mark.parametrize("family", EVERY)
def test_packed_text_is_kept_apart(compressed: dict[str, Any], family: str, kind: str) -> None:
    model, inputs = compressed[family], packed(family, kind)
    if kind != "2-D" and family not in QWEN:
        with pytest.raises(ValueError, match=r"position_ids has shape \(\d, 1, 12\)"):
            model(**inputs)
        return
    with torch.no_grad():
        alone = torch.cat([model(torch.tensor([ids])).logits[0] for ids in SEQUENCES])
        output = model(**inputs, output_hidden_states=True)
        torch.testing.assert_close(output.logits[0], alone, atol=1e-9, rtol=0)
        mask = torch.ones_like(inputs["input_ids"])
        torch.testing.assert_close(model(**inputs, attention_mask=mask).logits[0], alone, atol=1e-9, rtol=0)
    assert len(output.hidden_states) == 7 and output.past_key_values is None
    with pytest.raises(ValueError, match="is given with use_cache=True"):
        model(**inputs, use_cache=True)


@pytest.mark.parametrize("family", EVERY)
def test_packed_prompts_with_images_are_refused(compressed: dict[str, Any], family: str) -> None:
    model, inputs = compressed[family], shown(family)
    columns = inputs["input_ids"].shape[1]
    positions = torch.cat([torch.arange(columns - 3), torch.arange(3)])[None]
    several = [positions, *([positions.expand(4, 1, -1), positions.expand(3, 1, -1)] if "qwen" in family else [])]
    for given in several:
        with pytest.raises(ValueError, match="give each sequence a row of its own"):
            model(**inputs | {"position_ids": given, "attention_mask": None})
    with pytest.raises(ValueError, match="give each sequence a row of its own"):
        model(**inputs, cu_seq_lens_q=torch.tensor([0, columns - 3, columns]))
    with pytest.raises(ValueError, match="do not count the tokens"):
        model.generate(**inputs, position_ids=positions, max_new_tokens=1)


@pytest.mark.parametrize("family", QWEN)
def test_positions_of_qwen_are_taken_as_the_stock_model_takes_them(stock: dict[str, Any], family: str) -> None:
    """Three axes, four, or one for all three; made by the stock model or counted by hand."""
    model, inputs = stock[family], shown(family)
    staged = compress(model, NO_DROP)
    ids = inputs["input_ids"]
    names = ("image_grid_thw", "video_grid_thw", "mm_token_type_ids")
    made, _ = model.model.get_rope_index(ids, **{name: inputs[name] for name in names})
    counted = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        for positions in (made, torch.cat([counted[None], made]), made + 5, counted, counted + 3):
            expected = model(**inputs, position_ids=positions).logits
            got = staged(**inputs, position_ids=positions).logits
            torch.testing.assert_close(got, expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("family", EVERY)
def test_masks_are_padding_or_a_sentence(compressed: dict[str, Any], stock: dict[str, Any], family: str) -> None:
    model, inputs = compressed[family], shown(family)
    columns = inputs["input_ids"].shape[1]
    seen = torch.ones(1, 1, columns, columns).tril().bool()
    for mask, words in (
        (seen, "attention_mask has 4 dimensions"),
        (torch.zeros(seen.shape).masked_fill(~seen, -1e9), "attention_mask has 4 dimensions"),
        (torch.ones(1, columns + 2), "attention_mask has shape"),
        (torch.ones(1, columns - 2), "attention_mask has shape"),
        (torch.ones(2, columns), "attention_mask has shape"),
        (torch.ones(columns), "attention_mask has shape"),
        ({"full_attention": torch.ones(1, columns)}, "attention_mask is a dict"),
        (torch.full((1, columns), 2), "values from 2 to 2"),
        (torch.zeros(1, columns).index_fill(1, torch.tensor([0]), -1e9), "additive masks"),
    ):
        with pytest.raises(ValueError, match=words):
            model(**inputs | {"attention_mask": mask})
    text = batch([prompt(family, 3, ())])
    ids = text["input_ids"]
    seen = torch.ones(1, 1, ids.shape[1], ids.shape[1]).tril().bool()
    seen[..., 3:, 1] = False
    with torch.no_grad():
        for mask in (seen, torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -1e9)):
            expected = stock[family](ids, attention_mask=mask, use_cache=False).logits
            torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_beside_ids_or_pixels_are_refused(compressed: dict[str, Any], family: str) -> None:
    model, inputs = compressed[family], shown(family)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    without = {name: value for name, value in inputs.items() if name != "input_ids"}
    for call in (model, model.generate):
        for given in (inputs, without):
            with pytest.raises(ValueError, match="give the prompt as input_ids alone"):
                call(**given, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="give the prompt as input_ids"):
        model()
    for given in (torch.tensor([1, 5]), torch.zeros(1, 0, dtype=torch.long), [[1, 5]]):
        with pytest.raises(ValueError, match=r"give a tensor \[rows, tokens\]"):
            model(given)


@pytest.mark.parametrize("family", EVERY)
def test_ids_and_labels_of_another_kind_are_named(compressed: dict[str, Any], family: str) -> None:
    """Each used to end in an error of torch's, or (uint8 pixels, whole-number embeddings) in a wrong answer."""
    model, inputs = compressed[family], shown(family)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    width = model.get_input_embeddings().embedding_dim
    for changes, words in (
        ({"input_ids": ids.double()}, r"input_ids holds torch.float64; give whole numbers"),
        ({"input_ids": ids.bool()}, r"input_ids holds torch.bool"),
        ({"input_ids": ids.masked_fill(ids == ids[0, -1], 64)}, "holds 64, but the model has word embeddings for 0 to"),
        ({"input_ids": ids.masked_fill(ids == ids[0, -1], -7)}, "holds -7, but the model has word embeddings"),
        ({"labels": ids.double()}, "labels is of torch.float64; give a tensor"),
        ({"labels": ids.tolist()}, r"labels is a list; give a tensor \[1, \d+\]"),
        ({"past_key_values": ((ids, ids),)}, "past_key_values is a tuple; it must be a StagedCache"),
    ):
        with pytest.raises(ValueError, match=words):
            model(**inputs | changes)
    for name in model.pixel_inputs():
        if isinstance(inputs.get(name), torch.Tensor):
            with pytest.raises(ValueError, match=f"{name} holds uint8, which no .*processor has scaled"):
                model(**inputs | {name: inputs[name].to(torch.uint8)})
    with pytest.raises(ValueError, match=r"inputs_embeds holds torch.int64; give floating-point numbers"):
        model(inputs_embeds=torch.ones(1, 4, width, dtype=torch.long))
    with pytest.raises(ValueError, match=r"is a list; give a tensor \[rows, tokens\]"):
        model.generate(ids.tolist(), attention_mask=mask, max_new_tokens=1)
    with torch.no_grad():
        whole = model(**inputs | {"input_ids": ids.int()}, use_cache=True)
        assert torch.equal(whole.logits, model(**inputs).logits)
        losses = [model(**inputs, labels=labels).loss for labels in (ids, ids.int())]
        assert torch.equal(*losses)
        text = batch([prompt(family, 3, ())])
        losses = [model(**text, labels=text["input_ids"].to(kind)).loss for kind in (torch.long, torch.int)]
        assert torch.equal(*losses)
        padded = {"input_ids": ids.masked_fill(mask == 0, -1), "attention_mask": mask}
        assert torch.equal(model(**inputs | padded).logits, model(**inputs).logits), "padding may hold any id"
    for new, words in (
        ([[5]], "is a list"),
        (torch.tensor([5]), "has shape"),
        (torch.tensor([[5.0]]), "holds torch.fl"),
    ):
        with pytest.raises(ValueError, match=f"input_ids {words}"):
            model(input_ids=new, past_key_values=whole.past_key_values)


@pytest.mark.parametrize("family", QWEN)
def test_grids_that_are_not_those_of_the_patches_are_named(compressed: dict[str, Any], family: str) -> None:
    model, inputs = compressed[family], shown(family)
    for pixels, name in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        grid = inputs[name]
        for changes, words in (
            ({name: grid.tolist()}, f"{name} is list; give whole numbers"),
            ({name: grid.double()}, f"{name} is of shape .*float64; give whole numbers"),
            ({name: grid[0]}, f"{name} is of shape"),
            ({name: torch.cat([grid, grid])}, f"{pixels} has shape .*, but {name} .* is that of"),
            ({pixels: inputs[pixels][:-4]}, f"{pixels} has shape .*, but {name} .* is that of"),
            ({pixels: inputs[pixels][0]}, f"{pixels} has shape .*, but {name} .* is that of"),
        ):
            for call in (model, model.generate):
                with pytest.raises(ValueError, match=words):
                    call(**inputs | changes)


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_crops_that_are_not_those_of_the_sizes_are_named(compressed: dict[str, Any], family: str) -> None:
    model, inputs = compressed[family], shown(family)
    crops, sizes = inputs["pixel_values"], inputs["image_sizes"]
    for changes in (
        {"pixel_values": torch.cat([crops, crops])},
        {"pixel_values": crops[:, :2]},
        {"pixel_values": crops[0, :2]},
    ):
        with pytest.raises(ValueError, match=r"pixel_values has shape .*, but images of image_sizes are cut into \["):
            model(**inputs | changes)
    if family == "llava_onevision":
        together = inputs["batch_num_images"]
        with pytest.raises(ValueError, match="batch_num_images counts 1 images, but image_sizes holds 2"):
            model(**inputs | {"image_sizes": torch.cat([sizes, sizes])})
        listed = model(**inputs | {"batch_num_images": together.tolist()})
        assert torch.equal(listed.logits, model(**inputs).logits), "as the stock model takes it, too"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_inner_model_does_not_run_uncompressed(stock: dict[str, Any], family: str) -> None:
    model, inputs = compress(stock[family], T2V), shown(family)
    for call in (model.model, model.base_model):
        with pytest.raises(ValueError, match=r"called by itself.* make one without a budget"):
            call(**inputs)
    with torch.no_grad():
        expected = stock[family](**inputs)
        assert torch.equal(stock[family].model(**inputs)[0], compress(model, "none").model(**inputs)[0])
        assert torch.equal(model(**inputs, compression="none").logits, expected.logits)
        labelled = inputs | {"labels": inputs["input_ids"]}
        assert torch.equal(model(**labelled, compression="none").loss, stock[family](**labelled).loss)
    assert answered(model, inputs, compression="none") == answered(stock[family], inputs)
    model.set_compression("none")
    assert torch.equal(model.model(**inputs)[0], stock[family].model(**inputs)[0])


@pytest.mark.parametrize("family", EVERY)
def test_other_caches_are_refused(compressed: dict[str, Any], family: str) -> None:
    model, inputs = compressed[family], shown(family)
    for call in (model, model.generate):
        with pytest.raises(
            ValueError, match="past_key_values is a DynamicCache; it must be a StagedCache, or left out"
        ):
            call(**inputs, past_key_values=DynamicCache())


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("kind", ["prompt", "encoder", "prefix"])
def test_soft_prompts_work_or_are_refused(family: str, kind: str) -> None:
    """Never the answer that the model gives without them."""
    peft = pytest.importorskip("peft")
    sizes = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4, "num_layers": 6, "num_attention_heads": 4}
    config = {
        "prompt": lambda: peft.PromptTuningConfig(**sizes, token_dim=32),
        "encoder": lambda: peft.PromptEncoderConfig(**sizes, token_dim=32, encoder_hidden_size=16),
        "prefix": lambda: peft.PrefixTuningConfig(**sizes | {"num_attention_heads": 2}, token_dim=16),
    }[kind]()
    inputs, text = shown(family), batch([prompt(family, 3, ())])
    model = peft.get_peft_model(compress(vlm(family), BOTH), config).double().eval()
    for given in (inputs, text):
        with pytest.raises(ValueError, match=r"soft prompt before a prompt .*use LoRA"):
            model.generate(**given, max_new_tokens=2)
    if family == "llava":  # at this size peft takes a layer of Qwen's tower for its word embeddings
        with pytest.raises(ValueError, match="use LoRA"):
            model(**inputs)
    if family == "llava" and kind != "prefix":
        with torch.no_grad():
            expected = peft.get_peft_model(compress(vlm(family), "none"), config).double().eval()
            expected.load_state_dict(model.state_dict())
            torch.testing.assert_close(model(**text).logits, expected(**text).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compressed_model_as_draft_or_in_continuous_batches_is_refused(stock: dict[str, Any], family: str) -> None:
    model, inputs = stock[family], batch([prompt(family, 1, KINDS[family][0])])
    with pytest.raises(ValueError, match="was given as draft"):
        model.generate(**inputs, assistant_model=compress(model, T2V), max_new_tokens=3)
    compressed = compress(model, T2V)
    with pytest.raises(ValueError, match=r"Continuous batching .* use generate with a padded batch"):
        compressed.generate_batch([[1, 5, 6]], max_new_tokens=2)
    with pytest.raises(ValueError, match="assistant_model is a "):
        compressed.generate(**inputs, assistant_model=model, max_new_tokens=3)


REFUSED_VALUES = {
    "cache_implementation": "hybrid",
    "prefill_chunk_size": 4,
    "prompt_lookup_num_tokens": 2,
    "assistant_early_exit": 2,
    "use_mtp": True,
    "is_assistant": True,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "force_words_ids": [[5]],
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "token_healing": True,
    "custom_generate": "someone/search",
    "constraints": [1],
    "assistant_model": "another",
    "mm_encoder_outputs": {"image": 1},
}


def test_every_refused_option_is_refused_and_documented(compressed: dict[str, Any]) -> None:
    model, inputs = compressed["llava"], shown("llava")
    assert set(REFUSED_VALUES) == set(REFUSED)
    for name, value in REFUSED_VALUES.items():
        with pytest.raises(ValueError, match=f"{name} is .*but this cannot be"):
            model.generate(**inputs, max_new_tokens=2, **{name: value})
        if name in vars(GenerationConfig()):
            config = GenerationConfig()
            setattr(config, name, value)
            with pytest.raises(ValueError, match=f"{name} is .*but this cannot be"):
                model.generate(**inputs, generation_config=config)
    text = (Path(__file__).resolve().parents[1] / "docs" / "plug-in.md").read_text(encoding="utf-8")
    table = ["| argument or option | with a compression |", "|---|---|"]
    table += [f"| `{name}` | refused: {reason} |" for name, reason in REFUSED.items() if name not in NOTED]
    table += [f"| `{name}` | {note} |" for name, note in NOTED.items()]
    assert "\n".join([*table, ""]) in text


def test_every_option_of_transformers_is_decided(stock: dict[str, Any]) -> None:
    """A new argument of `generate` or `forward`, or a new field of GenerationConfig, has to be looked at first."""
    known = {*REFUSED, *NOTED, *WORKS, *WITHOUT_EFFECT}
    found = set(inspect.signature(GenerationMixin.generate).parameters) | set(GenerationConfig().to_dict())
    found |= set(vars(GenerationConfig())) | set(TransformersKwargs.__annotations__)
    for family in FAMILIES:
        found |= set(inspect.signature(type(stock[family]).forward).parameters)
    found = {"past_key_values" if name == "cache" else name for name in found}  # its name from 5.24 on
    assert {name for name in found - known if not name.startswith("_")} == set()
    assert known - found == {NEW}, "counted under the other name"


@pytest.mark.parametrize("family", ["llava", "llava_next", "video_llava"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guidance_scale", 1.5),
        ("encoder_repetition_penalty", 1.2),
        ("encoder_no_repeat_ngram_size", 2),
        ("repetition_penalty", 1.3),
        ("watermarking_config", WatermarkingConfig()),
        ("num_beams", 2),
        ("use_cache", False),
    ],
)
def test_options_that_work_give_the_stock_answer_where_nothing_is_dropped(
    stock: dict[str, Any], family: str, name: str, value: Any
) -> None:
    inputs = batch([prompt(family, 1, KINDS[family][0]), prompt(family, 2, ())])
    model = compress(stock[family], NO_DROP)
    assert answered(model, inputs, **{name: value}) == answered(stock[family], inputs, **{name: value})


@pytest.mark.parametrize("family", FAMILIES)
def test_without_compression_the_twin_costs_and_breaks_nothing(stock: dict[str, Any], family: str) -> None:
    """Compiled whole, with a static cache, and without a look at any signature."""
    model, inputs = stock[family], shown(family)
    twin = compress(model, "none")
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(
        twin.generate(**inputs, **options, cache_implementation="static"),
        model.generate(**inputs, **options, cache_implementation="static"),
    )
    text = batch([prompt(family, 3, ())])
    with torch.no_grad():
        expected = model(**text).logits
        with mock.patch.object(inspect.Signature, "bind", side_effect=AssertionError("bound")):
            assert torch.equal(twin(**text).logits, expected)
        whole = torch.compile(twin, fullgraph=True, backend="eager")
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=32)
        torch.testing.assert_close(whole(**text, past_key_values=cache).logits, expected, atol=1e-9, rtol=0)


def test_towers_that_v2v_cannot_work_with_are_refused_at_once() -> None:
    """When the model is made, when a compression is set, and when one call asks for it; T2V alone works."""
    models = {"fullatt_block_indexes": vlm("qwen2_5_vl"), r"vision_feature_layer is \[-2, -1\]": vlm("llava")}
    models["vision_feature_layer is -9, but the tower has"] = vlm("video_llava")
    models["The vision tower is a PixtralVisionModel"] = pixtral()
    models["fullatt_block_indexes"].model.visual.fullatt_block_indexes = [3, 7]
    models[r"vision_feature_layer is \[-2, -1\]"].config.vision_feature_layer = [-2, -1]
    models["vision_feature_layer is -9, but the tower has"].config.vision_feature_layer = -9
    for words, model in models.items():
        with pytest.raises(ValueError, match=words):
            compress(model, BOTH)
        twin = compress(model, T2V)
        with pytest.raises(ValueError, match=words):
            twin.set_compression(BOTH)
        with pytest.raises(ValueError, match=words):
            twin(input_ids=torch.tensor([[1, 5]]), compression=BOTH)
    model = vlm("qwen2_5_vl")
    expected = compress(model, BOTH)(**shown("qwen2_5_vl")).logits
    model.model.visual.fullatt_block_indexes = [0, 2, 7]  # the last one that exists counts
    assert torch.equal(compress(model, BOTH)(**shown("qwen2_5_vl")).logits, expected)
    model.model.visual.fullatt_block_indexes = []
    assert compress(model, T2V)(**shown("qwen2_5_vl")).logits.isfinite().all()


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_tower_without_cls_is_scored_by_what_patches_receive(family: str) -> None:
    tower = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
    )
    model = vlm(family, tower=tower)
    model.config.vision_feature_select_strategy = "full"
    inputs = shown(family)
    received = BOTH | {"v2v": BOTH["v2v"] | {"score": "received"}}
    with torch.no_grad():
        expected = compress(model, received)(**inputs).logits
        assert torch.equal(compress(model, BOTH)(**inputs).logits, expected) and expected.isfinite().all()


def pixtral() -> Any:
    tower = PixtralVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = LlavaConfig(text_config=vlm("llava").config.text_config, vision_config=tower, image_token_index=60)
    return LlavaForConditionalGeneration(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_goes_on_as_it_was_filled(stock: dict[str, Any], family: str) -> None:
    model, inputs, new = compress(stock[family], T2V), shown(family), torch.tensor([[5, 6]])
    cache = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="was filled under a compression, and there is none now"):
        model(new, past_key_values=cache, compression="none")
    cache = StagedCache(model.config.get_text_config())
    model(**inputs, past_key_values=cache, compression="none")
    with pytest.raises(ValueError, match="was filled without a compression"):
        model(new, past_key_values=cache)


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_without_their_sizes_or_of_no_processor_are_named(compressed: dict[str, Any], family: str) -> None:
    model, inputs = compressed[family], shown(family)
    name = next(name for name in inputs if name.startswith("pixel"))
    with pytest.raises(ValueError, match=f"{name} is a ndarray; make the inputs with the model's own processor"):
        model(**inputs | {name: inputs[name].numpy()})
    sizes = {"llava_next": "image_sizes", **dict.fromkeys(QWEN, "image_grid_thw")}.get(family)
    if sizes is not None:
        with pytest.raises(ValueError, match=f"pixel_values came without {sizes}"):
            model(**{given: value for given, value in inputs.items() if given != sizes})
