"""Training of every family: what is trained, saved, resumed and opened again, with the same commands as LLaVA-1.5."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import losses, summary, weights
from PIL import Image
from safetensors.torch import save_file
from tiny_llava import COLOURS, write_assets
from tiny_onevision import write_onevision
from tiny_qwen import write_qwen
from tiny_qwen3 import write_qwen3, write_qwen3_moe
from tiny_vlms import EVERY, FAMILIES, NATIVE, PEBBLES, QWEN, batch, prompt, vlm
from transformers import AutoModelForImageTextToText

from llava import compress
from llava.checkpoints.conversion import convert
from llava.checkpoints.fit import read_weights
from llava.checkpoints.opening import Opened, open_model
from llava.cost.workload import Workload
from llava.data.collator import REPORTED
from llava.data.families import family_of
from llava.data.micro_batches import DecoderLength
from llava.model.parts import lies_in, paths_of, weights_of
from llava.train.adapters import add_lora
from llava.train.arguments import parse_arguments
from llava.train.building import choose_trained, load, make_data
from llava.train.rates import parameter_groups
from llava.train.run_summary import count_parameters
from llava.train.train import train

SHOWN = dict.fromkeys(("video_llava", *QWEN, "llava_onevision"), ("image", "video"))
PARTS = {
    "llava": (("model.vision_tower",), ("model.multi_modal_projector",)),
    "llava_next": (("model.vision_tower",), ("model.multi_modal_projector",)),
    "video_llava": (("model.image_tower", "model.video_tower"), ("model.multi_modal_projector",)),
    "qwen2_5_vl": (("model.visual",), ("model.visual.merger",)),
    **dict.fromkeys(
        ("qwen3_vl", "qwen3_vl_moe"),
        (("model.visual",), ("model.visual.merger", "model.visual.deepstack_merger_list")),
    ),
    "llava_onevision": (("model.vision_tower",), ("model.multi_modal_projector",)),
    PEBBLES: ((), ("eye",)),
    **dict.fromkeys(NATIVE, (("model.vision_tower",), ("model.mm_projector",))),
}


@pytest.mark.parametrize("family", EVERY)
def test_a_family_says_where_its_towers_and_projectors_are_and_what_is_never_trained(family: str) -> None:
    model: Any = compress(vlm(family), "none")
    towers, projectors = PARTS[family]
    assert paths_of(model, model.vision_towers()) == towers
    assert paths_of(model, model.projectors()) == projectors
    model.requires_grad_(True)
    inputs = batch([prompt(family, 0, SHOWN.get(family, ("image",)))], answers=True)
    model(**inputs).loss.backward()
    unused = set(weights_of(model, model.unused_modules()))
    idle = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert idle - {"model.image_newline"} == unused
    assert all(lies_in(name, towers) for name in unused)


def test_a_family_that_does_not_say_its_parts_is_told_so() -> None:
    model = compress(vlm(PEBBLES), "none")
    with pytest.raises(ValueError, match=r"CompressedPebbles does not say projectors.*docs/plug-in\.md"):
        super(type(model), model).projectors()
    with pytest.raises(ValueError, match="no part of the CompressedPebbles"):
        paths_of(model, [torch.nn.Linear(1, 1)])


@pytest.mark.parametrize("family", EVERY)
def test_layouts_can_be_had_without_a_compression_and_change_nothing(family: str) -> None:
    model: Any = compress(vlm(family), "none")
    inputs = batch([prompt(family, 0, SHOWN.get(family, ("image",)))], answers=True)
    output = model(**inputs, output_layouts=True, return_logits=True)
    torch.testing.assert_close(output.loss, model(**inputs).loss)
    assert len(output.layouts) == 1 and output.layouts[0].visual[0] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_read_back_under_the_names_that_published_checkpoints_have(family: str, tmp_path: Path) -> None:
    model: Any = compress(vlm(family, dtype=torch.float32), "none")
    model.save_pretrained(tmp_path)
    other: Any = compress(vlm(family, dtype=torch.float32, seed=1), "none")
    read_weights(other, tmp_path)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, other.get_parameter(name)), name
    (tmp_path / "model.safetensors").unlink()
    save_file({"lm_head.weight": torch.zeros(64, 32)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks '"):
        read_weights(other, tmp_path)


def test_the_work_of_a_tower_is_that_of_its_modules() -> None:
    model: Any = compress(vlm("qwen2_5_vl"), "none")
    work = Workload.of(model, False)
    visual, shape = model.model.visual, work.vision
    maps = [weight for name, weight in visual.named_parameters() if weight.dim() > 1 and "merger" not in name]
    assert shape is not None and work.group == 4
    patches = 64
    attention = shape.flops(patches) - 2 * patches * sum(map(torch.Tensor.numel, maps))
    full, width = len(visual.config.fullatt_block_indexes), visual.config.hidden_size
    seen = full * patches + (visual.config.depth - full) * min(patches, shape.window)
    assert attention == 4 * width * patches * seen
    assert work.projector == sum(weight.numel() for weight in visual.merger.parameters() if weight.dim() > 1)


# === Whole runs ===

BUDGET = {"v2v": {"dominant": 2, "contextual": 1, "cluster_width": 2}, "t2v": {"layers": [2, 3], "keep": [0.5, 0.0]}}


@dataclass(frozen=True)
class Backbone:
    """How tests start from a model that is published in transformers' format.

    Attributes:
        write: makes its folder.
        prefix: of the names of the decoder's weights in published files.
    """

    write: Callable[[Path], Path]
    tower: str


BACKBONES = {
    "qwen2_5_vl": Backbone(write_qwen, "visual."),
    "qwen3_vl": Backbone(write_qwen3, "model.visual."),
    "qwen3_vl_moe": Backbone(write_qwen3_moe, "model.visual."),
    "llava_onevision": Backbone(write_onevision, "vision_tower."),
}
ALL = pytest.mark.parametrize("name", BACKBONES)
DENSE = pytest.mark.parametrize("name", [name for name in BACKBONES if name != "qwen3_vl_moe"])
"""For what experts have no part in."""
NEWLINE = "image_newline"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a budget, and a folder for each backbone; tests add what they trained."""
    folder = write_assets(tmp_path_factory.mktemp("backbones"))
    for name, backbone in BACKBONES.items():
        backbone.write(folder / name)
    (folder / "budget.yaml").write_text(json.dumps(BUDGET))
    return folder


