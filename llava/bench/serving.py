"""Requests a second and latency of the API, at several numbers of clients and budgets of visual tokens.

python -m llava.bench.serving --clients 1 8 32 --json serving.json

Starts `python -m llava.serve.api` as a process of its own and asks it the quickstart's questions over HTTP, each client
the next as soon as its last is answered. Cells are measured in turn, several rounds of them, so that a change of the
machine's load touches all. Answers are greedy and compared: a question that is answered in two ways ends the run.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llava.common.atomic_write import write_whole
from llava.common.json_files import write_json
from llava.common.number_flags import count, positive
from llava.common.outputs import require_apart
from llava.common.outside_files import in_words
from llava.common.path_flags import FILE_TO_READ, FILE_TO_WRITE, FOLDER_TO_READ, MODEL
from llava.common.program import as_program
from llava.common.shown import say
from llava.compression.config import CompressionConfig
from llava.cost.machine import describe_machine
from llava.mm_utils import model_name_of
from llava.serve.api.access_keys import VARIABLE
from llava.serve.usual_model import USUAL, picture_questions, quickstart_model

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = (1, 8, 32)
BUDGETS = tuple(str(ROOT / "playground" / "quickstart" / f"{name}.yaml") for name in ("none", "duet-89"))
MARKS = "<!-- measured -->", "<!-- /measured -->"
"""Lines of a page between which the table stands."""
_BODIES = 256  # different questions
_WAIT = 120.0


@dataclass
class Cell:
    """What was measured at one budget and number of clients.

    Attributes:
        budget: name of the budget.
        clients: clients at a time.
        latencies: seconds of each request.
        seconds: time of all rounds together.
        tokens: tokens of all answers.
        visual: visual tokens of one prompt: before, behind V2V, average over layers.
        batch_rows: answers of each batch, on average.
    """

    budget: str
    clients: int
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    visual: dict[str, float] = field(default_factory=dict)
    batches: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """The figures of the cell."""
        ranked = sorted(self.latencies)
        return {
            "budget": self.budget,
            "clients": self.clients,
            "requests": len(ranked),
            "requests_per_second": len(ranked) / self.seconds,
            "latency_median": statistics.median(ranked),
            "latency_95": ranked[min(int(0.95 * len(ranked)), len(ranked) - 1)],
            "answer_tokens_per_second": self.tokens / self.seconds,
            "visual_tokens": self.visual,
            "batch_rows": statistics.mean(self.batches),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(arguments)
    load = round(os.getloadavg()[0], 1)
    try:
        if options.page is not None:
            _marked(options.page)
        read = [*options.compression, options.questions, options.model_path]
        require_apart({"--json": options.json, "--page": options.page}, read)
        budgets = {Path(name).stem: CompressionConfig.resolve(name).to_dict() for name in options.compression}
        if len(budgets) < len(options.compression):
            raise ValueError("--compression names two budgets that are called alike; rename a file, or leave one out.")
        options.model_path = options.model_path or quickstart_model()
        bodies = {name: _bodies(options, budget) for name, budget in budgets.items()}
        with served(options) as address:
            cells = measure(address, bodies, options.clients or CLIENTS, options.seconds, options.rounds)
    except (ValueError, OSError) as error:
        say(in_words(error), file=sys.stderr)
        return 2
    document = {
        "machine": describe_machine(),
        "load_before": load,
        "model": Path(options.model_path).name,
        "server": _server_words(options),
        "seconds_of_a_round": options.seconds,
        "rounds": options.rounds,
        "rows": [cell.row() for cell in cells],
    }
    say(table(document))
    if options.json is not None:
        write_json(options.json, document, indent=1)
    if options.page is not None:
        before, after = _marked(options.page)
        write_whole(options.page, f"{before}{MARKS[0]}\n{table(document)}\n{MARKS[1]}{after}")
    return 0


def table(document: Mapping[str, Any]) -> str:
    """The figures as a table in Markdown, and below it when and how long they were measured."""
    lines = [
        "| budget | visual tokens, before → entered → mean of layers | clients | requests/s | latency, median | 95 % | "
        "answers in a batch |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        visual = " → ".join(f"{value:g}" for value in row["visual_tokens"].values())
        lines.append(
            f"| `{row['budget']}` | {visual} | {row['clients']} | {row['requests_per_second']:.1f} | "
            f"{row['latency_median'] * 1000:.0f} ms | {row['latency_95'] * 1000:.0f} ms | {row['batch_rows']:.1f} |"
        )
    machine = document["machine"]
    lines += [
        "",
        f"{document['rounds']} rounds of {document['seconds_of_a_round']:g} s a cell; {machine['date']}, "
        f"{machine['processor']}, {machine['versions']}. Processes that were waiting for a core before the run: "
        f"{document['load_before']:g}.",
    ]
    return "\n".join(lines)


def measure(
    address: str, bodies: Mapping[str, Sequence[bytes]], clients: Sequence[int], seconds: float, rounds: int
) -> list[Cell]:
    """Measure every budget at every number of clients, in turn.

    Args:
        address: of the server, without a path.
        bodies: requests, by the name of their budget.
        clients: numbers of clients.
        seconds: length of a round of a cell.
        rounds: how many.

    Raises:
        ValueError: if a request is not answered, or one question in two ways.
    """
    cells = [Cell(name, number) for number in clients for name in bodies]
    known: dict[bytes, str] = {}
    for name in bodies:  # the first batches of a process are slow
        _ask(address, bodies[name], 2, 0.5, known)
    for _ in range(rounds):
        for cell in cells:
            before = _batches(address)
            began = time.perf_counter()
            replies = _ask(address, bodies[cell.budget], cell.clients, seconds, known)
            cell.seconds += time.perf_counter() - began
            after = _batches(address)
            cell.latencies += [latency for latency, _ in replies]
            cell.tokens += sum(usage["completion_tokens"] for _, usage in replies)
            cell.visual = replies[0][1]["visual_tokens"]
            cell.batches.append((after[0] - before[0]) / (after[1] - before[1]))
    return cells


def _ask(
    address: str, bodies: Sequence[bytes], clients: int, seconds: float, known: dict[bytes, str]
) -> list[tuple[float, dict[str, Any]]]:
    """Latency and usage of every request that some clients make within a time."""
    numbers, lock = itertools.count(), threading.Lock()
    ends = time.perf_counter() + seconds
    place = urlsplit(address)

    def client() -> list[tuple[float, dict[str, Any]]]:
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=_WAIT)
        replies: list[tuple[float, dict[str, Any]]] = []
        while time.perf_counter() < ends or not replies:
            with lock:
                body = bodies[next(numbers) % len(bodies)]
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            content = json.loads(reply.read())
            took = time.perf_counter() - began
            if reply.status != 200:
                raise ValueError(f"A request was answered with status {reply.status}: {content['error']['message']}")
            text = content["choices"][0]["message"]["content"]
            with lock:
                if known.setdefault(body, text) != text:
                    raise ValueError(f"One question was answered {known[body]!r} and {text!r}.")
            replies.append((took, content["usage"]))
        connection.close()
        return replies

    with ThreadPoolExecutor(clients) as pool:
        waiting = [pool.submit(client) for _ in range(clients)]
        return [reply for one in waiting for reply in one.result()]


def _batches(address: str) -> tuple[float, float]:
    """Answers and batches that the server has counted."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=_WAIT)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = dict(re.findall(r"^llava_batch_rows_(sum|count) (\S+)$", text, re.MULTILINE))
    return float(found["sum"]), float(found["count"])


