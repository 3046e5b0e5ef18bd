"""`compress()` in the hands of a user: saving, peft, the stock Trainer, the stock processors, and what is refused."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from test_families import BOTH, T2V, answered, prompts
from tiny import tower_config
from tiny_text import llama
from tiny_vlms import FAMILIES, IMAGE, VIDEO, batch, prompt, vlm
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Phi3Config,
    Trainer,
    TrainingArguments,
)

from llava import compress
from llava.compression import CompressionConfig, presets
from llava.model.families.llava_hf import CompressedLlava
from llava.model.plugin import CompressedModel
from llava.model.query_roles import warn_without_answers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_opens_in_plain_transformers_and_here(family: str, tmp_path: Path) -> None:
    model, inputs = vlm(family), batch(prompts(family))
    compressed = compress(model, BOTH)
    with torch.no_grad():
        plain, short = model(**inputs).logits, compressed(**inputs).logits
    model.save_pretrained(tmp_path / "stock")
    compressed.save_pretrained(tmp_path / "ours")
    names = [set(safe_open(tmp_path / name / "model.safetensors", "pt").keys()) for name in ("stock", "ours")]
    assert names[0] == names[1]
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert saved["architectures"] == [type(model).__name__]
    assert CompressionConfig.from_dict(saved["compression"]) == compressed.compression

    options: dict[str, Any] = {"dtype": torch.float64}
    if "moe" in family:  # the grouped products of torch know no float64
        options["experts_implementation"] = "batched_mm"
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", **options)
    assert type(stock) is type(model)
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, plain, atol=3e-5, rtol=0)
        for again in (type(compressed).from_pretrained(tmp_path / "ours", **options), compress(stock)):
            torch.testing.assert_close(again(**inputs).logits, short, atol=3e-5, rtol=0)
    other = type(compressed).from_pretrained(tmp_path / "ours", **options, compression="none")
    assert other.compression == CompressionConfig()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_original_is_untouched_and_nothing_is_held_twice(family: str) -> None:
    peft = pytest.importorskip("peft")
    model, inputs = vlm(family), batch(prompts(family))
    before = {name: (id(module), type(module)) for name, module in model.named_modules()}
    config, attributes = copy.deepcopy(model.config.to_dict()), set(vars(model))
    with torch.no_grad():
        logits = model(**inputs).logits
    compressed = compress(model, BOTH)
    assert [weight.data_ptr() for weight in compressed.parameters()] == [w.data_ptr() for w in model.parameters()]
    adapted = peft.get_peft_model(compressed, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    answered(adapted, inputs)
    adapted.train()
    compress(model, BOTH).to(torch.bfloat16).resize_token_embeddings(80)
    assert all(weight.requires_grad and weight.dtype == torch.float64 for weight in model.parameters())
    assert model.get_input_embeddings().weight.shape[0] == 64
    assert {name: (id(module), type(module)) for name, module in model.named_modules()} == before
    assert model.config.to_dict() == config and set(vars(model)) == attributes and not model.training
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_trains_generates_and_merges(family: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = compress(vlm(family), BOTH)
    inputs = batch(prompts(family), answers=True)
    with torch.no_grad():
        untrained = model(**inputs).loss
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4)).train()
    optimizer = torch.optim.Adam([weight for weight in adapted.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        adapted(**inputs).loss.backward()
        optimizer.step()
    adapted.eval()
    with torch.no_grad():
        loss = adapted(**inputs).loss
    assert loss < untrained - 0.01
    del inputs["labels"]
    said = answered(adapted, inputs)
    merged = adapted.merge_and_unload()
    assert isinstance(merged, CompressedModel) and answered(merged, inputs) == said


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stock_trainer_trains_it(family: str, tmp_path: Path) -> None:
    """Columns are kept, the loss falls, and activation checkpointing changes no loss."""
    samples = [prompt(family, seed, ("image",), torch.float32) for seed in range(4)]

    class Samples(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return batch([samples[index]], answers=True) | {"number": index}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        assert "pixel_values" in rows[0] and "number" not in rows[0]
        together = batch([samples[index] for index in range(len(rows))], "right", answers=True)
        return together

    losses = {}
    for checkpointing in (False, True):
        torch.manual_seed(0)
        options = TrainingArguments(
            tmp_path / str(checkpointing),
            max_steps=4,
            per_device_train_batch_size=4,
            learning_rate=5e-3,
            logging_steps=1,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=3,
            lr_scheduler_type="constant",
            activation_checkpointing=checkpointing,
        )
        model = compress(vlm(family, torch.float32), BOTH)
        trainer = Trainer(model=model, args=options, train_dataset=Samples(), data_collator=collate)
        trainer.train()
        losses[checkpointing] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        trainer.save_model(str(tmp_path / "saved"))
    assert losses[False][-1] < losses[False][0]
    assert losses[True] == pytest.approx(losses[False], abs=2e-3)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["architectures"] == [model.stock.__name__] and saved["compression"]["t2v"]["layers"] == [2, 4]


@pytest.mark.parametrize("family", FAMILIES)
def test_metrics_of_the_stock_trainer_compare_logits_and_labels_column_by_column(family: str, tmp_path: Path) -> None:
    model, samples = compress(vlm(family), BOTH), [prompt(family, seed) for seed in (1, 2, 3)]
    seen = {}

    def measure(found: Any) -> dict[str, float]:
        seen["predictions"], seen["labels"] = torch.tensor(found.predictions), torch.tensor(found.label_ids)
        return {}

    options = TrainingArguments(
        tmp_path, per_device_eval_batch_size=3, use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = Trainer(
        model=model,
        args=options,
        compute_metrics=measure,
        eval_dataset=[{}] * 3,
        data_collator=lambda rows: batch(samples, "right", answers=True),
        preprocess_logits_for_metrics=lambda logits, labels: logits[0] if isinstance(logits, tuple) else logits,
    )
    trainer.evaluate()
    assert seen["predictions"].shape[:2] == seen["labels"].shape
    for row, sample in enumerate(samples):
        inputs = batch([sample], answers=True)
        with torch.no_grad():
            alone = model(**inputs).logits[0]
        got = seen["predictions"][row, : alone.shape[0]]
        torch.testing.assert_close(got.double(), alone.double(), atol=1e-9, rtol=0)


def test_training_without_labels_says_who_votes(caplog: pytest.LogCaptureFixture) -> None:
    """As transformers' Trainer does for label smoothing."""
    warn_without_answers.cache_clear()
    model, inputs = compress(vlm("llava"), BOTH).train(), batch([prompt("llava", 1)])
    model(**inputs)
    assert "neither labels nor a query_mask" in caplog.text
    caplog.clear()
    warn_without_answers.cache_clear()
    model(**inputs, logits_to_keep=3)
    assert not caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_taken_by_generate(family: str) -> None:
    model, inputs = vlm(family), batch([prompt(family, 1, ()), prompt(family, 9, ())])
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    options = {"inputs_embeds": embeds, "max_new_tokens": 3, "do_sample": False, **inputs}
    assert torch.equal(compress(model, BOTH).generate(**options), model.generate(**options))


