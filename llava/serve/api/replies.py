"""Bodies of replies as OpenAI's clients read them; what they do not know stands beside what they do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.inference.row_batches import LENGTH, RowAnswer


@dataclass(frozen=True)
class ReplyForm:
    """What all bodies of one reply have in common.

    Attributes:
        number: id of the reply.
        model: name of the model.
        created: time in seconds since 1970.
    """

    number: str
    model: str
    created: int

    def whole(self, answers: Sequence[RowAnswer]) -> dict[str, Any]:
        """The reply to a request that waits for all of it."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": None,
                "finish_reason": finish_reason(answer),
            }
            for index, answer in enumerate(answers)
        ]
        return self._body("chat.completion", choices) | {"usage": usage(answers)}

    def piece(self, index: int, delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        """A piece of a stream."""
        choice = {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": reason}
        return self._body("chat.completion.chunk", [choice])

    def last(self, answers: Sequence[RowAnswer]) -> dict[str, Any]:
        """The end of a stream that was asked to say what it took."""
        return self._body("chat.completion.chunk", []) | {"usage": usage(answers)}

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.number,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": choices,
        }


def finish_reason(answer: RowAnswer) -> str:
    """Why an answer ended, as OpenAI says it."""
    return "length" if answer.ended == LENGTH else "stop"


def usage(answers: Sequence[RowAnswer]) -> dict[str, Any]:
    """What a request took: its prompt counts once, as it enters the language model."""
    first, completion = answers[0], sum(answer.tokens for answer in answers)
    prompt = first.text_tokens + first.visual.entered
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "visual_tokens": {
            "before": first.visual.before,
            "after_v2v": first.visual.entered,
            "average_over_layers": round(first.visual.average, 4),
        },
    }


def event(body: Mapping[str, Any] | str) -> str:
    """A server-sent event."""
    return f"data: {body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)}\n\n"
