"""Properties of the pure functions that hold for every input: counts, order, permutation, padding, extremes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_t2v import layout_of, random_projections, scores_of
from torch import Tensor

from llava.compression import CompressionConfig, PatchRole, T2VConfig, V2VConfig, merge_visual_tokens
from llava.compression.selection import even_spread, seeded_noise
from llava.compression.t2v import choose_visual_tokens, control_scores, gather_kept, keep_counts
from llava.cost.flops import average_visual_tokens, visual_tokens_per_layer
from llava.cost.shapes import VisionShape

steady = settings(derandomize=True, deadline=None, max_examples=60)

SCORES, CLUSTERS = ("cls", "received", "random", "uniform"), ("anchored", "neighbours", "uniform")


@st.composite
def merges(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, V2VConfig]:
    """A tower's output and a configuration that fits it."""
    batch, patches = draw(st.integers(1, 4)), draw(st.integers(1, 25))
    config = V2VConfig(
        dominant=draw(st.integers(1, patches + 1)),
        contextual=draw(st.integers(0, patches + 3)),
        cluster_width=draw(st.integers(1, 6)),
        score=draw(st.sampled_from(SCORES)),
        clusters=draw(st.sampled_from(CLUSTERS)),
        seed=draw(st.integers(0, 9)),
    )
    noise = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    features = torch.randn(batch, patches + 1, 3, generator=noise, dtype=torch.float64)
    attention = torch.rand(batch, patches + 1, patches + 1, generator=noise)
    if draw(st.booleans()):
        attention = (attention * 3).round()  # many ties
    keys = torch.randn(batch, patches + 1, 4, generator=noise)
    return features, attention, keys, config


def run(features: Tensor, attention: Tensor, keys: Tensor, config: V2VConfig):
    return merge_visual_tokens(features, attention[:, 0, 1:], keys, config, attention)


@steady
@given(merges())
def test_v2v_counts_and_order(case):
    features, config = case[0], case[3]
    patches = features.shape[1] - 1
    result = run(*case)
    expected = min(config.dominant + config.contextual, patches + 1)
    assert result.tokens.shape[1] == config.token_count(patches + 1) == expected
    assert result.tokens.isfinite().all()
    assert ((result.roles == PatchRole.DOMINANT).sum(dim=1) == config.dominant - 1).all()
    assert ((result.roles == PatchRole.ANCHOR).sum(dim=1) == expected - config.dominant).all()
    assert ((result.target == -1) == (result.roles == PatchRole.DROPPED)).all()
    assert (result.target != 0).all(), "CLS stands there"
    assert torch.equal(result.tokens[:, 0], features[:, 0])
    for image in range(len(features)):
        kept = (result.roles[image] == PatchRole.DOMINANT).nonzero().flatten()
        assert torch.equal(result.tokens[image, 1 : config.dominant], features[image, 1 + kept])
        assert result.target[image, kept].tolist() == list(range(1, config.dominant))
    disjoint = config.clusters != "neighbours"
    if disjoint:
        assert set(result.target.flatten().tolist()) - {-1} == set(range(1, expected))
    if config.clusters == "anchored" and config.contextual:
        pool = min(
            config.cluster_width * min(config.contextual, patches + 1 - config.dominant), patches + 1 - config.dominant
        )
        assert ((result.roles != PatchRole.DROPPED).sum(dim=1) == config.dominant - 1 + pool).all()
    if config.clusters == "uniform" and config.contextual:
        assert (result.roles != PatchRole.DROPPED).all()


@steady
@given(merges(), st.randoms(use_true_random=False))
def test_v2v_does_not_know_the_batch(case, draw):
    features, attention, keys, config = case
    order = list(range(len(features)))
    draw.shuffle(order)
    whole, shuffled = run(*case), run(features[order], attention[order], keys[order], config)
    assert torch.equal(whole.roles[order], shuffled.roles) and torch.equal(whole.target[order], shuffled.target)
    torch.testing.assert_close(whole.tokens[order], shuffled.tokens, atol=1e-12, rtol=0)
    alone = run(features[:1], attention[:1], keys[:1], config)
    assert torch.equal(whole.target[:1], alone.target)


@steady
@given(merges())
def test_v2v_keeps_the_best_whatever_the_order_of_the_patches(case):
    features, attention, _, config = case
    if config.score not in ("cls", "received"):
        return
    scores = attention[:, 0, 1:] if config.score == "cls" else attention.mean(dim=1)[:, 1:]
    kept = run(*case).roles == PatchRole.DOMINANT
    for image in range(len(features)):
        inside, outside = scores[image][kept[image]], scores[image][~kept[image]]
        assert not len(inside) or not len(outside) or inside.min() >= outside.max()


ROW = st.text("s0tVa", min_size=1, max_size=14).map(lambda row: row if "0" in row else row + "V")
SIDE = st.sampled_from(["right", "left"])
SHARE = st.sampled_from([0.0, 0.1, 0.33, 0.5, 0.58, 0.9, 1.0])


