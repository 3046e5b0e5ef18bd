"""A page on which people show pictures to a model, ask, and see what each budget of visual tokens keeps and costs.

python -m llava.serve.web                                   # the quickstart's model
python -m llava.serve.web --model-path CHECKPOINT --budgets mine.yaml
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from llava.common.number_flags import count
from llava.common.outside_files import in_words
from llava.common.path_flags import FILE_TO_READ, FOLDER_TO_READ
from llava.common.program import as_program
from llava.common.shown import say
from llava.inference.chat import Chat
from llava.inference.engine import Engine
from llava.inference.generation import GenerationSettings
from llava.inference.loading_flags import add_asking_flags, add_loading_flags, asked_settings, check_device, open_engine
from llava.serve.usual_model import USUAL, quickstart_model
from llava.serve.web.example_questions import ExampleQuestion, example_questions
from llava.serve.web.handlers import Handlers
from llava.serve.web.offered_budgets import OfferedBudgets
from llava.serve.web.uploads import UploadFolder, quiet_libraries
from llava.serve.web.visitors import Visitors
from llava.serve.web.web_page import WebPage

ROOT = Path(__file__).resolve().parents[3]
QUICKSTART_BUDGETS = ROOT / "playground" / "quickstart"
HERE = "127.0.0.1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line until it is stopped; returns its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    folder = UploadFolder()
    try:
        page = open_page(options, folder)
        address = launched(page, options)
        say(f"The page is at {address} (Ctrl-C ends it).")
        if options.host != HERE:
            say("It is not bound to this machine alone: whoever reaches that address can ask the model.")
        wait_for_the_end()
        page.blocks.close(verbose=False)
    except (ValueError, OSError) as error:
        say(in_words(error), file=sys.stderr)
        return 2
    finally:
        folder.close()
    return 0


def open_page(options: argparse.Namespace, folder: UploadFolder) -> WebPage:
    """Load the model and make the page.

    Args:
        options: what the command line says.
        folder: folder that uploads lie in.

    Raises:
        ValueError: if there is no model, an option does not fit it, or gradio is not installed.
    """
    check_device(options.device)
    options.model_path = options.model_path or quickstart_model()
    quiet_libraries()
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("The page needs gradio: pip install -c constraints.txt -e '.[serve]'.")
    settings = asked_settings(options)
    engine = open_engine(options)
    budgets = OfferedBudgets(engine.model, engine.inputs, options.budgets or _quickstart_budgets(options.model_path))
    examples = example_questions(options.model_path, engine.inputs, options.examples)
    warm_up(engine, examples)
    visitors = Visitors(engine, settings)
    return WebPage(Handlers(engine, budgets, examples, folder), visitors, options.model_path, options.waiting)


def warm_up(engine: Engine, examples: Sequence[ExampleQuestion]) -> None:
    """Answer once, so that the first visitor does not measure how memory is claimed and kernels are chosen."""
    for example in examples[:1]:
        for budget in (None, "none"):
            chat = Chat.over(engine, GenerationSettings(temperature=0, max_new_tokens=2), budget)
            for _ in chat.ask(example.text, [example.shown]):
                continue


def launched(page: WebPage, options: argparse.Namespace) -> str:
    """Serve the page in a thread; returns its address.

    Raises:
        ValueError: if its port is taken.
    """
    try:
        _, address, shared = page.blocks.launch(
            server_name=options.host,
            server_port=options.port or None,
            **page.launch_options() | {"share": options.share},
        )
    except OSError as error:
        raise ValueError(
            f"--port is {options.port}, which cannot be opened on {options.host}; choose another."
        ) from error
    return str(shared or address)


def _quickstart_budgets(model_path: str) -> list[Path]:
    """The budgets that the quickstart evaluates, for a model that it trained."""
    if not (Path(model_path).resolve().parent / "data" / "test.jsonl").is_file():
        return []
    return sorted(QUICKSTART_BUDGETS.glob("*-[0-9][0-9].yaml"))


def wait_for_the_end() -> None:
    """Wait for Ctrl-C or SIGTERM."""
    ended = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = {number: signal.signal(number, lambda *_: ended.set()) for number in numbers}
    try:
        while not ended.wait(3600):
            continue
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.serve.web",
        description="A page to show a model pictures, ask, and see what each budget of visual tokens keeps and costs.",
    )
    add_loading_flags(parser, USUAL)
    add_asking_flags(parser)
    parser.set_defaults(temperature=0)
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=FILE_TO_READ,
        metavar="FILE.yaml",
        help="budgets to offer beside the presets that fit",
    )
    parser.add_argument(
        "--examples",
        type=FOLDER_TO_READ,
        help="folder with test.jsonl and images, as python -m playground.world writes it",
    )
    parser.add_argument("--host", default=HERE, help=f"address to listen on (default: {HERE}, this machine alone)")
    parser.add_argument(
        "--port", type=count(0, 65535), default=7860, help="port (default: 7860; 0: a free one from there)"
    )
    parser.add_argument(
        "--share", action="store_true", help="publish the page through gradio's servers; off by default"
    )
    parser.add_argument(
        "--waiting",
        type=count(),
        default=16,
        help="questions that may wait for an answer; more are refused (default: 16)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
