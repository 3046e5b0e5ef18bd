"""What a recipe needs: counts and formulas against real models, the allocator, DeepSpeed and hand-worked numbers."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DUET, tiny_llava
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

import llava.cost.activations as activations
from llava.compression import CompressionConfig
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.cost.activations import (
    Adapters,
    DeviceBatch,
    Precision,
    head_bytes,
    head_peak,
    in_flight,
    layer_bytes,
    outside_bytes,
    rotary_bytes,
    stored_layers,
)
from llava.cost.flops import visual_tokens_per_layer
from llava.cost.memory import STAGES, RecipeSetting, checkpoint_bytes, peak_memory
from llava.cost.recipes import RECIPES
from llava.cost.shapes import DecoderShape, ModelShape, VisionShape

ROOT = Path(__file__).resolve().parents[1]
SEVEN_B = ModelShape.of("llava-1.5-7b")
# 1024 -> 4096 -> 4096 with biases, and Llama-2-7B's published count.
PROJECTOR = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
LLAMA_7B, LLAMA_13B = 6_738_415_616, 13_015_864_320
TRAINED = LLAMA_7B + PROJECTOR
DUET_192 = CompressionConfig.resolve("duet-192")
TARGETS = r"model\.layers.*(q|k|v|o|gate|up|down)_proj"


# === Counting weights ===


def test_known_models_have_their_published_sizes() -> None:
    assert SEVEN_B.language == LLAMA_7B
    assert ModelShape.of("llava-1.5-13b").language == LLAMA_13B
    assert SEVEN_B.projector == PROJECTOR == 20_979_712
    clip = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    with torch.device("meta"):
        tower = CLIPVisionModel(CLIPVisionConfig(**clip, image_size=336, patch_size=14))
    assert SEVEN_B.tower == sum(weight.numel() for weight in tower.parameters()) == 303_507_456
    assert SEVEN_B.adapter(128) == 319_815_680  # what peft prints for rank 128 on Llama-2-7B


def shape_of(model: Any, **changes: Any) -> ModelShape:
    tower = model.get_vision_tower().config
    shapes = DecoderShape.of(model.config), VisionShape.of(tower)
    return ModelShape("tiny", *shapes, tower.num_hidden_layers, **changes)


@pytest.mark.parametrize(("kind", "layers"), [("linear", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)])
def test_counts_equal_those_of_a_real_model(kind: str, layers: int, tmp_path: Path) -> None:
    model = tiny_llava(mm_projector_type=kind)
    shape = shape_of(model, projector_layers=layers)
    inner = model.get_model()
    assert shape.projector == sum(weight.numel() for weight in inner.mm_projector.parameters())
    assert shape.tower == sum(weight.numel() for weight in inner.vision_tower.parameters())
    assert shape.total == sum(weight.numel() for weight in model.parameters())
    model.config.save_pretrained(tmp_path)
    assert replace(ModelShape.of(str(tmp_path)), name="tiny") == shape


def test_a_tied_head_counts_once() -> None:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    shape = replace(SEVEN_B, decoder=DecoderShape.of(config), tied=True)
    assert shape.language == sum(weight.numel() for weight in LlamaForCausalLM(config).parameters())


def test_adapters_equal_those_of_peft() -> None:
    peft = pytest.importorskip("peft")
    model = tiny_llava()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=TARGETS))
    assert shape_of(model).adapter(3) == sum(w.numel() for w in wrapped.parameters() if w.requires_grad)


@pytest.mark.parametrize("double_quant", [False, True])
def test_quantised_bytes_equal_those_of_bitsandbytes(double_quant: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    shape = replace(SEVEN_B, decoder=DecoderShape(1, 512, 8, 8, 64, 1024, 32))
    weight = torch.randn(shape.layer_linears // 512, 512)
    packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=double_quant, quant_type="nf4")
    stored = packed.nbytes + state.absmax.nbytes
    if double_quant:
        stored += state.state2.absmax.nbytes
    assert shape.quantised_layers(4, double_quant) == pytest.approx(stored, rel=1e-3)


def test_eight_bits_are_a_byte_and_one_scale_an_output() -> None:
    outputs = 4 * 4096 + 2 * 11008 + 4096  # q k v o, gate and up, down
    assert SEVEN_B.quantised_layers(8, double_quant=True) == 32 * (202_375_168 + 4 * outputs)


# === Model states ===


def setting(recipe: str, devices: int = 8, **changes: Any) -> RecipeSetting:
    values: dict[str, Any] = {"devices": devices, "per_host": min(8, devices), "batch_size": 16}
    return RecipeSetting(RECIPES[recipe], SEVEN_B, DUET_192, **values | changes)


def needs(recipe: str, devices: int = 8, **changes: Any) -> dict[str, Any]:
    return {stage.name: peak_memory(setting(recipe, devices, **changes), stage) for stage in STAGES}


def test_a_trained_weight_takes_sixteen_bytes_on_one_device() -> None:
    for name, one in needs("finetune", devices=1).items():
        if name != "3+offload":
            assert one.weights + one.gradients + one.optimizer == 16 * TRAINED, name


def test_zero_divides_states_as_its_paper_says() -> None:
    found = needs("finetune")
    states = {name: (one.weights, one.gradients, one.optimizer) for name, one in found.items()}
    full, part = 2 * TRAINED, 2 * TRAINED / 8
    assert states["1"] == (full, full, 12 * TRAINED / 8)
    assert states["2"] == (full, part, 12 * TRAINED / 8)
    assert states["3"] == (part, part, 12 * TRAINED / 8)
    assert sum(states["3"]) == 13_518_790_656
    assert states["3+offload"] == (0, 0, 0)
    assert sum(states["0"]) == 16 * TRAINED


def test_frozen_weights_have_no_gradient_and_no_optimizer_state() -> None:
    one = needs("pretrain")["2"]
    assert one.weights == 2 * (LLAMA_7B + PROJECTOR) and one.tower == 2 * 303_507_456
    assert one.gradients == 2 * PROJECTOR / 8 and one.optimizer == 12 * PROJECTOR / 8
    lora = needs("finetune_lora", devices=1)["2"]
    trained = 319_815_680 + PROJECTOR
    assert lora.gradients + lora.optimizer == 14 * trained
    assert lora.weights == 2 * (LLAMA_7B + trained)


def test_qlora_stores_the_layers_in_four_bits_and_the_rest_in_sixteen() -> None:
    outside = 2 * 32000 * 4096 + 65 * 4096
    layers = 32 * 202_375_168
    expected = layers * (0.5 + 0.127 / 8) + 2 * (outside + 319_815_680 + PROJECTOR)
    assert needs("finetune_qlora")["2"].weights == pytest.approx(expected, rel=1e-4)


def test_states_agree_with_deepspeeds_own_estimates() -> None:
    stage2 = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2")
    stage3 = pytest.importorskip("deepspeed.runtime.zero.stage3")
    one = needs("finetune")["2"]
    _, device = stage2.estimate_zero2_model_states_mem_needs(TRAINED, 8, 1, cpu_offload=False)
    assert one.weights + one.gradients + one.optimizer + one.update == pytest.approx(device)
    host, *_ = stage3.estimate_zero3_model_states_mem_needs(TRAINED, 4096 * 11008, 8, 1, True, True, True)
    tower = 1.5 * 2 * 303_507_456
    assert needs("finetune")["3+offload"].host - tower == pytest.approx(host)
    two_hosts, *_ = stage3.estimate_zero3_model_states_mem_needs(TRAINED, 4096 * 11008, 8, 2, True, True, True)
    assert needs("finetune", devices=16)["3+offload"].host - tower / 2 == pytest.approx(two_hosts)


def test_the_limits_of_zero_3_are_those_of_its_file() -> None:
    for name in ("zero3", "zero3_offload"):
        path = ROOT / f"scripts/{name}.json"
        if name == "zero3" or path.exists():
            zero = json.loads(path.read_text())["zero_optimization"]
            assert zero["stage3_max_live_parameters"] == zero["sub_group_size"] == 1e9
            assert zero["reduce_bucket_size"] == "auto"
    buckets = 2 * 2 * 4096**2
    assert needs("finetune")["3"].buffers == 2e9 + buckets
    assert needs("finetune")["2"].buffers == buckets


def test_a_checkpoint_holds_weights_and_optimizer_twice_while_it_is_replaced() -> None:
    whole = TRAINED + 303_507_456
    assert checkpoint_bytes(setting("finetune")) == 2 * (2 * whole + 12 * TRAINED) + 2 * whole
    assert checkpoint_bytes(setting("pretrain")) == 30 * PROJECTOR


# === Activations against what autograd keeps ===


def test_a_layer_of_llama_2_7b_keeps_186_kilobytes_a_token() -> None:
    """By hand: norms 2 x (4 + 2) D, their outputs 2 x 2 D, q k v and output 4 x 2 D, MLP 4 x 2 F, and the softmax."""
    per_token = layer_bytes(SEVEN_B.decoder, "all", Adapters(), Precision())
    assert per_token == 24 * 4096 + 8 * 11008 + 4 * 32 + 2 * 4 == 186_504
    frozen = layer_bytes(SEVEN_B.decoder, "projector", Adapters(), Precision())
    assert frozen == 16 * 4096 + 6 * 11008 + 136
    checkpointed = stored_layers(SEVEN_B.decoder, [1] * 32, per_token, 32, 2)
    assert checkpointed == 32 * 2 * 4096


CASES = {
    "full": ("all", torch.bfloat16, 0.0),
    "full-autocast": ("all", "autocast", 0.0),
    "full-fp32": ("all", torch.float32, 0.0),
    "pretrain": ("projector", torch.bfloat16, 0.0),
    "lora": ("lora", torch.bfloat16, 0.05),
    "lora-no-dropout": ("lora", torch.bfloat16, 0.0),
}
RANK = 4


class Trial:
    """One training step of a tiny LLaVA in Llama's proportions, and the same by formula."""

    def __init__(self, case: str, checkpointing: bool, compression: Any = None, layers: int = 4, **shape: int) -> None:
        self.trained, kind, self.dropout = CASES[case]
        self.checkpointing = checkpointing
        self.autocast = kind == "autocast"
        dtype = torch.float32 if self.autocast else kind
        size = 4 if kind == torch.float32 else 2
        self.precision = Precision(compute=size, stream=4 if self.autocast else size, mask=size)
        options: dict[str, Any] = {"width": 64, "intermediate_size": 172} | shape
        self.model = tiny_llava(layers=layers, compression=compression, dtype=dtype, **options)
        self._choose_trained()
        self.batch = self._batch()

    def _choose_trained(self) -> None:
        model = self.model.train()
        model.requires_grad_(self.trained == "all")
        if self.trained == "lora":
            peft = pytest.importorskip("peft")
            config = peft.LoraConfig(r=RANK, lora_dropout=self.dropout, target_modules=TARGETS)
            peft.get_peft_model(model, config, autocast_adapter_dtype=False)
        model.get_vision_tower().requires_grad_(False)
        model.get_model().mm_projector.requires_grad_(True)
        if self.checkpointing:
            model.activation_checkpointing_enable()
            model.enable_input_require_grads()

    def _batch(self, rows: int = 4, text: int = 150, supervised: int = 10) -> DeviceBatch:
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, 48, (rows, text + 1), generator=draw)
        self.ids[:, 3] = IMAGE_TOKEN_INDEX
        self.labels = self.ids.clone()
        self.labels[:, :-supervised] = IGNORE_INDEX
        self.images = torch.randn(rows, 3, 56, 56, generator=draw).to(self.model.dtype)
        decoder, vision = DecoderShape.of(self.model.config), VisionShape.of(self.model.get_vision_tower().config)
        visual = visual_tokens_per_layer(self.model.compression, decoder.layers, vision)
        return DeviceBatch(rows, text, visual, supervised)

    def forward(self) -> torch.Tensor:
        """The loss of the batch."""
        half = torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext()
        with half:
            return self.model(self.ids, labels=self.labels, images=self.images).loss

    def saved(self) -> int:
        """Bytes of all storages that autograd keeps, weights and inputs not counted."""
        own = [*self.model.parameters(), *self.model.buffers(), self.ids, self.labels, self.images]
        known = {tensor.untyped_storage().data_ptr() for tensor in own}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self.forward()
        total = sum(kept.values())
        del loss
        return total

    def peak(self, folder: Path) -> int:
        """Most bytes alive at once in a step, beyond what was there before it; gradients exist already."""
        self.forward().backward()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.forward().backward()
        profiler.export_chrome_trace(str(folder / "trace.json"))
        events = json.loads((folder / "trace.json").read_text())["traceEvents"]
        memory = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
        live = most = 0
        for _, change in memory:
            live += change
            most = max(most, live)
        return most

    def formulas(self) -> tuple[int, int, int, int]:
        """Bytes kept by layers and projector, by one layer, by norm and loss, and of gradients in flight."""
        shape = shape_of(self.model)
        adapters = Adapters(RANK, self.dropout) if self.trained == "lora" else Adapters()
        per_token = layer_bytes(shape.decoder, self.trained, adapters, self.precision)
        tokens, stream = self.batch.tokens, self.precision.stream
        again = len(tokens) if self.checkpointing else 0
        kept = stored_layers(shape.decoder, tokens, per_token, again, stream)
        return (
            kept + outside_bytes(shape, self.batch, self.precision),
            max(tokens) * per_token,
            head_bytes(shape.decoder, self.batch, self.trained, self.precision),
            in_flight(shape.decoder, max(tokens), self.trained, self.precision),
        )

    def cast_weights(self) -> int:
        """Bytes of the 16-bit copies that autocast keeps of linear maps (with checkpointing, of none in a layer)."""
        if not self.autocast:
            return 0
        model = self.model
        parts = [model.lm_head, model.get_model().mm_projector]
        parts += [] if self.checkpointing else [model.get_model().layers]
        linears = [part for root in parts for part in root.modules() if isinstance(part, torch.nn.Linear)]
        return 2 * sum(linear.weight.numel() for linear in linears)


