"""The CLIP tower against transformers' own eager model with its attention maps materialised."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import reference
import tiny
import torch
from PIL import Image
from tiny import pixels, randomise, stock_tower, tiny_llava, tower_config
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPVisionModel, SiglipConfig, SiglipVisionConfig

from llava.compression import V2VConfig, merge_visual_tokens
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower

RECEIVED = V2VConfig(5, 2, 2, score="received")
CLS = V2VConfig(5, 2, 2)


def tower_of(layers: int, select_layer: int = -2, **kwargs) -> CLIPVisionTower:
    tower = CLIPVisionTower("tiny", select_layer=select_layer, config=tower_config(layers), **kwargs)
    randomise(tower)
    return tower.double().eval()


def stock_of(tower: CLIPVisionTower) -> CLIPVisionModel:
    class Holder:
        @staticmethod
        def get_vision_tower() -> CLIPVisionTower:
            return tower

    return stock_tower(Holder())


@pytest.mark.parametrize(
    ("layers", "select"), [(5, -2), (5, -1), (5, 1), (5, 3), (5, -5), (12, -2), (24, -2), (26, -2)]
)
def test_features_attention_and_keys_equal_the_stock_eager_tower(layers: int, select: int):
    tower, images = tower_of(layers, select), pixels(2)
    stock = stock_of(tower)
    seen: list[torch.Tensor] = []
    number = select % (layers + 1)
    scored = stock.encoder.layers[number - 1].self_attn
    scored.k_proj.register_forward_hook(lambda *call: seen.append(call[2]))
    expected = stock(images, output_hidden_states=True, output_attentions=True)
    attention = expected.attentions[number - 1]
    output = tower.encode(images, RECEIVED)
    torch.testing.assert_close(output.features, expected.hidden_states[select], atol=2e-5, rtol=0)
    torch.testing.assert_close(output.cls_attention.double(), attention[:, :, 0, 1:].sum(1).double(), atol=2e-6, rtol=0)
    torch.testing.assert_close(output.attention.double(), attention.mean(1).double(), atol=2e-6, rtol=0)
    keys = seen[0].unflatten(-1, (2, 8)).mean(dim=2)
    torch.testing.assert_close(output.keys, keys, atol=2e-5, rtol=0)
    assert output.cls_attention.dtype == torch.float32
    row_only = tower.encode(images, CLS)
    assert row_only.attention is None
    torch.testing.assert_close(row_only.cls_attention, output.cls_attention)


@pytest.mark.parametrize(("feature", "first"), [("patch", 1), ("cls_patch", 0)])
def test_selected_features_leave_the_tower(feature: str, first: int):
    tower, images = tower_of(5, 3, select_feature=feature), pixels(2)
    expected = stock_of(tower)(images, output_hidden_states=True).hidden_states[3][:, first:]
    torch.testing.assert_close(tower(images), expected, atol=2e-5, rtol=0)
    assert tower.tokens_per_image(None) == expected.shape[1] == tower(images).shape[1]
    assert tower.tokens_per_image(CLS) == 7 == tower(images, CLS).shape[1]


@pytest.mark.parametrize("v2v", [None, CLS, RECEIVED])
@pytest.mark.parametrize(("select", "ran"), [(-2, [0, 1, 2, 3]), (2, [0, 1]), (-1, [0, 1, 2, 3, 4])])
def test_only_layers_up_to_the_selected_one_run(select: int, ran: list[int], v2v):
    tower = tower_of(5, select)
    called: list[int] = []
    for number, layer in enumerate(tower.model.encoder.layers):
        layer.register_forward_hook(lambda *call, number=number: called.append(number))
    tower.model.post_layernorm.register_forward_hook(lambda *call: called.append(-1))
    tower(pixels(1), v2v)
    assert called == ran


def softmax_shapes(call) -> list[tuple[int, ...]]:
    """Shapes that a softmax was taken of."""

    shapes: list[tuple[int, ...]] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if getattr(function, "__name__", "") == "softmax":
                shapes.append(tuple(args[0].shape))
            return function(*args, **(kwargs or {}))

    with Watch():
        call()
    return shapes


def test_no_attention_map_is_materialised_but_the_row_that_scores():
    tower, images = tower_of(5), pixels(3)
    assert softmax_shapes(lambda: tower(images)) == []
    assert softmax_shapes(lambda: tower(images, CLS)) == [(3, 2, 1, 17)]
    assert softmax_shapes(lambda: tower(images, RECEIVED)) == [(3, 2, 17, 17)]
    assert softmax_shapes(lambda: stock_of(tower)(images)) == [(3, 2, 17, 17)] * 5, "the watch sees eager attention"


@pytest.mark.parametrize(
    "v2v",
    [CLS, RECEIVED, V2VConfig(5, 2, 3, clusters="neighbours"), V2VConfig(5, 2, clusters="uniform"), V2VConfig(14, 9)],
    ids=str,
)
def test_merged_tokens_equal_loops_over_the_stock_towers_attention(v2v: V2VConfig):
    model, images = tiny_llava(), pixels(3)
    result = model.get_vision_tower().merge(images, v2v)
    for number, image in enumerate(images):
        with torch.no_grad():
            expected = reference.merge(*reference.look(model, image), v2v)
        torch.testing.assert_close(result.tokens[number], expected.tokens, atol=2e-5, rtol=0)
        assert result.plan.dominant[number].tolist() == expected.dominant


def test_fault_14_scores_stay_float32_under_autocast():
    tower, images = tower_of(5).float(), pixels(4).float()
    hidden = torch.randn(4, 17, 16)
    from llava.model.multimodal_encoder.encode import _scored_by

    layer = tower.model.encoder.layers[3].bfloat16()
    expected = _scored_by(layer, hidden.bfloat16(), RECEIVED, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scored = _scored_by(layer, hidden.bfloat16(), RECEIVED, True)
    for ours, theirs in zip(scored, expected, strict=True):
        assert torch.equal(ours, theirs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tower_of(5).float().encode(images, CLS).cls_attention.dtype == torch.float32


def test_gradients_reach_an_unfrozen_tower_and_only_then():
    tower, images = tower_of(5), pixels(2)
    assert not tower(images, CLS).requires_grad
    tower.requires_grad_(True)
    tower(images, CLS).square().sum().backward()
    used = [weight.grad is not None for layer in tower.model.encoder.layers[:4] for weight in layer.parameters()]
    assert all(used) and tower.model.embeddings.class_embedding.grad is not None
    assert all(weight.grad is None for weight in tower.model.encoder.layers[4].parameters())


@pytest.mark.parametrize("select", [0, 6, -6, -7])
def test_a_layer_that_is_not_there_is_an_error_that_says_so(select: int):
    with pytest.raises(ValueError, match=f"mm_vision_select_layer is {select}, but the tower has 5 layers"):
        tower_of(5, select)


def test_wrong_settings_are_errors_that_say_so():
    with pytest.raises(ValueError, match="mm_vision_select_feature is 'cls'; it must be patch or cls_patch"):
        tower_of(5, select_feature="cls")
    with pytest.raises(ValueError, match="No vision tower is named"):
        build_vision_tower(LlavaConfig())
    with pytest.raises(ValueError, match=r"v2v.dominant is 18, but the vision tower gives 17 tokens \(CLS included\)"):
        tiny_llava(compression={"v2v": {"dominant": 18, "contextual": 0}})


@pytest.fixture
def tower_folder(tmp_path):
    stock = CLIPVisionModel(tower_config(4))
    randomise(stock, 3)
    stock.save_pretrained(tmp_path)
    size = {"height": 56, "width": 56}
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=size, image_mean=[0.1, 0.2, 0.3]).save_pretrained(
        tmp_path
    )
    return tmp_path, stock


def test_a_tower_is_read_from_its_folder(tower_folder):
    folder, stock = tower_folder
    tower = build_vision_tower(LlavaConfig(mm_vision_tower=str(folder)))
    assert not tower.is_loaded
    tower.load_model()
    assert tower.is_loaded and tower.hidden_size == 16 and tower.num_patches == 16
    images = pixels(2).float()
    expected = stock(images, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(tower(images), expected, atol=1e-4, rtol=0)
    assert tuple(tower.image_processor.image_mean) == (0.1, 0.2, 0.3)
    white = tower.image_processor(Image.new("RGB", (80, 60), "white"), return_tensors="pt")["pixel_values"]
    assert white.shape == (1, 3, 56, 56)
    assert all(not weight.requires_grad for weight in tower.parameters())


def test_a_folder_without_image_processor_says_so(tower_folder, caplog):
    folder, _ = tower_folder
    (folder / "preprocessor_config.json").unlink()
    tower = build_vision_tower(LlavaConfig(mm_vision_tower=str(folder)))
    with caplog.at_level("WARNING"):
        tower.load_model()
    assert "There is no preprocessor_config.json" in caplog.text
    assert tower.image_processor.crop_size["height"] == 56


@pytest.mark.parametrize("content", [b"", b'{"image_mean": [0.1', b"[1]", b"\xff\xfe"])
def test_a_damaged_image_processor_is_not_taken_for_a_missing_one(tower_folder, content):
    folder, _ = tower_folder
    settings = folder / "preprocessor_config.json"
    settings.write_bytes(content)
    tower = build_vision_tower(LlavaConfig(mm_vision_tower=str(folder)))
    with pytest.raises(ValueError, match=re.escape(str(settings))):
        tower.load_model()


def test_a_checkpoint_carries_its_tower_image_processor_and_budget(tmp_path, tower_folder):
    model = tiny_llava(compression=tiny.DUET, dtype=torch.float32)
    folder, _ = tower_folder
    model.get_vision_tower().read_image_processor(str(folder))
    model.save_pretrained(tmp_path / "model")
    loaded, info = LlavaLlamaForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.compression == model.compression
    assert tuple(loaded.get_vision_tower().image_processor.image_mean) == (0.1, 0.2, 0.3)
    assert not any(weight.requires_grad for weight in loaded.get_vision_tower().parameters())
    row, images = tiny.chat(1), pixels(1).float()
    batch = tiny.collate([row])
    torch.testing.assert_close(loaded.eval()(**batch, images=images).logits, model(**batch, images=images).logits)


def test_parameters_have_llavas_names():
    names = dict(tiny_llava().named_parameters())
    for name in (
        "model.layers.0.self_attn.q_proj.weight",
        "model.mm_projector.0.weight",
        "model.mm_projector.2.bias",
        "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
        "model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ):
        assert name in names


@pytest.mark.parametrize("saved", [SiglipVisionConfig().to_dict(), SiglipConfig().to_dict(), {"model_type": "x"}])
def test_a_tower_of_another_kind_is_refused(saved: dict, tmp_path: Path):
    """It never becomes a CLIP model with some of its dimensions."""
    said = r"is of model_type '(siglip_vision_model|x)'; LLaVA's own model runs clip_vision_model"
    with pytest.raises(ValueError, match=said):
        build_vision_tower(LlavaConfig(mm_vision_tower="some/tower", mm_vision_config=saved))
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=said):
        build_vision_tower(LlavaConfig(mm_vision_tower=str(tmp_path)))


def test_a_whole_clip_model_names_its_tower(tmp_path: Path):
    CLIPConfig(vision_config=tower_config(3).to_dict()).save_pretrained(tmp_path)
    assert build_vision_tower(LlavaConfig(mm_vision_tower=str(tmp_path))).config.num_hidden_layers == 3


class Stripes(nn.Module):
    """A made-up tower for LLaVA's own model: no CLS token, and as many tokens as an image has dark columns and one."""

    has_cls, num_patches, is_loaded = False, 56, True

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Linear(3 * 56, 16)

    @property
    def device(self) -> torch.device:
        return self.look.weight.device

    def forward(self, images: Tensor, v2v: V2VConfig | None = None) -> list[Tensor]:
        found = []
        for image in images:
            columns = image.permute(2, 0, 1).flatten(1)  # [56, 3 * 56]
            seen = torch.cat([columns[:1], columns[columns.mean(dim=1) < 0]])
            tokens, size = self.look(seen), seen.norm(dim=1)
            if v2v is not None and len(tokens) > v2v.dominant + v2v.contextual:
                tokens = merge_visual_tokens(
                    tokens[None], None, seen[None], v2v, received=size[None].float(), has_cls=False
                ).tokens[0]
            found.append(tokens)
        return found


