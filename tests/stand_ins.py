"""In place of processors that need torchvision, which the tests do without: the same names, tiny inputs."""

from __future__ import annotations

from typing import Any

import torch
from tiny_vlms import IMAGE, VIDEO, look
from transformers import BatchFeature


class AutoProcessor:
    """Makes what the processors of Video-LLaVA and Qwen2.5-VL make, at any size."""

    @classmethod
    def from_pretrained(cls, name: str) -> AutoProcessor:
        """Nothing is read."""
        return cls()

    def __call__(self, videos: Any, text: str, return_tensors: str) -> BatchFeature:
        """One prompt with one video of eight frames of 257 tokens."""
        frames, height, width, channels = videos.shape
        assert "<video>" in text and return_tensors == "pt"
        ids = torch.tensor([[1, 5, *[VIDEO] * (frames * 257), 6, 7]])
        pixels = torch.randn(1, frames, channels, height, width)
        return BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels})

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> BatchFeature:
        """One prompt with one image."""
        assert [part["type"] for part in conversation[0]["content"]] == ["image", "text"] and options["tokenize"]
        seen = look("qwen2_5_vl", "image", 1, torch.float32)
        ids = torch.tensor([[1, 5, *[IMAGE] * seen.count, 6, 7]])
        kinds = (ids == IMAGE).int()
        return BatchFeature(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **seen.inputs}
        )

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
        """The ids themselves."""
        return " ".join(map(str, ids.tolist()))
