"""Text-to-vision dropping against plain loops: scores, choice, gather, controls."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch
from torch import Tensor

from llava.compression import T2VConfig, TokenLayout
from llava.compression.t2v import (
    attention_scores,
    choose_visual_tokens,
    control_scores,
    gather_kept,
    keep_counts,
    voting_positions,
)
from llava.model.prefill import repeated_rows

# A row is written as it reads: s system, numbers of images, t text, V text that votes, a answer.
ROWS = ["ss0000tVaa", "s000t111tVa", "tta", "0000000V"]


def layout_of(rows: list[str], side: str = "right") -> TokenLayout:
    """The layout of rows written as above."""
    longest = max(map(len, rows))
    padded = [row.ljust(longest, ".") if side == "right" else row.rjust(longest, ".") for row in rows]
    count = {row: sum(mark.isdigit() for mark in row) for row in rows}

    def table(value, kind=torch.long) -> Tensor:
        return torch.tensor([[value(row, place) for place in range(longest)] for row in padded], dtype=kind)

    return TokenLayout(
        valid=table(lambda row, i: row[i] != ".", torch.bool),
        image=table(lambda row, i: int(row[i]) if row[i].isdigit() else -1),
        visual_index=table(lambda row, i: sum(m.isdigit() for m in row[:i]) if row[i].isdigit() else -1),
        vote=table(lambda row, i: row[i] == "V", torch.bool),
        positions=table(lambda row, i: sum(m != "." for m in row[:i]) if row[i] != "." else 0),
        lengths=tuple(len(row) for row in rows),
        visual=tuple(count[row] for row in rows),
        entered=tuple(count[row] for row in rows),
        max_votes=max(row.count("V") for row in rows),
        padding_side=side,
        columns=table(lambda row, i: 100 + i if row[i] != "." else -1),
    )


def random_projections(layout: TokenLayout, heads: int, groups: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    batch, length = layout.valid.shape
    queries = 2 * torch.randn(batch, heads, length, 8, generator=noise, dtype=torch.float64)
    keys = torch.randn(batch, groups, length, 8, generator=noise, dtype=torch.float64)
    return queries, keys


def plain_scores(queries: Tensor, keys: Tensor, layout: TokenLayout, scale: float) -> list[list[float]]:
    """Loops over rows, voters, heads and keys."""
    heads, groups = queries.shape[1], keys.shape[1]
    answer = []
    for row in range(len(layout.lengths)):
        places = layout.valid[row].nonzero().flatten().tolist()
        voters = layout.vote[row].nonzero().flatten().tolist()
        received = [0.0] * layout.valid.shape[1]
        for voter in voters:
            for head in range(heads):
                seen = [place for place in places if place <= voter]
                key_head = head // (heads // groups)
                logits = [float(queries[row, head, voter] @ keys[row, key_head, place]) * scale for place in seen]
                weights = [math.exp(logit - max(logits)) for logit in logits]
                for place, weight in zip(seen, weights, strict=True):
                    received[place] += weight / sum(weights) / heads / len(voters)
        answer.append(received)
    return answer


def scores_of(queries: Tensor, keys: Tensor, layout: TokenLayout, scale: float) -> Tensor:
    voters, is_voter = voting_positions(layout)
    at = voters[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[-1])
    return attention_scores(queries.gather(2, at), keys, layout, voters, is_voter, scale)


VOTES = ["ss0000tVaa", "ss0000VVVaaVVaa", "ss00ttt111ttVttttV", "sstttt", "s0V", "0000V", "ss000VVt"]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1), (6, 3)])
def test_scores_equal_plain_loops(heads: int, groups: int, side: str):
    layout = layout_of(VOTES, side)
    queries, keys = random_projections(layout, heads, groups)
    expected = plain_scores(queries, keys, layout, 0.4)
    measured = scores_of(queries, keys, layout, 0.4)
    assert measured.dtype == torch.float32
    torch.testing.assert_close(measured, torch.tensor(expected), atol=1e-6, rtol=0)


def test_scores_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch):
    layout = layout_of(VOTES)
    queries, keys = random_projections(layout, 4, 2)
    whole = scores_of(queries, keys, layout, 0.4)
    monkeypatch.setattr("llava.compression.t2v._MAX_ATTENTION_ELEMENTS", 1)
    torch.testing.assert_close(scores_of(queries, keys, layout, 0.4), whole, atol=1e-7, rtol=0)


def test_fault_14_scores_stay_float32_under_autocast():
    layout = layout_of(VOTES)
    queries, keys = (tensor.float() for tensor in random_projections(layout, 4, 2))
    whole = scores_of(queries, keys, layout, 0.4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scores_of(queries, keys, layout, 0.4), whole)


def test_what_stands_on_padding_does_not_count():
    for side in ("right", "left"):
        layout = layout_of(VOTES, side)
        queries, keys = random_projections(layout, 4, 2)
        clean = scores_of(queries, keys, layout, 0.4)
        keys = keys.masked_fill(~layout.valid[:, None, :, None], 1e4)
        queries = queries.masked_fill(~layout.valid[:, None, :, None], -1e4)
        assert torch.equal(scores_of(queries, keys, layout, 0.4)[layout.valid], clean[layout.valid])


def test_a_row_without_voters_scores_zero_and_never_nan():
    layout = layout_of(["ss0000tt", "ss00V"])
    queries, keys = random_projections(layout, 4, 2)
    scores = scores_of(queries, keys, layout, 0.4)
    assert scores[0].tolist() == [0.0] * 8
    assert scores.isfinite().all()


def plain_drop(row: str, scores: list[float], count: int) -> tuple[list[int], list[int]]:
    """Places that stay, and places (among them) that vote afterwards."""
    visual = [place for place, mark in enumerate(row) if mark.isdigit()]
    best = sorted(visual, key=lambda place: (-scores[place], place))[:count]
    stays = [place for place, mark in enumerate(row) if not mark.isdigit() or place in best]
    voters = {max((p for p in stays if p <= place), default=stays[0]) for place, mark in enumerate(row) if mark == "V"}
    return stays, sorted(voters)


@pytest.mark.parametrize("positions", ["renumber", "original"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_choice_and_gather_equal_plain_loops(side: str, positions: str):
    for seed in range(12):
        draw = random.Random(seed)
        rows = [draw.choice(VOTES + ROWS) for _ in range(draw.randint(1, 5))]
        layout = layout_of(rows, side)
        counts = tuple(
            draw.randint(0 if len(row) > visual else 1, visual) for row, visual in zip(rows, layout.visual, strict=True)
        )
        noise = torch.Generator().manual_seed(seed)
        scores = torch.rand(layout.valid.shape, generator=noise)
        scores = (scores * 3).round() if seed % 2 else scores  # every other time with ties
        hidden = torch.randn(*layout.valid.shape, 5, generator=noise)
        keep = choose_visual_tokens(scores, layout, counts)
        gathered, after = gather_kept(hidden, layout, keep, counts, positions)
        check_gather(rows, layout, counts, scores, hidden, gathered, after, positions)


def check_gather(rows, layout, counts, scores, hidden, gathered, after, positions) -> None:
    assert after.visual == counts and after.entered == layout.entered
    longest = max(
        length - visual + count for length, visual, count in zip(layout.lengths, layout.visual, counts, strict=True)
    )
    assert gathered.shape[1] == longest and after.valid.shape[1] == longest
    assert not gathered[~after.valid].any()
    for number, row in enumerate(rows):
        start = 0 if layout.padding_side == "right" else len(scores[0]) - len(row)
        stays, voters = plain_drop(row, scores[number, start:].tolist(), counts[number])
        valid = after.valid[number]
        where = valid.nonzero().flatten().tolist()
        begin = 0 if layout.padding_side == "right" else longest - len(stays)
        assert where == list(range(begin, begin + len(stays))) and after.lengths[number] == len(stays)
        assert torch.equal(gathered[number][valid], hidden[number][[start + place for place in stays]])
        visual_rank = [sum(m.isdigit() for m in row[:p]) if row[p].isdigit() else -1 for p in stays]
        assert after.visual_index[number][valid].tolist() == visual_rank
        assert after.image[number][valid].tolist() == [int(row[p]) if row[p].isdigit() else -1 for p in stays]
        assert after.columns[number][valid].tolist() == [100 + start + p for p in stays]
        assert [stays[i - begin] for i in after.vote[number].nonzero().flatten().tolist()] == voters
        numbered = list(range(len(stays))) if positions == "renumber" else stays
        assert after.positions[number][valid].tolist() == numbered
        for values, fill in ((after.image, -1), (after.visual_index, -1), (after.columns, -1), (after.positions, 0)):
            assert (values[number][~valid] == fill).all()
        assert not after.vote[number][~valid].any()


def test_counts_are_floored_shares_of_what_entered():
    config = T2VConfig(layers=(1, 2, 3), keep=(0.5, 0.3, 0.0))
    layout = layout_of(ROWS)
    assert [keep_counts(layout, config, stage) for stage in range(3)] == [(2, 3, 0, 3), (1, 1, 0, 2), (0, 0, 0, 0)]
    later = dataclasses.replace(layout, visual=(1, 2, 0, 3), lengths=(7, 7, 3, 4))
    assert keep_counts(later, config, 0) == (1, 2, 0, 3), "a share of what entered, never more than is left"
    assert T2VConfig(layers=(1,), keep=(0.58,)).kept(0, 50) == 28, "the floating-point product is truncated"


def test_a_row_of_nothing_but_an_image_keeps_a_token():
    layout = layout_of(["0000", "0000t", "tt"])
    assert keep_counts(layout, T2VConfig(layers=(1,), keep=(0.0,)), 0) == (1, 0, 0)
    assert keep_counts(layout, T2VConfig(layers=(1,), keep=(0.2,)), 0) == (1, 0, 0)


@pytest.mark.parametrize("score", ["random", "uniform"])
def test_controls_keep_exact_counts_and_ignore_the_batch(score: str):
    config = T2VConfig(layers=(1, 2), keep=(0.5, 0.25), score=score)
    rows = ["s" + "0" * 13 + "V", "s0000V", "tt", "ss" + "0" * 6 + "1" * 9 + "tV"]
    chosen = {}
    for side in ("right", "left"):
        for order in ([0, 1, 2, 3], [3, 1], [3], [1, 1, 0], [0], [1]):
            layout = layout_of([rows[i] for i in order], side)
            counts = keep_counts(layout, config, 0)
            keep = choose_visual_tokens(control_scores(layout, config, 0), layout, counts)
            for number, row in enumerate(order):
                kept = layout.visual_index[number][keep[number] & layout.is_visual[number]].tolist()
                assert len(kept) == counts[number] == sum(m.isdigit() for m in rows[row]) // 2
                assert chosen.setdefault(row, kept) == kept


def test_uniform_control_thins_what_is_left():
    config = T2VConfig(layers=(1, 2), keep=(0.5, 0.25), score="uniform")
    layout = layout_of(["s" + "0" * 16 + "V"])
    hidden = torch.zeros(1, 18, 1)
    by_fraction = sorted(range(16), key=lambda token: token * (5**0.5 - 1) / 2 % 1)
    for stage in (0, 1):
        counts = keep_counts(layout, config, stage)
        keep = choose_visual_tokens(control_scores(layout, config, stage), layout, counts)
        hidden, layout = gather_kept(hidden, layout, keep, counts)
        assert layout.visual_index[layout.is_visual].tolist() == sorted(by_fraction[: counts[0]])


def test_random_control_depends_on_seed_and_stage():
    layout = layout_of(["s" + "0" * 40 + "V"])
    seen = set()
    for seed in range(5):
        config = T2VConfig(layers=(1, 2), keep=(0.5, 0.5), score="random", seed=seed)
        for stage in (0, 1):
            first, again = (control_scores(layout, config, stage) for _ in range(2))
            assert torch.equal(first, again)
            if stage == 0:
                seen.add(tuple(first[0].tolist()))
            else:
                assert tuple(first[0].tolist()) != tuple(control_scores(layout, config, 0)[0].tolist())
    assert len(seen) == 5


@pytest.mark.parametrize("seed", [0, 2**31, 2**40, 2**63 - 1])
def test_any_seed_works(seed: int):
    layout = layout_of(["s" + "0" * 40 + "V"])
    config = T2VConfig(layers=(1,), keep=(0.5,), score="random", seed=seed)
    scores = control_scores(layout, config, 0)
    assert len(set(scores[layout.is_visual].tolist())) > 35
    assert scores.min() >= 0 and scores.max() < 1


def test_layout_says_who_is_alive_and_repeats_rows():
    layout = layout_of(ROWS)
    counts = (2, 3, 0, 3)
    scores = torch.arange(layout.valid.shape[1]).float().expand(4, -1)
    _, after = gather_kept(
        torch.zeros(*layout.valid.shape, 1), layout, choose_visual_tokens(scores, layout, counts), counts
    )
    assert after.alive().int().tolist() == [[0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0], [0] * 7, [0] * 4 + [1] * 3]
    twice = repeated_rows(after, 2)
    assert twice.visual == (2, 2, 3, 3, 0, 0, 3, 3)
    assert torch.equal(twice.alive()[::2], after.alive()) and torch.equal(twice.alive()[1::2], after.alive())


def test_layout_of_text_finds_the_padding_side():
    right = TokenLayout.of_text(torch.tensor([[1, 1, 0], [1, 1, 1]]))
    left = TokenLayout.of_text(torch.tensor([[0, 1, 1], [1, 1, 1]]))
    gaps = TokenLayout.of_text(torch.tensor([[1, 0, 1], [1, 1, 1]]))
    assert [layout.padding_side for layout in (right, left, gaps)] == ["right", "left", "left"]
    assert [layout.needs_mask for layout in (right, left, gaps)] == [False, True, True]
    assert left.positions.tolist() == [[0, 0, 1], [0, 1, 2]]
    assert not TokenLayout.of_full_text(2, 3, torch.device("cpu")).is_padded


def test_an_option_that_is_none_is_never_taken_for_another():
    layout, config = layout_of(["ttvvvt"]), T2VConfig((1,), (0.5,), score="random")
    object.__setattr__(config, "score", "unifrom")
    with pytest.raises(ValueError, match=r"'unifrom'; it must be one of random, uniform"):
        control_scores(layout, config, 0)
    keep = layout.valid
    with pytest.raises(ValueError, match=r"t2v\.positions is 'orignal'; it must be one of renumber, original"):
        gather_kept(torch.zeros(1, 6, 2), layout, keep, (3,), positions="orignal")
