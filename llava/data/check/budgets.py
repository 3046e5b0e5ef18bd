"""Token statistics of the good records, and what an epoch over them costs at every budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llava.compression.config import CompressionConfig
from llava.conversation import is_for_captions
from llava.cost.dimensions import DecoderShape
from llava.cost.flops import (
    average_visual_tokens,
    tokens_per_layer,
    training_flops,
    training_passes,
    visual_tokens_per_layer,
)
from llava.cost.seen_media import SeenMedium, Vision, seen
from llava.data.check.checking import CheckResult
from llava.data.mixture import rows_of
from llava.data.mixture_files import Source
from llava.data.sampler import EpochSampler

SEED = 42  # transformers' default


@dataclass(frozen=True)
class CostAssumptions:
    """Assumptions of the time estimates (devices, FLOP/s, utilisation); none of it is measured.

    Attributes:
        model: name or checkpoint folder whose dimensions are used.
        batch_size: samples of one device in one forward pass.
        devices: accelerators; consecutive batches go to consecutive ones.
        peak_tflops: peak of one device, 1e12 FLOP/s.
        mfu: share of the peak that is reached, recomputation for checkpointing counted as work.
        passes: forward-sized passes of one step, as in `training_flops`.
    """

    model: str
    batch_size: int
    devices: int
    peak_tflops: float
    mfu: float
    passes: int

    def hours(self, flops: float) -> float:
        """Hours that all devices together need for a number of FLOPs."""
        return flops / (self.devices * self.peak_tflops * 1e12 * self.mfu) / 3600


@dataclass(frozen=True)
class BudgetFigures:
    """Statistics and cost of one budget; means over an epoch of the good records.

    Attributes:
        average_visual_tokens: visual tokens of one image, mean over the decoder's layers.
        mean_text_tokens, mean_sequence_tokens: tokens of a sample without its images, and as it enters the decoder.
        p95_sequence_tokens, max_sequence_tokens: of the latter.
        truncated, unsupervised: records, faulty ones included, that are cut, and that no label is left of.
        padding_shuffled, padding_grouped: share of the positions of padded batches that is filler, in random
            order and with `--group_by_modality_length`.
        flops: FLOPs of one epoch.
        hours: hours of one epoch, padding and data loading not counted.
    """

    average_visual_tokens: float
    mean_text_tokens: float
    mean_sequence_tokens: float
    p95_sequence_tokens: float
    max_sequence_tokens: int
    truncated: int
    unsupervised: int
    padding_shuffled: float
    padding_grouped: float
    flops: int
    hours: float


def default_passes(template: str) -> int:
    """Where only the projector learns (`plain`), or of full fine-tuning; both with activation checkpointing."""
    describes = is_for_captions(template)
    return training_passes(trains_language_model=not describes, activation_checkpointing=True)


def visual_tokens_of(
    compressions: Sequence[str], decoder: DecoderShape, vision: Vision, family: str = "llava_llama"
) -> tuple[int, ...]:
    """Tokens that one image, or whatever is seen, becomes on its way into the decoder.

    Raises:
        ValueError: if a compression does not exist or does not fit the model.
    """
    configs = list(map(CompressionConfig.resolve, compressions))
    tokens = tuple(visual_tokens_per_layer(config, decoder.layers, vision)[0] for config in configs)
    for config in configs:
        config.check_made_for(family, decoder.layers)
    return tokens


def figures(
    result: CheckResult, assumed: CostAssumptions, decoder: DecoderShape, image: Vision, video: SeenMedium | None = None
) -> dict[str, BudgetFigures]:
    """Statistics and cost at every budget of the check.

    Args:
        result: result of the check.
        assumed: what costs depend on.
        decoder: dimensions of the language model.
        image, video: as the model sees them; None for a model that is trained on no videos.
    """
    epoch, media = epoch_of(result), (seen(image), video)
    return {
        name: _figures(result, number, epoch, assumed, decoder, media)
        for number, name in enumerate(result.settings.budgets)
    }


def epoch_of(result: CheckResult) -> NDArray[np.int64]:
    """Indices of the good records as often as an epoch sees them.

    As in a training run on the good records: a source of weight 2.25 comes twice, and a quarter of it once more.
    """
    good, parts, offset = result.good, [], 0
    for source in result.sources:
        own = good[(good >= offset) & (good < offset + len(source.objects))]
        if len(own):
            as_source = Source(source.path, weight=source.weight, part=source.part)
            parts.append(own[rows_of(len(own), as_source, source.seed)])
        offset += len(source.objects)
    return np.concatenate(parts) if parts else good


def padding_share(lengths: NDArray[np.int64], order: Sequence[int], batch_size: int) -> float:
    """Share (0 to 1) of the positions of padded batches that is padding.

    Args:
        lengths: lengths of the samples [n].
        order: their indices in the order of training.
        batch_size: samples that are padded together.
    """
    ordered = lengths[np.asarray(order, dtype=np.int64)]
    starts = np.arange(0, len(ordered), batch_size)
    if not len(starts):
        return 0.0
    sizes = np.diff(np.append(starts, len(ordered)))
    positions = int((np.maximum.reduceat(ordered, starts) * sizes).sum())
    return 1 - int(ordered.sum()) / max(positions, 1)


def _figures(
    result: CheckResult,
    number: int,
    epoch: NDArray[np.int64],
    assumed: CostAssumptions,
    decoder: DecoderShape,
    media: tuple[SeenMedium, SeenMedium | None],
) -> BudgetFigures:
    config, settings = CompressionConfig.resolve(result.settings.budgets[number]), result.settings
    columns = (result.text, result.visual, result.images, result.videos)
    samples = np.stack([column[epoch, number] for column in columns], axis=1)
    text, lengths = samples[:, 0], samples[:, 0] + samples[:, 1]
    flops = _epoch_flops(samples, config, assumed.passes, decoder, media)
    images, videos = result.num_images[epoch], result.num_videos[epoch]
    each = [
        sum(settings.counts(kind, number)) if some.any() else 0 for kind, some in (("image", images), ("video", videos))
    ]
    guesses = result.num_words[epoch] + each[0] * images + each[1] * videos  # what the trainer groups by
    kinds = (images > 0) | (videos > 0)
    shuffled = EpochSampler(len(epoch), SEED, assumed.batch_size, assumed.devices)
    grouped = EpochSampler(len(epoch), SEED, assumed.batch_size, assumed.devices, lengths=guesses, kinds=kinds)
    some = len(epoch) > 0
    of_image = tokens_per_layer(config.t2v, settings.visual_tokens[number], decoder.layers)
    return BudgetFigures(
        average_visual_tokens=average_visual_tokens(of_image),
        mean_text_tokens=float(text.mean()) if some else 0.0,
        mean_sequence_tokens=float(lengths.mean()) if some else 0.0,
        p95_sequence_tokens=float(np.percentile(lengths, 95)) if some else 0.0,
        max_sequence_tokens=int(lengths.max(initial=0)),
        truncated=int(result.truncated[:, number].sum()),
        unsupervised=int((result.encoded & ~result.supervised[:, number]).sum()),
        padding_shuffled=padding_share(lengths, shuffled.order(), assumed.batch_size),
        padding_grouped=padding_share(lengths, grouped.order(), assumed.batch_size),
        flops=flops,
        hours=assumed.hours(flops),
    )


def _epoch_flops(
    samples: NDArray[np.int64],
    config: CompressionConfig,
    passes: int,
    decoder: DecoderShape,
    media: tuple[SeenMedium, SeenMedium | None],
) -> int:
    """FLOPs of an epoch, summed over samples (text tokens, visual tokens, images, videos); equal ones once."""
    if not len(samples):
        return 0
    outside = [0 if one is None else _outside(one, config, decoder) for one in media]
    shapes, counts = np.unique(samples, axis=0, return_counts=True)
    total = 0
    for (text, visual, *shown), count in zip(shapes.tolist(), counts.tolist(), strict=True):
        layers = tokens_per_layer(config.t2v, visual, decoder.layers)
        language = training_flops(layers, text, decoder, images=0, passes=passes)
        total += count * (language + sum(one * number for one, number in zip(outside, shown, strict=True)))
    return total


def _outside(medium: SeenMedium, config: CompressionConfig, decoder: DecoderShape) -> int:
    """FLOPs of the frozen tower and the trained projector for one medium, as `training_flops` counts them."""
    return medium.flops() + 3 * medium.projector_flops(medium.visual_tokens(config.v2v), decoder.width)
