"""What training starts from: what it cannot train it refuses, and what a checkpoint records is the flags' default."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from published import write_hf, write_shards
from safetensors.torch import load_file, save_file
from tiny_llava import flags, write_assets
from tiny_text import llama
from torch import Tensor
from transformers import AddedToken, CLIPVisionConfig, CLIPVisionModel

from llava.model.builder import load_pretrained_model
from llava.train.arguments import parse_arguments
from llava.train.building import load_model, load_tokenizer
from llava.train.train import train

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LORA: dict[str, object] = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
IDS = torch.tensor([[1, 40, 41, 50, 51, 52, 53]])


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tower, language model, data; under `pretrain` a projector, under `llava` a LLaVA, under `lora` adapters."""
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    train(flags(folder, folder / "pretrain", "pretrain", max_steps=1))
    train(flags(folder, folder / "llava", "finetune", max_steps=1))
    train(flags(folder, folder / "lora", "finetune", max_steps=1, **LORA))
    return folder


def opened(assets: Path, **changes: object) -> Any:
    """The model that a command line of fine-tuning would train, and its arguments."""
    model_args, data_args, args = parse_arguments(flags(assets, assets / "unused", "finetune", **changes))
    model = load_model(model_args, data_args, args, load_tokenizer(model_args, args))
    return model, model_args, data_args, args


def refusal(assets: Path, **changes: object) -> str:
    """What opening says."""
    with pytest.raises(ValueError) as caught:
        opened(assets, **changes)
    return str(caught.value)


