"""Vision-to-vision merging against plain loops (see reference.py): scores, clusters, tokens, roles, controls."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import reference
import torch
from torch import Tensor

from llava.compression import PatchRole, V2VConfig, merge_visual_tokens
from llava.compression.v2v import score_patches

PATCHES, WIDTH, HEADS = 16, 6, 3


def tower_output(batch: int = 3, patches: int = PATCHES, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features [B, 1 + P, D], attention [B, H, 1 + P, 1 + P] and keys [B, H, 1 + P, d], float64."""
    noise = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, patches + 1, WIDTH, generator=noise, dtype=torch.float64)
    logits = 2 * torch.randn(batch, HEADS, patches + 1, patches + 1, generator=noise, dtype=torch.float64)
    keys = torch.randn(batch, HEADS, patches + 1, 4, generator=noise, dtype=torch.float64)
    return features, logits.softmax(-1), keys


def run(features: Tensor, attention: Tensor, keys: Tensor, config: V2VConfig):
    cls_attention = attention[:, :, 0, 1:].sum(dim=1)
    return merge_visual_tokens(features, cls_attention, keys.mean(dim=1), config, attention.mean(dim=1))


SETTINGS = [
    V2VConfig(6, 3, 2),
    V2VConfig(6, 3, 4),
    V2VConfig(7, 4, 1),
    V2VConfig(3, 5, 2),
    V2VConfig(1, 3, 3),
    V2VConfig(1, 1, 1),
    V2VConfig(12, 8, 4),
    V2VConfig(17, 0),
    V2VConfig(16, 1),
    V2VConfig(6, 0),
    V2VConfig(6, 3, 2, score="received"),
    V2VConfig(6, 3, 3, clusters="neighbours"),
    V2VConfig(6, 3, 50, clusters="neighbours"),
    V2VConfig(6, 3, 4, score="received", clusters="neighbours"),
    V2VConfig(12, 8, 2, score="received", clusters="neighbours"),
    V2VConfig(6, 3, clusters="uniform"),
    V2VConfig(4, 5, clusters="uniform"),
    V2VConfig(12, 9, clusters="uniform", score="received"),
]


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_tokens_and_fates_equal_plain_loops(config: V2VConfig):
    features, attention, keys = tower_output()
    result = run(features, attention, keys, config)
    for image in range(len(features)):
        expected = reference.merge(features[image], attention[image], keys[image], config)
        torch.testing.assert_close(result.tokens[image], expected.tokens, atol=1e-12, rtol=0)
        assert result.plan.dominant[image].tolist() == expected.dominant
        assert result.plan.anchors[image].tolist() == [anchor for anchor, _ in expected.clusters]
        assert roles_by_name(result.roles[image]) == expected_roles(expected)
        assert result.target[image].tolist() == expected_targets(expected)


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ((0.65, 0.05), (11, 1)),  # of 17 tokens: 11.05 and 0.85
        ((0.65, 3), (11, 3)),
        ((6, 0.2), (6, 3)),
        ((0.01, 0.01), (1, 1)),  # CLS alone is kept
        ((0.99, 0.01), (16, 1)),
    ],
)
def test_shares_of_a_towers_tokens_choose_as_the_counts_that_they_make(shares: Any, counts: tuple[int, int]):
    features, attention, keys = tower_output()
    for clusters in ("anchored", "neighbours", "uniform"):
        by_share = run(features, attention, keys, V2VConfig(*shares, 2, clusters=clusters))
        by_count = run(features, attention, keys, V2VConfig(*counts, 2, clusters=clusters))
        assert torch.equal(by_share.tokens, by_count.tokens) and torch.equal(by_share.target, by_count.target)
        assert V2VConfig(*shares).token_count(17) == sum(counts) == by_share.tokens.shape[1]


def roles_by_name(row: Tensor) -> list[str]:
    return [PatchRole(value).name for value in row.tolist()]


def expected_roles(merge: reference.Merge) -> list[str]:
    names = ["DROPPED"] * PATCHES
    for _, members in merge.clusters:
        for patch in members:
            names[patch] = "MERGED"
    for anchor, _ in merge.clusters:
        names[anchor] = "ANCHOR"
    for patch in merge.dominant:
        names[patch] = "DOMINANT"
    return names


def expected_targets(merge: reference.Merge) -> list[int]:
    targets = [-1] * PATCHES
    first = 1 + len(merge.dominant)
    for number, (_, members) in reversed(list(enumerate(merge.clusters))):
        for patch in members:
            targets[patch] = first + number
    for number, (anchor, _) in enumerate(merge.clusters):
        targets[anchor] = first + number
    for number, patch in enumerate(sorted(merge.dominant)):
        targets[patch] = 1 + number
    return targets


