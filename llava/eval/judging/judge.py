"""The judge, a language model that grades answers, and the file of its verdicts.

A verdict costs money and time, so each is on the disk before the next question is asked. The file tells by a digest of
model and messages what has been graded, and that is never asked again; what got no grade is asked anew by the next run.
Requests that are equal share a verdict.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

from tqdm import tqdm

from llava.common.atomic_write import append_whole
from llava.common.folder_lock import alone_in
from llava.common.json_files import NotJsonError, parse_json
from llava.common.json_lines import LARGEST, append_lines
from llava.common.outside_files import read_bytes
from llava.eval.judging.chat_api import KEY_VARIABLE, URL_VARIABLE, ChatApi, Message, Reply
from llava.eval.scoring.scores import Scores

WORKERS_VARIABLE = "LLAVA_JUDGE_WORKERS"
DEFAULT_WORKERS = 8
_BEGINNING = b'{"request": "'  # of every line of `verdict_line`
PROMPT_VERSION = 1
"""Version of the wording of requests, recorded with results; raise it whenever the wording changes."""

Grade = dict[str, Any]
"""The grade read from a reply, e.g. `{"score": 0.5}`."""

Parser = Callable[[str], Grade | None]
"""Reads the grade from a reply; None where it holds none."""


@dataclass(frozen=True)
class JudgeRequest:
    """One answer to be graded.

    Attributes:
        messages: what the judge is asked.
        fields: what the line of its verdict holds besides, e.g. `question_id`.
    """

    messages: tuple[Message, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)

    def digest(self, model: str) -> str:
        """SHA-256, cut to 32 hexadecimal digits, of this request to this model; the key of its verdict."""
        text = json.dumps([model, [dict(message) for message in self.messages]], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


@dataclass(frozen=True)
class Verdict:
    """A verdict: the judge's reply and the grade read from it.

    Attributes:
        grade: None where no grade could be read from the reply, twice.
        text: the reply.
        model: name that the server gives the judge.
        temperature: that it was asked at; None where it takes none.
    """

    grade: Grade | None
    text: str
    model: str
    temperature: float | None = 0.0


@dataclass(frozen=True)
class Judge:
    """A language model that grades, at temperature 0.

    Attributes:
        api: where it is.
        workers: requests under way at once.

    Raises:
        ValueError: if there are no workers.
    """

    api: ChatApi
    workers: int = DEFAULT_WORKERS

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"The judge has {self.workers} workers; give a number of 1 or more.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Judge:
        """The judge that the variables LLAVA_JUDGE_* describe, by default those of the process.

        Raises:
            ValueError: if a value cannot be used or the key is missing.
        """
        environment = os.environ if environment is None else environment
        value = environment.get(WORKERS_VARIABLE) or str(DEFAULT_WORKERS)
        if not (value.isascii() and value.isdigit() and int(value)):
            raise ValueError(f"{WORKERS_VARIABLE} is {value!r}; set it to a number of 1 or more.")
        return cls(ChatApi.from_environment(environment), int(value))

    def describe(self) -> dict[str, Any]:
        """What result files record: all that numbers depend on, and no key; `Scores.judged_by` goes over it."""
        return {
            "model": self.api.model,
            "endpoint": self.api.public_url,
            "prompt_version": PROMPT_VERSION,
            "temperature": 0,
        }

    def grade(
        self, requests: Sequence[JudgeRequest], parse: Parser, reviews: Path, reminder: str, max_tokens: int
    ) -> list[Verdict]:
        """The verdict on each task, in order; only those of which the file holds no grade are asked for.

        Args:
            requests: requests to be graded.
            parse: reads the grade; called by several threads.
            reviews: JSON lines, appended to.
            reminder: sent where the first reply holds no grade.
            max_tokens: longest reply.

        Raises:
            ValueError: if the judge cannot be asked, the file holds something else, or another run asks for verdicts
                into the same file, each of which would be paid for twice; verdicts so far are kept.
        """
        digests = [request.digest(self.api.model) for request in requests]
        busy, hint = f"Another run is writing {reviews}", "wait for it or stop it, or choose another place"
        with alone_in(reviews.parent, busy, hint, f".{reviews.name}.lock"), VerdictFile(reviews) as file:
            graded = {name for name, line in file.lines.items() if parse(line["content"]) is not None}
            missing = {
                digest: request for digest, request in zip(digests, requests, strict=True) if digest not in graded
            }

            def ask(digest: str, pause: Callable[[float], Any]) -> None:
                reply = self._ask(missing[digest], parse, reminder, max_tokens, pause)
                file.add(verdict_line(digest, missing[digest], reply, parse(reply.text)))

            self._ask_all(list(missing), ask)
            lines = [file.lines[digest] for digest in digests]
        return [_verdict(line, parse) for line in lines]

    def _ask_all(self, digests: Sequence[str], ask: Callable[[str, Callable[[float], Any]], None]) -> None:
        """Ask for all verdicts; after an error nothing new is asked, and what is under way is waited for.

        An interrupt waits for nothing: the threads are daemons, which end with the program.
        """
        if not digests:
            return
        stopped = Event()
        left: SimpleQueue[str] = SimpleQueue()
        progress: SimpleQueue[BaseException | bool] = SimpleQueue()
        for digest in digests:
            left.put(digest)

        def work() -> None:
            with suppress(Empty):
                while not stopped.is_set():
                    digest = left.get_nowait()
                    try:
                        ask(digest, stopped.wait)
                        progress.put(True)
                    except BaseException as error:  # raised again by the thread that waits for it
                        stopped.set()
                        progress.put(error)
            progress.put(False)

        threads = [Thread(target=work, daemon=True) for _ in range(min(self.workers, len(digests)))]
        with tqdm(total=len(digests), desc=f"Judge {self.api.model}", unit=" verdicts", disable=None) as bar:
            try:
                errors = _wait_for(threads, progress, bar)
            finally:
                stopped.set()
        if errors:
            raise errors[0]

    def _ask(
        self, request: JudgeRequest, parse: Parser, reminder: str, max_tokens: int, pause: Callable[[float], Any]
    ) -> Reply:
        """The judge's reply; where it holds no grade, that to a reminder."""
        reply = self.api.ask(request.messages, max_tokens, pause)
        if parse(reply.text) is not None:
            return reply
        again = ({"role": "assistant", "content": reply.text}, {"role": "user", "content": reminder})
        return self.api.ask((*request.messages, *again), max_tokens, pause)