def flags(place: Path, name: str, output: Path, **changes: object) -> list[str]:
    """Command line of a run of four steps from a backbone."""
    options: dict[str, object] = {
        "model_name_or_path": place / name,
        "image_folder": place / "images",
        "data_path": place / "chats.json",
        "output_dir": output,
        "compression": place / "budget.yaml",
        "use_cpu": True,
        "bf16": False,
        "model_max_length": 256,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 7,
    }
    options |= changes
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def trained(place: Path, name: str, kind: str, **changes: object) -> Path:
    """The folder of a run, which is made once for all tests that look at it."""
    output = place / f"{name}-{kind}"
    return output if output.is_dir() else train(flags(place, name, output, **changes))


def opened(*folders: Path) -> Opened:
    return open_model(*map(str, folders), device="cpu", dtype=torch.float32)


def asked(found: Opened, place: Path) -> dict[str, Any]:
    """A batch of a question about an image and one without."""
    family = family_of(found.model.config)
    template = family.template_for(found.model.config, "model")
    inputs = family(found.model.config, found.tokenizer, found.preprocessor, template)
    image = inputs.image(Image.open(place / f"images/{next(iter(COLOURS))}.png").convert("RGB"), "An image")
    rows = [inputs.prompt([inputs.question("Which colour is it?", [image])], [image]), inputs.prompt(["Blue?"], [])]
    return inputs.batch(rows)


def full(place: Path, name: str) -> Path:
    return trained(place, name, "full", save_strategy="steps", save_steps=2)


@ALL
def test_a_model_that_was_trained_here_opens_in_plain_transformers_and_keeps_its_budget(place: Path, name: str) -> None:
    folder = full(place, name)
    found, start = opened(folder), opened(place / name)
    assert found.model.compression.to_dict()["t2v"]["keep"] == (0.5, 0.0) or found.model.compression.t2v.keep == (
        0.5,
        0,
    )
    assert start.model.compression.t2v is None
    stock = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = {key: value for key, value in asked(found, place).items() if key != "query_mask"}
    with torch.no_grad():
        found.model.set_compression("none")
        torch.testing.assert_close(found.model(**inputs).logits, stock(**inputs).logits)
    before, after = weights(place / name), weights(folder)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    projectors = weights_of(start.model, start.model.projectors()).values()
    still = [key for key in before if key not in moved and key != NEWLINE]  # no image here has one, with a budget
    assert still and all(key.startswith(BACKBONES[name].tower) for key in still), "the tower is frozen, nothing else"
    assert moved | set(still) >= set(before) - {NEWLINE}
    assert len(projectors) > 0 and losses(folder)[-1] < losses(folder)[0]
    counted = summary(folder)["metrics"]
    crops = 2 if name == "llava_onevision" else 1
    assert counted["images"] == crops * counted["samples_with_image"] == crops * 12
    assert counted["visual_tokens_after_layer_3"] == 0 < counted["visual_tokens_entered"]


