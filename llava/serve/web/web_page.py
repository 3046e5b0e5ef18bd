"""The page itself: which components there are, where they stand, and which events they send to `Handlers`.

Gradio is imported when the page is made, for nothing else needs it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from importlib import resources
from typing import Any

from llava.common.presets import family_of
from llava.compression.config import T2V_QUERIES
from llava.serve.web.comparison import comparison_html
from llava.serve.web.example_questions import ExampleQuestion
from llava.serve.web.handlers import LONGEST_QUESTION, Handlers, fits
from llava.serve.web.offered_budgets import BY_HAND, DROPS, NONE, OWN, Sliders
from llava.serve.web.patch_view import patch_view_html
from llava.serve.web.shown_messages import conversation_html, data_address, waiting_html
from llava.serve.web.uploads import MOST_UPLOAD_BYTES, ServesNoFiles
from llava.serve.web.visitors import Visitor, Visitors

_PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
_AT_ONCE = {**_PRIVATE, "queue": False}
_NARROW = 280
"""Fewest pixels of a column; below twice as many they stand under each other."""


class WebPage:
    """The page for one model.

    Args:
        handlers: answers to its events.
        visitors: the conversations.
        name: name of the model.
        waiting: questions that may wait for an answer; further ones are refused.

    Attributes:
        handlers, visitors: as given.
        blocks: gradio's `Blocks`; `launch` takes `launch_options`.
    """

    def __init__(self, handlers: Handlers, visitors: Visitors, name: str, waiting: int) -> None:
        import gradio

        self._gr, self.handlers, self.visitors = gradio, handlers, visitors
        with gradio.Blocks(title="DUET-LLaVA", analytics_enabled=False, fill_width=True) as self.blocks:
            self._html(_head(handlers.engine.model, name))
            with gradio.Row(equal_height=False):
                with gradio.Column(scale=4, min_width=_NARROW):
                    self._place_question()
                with gradio.Column(scale=9, min_width=_NARROW):
                    self._names: list[Any] = []
                    self._sliders: list[tuple[list[Any], Any]] = []
                    self._chats: list[Any] = []
                    self._columns: list[Any] = []
                    with gradio.Row(equal_height=False):
                        for number, usual in enumerate((OWN, NONE)):
                            self._place_side(number, usual)
                    self._html("<h2>What it cost</h2>")
                    self._compared = self._html(comparison_html((), ()), elem_id="comparison")
            self._html("<h2>What became of the patches</h2>")
            with gradio.Row(equal_height=False):
                self._views = [self._place_view(number) for number in range(2)]
            self._connect()
        self.blocks.queue(max_size=waiting, default_concurrency_limit=1, api_open=False)

    def launch_options(self) -> dict[str, Any]:
        """Options of `launch`: nothing is shared, served or fetched that the page does not need."""
        from starlette.middleware import Middleware

        fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
        themes = self._gr.themes
        return {
            "theme": themes.Default(font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"]),
            "css": page_text("page.css") + _backgrounds(self.handlers.examples),
            "js": page_text("page.js"),
            "app_kwargs": {"middleware": [Middleware(ServesNoFiles)]},
            "max_file_size": MOST_UPLOAD_BYTES,
            "footer_links": [],
            "share": False,
            "ssr_mode": False,
            "run_history": False,
            "enable_monitoring": False,
            "mcp_server": False,
            "pwa": False,
            "inline": False,
            "quiet": True,
            "prevent_thread_lock": True,
        }

    # === Components ===

    def _html(self, value: str, **options: Any) -> Any:
        return self._gr.HTML(value, js_on_load=None, **options)

    def _place_question(self) -> None:
        gr = self._gr
        self._files = gr.File(
            label="Pictures and videos", file_count="multiple", height=150, elem_id="upload", type="filepath"
        )
        self._thumbs = self._html(waiting_html(()), elem_id="pictures")
        self._clear = gr.Button("Take the pictures away", size="sm", elem_id="clear")
        self._question = gr.Textbox(label="Question", lines=2, max_length=LONGEST_QUESTION, elem_id="question")
        with gr.Row():
            self._ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=70)
            self._stop = gr.Button("Stop", elem_id="stop", min_width=70)
            self._new = gr.Button("New conversation", elem_id="new", min_width=130)
        self._compare = gr.Checkbox(True, label="Answer under both budgets, side by side", elem_id="compare")
        self._status = self._html("", elem_id="status")
        if self.handlers.examples:
            self._html("<h3>Examples</h3>")
        self._examples = [
            gr.Button(example.text, elem_id=f"example-{number}", elem_classes=["dv-example"])
            for number, example in enumerate(self.handlers.examples)
        ]

    def _place_side(self, number: int, usual: str) -> None:
        gr, budgets = self._gr, self.handlers.budgets
        config = budgets.named[usual]
        with gr.Column(min_width=_NARROW, elem_id=f"side-{number}") as column:
            name = gr.Dropdown(
                [*budgets.named, BY_HAND], value=usual, label=f"Budget {'AB'[number]}", elem_id=f"budget-{number}"
            )
            said = self._html(fits(budgets.in_words(config)), elem_id=f"fits-{number}")
            with gr.Accordion("Set it by hand", open=False, elem_id=f"by-hand-{number}"):
                sliders = self._place_sliders(number, budgets.sliders_of(config))
            chat = self._html(conversation_html(()), elem_id=f"chat-{number}")
        self._names.append(name)
        self._sliders.append((sliders, said))
        self._chats.append(chat)
        self._columns.append(column)

    def _place_sliders(self, number: int, at: Sliders) -> list[Any]:
        """The controls in the order of `Sliders.values`."""
        gr, budgets = self._gr, self.handlers.budgets
        unit, merges, dominant, contextual, queries, *drops = (
            "tokens of an image" if budgets.counted else "% of an image's tokens",
            *at.values(),
        )
        placed = [
            gr.Checkbox(merges, label="V2V: merge behind the vision tower", elem_id=f"merges-{number}"),
            gr.Slider(1, budgets.most, dominant, step=1, label=f"V2V dominant, {unit}", elem_id=f"dominant-{number}"),
            gr.Slider(
                0, budgets.most, contextual, step=1, label=f"V2V contextual, {unit}", elem_id=f"contextual-{number}"
            ),
            gr.Radio(list(T2V_QUERIES), value=queries, label="T2V: tokens of the question that vote"),
        ]
        for drop in range(DROPS):
            layer, share = drops[2 * drop : 2 * drop + 2]
            what = f"T2V drop {drop + 1}"
            placed += [
                gr.Slider(
                    0,
                    budgets.layers,
                    layer,
                    step=1,
                    label=f"{what}: after layer (0: none)",
                    elem_id=f"layer-{number}-{drop}",
                ),
                gr.Slider(0, 100, share, step=0.5, label=f"{what}: % kept", elem_id=f"share-{number}-{drop}"),
            ]
        return placed

    def _place_view(self, number: int) -> Any:
        with self._gr.Column(min_width=_NARROW, elem_id=f"patches-{number}") as column:
            self._html(f"<h3>Budget {'AB'[number]}</h3>")
            view = self._html(patch_view_html(None, ""), elem_id=f"view-{number}")
        self._columns.append(column)
        return view

    # === Events ===

    def _connect(self) -> None:
        handlers = self.handlers
        for name, (sliders, said) in zip(self._names, self._sliders, strict=True):
            name.input(handlers.named, [name, *sliders], [said, *sliders], **_AT_ONCE)
            for slider in sliders:
                slider.input(handlers.moved, sliders, [name, said], trigger_mode="always_last", **_AT_ONCE)
        self._files.upload(
            self._visiting(handlers.upload),
            self._files,
            [self._files, self._thumbs, self._status],
            concurrency_id="upload",
            **_PRIVATE,
        )
        for number, button in enumerate(self._examples):
            chosen = self._visiting(partial(handlers.example, number=number))
            button.click(chosen, None, [self._thumbs, self._question, self._status], **_AT_ONCE)
        self._clear.click(self._visiting(handlers.clear_pictures), None, [self._thumbs, self._status], **_AT_ONCE)
        answers = [*self._chats, self._status, self._question, self._thumbs, self._compared, *self._views]
        given = [self._question, self._compare, *self._names, *self._sliders[0][0], *self._sliders[1][0]]
        for event in (self._ask.click, self._question.submit):
            event(
                self._visiting(partial(_ask, handlers), self._gr.skip()),
                given,
                answers,
                concurrency_limit=1,
                concurrency_id="model",
                **_PRIVATE,
            )
        self._stop.click(self._visiting(handlers.stop), None, None, **_AT_ONCE)
        self._new.click(self._visiting(handlers.new), None, answers, **_AT_ONCE)
        second = [self._columns[1], self._columns[3]]
        shown = self._gr.update
        self._compare.input(lambda both: [shown(visible=both)] * 2, self._compare, second, **_AT_ONCE)
        self.blocks.unload(self._with_request(lambda request: self.visitors.leave(request)))

    def _visiting(self, answer: Callable[..., Any], unchanged: Any = None) -> Callable[..., Any]:
        """An event's function that is told whose browser asks; None in what a generator yields leaves a component."""
        visitors = self.visitors
        if not inspect.isgeneratorfunction(getattr(answer, "func", answer)):
            return self._with_request(lambda request, *values: answer(visitors.of(request), *values))

        def stream(request: Any, *values: Any) -> Iterator[list[Any]]:
            for row in answer(visitors.of(request), *values):
                yield [unchanged if one is None else one for one in row]

        return self._with_request(stream)

    def _with_request(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Gradio hands its `Request` to the parameter that is annotated so."""
        function.__annotations__["request"] = self._gr.Request
        return function


def _ask(
    handlers: Handlers, visitor: Visitor, question: str, compare: bool, first: str, second: str, *values: Any
) -> Iterator[tuple[Any, ...]]:
    """The values of all controls, brought into the form that `Handlers.ask` takes."""
    half = len(values) // 2
    sliders = (Sliders.at(values[:half]), Sliders.at(values[half:]))
    yield from handlers.ask(visitor, question or "", bool(compare), (str(first), str(second)), sliders)


def page_text(name: str) -> str:
    """A file that lies beside this module."""
    return resources.files("llava.serve.web").joinpath(name).read_text("utf-8")


def _backgrounds(examples: Sequence[ExampleQuestion]) -> str:
    """Rules that put the pictures of the examples on their buttons."""
    rules = []
    for number, example in enumerate(examples):
        rules.append(f"#example-{number} {{ background-image: url({data_address(example.picture, 128)}); }}")
    return "\n".join(rules)


def _head(model: Any, name: str) -> str:
    """What is being asked, in a line."""
    told = f"{name}: {family_of(model.config)}, {len(model.decoder.layers)} decoder layers, on {model.device}"
    return (
        '<header class="dv-head"><h1>DUET-LLaVA</h1>'
        f"<p>{escape(told)}. Show a picture, ask, and see which of its patches the answer needed.</p></header>"
    )
