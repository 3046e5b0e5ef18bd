"""Float32 weights out of DeepSpeed's pieces, which are written here by hand as ZeRO-2 and ZeRO-3 lay them out."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum
from hostile import new_zip
from safetensors.torch import load_file
from tiny_llava import flags, write_assets
from tiny_qwen import write_qwen
from torch import Tensor

from llava.checkpoints.consolidation import consolidate, main
from llava.checkpoints.opening import open_model
from llava.checkpoints.pickles import UnsafePickleError
from llava.model.builder import load_pretrained_model
from llava.model.weights import read_state_dict
from llava.train.train import train

RANKS = 2


def cut(flat: Tensor, multiple: int) -> list[Tensor]:
    """Equal parts, one a rank, the last padded."""
    length = math.ceil(flat.numel() / multiple) * multiple
    padded = torch.cat([flat, flat.new_zeros(length - flat.numel())])
    return [part.clone() for part in padded.chunk(RANKS)]


def write_zero(folder: Path, stage: int, trained: dict[str, Tensor], frozen: dict[str, Tensor], **tied: str) -> None:
    """`latest` and `global_step2/` with these weights: ZeRO-2 cuts one flat vector, ZeRO-3 every weight."""
    place = folder / "global_step2"
    place.mkdir(parents=True)
    (folder / "latest").write_text("global_step2")
    shapes = [OrderedDict((name, weight.shape) for name, weight in trained.items())]
    frozen_parts = {name: cut(weight.flatten(), RANKS) for name, weight in frozen.items()}
    whole_parts = {name: cut(weight.float().flatten(), RANKS) for name, weight in trained.items()}
    vector = cut(torch.cat([weight.float().flatten() for weight in trained.values()]), 2 * RANKS)
    for rank in range(RANKS):
        fragments = {name: parts[rank] if stage == 3 else frozen[name] for name, parts in frozen_parts.items()}
        model = {
            "module": {},
            "buffer_names": [],
            "param_shapes": shapes,
            "shared_params": tied,
            "ds_version": "0.19.8",
            "frozen_param_shapes": {name: weight.shape for name, weight in frozen.items()},
            "frozen_param_fragments": fragments,
        }
        optimizer = {"zero_stage": ZeroStageEnum(stage), "partition_count": RANKS}
        if stage == 3:
            optimizer["fp32_flat_groups"] = [torch.cat([parts[rank] for parts in whole_parts.values()])]
            torch.save(model, place / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        else:
            optimizer["single_partition_of_fp32_groups"] = [vector[rank]]
            torch.save(model, place / "mp_rank_00_model_states.pt")
        torch.save({"optimizer_state_dict": optimizer}, place / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A projector, adapters and a whole model, each with a `checkpoint-2` of a training without DeepSpeed."""
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    saved: dict[str, object] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    train(flags(folder, folder / "projector", "pretrain", **saved))
    projector = folder / "projector/mm_projector.bin"
    train(flags(folder, folder / "whole", "finetune", pretrain_mm_mlp_adapter=projector, **saved))
    adapted = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, **saved}
    train(flags(folder, folder / "lora", "finetune", pretrain_mm_mlp_adapter=projector, **adapted))
    return folder


