"""What the local tasks show, ask and count; the questions lie in the folder that lmms-eval is started in."""

from __future__ import annotations

from typing import Any

from PIL import Image


def visuals(doc: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(doc["image"]).convert("RGB")]


def question(doc: dict[str, Any], **_: Any) -> str:
    return str(doc["question"])


def count(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"as_expected": float(results[0] == doc["answer"])}
