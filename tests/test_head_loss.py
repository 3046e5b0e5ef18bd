"""The loss behind the head, chunk by chunk: as large and as steep as in one piece, with a bounded number of logits."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import DUET, chat, collate, pixels, tiny_llava
from torch import Tensor, nn

import llava.cost.activations as activations
from llava.constants import IGNORE_INDEX
from llava.model.head_loss import summed_cross_entropy

WIDTH, VOCABULARY, CHUNK = 12, 40, 7


def linear(bias: bool = False, dtype: torch.dtype = torch.float64, vocabulary: int = VOCABULARY) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(WIDTH, vocabulary, bias=bias, dtype=dtype)


def with_adapter() -> nn.Module:
    """A head as `--lora_target_modules` makes it: its own weight frozen."""
    peft = pytest.importorskip("peft")
    holder = nn.ModuleDict({"lm_head": linear()})
    made = peft.inject_adapter_in_model(peft.LoraConfig(r=3, target_modules=["lm_head"]), holder)
    for name, weight in made.named_parameters():
        if "lora_B" in name:  # zero when new, which would give the other half no gradient
            nn.init.normal_(weight)
    return made["lm_head"].double()


def frozen() -> nn.Module:
    return linear(bias=True).requires_grad_(False)


def of_several_layers() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)).double()


HEADS: dict[str, Callable[[], nn.Module]] = {
    "linear": linear,
    "bias": lambda: linear(bias=True),
    "adapter": with_adapter,
    "frozen": frozen,
    "layers": of_several_layers,
}


def case(positions: int, dtype: torch.dtype = torch.float64, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    """States with a gradient, and labels of which some are nobody's."""
    draw = torch.Generator().manual_seed(positions)
    states = 2 * torch.randn(positions, WIDTH, generator=draw, dtype=dtype)
    labels = torch.randint(0, vocabulary, (positions,), generator=draw)
    labels[torch.rand(positions, generator=draw) < 0.2] = IGNORE_INDEX
    return states.requires_grad_(), labels


def by_definition(head: nn.Module, states: Tensor, labels: Tensor) -> Tensor:
    """- log p of each label, added up; the logits in float32, as transformers takes them."""
    logits = head(states).float()
    chosen = labels != IGNORE_INDEX
    return (logits.logsumexp(dim=-1) - logits.gather(1, labels.clamp(min=0)[:, None])[:, 0])[chosen].sum()


def gradients(head: nn.Module, states: Tensor, loss: Tensor, items: int = 16) -> dict[str, Tensor]:
    """Of the loss divided by something, as `num_items_in_batch` does; a power of two is not rounded."""
    head.zero_grad()
    states.grad = None
    (loss / items).backward()
    found = {"states": states.grad} | {name: weight.grad for name, weight in head.named_parameters()}
    return {name: grad.clone() for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize("positions", [1, CHUNK, CHUNK + 1, 5 * CHUNK, 40])
@pytest.mark.parametrize("kind", HEADS)
def test_chunks_give_the_loss_and_gradients_of_the_whole(kind: str, positions: int) -> None:
    head = HEADS[kind]()
    states, labels = case(positions)
    whole = summed_cross_entropy(head, states, labels, chunk=1000)
    chunks = summed_cross_entropy(head, states, labels, chunk=CHUNK)
    torch.testing.assert_close(whole, by_definition(head, states, labels), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(chunks, whole, rtol=1e-6, atol=0)
    expected, found = gradients(head, states, whole), gradients(head, states, chunks)
    assert found.keys() == expected.keys()
    assert ("states" in found) and (len(found) == 1) == (kind == "frozen")
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-12, atol=1e-14, msg=name)


def test_chunks_agree_with_the_whole_to_float32_rounding_whatever_divides_the_loss() -> None:
    head = linear(bias=True, dtype=torch.float32)
    states, labels = case(100, torch.float32)
    expected, found = (
        gradients(head, states, summed_cross_entropy(head, states, labels, chunk), items=77) for chunk in (100, CHUNK)
    )
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-7, msg=name)


def test_a_frozen_decoder_below_a_trained_head_needs_no_gradient_of_its_states() -> None:
    head = linear(bias=True)
    states, labels = case(30)
    fixed = states.detach()
    summed_cross_entropy(head, fixed, labels, chunk=CHUNK).backward()
    found = head.weight.grad.clone()
    head.zero_grad()
    by_definition(head, fixed, labels).backward()
    torch.testing.assert_close(found, head.weight.grad, rtol=1e-5, atol=1e-7)


def test_without_gradients_chunks_give_the_loss_of_the_whole() -> None:
    head = linear()
    states, labels = case(33)
    with torch.no_grad():
        loss = summed_cross_entropy(head, states, labels, chunk=CHUNK)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, by_definition(head, states, labels), rtol=1e-6, atol=0)


