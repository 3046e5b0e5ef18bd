"""Data files as mapped tables: the same records and tokens as without, built once, whole or not at all."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny_text import byte_level, llama, llava_inputs, unigram
from torch.utils.data import DataLoader
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.bench.data_memory import read_in_workers
from llava.compression.salience import salient_spans
from llava.data.cache import CONTENTS, cached_table
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.json_stream import iterate_json
from llava.data.mixture import draw_rows, open_mix
from llava.data.records import parse_record, read_records
from llava.data.sampler import EpochSampler
from llava.data.statistics import measure
from llava.data.store import open_records
from llava.data.tokenization import encode_conversation
from llava.data.tokens import RecordEncoder, token_table, tokenizer_key

SIDE = 8
FORK = multiprocessing.get_context("fork")
WORDS = [
    "the",
    "red",
    "digit",
    "is",
    "three",
    "top",
    "left",
    "seven",
    "größer",
    "数字",
    "😀",
    "what",
    "where?",
    "many:",
]


def conversations(count: int, seed: int = 0, words: int = 12) -> list[dict[str, Any]]:
    """Records of all kinds: text, one image, two images; ids given or not; several turns."""
    draw = random.Random(seed)
    return [_conversation(index, draw, words) for index in range(count)]


def _conversation(index: int, draw: random.Random, words: int) -> dict[str, Any]:
    images = [f"{index}-{n}.png" for n in range(index % 3)]
    turns = []
    for turn in range(2 * draw.randint(1, 3)):
        text = " ".join(draw.choices(WORDS, k=draw.randint(1, words)))
        marks = "<image>" * len(images) if turn == 0 else ""
        turns.append({"from": ("human", "gpt")[turn % 2], "value": text + marks})
    record: dict[str, Any] = {"conversations": turns}
    if images:
        record["image"] = images[0] if len(images) == 1 else images
    if index % 4:
        record["id"] = index
    return record


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(records, ensure_ascii=bool(len(records) % 2)), encoding="utf-8")
    return path


def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def open_data(path: Any, cache: Path, tokenizer: Any = None, template: str = "v1", **changes: Any):
    of_model = {name: changes.pop(name) for name in ("image_aspect_ratio", "mm_use_im_start_end") if name in changes}
    options = {"max_length": 4096, "visual_tokens": 4, "cache_dir": cache, **changes}
    inputs = llava_inputs(tokenizer or byte_level(), processor(), template, **of_model)
    return LazySupervisedDataset(path, inputs, DataConfig(**options))


def tables(cache: Path, kind: str) -> list[str]:
    return sorted(path.name for path in cache.glob(f"{kind}-*"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.json", conversations(40))


# === Reading JSON in pieces ===


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_pieces_of_a_list_are_what_json_makes_of_the_whole(tmp_path: Path, chunk: int) -> None:
    items = [1, 23, -4.5e-3, True, None, 'a]b,[\\"', {"x": [[], {}, "😀"], "y": {"z": "}"}}, [], "", *conversations(5)]
    for number, text in enumerate(
        (json.dumps(items), json.dumps(items, ensure_ascii=False, indent=3), " \n[ ]\n ", "[12]", "[1 , 2\t,3]")
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(text, encoding="utf-8")
        assert list(iterate_json(path, chunk)) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2", "the end of the file.* follows entry 1"),
        ("[1, {]", "entry 1 of the list: "),
        ("[1 2]", "'2' follows entry 0 of the list"),
        ("[1,]", "entry 1 of the list: Expecting value"),
        ("[1] x", "'x' follows the end of the list"),
        ('[{"a": "never closed}]', "entry 0 of the list: Unterminated string"),
        ('{"a": 1}\n{"a": ', "line 2: Expecting value"),
    ],
)
def test_malformed_json_is_located(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    for chunk in (3, 1 << 20):
        with pytest.raises(ValueError, match=f"bad.json is neither a JSON list nor JSON lines: .*{words}"):
            list(iterate_json(path, chunk))


def test_text_that_is_no_unicode_is_told_with_its_record(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "cut \ud83d"}, {"from": "gpt", "value": "x"}]
    path = write(tmp_path / "half.json", [*conversations(2), {"id": "cut", "conversations": turns}])
    with pytest.raises(ValueError, match=r"1 of 3 records are unusable:\n  record 'cut' holds U\+D83D, half of"):
        open_records(path, tmp_path / "cache")
    path.write_bytes(b'[{"id": "\xff"}]')
    with pytest.raises(ValueError, match=r"half.json is not UTF-8 text"):
        open_records(path, tmp_path / "cache")
    assert not tables(tmp_path / "cache", "records")


# === Records ===


def test_records_of_a_table_are_those_of_the_file(data: Path, tmp_path: Path) -> None:
    expected = [parse_record(record, index) for index, record in enumerate(json.loads(data.read_text("utf-8")))]
    dataset = open_data(data, tmp_path / "cache")
    assert list(dataset.records) == expected == read_records(data)
    assert dataset.records[-1] == expected[-1] and dataset.records[3:5] == expected[3:5]
    with pytest.raises(IndexError):
        dataset.records[len(expected)]
    words = [sum(len(turn.replace("<image>", "").split()) for turn in record.turns) for record in expected]
    assert dataset.lengths.tolist() == [n + 4 * len(r.images) for n, r in zip(words, expected, strict=True)]
    assert dataset.has_image.tolist() == [bool(record.images) for record in expected]
    in_memory = open_data(expected, tmp_path / "other")
    assert in_memory.lengths.tolist() == dataset.lengths.tolist() and not (tmp_path / "other").exists()
    assert in_memory.has_image.tolist() == dataset.has_image.tolist()
    assert isinstance(dataset.lengths, np.ndarray) and dataset.has_image.dtype == bool


def test_faults_leave_no_table(data: Path, tmp_path: Path) -> None:
    records = json.loads(data.read_text("utf-8"))
    write(data, [*records, {"id": "broken"}, 7])
    with pytest.raises(ValueError, match=r"2 of 42 records are unusable:\n  record 'broken'.*\n  record 41 is int"):
        open_data(data, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".locks"]


def test_a_table_belongs_to_the_content_of_its_file(data: Path, tmp_path: Path) -> None:
    cache, copy = tmp_path / "cache", tmp_path / "elsewhere.json"
    copy.write_bytes(data.read_bytes())
    first = open_data(data, cache)
    assert open_data(copy, cache).fingerprint == first.fingerprint
    assert len(tables(cache, "records")) == len(tables(cache, "tokens")) == 1
    dates = data.stat()
    text = data.read_text("utf-8")
    data.write_text(text.replace("digit", "tigid", 1), encoding="utf-8")
    os.utime(data, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert data.stat().st_size == dates.st_size
    changed = open_data(data, cache)
    assert changed.fingerprint != first.fingerprint and len(tables(cache, "records")) == 2
    assert list(changed.records) == read_records(data) != list(first.records)


# === The cache ===


def _rows(count: int):
    def build(folder: Path) -> None:
        table = pa.table({"n": list(range(count))})
        with pa.ipc.new_stream(str(folder / "n.arrow"), table.schema) as writer:
            writer.write_table(table)

    return build


def _build_slowly(cache: Path, log: Path, barrier: Any) -> None:
    def build(folder: Path) -> None:
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        _rows(1000)(folder)

    barrier.wait()
    table = cached_table(cache, "key", build)
    with log.open("a") as file:
        file.write(f"{sum(table['n'])}\n")


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    barrier = FORK.Barrier(2)
    both = [FORK.Process(target=_build_slowly, args=(tmp_path / "c", tmp_path / "log", barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "log").read_text().splitlines() == ["built", "499500", "499500"]


def _build_for_ever(cache: Path, started: Any) -> None:
    def build(folder: Path) -> None:
        _rows(1000)(folder)
        started.set()
        time.sleep(600)

    cached_table(cache, "key", build)


def test_a_killed_build_leaves_nothing_that_is_taken_for_a_table(tmp_path: Path) -> None:
    started = FORK.Event()
    process = FORK.Process(target=_build_for_ever, args=(tmp_path, started))
    process.start()
    assert started.wait(300)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(300)
    assert not (tmp_path / "key").exists()
    assert cached_table(tmp_path, "key", _rows(5))["n"][:] == [0, 1, 2, 3, 4]
    assert {path.name for path in tmp_path.iterdir()} == {"key", ".locks"}


def _flip(folder: Path) -> None:
    (file,) = folder.glob("*.arrow")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut(folder: Path) -> None:
    (file,) = folder.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    "damage",
    [_flip, _cut, lambda folder: (folder / CONTENTS).unlink(), lambda folder: (folder / CONTENTS).write_text("[]")],
)
def test_a_damaged_table_is_built_again_with_a_warning(tmp_path: Path, damage, caplog) -> None:
    cached_table(tmp_path, "key", _rows(1000))
    damage(tmp_path / "key")
    with caplog.at_level(logging.WARNING):
        table = cached_table(tmp_path, "key", _rows(1000))
    assert table["n"][:] == list(range(1000)) and "key is damaged" in caplog.text
    caplog.clear()
    cached_table(tmp_path, "key", lambda folder: pytest.fail("built a third time"))
    assert not caplog.text


def test_a_cache_folder_that_cannot_be_made_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cache folder '.*file.cache' cannot be made .*name another"):
        cached_table(tmp_path / "file" / "cache", "key", _rows(1))


# === Tokens ===


@pytest.mark.parametrize("template", ["v1", "llava_llama_2", "v1_mmtag", "mpt"])
@pytest.mark.parametrize("make_tokenizer", [llama, byte_level])
def test_cached_tokens_are_those_of_a_fresh_encoding(data: Path, tmp_path: Path, template: str, make_tokenizer) -> None:
    cached = open_data(data, tmp_path, make_tokenizer(), template, mm_use_im_start_end=template == "mpt")
    lazy = open_data(
        data, tmp_path, make_tokenizer(), template, pretokenise=False, mm_use_im_start_end=template == "mpt"
    )
    for index, record in enumerate(read_records(data)):
        assert cached.encode(index) == lazy.encode(index)
        if template in ("v1", "llava_llama_2"):
            images, turns = bool(record.images), list(record.turns)
            for human in range(0, len(turns) if images else 0, 2):
                turns[human] = lazy.inputs.taught(turns[human], {"image"})
            assert cached.encode(index) == encode_conversation(turns, make_tokenizer(), template, images)


def test_several_processes_encode_the_same_in_the_same_order(data: Path, tmp_path: Path) -> None:
    encoder = RecordEncoder(llava_inputs(llama()))
    one = token_table(open_records(data, tmp_path / "1"), encoder, tmp_path / "1", num_proc=1)
    two = token_table(open_records(data, tmp_path / "2"), encoder, tmp_path / "2", num_proc=2)
    assert one is not None and two is not None and one[:] == two[:] and set(one.column_names) == set(two.column_names)
    files = list((tmp_path / "2").glob("tokens-*/*.arrow"))
    assert len(files) == 2


def test_tokens_are_computed_once_for_all_that_they_depend_on(data: Path, tmp_path: Path, monkeypatch) -> None:
    def count(**changes: Any) -> int:
        open_data(data, tmp_path, **changes)
        return len(tables(tmp_path, "tokens"))

    assert count() == 1
    with monkeypatch.context() as patch:
        patch.setattr(RecordEncoder, "row", lambda *_: pytest.fail("encoded again"))
        assert count() == 1
        assert count(max_length=30, visual_tokens=307, image_aspect_ratio="pad", image_folder="elsewhere") == 1
    assert count(tokenizer=unigram()) == 2
    assert count(template="llava_llama_2") == 3
    assert count(mm_use_im_start_end=True) == 4
    with_token = byte_level()
    with_token.add_tokens(["digit"])
    assert count(tokenizer=with_token) == 5
    assert count(find_salient=lambda text: [(0, 1)]) == 5, "nobody knows what a nameless function does"
    assert count(find_salient=lambda text: [(0, 1)], salient_name="spacy:first") == 6
    assert count(find_salient=lambda text: salient_spans(text), salient_name="spacy:other") == 7
    assert count(pretokenise=False, template="v1_mmtag") == 7


def test_padding_and_truncation_do_not_make_another_tokenizer() -> None:
    tokenizer = llama()
    before = tokenizer_key(tokenizer)
    tokenizer.pad_token = "<unk>"
    padded = tokenizer_key(tokenizer)
    tokenizer(["a", "b c d"], padding="max_length", truncation=True, max_length=9)
    assert tokenizer_key(tokenizer) == padded != before


def test_a_family_that_derives_from_another_does_not_get_its_tokens(data: Path, tmp_path: Path) -> None:
    plain = llava_inputs(byte_level(), processor())

    class Shouting(type(plain)):  # type: ignore[misc]
        model_types = ("shouting",)

        def taught(self, turn: str, kinds: Any) -> str:
            return str(super().taught(turn.upper().replace("<IMAGE>", "<image>"), kinds))

    made = {kind: kind(plain.config, plain.tokenizer, plain.processor, "v1") for kind in (type(plain), Shouting)}
    typed = type("Typed", (Shouting,), {"model_types": ("typed",), "__module__": "typed_into_an_interpreter"})
    made[typed] = typed(plain.config, plain.tokenizer, plain.processor, "v1")
    for inputs in made.values():
        read = LazySupervisedDataset(data, inputs, DataConfig(4096, 4, cache_dir=tmp_path / "cache"))
        for number, record in enumerate(read.records):
            assert read.encode(number) == RecordEncoder(inputs).encode(record)
    assert len(tables(tmp_path / "cache", "tokens")) == 2 and made[typed].key is None


def test_a_nameless_finder_still_encodes(data: Path, tmp_path: Path) -> None:
    nothing = open_data(data, tmp_path, find_salient=lambda text: [])
    assert not any(bits & 2 for index in range(len(nothing)) for bits in nothing.encode(index).query_mask)
    rules = open_data(data, tmp_path)
    assert any(bits & 2 for index in range(len(rules)) for bits in rules.encode(index).query_mask)


def test_truncation_happens_when_a_sample_is_read(data: Path, tmp_path: Path) -> None:
    for length, visual in ((4096, 4), (60, 4), (60, 50)):
        cached = open_data(data, tmp_path, max_length=length, visual_tokens=visual)
        lazy = open_data(data, tmp_path, max_length=length, visual_tokens=visual, pretokenise=False)
        found = [cached.encode(index) for index in range(len(cached))]
        assert found == [lazy.encode(index) for index in range(len(lazy))]
        assert any(text.truncated for text in found) == (length == 60)


def test_statistics_are_the_same_from_cached_tokens(data: Path, tmp_path: Path) -> None:
    found = [
        measure(open_data(data, tmp_path, max_length=70, pretokenise=how), range(40), batch_size=4)
        for how in (True, False)
    ]
    assert found[0] == found[1] and found[0].samples == 40 and found[0].truncated > 0


def test_records_that_cannot_be_encoded_are_named_together(data: Path, tmp_path: Path) -> None:
    """`plain` describes images; every third record has none."""
    with pytest.raises(ValueError, match=r"14 of 40 records cannot be encoded:\n  record '0': .*\n  record '3': "):
        open_data(data, tmp_path / "cache", template="plain")
    assert not tables(tmp_path / "cache", "tokens")
    lazy = open_data(data, tmp_path / "cache", template="plain", pretokenise=False)
    with pytest.raises(ValueError, match="record '3': Template 'plain' describes images"):
        lazy.encode(3)


# === Mixtures ===


def mix(folder: Path, text: str) -> Path:
    path = folder / "mix.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    write(tmp_path / "a.json", conversations(10, seed=1))
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "b.json", conversations(7, seed=2))
    return tmp_path


def test_weights_are_counted_exactly(sources: Path) -> None:
    path = mix(
        sources,
        "sources:\n  - {path: a.json, weight: 2.3, image_folder: images/a, name: first}\n"
        "  - {path: sub/b.json, weight: 0.5}\n  - {path: a.json, weight: 0}\n",
    )
    dataset = open_data(path, sources / "cache", image_folder="default")
    a, b = read_records(sources / "a.json"), read_records(sources / "sub" / "b.json")
    turns = [record.turns for record in dataset.records]
    assert len(dataset) == 23 + 4 and turns[:20] == [record.turns for record in a] * 2
    third = [a.index(record) for record in a if record.turns in turns[20:23]]
    assert len(third) == 3 and turns[20:23] == [a[index].turns for index in third]
    assert len({record.turns for record in dataset.records[23:]}) == 4
    assert {record.turns for record in dataset.records[23:]} <= {record.turns for record in b}
    assert {(r.source, r.image_folder) for r in dataset.records[:23]} == {("first", str(sources / "images/a"))}
    assert {(r.source, r.image_folder) for r in dataset.records[23:]} == {("sub/b.json", None)}
    lines = dataset.describe().splitlines()
    assert lines[0].startswith("first: 10 records x 2.3 = 23 samples, 85.2% of 27, images in ")
    assert lines[1] == "sub/b.json: 7 records x 0.5 = 4 samples, 14.8% of 27"
    lazy = open_data(list(dataset.records), sources / "cache")
    assert [dataset.encode(i) for i in range(27)] == [lazy.encode(i) for i in range(27)]
    assert dataset.lengths.tolist() == lazy.lengths.tolist() and len(tables(sources / "cache", "tokens")) == 2


def test_the_draw_depends_on_the_seed_alone_and_grows_with_the_weight(sources: Path) -> None:
    assert draw_rows(1000, 0.25, 3).tolist() == draw_rows(1000, 0.25, 3).tolist() != draw_rows(1000, 0.25, 4).tolist()
    assert set(draw_rows(1000, 0.25, 3)) < set(draw_rows(1000, 0.5, 3))
    assert np.bincount(draw_rows(1000, 3.1, 0)).tolist().count(4) == 100
    text = "sources:\n  - {path: a.json, weight: 0.5}\n"
    first, again, other = (
        open_mix(mix(sources, text + seed), sources / "cache") for seed in ("", "seed: 0\n", "seed: 1\n")
    )
    assert list(first) == list(again) and first.fingerprint == again.fingerprint != other.fingerprint
    heavier = open_mix(mix(sources, text.replace("0.5", "0.6")), sources / "cache")
    assert heavier.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sources:\n  - {path: none.json}", "There is no data file '.*none.json'; paths start at the folder"),
        ("sources:\n  - {path: a.json, wieght: 2}", "Source 'a.json' has the unknown key 'wieght'; known are path"),
        ("sources:\n  - {path: a.json, weight: -1}", "has the weight -1; it must be a number from 0 up"),
        ("sources:\n  - {path: a.json, weight: .inf}", "has the weight inf"),
        ("sources:\n  - {path: a.json, weight: yes}", "has the weight True"),
        ("sources:\n  - {path: a.json, image_folder: 3}", "'image_folder' is 3; it must be text"),
        ("sources:\n  - {path: a.json}\nseed: x", "The seed is 'x'; it must be a whole number"),
        ("sources:\n  - {path: a.json}\nsorces: []", "The mixture has the unknown key 'sorces'; known are sources"),
        ("sources:\n  - a.json", "Source 0 is 'a.json'; it must be a mapping with a 'path'"),
        ("sources:\n  - {path: x.json, weight: -1, odd: 1}", "has 3 fault"),
        ("sources: []", "must hold a list under the key 'sources'"),
        ("- a.json", "must hold a list under the key 'sources'"),
        ("sources: [", "is not valid YAML"),
        ("sources:\n  - {path: a.json, weight: 0.01}", "The weights of the mixture leave no sample"),
    ],
)
def test_faulty_mixtures_are_told_in_words(sources: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_data(mix(sources, text), sources / "cache")


def test_a_missing_mixture_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no mixture '.*none.yml'; check --data_path"):
        open_mix(tmp_path / "none.yml", tmp_path)


# === Workers ===


def test_two_workers_keep_the_order(data: Path, tmp_path: Path) -> None:
    text_only = [record for record in json.loads(data.read_text("utf-8")) if "image" not in record]
    dataset = open_data(write(tmp_path / "text.json", text_only), tmp_path / "cache")
    sampler = EpochSampler(len(dataset), 3, 2, lengths=dataset.lengths, kinds=dataset.has_image)
    expected = [dataset.records[index].id for index in sampler]
    loader = DataLoader(dataset, 2, sampler=sampler, num_workers=2, collate_fn=list)
    assert [sample["sample_id"] for batch in loader for sample in batch] == expected
    assert len(set(expected)) == len(text_only)


def test_a_data_set_travels_to_spawned_workers_without_its_data(tmp_path: Path) -> None:
    path = write(tmp_path / "long.json", conversations(2000, words=60))
    dataset = open_data(path, tmp_path, pretokenise=False)
    alone = len(pickle.dumps(open_data(read_records(path)[:1], tmp_path)))
    sent = pickle.dumps(dataset)
    assert len(sent) < alone + 100_000 < path.stat().st_size / 4
    assert pickle.loads(sent).records[1234] == dataset.records[1234]


def test_workers_do_not_copy_what_they_read(tmp_path: Path) -> None:
    """Memory that a worker shares with nobody: a list grows it by all of the data, a table does not."""
    path = write(tmp_path / "long.json", conversations(8000, words=60))
    in_list = open_data(read_records(path), tmp_path)
    in_table = open_data(path, tmp_path, pretokenise=False)

    def growth(dataset: LazySupervisedDataset) -> float:
        found = list(read_in_workers(dataset, workers=2, encode_every=10**9))
        assert len({worker["characters"] for worker in found}) == 1
        return max(worker["after"]["uss"] - worker["before"]["uss"] for worker in found)

    copied = growth(in_list)
    assert copied > 15
    assert growth(in_table) < copied / 3
