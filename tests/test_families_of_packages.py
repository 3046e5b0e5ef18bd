"""A family of an installed package: programs that have not imported it open its models by an entry point."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_text import llama
from tiny_vlms import vlm
from transformers import CLIPImageProcessorPil, LlavaProcessor

from llava.checkpoints.opening import open_model
from llava.data.families import family_of, registry
from llava.model import compressed_model

MODULE = """
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava.data.families import LlavaInputs
from llava.model.plugin import CompressedModel, VisualSpan, forward_like


class PackagedConfig(LlavaConfig):
    model_type = "packaged_vlm"


class PackagedVLM(LlavaForConditionalGeneration):
    config_class = PackagedConfig


class CompressedPackagedVLM(CompressedModel, PackagedVLM):
    stock = PackagedVLM
    visual_inputs = ("pixel_values",)
    forward = forward_like(PackagedVLM)

    def visual_spans(self, compression, inputs):
        if inputs["pixel_values"] is None:
            return {self.config.image_token_id: []}
        features = self.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        return {self.config.image_token_id: [VisualSpan(image, replaced=len(image)) for image in features]}


class PackagedInputs(LlavaInputs):
    model_types = ("packaged_vlm",)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package as pip leaves it; what it registers is taken back."""
    site = tmp_path / "site"
    facts = site / "packaged-1.0.dist-info"
    facts.mkdir(parents=True)
    (site / "packaged_vlm_family.py").write_text(MODULE)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[llava.families]\npackaged_vlm = packaged_vlm_family\n")
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    monkeypatch.setattr(compressed_model, "_FAMILIES", dict(compressed_model._FAMILIES))
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    yield facts / "entry_points.txt"


def folder_of(place: Path) -> Path:
    stock: Any = vlm("llava", dtype=torch.float32)
    stock.config.save_pretrained(place)
    save_file({name: weight.clone() for name, weight in stock.state_dict().items()}, place / "model.safetensors")
    options = {"patch_size": 14, "vision_feature_select_strategy": "default"}
    LlavaProcessor(CLIPImageProcessorPil(), llama(), **options).save_pretrained(place)
    content = json.loads((place / "config.json").read_text())
    content |= {"model_type": "packaged_vlm", "architectures": ["PackagedVLM"]}
    (place / "config.json").write_text(json.dumps(content))
    return place


def test_a_model_of_a_package_that_nobody_imported_is_opened_and_has_inputs(installed: Path, tmp_path: Path) -> None:
    found = open_model(str(folder_of(tmp_path / "model")), device="cpu", dtype=torch.float32)
    assert type(found.model).__name__ == "CompressedPackagedVLM"
    assert family_of(found.model.config).__name__ == "PackagedInputs"


def test_a_package_that_cannot_be_imported_is_named(installed: Path, tmp_path: Path) -> None:
    installed.write_text("[llava.families]\npackaged_vlm = packaged_family_that_is_not_there\n")
    with pytest.raises(ValueError, match=r"Models of type 'packaged_vlm' are of packaged_family_that_is_not_there"):
        open_model(str(folder_of(tmp_path / "model")), device="cpu", dtype=torch.float32)


def test_without_a_package_the_type_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model")
    content = json.loads((folder / "config.json").read_text()) | {"model_type": "nobodys_vlm"}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="nobodys_vlm"):
        open_model(str(folder), device="cpu", dtype=torch.float32)
