"""LLaVA-OneVision as transformers has it: images in crops, several images, videos of pooled frames; no CLS token.

Without V2V the stock model packs what it sees. An image's crops are joined into one map, which loses its padding, is
shrunk where it is larger than `anyres_max_N` allows, and gets a newline behind each row. A video's frames are pooled to
a quarter, and one newline stands behind them.

With V2V each crop of an image is merged by itself, the small picture of the whole first, as in LLaVA-NeXT. Rows end
there, and with them their newlines and the cutting away of padding. A crop's budget shrinks as the stock model shrinks
the map: otherwise an image of 36 crops would bring four times as many tokens as one of nine. An image of a prompt with
several is one crop, and keeps the newline behind it.

A frame is merged as the language model would see it, behind pooling, which needs whole rows; what patches are scored by
and their keys are pooled as their features are. Budgets are caps there. The newline behind a video stays.
Shapes: M images or frames, N tokens of the tower, n pooled tokens of a frame, D width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.modeling_llava_onevision import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from llava.compression.config import CompressionConfig, V2VConfig
from llava.compression.v2v import V2VResult, merge_visual_tokens
from llava.model.families.clip import ClipFamily, check_tower, single_layer
from llava.model.families.hf_crops import joined_crops, merged_crops, without_padding
from llava.model.multimodal_encoder.encode import TowerOutput, encode_images
from llava.model.placeholders import VisualSpan
from llava.model.stock_forward import forward_like
from llava.model.traced_media import TracedMedium, frame_parts, merged_unit, plain_unit, what_patches_see

_SHRUNK_BEYOND = 1.1
"""How far a side of the map may be above what `anyres_max_N` allows before the stock model shrinks it."""


class CompressedLlavaOnevision(ClipFamily, LlavaOnevisionForConditionalGeneration):
    """`LlavaOnevisionForConditionalGeneration` with both stages inside."""

    stock = LlavaOnevisionForConditionalGeneration
    crop_orders = ("crops",)
    visual_inputs = (
        "pixel_values",
        "image_sizes",
        "pixel_values_videos",
        "batch_num_images",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "vision_aspect_ratio",
    )
    forward = forward_like(LlavaOnevisionForConditionalGeneration)

    def check_tower(self) -> None:
        """Refuse towers unlike SigLIP's."""
        super().check_tower()
        if self.has_cls():
            raise ValueError(
                "The vision tower has a CLS token, which V2V on a LLaVA-OneVision does not expect; its towers are "
                "SigLIP's. Use a compression with t2v alone."
            )

    def visual_spans(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[int, list[VisualSpan]]:
        """One span an image, its crops behind one another, and one a frame, the last with the newline behind it."""
        images, videos = inputs["pixel_values"], inputs["pixel_values_videos"]
        return {
            self.config.image_token_id: [] if images is None else self._image_spans(images, compression.v2v, inputs),
            self.config.video_token_id: [] if videos is None else self._frame_spans(videos, compression.v2v, inputs),
        }

    def _image_spans(self, pixels: Tensor, v2v: V2VConfig | None, inputs: Mapping[str, Any]) -> list[VisualSpan]:
        sizes = inputs["image_sizes"]
        if sizes is None:
            raise ValueError("pixel_values came without image_sizes; give all that the model's own processor returns.")
        ratio = inputs["vision_aspect_ratio"] or self.config.vision_aspect_ratio
        crops = self._crops(sizes, inputs["batch_num_images"])
        if v2v is None:
            shown = {name: value for name, value in inputs.items() if not name.startswith("pixel_values")}
            return self.stock_spans({**shown, "pixel_values": pixels, "vision_aspect_ratio": ratio})
        pixels, budgets = without_padding(pixels, crops), self._budgets(sizes, crops, v2v, ratio)
        tokens: list[Tensor] = [pixels[0]] * len(budgets)
        for those, result in self._merged_crops(pixels, budgets, v2v, inputs):
            for number, image in zip(those, self.model.multi_modal_projector(result.tokens), strict=True):
                tokens[number] = image
        merged, spans = iter(tokens), []
        for count, newlines in zip(crops, self._newlines(sizes, crops, ratio), strict=True):
            parts = [next(merged) for _ in range(count)]
            # None behind several crops; yet it has a gradient then, too, on every rank of a training.
            newline = self.model.image_newline[None][: int(count == 1)].to(parts[0])
            spans.append(VisualSpan(torch.cat([*parts, newline]), len(newlines)))
        return spans

    def _budgets(self, sizes: Tensor, crops: Sequence[int], v2v: V2VConfig, ratio: str) -> list[V2VConfig]:
        """`budgets` of several images."""
        held = zip(sizes, crops, strict=True)
        return [budget for size, count in held for budget in self.budgets(size, count, v2v, ratio)]

    def budgets(self, size: Tensor, crops: int, v2v: V2VConfig, ratio: str) -> list[V2VConfig]:
        """What V2V keeps of each crop of an image, in their order.

        Args:
            size: int64 [2], height and width of the image.
            crops: crops of it, the small picture of the whole among them.
            v2v: what is asked for.
            ratio: `anyres_max_N`.
        """
        if crops == 1:
            return [v2v]
        excess = self._excess(size, ratio)
        if math.sqrt(excess) <= _SHRUNK_BEYOND:
            return [v2v] * crops
        dominant, contextual = v2v.counts(self._side**2)
        fewer = dataclasses.replace(v2v, dominant=max(1, int(dominant / excess)), contextual=int(contextual / excess))
        return [v2v, *[fewer] * (crops - 1)]

    def _excess(self, size: Tensor, ratio: str) -> float:
        """How many times as large the map of an image's crops is, without padding, as `anyres_max_N` allows."""
        grid = get_anyres_image_grid_shape(size, self.config.image_grid_pinpoints, self.config.vision_config.image_size)
        blank = torch.zeros(1, *(count * self._side for count in grid))
        return unpad_image(blank, size).numel() / (int(ratio.removeprefix("anyres_max_")) * self._side**2)

    def _crops(self, sizes: Tensor, together: Iterable[Any] | None) -> list[int]:
        """Crops of each image: one where a prompt holds several images; `together` counts the images of each prompt."""
        alone = [True] * len(sizes)
        if together is not None:
            alone = [count == 1 for count in map(int, together) for _ in range(count)]
        if len(alone) != len(sizes):
            raise ValueError(
                f"batch_num_images counts {len(alone)} images, but image_sizes holds {len(sizes)}; give both as the "
                "model's own processor returns them."
            )
        config = self.config
        return [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size) if cut else 1
            for size, cut in zip(sizes, alone, strict=True)
        ]

    def _newlines(self, sizes: Tensor, crops: Sequence[int], ratio: str) -> list[Tensor]:
        """bool [n] for each image, which of its n tokens without V2V are newlines.

        The stock packing decides, on features of width 1.
        """
        blank = [torch.zeros(count, self._side**2, 1) for count in crops]
        packed, _ = self.model.pack_image_features(blank, sizes, torch.ones(1), ratio)
        return [image[:, 0] > 0 for image in packed]

    def _seen(self, pixels: Tensor, v2v: V2VConfig, inputs: Mapping[str, Any]) -> TowerOutput:
        """What the tower gives for images [M, 3, height, width], and what V2V scores them by."""
        layer, strategy = self.selected(inputs)
        if strategy != "full":
            raise ValueError(
                f"vision_feature_select_strategy is {strategy!r}, which leaves out a CLS token that the tower does not "
                "have; give 'full'."
            )
        check_tower(self.model.vision_tower, layer)
        return encode_images(self.model.vision_tower, pixels, single_layer(layer), v2v)

    def _merged_crops(
        self, pixels: Tensor, budgets: Sequence[V2VConfig], v2v: V2VConfig, inputs: Mapping[str, Any]
    ) -> Iterator[tuple[list[int], V2VResult]]:
        """V2V on crops [M, 3, height, width]: those of one budget together, by their numbers."""
        seen = self._seen(pixels, v2v, inputs)
        for budget in dict.fromkeys(budgets):
            those = [number for number, held in enumerate(budgets) if held == budget]
            yield those, seen.select(those).merged(budget)

    def _frame_spans(self, videos: Tensor, v2v: V2VConfig | None, inputs: Mapping[str, Any]) -> list[VisualSpan]:
        """Visual tokens of videos [videos, frames, 3, height, width]."""
        newline = self.model.image_newline[None]
        if v2v is None:
            names = ("vision_feature_layer", "vision_feature_select_strategy")
            select = {name: inputs[name] for name in names}
            packed = self.model.get_video_features(videos, return_dict=True, **select).pooler_output[:, :-1]
            frames = list(packed.unflatten(1, (videos.shape[1], -1)).flatten(0, 1))  # [n, D] each
            replaced = len(frames[0])
        else:
            pooled, merged = self._merged_frames(videos, v2v, inputs)
            frames, replaced = list(pooled if merged is None else merged.tokens), pooled.shape[1]
        spans = []
        for number, frame in enumerate(frames, 1):
            if number % videos.shape[1]:
                spans.append(VisualSpan(frame, replaced))
            else:
                spans.append(VisualSpan(torch.cat([frame, newline.to(frame)]), replaced + 1))
        return spans

    def _merged_frames(
        self, videos: Tensor, v2v: V2VConfig, inputs: Mapping[str, Any]
    ) -> tuple[Tensor, V2VResult | None]:
        """Pooled frames [M, n, D] of videos [videos, frames, 3, height, width], and V2V on them.

        What they are scored by is pooled, too. None where there are no more tokens than are asked for.
        """
        seen, pool = self._seen(videos.flatten(0, 1), v2v, inputs), self.model.apply_pooling
        pooled = pool(self.model.multi_modal_projector(seen.features))
        if pooled.shape[1] <= sum(v2v.counts(pooled.shape[1])):
            return pooled, None
        with torch.no_grad():
            keys = None if seen.keys is None else pool(seen.keys)
            received, attention = None, seen.attention  # [M, N, N]
            if attention is not None:
                received = pool(attention.mean(dim=1)[..., None])[..., 0]  # [M, n]
                attention = pool(pool(attention).transpose(1, 2)).transpose(1, 2)  # [M, n, n]
        return pooled, merge_visual_tokens(pooled, None, keys, v2v, attention, received, has_cls=False)

    # === For people who look ===

    def traced_media(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[str, list[TracedMedium]]:
        """What became of the patches of each `image` and `video`; arguments as in `visual_spans`."""
        images, videos = inputs["pixel_values"], inputs["pixel_values_videos"]
        return {
            "image": [] if images is None else self._traced_images(images, compression.v2v, inputs),
            "video": [] if videos is None else self._traced_videos(videos, compression.v2v, inputs),
        }

    def _traced_images(self, pixels: Tensor, v2v: V2VConfig | None, inputs: Mapping[str, Any]) -> list[TracedMedium]:
        sizes, ratio = inputs["image_sizes"], inputs["vision_aspect_ratio"] or self.config.vision_aspect_ratio
        crops = self._crops(sizes, inputs["batch_num_images"])
        pixels = without_padding(pixels, crops)
        if v2v is not None:
            results: dict[int, tuple[V2VResult, int]] = {}
            for those, result in self._merged_crops(pixels, self._budgets(sizes, crops, v2v, ratio), v2v, inputs):
                results |= {number: (result, place) for place, number in enumerate(those)}
            merged, vision = iter(results[number] for number in sorted(results)), self.config.vision_config
            return [
                merged_crops(image, [next(merged) for _ in image], self._side, vision.patch_size, len(image) == 1)
                for image in pixels.split(crops)
            ]
        newlines = self._newlines(sizes, crops, ratio)
        return [
            joined_crops(image, size, flags, self.config)
            for image, size, flags in zip(pixels.split(crops), sizes, newlines, strict=True)
        ]

    def _traced_videos(self, videos: Tensor, v2v: V2VConfig | None, inputs: Mapping[str, Any]) -> list[TracedMedium]:
        side, pooled = self._side, math.ceil(self._side / 2)
        merged = None if v2v is None else self._merged_frames(videos, v2v, inputs)[1]
        each = pooled**2 if merged is None else merged.tokens.shape[1]
        found, parts = [], frame_parts(videos.shape[1])
        for video in range(len(videos)):
            units = []
            for number, part in enumerate(parts):
                shown = what_patches_see(videos[video, number], side, self.config.vision_config.patch_size)
                places = range(number * each, (number + 1) * each)
                if merged is None:
                    units.append(plain_unit(shown, (pooled, pooled), places, part))
                else:
                    units.append(
                        merged_unit(shown, (pooled, pooled), merged, video * len(parts) + number, places, part)
                    )
            found.append(TracedMedium(units, len(parts) * each + 1))
        return found
