"""A model that computes NaN or infinity is never scored, and never falls silent without a word."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from eval_small import Squares, write_squares
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_folder import write_model, write_pictures
from tiny_vlms import FAMILIES, vlm
from torch import Tensor, nn

from llava import compress
from llava.checkpoints.conversion import convert
from llava.eval import run, run_llava
from llava.eval.benchmarks.questions import Question
from llava.eval.harnesses.harness import losses
from llava.eval.scoring.benchmark_result import Result
from llava.inference.batches import Prompt, Task
from llava.inference.chat import Chat
from llava.inference.engine import Engine
from llava.inference.generation import GenerationSettings
from llava.model.builder import load_pretrained_model
from llava.model.finite import NonFiniteLogitsError, not_finite, require_finite_model
from llava.serve import cli

ROOT = Path(__file__).resolve().parents[1]
UP = "model.layers.1.mlp.up_proj.weight"
QUESTIONS = ("What is it?", "Where is the seven, and what is beside it?", "Is there a two?")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny")


def change(folder: Path, changed: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    changed(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """One weight of many is NaN."""
    folder = write_model(tmp_path / "llava-v1.5-tiny")
    change(folder, lambda weights: weights[UP][3, 5:6].fill_(torch.nan))
    return folder


def test_an_evaluation_of_weights_that_are_not_finite_answers_nothing(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_squares(tmp_path / "eval")
    words = ["--model-path", str(broken), "--eval-folder", str(tmp_path / "eval"), "--output", str(tmp_path / "out")]
    assert run.main([*words, "--device", "cpu"], [Squares()]) == 2
    assert f"{UP} is not finite (NaN or infinity)" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.result.json"))
    assert all(not path.read_text() for path in (tmp_path / "out").rglob("*.answers.jsonl"))


def test_chat_conversion_and_single_questions_name_the_weight_that_is_not_finite(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = write_pictures(tmp_path, 1)[0]
    words = ["--model-path", str(broken), "--image-file", picture, "--device", "cpu"]
    assert cli.main(words) == 2
    assert UP in capsys.readouterr().err
    assert run_llava.main([*words, "--query", "What is it?"]) == 2
    assert UP in capsys.readouterr().err
    for form in ("hf", "llava"):
        with pytest.raises(ValueError, match=UP):
            convert(str(broken), tmp_path / form, form)
        assert not (tmp_path / form).exists()


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_adapters_and_projectors_that_are_not_finite_are_neither_merged_nor_used(tmp_path: Path, number: float) -> None:
    tower = published.write_tower(tmp_path / "clip")
    published.write_language_model(tmp_path / "vicuna")
    published.write_lora(tmp_path / "lora", tower)
    published.write_projector(tmp_path / "projector", tower)
    adapters = torch.load(tmp_path / "lora/adapter_model.bin", weights_only=True)
    adapters[next(name for name in adapters if "lora_B" in name)][0] = number
    torch.save(adapters, tmp_path / "lora/adapter_model.bin")
    merged = (
        r"lora' cannot be used: model\.layers\.\d\.\S+_proj\.weight is not finite .*adapter_model\.bin' holds it as "
    )
    with pytest.raises(ValueError, match=merged + r"base_model\.\S+lora_B\.\S*weight\.$"):
        convert(str(tmp_path / "lora"), tmp_path / "merged", "llava", str(tmp_path / "vicuna"))
    weights = torch.load(tmp_path / "projector/mm_projector.bin", weights_only=True)
    next(iter(weights.values())).view(-1)[-1] = number
    torch.save(weights, tmp_path / "projector/mm_projector.bin")
    with pytest.raises(ValueError, match=r"projector' cannot be used: model\.mm_projector\.\S+ is not finite"):
        load_pretrained_model(str(tmp_path / "projector"), str(tmp_path / "vicuna"), device="cpu")


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_model_whose_weights_are_not_finite_is_not_compressed(family: str, number: float) -> None:
    model = vlm(family)
    name, weight = list(model.named_parameters())[-3]
    with torch.no_grad():
        weight.view(-1)[-1] = number
    with pytest.raises(ValueError, match=rf"cannot be used: {re.escape(name)} is not finite"):
        compress(model, "none")


def test_a_weight_beyond_float16_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    change(folder, lambda weights: weights[UP][0, :1].fill_(1e5))
    with pytest.raises(ValueError, match=rf"{UP} is not finite .*float16 ends at 65504.*bfloat16 or float32"):
        load_pretrained_model(str(folder), device="cpu", dtype="float16")
    for dtype in ("bfloat16", "float32", "auto"):
        load_pretrained_model(str(folder), device="cpu", dtype=dtype)


def test_infinities_of_buffers_and_tensors_without_numbers_are_no_fault(sound: Path) -> None:
    model = nn.Linear(3, 3)
    model.register_buffer("mask", torch.full((3, 3), -torch.inf))
    require_finite_model(model, "model")
    load_pretrained_model(str(sound), device="cpu", device_map={"": "meta"})
    kinds = (torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool)
    tensors = [(str(kind), torch.ones(4).to(kind)) for kind in kinds]
    assert not_finite([*tensors, ("empty", torch.empty(0))]) == []
    assert not_finite((name, tensor.float().fill_(torch.inf).to(tensor.dtype)) for name, tensor in tensors[1:4]) == [
        str(kind) for kind in kinds[1:4]
    ]
    assert not_finite([("eight", torch.tensor([1.0, torch.nan]).to(torch.float8_e4m3fn))]) == ["eight"]


def test_scales_of_quantised_weights_are_looked_at() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(4, dtype=torch.uint8), requires_grad=False)
    model.weight.quant_state = type("State", (), {"absmax": torch.tensor([1.0, torch.nan]), "state2": None})()
    with pytest.raises(ValueError, match=r"weight \(absmax\) is not finite"):
        require_finite_model(model, "model")
    model.weight.quant_state.absmax = torch.tensor([1, 255], dtype=torch.uint8)
    require_finite_model(model, "model")


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 0.7, "top_p": 0.9}])
def test_a_question_whose_numbers_overflow_has_no_answer_and_its_neighbours_keep_theirs(
    sound: Path, options: dict[str, Any]
) -> None:
    tokenizer, model, processor, _ = load_pretrained_model(str(sound), device="cpu", dtype="float64")
    engine = Engine(model, tokenizer, processor, "vicuna_v1")
    questions = [Question(number, text) for number, text in enumerate(QUESTIONS)]
    task = Task((0, 1, 2), tuple(questions))
    beams = options.get("num_beams", 1)
    settings = GenerationSettings(**{"temperature": 0, "max_new_tokens": 5} | options)
    (whole,) = engine.answer_tasks([task], settings)
    calls = []

    def overflow(module: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        calls.append(None)
        if len(calls) == 2:  # the second token of the question in the middle
            logits[beams : 2 * beams, -1, 7] = torch.nan
        return logits

    with_overflow = model.lm_head.register_forward_hook(overflow)
    (part,) = engine.answer_tasks([task], settings)
    with_overflow.remove()
    assert sorted(part.texts) == [0, 2] and list(part.problems) == [1]
    assert "float16" in part.problems[1] and "not finite" in part.problems[1]
    if not options.get("temperature"):  # rows that are sampled share random numbers
        assert part.texts == {row: whole.texts[row] for row in (0, 2)}


def test_an_evaluation_whose_float16_overflows_scores_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "llava-v1.5-tiny")
    change(folder, lambda weights: (weights["model.norm.weight"].fill_(6e4), weights["lm_head.weight"].mul_(100)))
    write_squares(tmp_path / "eval", 3)
    words = ["--model-path", str(folder), "--eval-folder", str(tmp_path / "eval"), "--output", str(tmp_path / "out")]
    assert run.main([*words, "--device", "cpu", "--dtype", "float16"], [Squares()]) == 1
    said = capsys.readouterr().err
    assert "3 questions have no answer" in said and "beyond 65504 overflow in float16" in said
    result = Result.load(next((tmp_path / "out").rglob("*.result.json")))
    assert result.headline is None and result.num_answered == 0


def test_chat_and_harnesses_say_that_an_answer_overflowed(sound: Path, tmp_path: Path) -> None:
    tokenizer, model, processor, _ = load_pretrained_model(str(sound), device="cpu")
    image = Image.open(write_pictures(tmp_path, 1)[0])
    hook = model.lm_head.register_forward_hook(lambda module, inputs, logits: logits / 0)
    for options in ({"do_sample": False}, {"num_beams": 2}, {"do_sample": True, "temperature": 0.5}):
        chat = Chat(model, tokenizer, processor, "v1", max_new_tokens=4, **options)
        with pytest.raises(NonFiniteLogitsError, match="no answer"):
            chat.answer("What is it?", [image])
        assert chat.turns == [] and chat.images == []
    engine, greedy = Engine(model, tokenizer, processor, "vicuna_v1"), GenerationSettings(0, max_new_tokens=4)
    prompt = Prompt("What is it?", (image,))
    with pytest.raises(NonFiniteLogitsError, match="no answer"):
        engine.answer([prompt], greedy)
    with pytest.raises(NonFiniteLogitsError, match="no answer"):
        losses(engine, [prompt], ["A cat"])
    hook.remove()
    assert isinstance(chat.answer("What is it?", [image]), str) and len(chat.turns) == 1


def test_lines_of_the_chat_say_it_and_the_chat_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "llava-v1.5-tiny")
    change(folder, lambda weights: (weights["model.norm.weight"].fill_(1e30), weights["lm_head.weight"].mul_(1e30)))
    (tmp_path / "questions.txt").write_text("What is it?\nWhere is it?\n")
    with (tmp_path / "questions.txt").open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        cli.main(["--model-path", str(folder), "--device", "cpu", "--max-new-tokens", "3"])
    assert capsys.readouterr().err.count("not finite (NaN or infinity)") == 2


def test_a_projector_that_is_not_finite_is_not_taken_out_of_its_model(broken: Path, tmp_path: Path) -> None:
    extract = runpy.run_path(str(ROOT / "scripts/extract_mm_projector.py"))["main"]
    words = ["--model-path", str(broken), "--output", str(tmp_path / "mm_projector.bin")]
    extract(words)  # what is broken is elsewhere
    change(broken, lambda weights: weights["model.mm_projector.2.bias"][1:2].fill_(torch.inf))
    (tmp_path / "mm_projector.bin").unlink()
    with pytest.raises(SystemExit, match=r"model\.mm_projector\.2\.bias .* is not finite"):
        extract(words)
    assert not (tmp_path / "mm_projector.bin").exists()
