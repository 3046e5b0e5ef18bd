"""Measures the memory that a large data set takes in the training process and its data-loading workers.

python -m llava.bench.data_memory --records 665000 --workers 4

Conversations of random words are read twice: as memory-mapped tables (`llava.data.store`) and as a list of Python
objects. Each time a fresh process opens them and forks workers, every worker reads every record, and all processes
look at /proc/self/smaps_rollup while all of them are alive. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llava.common.json_files import write_json
from llava.common.number_flags import MOST_PROCESSES, count
from llava.common.outputs import claim_folder
from llava.common.path_flags import FILE_TO_WRITE, FOLDER_TO_WRITE
from llava.common.program import as_program
from llava.cost.hardware import peak_memory_bytes
from llava.cost.machine import measured_on
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.families.llava import LlavaInputs
from llava.data.records import read_records

SMAPS = Path("/proc/self/smaps_rollup")
MIB = 2**20
_MEAN_TURNS, _MEAN_ANSWER = 4, 260  # questions and characters; about 1.5 kB of JSON a record, as in LLaVA's mix


def memory() -> dict[str, float]:
    """Memory of this process in MiB.

    `rss`: all pages that it maps and that are present; `pss`: the same with shared pages divided by the processes
    that share them, so that the sum over processes is what they take together; `uss`: pages that are not shared;
    `anonymous`: the part of `pss` that belongs to no file, which the system cannot drop when memory is short.
    """
    lines = (line.split() for line in SMAPS.read_text(encoding="utf-8").splitlines()[1:])
    sizes = {words[0].rstrip(":"): int(words[1]) / 1024 for words in lines}
    uss = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return {"rss": sizes["Rss"], "pss": sizes["Pss"], "uss": uss, "anonymous": sizes["Pss_Anon"]}


def write_conversations(path: Path, count: int, seed: int = 0) -> None:
    """Write a JSON list of conversations of random words; one in ten has no image."""
    draw = random.Random(seed)
    text = _words(draw, 400_000)
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            file.write("[\n" if index == 0 else ",\n")
            json.dump(_conversation(index, text, draw), file)
        file.write("\n]\n")


def make_tokenizer(vocabulary: int = 6000) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer that gives those words about one token each, as Llama's gives English.

    Args:
        vocabulary: most tokens; 256 or more. The fewer, the more tokens a word takes.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=min(vocabulary, 6000), initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([_words(random.Random(0), 20_000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


class TouchAll(Dataset):
    """Item `n` reads the whole data set in worker `n` and tells the memory before and after.

    Args:
        dataset: what is read.
        encode_every: every so manieth sample is encoded too; 1 for tables, which hold all tokens.
        barrier: where all workers wait for each other.
    """

    def __init__(self, dataset: LazySupervisedDataset, encode_every: int, barrier: Any) -> None:
        self.dataset = dataset
        self.encode_every = encode_every
        self.barrier = barrier

    def __getitem__(self, worker: int) -> dict[str, Any]:
        before = memory()
        started = time.perf_counter()
        characters = tokens = 0
        for index in range(len(self.dataset)):
            characters += sum(map(len, self.dataset.records[index].turns))
            if index % self.encode_every == 0:
                tokens += len(self.dataset.encode(index).input_ids)
        seconds = time.perf_counter() - started
        self.barrier.wait()  # all have read everything, and none has ended
        after = memory()
        self.barrier.wait()
        return {"before": before, "after": after, "seconds": seconds, "characters": characters, "tokens": tokens}


def build(path: Path, cache: Path, num_proc: int | None) -> dict[str, float]:
    """Read, check and tokenise the file into tables; the peak is that of the process that leads."""
    started = time.perf_counter()
    _open_tables(path, cache, num_proc)
    peak = peak_memory_bytes(torch.device("cpu")).bytes / MIB
    return {"seconds": time.perf_counter() - started, "peak_rss": peak}


def open_and_fork(way: str, path: Path, cache: Path, workers: int, encoded: int) -> dict[str, Any]:
    """Open the data as `tables` or `list` and let workers read all of it."""
    start = memory()
    started = time.perf_counter()
    if way == "tables":
        dataset, encode_every = _open_tables(path, cache, None), 1
    else:
        records = read_records(path)
        dataset = LazySupervisedDataset(records, _inputs(), _config(cache))
        encode_every = max(1, len(dataset) // encoded)
    seconds = time.perf_counter() - started
    opened = memory()
    loader = read_in_workers(dataset, workers, encode_every)
    found = list(loader)
    after = memory()  # the workers live as long as the loader
    sizes = {"main_at_start": start, "main_opened": opened, "main_after": after}
    return {"open_seconds": seconds, **sizes, "workers": found}


def read_in_workers(dataset: LazySupervisedDataset, workers: int, encode_every: int) -> DataLoader:
    """A loader that gives one item of `TouchAll` from each of its workers, which it keeps."""
    barrier = multiprocessing.get_context("fork").Barrier(workers)
    return DataLoader(
        TouchAll(dataset, encode_every, barrier),
        batch_size=None,
        sampler=range(workers),
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="fork",
    )


def in_fresh_process(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a function in a new interpreter, so that nothing earlier is in its memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function).result()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Memory of data-loading workers: mapped tables against a list.")
    parser.add_argument("--records", type=count(), default=665_000)
    parser.add_argument("--workers", type=count(1, MOST_PROCESSES), default=4)
    parser.add_argument(
        "--num-proc", type=count(1, MOST_PROCESSES), help="processes that tokenise; by default as the trainer chooses"
    )
    parser.add_argument("--encoded", type=count(), default=2000, help="samples that each worker encodes from the list")
    parser.add_argument(
        "--folder", type=FOLDER_TO_WRITE, help="where the data is made, and kept; by default a temporary folder"
    )
    parser.add_argument("--json", type=FILE_TO_WRITE, help="write all figures to this file")
    options = parser.parse_args(arguments)
    if not SMAPS.is_file():
        parser.error(f"There is no {SMAPS}; this benchmark needs Linux.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        try:
            claim_folder(folder, "llava.bench.data_memory", "--folder")
        except ValueError as error:
            parser.error(str(error))
        figures = _measure(options, folder / "mix.json", folder / "cache")
    if options.json:
        write_json(options.json, figures, indent=1)


def _measure(options: argparse.Namespace, path: Path, cache: Path) -> dict[str, Any]:
    print(f"{measured_on(torch.device('cpu'))}, datasets {version('datasets')}, pyarrow {version('pyarrow')}")
    started = time.perf_counter()
    write_conversations(path, options.records)
    print(f"{options.records:,} records, {path.stat().st_size / MIB:,.0f} MiB of JSON", end="")
    print(f", written in {time.perf_counter() - started:.0f} s", flush=True)
    built = in_fresh_process(partial(build, path, cache, options.num_proc))
    sizes = {
        name: sum(file.stat().st_size for file in cache.glob(f"{name}-*/*.arrow")) for name in ("records", "tokens")
    }
    print(
        f"tables built in {built['seconds']:.0f} s, peak {built['peak_rss']:,.0f} MiB in the leading process;", end=""
    )
    print(f" records {sizes['records'] / MIB:,.0f} MiB, tokens {sizes['tokens'] / MIB:,.0f} MiB", flush=True)
    figures: dict[str, Any] = {"machine": measured_on(torch.device("cpu")), "build": built, "bytes": sizes}
    figures |= {"records": options.records, "json_bytes": path.stat().st_size}
    for way in ("tables", "list"):
        task = partial(open_and_fork, way, path, cache, options.workers, options.encoded)
        figures[way] = in_fresh_process(task)
        _report(way, figures[way])
    return figures


def _report(way: str, found: dict[str, Any]) -> None:
    print(f"\n{way}: opened in {found['open_seconds']:.1f} s; MiB while {len(found['workers'])} workers are alive")
    print(f"{'':22}{'RSS':>9}{'PSS':>9}{'USS':>9}{'anonymous':>11}")
    _line("main, before opening", found["main_at_start"])
    _line("main, opened", found["main_opened"])
    for number, worker in enumerate(found["workers"]):
        _line(f"worker {number}, at first", worker["before"])
        _line(f"worker {number}, all read", worker["after"])
    _line("main, all read", found["main_after"])
    everyone = [found["main_after"], *(worker["after"] for worker in found["workers"])]
    total, anonymous = (sum(process[kind] for process in everyone) for kind in ("pss", "anonymous"))
    seconds = ", ".join(f"{worker['seconds']:.0f}" for worker in found["workers"])
    print(f"all processes together: {total:,.0f} MiB, {anonymous:,.0f} MiB of them anonymous (sums of PSS)")
    print(f"each worker read everything in {seconds} s", flush=True)
    found["sum_of_pss"], found["sum_of_anonymous"] = total, anonymous


def _line(name: str, sizes: dict[str, float]) -> None:
    print(f"{name:22}{sizes['rss']:9,.0f}{sizes['pss']:9,.0f}{sizes['uss']:9,.0f}{sizes['anonymous']:11,.0f}")


def _open_tables(path: Path, cache: Path, num_proc: int | None) -> LazySupervisedDataset:
    return LazySupervisedDataset(path, _inputs(), _config(cache, num_proc))


def _inputs() -> LlavaInputs:
    return LlavaInputs(None, make_tokenizer(), object(), "v1")


def _config(cache: Path, num_proc: int | None = None) -> DataConfig:
    return DataConfig(2048, 307, cache_dir=cache, num_proc=num_proc)


def _words(draw: random.Random, count: int) -> str:
    """Random words of a vocabulary that is the same for every draw."""
    letters, vocabulary = random.Random(1), []
    for _ in range(2000):
        vocabulary.append("".join(letters.choices("etaoinshrdlucmfwyp", k=letters.randint(2, 6))))
    return " ".join(draw.choices(vocabulary, k=count))


def _conversation(index: int, text: str, draw: random.Random) -> dict[str, Any]:
    """Some questions with answers, cut out of `text` at random places."""

    def some(mean: int) -> str:
        start = draw.randrange(len(text) - 10 * mean)
        return text[start : start + draw.randint(mean // 4, 2 * mean - mean // 4)]

    turns = []
    for number in range(draw.randint(1, 2 * _MEAN_TURNS - 1)):
        mark = "<image>\n" if number == 0 and index % 10 else ""
        turns += [{"from": "human", "value": mark + some(60)}, {"from": "gpt", "value": some(_MEAN_ANSWER)}]
    image = {"image": f"coco/train2017/{index:012}.jpg"} if index % 10 else {}
    return {"id": f"{index:012}", **image, "conversations": turns}


if __name__ == "__main__":
    sys.exit(as_program(main))