def test_where_nothing_is_to_be_predicted_the_loss_is_zero_and_so_are_its_gradients() -> None:
    head = linear()
    states, _ = case(3 * CHUNK)
    loss = summed_cross_entropy(head, states, torch.full((3 * CHUNK,), IGNORE_INDEX), chunk=CHUNK)
    found = gradients(head, states, loss)
    assert loss == 0 and set(found) == {"states", "weight"} and not any(grad.any() for grad in found.values())


def test_the_sum_of_many_chunks_is_not_rounded_to_bfloat16_each_time() -> None:
    """The weight's gradient of 64 chunks is as near to the exact one as that of a single product."""
    head, exact = linear(dtype=torch.bfloat16), linear()
    states, labels = case(64 * CHUNK)
    with torch.no_grad():
        exact.weight.copy_(head.weight)
    half = states.detach().bfloat16().requires_grad_()
    fine = half.detach().double().requires_grad_()
    truth = gradients(exact, fine, by_definition(exact, fine, labels))["weight"]
    in_chunks = gradients(head, half, summed_cross_entropy(head, half, labels, chunk=CHUNK))["weight"]
    in_one = gradients(head, half, summed_cross_entropy(head, half, labels, chunk=10_000))["weight"]

    assert (in_chunks - truth).norm() < 1.5 * (in_one - truth).norm()


def test_small_probabilities_keep_their_gradient_in_float16() -> None:
    """Of 4096 likely words none but the label is likely by more than 1e-7, which float16 alone calls zero."""
    head = linear(dtype=torch.float16, vocabulary=4096)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[0, 0] = 15.0
    states = torch.zeros(2 * CHUNK, WIDTH, dtype=torch.float16)
    states[:, 0] = 1.0
    states.requires_grad_()
    loss = summed_cross_entropy(head, states, torch.zeros(2 * CHUNK, dtype=torch.int64), chunk=CHUNK)
    (loss * 4096).backward()  # as a loss scaler does
    share = 1 / (math.exp(15) + 4095)
    torch.testing.assert_close(
        head.weight.grad[1:, 0].float(), torch.full((4095,), 4096 * 2 * CHUNK * share), rtol=2e-2, atol=0
    )


class LiveBytes:
    """Bytes that autograd holds at a time: counted when saved, taken off when nobody can ask for them any more."""

    def __init__(self) -> None:
        self.live = self.most = 0

    def keep(self, tensor: Tensor) -> Any:
        class Held:
            value = tensor

        held, size = Held(), tensor.numel() * tensor.element_size()
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(held, self._drop, size)
        return held

    def _drop(self, size: int) -> None:
        self.live -= size

    def of(self, head: nn.Module, positions: int, chunk: int) -> tuple[int, int]:
        """Most at any time, and what is left for the backward pass."""
        states, labels = case(positions, torch.float32, head.out_features)
        with torch.autograd.graph.saved_tensors_hooks(self.keep, lambda held: held.value):
            loss = summed_cross_entropy(head, states, labels, chunk)
        result = self.most, self.live
        loss.backward()
        return result


def test_what_is_held_for_the_backward_pass_does_not_grow_with_positions_times_vocabulary() -> None:
    vocabulary, chunk = 3000, 16
    head = linear(dtype=torch.float32, vocabulary=vocabulary)
    measured = {count: LiveBytes().of(head, count, chunk) for count in (4 * chunk, 64 * chunk)}
    logits = 4 * vocabulary * chunk
    for count, (most, left) in measured.items():
        states = 4 * WIDTH * count
        assert left == states + 4 * WIDTH * vocabulary  # gradients of the states and of the weight
        assert most < 2 * logits + 2 * states + 2 * 4 * WIDTH * vocabulary
    whole, _ = LiveBytes().of(head, 64 * chunk, 10**6)
    assert whole > 64 * logits


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_a_whole_model_trains_alike_with_a_few_logits_at_a_time(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float64 up to the logits: gradients of every weight equal to 1e-10."""

    def step() -> tuple[Tensor, dict[str, Tensor]]:
        model = tiny_llava(compression=DUET).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        rows = [chat(1), chat(4, (5,)), chat(2, (0,))]
        shown = pixels(sum(row.images for row in rows))
        loss = model(**collate(rows, labels=True), images=shown, num_items_in_batch=16).loss
        loss.backward()
        weights = model.named_parameters()
        return loss.detach(), {name: weight.grad for name, weight in weights if weight.grad is not None}

    whole, expected = step()
    monkeypatch.setattr(activations, "LOGITS_AT_ONCE", 3 * 48)
    assert activations.positions_at_once(48) == 3
    chunks, found = step()
    torch.testing.assert_close(chunks, whole, rtol=1e-6, atol=0)
    assert found.keys() == expected.keys() and "lm_head.weight" in found
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-12, msg=name)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    head = linear()
    states, labels = case(3 * CHUNK)
    loss = summed_cross_entropy(head, states, labels, chunk=CHUNK)
    (grad,) = torch.autograd.grad(loss, states, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad.sum().backward()