def write_base(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    llama().save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def edit_weights(source: Path, target: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a checkpoint whose weights were changed by `edit`."""
    shutil.copytree(source, target)
    held = load_file(target / "model.safetensors")
    edit(held)
    save_file(held, target / "model.safetensors", {"format": "pt"})
    return target


# === Bases that are no Llama ===


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Phi3", "Gemma", "GPTNeoX", "Olmo2", "Cohere"])
def test_a_base_of_another_family_is_refused_by_name(assets: Path, tmp_path: Path, family: str) -> None:
    config = getattr(transformers, f"{family}Config")(vocab_size=len(llama()), pad_token_id=0, **SMALL)
    base = write_base(tmp_path / family, getattr(transformers, f"{family}ForCausalLM")(config))
    said = refusal(assets, model_name_or_path=base)
    assert f"has the model_type {config.model_type!r}" in said and "llama" in said


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Phi3"])
def test_a_base_that_only_calls_itself_llama_is_refused_by_its_weights(
    assets: Path, tmp_path: Path, family: str
) -> None:
    config = getattr(transformers, f"{family}Config")(vocab_size=len(llama()), pad_token_id=0, **SMALL)
    base = write_base(tmp_path / family, getattr(transformers, f"{family}ForCausalLM")(config))
    edit_config(base, model_type="llama")
    name = {"Qwen2": "k_proj.bias", "Qwen3": "k_norm.weight", "Phi3": "gate_up_proj.weight"}[family]
    said = refusal(assets, model_name_or_path=base)
    assert f"model.layers.0.{'mlp' if family == 'Phi3' else 'self_attn'}.{name}" in said and "lacks; " in said


def test_a_mistral_with_a_window_is_refused_and_one_without_computes_as_mistral(assets: Path, tmp_path: Path) -> None:
    options = {"vocab_size": len(llama()), "num_key_value_heads": 2, "head_dim": 16} | SMALL
    for window in (8, None):
        mistral = transformers.MistralForCausalLM(transformers.MistralConfig(sliding_window=window, **options))
        base = write_base(tmp_path / f"window-{window}", mistral)
        if window:
            assert "sliding_window" in refusal(assets, model_name_or_path=base)
    model = opened(assets, model_name_or_path=base)[0]
    assert same_logits(model, mistral)


# === Bases that are Llamas, and lack something or hold too much ===


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda held: held.pop("lm_head.weight"), "lacks 'lm_head.weight'"),
        (lambda held: held.pop("model.norm.weight"), "lacks 'model.norm.weight'"),
        (lambda held: held.pop("model.layers.2.mlp.up_proj.weight"), "lacks 'model.layers.2.mlp.up_proj.weight'"),
        (
            lambda held: [held.pop(name) for name in list(held) if ".layers.3." in name],
            r"lacks 'model.layers.3.self_attn.q_proj.weight' of shape (32, 32) (and 8 more",
        ),
        (lambda held: held.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}), "q_proj.bias"),
        (lambda held: held.update({"model.layers.4.mlp.up_proj.weight": torch.zeros(64, 32)}), "layers.4.mlp.up_proj"),
        (lambda held: held.update({"lm_head.weight": torch.zeros(9, 32)}), "'lm_head.weight'"),
    ],
)
def test_a_llama_that_lacks_a_weight_or_has_another_is_refused(
    assets: Path, tmp_path: Path, damage: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    base = edit_weights(assets / "lm", tmp_path / "lm", damage)
    assert said in refusal(assets, model_name_or_path=base)
    assert said in refusal(assets, model_name_or_path=base, **LORA)


@pytest.mark.parametrize("pickled", [True, False])
def test_shards_and_pickles_are_looked_through_as_well(assets: Path, tmp_path: Path, pickled: bool) -> None:
    held = load_file(assets / "lm/model.safetensors")
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(4)}
    for name, weights in (("whole", held | buffers), ("less", {k: v for k, v in held.items() if "norm" not in k})):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(assets / "lm" / file, folder)
        if pickled:
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            write_shards(folder, weights, pickled=False)
    assert same_logits(opened(assets, model_name_or_path=tmp_path / "whole")[0], reference(assets / "lm"))
    assert "norm.weight" in refusal(assets, model_name_or_path=tmp_path / "less")
    if not pickled:
        (tmp_path / "whole/model-00002-of-00002.safetensors").unlink()
        assert "model-00002-of-00002.safetensors is not there" in refusal(assets, model_name_or_path=tmp_path / "whole")


@pytest.mark.parametrize(
    "options",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 16},
        {"num_key_value_heads": 1},
        {"vocab_size": 640},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
    ],
)
def test_llamas_of_every_kind_are_trained_as_they_are(assets: Path, tmp_path: Path, options: dict[str, object]) -> None:
    config = transformers.LlamaConfig(**{"vocab_size": len(llama())} | SMALL | options)
    base = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in base.parameters():
            weight.add_(torch.randn(weight.shape) / 8)  # biases are zero at first
    write_base(tmp_path / "lm", base)
    assert same_logits(opened(assets, model_name_or_path=tmp_path / "lm")[0], base)


def reference(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@torch.no_grad()
def same_logits(model: Any, stock: Any) -> bool:
    return torch.allclose(model.eval()(IDS).logits, stock.eval()(IDS).logits, atol=1e-5)


# === LLaVAs that lack something ===


@pytest.mark.parametrize("part", ["mm_projector.0", "mm_projector", "vision_model.encoder.layers.1.mlp", "layers.3."])
def test_a_llava_that_lacks_a_part_is_refused(assets: Path, tmp_path: Path, part: str) -> None:
    def damage(held: dict[str, Tensor]) -> None:
        for name in [name for name in held if part in name]:
            del held[name]

    said = refusal(assets, model_name_or_path=edit_weights(assets / "llava", tmp_path / "llava", damage))
    assert "lacks 'model." in said and part in said


def test_a_llava_without_its_projector_takes_it_from_the_file_that_is_named(assets: Path, tmp_path: Path) -> None:
    def without(held: dict[str, Tensor]) -> None:
        for name in [name for name in held if "mm_projector" in name]:
            del held[name]

    folder = edit_weights(assets / "llava", tmp_path / "llava", without)
    file = assets / "pretrain/mm_projector.bin"
    model = opened(assets, model_name_or_path=folder, pretrain_mm_mlp_adapter=file)[0]
    for name, weight in torch.load(file, weights_only=True).items():
        assert torch.equal(dict(model.named_parameters())[name], weight)


# === Folders that are no start ===


def test_folders_of_another_kind_say_what_they_are_and_what_to_do(assets: Path, tmp_path: Path) -> None:
    said = refusal(assets, model_name_or_path=assets / "lora")
    assert "holds LoRA adapters" in said and f"--model-path {assets / 'lora'}" in said and "--lora_weight_path" in said
    said = refusal(assets, model_name_or_path=assets / "pretrain")
    assert "only the projector" in said and f"--pretrain_mm_mlp_adapter {assets / 'pretrain/mm_projector.bin'}" in said
    said = refusal(assets, model_name_or_path=write_hf(tmp_path / "hf"))
    assert "in transformers' format" in said and "llava.model.convert --to llava" in said
    assert "no folder" in refusal(assets, model_name_or_path=tmp_path / "nowhere")
    quantised = edit_config(shutil.copytree(assets / "lm", tmp_path / "q"), quantization_config={"quant_method": "awq"})
    assert "is quantised" in refusal(assets, model_name_or_path=quantised)


@pytest.mark.parametrize("what", ["padding token", "token"])
def test_a_token_beyond_the_embeddings_is_found_when_opening(assets: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(assets / "lm", tmp_path / "lm")
    tokenizer = llama()
    if what == "token":
        tokenizer.add_tokens([AddedToken("<loc>"), AddedToken("<seg>")])
    else:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path / "lm")
    said = refusal(assets, model_name_or_path=tmp_path / "lm")
    rows = len(llama())
    assert f"has the {what} {'<loc>' if what == 'token' else '<pad>'!r} with the id {rows}" in said
    assert f"only {rows} rows" in said and "resize_token_embeddings" in said


def test_image_tokens_without_rows_are_found_when_opening(assets: Path, tmp_path: Path) -> None:
    folder = edit_config(shutil.copytree(assets / "llava", tmp_path / "llava"), mm_use_im_start_end=True)
    assert "config.json asks for the token '<im_start>'" in refusal(assets, model_name_or_path=folder)


# === Flags against the checkpoint ===


def test_what_the_checkpoint_records_is_the_default_of_the_flags(assets: Path, tmp_path: Path) -> None:
    left_out = dict.fromkeys(["vision_tower", "mm_projector_type", "image_aspect_ratio", "model_max_length"])
    model, model_args, data_args, args = opened(assets, model_name_or_path=assets / "llava", **left_out)
    assert (model_args.mm_projector_type, data_args.image_aspect_ratio) == ("mlp2x_gelu", "pad")
    assert (model_args.vision_tower, args.model_max_length) == (str(assets / "tower"), 256)
    assert (model.config.mm_projector_type, model.config.image_aspect_ratio) == ("mlp2x_gelu", "pad")
    out = train(
        flags(assets, tmp_path / "on", "finetune", max_steps=1, model_name_or_path=assets / "llava", **left_out)
    )
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (assets / "llava", out))
    told = [name for name in before if name.startswith(("mm_", "image_", "tokenizer_", "compression"))]
    assert len(told) > 8 and {name: after[name] for name in told} == {name: before[name] for name in told}
    load_pretrained_model(str(out), device="cpu")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("mm_projector_type", "linear"),
        ("mm_projector_type", "mlp3x_gelu"),
        ("mm_vision_select_layer", -1),
        ("mm_vision_select_layer", 1),
        ("mm_vision_select_feature", "cls_patch"),
        ("mm_use_im_start_end", True),
        ("mm_use_im_patch_token", True),
        ("image_aspect_ratio", "square"),
    ],
)
def test_a_flag_that_contradicts_the_checkpoint_is_an_error(assets: Path, flag: str, value: object) -> None:
    recorded = json.loads((assets / "llava/config.json").read_text())[flag]
    said = refusal(assets, model_name_or_path=assets / "llava", **{flag: value})
    assert f"{flag} is {value!r} on the command line, but {recorded!r} in " in said and f"Leave --{flag} out" in said


def test_defaults_that_are_spelled_out_contradict_as_well(assets: Path, tmp_path: Path) -> None:
    """`linear` is LLaVA's default; given on the command line it is still a claim about an mlp2x_gelu checkpoint."""
    options = {"image_aspect_ratio": "square", "mm_projector_type": "linear"}
    linear = train(flags(assets, tmp_path / "linear", "finetune", max_steps=1, **options))
    assert "'linear' in" in refusal(assets, model_name_or_path=linear, image_aspect_ratio=None)
    model = opened(assets, model_name_or_path=linear, image_aspect_ratio=None, mm_projector_type=None)[0]
    assert isinstance(model.get_model().mm_projector, torch.nn.Linear) and model.config.image_aspect_ratio == "square"


def test_the_same_value_in_other_words_is_no_contradiction(assets: Path) -> None:
    """The tower has three layers, so that its second hidden state is also the last but one."""
    model = opened(assets, model_name_or_path=assets / "llava", mm_vision_select_layer=2)[0]
    assert model.get_vision_tower().select_layer == 2
    tower = assets / "images" / ".." / "tower"
    assert opened(assets, model_name_or_path=assets / "llava", vision_tower=tower)[0].get_vision_tower() is not None


def test_another_tower_is_an_error_and_one_that_is_no_clip_too(assets: Path, tmp_path: Path) -> None:
    other = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
    )
    CLIPVisionModel(other).save_pretrained(tmp_path / "tower")
    said = refusal(assets, model_name_or_path=assets / "llava", vision_tower=tmp_path / "tower")
    assert f"mm_vision_tower is {str(tmp_path / 'tower')!r} on the command line" in said and "--vision_tower" in said
    transformers.SiglipVisionConfig(hidden_size=16, num_hidden_layers=2).save_pretrained(tmp_path / "siglip")
    assert "only CLIP's is supported" in refusal(assets, vision_tower=tmp_path / "siglip")


def test_a_projector_brings_the_settings_it_was_trained_with(assets: Path) -> None:
    file = assets / "pretrain/mm_projector.bin"
    model_args = opened(assets, pretrain_mm_mlp_adapter=file, mm_projector_type=None)[1]
    assert model_args.mm_projector_type == "mlp2x_gelu"
    opened(assets, pretrain_mm_mlp_adapter=file, image_aspect_ratio="square")
    said = refusal(assets, pretrain_mm_mlp_adapter=file, mm_vision_select_layer=-1)
    assert f"-2 in {str(assets / 'pretrain/config.json')!r}" in said


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("pretrain_mm_mlp_adapter", "mm_projector.bin"),
        ("unfreeze_mm_vision_tower", True),
        ("mm_projector_lr", 1e-4),
        ("mm_vision_tower_lr", 1e-4),
        ("tune_mm_mlp_adapter", True),
    ],
)
def test_flags_of_the_images_need_a_tower(assets: Path, flag: str, value: object) -> None:
    assert "needs a vision tower" in refusal(assets, vision_tower=None, **{flag: value})


