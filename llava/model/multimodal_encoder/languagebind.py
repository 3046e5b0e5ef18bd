"""LanguageBind's vision transformers: CLIP's, which for videos attends over time in front of every layer.

The parameters have their published names. Shapes: B clips, T frames of a clip, N tokens of a frame (CLS in front),
D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer


class LanguageBindVisionConfig(CLIPVisionConfig):
    """CLIP's configuration and LanguageBind's fields; what a file leaves out has LanguageBind's default.

    Args:
        add_time_attn: whether each layer attends over time.
        num_frames: frames of a clip.
        lora_r, lora_alpha: rank and scale of the adapters in which the published image class wraps its encoder; 0
            stands for none.
    """

    add_time_attn: bool = False
    num_frames: int = 1
    lora_r: int = 2
    lora_alpha: int = 16


def languagebind_config(settings: Mapping[str, Any]) -> LanguageBindVisionConfig:
    """The configuration of a tower from the `config.json` of a LanguageBind model, or from its `vision_config`.

    Raises:
        ValueError: if the clip is to have no frame.
    """
    inside = settings.get("vision_config")
    fields = dict(inside if isinstance(inside, Mapping) else settings)
    fields.pop("model_type", None)
    config = LanguageBindVisionConfig(**fields)
    if not isinstance(config.num_frames, int) or config.num_frames < 1:
        raise ValueError(f"num_frames of a video tower is {config.num_frames!r}; it must be a whole number from 1 up.")
    return config


class TemporalLayer(CLIPEncoderLayer):
    """A layer of CLIP with attention over time in front.

    Hidden states are [B * T, N, D], the frames of a clip behind one another.
    """

    attends_over_time = True

    def __init__(self, config: LanguageBindVisionConfig) -> None:
        super().__init__(config)
        self.num_frames = config.num_frames
        self.temporal_embedding = nn.Parameter(torch.zeros(1, config.num_frames, config.hidden_size))
        nn.init.normal_(self.temporal_embedding, std=config.hidden_size**-0.5)
        self.temporal_attn = CLIPAttention(config)
        self.temporal_layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def over_time(self, hidden_states: Tensor) -> Tensor:
        """What the frames of a clip see of each other, at each of the N positions by itself.

        The embedding of time is added in front of the residual, so that it stays in the stream; a clip of a single
        frame has none.
        """
        tokens = hidden_states.shape[1]
        clips = hidden_states.unflatten(0, (-1, self.num_frames))  # [B, T, N, D]
        series = clips.transpose(1, 2).flatten(0, 1)  # [B * N, T, D]
        if self.num_frames > 1:
            series = series + self.temporal_embedding
        series = series + self.temporal_attn(self.temporal_layer_norm1(series))[0]
        return series.unflatten(0, (-1, tokens)).transpose(1, 2).flatten(0, 1)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, with_mixed: bool = False, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention over time, then CLIP's layer in each frame by itself.

        Args:
            with_mixed: whether to return, behind the result, what CLIP's layer got: [B * T, N, D], which V2V scores.
        """
        mixed = self.over_time(hidden_states)
        result = super().forward(mixed, attention_mask, **kwargs)
        return (result, mixed) if with_mixed else result


class LanguageBindVisionModel(CLIPVisionModel):
    """LanguageBind's tower for images, and for videos where `add_time_attn` is off: CLIP's."""

    config_class = LanguageBindVisionConfig
    # Of a whole LanguageBind model, which holds a text model too.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"^text_model\.",
        r"^(?:text|visual)_projection\.",
        r"^logit_scale$",
    ]


class LanguageBindVideoModel(LanguageBindVisionModel):
    """LanguageBind's tower for videos; frames come as images [B * T, 3, height, width], clip behind clip."""

    def __init__(self, config: LanguageBindVisionConfig) -> None:
        super().__init__(config)
        if config.add_time_attn:
            self.encoder.layers = nn.ModuleList(TemporalLayer(config) for _ in range(config.num_hidden_layers))
            self.post_init()
