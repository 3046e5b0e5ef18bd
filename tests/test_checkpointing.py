"""Which layers compute their activations again: chosen by the memory of the device, said, kept when a run goes on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_vlms
import torch
from distributed import losses
from tiny import chat, collate, pixels, tiny_llava
from tiny_llava import flags, write_assets

from llava import compress
from llava.train import checkpointing
from llava.train.arguments import parse_arguments
from llava.train.building import choose_trained, load, make_data
from llava.train.checkpointing import LEVELS, checkpoint_before_drop, choose, level_of
from llava.train.facts import RunFacts
from llava.train.longest_rows import LongestRows
from llava.train.train import train


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


def prepared(assets: Path, *words: str, **changes: object) -> Any:
    """Model, data and arguments of a run."""
    arguments = parse_arguments([*flags(assets, assets / "unused", "finetune", **changes), *words])
    model, tokenizer, _ = load(*arguments)
    choose_trained(model, arguments[0], arguments[2])
    return model, make_data(model, tokenizer, *arguments[:2])[0], arguments[2]


@pytest.mark.parametrize("spelling", ["gradient_checkpointing", "activation_checkpointing"])
@pytest.mark.parametrize("value", ["auto", "before_drop", "all", "none", "True", "False"])
def test_both_names_of_the_flag_take_every_value(assets: Path, tmp_path: Path, spelling: str, value: str) -> None:
    args = parse_arguments([*flags(assets, tmp_path, "finetune"), f"--{spelling}", value])[2]
    assert args.activation_checkpointing is (value not in ("False", "none"))
    assert args.checkpointed_layers == (value if value in ("auto", "before_drop") else "all")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"checkpointed_layers": "some"}, r"--checkpointed_layers is 'some'; it must be one of auto, before_drop, all"),
        ({"checkpointed_layers": "before_drop"}, r"--activation_checkpointing is off; give"),
    ],
)
def test_values_that_say_nothing_are_refused(assets: Path, tmp_path: Path, changes: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        parse_arguments(flags(assets, tmp_path, "finetune", **changes))


def test_the_quickest_level_that_fits_is_chosen(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the need of a level by its last byte; one byte less makes it the next."""
    model, data, args = prepared(assets, "--gradient_checkpointing", "auto")
    needs = choose(model, data, args).needs
    assert list(needs) == list(LEVELS) and needs["none"] > needs["before_drop"] > needs["all"]
    for level, then in (("none", "before_drop"), ("before_drop", "all"), ("all", "all")):
        for room, expected in ((needs[level], level), (needs[level] - 1, then)):
            monkeypatch.setattr(checkpointing, "room_for", lambda *given, held=room: held)
            found = choose(model, data, args)
            assert found.level == expected and found.fits == (room >= needs["all"])
    monkeypatch.setattr(checkpointing, "room_for", lambda *given: None)
    assert choose(model, data, args).level == "all", "a device that does not say what is free gets the most careful"


def test_without_drops_there_are_two_levels(assets: Path) -> None:
    assert list(choose(*prepared(assets, compression="none")).needs) == ["none", "all"]


def test_micro_batches_filled_by_tokens_are_those_that_are_estimated(assets: Path) -> None:
    by_rows, by_tokens = (choose(*prepared(assets, **more)) for more in ({}, {"max_tokens_per_device": 100}))
    assert by_rows.rows == 4 and by_tokens.rows == 100 // by_tokens.tokens
    assert by_tokens.needs["none"] < by_rows.needs["none"]


