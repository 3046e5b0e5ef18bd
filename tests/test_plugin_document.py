"""Every example of docs/plug-in.md runs, on random models that are as deep and see as many patches as the real ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_text import llama
from tiny_vlms import vlm
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
)
from warm_python import run_program

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "llava": "llava-hf/llava-1.5-7b-hf",
    "llava_next": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "video_llava": "LanguageBind/Video-LLaVA-7B-hf",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct",
}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def tower(side: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=side, patch_size=14
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run: models under their hub names, and two pictures."""
    folder = tmp_path_factory.mktemp("document")
    tokenizer = llama()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    image = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    shared = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    for family, name in NAMES.items():
        side = 224 if family == "video_llava" else 336
        model = vlm(family, torch.float32, layers=28 if family == "qwen2_5_vl" else 32, tower=tower(side))
        if family in ("llava", "llava_next"):
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
            kinds = {
                "llava": (LlavaProcessor, CLIPImageProcessorPil),
                "llava_next": (LlavaNextProcessor, LlavaNextImageProcessorPil),
            }
            make, pixels = kinds[family]
            more = {} if family == "llava" else {"image_grid_pinpoints": model.config.image_grid_pinpoints}
            make(pixels(**image, **more), tokenizer, **shared).save_pretrained(folder / name)
        model.save_pretrained(folder / name)
    for picture, colour in (("cat", "orange"), ("dog", "brown")):
        Image.new("RGB", (400, 300), colour).save(folder / f"{picture}.png")
    return folder


def test_every_example_runs(folder: Path) -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "plug-in.md").read_text(encoding="utf-8"))
    assert blocks[0].splitlines()[-1] == 'model = compress(model, "duet-192")'
    code = "\n\n".join(blocks[1:3] + blocks[6:7] + blocks[3:6] + blocks[7:])
    for name in (NAMES["video_llava"], NAMES["qwen2_5_vl"]):  # their processors need torchvision
        before, _, after = code.partition(f'name = "{name}"')
        head, _, imports = before.rpartition("AutoProcessor\n")
        code = f'{head}AutoModel\nfrom stand_ins import AutoProcessor\n{imports}name = "{name}"{after}'
    code = f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n{code}\nprint('the end')\n"
    result = run_program(["-c", code], cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "(307, 307) " in result.stdout and "(153, 153) " in result.stdout and "(0, 0) " in result.stdout
    assert result.stdout.endswith("the end\n")
