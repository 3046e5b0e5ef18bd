"""`python -m llava.bench`: what it compares does equal work, its limits are the arithmetic's, nothing stays behind."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from tiny_folder import write_model

from llava.bench import attribution, memory_choice, modes
from llava.bench.__main__ import main
from llava.bench.cases import Case, Setting
from llava.bench.clock import in_turn
from llava.bench.inputs import rows_of, text_lengths
from llava.bench.peers import stock_twin
from llava.bench.published_scoring import published_forward
from llava.compression.config import CompressionConfig
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.cost.dimensions import CLIP_L_336
from llava.cost.flops import kv_bytes, prefill_flops, training_flops, visual_tokens_per_layer
from llava.cost.shapes import MODELS
from llava.model.measured_work import shapes_of_model
from llava.model.random_weights import SHAPES, random_config, random_model

DUET = CompressionConfig.resolve(tiny.DUET)
NONE = CompressionConfig()
CPU = torch.device("cpu")
BUDGET = "v2v: {dominant: 6, contextual: 2}\nt2v: {layers: [2, 4], keep: [0.5, 0.0]}\n"


def llava(**config: Any) -> Any:
    """A model whose vocabulary holds all that the batches use."""
    torch.manual_seed(0)
    return tiny.tiny_llava(**{"dtype": torch.float64, "vocab_size": 64} | config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llava-tiny")


# ------------------------------------------------------------------------------------------------------------ inputs


def test_ragged_rows_are_as_long_on_average_as_equal_ones_and_as_unequal_as_instruction_data() -> None:
    assert text_lengths("equal", 3, 64) == (64, 64, 64)
    assert text_lengths("ragged", 4, 64) == (21, 40, 66, 129)
    many = text_lengths("ragged", 999, 200)
    assert statistics.mean(many) == pytest.approx(200, rel=0.01) and many == tuple(sorted(many))
    assert statistics.median(many) == pytest.approx(200 / 2.718281828 ** (0.8**2 / 2), rel=0.03)
    with pytest.raises(ValueError, match="--text is 'long'; it must be equal or ragged"):
        text_lengths("long", 4, 64)


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_hold_so_much_text_and_one_image_and_are_trained_on_their_last_fifth(side: str) -> None:
    lengths = (9, 21, 15)
    batch = rows_of(llava(), lengths, labels=True, padding_side=side)
    for row, length in enumerate(lengths):
        valid = batch["attention_mask"][row].bool()
        first, last = valid.nonzero()[[0, -1]].flatten().tolist()
        assert last - first + 1 == valid.sum() == length + 1
        assert (first == 0) if side == "right" else (last == valid.numel() - 1)
        ids, labels = batch["input_ids"][row][valid], batch["labels"][row]
        assert (ids == IMAGE_TOKEN_INDEX).sum() == 1 and (ids[-length // 5 :] != IMAGE_TOKEN_INDEX).all()
        supervised = labels[valid] != IGNORE_INDEX
        assert supervised.nonzero().flatten().tolist() == list(range(length + 1 - length // 5, length + 1))
        assert (labels[~valid] == IGNORE_INDEX).all()
    both = [rows_of(llava(), lengths, padding_side=kind) for kind in ("right", "left")]
    content = [one["input_ids"][one["attention_mask"].bool()].tolist() for one in both]
    assert content[0] == content[1], "the same rows, whichever side is padded"
    assert "attention_mask" not in rows_of(llava(), (9, 9))


def test_shapes_of_other_families_are_of_these_families() -> None:
    for name, family in {"llava-next-7b": "anyres", "video-llava-7b": "pad"}.items():
        assert random_config(name).image_aspect_ratio == family
    assert SHAPES["medium"][0].layers == 16 and SHAPES["medium"][0].width == 512
    model = random_model("video-llava-7b", torch.device("meta"), torch.bfloat16)
    assert [name for name, _ in model.named_towers()] == ["image_tower", "video_tower"]
    assert model.get_video_tower().config.add_time_attn and not model.get_image_tower().config.add_time_attn


# ------------------------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("lengths", [(12, 12), (9, 21, 15)])
@pytest.mark.parametrize("config", [NONE, DUET], ids=["none", "duet"])
def test_the_published_way_of_scoring_comes_to_the_same_loss(lengths: tuple[int, ...], config: Any) -> None:
    model = llava()
    batch = rows_of(model, lengths, labels=True)
    slow = published_forward(model, batch, config)
    fast = model.train()(**batch, compression=config, output_layouts=True)
    torch.testing.assert_close(slow.loss, fast.loss)
    layout = fast.layouts[-1]
    for row, kept in enumerate(slow.kept):
        assert kept == tuple(layout.alive()[row].nonzero().flatten().tolist())


def test_stock_transformers_runs_on_the_same_weights_and_gives_the_same_loss() -> None:
    model = llava()
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    twin = stock_twin(model)
    assert frozen and [name for name, weight in model.named_parameters() if not weight.requires_grad] == frozen
    assert {weight.data_ptr() for weight in twin.parameters()} == {weight.data_ptr() for weight in model.parameters()}
    setting = Setting(model, {"none": NONE, "duet": DUET}, (9, 21, 15), peers=("transformers", "published"))
    cases = modes.train_cases(setting)
    (stock,) = (case for case in cases if case.peer == "transformers")
    gradients = []
    for case in (cases[0], stock):
        case.run(case.before())
        gradients.append(model.decoder.layers[2].mlp.up_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert [(case.compression, case.peer) for case in cases] == [
        ("none", ""),
        ("duet", ""),
        ("none", "transformers"),
        ("duet", "published"),
    ]
    for case in modes.prefill_cases(setting):
        case.run(case.before())


@pytest.mark.parametrize("packing", ["auto", "on"])
def test_peers_run_beside_packed_rows_too_and_say_that_theirs_are_padded(packing: str) -> None:
    """With `--packing auto`, the default, the published way of scoring was left out without a word."""
    setting = Setting(
        llava(), {"none": NONE, "duet": DUET}, (9, 21), packings=(packing,), peers=("transformers", "published")
    )
    for mode in (modes.train_cases, modes.prefill_cases):
        cases = mode(setting)
        found = [(case.compression, case.packing, case.peer) for case in cases]
        assert found[:3] == [("none", "off", ""), ("none", packing, ""), ("duet", packing, "")]
        assert found[3:] == [("none", "off", "transformers"), ("duet", "off", "published")]
        assert cases[4].work == cases[2].work
        cases[4].run(cases[4].before())


def test_what_a_mode_does_not_run_is_said() -> None:
    asked = Setting(llava(), {"none": NONE}, (9, 21), packings=("on",), peers=("transformers", "published"))
    said = {mode: modes.left_out(mode, asked) for mode in modes.MODES}
    assert said["prefill"] == said["train"] == ""
    assert said["tower"].startswith("Peers that are not run in this mode: transformers. Nothing is packed")
    assert "transformers, published" in said["decode"] and "Nothing is packed" in said["decode"]
    assert said["recipe"] == "Peers that are not run in this mode: transformers, published."
    assert not any(modes.left_out(mode, Setting(llava(), {"none": NONE}, (9,), ("auto",))) for mode in modes.MODES)


def test_the_published_tower_gives_the_same_features() -> None:
    model = llava()
    setting = Setting(model, {"none": NONE, "duet": DUET}, (12, 12), peers=("published",))
    none, duet, published = modes.tower_cases(setting)
    assert (published.compression, published.peer) == ("duet", "published") and none.work == duet.work
    torch.testing.assert_close(published.run(None), duet.run(duet.before()), atol=1e-5, rtol=1e-3)  # softmax in float32
    with pytest.raises(ValueError, match=r"--peers run beside a LLaVA-1\.5; this model is a llava-next"):
        modes.tower_cases(Setting(llava(image_aspect_ratio="anyres"), {"duet": DUET}, (12, 12), peers=("published",)))


# ------------------------------------------------------------------------------------------------------------ limits


def test_the_limit_counts_the_tokens_of_the_rows_and_no_padding() -> None:
    model, lengths = llava(), (9, 21, 15)
    setting = Setting(model, {"none": NONE, "duet": DUET}, lengths)
    decoder, vision = shapes_of_model(model.config)
    for case, config in zip(modes.train_cases(setting), (NONE, DUET), strict=True):
        tokens = visual_tokens_per_layer(config, decoder.layers, vision)
        assert case.work == sum(training_flops(tokens, length, decoder, vision, passes=3) for length in lengths)
        assert case.padded_work == 3 * training_flops(tokens, 21, decoder, vision, passes=3)
    for case, config in zip(modes.prefill_cases(setting), (NONE, DUET), strict=True):
        tokens = visual_tokens_per_layer(config, decoder.layers, vision)
        assert case.work == sum(prefill_flops(tokens, length, decoder, vision) for length in lengths)


def test_layers_that_are_computed_again_are_work_and_change_no_gradient(monkeypatch) -> None:
    model, lengths = llava(), (9, 21, 15)
    levels = ("off", "before_drop", "on", "auto")
    setting = Setting(model, {"duet": DUET}, lengths, checkpointing=levels)
    decoder, vision = shapes_of_model(model.config)
    tokens = visual_tokens_per_layer(DUET, decoder.layers, vision)
    cases = dict(zip(levels, modes.train_cases(setting), strict=True))
    gradients = []
    for level, again in {"off": 0, "before_drop": 2, "on": 6, "auto": 0}.items():
        case = cases[level]
        assert case.about["checkpointing"] == level and case.about["recomputed_layers"] == again
        more = sum(decoder.layer_flops(length + count) for length in lengths for count in tokens[:again])
        assert case.work == cases["off"].work + more
        case.run(case.before())
        flags = [layer.gradient_checkpointing for layer in model.decoder.layers]
        assert flags == [number < again for number in range(6)]
        gradients.append(model.decoder.layers[1].mlp.up_proj.weight.grad.clone())
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])
    passes = sum(training_flops(tokens, length, decoder, vision, passes=4) for length in lengths)
    assert cases["on"].work == passes, "as llava.cost counts it"
    needs = [memory_choice.step_bytes(setting, DUET, level) for level in memory_choice.LEVELS]
    assert needs == sorted(needs, reverse=True)
    for room, chosen in ((needs[0], "off"), (needs[1], "before_drop"), (needs[2], "on"), (0, "on")):
        monkeypatch.setattr(memory_choice, "room_for", lambda *given, room=room: room)
        assert memory_choice.level_by_memory(setting, DUET) == chosen


def test_decoding_is_bound_by_the_bytes_of_the_weights_and_of_each_rows_cache() -> None:
    model = llava(kv_heads=1)
    setting = Setting(model, {"none": NONE, "duet": DUET}, (10, 14), new_tokens=2)
    dense, duet = modes.decode_cases(setting)
    weights = sum(weight.numel() for weight in model.parameters())
    others = [model.get_input_embeddings(), model.get_vision_tower(), model.get_model().mm_projector]
    weights -= sum(weight.numel() for module in others for weight in module.parameters())
    assert dense.about["bytes_of_weights"] == duet.about["bytes_of_weights"] == weights * 8
    head = 2 * model.config.hidden_size // model.config.num_attention_heads * 8  # key and value of a token in a layer
    seen = sum(visual_tokens_per_layer(NONE, 6, shapes_of_model(model.config)[1]))
    text = 6 * (10 + 11 + 14 + 15)
    assert dense.about["bytes_of_cache"] == head * (4 * seen + text)
    assert dense.units == 4 and dense.work == 2 * weights * 8 + dense.about["bytes_of_cache"] > duet.work


# --------------------------------------------------------------------------------------------------------- attribution


def test_every_part_of_a_step_has_its_time_forward_and_backward() -> None:
    model = llava()
    setting = Setting(model, {"none": NONE, "duet": DUET}, (9, 21), checkpointing=("off", "on"))
    cases = modes.train_cases(setting)
    for case in cases:  # transformers puts hooks of its own on modules when they first run
        case.run(case.before())
    hooks = [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()]
    for case in cases:
        found = attribution.attributed(case, CPU)
        parts = found.parts
        expected = {"tower", "projector", "splice", "loss", "other"}
        expected |= {"v2v", "scoring", "drop"} if case.compression == "duet" else {"layers 0-5"}
        assert expected <= parts.keys()
        for name in [name for name in parts if name.startswith("layers")]:
            assert parts[name].forward > 0 and parts[name].backward > 0
        assert parts["loss"].backward > 0 and parts["projector"].backward > 0
        assert parts["tower"].backward == 0, "it is frozen"
        assert sum(part.total for part in parts.values()) == pytest.approx(found.wall, rel=0.1)
        assert found.peak is not None and found.peak > 0
        assert list(attribution.ordered(parts))[-1] == "other"
    assert [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()] == hooks


class Recorded:
    """An event as torch's profiler records it: milliseconds of its own, and when it began."""

    def __init__(self, name: str, begin: int, own: float, inner: Sequence[Recorded] = (), number: int = -1) -> None:
        self.name, self.sequence_nr, self.cpu_children = name, number, list(inner)
        self.time_range = SimpleNamespace(start=begin)
        self.self_cpu_time_total, self.cpu_parent = own * 1e3, None
        for one in inner:
            one.cpu_parent = self