def test_the_longest_rows_are_those_of_the_data(assets: Path) -> None:
    """Against every sample as it is trained on."""
    _, data, _ = prepared(assets)
    per_image = data.config.visual_tokens
    samples = [data[index] for index in range(len(data))]
    texts = [(len(one["input_ids"]) - len(one["images"]), len(one["images"])) for one in samples]
    found = LongestRows.of(data)
    assert found.text_alone == max(text for text, images in texts if not images)
    assert found.beside_media + found.visual == max(text + images * per_image for text, images in texts if images)
    assert found.labels == max(int((one["labels"] != -100).sum()) for one in samples)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_layers_behind_the_first_drop_run_once_and_gradients_stay_the_same(use_reentrant: bool) -> None:
    rows, runs, gradients = [chat(1), chat(3, (2, 1))], [], []
    batch = collate(rows, labels=True) | {"images": pixels(4)}
    for partial in (False, True):
        model = tiny_llava(compression=tiny.DUET).train()
        if partial:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
            checkpoint_before_drop(model)
        counts = [0] * len(model.model.layers)

        def count(module: Any, inputs: Any, number: int, counts: list[int] = counts) -> None:
            counts[number] += 1

        for number, layer in enumerate(model.model.layers):
            layer.mlp.register_forward_pre_hook(lambda module, inputs, number=number: count(module, inputs, number))
        model(**batch).loss.backward()
        runs.append(counts)
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert runs == [[1] * 6, [2, 2, 1, 1, 1, 1]]
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


@pytest.mark.parametrize("family", tiny_vlms.FAMILIES)
def test_every_family_keeps_what_is_behind_the_first_drop(family: str) -> None:
    model: Any = compress(tiny_vlms.vlm(family), {"t2v": {"layers": [2, 4], "keep": [0.5, 0.2]}}).train()
    model.activation_checkpointing_enable()
    checkpoint_before_drop(model)
    assert [layer.gradient_checkpointing for layer in model.decoder.layers] == [True] * 2 + [False] * 4
    inputs = tiny_vlms.batch([tiny_vlms.prompt(family, 1)], side="right", answers=True)
    model(**inputs).loss.backward()
    assert model.lm_head.weight.grad is not None


def test_a_run_says_what_it_chose_and_goes_on_with_it(
    assets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though by then another level would fit."""
    caplog.set_level(logging.INFO)
    changes: dict[str, object] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lora_enable": True}
    words = [*flags(assets, tmp_path / "out", "finetune", **changes), "--gradient_checkpointing", "auto"]
    needs = choose(*prepared(assets, "--gradient_checkpointing", "auto", lora_enable=True)).needs
    monkeypatch.setattr(checkpointing, "room_for", lambda *given: needs["before_drop"])
    train(words)
    assert "Activation checkpointing: the layers before the first drop. GiB that a device needs" in caplog.text
    facts = RunFacts.read(tmp_path / "out/checkpoint-2")
    assert facts is not None and level_of(facts.arguments) == "before_drop"
    described = json.loads((tmp_path / "out/train_summary.json").read_text())["metrics"]
    assert 0 < described["recomputed_flops"] < described["flops"] / 4
    monkeypatch.setattr(checkpointing, "room_for", lambda *given: None)
    caplog.clear()
    train(words)  # it has finished: nothing is chosen anew
    assert "before the first drop, as when the run began" in caplog.text and "nothing is left to do" in caplog.text
    (tmp_path / "out/train_summary.json").unlink()
    caplog.clear()
    train([*words, "--resume_from_checkpoint", str(tmp_path / "out/checkpoint-2")])
    assert "before the first drop, as when the run began" in caplog.text
    assert "will not be equal bit for bit" not in caplog.text
    monkeypatch.setattr(checkpointing, "room_for", lambda *given: needs["before_drop"])
    whole = [*flags(assets, tmp_path / "whole", "finetune", **changes), "--gradient_checkpointing", "auto"]
    train(whole)
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


def test_the_most_careful_rank_wins(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, args = prepared(assets, "--gradient_checkpointing", "auto")
    monkeypatch.setattr(checkpointing, "of_all_ranks", lambda own: [*own, "before_drop", "none"])
    chosen = checkpointing.settle_checkpointing(model, data, args, None)
    assert chosen is not None and chosen.level == "before_drop"
    assert args.activation_checkpointing and args.checkpointed_layers == "before_drop"
