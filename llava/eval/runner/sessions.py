"""The sessions of a run: how many answers each start of the command gave, on which device and with which versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN_DEVICE = "unknown device"
"""Device of a session that was killed before its model was loaded."""

Session = dict[str, Any]
"""One run of a command: `device`, `versions`, `batch_size`, `num_gpus`, and how many `answers` it gave."""


def counted(sessions: Sequence[Session], answered: int) -> list[Session]:
    """The sessions with the number of answers of the last one filled in; sessions without an answer are left out.

    Args:
        sessions: sessions in order.
        answered: answers of all of them.
    """
    if not sessions:
        return []
    former = sum(session["answers"] for session in sessions[:-1])
    last = {**sessions[-1], "answers": max(0, answered - former)}
    return [session for session in (*sessions[:-1], last) if session["answers"]]


def described(about: Mapping[str, Any], sessions: Sequence[Session]) -> dict[str, Any]:
    """What the settings file tells a reader of the results: about all sessions, and each of them.

    Args:
        about: the same for all; its `settings` get `batch_size` and `num_gpus`, a list where sessions differ.
        sessions: sessions in order.
    """
    packages = dict.fromkeys(name for session in sessions for name in session["versions"])
    settings = dict(about.get("settings", {}))
    for name in ("batch_size", "num_gpus"):
        values = _different(session[name] for session in sessions)
        if values:
            settings[name] = values[0] if len(values) == 1 else values
    return {
        **about,
        "settings": settings,
        "device": "; ".join(_different(session["device"] for session in sessions)),
        "versions": {
            name: "; ".join(_different(session["versions"].get(name, "not installed") for session in sessions))
            for name in packages
        },
        "sessions": list(sessions),
    }


def _different(values: Any) -> list[Any]:
    """Each value once, in order."""
    return list(dict.fromkeys(values))