def test_image_tokens_keep_the_rows_that_were_trained(assets: Path, tmp_path: Path) -> None:
    """Also where the tokenizer was saved without them, and where the embeddings have rows to spare."""
    added = {"mm_use_im_start_end": True, "mm_use_im_patch_token": True}
    first = train(flags(assets, tmp_path / "first", "finetune", max_steps=2, **added))
    llama().save_pretrained(first)
    rows = load_file(first / "model.safetensors")["model.embed_tokens.weight"]
    assert len(rows) == len(llama()) + 3
    model = opened(assets, model_name_or_path=first)[0]
    assert torch.equal(model.get_input_embeddings().weight, rows) and model.config.mm_use_im_start_end
    config = transformers.LlamaConfig(vocab_size=640, **SMALL)
    base = write_base(tmp_path / "padded", transformers.LlamaForCausalLM(config))
    assert opened(assets, model_name_or_path=base, **added)[0].get_input_embeddings().num_embeddings == 640


# === The early save check ===


@pytest.mark.parametrize("options", [{}, LORA, LORA | {"bits": 4}, {"tune_mm_mlp_adapter": True}])
def test_what_is_saved_is_opened_again_before_the_first_step(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    """A configuration that no longer fits its weights is found before anything is trained."""
    from llava.train import trainer

    folders = []
    original = trainer.require_opens

    def spoiled(folder: Path, base: str | None, args: Any) -> None:
        original(folder, base, args)
        edit_config(folder, mm_projector_type="linear")
        folders.append(folder)
        original(folder, base, args)

    monkeypatch.setattr(trainer, "require_opens", spoiled)
    with pytest.raises(OSError, match=r"cannot be opened again: .*mm_projector.*Nothing was trained yet"):
        train(flags(assets, tmp_path / "out", "finetune", max_steps=1, early_save_check=True, **options))
    assert len(folders) == 1 and not list((tmp_path / "out").glob("*.safetensors"))


def test_adapters_of_a_model_without_eyes_are_trained_and_opened(assets: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What is blue?"}, {"from": "gpt", "value": "a colour"}]
    (tmp_path / "text.json").write_text(json.dumps([{"id": str(i), "conversations": turns} for i in range(8)]))
    blind = dict.fromkeys(["vision_tower", "mm_projector_type", "compression"])
    options = LORA | blind | {"max_steps": 1, "data_path": tmp_path / "text.json"}
    train(flags(assets, tmp_path / "out", "finetune", **options))
    _, model, processor, _ = load_pretrained_model(str(tmp_path / "out"), device="cpu")
    assert processor is None and not same_logits(model, reference(assets / "lm"))


def test_a_projector_trained_over_a_llava_is_opened_over_it(assets: Path, tmp_path: Path) -> None:
    options = {"max_steps": 1, "model_name_or_path": assets / "llava"}
    train(flags(assets, tmp_path / "out", "pretrain", **options))
    model = load_pretrained_model(str(tmp_path / "out"), str(assets / "llava"), device="cpu")[1]
    for name, weight in torch.load(tmp_path / "out/mm_projector.bin", weights_only=True).items():
        assert torch.equal(dict(model.named_parameters())[name], weight)


def test_adapters_name_their_base_as_the_user_did(assets: Path) -> None:
    recorded = json.loads((assets / "lora/adapter_config.json").read_text())
    assert recorded["base_model_name_or_path"] == str(assets / "lm")
    load_pretrained_model(str(assets / "lora"), device="cpu")
