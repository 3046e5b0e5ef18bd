"""The benchmarks by name. Each is one small module: how to read its questions, how to score its answers.

Other packages add theirs as entry points of the group `llava.benchmarks`, which every program then takes by name:

    [project.entry-points."llava.benchmarks"]
    colours = "my_package.colours:Colours"
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

from llava.common.shown import shown
from llava.eval.benchmarks.base import Benchmark

GROUP = "llava.benchmarks"
"""Entry points that hold benchmarks of other packages: a name, and a class that inherits from `Benchmark`."""
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
    "vcg_generic": "video_chatgpt:Generic",
    "vcg_temporal": "video_chatgpt:Temporal",
    "vcg_consistency": "video_chatgpt:Consistency",
}
NAMES = tuple(_PLACES)
"""Benchmarks of this package."""


def benchmark_names() -> list[str]:
    """Names that `--benchmarks` takes: of this package, then of others in alphabetical order."""
    return [*NAMES, *sorted(set(entry_points(group=GROUP).names) - set(NAMES))]


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ValueError: if there is none or there are several, or one of another package cannot be used.
    """
    found = {entry.value: entry for entry in entry_points(group=GROUP, name=name)}
    if name in _PLACES:
        own = EntryPoint(name, f"{__name__}.{_PLACES[name]}", GROUP)
        found[own.value] = own
    if not found:
        raise ValueError(f"There is no benchmark {shown(name)}; there are {', '.join(benchmark_names())}.")
    if len(found) > 1:
        raise ValueError(f"Several benchmarks have the name {name!r}: {', '.join(found)}; keep one of them.")
    (entry,) = found.values()
    try:
        benchmark = entry.load()()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"The benchmark {name!r} cannot be made by {entry.value}: {error}.") from error
    if not isinstance(benchmark, Benchmark) or benchmark.name != name:
        raise ValueError(
            f"{entry.value}, registered as benchmark {name!r}, must be a class that inherits from "
            f"llava.eval.benchmarks.base.Benchmark and has the name {name!r}."
        )
    return benchmark


def get_benchmarks(names: str | Sequence[str]) -> list[Benchmark]:
    """Benchmarks from names, or from one text that joins them by commas; none is taken twice.

    Raises:
        ValueError: if a name is unknown or none is given.
    """
    parts = names.split(",") if isinstance(names, str) else names
    chosen = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not chosen:
        raise ValueError(f"No benchmark is named; give one or several of {', '.join(benchmark_names())}.")
    return [get_benchmark(name) for name in chosen]