def test_anchored_clusters_of_a_case_worked_out_by_hand():
    """Patches 0..5 by falling attention; dominant CLS + 0, 1; pool 2, 3, 4, 5; anchors 2 and 4."""
    features = torch.tensor([[[100.0], [1.0], [2.0], [4.0], [8.0], [16.0], [32.0]]])
    cls_attention = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    keys = torch.tensor([[[9.0, 9.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.2, 1.0], [0.0, 2.0], [0.1, 9.0]]])
    result = merge_visual_tokens(features, cls_attention, keys, V2VConfig(3, 2, 2))
    assert result.tokens.flatten().tolist() == [100, 1, 2, 4, 16 + (8 + 32) / 2]
    assert result.target.tolist() == [[1, 2, 3, 4, 4, 4]]


def test_neighbours_of_a_case_worked_out_by_hand():
    """Algorithm 1: patch 0 is dominant, patch 1 is the centroid; it attends to 3 and 1 most among the rest."""
    features = torch.tensor([[[0.0], [10.0], [1.0], [2.0], [4.0]]])
    attention = torch.zeros(1, 5, 5)
    attention[0, 2] = torch.tensor([0.3, 0.4, 0.1, 0.05, 0.15])
    cls_attention = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    config = V2VConfig(2, 1, 2, clusters="neighbours")
    result = merge_visual_tokens(features, cls_attention, None, config, attention)
    assert result.tokens.flatten().tolist() == [0, 10, (1 + 4) / 2]


def test_received_score_is_the_column_mean_and_its_cls_column_is_left_out():
    attention = torch.tensor([[[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.3, 0.0, 0.7]]])
    features, cls = torch.tensor([[[0.0], [10.0], [20.0]]]), torch.tensor([[1.0, 0.0]])
    config = V2VConfig(2, 0, score="received")
    scores = score_patches(cls, attention.mean(dim=1), config, 2, features)
    torch.testing.assert_close(scores, torch.tensor([[0.2, 0.6]]))
    from_map = merge_visual_tokens(features, cls, None, config, attention)
    from_mean = merge_visual_tokens(features, cls, None, config, received=torch.tensor([[9.0, 0.2, 0.6]]))
    for result in (from_map, from_mean):
        assert result.tokens.flatten().tolist() == [0, 20]
        assert result.source.tolist() == [[-1, 1]]


def test_a_tower_without_cls_keeps_dominant_patches_only():
    features, attention, _ = tower_output()
    config = V2VConfig(5, 2, 2, score="received", clusters="neighbours")
    result = merge_visual_tokens(features, None, None, config, attention.mean(dim=1))
    for image in range(3):
        scores = reference.received_scores(attention[image].mean(dim=0))
        order = reference.ranked(scores, list(range(PATCHES + 1)))
        torch.testing.assert_close(result.tokens[image, :5], features[image, sorted(order[:5])])
        clusters = reference.neighbour_clusters(order[5:], attention[image].mean(dim=0), 2, 2)
        means = [features[image, members].mean(dim=0) for _, members in clusters]
        torch.testing.assert_close(result.tokens[image, 5:], torch.stack(means))


@pytest.mark.parametrize("score", ["random", "uniform"])
@pytest.mark.parametrize("dominant", [1, 2, 7, 17])
def test_controls_keep_exactly_as_many_and_ignore_content(score: str, dominant: int):
    config = V2VConfig(dominant, 0, score=score)
    kept = [(run(*tower_output(seed=seed), config).roles == PatchRole.DOMINANT) for seed in (0, 1)]
    assert kept[0].sum(dim=1).tolist() == [dominant - 1] * 3
    assert torch.equal(*kept)


def test_uniform_control_follows_the_golden_ratio():
    roles = run(*tower_output(), V2VConfig(6, 0, score="uniform")).roles[0]
    fractions = [patch * (5**0.5 - 1) / 2 % 1 for patch in range(16)]
    assert set((roles == PatchRole.DOMINANT).nonzero().flatten().tolist()) == set(
        sorted(range(16), key=fractions.__getitem__)[:5]
    )


def test_random_control_depends_on_the_seed_alone():
    features, attention, keys = tower_output(batch=5)
    choices = {}
    for seed in range(6):
        config = V2VConfig(7, 2, score="random", seed=seed)
        together, alone = run(features, attention, keys, config), run(features[2:3], attention[2:3], keys[2:3], config)
        assert torch.equal(together.roles[2], alone.roles[0])
        assert torch.equal(together.tokens, run(features, attention, keys, config).tokens)
        choices[seed] = tuple(together.roles[2].tolist())
    assert len(set(choices.values())) == 6


def test_random_control_favours_no_place():
    patches = 64
    counts = torch.zeros(patches)
    for seed in range(300):
        scores = score_patches(
            None, None, V2VConfig(16, 0, score="random", seed=seed), patches, torch.zeros(1, patches, 1)
        )
        counts[scores[0].topk(16).indices] += 1
    assert counts.min() > 75 * 0.55 and counts.max() < 75 * 1.5  # binomial(300, 1/4): mean 75, deviation 7.5


