"""The page of `python -m llava.serve.web` on a tiny model: what answers its events, without a browser."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llava.inference.engine import Engine, ModelSpec
from llava.inference.generation import GenerationSettings
from llava.serve.web.example_questions import example_questions
from llava.serve.web.handlers import Handlers
from llava.serve.web.offered_budgets import OfferedBudgets
from llava.serve.web.uploads import UploadFolder
from llava.serve.web.visitors import Visitor, Visitors

NAMES = ("chat_a", "chat_b", "status", "question", "pictures", "comparison", "patches_a", "patches_b")
"""What a question changes, in the order in which `Handlers.ask` gives it."""


class Site:
    """Handlers over a model that lies in a folder."""

    def __init__(self, model: Path, **budgets: Any) -> None:
        self.folder = UploadFolder()
        engine = Engine.open(ModelSpec(str(model)), "cpu")
        self.budgets = OfferedBudgets(engine.model, engine.inputs, **budgets)
        examples = example_questions(str(model), engine.inputs)
        self.handlers = Handlers(engine, self.budgets, examples, self.folder)
        self.visitors = Visitors(engine, GenerationSettings(0, max_new_tokens=4))
        self.sliders = self.budgets.sliders_of(engine.model.compression)

    def visitor(self, name: str) -> Visitor:
        """The visitor behind a browser tab of that name."""
        return self.visitors.of(SimpleNamespace(session_hash=name))

    def upload(self, visitor: Visitor, *files: Path) -> tuple[str, str]:
        """Upload copies, as gradio lays them down; the pictures that wait and what was refused, as HTML."""
        names = []
        for number, file in enumerate(files):
            place = self.folder.path / f"hash-{number}"
            place.mkdir()
            names.append(str(shutil.copy(file, place / file.name)))
        _, pictures, status = self.handlers.upload(visitor, names)
        return pictures, status

    def ask(self, visitor: Visitor, question: str, compare: bool = True, **options: Any) -> dict[str, str]:
        """Ask, and the page as it stands afterwards: the last value of each component."""
        names = options.get("names", ("the model's own budget", "no compression"))
        sliders = options.get("sliders", (self.sliders, self.sliders))
        shown: dict[str, str] = {}
        for row in self.handlers.ask(visitor, question, compare, names, sliders):
            shown |= {name: value for name, value in zip(NAMES, row, strict=True) if value is not None}
        return shown