def test_backward_and_recomputation_belong_to_the_stage_that_made_the_graph() -> None:
    backward = "autograd::engine::evaluate_function: "
    first = Recorded("llava.layers 0-1", 1, 1, [Recorded("aten::linear", 2, 2, [Recorded("aten::mm", 3, 4)], number=7)])
    second = Recorded("llava.layers 2-5", 10, 8, [Recorded("aten::add", 11, 16, number=8)])
    again = Recorded("aten::mm", 22, 64, number=7)  # recomputed, with a number that another thread gave before
    inner = Recorded(f"{backward}MmBackward0", 23, 128, number=7)
    of_second = Recorded(f"{backward}CheckpointFunctionBackward", 21, 32, [again, inner], number=8)
    summed = Recorded(f"{backward}torch::autograd::AccumulateGrad", 30, 256)
    of_first = Recorded(f"{backward}LinearBackward0", 40, 512, number=7)
    events = [Recorded("llava.whole", 0, 0.5, [first, second]), of_first, summed, of_second]
    found = attribution.Attribution()
    attribution._add_up(events, found)
    assert {name: (part.forward, part.backward) for name, part in found.parts.items()} == {
        "other": (0.5, 0),
        "layers 0-1": (7, 512),
        "layers 2-5": (24, 32 + 64 + 128 + 256),
    }