def test_more_dominant_tokens_than_there_are_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"v2v.dominant is 18, but the vision tower gives 17 tokens \(CLS included\)"):
        run(*tower_output(), V2VConfig(18, 0))


def test_more_contextual_tokens_than_remain_are_as_many_as_remain_and_it_is_said_once(caplog):
    config = V2VConfig(13, 9, 2)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert run(*tower_output(), config).tokens.shape[1] == 17
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "v2v asks for 9 contextual tokens, but 13 dominant ones leave 4 patches; 4 contextual tokens are made."
    ]


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        (V2VConfig(3, 1), "no CLS token"),
        (V2VConfig(3, 1, score="received"), "needs the tower's attention"),
        (V2VConfig(3, 1, score="uniform"), "needs the tower's keys"),
        (V2VConfig(3, 1, score="uniform", clusters="neighbours"), "needs the tower's attention"),
    ],
    ids=str,
)
def test_a_missing_input_is_named(config: V2VConfig, missing: str):
    with pytest.raises(ValueError, match=missing):
        merge_visual_tokens(torch.zeros(1, 8, 2), None, None, config)


def test_gradients_flow_through_tokens_and_not_through_the_choice():
    features, attention, keys = (tensor.requires_grad_() for tensor in tower_output(batch=1))
    result = run(features, attention, keys, V2VConfig(6, 3, 2))
    weights = torch.randn(result.tokens.shape, dtype=torch.float64)
    (result.tokens * weights).sum().backward()
    assert attention.grad is None and keys.grad is None
    free = features.detach().clone().requires_grad_()
    plan = reference.merge(features[0].detach(), attention[0].detach(), keys[0].detach(), V2VConfig(6, 3, 2))
    rows = [free[0, 0]] + [free[0, 1 + patch] for patch in sorted(plan.dominant)]
    rows += [free[0, 1 + a] + sum(free[0, 1 + m] for m in ms) / max(1, len(ms)) for a, ms in plan.clusters]
    (torch.stack(rows) * weights[0]).sum().backward()
    torch.testing.assert_close(features.grad, free.grad)


def test_half_precision_features_are_chosen_like_in_float32():
    """Attention and keys are compared in float32 even under autocast."""
    features, attention, keys = (tensor.float() for tensor in tower_output(batch=8, patches=64))
    config = V2VConfig(20, 6, 4)
    expected = run(features, attention, keys, config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = run(features, attention, keys, config)
    assert torch.equal(result.target, expected.target)
    torch.testing.assert_close(result.tokens.float(), expected.tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"cls_attention": 14}, "cls_attention has 14 entries an image, but there are 16 tokens, the CLS token"),
        ({"cls_attention": 16}, "it must have 15"),
        ({"cls_attention": 15, "has_cls": False}, "cls_attention is given, but has_cls is False"),
        ({"cls_attention": 15, "keys": 15}, "keys has 15 entries an image"),
        ({"received": 15, "keys": 16}, "received has 15 entries an image, but there are 16 tokens; it must have 16"),
    ],
    ids=str,
)
def test_scores_of_another_number_of_tokens_are_refused(inputs: dict[str, Any], said: str):
    """Whether there is a CLS token is told, not guessed from the number of scores."""
    tensors = {name: torch.rand(1, size, 2) for name, size in inputs.items() if name == "keys"}
    tensors |= {name: torch.rand(1, size) for name, size in inputs.items() if name in ("cls_attention", "received")}
    config = V2VConfig(3, 1, score="received" if "received" in inputs else "cls")
    with pytest.raises(ValueError, match=said):
        merge_visual_tokens(
            torch.rand(1, 16, 2),
            tensors.get("cls_attention"),
            tensors.get("keys"),
            config,
            received=tensors.get("received"),
            has_cls=inputs.get("has_cls"),
        )


def test_a_tower_with_cls_that_is_scored_otherwise_keeps_its_cls():
    features, received = torch.tensor([[[0.0], [10.0], [20.0]]]), torch.tensor([[9.0, 0.2, 0.6]])
    config = V2VConfig(2, 0, score="received")
    told = merge_visual_tokens(features, None, None, config, received=received, has_cls=True)
    assert told.tokens.flatten().tolist() == [0, 20] and told.source.tolist() == [[-1, 1]]
    assert merge_visual_tokens(features, None, None, config, received=received).source.tolist() == [[0, 2]]


@pytest.mark.parametrize("field", ["score", "clusters"])
def test_an_option_that_is_none_is_never_taken_for_another(field: str):
    features, attention, keys = tower_output()
    config = V2VConfig(5, 2, 2)
    object.__setattr__(config, field, "unifrom")
    with pytest.raises(ValueError, match=rf"v2v\.{field} is 'unifrom'; it must be one of"):
        run(features, attention, keys, config)
