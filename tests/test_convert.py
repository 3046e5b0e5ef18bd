"""Conversion to transformers' format and back: the same logits, through the stock model and the stock processor."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from PIL import Image
from published import logits, stock, stock_logits
from safetensors.torch import load_file, save_file
from tiny import columns_of_stock
from tiny_text import llama_legacy
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration
from transformers import LlavaConfig as HFConfig

from llava.checkpoints.conversion import convert, main
from llava.checkpoints.language_model import write_language_model
from llava.checkpoints.opening import open_model
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.weights import read_header, weight_files, widest_dtype

ROOT = Path(__file__).resolve().parents[1]
EXACT = {"atol": 1e-9, "rtol": 1e-9}
BUDGET = {
    "v2v": {"dominant": 7, "contextual": 2, "cluster_width": 2},
    "t2v": {"layers": [1], "keep": [0.5]},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("convert")
    tower = published.write_tower(root / "clip")
    published.write_llava(root / "llava", tower, compression=BUDGET)
    published.write_language_model(root / "vicuna")
    published.write_projector(root / "projector", tower)
    published.write_lora(root / "lora", tower)
    published.write_hf(root / "hf")
    return root


def in_transformers(folder: Path) -> LlavaForConditionalGeneration:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64)
    assert type(model) is LlavaForConditionalGeneration and type(model.config) is HFConfig
    return model.eval()


def here(folder: Path, base: Path | None = None) -> Any:
    base_name = None if base is None else str(base)
    return load_pretrained_model(str(folder), base_name, device="cpu", dtype=torch.float64, compression="none")[1]


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}


# === To transformers ===


def test_a_converted_model_is_an_ordinary_llava_there(folders: Path, tmp_path: Path) -> None:
    convert(str(folders / "llava"), tmp_path / "hf", "hf")
    model = in_transformers(tmp_path / "hf")
    rows = published.VOCABULARY
    assert model.config.image_token_index == rows and model.config.pad_token_id == rows + 1
    assert model.config.text_config.vocab_size == 576, "padded to a multiple of 64"
    expected = stock_logits(stock(published.whole()))
    torch.testing.assert_close(stock_logits(model)[..., :rows], expected, **EXACT)
    assert (stock_logits(model)[..., rows:].max() < expected.max(dim=-1).values).all(), "a new token never wins"
    assert AutoConfig.from_pretrained(tmp_path / "hf").compression["v2v"]["dominant"] == 7


def test_the_weights_get_their_published_names(folders: Path, tmp_path: Path) -> None:
    convert(str(folders / "llava"), tmp_path / "hf", "hf")
    held, expected = weights_of(tmp_path / "hf"), published.hf_names(published.whole())
    assert held.keys() == expected.keys()
    grown = {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}
    for name, tensor in expected.items():
        assert torch.equal(held[name][: len(tensor)] if name in grown else held[name], tensor), name


@pytest.mark.parametrize("aspect_ratio", ["pad", "square"])
def test_the_stock_processor_and_model_see_and_say_the_same(folders: Path, tmp_path: Path, aspect_ratio: str) -> None:
    """A picture that is not square, from file to logits, in transformers alone and here.

    The tokenizer puts a space before any text, as LLaVA's splitting at `<image>` does.
    """
    source = published.write_llava(tmp_path / "llava", folders / "clip", image_aspect_ratio=aspect_ratio)
    llama_legacy().save_pretrained(source)
    convert(str(source), tmp_path / "hf", "hf")
    noise = torch.randint(0, 256, (20, 34, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    picture, prompt = Image.fromarray(noise.numpy()), "USER: <image>\nWhat digit is red? ASSISTANT:"
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    tokenizer, model, own, _ = load_pretrained_model(str(source), device="cpu", dtype=torch.float64)
    pixels = process_images([picture], own, model.config)
    torch.testing.assert_close(inputs["pixel_values"], pixels, atol=0, rtol=0)
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == len(ids) - 1 + published.PATCHES
    with torch.no_grad():
        stock = in_transformers(tmp_path / "hf")
        theirs = stock(**inputs.to(torch.float64)).logits[..., : published.VOCABULARY]
        theirs = columns_of_stock(theirs, inputs["input_ids"], stock.config.image_token_index)
        ours = model(input_ids=ids[None], images=pixels.double()).logits
    torch.testing.assert_close(ours, theirs, **EXACT)
    assert processor.tokenizer.pad_token == "<pad>"
    told = processor(images=[picture] * 2, text=[prompt, prompt + " red"], padding=True, return_tensors="pt")
    assert told["attention_mask"].sum(dim=1).tolist() == [inputs["input_ids"].shape[1], told["input_ids"].shape[1]]


def test_class_features_tied_weights_and_another_rope_are_said_there(folders: Path, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in published.whole().items() if name != "lm_head.weight"}
    config = {"mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": -1, "tie_word_embeddings": True}
    source = published.write_llava(tmp_path / "llava", folders / "clip", weights, rope_theta=5e5, **config)
    convert(str(source), tmp_path / "hf", "hf")
    model, ours = in_transformers(tmp_path / "hf"), here(source)
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    picture = Image.new("RGB", (16, 16), (200, 10, 10))
    inputs = processor(images=picture, text="<image>\nWhat?", return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_index).sum() == published.PATCHES + 1
    words = inputs["input_ids"][0, published.PATCHES + 2 :]
    ids = torch.cat([torch.tensor([1, -200]), words])
    with torch.no_grad():
        theirs = model(**inputs.to(torch.float64)).logits
        theirs = columns_of_stock(theirs, inputs["input_ids"], model.config.image_token_index)
        mine = ours(input_ids=ids[None], images=inputs["pixel_values"].double()).logits
    torch.testing.assert_close(mine, theirs[..., : published.VOCABULARY], **EXACT)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert "language_model.lm_head.weight" not in weights_of(tmp_path / "hf")


def test_what_has_no_counterpart_is_refused_before_any_work(folders: Path, tmp_path: Path) -> None:
    def refusal(name: str, **config: Any) -> str:
        source = published.write_llava(tmp_path / name, folders / "clip", **config)
        with pytest.raises(ValueError) as caught:
            convert(str(source), tmp_path / "out", "hf")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "is 'linear'; transformers' LLaVA has only mlp2x_gelu" in refusal("linear", mm_projector_type="linear")
    assert "image_aspect_ratio of" in refusal("shape", image_aspect_ratio="crop_split")
    crops = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[16, 32]]}
    assert "transformers' LLaVA-NeXT has only 'spatial_unpad'" in refusal("crops", **crops)
    with pytest.raises(ValueError, match="has no vision tower"):
        convert(str(folders / "vicuna"), tmp_path / "out", "hf")


def test_numbers_of_8_bits_say_that_a_model_is_quantised(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "hf", tmp_path / "hf")
    for path in weight_files(tmp_path / "hf"):
        held = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(path).items()}
        save_file(held, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"hold numbers of 8 bits \(torch.float8_e4m3fn\), so the model is quantised"):
        convert(str(tmp_path / "hf"), tmp_path / "out", "llava")


def test_weights_of_8_bits_are_not_written_as_if_they_were_whole(folders: Path, tmp_path: Path) -> None:
    """Programs that do not know how they were quantised would read their bytes as numbers."""
    opened = open_model(folders / "llava", bits=8, device="cpu")
    opened.model.save_pretrained(tmp_path / "quantised")
    opened.tokenizer.save_pretrained(tmp_path / "quantised")
    with pytest.raises(ValueError, match=r"is quantised .* convert the model it was made from"):
        convert(str(tmp_path / "quantised"), tmp_path / "out", "hf")
    with pytest.raises(ValueError, match="name a model that is not quantised"):
        write_language_model(opened.model, opened.tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(str(tmp_path / "quantised"), tmp_path / "llava", "llava")
    assert open_model(tmp_path / "llava", device="cpu").model.quantization_method is not None


# === To LLaVA, and there and back ===


def test_from_transformers_to_llava(folders: Path, tmp_path: Path) -> None:
    convert(str(folders / "hf"), tmp_path / "llava", "llava")
    assert weights_of(tmp_path / "llava").keys() == published.whole().keys()
    torch.testing.assert_close(logits(here(tmp_path / "llava")), stock_logits(stock(published.whole())), **EXACT)
    config = json.loads((tmp_path / "llava/config.json").read_text())
    assert config["model_type"] == "llava_llama" and config["image_aspect_ratio"] == "square"


def test_there_and_back_again(folders: Path, tmp_path: Path) -> None:
    """Every weight bit for bit, the budget, the picture's shape and the context; the added rows stay."""
    convert(str(folders / "llava"), tmp_path / "hf", "hf")
    convert(str(tmp_path / "hf"), tmp_path / "back", "llava")
    held, rows = weights_of(tmp_path / "back"), published.VOCABULARY
    for name, tensor in published.whole().items():
        assert torch.equal(held[name][: len(tensor)], tensor), name
    assert len(held["lm_head.weight"]) == 576
    _, model, _, _ = load_pretrained_model(str(tmp_path / "back"), device="cpu", dtype=torch.float64)
    _, original, _, _ = load_pretrained_model(str(folders / "llava"), device="cpu", dtype=torch.float64)
    assert model.compression == original.compression and model.compression.t2v is not None
    assert model.config.image_aspect_ratio == original.config.image_aspect_ratio == "pad"
    assert model.config.mm_vision_tower == original.config.mm_vision_tower
    torch.testing.assert_close(logits(model)[..., :rows], logits(original), **EXACT)
    convert(str(tmp_path / "back"), tmp_path / "again", "hf")
    first, second = weights_of(tmp_path / "hf"), weights_of(tmp_path / "again")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("source", ["projector", "lora"])
