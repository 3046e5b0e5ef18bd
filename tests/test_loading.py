"""Opening what training wrote, through LLaVA's `load_pretrained_model`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_llava import flags, write_assets

from llava.compression import CompressionConfig
from llava.data.tokenization import encode_prompt
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.train.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    train(flags(folder, folder / "pretrain", "pretrain", max_steps=1))
    changes = {"max_steps": 1, "pretrain_mm_mlp_adapter": folder / "pretrain/mm_projector.bin"}
    train(flags(folder, folder / "model", "finetune", **changes))
    return folder


def test_a_whole_model_opens_with_its_budget(trained: Path) -> None:
    tokenizer, model, processor, context = load_pretrained_model(str(trained / "model"), None, "llava", device="cpu")
    assert model.compression == CompressionConfig.from_yaml(trained / "tiny.yaml")
    assert (context, processor.crop_size["height"]) == (256, 16)
    assert not model.training and model.dtype == torch.float32
    prompt = encode_prompt(["<image>\nWhat is red?"], tokenizer, "v1").tensors()
    pixels = process_images([_picture(trained)], processor, model.config)
    ids = model.generate(
        prompt["input_ids"][None], images=pixels, query_mask=prompt["query_mask"][None], max_new_tokens=2
    )
    assert ids.shape[0] == 1 and 1 <= ids.shape[1] <= 2


def test_a_given_budget_replaces_the_saved_one_and_must_fit(trained: Path) -> None:
    _, model, _, _ = load_pretrained_model(str(trained / "model"), device="cpu", compression="none")
    assert model.compression == CompressionConfig()
    with pytest.raises(ValueError, match=r"v2v.dominant is 300, but the vision tower gives 17 tokens"):
        load_pretrained_model(str(trained / "model"), device="cpu", compression="duet-192")


def test_a_projector_opens_over_its_language_model(trained: Path) -> None:
    _, model, _, _ = load_pretrained_model(
        str(trained / "pretrain"), str(trained / "lm"), device="cpu", torch_dtype=torch.bfloat16
    )
    saved = torch.load(trained / "pretrain/mm_projector.bin", weights_only=True)
    assert model.dtype == torch.bfloat16
    for name, weight in model.get_model().mm_projector.state_dict().items():
        assert torch.equal(weight, saved[f"model.mm_projector.{name}"].bfloat16())
    with pytest.raises(ValueError, match=r"holds only a projector .* as model_base"):
        load_pretrained_model(str(trained / "pretrain"), device="cpu")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no config"):
        load_pretrained_model(str(tmp_path), device="cpu")


def _picture(folder: Path):
    from llava.data.images import open_rgb

    return open_rgb(folder / "images/red.png")
