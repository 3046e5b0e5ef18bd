"""Replies that a seeded generator has bent, read by everything that reads a judge's replies."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from llava.common.bounded_http import Response
from llava.eval.benchmarks.llava_bench import read_two_scores
from llava.eval.benchmarks.mmvet import read_score
from llava.eval.benchmarks.video_qa import read_match
from llava.eval.judging import chat_api
from llava.eval.judging.chat_api import ChatApi, ChatError
from llava.eval.judging.judge import Judge, JudgeRequest

KEY = "sk-proj-Zq3vX9Lw77"
COUNT = 600
STATUSES = (*(200,) * 40, 204, 301, 400, 401, 404, 418, 429, 500, 599)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "8 9",
    "7.5,6",
    "nan nan",
    "1e999 3",
    "0.4",
    ".5",
    "{'pred': 'yes', 'score': 4.8}",
    '{"pred":"no","score":' + "9" * 5000 + "}",
    "\ud800",
    "\x1b[2J\x07",
    "\u202e",
    f"Bearer {KEY}",
    KEY[:11],
    "x" * 5000,
    [],
    {},
    [{}],
    [[]],
    {"message": None},
    [{"message": {"content": "8 9"}}],
    "content_filter",
    "max_tokens",
    "temperature",
)
TEXTS = tuple(value for value in VALUES if isinstance(value, str))
HEADERS = ("", "5", "-1", "nan", "inf", "1e400", "soon", "Wed, 21 Oct 2099 07:28:00 GMT", "\x1b[2J", KEY)


def bent(draw: random.Random) -> bytes:
    """The body of a reply: a chat completion with other values, keys, bytes, depth or length."""
    message: dict[str, Any] = {"role": "assistant", "content": draw.choice(VALUES + TEXTS * 3)}
    answer: Any = {"model": draw.choice(VALUES), "choices": [{"message": message}], "error": draw.choice(VALUES)}
    for holder in (message, answer["choices"][0], answer):
        if draw.random() < 0.08:
            holder[draw.choice(list(holder))] = draw.choice(VALUES)
        if draw.random() < 0.05:
            holder.pop(draw.choice(list(holder)))
    if draw.random() < 0.1:
        answer = draw.choice(VALUES)
    body = bytearray(json.dumps(answer, ensure_ascii=draw.random() < 0.7).encode("utf-8", "surrogatepass"))
    for _ in range(draw.choice((0, 0, 0, 0, 0, 0, 1, 3))):
        body[draw.randrange(len(body))] = draw.randrange(256)
    return draw.choice((bytes(body),) * 20 + (b"[" * 3000 + bytes(body), bytes(body[: len(body) // 2]), b"\xff" + body))


def test_no_bent_reply_ends_in_anything_but_a_verdict_or_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(12)
    came: dict[str, int] = {"verdict": 0, "ungraded": 0, "sentence": 0}

    def fetch(address: str, **options: Any) -> Response:
        headers = {"retry-after": draw.choice(HEADERS)}
        return Response(draw.choice(STATUSES), headers, bent(draw), address)

    monkeypatch.setattr(chat_api, "fetch", fetch)
    for number in range(COUNT):
        judge = Judge(ChatApi("http://host.example/v1", "judge", KEY, attempts=2, first_pause=0.0), workers=1)
        monkeypatch.setattr(chat_api, "LONGEST_PAUSE", 0.0)
        task = JudgeRequest(({"role": "user", "content": f"q\ud800{number}"},), {"question_id": number})
        parse = draw.choice((read_two_scores, read_score, read_match))
        try:
            (verdict,) = judge.grade([task], parse, tmp_path / "reviews.jsonl", "Again.", 8)
        except ChatError as error:
            came["sentence"] += 1
            assert str(error).isprintable() and KEY[:8] not in str(error) and len(str(error)) < 1000
        else:
            came["ungraded" if verdict.grade is None else "verdict"] += 1
            assert verdict.model.isprintable() and KEY[:8] not in verdict.text + verdict.model
    assert all(count > COUNT / 50 for count in came.values()), came
    content = (tmp_path / "reviews.jsonl").read_text()
    assert KEY[:8] not in content and len(content.splitlines()) == COUNT - came["sentence"]
