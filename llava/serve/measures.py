"""What a server counts for Prometheus; each server has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llava.inference.row_batches import RowAnswer

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_VISUAL = ("before", "after_v2v", "average_over_layers")


class Measures:
    """Counters, gauges and histograms of one server.

    Args:
        waiting: rows that wait for the model.
        answering: rows that it answers.
        alive: whether it can answer.

    Attributes:
        left: counts requests whose client left.
        queued: takes the seconds that an answer waited.
        first_piece: takes the seconds from a request to its first text.
        batch: takes the rows of a batch when it begins.
    """

    def __init__(self, waiting: Callable[[], int], answering: Callable[[], int], alive: Callable[[], bool]) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("llava_requests", "Requests, by their HTTP status.", ["status"], registry=registry)
        self.left = Counter("llava_requests_left", "Requests whose client left.", registry=registry)
        self._tokens = Counter(
            "llava_tokens",
            "Tokens, of prompts (visual ones as they enter the language model) and of answers.",
            ["kind"],
            registry=registry,
        )
        self._visual = Counter(
            "llava_visual_tokens",
            "Visual tokens of prompts: before compression, behind V2V, and average over decoder layers.",
            ["stage"],
            registry=registry,
        )
        self._seconds = Histogram(
            "llava_request_seconds", "Time from a request to its last token.", buckets=_SECONDS, registry=registry
        )
        self.queued = Histogram(
            "llava_queue_seconds", "Time that an answer waits for the model.", buckets=_SECONDS, registry=registry
        )
        self.first_piece = Histogram(
            "llava_first_piece_seconds", "Time from a request to its first text.", buckets=_SECONDS, registry=registry
        )
        self.batch = Histogram(
            "llava_batch_rows", "Answers generated together.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        gauges = (
            ("llava_rows_waiting", "Answers that wait for the model.", waiting),
            ("llava_rows_answering", "Answers that are being generated.", answering),
            ("llava_model_up", "1 while the model can answer.", alive),
        )
        for name, text, value in gauges:
            Gauge(name, text, registry=registry).set_function(value)

    def request(self, status: int, seconds: float) -> None:
        """A request was replied to."""
        self._requests.labels(str(status)).inc()
        if status == 200:
            self._seconds.observe(seconds)

    def prompt(self, answer: RowAnswer) -> None:
        """A prompt was answered, once for all its answers."""
        visual = answer.visual
        self._tokens.labels("prompt").inc(answer.text_tokens + visual.entered)
        for stage, count in zip(_VISUAL, (visual.before, visual.entered, visual.average), strict=True):
            self._visual.labels(stage).inc(count)

    def answer(self, answer: RowAnswer) -> None:
        """An answer was generated."""
        self._tokens.labels("completion").inc(answer.tokens)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