@pytest.mark.parametrize("to", ["hf", "llava"])
def test_what_goes_on_a_base_becomes_a_model_of_its_own(folders: Path, tmp_path: Path, source: str, to: str) -> None:
    convert(str(folders / source), tmp_path / "out", to, str(folders / "vicuna"), torch.float32)
    language = published.language() if source == "projector" else published.adapted_language()
    weights = language | published.projector(seed=7 if source == "projector" else 8) | published.tower()
    model = here(tmp_path / "out")
    torch.testing.assert_close(
        logits(model)[..., : published.VOCABULARY], stock_logits(stock(weights)), atol=1e-4, rtol=1e-4
    )


def test_the_data_type_is_kept_and_a_mixture_is_not_rounded(folders: Path, tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in published.whole().items()}
    for name, weights, expected in (
        ("half", half, torch.bfloat16),
        ("mixed", half | published.projector(), torch.float32),
    ):
        source = published.write_llava(tmp_path / name, folders / "clip", weights, pickled=False)
        for to in ("hf", "llava"):
            target = convert(str(source), tmp_path / f"{name}-{to}", to)
            held = {tensor.dtype for path in weight_files(target) for tensor in read_header(path).values()}
            assert held == {expected}
            assert json.loads((target / "config.json").read_text())["dtype"] == str(expected).split(".")[1]
        convert(str(source), tmp_path / f"{name}-16", "hf", dtype=torch.float16)
        assert widest_dtype(weight_files(tmp_path / f"{name}-16")) == torch.float16