def test_labels_on_placeholders_do_not_let_the_answer_vote() -> None:
    model = compress(vlm("llava"), BOTH)
    inputs = batch([prompt("llava", 2)])
    ids = inputs["input_ids"]
    masked = ids.masked_fill(ids == 60, -100)
    outputs = [model(**inputs, labels=labels, output_layouts=True) for labels in (ids.clone(), masked)]
    assert torch.equal(outputs[0].layouts[0].vote, outputs[1].layouts[0].vote)
    assert torch.equal(outputs[0].loss, outputs[1].loss)


def test_hooks_of_accelerate_are_carried_over() -> None:
    """As on a model that transformers spread over several devices."""
    from accelerate import dispatch_model

    model, inputs = vlm("llava"), batch(prompts("llava"))
    with torch.no_grad():
        expected = compress(model, BOTH)(**inputs).logits
    places = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    places |= {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb", "layers")}
    spread = dispatch_model(model, places, main_device="cpu", force_hooks=True)
    with torch.no_grad():
        plain = spread(**inputs).logits
        assert torch.equal(compress(spread, BOTH)(**inputs).logits, expected)
        assert torch.equal(spread(**inputs).logits, plain) and not torch.equal(plain, expected)


def test_llava_takes_what_its_processor_makes() -> None:
    """Padding on either side, two images in one prompt, none in another, as a user writes them."""
    from transformers import LlavaProcessor

    size = {"height": 56, "width": 56}
    tokenizer = llama()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.pad_token = tokenizer.eos_token
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    model = vlm("llava", torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    compressed = compress(model, BOTH)
    pictures = [Image.new("RGB", (70, 60), colour) for colour in ("red", "blue", "green")]
    texts = [
        "USER: <image>\nWhich colour? ASSISTANT:",
        "USER: <image> <image>\nSame? ASSISTANT:",
        "USER: Hello ASSISTANT:",
    ]
    answers = {}
    for side in ("left", "right"):
        tokenizer.padding_side = side
        inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
        ids = compressed.generate(**inputs, max_new_tokens=5, do_sample=False)
        answers[side] = ids[:, inputs.input_ids.shape[1] :].tolist()
    assert answers["left"] == answers["right"]
    shown = [pictures[:1], pictures[1:], None]
    for row, (text, images) in enumerate(zip(texts, shown, strict=True)):
        alone = processor(images=images, text=text, return_tensors="pt")
        ids = compressed.generate(**alone, max_new_tokens=5, do_sample=False)
        assert ids[0, alone.input_ids.shape[1] :].tolist() == answers["left"][row]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_placeholder_that_somebody_typed_is_counted_and_never_a_word(family: str) -> None:
    """As ids come from a processor: the typed one stands in front of the picture, behind it, alone, in another row."""
    model = compress(vlm(family), BOTH)
    ids, seen = prompt(family, 0)
    for token in (IMAGE, VIDEO)[: 2 if "video_token_id" in model.config.to_dict() or family == "video_llava" else 1]:
        typed = [([*ids[:1], token, *ids[1:]], seen), ([*ids, token, 5], seen), ([1, 5, token, 6], [])]
        for rows in ([typed[0]], [typed[1]], [typed[2]], [(ids, seen), typed[2]]):
            given = batch(rows)
            for call in (model, partial(model.generate, max_new_tokens=1)):
                with pytest.raises(ValueError, match=r"prompts hold \d+ placeholder tokens, but the images or videos"):
                    call(**given)
        cache = model(**batch([(ids, seen)]), use_cache=True).past_key_values
        with pytest.raises(ValueError, match="placeholders of images or videos, which cannot be added there"):
            model(input_ids=torch.tensor([[5, token, 6]]), past_key_values=cache)


def test_a_processor_with_a_typed_mark_ends_in_words() -> None:
    """One picture, two marks, of which one was typed: LLaVA-NeXT's own processor."""
    from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

    tokenizer = llama()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=[[112, 112]]
    )
    processor = LlavaNextProcessor(
        pictures, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    model = vlm("llava_next", torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    compressed = compress(model, BOTH)
    picture = Image.new("RGB", (70, 60))
    for text, images in (("USER: <image> like <image>? ASSISTANT:", [picture]), ("what is <image>?", None)):
        with pytest.raises(ValueError, match=r"ound (total )?\d <image> tokens"):  # transformers' own sentence
            processor(images=images, text=text, return_tensors="pt")
    unseen = dict(processor(images=[picture], text="USER: <image>", return_tensors="pt"))
    del unseen["pixel_values"]
    with pytest.raises(ValueError, match=r"prompts hold \d+ placeholder tokens, but the images or videos"):
        compressed.generate(**unseen)
    fine = processor(images=[picture], text="USER: <image>\nHi ASSISTANT:", return_tensors="pt")
    assert compressed.generate(**fine, max_new_tokens=1).shape[1] == fine.input_ids.shape[1] + 1


def test_every_preset_fits_or_says_why_not() -> None:
    configs = {preset: CompressionConfig.from_preset(preset) for preset in presets()}
    for family in FAMILIES:
        model = compress(vlm(family), "none")
        for preset, config in configs.items():
            try:
                model.set_compression(config)
            except ValueError as error:
                reasons = (
                    "largest accepted entry is 5",
                    "gives 17 tokens",
                    "gives 49 tokens",
                    f"The compression {preset} is made for",
                )
                assert any(reason in str(error) for reason in reasons)


def test_refusals_are_sentences() -> None:
    model = compress(vlm("llava"), BOTH)
    one = batch([prompt("llava", 0)])
    with pytest.raises(ValueError, match="16 placeholder tokens, but the images or videos that were given stand for 0"):
        model(**{name: value for name, value in one.items() if name != "pixel_values"})
    with pytest.raises(ValueError, match="largest accepted entry is 5"):
        model.set_compression({"t2v": {"layers": [16, 24], "keep": [0.5, 0.0]}})
    with pytest.raises(ValueError, match=r"v2v\.dominant is 18"):
        model(**one, compression={"v2v": {"dominant": 18, "contextual": 0}})
    with pytest.raises(
        ValueError, match="The model is a Linear; compress takes LlavaForConditionalGeneration, LlavaNext"
    ):
        compress(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="it must be a StagedCache"):
        from transformers import DynamicCache

        model(**one, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="cache_implementation is 'static'"):
        model.generate(**one, cache_implementation="static", max_new_tokens=1)
    with pytest.raises(ValueError, match="Assisted decoding"):
        model.generate(**one, prompt_lookup_num_tokens=2, max_new_tokens=2)
    with pytest.raises(
        ValueError, match=r"vision_feature_layer is \[-2, -1\]; V2V scores and merges the tokens of one"
    ):
        model(**one, vision_feature_layer=[-2, -1])
    with pytest.raises(ValueError, match="do not count the tokens of each row one by one"):
        model(**one, position_ids=2 * torch.arange(one["input_ids"].shape[1])[None])
    cut = {name: value[:, :10] if name in ("input_ids", "attention_mask") else value for name, value in one.items()}
    with pytest.raises(ValueError, match="placeholder tokens"):
        model(**cut)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (MistralConfig, {"sliding_window": 8}, "sliding-window layers"),
        (Phi3Config, {}, "The language model is a Phi3Model"),
    ],
)
def test_language_models_that_would_run_wrongly_are_refused(kind: Any, options: dict[str, Any], words: str) -> None:
    """A window cannot be told apart from a drop; fused projections have no queries to look at."""
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    config = LlavaConfig(text_config=kind(**sizes, **options), vision_config=tower_config(), image_token_index=60)
    model = LlavaForConditionalGeneration(config)
    assert compress(model, "none").compression == CompressionConfig()
    with pytest.raises(ValueError, match=words):
        compress(model, T2V)


def test_layers_in_8_bits_answer_alike_in_both_models(tmp_path: Path) -> None:
    """They take their scales off the weights at first use, so a copied layer would find none."""
    pytest.importorskip("bitsandbytes")
    vlm("llava", torch.float32).save_pretrained(tmp_path)
    plain = ["lm_head", "model.multi_modal_projector", "model.vision_tower"]
    model = AutoModelForImageTextToText.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=plain)
    )
    same, inputs = compress(model, "none"), batch(prompts("llava", torch.float32))
    with torch.no_grad():
        first = same(**inputs).logits
        assert torch.equal(model(**inputs).logits, first) and torch.equal(
            compress(model, "none")(**inputs).logits, first
        )


def test_an_architecture_of_ones_own_is_one_class() -> None:
    """A subclass is found without being registered anywhere."""

    class Mine(LlavaForConditionalGeneration):
        pass

    class CompressedMine(CompressedLlava, Mine):
        stock = Mine

    model = vlm("llava")
    inputs = batch(prompts("llava"))
    expected = compress(model, T2V)(**inputs).logits
    model.__class__ = Mine
    got = compress(model, T2V)
    assert type(got) is CompressedMine and torch.equal(got(**inputs).logits, expected)


def test_llava_of_this_project_is_copied_in_the_same_way() -> None:
    from tiny import DUET, pixels, tiny_llava

    model = tiny_llava()
    compressed = compress(model, DUET)
    ids = torch.tensor([[1, 5, -200, 7, 8]])
    with torch.no_grad():
        assert torch.equal(
            compressed(ids, images=pixels(1)).logits, tiny_llava(compression=DUET)(ids, images=pixels(1)).logits
        )
    assert model.compression == CompressionConfig() and compressed.compression != CompressionConfig()
