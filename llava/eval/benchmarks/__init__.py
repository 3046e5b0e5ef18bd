"""The benchmarks by name. Each is one small module: how to read its questions, how to score its answers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from llava.eval.benchmarks.base import Benchmark

_PLACES = {
    "gqa": "gqa:GQA",
    "pope": "pope:POPE",
    "mme": "mme:MME",
    "sqa": "sqa:ScienceQA",
    "textvqa": "textvqa:TextVQA",
    "mmbench": "mmbench:MMBench",
    "mmbench_cn": "mmbench:MMBenchChinese",
    "vqav2": "vqav2:VQAv2",
    "vizwiz": "vizwiz:VizWiz",
    "seed": "seed:SEED",
    "mmvet": "mmvet:MMVet",
    "llava_bench": "llava_bench:LLaVABench",
    "msvd": "video_qa:MSVD",
    "msrvtt": "video_qa:MSRVTT",
    "tgif": "video_qa:TGIF",
    "activitynet": "video_qa:ActivityNet",
}
NAMES = tuple(_PLACES)
"""Names that `--benchmarks` accepts."""


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in _PLACES:
        raise ValueError(f"There is no benchmark {name!r}; there are {', '.join(NAMES)}.")
    module, _, kind = _PLACES[name].partition(":")
    benchmark = getattr(import_module(f"{__name__}.{module}"), kind)()
    assert isinstance(benchmark, Benchmark)
    return benchmark


def get_benchmarks(names: str | Sequence[str]) -> list[Benchmark]:
    """Benchmarks from names, or from one text that joins them by commas; none is taken twice.

    Raises:
        ValueError: if a name is unknown or none is given.
    """
    parts = names.split(",") if isinstance(names, str) else names
    chosen = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not chosen:
        raise ValueError(f"No benchmark is named; give one or several of {', '.join(NAMES)}.")
    return [get_benchmark(name) for name in chosen]