def test_a_gpu_waits_for_what_its_kernels_leave_of_a_call() -> None:
    kernels = attribution.Attribution({"tower": attribution.Part(3), "layers 0-1": attribution.Part(4, 8)}, device=True)
    parts = attribution.matched(kernels, 0.02).parts
    assert {name: part.total for name, part in parts.items()} == {"tower": 3, "layers 0-1": 12, "waiting": 5}
    assert list(attribution.ordered(parts)) == ["tower", "layers 0-1", "waiting"]


def test_running_out_of_memory_is_the_result_of_a_case() -> None:
    def fails(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    cases = [Case("none", "off", lambda _: None), Case("duet", "off", fails), Case("other", "off", lambda _: None)]
    measured = in_turn(cases, 3, CPU)
    assert [len(one.wall) for one in measured.values()] == [3, 0, 3]
    assert measured["duet packing off"].error == "out of memory: CUDA out of memory. Tried to allocate 2 GiB."


# ------------------------------------------------------------------------------------------------------- command line


@pytest.mark.slow
def test_the_command_prints_and_writes_what_was_measured(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "budget.yaml").write_text(BUDGET)
    budget, target, picture = str(tmp_path / "budget.yaml"), tmp_path / "out.json", tmp_path / "out.svg"
    words = ["--shape", str(folder), "--mode", "tower", "prefill", "train", "decode", "--text", "equal", "ragged"]
    words += ["--compression", budget, "--packing", "off", "--repeats", "2", "--threads", "1", "--device", "cpu"]
    words += ["--batch-size", "3", "--text-tokens", "20", "--new-tokens", "2", "--peers", "transformers", "published"]
    threads = torch.get_num_threads()
    try:
        assert main([*words, "--json", str(target), "--picture", str(picture)]) == 0
    finally:
        torch.set_num_threads(threads)
    printed, document = capsys.readouterr().out, json.loads(target.read_text())
    assert document["clock"] == "cpu" and "processor seconds of the one thread" in printed
    assert picture.read_text().startswith("<?xml") and "quotient" in printed and "scoring" in printed
    rows = document["rows"]
    own = [(row["mode"], row["text"], row["compression"]) for row in rows if not row["peer"]]
    every = [(mode, text) for mode in ("tower", "prefill", "train", "decode") for text in ("equal", "ragged")]
    assert own == [(*one, name) for one in every for name in ("none", budget)]
    assert {row["peer"] for row in rows if row["mode"] in ("prefill", "train")} == {"", "transformers", "published"}
    for row in rows:
        assert row["seconds"] == statistics.median(row["rounds"]["cpu"]) and len(row["rounds"]["wall"]) == 2
        first = next(one for one in rows if (one["mode"], one["text"]) == (row["mode"], row["text"]))
        assert row["speedup"] == pytest.approx(first["seconds"] / row["seconds"])
        assert row["quotient"] == pytest.approx(row["speedup"] / row["limit"]) and row["peak_mib"] > 0
        assert row["packing"] == "off" and (row["mode"] != "tower" or row["limit"] == 1)
        assert ("parts_ms" in row) == (not row["peer"])
        parts = [sum(part.values()) for part in row.get("parts_ms", {}).values()]
        assert not parts or sum(parts) == pytest.approx(row["seconds"] * 1e3, rel=0.01, abs=0.05)
    assert all(row["quotient"] == 1 for row in rows if row["compression"] == "none" and not row["peer"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--shape", "huge"], "There is no shape 'huge'; give llava-1.5-7b"),
        (["--shape", "tiny", "--picture", "out.gif"], "--picture is out.gif; a drawing must end in .svg"),
        (["--shape", "tiny", "--json", "nowhere/out.json"], "--json names a file in 'nowhere'"),
        (["--shape", "tiny", "--lengths", "5,9", "--text", "equal", "ragged"], "so give one --text"),
        (["--shape", "tiny", "--lengths", "5,9", "--batch-size", "2"], "neither --batch-size nor --text-tokens"),
        (["--shape", "tiny", "--no-attribution", "--picture", "out.svg"], "leave out --no-attribution"),
    ],
)
def test_flags_that_do_not_fit_are_a_sentence(words: list[str], sentence: str, capsys) -> None:
    assert main([*words, "--device", "cpu"]) == 2
    assert sentence in capsys.readouterr().err


def test_what_was_measured_before_a_mode_that_cannot_be_run_is_written(tmp_path: Path, capsys) -> None:
    """Hours of measuring were lost where a later mode refused the model; rows of given lengths were called equal."""
    folder = write_model(tmp_path / "next", image_aspect_ratio="anyres")
    words = ["--shape", str(folder), "--mode", "tower", "recipe", "--repeats", "1", "--device", "cpu", "--lengths"]
    words += ["9,12", "--no-attribution", "--compression", "none", "--json", str(tmp_path / "out.json")]
    assert main(words) == 2
    assert "--mode recipe makes data for a LLaVA-1.5; this model is a llava-next" in capsys.readouterr().err
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (row["mode"], row["lengths"], row["text"]) == ("tower", [9, 12], "ragged")


def test_a_model_in_transformers_format_is_a_sentence(tmp_path: Path, capsys) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl", "vision_config": {}, "text_config": {}}')
    assert main(["--shape", str(tmp_path), "--device", "cpu"]) == 2
    assert "holds a qwen2_5_vl" in (said := capsys.readouterr().err) and "llava.eval.cost" in said


@pytest.mark.slow
def test_a_whole_recipe_is_timed_with_its_data_its_optimizer_and_its_saving(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "budget.yaml").write_text(BUDGET)
    words = ["--shape", str(folder), "--mode", "recipe", "--compression", str(tmp_path / "budget.yaml"), "--packing"]
    words += ["off", "--repeats", "1", "--threads", "1", "--device", "cpu", "--batch-size", "2", "--text-tokens", "20"]
    threads = torch.get_num_threads()
    try:
        assert main([*words, "--json", str(tmp_path / "out.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    dense, duet = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert dense["limit"] == 1 < duet["limit"] and dense["steps"] == duet["steps"]
    for row in (dense, duet):
        assert {"data", "tower", "projector", "loss", "optimizer", "other"} <= row["parts_ms"].keys()
        assert row["parts_ms"]["optimizer"]["forward"] > 0 and row["parts_ms"]["data"]["forward"] > 0


# ---------------------------------------------------------------------------------------------------------- document


def test_the_predictions_of_the_document_are_those_of_the_arithmetic() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")
    table = text.split("<!-- predictions -->")[1].split("<!-- end -->")[0].strip().splitlines()
    names, counts, *steps = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table if "--" not in line
    )
    decoder, vision = MODELS["llava-1.5-7b"], CLIP_L_336
    tokens = [visual_tokens_per_layer(CompressionConfig.resolve(name), 32, vision) for name in names[1:]]
    assert counts[1:] == [f"{statistics.mean(layers):.1f}".removesuffix(".0") for layers in tokens]
    for row, flops in zip(
        steps,
        (
            lambda layers: training_flops(layers, 200, decoder, vision, passes=4),
            lambda layers: training_flops(layers, 200, decoder, vision, passes=3),
            lambda layers: prefill_flops(layers, 100, decoder, vision),
        ),
        strict=True,
    ):
        dense, *others = (flops(layers) for layers in tokens)
        saved = [f"{one / 1e12:.1f} (-{1 - one / dense:.1%})".replace("%", " %") for one in others]
        assert row[1:] == [f"{dense / 1e12:.1f}", *saved], row[0]


def test_the_bytes_of_decoding_in_the_document_are_those_of_the_arithmetic() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")
    decoder, budgets = MODELS["llava-1.5-7b"], ("none", "duet-192", "duet-128", "duet-64")
    weights = 2 * (
        decoder.layers * (decoder.layer_parameters + 2 * decoder.width) + decoder.width * (decoder.vocab + 1)
    )
    for rows in (1, 8, 32):
        tokens = [visual_tokens_per_layer(CompressionConfig.resolve(name), 32, CLIP_L_336) for name in budgets]
        dense, *others = (weights + rows * kv_bytes(layers, 116, decoder) for layers in tokens)
        cells = [f"{dense / 1e9:.2f} GB", *(f"{one / 1e9:.2f} GB, {dense / one:.2f}x" for one in others)]
        assert f"| {rows} | {' | '.join(cells)} |" in text