def _wait_for(threads: Sequence[Thread], progress: SimpleQueue[BaseException | bool], bar: Any) -> list[BaseException]:
    """Run threads and return their errors; each puts true for a verdict, errors, and false at its end."""
    errors: list[BaseException] = []
    for thread in threads:
        thread.start()
    running = len(threads)
    while running:
        what = progress.get()  # an interrupt ends it
        if isinstance(what, BaseException):
            errors.append(what)
        elif what:
            bar.update()
        else:
            running -= 1
    return errors


class VerdictFile:
    """Verdicts as JSON lines, each on the disk before `add` returns; may be shared by threads.

    A last line that a kill has torn is removed; one that was never the beginning of a verdict is not.

    Args:
        path: created if missing, with its folder.

    Attributes:
        lines: lines by digest of the request; of several with the same digest the last.

    Raises:
        ValueError: if a line is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, dict[str, Any]] = {}
        self._lock = Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._read(read_bytes(path, LARGEST) if path.exists() else b"")
        self._file: FileIO | None = FileIO(path, "a")

    def __enter__(self) -> VerdictFile:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:  # a verdict that is being written is written to its end
            if self._file is not None:
                self._file.close()
            self._file = None

    def add(self, line: dict[str, Any]) -> None:
        """Append a verdict, as `verdict_line` makes it; after the file was closed nothing happens.

        Raises:
            OSError: if it cannot be written; the file ends with the verdict before it.
        """
        with self._lock:
            if self._file is not None:
                append_lines(self._file, [line])
                self.lines[line["request"]] = line

    def _read(self, content: bytes) -> None:
        whole, _, torn = content.rpartition(b"\n")
        if torn and _line(torn) is not None:  # only the end of the line is missing
            with FileIO(self.path, "a") as file:
                append_whole(file, b"\n")
            whole, torn = content, b""
        for number, line in enumerate(whole.splitlines(), start=1):
            if line.strip():
                verdict = _line(line)
                if verdict is None:
                    raise ValueError(
                        f"{self.path}, line {number} is not a verdict of this program; move the file away, or name "
                        "another one."
                    )
                self.lines[verdict["request"]] = verdict
        if torn and not (torn.startswith(_BEGINNING) or _BEGINNING.startswith(torn)):
            raise ValueError(
                f"The last line of {self.path} is not the beginning of a verdict of this program; move the file away, "
                "or name another one."
            )
        if torn:
            os.truncate(self.path, len(content) - len(torn))


def verdict_line(digest: str, request: JudgeRequest, reply: Reply, grade: Grade | None) -> dict[str, Any]:
    """One line of a verdict file.

    Args:
        digest: digest of the request.
        request: that was graded.
        reply: reply of the judge.
        grade: read from the reply; its fields stand on the line.
    """
    line = {"request": digest, **request.fields, "judge": reply.model, "content": reply.text}
    if reply.temperature is None:
        line["temperature"] = None
    return line | ({"ungraded": True} if grade is None else grade)


def _verdict(line: Mapping[str, Any], parse: Parser) -> Verdict:
    return Verdict(parse(line["content"]), line["content"], line["judge"], line.get("temperature", 0.0))


def _line(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line)
    except NotJsonError:
        return None
    if not isinstance(value, dict):
        return None
    temperature = value.get("temperature")
    is_verdict = all(isinstance(value.get(name), str) for name in ("request", "judge", "content"))
    is_number = isinstance(temperature, int | float | None) and not isinstance(temperature, bool)
    return value if is_verdict and is_number else None


def judge_is_configured(environment: Mapping[str, str] | None = None) -> bool:
    """Whether the environment names a judge: an address, or a key that is meant for judging.

    OPENAI_API_KEY alone does not count: it is often set for other purposes, and judging costs money.
    """
    environment = os.environ if environment is None else environment
    return any(environment.get(name) for name in (URL_VARIABLE, KEY_VARIABLE))


def grades_of(verdicts: Iterable[Verdict]) -> list[Grade]:
    """The grades that could be read.

    Raises:
        ValueError: if there is none.
    """
    grades = [verdict.grade for verdict in verdicts if verdict.grade is not None]
    if not grades:
        raise ValueError("The judge gave no grade that can be read; take another model as judge.")
    return grades


def judged_scores(
    headline: float, values: Mapping[str, float], verdicts: Sequence[Verdict], published: str, *notes: str
) -> Scores:
    """The scores of a benchmark from its verdicts, with notes on judge, temperature and missing grades.

    Args:
        headline, values: computed from the grades.
        verdicts: all, at least one with a grade.
        published: the judge of published numbers.
        notes: further ones.
    """
    graded = [verdict for verdict in verdicts if verdict.grade is not None]
    models = sorted({verdict.model for verdict in graded})
    temperature = None if any(verdict.temperature is None for verdict in graded) else 0
    said = [
        f"Graded by {', '.join(models)}. Published numbers were graded by {published}; numbers of different judges "
        "cannot be compared."
    ]
    if temperature is None:
        said.append("The judge takes no temperature, so it graded at its own, and may grade otherwise another time.")
    if len(graded) < len(verdicts):
        said.append(
            f"{len(verdicts) - len(graded)} of {len(verdicts)} answers got no grade that can be read, also when asked "
            "again; they are left out of the judge's numbers, and asked for anew when scored again."
        )
    return Scores(
        headline,
        values,
        (*said, *notes),
        counted=len(graded) if len(graded) < len(verdicts) else None,
        judged_by={"answered_as": models, "temperature": temperature},
    )


def unjudged_note(title: str) -> str:
    """What to say where a benchmark was scored without its judge."""
    return (
        f"{title} is graded by a language model, and none was asked: set {URL_VARIABLE} or {KEY_VARIABLE} and score "
        "again."
    )
