"""From the bytes of a request to a prompt that the model can be asked: read, checked, decoded and prepared.

Runs in threads beside the server's loop, for images take time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llava.common.json_files import NotJsonError, parse_json
from llava.compression.config import CompressionConfig
from llava.data.families.base import Sample
from llava.data.mark_words import words_of_others
from llava.inference.engine import Engine
from llava.inference.row_sampling import RowSettings
from llava.serve.api.completion_fields import AskingDefaults, CompletionRequest, read_completion
from llava.serve.api.failures import FAILED, ApiError, refused
from llava.serve.api.messages import SentConversation, SentMedium
from llava.serve.api.sent_media import MediaReader
from llava.serve.limits import ServingLimits

_CHARACTERS_OF_A_TOKEN = 32
"""On average over a conversation tokens have far fewer; longer texts are refused before they are cut into tokens."""


@dataclass(frozen=True)
class PreparedRequest:
    """A request whose prompt is ready for the model.

    Attributes:
        request: the request.
        sample: prompt as the family encodes it.
        compression: its budget, as the model's `checked` gives it.
        length: tokens of the prompt in the language model.
        rows: settings of each answer, none longer than the model can number.
    """

    request: CompletionRequest
    sample: Sample
    compression: CompressionConfig
    length: int
    rows: tuple[RowSettings, ...]


class RequestReader:
    """Makes prompts of requests.

    Args:
        engine: the model.
        defaults: what holds where a request says nothing.
        limits: bounds of the server.
        fetches: whether http(s) addresses of images are fetched.
    """

    def __init__(self, engine: Engine, defaults: AskingDefaults, limits: ServingLimits, fetches: bool = False) -> None:
        self._engine = engine
        self._defaults = defaults
        self._limits = limits
        self._media = MediaReader(engine.inputs, limits, fetches)

    def read(self, body: bytes, gone: Callable[[], bool] = lambda: False) -> PreparedRequest:
        """A request out of the bytes of its body.

        Args:
            body: JSON in UTF-8.
            gone: whether nobody waits for it any more; is asked before each image and video.

        Raises:
            ApiError: if it cannot be answered; says why.
        """
        try:
            value = parse_json(body, strict=True)
        except NotJsonError as error:
            raise refused(f"The body is not JSON: {error}.", code="invalid_json") from error
        request = read_completion(value, self._defaults, self._limits)
        self._check_characters(request.conversation)
        compression = self._budget(request.compression)
        try:
            sample = self._sample(request.conversation, gone)
        except MemoryError as error:
            raise ApiError(
                413, "The images of the request take more memory than there is; send smaller ones."
            ) from error
        except OSError as error:
            raise ApiError(500, "The request could not be read: the server's disk fails or is full.", FAILED) from error
        return self._fitted(request, sample, compression)

    def _check_characters(self, conversation: SentConversation) -> None:
        """Refuse at once what would be refused anyway after minutes, in which no other request is prepared."""
        limit, characters = self._engine.inputs.limit, conversation.characters
        if characters > _CHARACTERS_OF_A_TOKEN * limit:
            raise refused(
                f"The texts of the conversation have {characters} characters, but the model can number {limit} tokens; "
                "send less.",
                "messages",
                "context_length_exceeded",
            )

    def _budget(self, asked: CompressionConfig | None) -> CompressionConfig:
        if asked is None:
            own: CompressionConfig = self._engine.model.compression
            return own
        try:
            model = self._engine.model
            asked.check_made_for(model.config, len(model.decoder.layers))  # first, for it says what is to be done
            checked: CompressionConfig = model.checked(asked)
        except ValueError as error:
            raise refused(str(error), "compression", "invalid_compression") from error
        return checked

    def _sample(self, conversation: SentConversation, gone: Callable[[], bool]) -> Sample:
        inputs = self._engine.inputs
        turns: list[str] = []
        media: list[Any] = []
        numbers = {"image": 0, "video": 0}
        try:
            for turn in conversation.turns:
                if len(turns) % 2:  # the model's
                    turns.append(words_of_others("".join(map(str, turn)), ()))
                    continue
                parts: list[str | list[Any]] = []
                for part in turn:
                    if isinstance(part, SentMedium):
                        if gone():
                            raise ApiError(499, "Nobody waits for the answer any more.")
                        numbers[part.kind] += 1
                        parts.append(self._media.media(part, numbers[part.kind]))
                        media += parts[-1]
                    else:
                        parts.append(part)
                turns.append(inputs.asked(parts))
            system = None if conversation.system is None else words_of_others(conversation.system, ())
            return inputs.prompt(turns, media, system=system)
        except ValueError as error:
            raise refused(str(error), "messages") from error

    def _fitted(self, request: CompletionRequest, sample: Sample, compression: CompressionConfig) -> PreparedRequest:
        """See that prompt and answer have no more tokens than the model can number."""
        inputs = self._engine.inputs
        length = inputs.length(sample, self._engine.model.plan_settings(compression))
        room = inputs.limit - length
        longest = request.rows[0].max_new_tokens
        if room < 1 or (request.asked_length and longest > room):
            asked = f", and {longest} are asked for as the answer" if room > 0 else ""
            raise refused(
                f"The conversation takes {length} tokens{asked}, but the model can number {inputs.limit}; send less, "
                "ask for a shorter answer, or a smaller budget of visual tokens.",
                "messages",
                "context_length_exceeded",
            )
        rows = tuple(replace(row, max_new_tokens=min(longest, room)) for row in request.rows)
        return PreparedRequest(request, sample, compression, length, rows)