def pieces_beside(source: Path, folder: Path, stage: int, names: tuple[str, ...]) -> dict[str, Tensor]:
    """A copy of a checkpoint's settings with ZeRO's pieces of other, longer numbers; the weights they stand for."""
    folder.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    torch.manual_seed(stage)
    weights = {
        name: torch.randn_like(weight.float())
        for file in names
        for name, weight in read_state_dict(source / file).items()
    }
    engine = {
        name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): weight
        for name, weight in weights.items()
    }
    trained = {name: weight for name, weight in engine.items() if "vision_tower" not in name}
    write_zero(folder, stage, trained, {name: engine[name].bfloat16() for name in engine.keys() - trained.keys()})
    return {
        name: weight if "vision_tower" not in name else weight.bfloat16().float() for name, weight in weights.items()
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("with_weights", [True, False])
def test_a_whole_model_has_every_number_and_opens(runs: Path, tmp_path: Path, stage: int, with_weights: bool) -> None:
    """Also where ZeRO-3 was told not to gather weights, so that the pieces are all there is."""
    checkpoint = tmp_path / "checkpoint-2"
    expected = pieces_beside(runs / "whole/checkpoint-2", checkpoint, stage, ("model.safetensors",))
    if not with_weights:
        (checkpoint / "model.safetensors").unlink()
    target = consolidate(checkpoint, tmp_path / "out")
    found = load_file(target / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    tokenizer, model, _, _ = load_pretrained_model(str(target), device="cpu", dtype="auto")
    opened = dict(model.named_parameters())
    assert all(torch.equal(opened[name], expected[name]) for name in expected)
    assert model.config.compression and tokenizer.vocab_size
    assert not [path.name for path in target.iterdir() if path.suffix in (".py", ".pt", ".pth", ".bin")]


@pytest.mark.parametrize(
    ("kind", "names"),
    [("projector", ("mm_projector.bin",)), ("lora", ("adapter_model.safetensors", "non_lora_trainables.bin"))],
)
@pytest.mark.parametrize("stage", [2, 3])
def test_projector_and_adapters_open_over_their_base(
    runs: Path, tmp_path: Path, kind: str, names: tuple[str, ...], stage: int
) -> None:
    expected = pieces_beside(runs / kind / "checkpoint-2", tmp_path / "checkpoint-2", stage, names)
    target = consolidate(tmp_path / "checkpoint-2", tmp_path / "out")
    found = {name: weight for file in names for name, weight in read_state_dict(target / file).items()}
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    _, model, _, _ = load_pretrained_model(str(target), str(runs / "lm"), device="cpu", dtype=torch.float32)
    held = dict(model.named_parameters())["model.mm_projector.0.weight"]
    assert any(torch.equal(held, weight) for name, weight in expected.items() if name.endswith("mm_projector.0.weight"))


def test_a_large_model_is_written_in_shards(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.checkpoints import consolidation as module

    expected = pieces_beside(runs / "whole/checkpoint-2", tmp_path / "checkpoint-2", 2, ("model.safetensors",))
    cut_small = module.split_torch_state_dict_into_shards
    monkeypatch.setattr(
        module, "split_torch_state_dict_into_shards", lambda state: cut_small(state, max_shard_size=40_000)
    )
    target = consolidate(tmp_path / "checkpoint-2", tmp_path / "out")
    files = sorted(target.glob("model-*.safetensors"))
    found = {name: weight for file in files for name, weight in load_file(file).items()}
    assert len(files) > 2 and all(torch.equal(found[name], expected[name]) for name in expected)
    load_pretrained_model(str(target), device="cpu", dtype=torch.float32)


def test_a_hostile_piece_is_refused_and_nothing_is_written(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces_beside(runs / "whole/checkpoint-2", tmp_path / "checkpoint-2", 2, ("model.safetensors",))
    new_zip(tmp_path / "checkpoint-2/global_step2/zero_pp_rank_1_mp_rank_00_optim_states.pt", tmp_path / "marker")
    with pytest.raises(UnsafePickleError, match="system"):
        consolidate(tmp_path / "checkpoint-2", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"consolidate: .*zero_pp_rank_1.*system"):
        main([str(tmp_path / "checkpoint-2"), str(tmp_path / "out")])
    assert not (tmp_path / "marker").exists() and not (tmp_path / "out").exists()


def test_scripts_in_the_folder_are_neither_run_nor_copied(runs: Path, tmp_path: Path) -> None:
    """Older checkpoints hold DeepSpeed's own; anybody can put others there."""
    pieces_beside(runs / "whole/checkpoint-2", tmp_path / "checkpoint-2", 2, ("model.safetensors",))
    for name in ("zero_to_fp32.py", "zero_to_torch.py", "sitecustomize.py"):
        (tmp_path / "checkpoint-2" / name).write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    target = consolidate(tmp_path / "checkpoint-2", tmp_path / "out")
    assert not list(target.glob("*.py")) and not (tmp_path / "marker").exists()


@pytest.mark.parametrize("wrong", ["no latest", "no folder", "a piece", "a weight", "target", "another model"])
def test_what_cannot_be_put_together_is_said(runs: Path, tmp_path: Path, wrong: str) -> None:
    checkpoint, target = tmp_path / "checkpoint-2", tmp_path / "out"
    pieces_beside(runs / "whole/checkpoint-2", checkpoint, 2, ("model.safetensors",))
    settings = json.loads((checkpoint / "config.json").read_text())
    if wrong == "no latest":
        (checkpoint / "latest").unlink()
    elif wrong == "no folder":
        (checkpoint / "latest").write_text("global_step9")
    elif wrong == "a piece":
        (checkpoint / "global_step2/zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    elif wrong == "a weight":
        torch.save({"optimizer_state_dict": {}}, checkpoint / "global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt")
    elif wrong == "target":
        target.mkdir()
        (target / "mine").touch()
    else:
        (checkpoint / "config.json").write_text(json.dumps(settings | {"hidden_size": 64}))
    with pytest.raises(ValueError, match=r"checkpoint-2|out") as refused:
        consolidate(checkpoint, target)
    assert len(str(refused.value)) > 60
    assert not target.exists() or [path.name for path in target.iterdir()] == ["mine"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("lost", [None, "model.visual.merger.mlp.0.bias"])
def test_pieces_of_a_model_of_transformers_make_it_up_or_are_refused(tmp_path: Path, lost: str | None) -> None:
    checkpoint = tmp_path / "checkpoint-2"
    model = open_model(write_qwen(checkpoint), device="cpu").model
    names = dict(model.named_parameters())
    torch.manual_seed(0)
    weights = {name: torch.randn_like(weight) for name, weight in names.items() if name != lost}
    write_zero(checkpoint, 2, weights, {})
    if lost is not None:
        with pytest.raises(ValueError, match=rf"lacks '{lost}' .*but .*checkpoint-2"):
            consolidate(checkpoint, tmp_path / "out")
        return
    whole = open_model(consolidate(checkpoint, tmp_path / "out"), device="cpu", dtype=torch.float32).model
    assert all(torch.equal(weight, weights[name]) for name, weight in whole.named_parameters())
