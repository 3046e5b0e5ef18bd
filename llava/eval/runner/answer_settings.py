"""The settings file beside answers: weights, budget, questions and generation settings that they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava.common.json_files import as_json, need, read_object
from llava.eval.benchmarks.questions import Question

SETTINGS_SUFFIX = ".settings.json"
_DESCRIBING: dict[str, dict[str, type]] = {
    "identity": {"questions": str, "compression": dict, "seed": int},
    "about": {"model": str, "compression": str, "versions": dict, "device": str, "settings": dict},
}
_OF_SESSION: dict[str, type] = {"device": str, "versions": dict, "batch_size": int, "num_gpus": int, "answers": int}
_REMOVE = "remove it and the answers beside it"


class OtherSettingsError(ValueError):
    """Answers that are there were given under other settings, or it is not recorded under which.

    Attributes:
        reason: what differs, as a main clause.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def hash_of(questions: Sequence[Question]) -> str:
    """SHA-256 of the questions in order: their texts, and the names (or content) of their images and videos."""
    digest = hashlib.sha256()
    for question in questions:
        shown = [hashlib.sha256(p).hexdigest() if isinstance(p, bytes) else p.name for p in question.images]
        video = None if question.video is None else question.video.name
        words = [question.question_id, question.text, question.recorded_prompt, shown, video]
        digest.update(json.dumps(words).encode())
    return digest.hexdigest()


def check_same(identity: Mapping[str, Any], path: Path, answers: Path, hint: str) -> None:
    """Refuse to mix answers that were given under other settings.

    Args:
        identity: what answers would belong to now, plain JSON values.
        path: settings file of the answers that are there, if any are.
        answers: their file, for the message.
        hint: what to do where one wants to start anew.

    Raises:
        OtherSettingsError: names what changed.
    """
    if not path.is_file():
        reason = f"{path.name}, which says what they belong to, is gone"
        raise OtherSettingsError(reason, f"{answers} holds answers, but {reason}. {hint}")
    try:
        former = read_settings(path).get("identity", {})
    except ValueError as error:
        raise OtherSettingsError(f"{path.name} cannot be read", f"{error} {hint}") from error
    changes = "; ".join(_changes(former, json.loads(json.dumps(identity)), ""))
    if changes:
        raise OtherSettingsError(
            changes,
            f"The answers in {answers} were given under other settings: {changes}. Use the former settings, or choose "
            f"another place for new answers. {hint}",
        )


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a settings file: `identity`, what the answers belong to; `run`, the name of the run, as in
    `llava.eval.runner.answer_file.AnswerFile`; and `about`, what else a reader of the results wants to know.

    Raises:
        ValueError: if it is not one.
    """
    content = read_object(path, _REMOVE, strict=False)
    with _to_remove():
        for key, kind in (("identity", dict), ("run", str), ("about", dict)):
            need(content, key, kind, str(path), optional=True)
        sessions = need(content.get("about") or {}, "sessions", list, f"{path}: about", optional=True)
        for number, session in enumerate(sessions or (), start=1):
            need({"session": session}, "session", dict, f"{path}: about, number {number}")
            for name, expected in _OF_SESSION.items():
                need(session, name, expected, f"{path}: about, session {number}")
    return content


def read_described(path: Path) -> dict[str, Any]:
    """What `read_settings` gives, with all that a score says about its answers: `run`, and these parts of the others.

    Raises:
        ValueError: if one is missing or of another type; names it.
    """
    content = read_settings(path)
    with _to_remove():
        need(content, "run", str, str(path))
        for part, kinds in _DESCRIBING.items():
            values = need(content, part, dict, str(path))
            for key, kind in kinds.items():
                need(values, key, kind, f"{path}: {part}")
    return content


@contextmanager
def _to_remove() -> Iterator[None]:
    """Say of a field that is wrong what to do about the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error.args[0].removesuffix('.')}: {_REMOVE}.") from error


def _changes(old: Any, new: Any, name: str) -> Iterator[str]:
    """What differs between two settings, a clause for each value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _changes(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        if name == "questions":
            yield "the questions are not the same"
        elif name.startswith("files."):
            role, _, file = name.removeprefix("files.").partition("/")
            how = "was not there" if old is None else "is gone" if new is None else "is another"
            yield f"{file} of the {role} {how}"
        else:
            yield f"{name} was {as_json(old)} and is {as_json(new)} now"