@ALL
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(place: Path, name: str, tmp_path: Path) -> None:
    done = full(place, name)
    shutil.copytree(done / "checkpoint-2", tmp_path / "out/checkpoint-2")
    train(flags(place, name, tmp_path / "out", save_strategy="steps", save_steps=2))
    here, there = weights(tmp_path / "out"), weights(done)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)
    assert losses(tmp_path / "out")[-2:] == losses(done)[-2:]


@DENSE
def test_a_projector_is_pretrained_alone_and_fine_tuning_begins_with_it(place: Path, name: str, tmp_path: Path) -> None:
    folder = trained(place, name, "pretrain", tune_mm_mlp_adapter=True)
    assert not list(folder.glob("*.safetensors"))
    base, found = opened(place / name), opened(folder, place / name)
    projector = set(weights_of(base.model, base.model.projectors()))
    assert set(torch.load(folder / "mm_projector.bin", weights_only=True)) - {f"model.{NEWLINE}"} == projector
    for key, weight in found.model.named_parameters():
        assert torch.equal(weight, base.model.get_parameter(key)) == (key not in projector), key
    options = {"pretrain_mm_mlp_adapter": folder / "mm_projector.bin", "freeze_mm_mlp_adapter": True}
    train(flags(place, name, tmp_path / "out", max_steps=1, **options))
    tuned = opened(tmp_path / "out").model
    assert all(torch.equal(found.model.get_parameter(key), tuned.get_parameter(key)) for key in projector)


