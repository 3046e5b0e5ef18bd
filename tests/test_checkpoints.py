"""Opening checkpoints of every layout in use: the same logits as transformers' own LLaVA, or an error that says why."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from published import logits, stock, stock_logits
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava.checkpoints.contents import Kind, examine
from llava.checkpoints.settings_files import read_by_library
from llava.model.builder import load_pretrained_model

EXACT = {"atol": 1e-9, "rtol": 1e-9}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for each layout; tests that change one copy it first."""
    root = tmp_path_factory.mktemp("published")
    tower = published.write_tower(root / "clip")
    published.write_llava(root / "llava-v1.5-7b", tower)
    published.write_language_model(root / "vicuna")
    published.write_projector(root / "llava-pretrain", tower)
    published.write_lora(root / "llava-v1.5-7b-lora", tower)
    published.write_hf(root / "llava-1.5-7b-hf")
    return root


@pytest.fixture(scope="module")
def expected() -> Tensor:
    """Logits of the whole model's weights."""
    return stock_logits(stock(published.whole()))


def opened(path: Path, base: Path | None = None, **options: Any) -> Any:
    """The model at a path, in float64 on the CPU."""
    options = {"device": "cpu", "dtype": torch.float64} | options
    return load_pretrained_model(str(path), None if base is None else str(base), **options)[1]


def copied(source: Path, target: Path, **config: Any) -> Path:
    """A copy of a folder, with changes to its `config.json`."""
    shutil.copytree(source, target)
    content = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(content | config))
    return target