@steady
@given(st.lists(ROW, min_size=1, max_size=4), SIDE, st.lists(SHARE, min_size=1, max_size=3), st.integers(0, 99))
def test_t2v_drops_stage_by_stage(rows: list[str], side: str, shares: list[float], seed: int):
    config = T2VConfig(layers=tuple(range(1, len(shares) + 1)), keep=tuple(sorted(shares, reverse=True)))
    layout = layout_of(rows, side)
    hidden = torch.arange(layout.valid.numel()).view(*layout.valid.shape, 1).float() + 1
    text = [length - visual for length, visual in zip(layout.lengths, layout.visual, strict=True)]
    voted = layout.vote.any(dim=1)
    for stage, share in enumerate(config.keep):
        queries, keys = random_projections(layout, 4, 2, seed)
        scores = scores_of(queries, keys, layout, 0.5)
        assert scores.isfinite().all()
        counts = keep_counts(layout, config, stage)
        for row, count in enumerate(counts):
            least = 1 if text[row] == 0 else 0
            assert count == max(least, int(layout.entered[row] * share))
        before = layout
        keep = choose_visual_tokens(scores, layout, counts)
        assert keep[layout.valid & ~layout.is_visual].all() and not keep[~layout.valid].any()
        hidden, layout = gather_kept(hidden, layout, keep, counts)
        assert layout.lengths == tuple(a + b for a, b in zip(text, counts, strict=True))
        assert (layout.valid.sum(dim=1) == torch.tensor(layout.lengths)).all()
        assert (layout.is_visual.sum(dim=1) == torch.tensor(counts)).all()
        assert not (layout.alive() & ~before.alive()).any(), "nothing returns"
        for row in range(len(rows)):
            valid = layout.valid[row]
            assert (hidden[row][valid].diff(dim=0) > 0).all(), "order is kept"
            assert layout.positions[row][valid].tolist() == list(range(layout.lengths[row]))
        assert torch.equal(layout.vote.any(dim=1), voted), "somebody always votes"
        assert (layout.vote.sum(dim=1) <= layout.max_votes).all()


@steady
@given(st.lists(ROW, min_size=2, max_size=4), SHARE, st.integers(0, 99), st.randoms(use_true_random=False))
def test_t2v_does_not_know_the_batch_nor_the_padding_side(rows: list[str], share: float, seed: int, draw):
    config = T2VConfig(layers=(1,), keep=(share,))

    def survivors(order: list[int], side: str) -> dict[int, list[int]]:
        layout = layout_of([rows[i] for i in order], side)
        length = layout.valid.shape[1]
        scores = torch.zeros(len(order), length)
        for place, row in enumerate(order):
            own = torch.rand(len(rows[row]), generator=torch.Generator().manual_seed(seed + row))
            scores[place, layout.valid[place]] = (own * 4).round()
        counts = keep_counts(layout, config, 0)
        _, after = gather_kept(scores[..., None], layout, choose_visual_tokens(scores, layout, counts), counts)
        return {row: after.visual_index[i][after.is_visual[i]].tolist() for i, row in enumerate(order)}

    order = list(range(len(rows)))
    whole = survivors(order, "right")
    draw.shuffle(order)
    assert survivors(order, "left") == survivors(order, "right") == whole
    assert survivors([order[0]], "right")[order[0]] == whole[order[0]]


@steady
@given(st.lists(ROW, min_size=1, max_size=4), SIDE, SHARE, st.sampled_from(["random", "uniform"]), st.integers(0, 9))
def test_controls_keep_exact_counts(rows: list[str], side: str, share: float, score: str, seed: int):
    config = T2VConfig(layers=(1, 2), keep=(share, share / 2), score=score, seed=seed)
    layout = layout_of(rows, side)
    for stage in (0, 1):
        counts = keep_counts(layout, config, stage)
        keep = choose_visual_tokens(control_scores(layout, config, stage), layout, counts)
        assert tuple((keep & layout.is_visual).sum(dim=1).tolist()) == counts
        _, layout = gather_kept(torch.zeros(*layout.valid.shape, 1), layout, keep, counts)


@steady
@given(st.integers(1, 600), st.data())
def test_even_spread_leaves_gaps_of_at_most_three_lengths(total: int, data):
    """The three-gap theorem: multiples of an irrational number below a threshold return after one of three times."""
    keep = data.draw(st.integers(1, total))
    chosen = even_spread(torch.arange(total)).sort(descending=True, stable=True).indices[:keep].sort().values
    assert len(set(chosen.diff().tolist())) <= 3


@steady
@given(st.integers(8, 32))
def test_even_spread_never_falls_into_a_few_columns(width: int):
    """Plain steps do where they divide the width: every fourth patch of 12 x 12 stands in three columns of twelve."""
    scores = even_spread(torch.arange(width * width))
    chosen = scores.sort(descending=True).indices[: width * width // 4]
    assert len(set((chosen // width).tolist())) == width
    assert len(set((chosen % width).tolist())) > 2 / 3 * width


@steady
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30), st.integers(0, 2**70))
def test_noise_depends_on_index_and_seed_alone(index: list[int], seed: int):
    noise = seeded_noise(torch.tensor(index), seed)
    assert noise.tolist() == [seeded_noise(torch.tensor([number]), seed).item() for number in index]
    assert noise.min() >= 0 and noise.max() < 1


@steady
@given(st.integers(2, 40), st.integers(1, 577), st.integers(0, 600), st.data())
def test_schedule_is_a_falling_staircase(layers: int, dominant: int, contextual: int, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, layers - 1), min_size=1, max_size=3)))
    keep = sorted(data.draw(st.lists(SHARE, min_size=len(cuts), max_size=len(cuts))), reverse=True)
    images = data.draw(st.integers(1, 5))
    config = CompressionConfig(V2VConfig(dominant, contextual), T2VConfig(tuple(cuts), tuple(keep)))
    tokens = visual_tokens_per_layer(config, layers, VisionShape(23, 1024, 4096, 576, 588), images)
    entered = images * min(dominant + contextual, 577)
    stairs = [entered] * cuts[0]
    for cut, end, share in zip(cuts, [*cuts[1:], layers], keep, strict=True):
        stairs += [int(entered * share)] * (end - cut)
    assert list(tokens) == stairs
    assert average_visual_tokens(tokens) == sum(stairs) / layers