@contextlib.contextmanager
def served(options: argparse.Namespace) -> Iterator[str]:
    """The API as a process of its own; its address, without a path.

    Raises:
        ValueError: if it does not come up.
    """
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    with subprocess.Popen(
        [sys.executable, "-m", "llava.serve.api", *_server_words(options), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        try:
            found = next(filter(None, (re.search(r"served at (\S+)/v1 ", line) for line in process.stdout)), None)
            if found is None:
                raise ValueError(f"The server did not come up: python -m llava.serve.api {_server_words(options)}.")
            threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop the server
            _until_up(found[1])
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)


def _until_up(address: str) -> None:
    place, ends = urlsplit(address), time.monotonic() + _WAIT
    while True:
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=_WAIT)
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
            return
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.1)
        finally:
            connection.close()


def _server_words(options: argparse.Namespace) -> list[str]:
    words = ["--model-path", str(options.model_path), "--batch-size", str(options.batch_size)]
    return [*words, *(["--device", options.device] if options.device else [])]


def _bodies(options: argparse.Namespace, budget: dict[str, Any]) -> list[bytes]:
    """Requests for the questions of the quickstart, at one budget."""
    data = Path(options.model_path).resolve().parent / "data"
    questions = options.questions or data / "test.jsonl"
    folder = options.image_folder or data / "images"
    name = model_name_of(options.model_path)
    bodies = []
    for text, picture, _ in itertools.islice(picture_questions(questions, folder), _BODIES):
        content = base64.b64encode(picture.read_bytes()).decode()
        parts = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}},
            {"type": "text", "text": text},
        ]
        body = {"model": name, "messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 16}
        bodies.append(json.dumps(body | {"compression": budget}).encode())
    return bodies


def _marked(page: Path) -> tuple[str, str]:
    """What stands before and behind the table of a page.

    Raises:
        ValueError: if the page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, found, after = rest.partition(MARKS[1])
    if not found:
        raise ValueError(f"--page is {str(page)!r}, which has no lines {MARKS[0]} and {MARKS[1]}; write them into it.")
    return before, after


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.bench.serving",
        description="Requests a second and latency of the API, by budget and number of clients.",
    )
    parser.add_argument("--model-path", type=MODEL, help=f"checkpoint folder; by default {USUAL}")
    parser.add_argument(
        "--compression", nargs="+", default=list(BUDGETS), metavar="NAME_OR_FILE", help="presets or YAML files"
    )
    parser.add_argument("--questions", type=FILE_TO_READ, help="JSONL with image and text (default: the quickstart's)")
    parser.add_argument("--image-folder", type=FOLDER_TO_READ, help="folder of their images")
    parser.add_argument(
        "--clients", nargs="+", type=count(1, 1024), help=f"at a time (default: {' '.join(map(str, CLIENTS))})"
    )
    parser.add_argument("--seconds", type=positive(3600), default=10.0, help="of a round of a cell (default: 10)")
    parser.add_argument("--rounds", type=count(1, 1000), default=3, help="rounds of every cell (default: 3)")
    parser.add_argument("--batch-size", type=count(1, 1024), default=8, help="of the server (default: 8)")
    parser.add_argument("--device", help="of the server; by default a GPU where there is one")
    parser.add_argument("--json", type=FILE_TO_WRITE, help="write the figures there")
    parser.add_argument(
        "--page", type=FILE_TO_WRITE, help=f"write the table into this page, between {MARKS[0]} and its end"
    )
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