@ALL
def test_adapters_sit_on_the_language_model_alone_and_open_over_their_base(place: Path, name: str) -> None:
    options = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": "q,k,v,o"}
    folder = trained(place, name, "lora", save_strategy="steps", save_steps=2, **options)
    base, found = opened(place / name).model, opened(folder).model
    changed = {key for key, weight in found.named_parameters() if not torch.equal(weight, base.get_parameter(key))}
    (decoder,) = paths_of(base, [base.decoder])
    maps = {f"{decoder}.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(4) for part in "qkvo"}
    assert changed == maps | set(weights_of(base, base.projectors()))
    assert found.compression.t2v is not None
    peft = pytest.importorskip("peft")
    stock = AutoModelForImageTextToText.from_pretrained(place / name, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(stock, folder).merge_and_unload()
    for key in maps:
        torch.testing.assert_close(merged.get_parameter(key), found.get_parameter(key))
    whole = convert(str(folder), place / f"{name}-merged", "llava", dtype=torch.float32)
    again = opened(whole)
    assert again.preprocessor is not None and again.model.compression == found.compression
    assert all(torch.equal(weight, again.model.get_parameter(key)) for key, weight in found.named_parameters())
    files = {"preprocessor_config.json", "tokenizer.json", "chat_template.jinja"}
    assert {path.name for path in whole.iterdir()} >= files | ({path.name for path in (place / name).glob("video_*")})


@DENSE
def test_a_frozen_tower_stays_out_of_the_graph_where_activations_are_computed_again(
    place: Path, name: str, tmp_path: Path
) -> None:
    arguments = parse_arguments(flags(place, name, tmp_path, activation_checkpointing=True, lora_enable=True))
    model, tokenizer, processor = load(*arguments)
    choose_trained(model, arguments[0], arguments[2])
    dataset, collator = make_data(model, tokenizer, *arguments[:2], processor)
    model.activation_checkpointing_enable()
    model = add_lora(model, arguments[2]).train()
    graphs: list[bool] = []
    tower = model.vision_towers()[0]
    next(module for module in tower.modules() if isinstance(module, torch.nn.Linear)).register_forward_hook(
        lambda module, inputs, output: graphs.append(output.requires_grad)
    )
    batch = {key: value for key, value in collator([dataset[0]]).items() if key not in REPORTED}
    model(**batch).loss.backward()
    assert graphs and not any(graphs)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.grad is not None for weight in trained)


@DENSE
def test_adapters_go_on_from_their_checkpoint(place: Path, name: str, tmp_path: Path) -> None:
    options = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": "q,k,v,o"}
    done = trained(place, name, "lora", save_strategy="steps", save_steps=2, **options)
    shutil.copytree(done / "checkpoint-2", tmp_path / "out/checkpoint-2")
    train(flags(place, name, tmp_path / "out", save_strategy="steps", save_steps=2, **options))
    here, there = weights(tmp_path / "out"), weights(done)
    assert all(torch.equal(here[key], there[key]) for key in there)


@pytest.mark.parametrize(
    ("name", "bits"), [(name, bits) for name in BACKBONES for bits in (4, 8) if (name, bits) != ("qwen3_vl_moe", 8)]
)
def test_quantised_layers_train_adapters(place: Path, name: str, bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    train(flags(place, name, tmp_path / "out", max_steps=2, lora_enable=True, lora_r=4, bits=bits))
    parameters = summary(tmp_path / "out")["parameters"]
    assert parameters["vision_tower"]["trained"] == parameters["lm_head"]["trained"] == 0
    assert parameters["mm_projector"]["trained"] == parameters["mm_projector"]["all"] > 0
    base, found = opened(place / name).model, opened(tmp_path / "out").model
    (decoder,) = paths_of(base, [base.decoder])
    maps = 4 if name == "qwen3_vl_moe" else 7  # experts have none, and neither quantised nor adapted weights
    changed = {key for key, weight in found.named_parameters() if not torch.equal(weight, base.get_parameter(key))}
    assert len([key for key in changed if key.startswith(f"{decoder}.layers.")]) == 4 * maps


@DENSE
def test_a_length_that_leaves_no_answer_is_refused_before_anything_is_trained(
    place: Path, name: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"samples have no label at all.*--model_max_length"):
        train(flags(place, name, tmp_path / "out", model_max_length=16))


@DENSE
@pytest.mark.parametrize("flag", ["version v1", "image_aspect_ratio pad", "video_flip 0.5", "video_tower somewhere"])
def test_a_flag_of_llavas_own_models_is_refused(place: Path, name: str, flag: str, tmp_path: Path) -> None:
    key, value = flag.split()
    with pytest.raises(ValueError, match=rf"--{key} '?{value}'? is a flag of LLaVA's own models, but .* is a {name}"):
        train(flags(place, name, tmp_path / "out", **{key: value}))


@DENSE
def test_held_out_loss_is_that_of_transformers_and_the_best_weights_come_back(
    place: Path, name: str, tmp_path: Path
) -> None:
    """Rates that grow past all reason: the first checkpoint is the best, and the run ends with it."""
    held_out = json.loads((place / "chats.json").read_text())[:3] + json.loads((place / "chats.json").read_text())[-1:]
    (tmp_path / "held.json").write_text(json.dumps(held_out))
    steps: dict[str, object] = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    more: dict[str, object] = {"eval_data_path": tmp_path / "held.json", "load_best_model_at_end": True}
    growing: dict[str, object] = {"max_steps": 2, "warmup_steps": 2, "learning_rate": 20.0, "compression": "none"}
    out = train(flags(place, name, tmp_path / "out", **steps | more | growing))
    found = [entry["eval_loss"] for entry in summary(out)["evaluations"]]
    first, last = weights(out / "checkpoint-1"), weights(out / "checkpoint-2")
    assert found[0] < found[1] and any(not torch.equal(first[key], last[key]) for key in first)
    assert all(torch.equal(weight, first[key]) for key, weight in weights(out).items())
    opened_best = opened(out)
    stock = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    family = family_of(opened_best.model.config)
    inputs = family(opened_best.model.config, opened_best.tokenizer, opened_best.preprocessor, "chat_template")
    total = count = 0.0
    for record in held_out:
        turns = [inputs.marked(turn["value"]) for turn in record["conversations"]]
        media = [inputs.image(Image.open(place / "images" / record["image"]), "")] if "image" in record else []
        batch = inputs.batch([inputs.conversation(turns, media)])
        labels, known = batch["labels"], {key: batch[key] for key in batch if key not in ("labels", "query_mask")}
        with torch.no_grad():
            logits = stock(**known).logits
        total += float(torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum"))
        count += int((labels[:, 1:] != -100).sum())
    assert found[-1] == pytest.approx(total / count, rel=1e-4)


# === LLaVA-NeXT, and the flags of the other programs that say what is trained ===

CROPS = {
    "model_name_or_path": "lm",
    "vision_tower": "tower",
    "mm_projector_type": "mlp2x_gelu",
    "version": "v1",
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
}


def next_flags(place: Path, output: Path, **changes: object) -> list[str]:
    """Command line of a LLaVA-NeXT from a language model and a tower of 16 pixels."""
    options = {name: place / value if value in ("lm", "tower") else value for name, value in CROPS.items()}
    return flags(place, "lm", output, **options | {"compression": "none", "max_steps": 2} | changes)


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str) -> set[bool]:
    return {bool((before[name] != after[name]).any()) for name in before if part in name}


def test_a_llava_next_is_pretrained_fine_tuned_and_given_adapters(place: Path) -> None:
    first = train(next_flags(place, place / "next-1", tune_mm_mlp_adapter=True))
    held = torch.load(first / "mm_projector.bin", weights_only=True)
    assert "model.image_newline" in held and len(held) == 5
    rates = {"mm_projector_lr": 1e-3, "mm_vision_tower_lr": 1e-3, "mm_tunable_parts": ",".join(PARTS_OF_NEXT)}
    file = first / "mm_projector.bin"
    second = train(next_flags(place, place / "next-2", pretrain_mm_mlp_adapter=file, **rates))
    config = json.loads((second / "config.json").read_text())
    assert config["image_grid_pinpoints"] == [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
    assert (config["image_aspect_ratio"], config["mm_patch_merge_type"]) == ("anyres", "spatial_unpad")
    tuned, projector = weights(second), {name: held[name] for name in held}
    assert moved(projector, tuned, "") == {True}, "projector and newline went on from the file, and were trained"
    assert summary(second)["parameters"]["vision_tower"]["trained"] > 0
    count = summary(second)["metrics"]
    assert count["visual_tokens_entered"] > 16, "more than one crop of 4 x 4 patches"
    assert count["images"] > count["samples_with_image"], "each crop is an image for the tower"
    third = train(next_flags(place, place / "next-3", pretrain_mm_mlp_adapter=file, lora_enable=True, lora_r=2))
    found = opened(third, place / "lm").model
    assert found.model.image_newline is not None
    beside = torch.load(third / "non_lora_trainables.bin", weights_only=True)
    (newline,) = (weight for name, weight in beside.items() if name.endswith("image_newline"))
    assert torch.equal(found.model.image_newline, newline)


PARTS_OF_NEXT = ("mm_vision_tower", "mm_mlp_adapter", "mm_language_model")


@pytest.mark.parametrize(
    ("given", "trained"),
    [
        ("--mm_tunable_parts mm_mlp_adapter", {"mm_projector"}),
        ("--mm_tunable_parts mm_language_model", {"layers", "norm", "embed_tokens", "lm_head"}),
        ("--mm_tunable_parts mm_vision_tower,mm_mlp_adapter --freeze_backbone False", {"vision_tower", "mm_projector"}),
        ("--tune_mm_llm True --tune_mm_mlp True", {"mm_projector", "layers", "norm", "embed_tokens", "lm_head"}),
        ("--tune_mm_vision True --tune_mm_mlp False", {"vision_tower"}),
        ("--tune_mm_mlp True --tune_mm_llm False", {"mm_projector"}),
    ],
)
def test_the_parts_that_other_programs_name_are_trained(
    place: Path, tmp_path: Path, given: str, trained: set[str]
) -> None:
    arguments = parse_arguments([*flags(place, "qwen2_5_vl", tmp_path / "out"), *given.split()])
    model = load(*arguments).model
    choose_trained(model, arguments[0], arguments[2])
    counts = count_parameters(model)
    assert {part for part, count in counts.items() if count["trained"]} == trained
    alone = given == "--mm_tunable_parts mm_mlp_adapter"
    assert arguments[0].tune_mm_mlp_adapter == alone, "LLaVA-NeXT saves the projector alone then, Qwen all of it"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--mm_tunable_parts mm_vision_resampler", "accepted are mm_vision_tower.*no resampler"),
        ("--mm_tunable_parts mm_mlp_adapter --tune_mm_llm True", "both say what is trained"),
        ("--tune_mm_llm True --freeze_backbone True", "both say what is trained; choose one set"),
        ("--tune_mm_llm False", "leaves nothing to train"),
        ("--mm_tunable_parts mm_mlp_adapter --lora_enable True", "leaves it out; add mm_language_model"),
        ("--tune_mm_llm True --vision_tower_lr 1e-6", "not among the parts that are trained"),
        ("--dataset_use a,b%50", "names of data sets stand in Qwen's Python code"),
        ("--data_flatten True", "each sample is a row of its batch"),
        ("--image_aspect_ratio anyres_max_0", "must be one of square, pad, anyres, or anyres_max_N"),
        ("--mm_patch_merge_type tiles", "must be one of flat, spatial"),
        ("--lora_enable True --lora_target_modules q,qkv", "holds 'qkv'; accepted are linear maps"),
    ],
)
def test_flags_of_other_programs_that_cannot_be_honoured_are_refused(
    place: Path, tmp_path: Path, given: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        train([*flags(place, "qwen2_5_vl", tmp_path / "out"), *given.split()])


def test_canvases_without_crops_are_refused(place: Path, tmp_path: Path) -> None:
    pinpoints = {"image_grid_pinpoints": "[[16,32]]"}
    with pytest.raises(ValueError, match="add --image_aspect_ratio anyres"):
        train(next_flags(place, tmp_path / "out", image_aspect_ratio="square", **pinpoints))
    with pytest.raises(ValueError, match="crops of 16 x 16 pixels do not fill"):
        train(next_flags(place, tmp_path / "out", image_grid_pinpoints="[[24,32]]"))


def test_projector_and_tower_have_rates_of_their_own_where_one_lies_in_the_other(place: Path, tmp_path: Path) -> None:
    rates = {"mm_projector_lr": 1e-3, "vision_tower_lr": 1e-4, "learning_rate": 1e-2, "weight_decay": 0.1}
    arguments = parse_arguments(flags(place, "qwen2_5_vl", tmp_path / "out", **rates))
    model = load(*arguments).model
    choose_trained(model, arguments[0], arguments[2])
    decayed = {name for name, weight in model.named_parameters() if weight.dim() > 1}
    groups = parameter_groups(model, arguments[2], decayed)
    found = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    merger, visual = model.model.visual.merger, model.model.visual
    assert {found[id(weight)] for weight in merger.parameters()} == {1e-3}
    assert {found[id(weight)] for weight in visual.blocks.parameters()} == {1e-4}
    assert {found[id(weight)] for weight in model.model.language_model.parameters()} == {1e-2}
    assert len(found) == len(list(model.parameters())), "each weight is in one group"


def test_mirrored_videos_need_a_tower_for_videos(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--video_flip mirrors the videos of a Video-LLaVA; add --video_tower"):
        train(next_flags(place, tmp_path / "out", video_flip=0.5))


@DENSE
def test_micro_batches_filled_by_tokens_have_the_losses_of_rows(place: Path, name: str, tmp_path: Path) -> None:
    """And the lengths that fill them are those with which samples enter the decoder."""
    by_rows = full(place, name)
    found = train(flags(place, name, tmp_path / "out", max_tokens_per_device=120))
    assert losses(found) == pytest.approx(losses(by_rows), rel=1e-4)
    assert summary(found)["metrics"]["tokens"] == summary(by_rows)["metrics"]["tokens"]
    assert summary(found)["metrics"]["batches"] > summary(by_rows)["metrics"]["batches"]
    arguments = parse_arguments(flags(place, name, tmp_path / "none"))
    model, tokenizer, processor = load(*arguments)
    dataset, collator = make_data(model, tokenizer, *arguments[:2], processor)
    samples = [dataset[number] for number in (0, 1, len(dataset) - 1)]
    inputs = {key: value for key, value in collator(samples).items() if key not in REPORTED}
    layout = model.train()(**inputs, output_layouts=True).layouts[0]
    counted = list(map(DecoderLength(dataset.inputs, dataset.config.settings, model.compression.v2v), samples))
    ends_of_lines = [0 if name.startswith("qwen") else shown > 0 for shown in layout.visual]
    assert counted == [length + end for length, end in zip(layout.lengths, ends_of_lines, strict=True)]
