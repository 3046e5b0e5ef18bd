"""Serve a model to clients that speak OpenAI's API.

python -m llava.serve.api                                   # the quickstart's model
LLAVA_API_KEYS=a-long-random-key python -m llava.serve.api --model-path CHECKPOINT --compression duet-64 --port 8000
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import urllib.request
from collections.abc import Sequence

from llava.common.number_flags import count, positive
from llava.common.outside_files import in_words
from llava.common.program import as_program
from llava.common.shown import say
from llava.compression.config import CompressionConfig
from llava.inference.loading_flags import (
    add_asking_flags,
    add_budget_flags,
    add_loading_flags,
    asked_budget,
    asked_settings,
    check_device,
    open_engine,
)
from llava.mm_utils import model_name_of
from llava.serve.api.access_keys import VARIABLE, AccessKeys
from llava.serve.api.completion_fields import AskingDefaults
from llava.serve.limits import MEBIBYTE, ServingLimits
from llava.serve.usual_model import USUAL, quickstart_model

HERE = ("127.0.0.1", "::1", "localhost")
_DEFAULTS = ServingLimits()
_LAST_TOKEN_SECONDS = 5.0
"""Seconds in which the model's thread has to end: what it answers for nobody ends at the next token."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line until it is asked to end; returns its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    try:
        return _serve(options)
    except (ValueError, OSError) as error:
        say(in_words(error), file=sys.stderr)
        return 2


def _serve(options: argparse.Namespace) -> int:
    try:
        from llava.serve.api.chat_service import ChatService
        from llava.serve.api.http_routes import make_app
        from llava.serve.graceful_server import GracefulServer, address_of, bound, make_config
    except ImportError as error:
        raise ValueError(
            f"The API needs fastapi, uvicorn and prometheus-client ({error}): pip install -c constraints.txt -e "
            "'.[serve]'."
        ) from error
    keys = AccessKeys.of(os.environ)
    asked = asked_settings(options)
    _check(options)
    options.model_path = options.model_path or quickstart_model()
    limits = _limits(options)
    with bound(options.host, options.port) as made:
        engine = open_engine(options)
        engine.inputs.with_roles(engine.inputs.template)
        budget = asked_budget(options, engine.model)
        if budget is not None:
            engine.model.set_compression(budget)
        defaults = AskingDefaults(
            options.served_model_name or model_name_of(options.model_path),
            asked.temperature or 0.0,
            1.0 if asked.top_p is None else asked.top_p,
            options.max_new_tokens,
        )
        service = ChatService(engine, defaults, keys, limits, options.allow_image_urls)

        def begin_ending() -> None:
            service.is_ending = True

        server = GracefulServer(
            make_config(make_app(service)), begin_ending, lambda: service.taken, service.give_up, limits.ending_seconds
        )
        say(f"{defaults.model} is served at {address_of(made)}/v1 (Ctrl-C ends it).")
        if options.host not in HERE and not keys:
            say(f"Everybody who reaches that address can ask the model: set {VARIABLE} to keys that clients must show.")
        server.run([made])
        service.model.join(_LAST_TOKEN_SECONDS)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Say before the model is loaded what could only fail afterwards.

    Raises:
        ValueError: names the option.
    """
    check_device(options.device)
    if options.compression is not None:
        CompressionConfig.resolve(options.compression)
    if options.max_new_tokens > options.most_new_tokens:
        raise ValueError(
            f"--max-new-tokens is {options.max_new_tokens}, more than --most-new-tokens, {options.most_new_tokens}; "
            "raise the latter."
        )
    proxies = urllib.request.getproxies()
    if options.allow_image_urls and any(scheme in proxies for scheme in ("http", "https", "all")):
        raise ValueError(
            "--allow-image-urls is given, but this machine asks a proxy (http_proxy, https_proxy), which looks names "
            "up itself, so that private addresses could not be refused; unset it for the server."
        )


def _limits(options: argparse.Namespace) -> ServingLimits:
    return ServingLimits(
        batch_size=options.batch_size,
        batch_tokens=options.batch_tokens,
        waiting=options.waiting,
        body_bytes=int(options.max_body_mib * MEBIBYTE),
        held_bytes=max(_DEFAULTS.held_bytes, int(options.max_body_mib * MEBIBYTE)),
        images=options.max_images,
        image_pixels=int(options.max_image_megapixels * 10**6),
        new_tokens=options.most_new_tokens,
        choices=min(options.max_choices, options.batch_size + options.waiting),  # more would never find a place
        seconds=options.timeout,
        ending_seconds=options.shutdown_timeout,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.serve.api",
        description="Serve a model to clients that speak OpenAI's API (chat completions and models) at /v1.",
        epilog=f"Keys that clients must show come from the environment: {VARIABLE}, several with commas between them. "
        "docs/serving.md says what is understood.",
    )
    add_loading_flags(parser, USUAL)
    add_asking_flags(parser)
    add_budget_flags(parser)
    parser.add_argument(
        "--host", default=HERE[0], help="interface to listen on (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=count(0, 65535), default=8000, help="0 takes any that is free (default: 8000)")
    parser.add_argument(
        "--served-model-name", "--served_model_name", metavar="NAME", help="name of the model (default: its folder's)"
    )
    parser.add_argument(
        "--allow-image-urls",
        "--allow_image_urls",
        action="store_true",
        help="fetch images from http(s) addresses of public hosts; without it, requests bring them as data URLs",
    )
    for name, (accepted, default, text) in _BOUNDS.items():
        words = (f"--{name}", f"--{name.replace('-', '_')}") if "-" in name else (f"--{name}",)
        parser.add_argument(*words, type=accepted, default=default, help=f"{text} (default: {default:g})")
    return parser


_BOUNDS = {
    "batch-size": (count(1, 1024), _DEFAULTS.batch_size, "most answers that are generated together"),
    "batch-tokens": (count(), _DEFAULTS.batch_tokens, "most tokens of a batch, its rows times its longest"),
    "waiting": (count(0), _DEFAULTS.waiting, "answers that may wait beside one batch; more are told to come again"),
    "most-new-tokens": (count(), _DEFAULTS.new_tokens, "longest answer that a request may ask for"),
    "max-choices": (count(1, 128), _DEFAULTS.choices, "most answers to one request (n)"),
    "max-images": (count(), _DEFAULTS.images, "most images and videos of a request"),
    "max-image-megapixels": (positive(89), _DEFAULTS.image_pixels / 10**6, "largest image"),
    "max-body-mib": (positive(1024), _DEFAULTS.body_bytes / MEBIBYTE, "largest request, in MiB"),
    "timeout": (positive(86400), _DEFAULTS.seconds, "seconds that a request may take"),
    "shutdown-timeout": (
        positive(86400),
        _DEFAULTS.ending_seconds,
        "seconds in which answers under way are finished when the server is asked to end",
    ),
}


if __name__ == "__main__":
    sys.exit(as_program(main))