def refusal(path: Path, base: Path | None = None, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        opened(path, base, **options)
    return str(caught.value)


# === Layouts ===


@pytest.mark.parametrize("pickled", [True, False], ids=["bin", "safetensors"])
@pytest.mark.parametrize("inside", [True, False], ids=["tower-inside", "tower-outside"])
@pytest.mark.parametrize("model_type", ["llava", "llava_llama"])
def test_llava_1_5_in_its_own_format(
    folders: Path, tmp_path: Path, expected: Tensor, pickled: bool, inside: bool, model_type: str
) -> None:
    weights = published.language() | published.projector() | (published.tower() if inside else {})
    folder = published.write_llava(tmp_path / "llava", folders / "clip", weights, pickled, model_type=model_type)
    if inside:  # nothing of the tower's folder is needed but its dimensions
        bare = tmp_path / "dimensions"
        published.write_json(bare / "config.json", published.VISION)
        folder = copied(folder, tmp_path / "llava-inside", mm_vision_tower=str(bare))
    tokenizer, model, processor, context = load_pretrained_model(str(folder), device="cpu", dtype="float64")
    torch.testing.assert_close(logits(model), expected, **EXACT)
    assert (len(tokenizer), context, processor.crop_size["height"]) == (published.VOCABULARY, 2048, 16)
    assert model.config.image_aspect_ratio == "pad" and not model.training


def test_fault_10_what_old_versions_wrote_beside_the_weights_is_passed_over(folders: Path, expected: Tensor) -> None:
    """Rotary and position buffers, `max_length` and sampling options without sampling, and the projector once more."""
    torch.testing.assert_close(logits(opened(folders / "llava-v1.5-7b")), expected, **EXACT)


def test_a_published_config_says_how_large_its_tower_is(tmp_path: Path) -> None:
    """LLaVA-1.5 names a tower of the hub without its dimensions; no network is needed for them."""
    for name, image in (("openai/clip-vit-large-patch14-336", 336), ("/models/clip-vit-large-patch14", 224)):
        folder = tmp_path / str(image)
        published.write_llava(folder, name)
        vision = examine(folder).config.mm_vision_config
        shape = [vision[field] for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")]
        assert (vision["image_size"], *shape) == (image, 1024, 24, 16, 14)
        assert (vision["intermediate_size"], vision["hidden_act"]) == (4096, "quick_gelu")


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_mistral_is_the_same_architecture(folders: Path, tmp_path: Path, kv_heads: int) -> None:
    weights = published.language(kv_heads=kv_heads) | published.projector() | published.tower()
    mistral = {"model_type": "llava_mistral", "num_key_value_heads": kv_heads, "rope_theta": 1e6}
    folder = published.write_llava(tmp_path / "m", folders / "clip", weights, sliding_window=None, **mistral)
    reference = stock(weights, num_key_value_heads=kv_heads, rope_theta=1e6)
    torch.testing.assert_close(logits(opened(folder)), stock_logits(reference), **EXACT)


@pytest.mark.parametrize("new", [False, True], ids=["published", "transformers-5"])
def test_the_format_of_transformers(tmp_path: Path, expected: Tensor, new: bool) -> None:
    budget = {"v2v": {"dominant": 7, "contextual": 2, "cluster_width": 2}}
    folder = published.write_hf(tmp_path / "hf", new, pads=new, compression=budget, vision_feature_layer=-2)
    tokenizer, model, processor, _ = load_pretrained_model(str(folder), device="cpu", dtype=torch.float64)
    assert model.config.image_aspect_ratio == ("pad" if new else "square")
    assert not processor.do_pad and processor.crop_size["height"] == published.IMAGE
    assert model.compression.v2v.dominant == 7
    model.set_compression("none")
    torch.testing.assert_close(logits(model), expected, **EXACT)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = opened(tmp_path / "saved")
    torch.testing.assert_close(logits(again), expected, **EXACT)
    held = load_file(tmp_path / "saved/model.safetensors")
    assert held.keys() == published.whole().keys(), "saved under LLaVA's names, whatever it was read under"


def test_what_transformers_itself_writes(tmp_path: Path, expected: Tensor) -> None:
    model = stock(published.whole())
    model.save_pretrained(tmp_path / "original")
    model.save_pretrained(tmp_path / "names-inside", save_original_format=False)
    for name in ("original", "names-inside"):
        published.llama().save_pretrained(tmp_path / name)
        torch.testing.assert_close(logits(opened(tmp_path / name)), expected, **EXACT)


@pytest.mark.parametrize("base", ["vicuna", "llava-v1.5-7b", "llava-1.5-7b-hf"])
def test_a_projector_goes_on_its_language_model_or_on_a_llava(folders: Path, base: str) -> None:
    weights = published.language() | published.projector(seed=7) | published.tower()
    model = opened(folders / "llava-pretrain", folders / base)
    torch.testing.assert_close(logits(model), stock_logits(stock(weights)), **EXACT)


def test_projectors_of_intermediate_checkpoints(folders: Path, tmp_path: Path) -> None:
    """As the Trainer leaves them, as safetensors, and where LLaVA puts them if the output folder is `checkpoint-N`."""
    reference = logits(opened(folders / "llava-pretrain", folders / "vicuna"))
    inside = copied(folders / "llava-pretrain", tmp_path / "run/checkpoint-24")
    safe = copied(folders / "llava-pretrain", tmp_path / "safe")
    save_file(torch.load(safe / "mm_projector.bin", weights_only=True), safe / "mm_projector.safetensors")
    (safe / "mm_projector.bin").unlink()
    beside = copied(folders / "llava-pretrain", tmp_path / "other/checkpoint-24")
    (tmp_path / "other/mm_projector").mkdir()
    os.rename(beside / "mm_projector.bin", tmp_path / "other/mm_projector/checkpoint-24.bin")
    for folder in (inside, safe, beside):
        assert torch.equal(logits(opened(folder, folders / "vicuna")), reference)


def test_image_tokens_that_pretraining_added_come_with_the_projector(folders: Path, tmp_path: Path) -> None:
    """`mm_use_im_start_end`: two rows more than the language model has; the file holds the embeddings."""
    rows = published.VOCABULARY + 2
    folder = published.write_projector(tmp_path / "p", folders / "clip", vocab_size=rows, mm_use_im_start_end=True)
    held = torch.load(folder / "mm_projector.bin", weights_only=True)
    table = torch.randn(rows, published.WIDTH)
    torch.save(held | {"model.embed_tokens.weight": table}, folder / "mm_projector.bin")
    tokenizer, model, _, _ = load_pretrained_model(str(folder), str(folders / "vicuna"), device="cpu")
    assert tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [rows - 2, rows - 1]
    assert torch.equal(model.get_input_embeddings().weight, table)
    head = published.language()["lm_head.weight"]
    torch.testing.assert_close(model.lm_head.weight[:-2].data, head)
    torch.testing.assert_close(model.lm_head.weight[-1].data, head.mean(dim=0))


@pytest.mark.parametrize("pickled", [True, False], ids=["bin", "safetensors"])
@pytest.mark.parametrize("base", ["vicuna", "llava-v1.5-7b", "llava-1.5-7b-hf"])
def test_fault_11_lora_is_merged_as_worked_out_by_hand(folders: Path, tmp_path: Path, base: str, pickled: bool) -> None:
    """W + BA alpha / r, worked out in float64; adapters go to the language model and not to CLIP's q_proj."""
    prefix = "base_model.model.model." if pickled else "base_model.model."
    folder = published.write_lora(tmp_path / "lora", folders / "clip", pickled, prefix)
    model = opened(folder, folders / base)
    weights = published.adapted_language() | published.projector(seed=8) | published.tower()
    torch.testing.assert_close(logits(model), stock_logits(stock(weights)), atol=1e-4, rtol=1e-4)
    own = model.state_dict()
    for name, tensor in published.tower().items():
        assert torch.equal(own[name], tensor.double()), name
    assert not any("lora" in name for name in own)


def test_adapters_without_their_own_config_take_that_of_a_llava(folders: Path, tmp_path: Path) -> None:
    """As an intermediate checkpoint of LLaVA's LoRA training: adapters alone."""
    folder = published.write_lora(tmp_path / "checkpoint-9", folders / "clip")
    (folder / "config.json").unlink()
    (folder / "non_lora_trainables.bin").unlink()
    weights = published.adapted_language() | published.projector() | published.tower()
    model = opened(folder, folders / "llava-v1.5-7b")
    torch.testing.assert_close(logits(model), stock_logits(stock(weights)), atol=1e-4, rtol=1e-4)
    assert "names a vision tower" in refusal(folder, folders / "vicuna")
    published.write_json(folder / "config.json", published.llava_config(folders / "clip"))
    assert "lacks 'model.mm_projector.0.weight'" in refusal(folder, folders / "vicuna")


def test_a_plain_language_model_opens_without_eyes(folders: Path) -> None:
    _, model, processor, _ = load_pretrained_model(str(folders / "vicuna"), device="cpu", dtype=torch.float64)
    assert processor is None and model.get_vision_tower() is None
    ids = torch.tensor([[1, 40, 41, 50]])
    with torch.no_grad():
        reference = stock(published.whole()).model.language_model(input_ids=ids).last_hidden_state
        reference = reference @ published.language()["lm_head.weight"].double().T
        torch.testing.assert_close(model(input_ids=ids).logits, reference, **EXACT)


def test_tied_embeddings_may_be_stored_once(folders: Path, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in published.language().items() if name != "lm_head.weight"}
    folder = published.write_language_model(tmp_path / "tied", weights, tie_word_embeddings=True)
    model = opened(folder)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert "lacks 'lm_head.weight'" in refusal(copied(folder, tmp_path / "untied", tie_word_embeddings=False))


# === What decides ===


def test_fault_11_the_content_decides_and_not_the_name(folders: Path, tmp_path: Path, expected: Tensor) -> None:
    names = ("my-lora-of-vicuna", "vicuna", "mpt-30b", "checkpoint-12")
    for name in names:
        full = shutil.copytree(folders / "llava-v1.5-7b", tmp_path / name)
        torch.testing.assert_close(logits(opened(full)), expected, **EXACT)
        assert torch.equal(logits(opened(full, folders / "vicuna")), logits(opened(full))), "a base is not needed"
    adapters = shutil.copytree(folders / "llava-v1.5-7b-lora", tmp_path / "llava-full")
    assert examine(adapters).kind is Kind.LORA
    assert examine(folders / "vicuna").kind is Kind.LANGUAGE
    assert examine(shutil.copytree(folders / "vicuna", tmp_path / "llava")).kind is Kind.LANGUAGE


def test_the_name_is_asked_only_where_the_content_does_not_say(folders: Path, tmp_path: Path) -> None:
    folder = copied(folders / "llava-v1.5-7b", tmp_path / "llava-mpt", sliding_window=7)
    content = json.loads((folder / "config.json").read_text())
    del content["model_type"]
    (folder / "config.json").write_text(json.dumps(content))
    assert "model_type 'llava_mpt'" in refusal(folder)
    assert "sliding_window" in refusal(folder, model_name="llava-mistral")
    assert opened(folder, model_name="llava-v1.5").config.model_type == "llava_llama"


def test_other_architectures_are_refused_in_a_sentence(folders: Path, tmp_path: Path) -> None:
    def with_config(name: str, **config: Any) -> str:
        return refusal(copied(folders / "llava-v1.5-7b", tmp_path / name, **config))

    assert "model_type 'llava_mpt'; accepted are llava_llama" in with_config("a", model_type="llava_mpt")
    assert "sliding_window" in with_config("b", model_type="llava_mistral", sliding_window=4096)
    assert "sliding_window" in with_config("c", model_type="llava_mistral"), "4096 is Mistral's default"
    assert "image_grid_pinpoints is None" in with_config("d", image_aspect_ratio="anyres")
    assert "which crops of 16 x 16 pixels do not fill" in with_config(
        "d2", image_aspect_ratio="anyres", image_grid_pinpoints=[[336, 672], [672, 335]]
    )
    assert "mm_patch_merge_type is 'tiles'; accepted are flat" in with_config("d3", mm_patch_merge_type="tiles")
    assert "lacks 'model.image_newline'" in with_config("d4", mm_patch_merge_type="spatial_unpad")
    assert "image_unpad_digits is 99; it must be from 0 to 15" in with_config("d6", image_unpad_digits=99)
    assert "set mm_vision_select_feature to 'patch'" in with_config(
        "d5", mm_patch_merge_type="spatial", mm_vision_select_feature="cls_patch"
    )
    siglip = tmp_path / "siglip"
    published.write_json(siglip / "config.json", {"model_type": "siglip_vision_model"})
    assert "only CLIP's is supported" in with_config("e", mm_vision_tower=str(siglip))
    assert "can be neither found" in with_config("f", mm_vision_tower=str(tmp_path / "gone/tower"))
    hf = folders / "llava-1.5-7b-hf"
    assert "features of one layer" in refusal(copied(hf, tmp_path / "g", vision_feature_layer=[-2, -3]))
    assert "only 'gelu' is supported" in refusal(copied(hf, tmp_path / "h", projector_hidden_act="relu"))
    unbiased = copied(hf, tmp_path / "h2", multimodal_projector_bias=False)
    assert "multimodal_projector_bias in" in refusal(unbiased)
    qwen = {"model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2}
    assert "model_type 'qwen2'" in refusal(copied(hf, tmp_path / "i", text_config=qwen))


def test_a_package_that_opening_needs_and_that_is_not_there_is_said(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft and bitsandbytes come with an extra; those of other quantisations are nobody's."""
    said = "needs a package that is not installed"
    awq = copied(folders / "llava-v1.5-7b", tmp_path / "awq", quantization_config={"quant_method": "awq", "bits": 4})
    assert f"awq' {said}" in refusal(awq)
    monkeypatch.setitem(sys.modules, "peft", None)
    without = refusal(folders / "llava-v1.5-7b-lora", folders / "vicuna")
    assert f"llava-v1.5-7b-lora' {said}" in without and "pip install '.[train]'" in without


def test_memory_that_runs_out_while_a_model_is_read_is_no_fault_of_its_files() -> None:
    with pytest.raises(torch.OutOfMemoryError), read_by_library("model"):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_folders_that_hold_nothing_or_too_much(folders: Path, tmp_path: Path) -> None:
    config = published.llava_config(folders / "clip")
    published.write_json(tmp_path / "empty/config.json", config)
    assert "holds neither the weights of a model" in refusal(tmp_path / "empty")
    (tmp_path / "empty/global_step4").mkdir()
    assert "python -m llava.model.consolidate" in refusal(tmp_path / "empty")
    assert "There is no folder" in refusal(tmp_path / "gone")
    both = shutil.copytree(folders / "llava-v1.5-7b", tmp_path / "both")
    shutil.copy(folders / "llava-v1.5-7b-lora/adapter_config.json", both)
    assert "could mean either" in refusal(both)
    (tmp_path / "empty/config.json").write_text("{")
    assert "is not JSON" in refusal(tmp_path / "empty")
    assert "holds only a projector" in refusal(folders / "llava-pretrain")
    assert "holds only LoRA adapters; give a whole model" in refusal(
        folders / "llava-pretrain", folders / "llava-v1.5-7b-lora"
    )
    bare = shutil.copytree(folders / "vicuna", tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    assert "There is no tokenizer" in refusal(bare)


# === Nothing is made up ===


def altered(source: Path, target: Path, change: dict[str, Tensor | None]) -> Path:
    """A copy of a sharded pickle folder; None takes a weight out, a tensor replaces or adds one."""
    shutil.copytree(source, target)
    for path in sorted(target.glob("pytorch_model-*.bin")):
        held = torch.load(path, weights_only=True)
        new = {name: tensor for name, tensor in change.items() if tensor is not None and "00001" in path.name}
        torch.save({name: tensor for name, tensor in held.items() if name not in change} | new, path)
    return target


def test_a_weight_that_does_not_fit_is_named(folders: Path, tmp_path: Path) -> None:
    whole, name = folders / "llava-v1.5-7b", "model.layers.1.mlp.up_proj.weight"
    missing = refusal(altered(whole, tmp_path / "missing", {name: None}))
    assert f"lacks '{name}' of shape (128, 64), but the model that config.json describes has it" in missing
    unknown = refusal(altered(whole, tmp_path / "unknown", {"model.image_newline": torch.zeros(64)}))
    assert "holds 'model.image_newline' of shape (64,)" in unknown and "pytorch_model-00001-of-00002.bin" in unknown
    shape = refusal(altered(whole, tmp_path / "shape", {name: torch.zeros(5, 64)}))
    assert f"'{name}' in" in shape and "has shape (5, 64)" in shape and "needs (128, 64)" in shape
    assert "has shape (5, 64)" in refusal(tmp_path / "shape", load_4bit=True), "also where it would be quantised"
    part = "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias"
    assert f"lacks '{part}'" in refusal(altered(whole, tmp_path / "tower", {part: None})), "a tower in part is no tower"
    two = {name: None, "model.norm.weight": None}
    assert "and 1 more such weights" in refusal(altered(whole, tmp_path / "two", two))


def test_a_weight_that_does_not_fit_is_named_in_the_format_of_transformers(folders: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folders / "llava-1.5-7b-hf", tmp_path / "hf")
    path = folder / "model-00001-of-00003.safetensors"
    held = load_file(path)
    gone = next(name for name in held if "language_model.model.layers" in name)
    save_file({name: tensor for name, tensor in held.items() if name != gone}, path)
    assert f"lacks 'model.{gone.removeprefix('language_model.model.')}'" in refusal(folder)


def test_a_tower_outside_is_checked_as_well(folders: Path, tmp_path: Path) -> None:
    tower = shutil.copytree(folders / "clip", tmp_path / "clip")
    weights = published.language() | published.projector()
    folder = published.write_llava(tmp_path / "llava", tower, weights)
    held = torch.load(tower / "pytorch_model.bin", weights_only=True)
    del held["vision_model.pre_layrnorm.bias"]
    torch.save(held, tower / "pytorch_model.bin")
    assert "lacks 'pre_layrnorm.bias' of shape (16,), but a CLIP tower" in refusal(folder)


def test_a_base_of_another_kind_is_refused(folders: Path, tmp_path: Path) -> None:
    """Also where every shape fits: heads and the norm's epsilon show in no shape."""
    for folder in ("llava-pretrain", "llava-v1.5-7b-lora"):
        for field, value in (("num_attention_heads", 2), ("rms_norm_eps", 1e-6), ("num_hidden_layers", 3)):
            base = tmp_path / f"{folder}-{field}"
            layers = value if field == "num_hidden_layers" else published.LAYERS
            extra = {"num_key_value_heads": 2} if field == "num_attention_heads" else {}
            published.write_language_model(base, published.language(layers=int(layers)), **{field: value, **extra})
            assert f"has {field} {value!r}, but the projector or adapters were trained on" in refusal(
                folders / folder, base
            )


def test_adapters_that_do_not_fit_are_named(folders: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folders / "llava-v1.5-7b-lora", tmp_path / "lora")
    held = torch.load(folder / "adapter_model.bin", weights_only=True)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    torch.save({key: tensor for key, tensor in held.items() if key != name}, folder / "adapter_model.bin")
    assert "lacks 'model.layers.1.mlp.up_proj.lora_B.default.weight'" in refusal(folder, folders / "vicuna")
    torch.save(held | {name: torch.zeros(3, 4)}, folder / "adapter_model.bin")
    assert "has shape (3, 4), but the base model with its adapters needs" in refusal(folder, folders / "vicuna")
    torch.save(held | {name.replace("layers.1", "layers.7"): held[name]}, folder / "adapter_model.bin")
    assert "which the base model with its adapters lacks" in refusal(folder, folders / "vicuna")


class _Run:
    """What an attacker would put into a pickle: something that is called while it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_cannot_run_anything(folders: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    for number, (source, name) in enumerate(
        (
            ("llava-v1.5-7b", "pytorch_model-00001-of-00002.bin"),
            ("llava-pretrain", "mm_projector.bin"),
            ("llava-v1.5-7b-lora", "adapter_model.bin"),
            ("llava-v1.5-7b-lora", "non_lora_trainables.bin"),
        )
    ):
        folder = shutil.copytree(folders / source, tmp_path / str(number))
        torch.save({"model.norm.weight": _Run(trap)}, folder / name)
        assert "holds something other than weights, so it is not opened" in refusal(folder, folders / "vicuna")
        assert name in refusal(folder, folders / "vicuna") and not trap.exists()


def test_safetensors_come_first_and_shards_must_all_be_there(folders: Path, tmp_path: Path, expected: Tensor) -> None:
    folder = shutil.copytree(folders / "llava-v1.5-7b", tmp_path / "both")
    published.write_shards(folder, published.whole(), pickled=False)
    torch.save({"model.norm.weight": _Run(tmp_path / "trap")}, folder / "pytorch_model-00001-of-00002.bin")
    torch.testing.assert_close(logits(opened(folder)), expected, **EXACT)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is not there" in refusal(folder)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"cut off")
    assert "is damaged" in refusal(folder)


# === How it is loaded ===


@pytest.mark.parametrize("source", ["llava-v1.5-7b", "llava-1.5-7b-hf"])
@pytest.mark.parametrize("bits", [4, 8])
def test_fault_11_quantised_models_answer_and_keep_tower_and_projector(folders: Path, source: str, bits: int) -> None:
    options = {f"load_{bits}bit": True, "dtype": torch.float32}
    model = opened(folders / source, **options)
    kinds = {name: type(weight).__name__ for name, weight in model.named_parameters()}
    quantised = {name for name, kind in kinds.items() if kind in ("Params4bit", "Int8Params")}
    assert quantised == {name for name in published.language() if "_proj." in name}
    own = model.state_dict()
    for name, tensor in (published.tower() | published.projector()).items():
        assert torch.equal(own[name], tensor), name
    ids = model.generate(
        torch.tensor([published.IDS]), images=published.pixels(torch.float32), max_new_tokens=3, do_sample=False
    )
    assert ids.shape == (1, 3) or ids[0, -1] == 2
    assert "merging them into 4 or 8 bits" in refusal(folders / "llava-v1.5-7b-lora", folders / "vicuna", **options)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_that_was_saved_quantised_opens_again(folders: Path, tmp_path: Path, bits: int) -> None:
    model = opened(folders / "vicuna", load_4bit=bits == 4, load_8bit=bits == 8, dtype=torch.float32)
    model.save_pretrained(tmp_path / "quantised")
    published.llama().save_pretrained(tmp_path / "quantised")
    again = opened(tmp_path / "quantised", dtype=torch.float32)
    ids = torch.tensor([[1, 40, 41, 50]])
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-2, rtol=1e-2)
    assert type(again.model.layers[0].mlp.up_proj.weight).__name__ in ("Params4bit", "Int8Params")


@pytest.mark.parametrize("source", ["llava-v1.5-7b", "llava-1.5-7b-hf"])
def test_parts_may_lie_on_other_devices(folders: Path, tmp_path: Path, expected: Tensor, source: str) -> None:
    """One layer stays on the disk; renaming does not stand in the way."""
    parts = ("embed_tokens", "layers.0", "norm", "rotary_emb", "vision_tower", "mm_projector")
    places = {f"model.{part}": "cpu" for part in parts} | {"lm_head": "cpu", "model.layers.1": "disk"}
    model = opened(folders / source, device_map=places, offload_folder=str(tmp_path))
    assert model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    torch.testing.assert_close(logits(model), expected, **EXACT)


@pytest.mark.parametrize("name", ["bfloat16", "fp16", "torch.float16"])
def test_data_types_by_name(folders: Path, name: str) -> None:
    wanted = torch.bfloat16 if name == "bfloat16" else torch.float16
    for source in ("llava-v1.5-7b", "llava-1.5-7b-hf"):
        path = str(folders / source)
        _, model, _, _ = load_pretrained_model(path, device="cpu", torch_dtype=name, attn_implementation="eager")
        assert {weight.dtype for weight in model.parameters()} == {wanted}
        assert model.config._attn_implementation == "eager"
        assert torch.equal(model.lm_head.weight.data, published.language()["lm_head.weight"].to(wanted))
    _, own, _, _ = load_pretrained_model(path, device="cpu", dtype="auto")
    assert own.dtype == torch.float16, "as config.json says"
    assert "dtype is 'int3'" in refusal(folders / "vicuna", dtype="int3")


def test_a_name_on_the_hub_is_fetched_first(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Tensor
) -> None:
    """Pickles are asked for only where the repository has no safetensors; without a network a sentence says so."""
    asked: list[tuple[str, list[str], Any]] = []

    def download(name: str, allow_patterns: list[str], **options: Any) -> str:
        asked.append((name, allow_patterns, options))
        return str(folders / name.split("/")[1])

    monkeypatch.setattr("llava.checkpoints.contents.snapshot_download", download)
    options = {"cache_dir": str(tmp_path), "revision": "main"}
    model = load_pretrained_model("owner/llava-1.5-7b-hf", device="cpu", dtype=torch.float64, **options)[1]
    torch.testing.assert_close(logits(model), expected, **EXACT)
    assert len(asked) == 1 and asked[0][2] == options and not any("pytorch_model" in name for name in asked[0][1])
    load_pretrained_model("owner/llava-v1.5-7b-lora", "owner/vicuna", device="cpu")
    assert [name for name, patterns, _ in asked if patterns == ["pytorch_model*.bin"]] == [
        "owner/llava-v1.5-7b-lora",
        "owner/vicuna",
    ]


def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    name = "nobody/llava-that-is-not-cached"
    options = {"cache_dir": str(tmp_path), "local_files_only": True}
    assert f"'{name}' is no folder here and could not be fetched" in refusal(Path(name), **options)