# === On disk ===


def test_nothing_is_overwritten_and_nothing_is_left_half_written(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty; name a new folder"):
        convert("a model that does not exist", target, "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llava.checkpoints.conversion.save_torch_state_dict", fail)
    with pytest.raises(OSError, match="No space left"):
        convert(str(folders / "llava"), tmp_path / "new", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    convert(str(folders / "llava"), tmp_path / "empty", "hf")
    assert (tmp_path / "empty/config.json").is_file()


def test_command_line(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--to", "hf", str(folders / "llava"), str(tmp_path / "hf"), "--dtype", "bfloat16"])
    said = capsys.readouterr().out
    assert said.startswith(f"Wrote {tmp_path / 'hf'}: ") and "GB of bfloat16 in 1 weight file(s)" in said
    assert "processor_config.json" in said
    with pytest.raises(SystemExit, match=r"convert: .* is not empty"):
        main(["--to", "llava", str(folders / "llava"), str(tmp_path / "hf")])
    with pytest.raises(SystemExit, match="convert: There is no folder"):
        main(["--to", "llava", str(tmp_path / "gone"), str(tmp_path / "new")])


def test_documented_commands_are_understood() -> None:
    """Every one gets as far as looking for the folder that the text makes up."""
    text = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    commands = [line.split()[3:] for line in text.splitlines() if line.startswith("python -m llava.model.convert")]
    assert len(commands) == 3
    for words in commands:
        with pytest.raises(SystemExit, match="convert: There is no folder"):
            main(words)


def test_scripts_of_llava_work_on_what_llava_published(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(script: str, *words: object) -> None:
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")

    options = ("--model-base", folders / "vicuna", "--save-model-path", tmp_path / "merged", "--dtype", "float32")
    run("merge_lora_weights.py", "--model-path", folders / "lora", *options)
    merged = weights_of(tmp_path / "merged")
    for name, tensor in published.adapted_language().items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-5, rtol=1e-5)
    for source in ("llava", "hf"):
        run("extract_mm_projector.py", "--model-path", folders / source, "--output", tmp_path / f"{source}.bin")
        held = torch.load(tmp_path / f"{source}.bin", weights_only=True)
        assert held.keys() == published.projector().keys()


def test_weights_of_one_file_are_not_read_as_anothers(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.int64)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no floating-point numbers"):
        widest_dtype(weight_files(tmp_path))
