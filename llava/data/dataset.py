"""The training data set: LLaVA records whose text is tokenised, and whose images are read, on access."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from llava.common.shown import shown
from llava.compression.salience import salient_spans
from llava.constants import IGNORE_INDEX
from llava.data.cache import digest_text
from llava.data.families.base import ModelInputs
from llava.data.images import BadImageError, image_path, open_rgb
from llava.data.mixture import RecordMix, open_mix
from llava.data.records import Record
from llava.data.salient import SalientFinder
from llava.data.store import row_of
from llava.data.tokenization import EncodedText, truncate
from llava.data.tokens import RecordEncoder, token_table
from llava.data.video import open_video
from llava.model.splice import PlanSettings

logger = logging.getLogger(__name__)

BAD_SAMPLE_POLICIES = ("fail", "skip")


@dataclass(frozen=True)
class DataConfig:
    """How records become samples.

    Attributes:
        max_length: tokens the model takes, images expanded.
        visual_tokens: tokens that every image becomes on its way into the decoder; None where they differ, and
            samples are cut to their length when their media have been read.
        image_folder: where image names start, unless their source in a mixture has a folder of its own.
        video_folder: where names of videos start, likewise; None for the folder of the images.
        find_salient: says which words of a question are salient.
        salient_name: what `salient_words` calls that finder; without a name only the work of `salient_spans` is
            cached.
        on_bad_sample: what an image or a video that cannot be read does: `fail` raises; `skip` makes a sample of the
            same shape that teaches nothing, so that all ranks go on alike.
        pretokenise: encode the records of files once and keep the result; otherwise whenever a sample is asked for.
        cache_dir: where tables of files are kept; None for a folder in the cache of the `datasets` library.
        num_proc: processes that encode; None for as many as the size is worth.
        settings: settings of the model's plans, where images differ; None where the model plans itself.
        encoded_length: most ids of a text before its marks become visual tokens, where `visual_tokens` is None; None
            limits them as `max_length` does.
    """

    max_length: int
    visual_tokens: int | None
    image_folder: str | Path = "."
    find_salient: SalientFinder = salient_spans
    salient_name: str | None = None
    on_bad_sample: str = "fail"
    pretokenise: bool = True
    cache_dir: str | Path | None = None
    num_proc: int | None = None
    settings: PlanSettings | None = None
    video_folder: str | Path | None = None
    encoded_length: int | None = None

    def __post_init__(self) -> None:
        """Check the policy.

        Raises:
            ValueError: if there is no such policy.
        """
        if self.on_bad_sample not in BAD_SAMPLE_POLICIES:
            raise ValueError(f"on_bad_sample is {self.on_bad_sample!r}; accepted are {', '.join(BAD_SAMPLE_POLICIES)}.")

    @property
    def plan_settings(self) -> PlanSettings | None:
        """The settings; where all images are alike they may be left out."""
        if self.settings is None and self.visual_tokens is not None:
            return PlanSettings(self.visual_tokens, "last")
        return self.settings


class LazySupervisedDataset(Dataset):
    """LLaVA records as training samples.

    A sample is a dict: `input_ids`, `labels`, `query_mask` (int64 [T]), `images` (list of media in the order of their
    marks, as the family prepares them; empty for text), `sample_id`, `truncated`, and `problem`: None, or why a medium
    was left out. Such a one is blank, and no label of its sample is left.

    Args:
        records: the conversations, or the path of a file of them or of a YAML mixture of files, or several paths. Those
            of files are mapped from disk; see `llava.data.store`.
        inputs: `ModelInputs` of the trained model, with a fast tokenizer; its processor may be None without images.
        config: how records become samples.

    Raises:
        ValueError: if a file or a record is faulty, or names media that the model cannot be shown.
    """

    records: Sequence[Record]

    def __init__(
        self, records: Sequence[Record] | str | Path | Sequence[str | Path], inputs: ModelInputs, config: DataConfig
    ) -> None:
        self.records = _opened(records, config)
        self.inputs = inputs
        self.config = config
        if inputs.processor is None and self.has_image.any():
            raise ValueError("The data holds images, but the model has no vision tower; give --vision_tower.")
        self._require_trainable_videos()
        self._encoder = RecordEncoder(inputs, config.find_salient, config.salient_name)
        self._tokens = self._tokenise() if config.pretokenise else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        cut_later = self.config.visual_tokens is None or bool(record.videos)  # the frames of a video stay together
        encoded = self._text(index) if cut_later else self.encode(index)
        media, problem = self._media(record, encoded.num_images)
        if problem is not None:
            encoded = replace(encoded, labels=[IGNORE_INDEX] * len(encoded.labels))
        sample = self.inputs.sample(encoded, media)
        if cut_later:
            try:
                if self.config.encoded_length is not None:
                    sample = self.inputs.cut_encoded(sample, self.config.encoded_length)
                sample = self.inputs.cut(sample, self.config.max_length, self.config.plan_settings)
            except ValueError as error:
                raise ValueError(f"record {record.id!r}: {error}") from error
        return sample | {"sample_id": record.id, "problem": problem}

    def encode(self, index: int) -> EncodedText:
        """The text of one sample; no image is opened. Cut to the model's length where all images are alike.

        Raises:
            ValueError: if the record does not go with the template; names it.
        """
        if self.config.visual_tokens is None:
            return self._text(index)
        return truncate(self._text(index), self.config.max_length, self.config.visual_tokens)

    def expected_length(self, index: int, encoded: EncodedText) -> int:
        """Tokens of a sample in the language model, exact where all images are alike.

        Args:
            index: number of the sample.
            encoded: what `encode` gave for it.
        """
        if self.config.visual_tokens is not None:
            return encoded.expanded_length(self.config.visual_tokens)
        record = self.records[index]
        usual = self._usual_tokens
        visual = usual["image"] * len(record.images) + usual["video"] * len(record.videos)
        return int((np.asarray(encoded.input_ids) >= 0).sum()) + visual

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Rough length of every sample in tokens: words of text and the usual tokens of its images and videos."""
        usual = self._usual_tokens
        return (
            self._column("num_words")
            + usual["image"] * self._column("num_images")
            + usual["video"] * self._column("num_videos")
        )

    @functools.cached_property
    def _usual_tokens(self) -> dict[str, int]:
        """Tokens of an image and of a video, before any is looked at."""
        each, settings = self.config.visual_tokens, self.config.settings
        if each is not None:
            return {"image": each, "video": each * self.inputs.video_marks}
        some = {kind: bool(self._column(f"num_{kind}s").any()) for kind in ("image", "video")}
        return {kind: self.inputs.usual_tokens(kind, settings) if there else 0 for kind, there in some.items()}

    @property
    def has_image(self) -> NDArray[np.bool_]:
        """Which samples show an image or a video."""
        return (self._column("num_images") > 0) | (self._column("num_videos") > 0)

    @property
    def fingerprint(self) -> str:
        """Digest of the samples and their order; paths and the content of images do not enter."""
        if isinstance(self.records, RecordMix):
            return self.records.fingerprint
        return digest_text(json.dumps(row_of(record)) for record in self.records)

    def describe(self) -> str:
        """Where the samples come from, a line for every source."""
        if isinstance(self.records, RecordMix):
            return self.records.describe()
        return f"{len(self.records):,} records in memory"

    def _tokenise(self) -> list[Any] | None:
        """The token table of every source; None for records in memory, or if they cannot be cached."""
        if not isinstance(self.records, RecordMix):
            return None
        config = self.config
        tables = [token_table(table, self._encoder, config.cache_dir, config.num_proc) for table in self.records.tables]
        if None in tables:
            logger.info(
                "Samples are encoded as needed: the finder of salient words has no name to keep its work under, or the "
                "family's class no source text."
            )
            return None
        return tables

    def _text(self, index: int) -> EncodedText:
        if self._tokens is None or not isinstance(self.records, RecordMix):
            return self._encoder.encode(self.records[index])
        table, row = self.records.place(index)
        return EncodedText(**self._tokens[table][row])

    def _column(self, name: str) -> NDArray[np.int64]:
        if isinstance(self.records, RecordMix):
            return self.records.column(name)
        numbers = {
            "num_words": lambda record: record.num_words,
            "num_images": lambda record: len(record.images),
            "num_videos": lambda record: len(record.videos),
        }
        return np.fromiter(map(numbers[name], self.records), dtype=np.int64, count=len(self.records))

    def _media(self, record: Record, marks: int) -> tuple[list[Any], str | None]:
        """The media of the first so many marks, prepared, and what is wrong with them."""
        media: list[Any] = []
        problems = []
        for kind, name in record.media:
            if sum(map(self.inputs.marks, media)) >= marks:
                break
            try:
                media += self._read(record, kind, name)
            except BadImageError as error:
                if self.config.on_bad_sample == "fail":
                    raise BadImageError(f"record {record.id!r}: {error}") from error
                problems.append(str(error))
                media += self.inputs.blanks(kind)
        return media, f"record {record.id!r}: {' '.join(problems)}" if problems else None

    def _read(self, record: Record, kind: str, name: str) -> list[Any]:
        """One image or one video of a record, prepared.

        Raises:
            BadImageError: if it cannot be read or shown.
        """
        images = record.image_folder or self.config.image_folder
        if kind == "image":
            path = image_path(images, name)
            image = open_rgb(path, self.inputs.image_opening)
            return [self.inputs.image(image, f"Image file {str(path)!r}")]
        path = image_path(record.video_folder or self.config.video_folder or images, name, kind)
        frames = open_video(path, self.inputs.frame_numbers, self.inputs.image_opening)
        try:
            return self.inputs.video(frames, f"Video {str(path)!r}")
        except BadImageError:
            raise
        except ValueError as error:
            raise BadImageError(f"Video {str(path)!r} cannot be shown: {error}") from error

    def _require_trainable_videos(self) -> None:
        """Raise ValueError where records name videos and the model is not trained on any."""
        with_videos = np.flatnonzero(self._column("num_videos"))
        if not len(with_videos) or self.inputs.trains_on_videos:
            return
        record = self.records[int(with_videos[0])]
        raise ValueError(
            f"{len(with_videos):,} of {len(self):,} records name videos (the first is record {record.id!r}: "
            f"{shown(record.videos[0])}), but this model is trained on images and text alone. Train one that is shown "
            "videos (docs/backbones.md), or take these records out."
        )


def _opened(records: Any, config: DataConfig) -> Sequence[Record]:
    """Records as given, or those of the files that are named."""
    if isinstance(records, str | Path):
        return open_mix(records, config.cache_dir)
    if isinstance(records, list | tuple) and records and all(isinstance(record, str | Path) for record in records):
        return open_mix(records, config.cache_dir)
    given: Sequence[Record] = records
    return given