def test_llavas_own_takes_a_tower_without_cls_whose_images_differ_in_tokens() -> None:
    """No second path: an image, and each crop of one, brings as many tokens as the tower gives for it."""
    model = tiny_llava()
    model.model.vision_tower = Stripes().double()
    model.set_compression({"v2v": {"dominant": 12, "contextual": 3}, "t2v": {"layers": [2, 4], "keep": [0.5, 0.25]}})
    assert model.compression.v2v.score == "received"
    images = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images[1] = images[1].abs()  # one token
    images[2, :, :, 9:] = images[2, :, :, 9:].abs()
    rows = [
        [1, 5, IMAGE_TOKEN_INDEX, 6, 7],
        [1, IMAGE_TOKEN_INDEX, 8, IMAGE_TOKEN_INDEX, 9],
        [1, 5, IMAGE_TOKEN_INDEX, 9],
    ]
    shown = [[images[0]], [images[1], images[2]], [images]]  # the last is one image in three crops
    together = model(**padded(rows), images=shown)
    counts = [len(one) for one in model.model.vision_tower(images, model.compression.v2v)]
    assert counts[0] == 15 and counts[1] == 1 and 2 < counts[2] < 12
    assert together.layouts[0].visual == (15, counts[1] + counts[2], sum(counts))
    answers = model.generate(**padded(rows, "left"), images=shown, max_new_tokens=3)
    for row, (ids, own) in enumerate(zip(rows, shown, strict=True)):
        alone = model(torch.tensor([ids]), images=own)
        torch.testing.assert_close(together.logits[row, : len(ids)], alone.logits[0], atol=1e-9, rtol=0)
        said = torch.tensor([ids])
        for _ in range(3):
            roles = torch.tensor([[1] * (len(ids) - 1) + [5] + [0] * (said.shape[1] - len(ids))])
            best = model(said, images=own, query_mask=roles, use_cache=False).logits[:, -1:].argmax(dim=-1)
            said = torch.cat([said, best], dim=1)
        assert said[0, len(ids) :].tolist() == answers[row].tolist()


def padded(rows: list[list[int]], side: str = "right") -> dict[str, Tensor]:
    """Ids and mask of several prompts."""
    longest = max(map(len, rows))
    pads = [[0] * (longest - len(row)) for row in rows]
    ids = [row + pad if side == "right" else pad + row for row, pad in zip(rows, pads, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": (torch.tensor(ids) != 0).long()}