@pytest.mark.parametrize("compression", [None, DUET], ids=["none", "duet"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("case", CASES)
def test_activation_formula_equals_what_autograd_saves(case: str, checkpointing: bool, compression: Any) -> None:
    """Within 3 %: index tensors and padding masks are not in the formula.

    With checkpointing the rotary angles are held as arguments of the layers and not as saved tensors.
    """
    trial = Trial(case, checkpointing, compression, layers=6)
    kept, _, head, _ = trial.formulas()
    if checkpointing:
        kept -= rotary_bytes(shape_of(trial.model).decoder, trial.batch, trial.precision)
    assert trial.saved() == pytest.approx(kept + head + trial.cast_weights(), rel=0.03)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("case", ["full", "pretrain", "lora"])
def test_peak_of_a_step_is_what_the_formulas_say(case: str, checkpointing: bool, tmp_path: Path) -> None:
    """Within 5 % of what the allocator saw: what is kept, and the larger of a layer's and the loss's moment."""
    trial = Trial(case, checkpointing)
    kept, layer, _, moving = trial.formulas()
    loss = head_peak(shape_of(trial.model).decoder, trial.batch, trial.trained, trial.precision)
    expected = kept + max((layer if checkpointing else 0) + moving, loss)
    assert trial.peak(tmp_path) == pytest.approx(expected, rel=0.05)


def test_logits_peak_is_twelve_bytes_a_logit_of_one_chunk() -> None:
    norm = 6 * 4096 + 4
    few = DeviceBatch(rows=4, text=250, visual=(0,), supervised=250)
    assert head_peak(SEVEN_B.decoder, few, "all", Precision()) == 1000 * (12 * 32000 + norm + 2 * 4096)
    many = DeviceBatch(rows=4, text=2048, visual=(0,), supervised=2048)
    kept = 8192 * (norm + 2 * 4096) + 4 * 32000 * 4096  # gradients: of the states, and of the head's weight in float32
    assert head_peak(SEVEN_B.decoder, many, "all", Precision()) - kept == 6 * 32000 * 4096
    frozen = 8192 * (4 * 4096 + 4 + 2 * 4096)
    assert head_peak(SEVEN_B.decoder, many, "projector", Precision()) - frozen == 20 * 4096 * 8192


@pytest.mark.parametrize("case", ["full", "full-fp32", "full-autocast", "pretrain"])
def test_peak_of_a_step_with_few_logits_at_a_time_is_what_the_formulas_say(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 5 %, of a vocabulary that is large beside the model, in five chunks."""
    monkeypatch.setattr(activations, "LOGITS_AT_ONCE", 8 * 12000)
    trial = Trial(case, checkpointing=True, vocab_size=12000)
    assert trial.batch.rows * trial.batch.supervised == 40
    kept, layer, _, moving = trial.formulas()
    loss = head_peak(shape_of(trial.model).decoder, trial.batch, trial.trained, trial.precision)
    expected = kept + max(layer + moving, loss) + trial.cast_weights()
    assert trial.peak(tmp_path) == pytest.approx(expected, rel=0.05)


def test_batches_hold_the_tokens_that_layers_see() -> None:
    one = setting("pretrain", batch_size=2)
    assert one.typical_batch().tokens[:17] == (2 * (25 + 307),) * 16 + (2 * (25 + 153),)
    assert one.longest_batch().tokens[-1] == 2 * 256
    assert setting("finetune", batch_size=2).longest_batch().tokens == (2 * 2048,) * 32


def test_totals_take_the_largest_moment() -> None:
    one = needs("finetune")["2"]
    assert one.total(True) == one.states + one.activations + max(one.layer + one.moving, one.logits)
    assert one.total(False) == one.states + one.activations_full + max(one.moving, one.logits)
    tiny = replace(one, update=1e15)
    assert tiny.total(True) == tiny.states + 1e15
