"""Batches of every kind of prompt, step by step against recomputing each row alone; and conversations that go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import reference
import tiny
import torch
from test_generation import beams_by_hand, generate, greedy_by_hand
from tiny import PATCHES, Row, chat, collate, images_of, pixels, tiny_llava
from torch import Tensor
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

from llava.cost.flops import kv_bytes, visual_tokens_per_layer
from llava.cost.shapes import DecoderShape
from llava.model.staged_cache import StagedCache, key_value_bytes

NEW = 4
MIXED = [
    chat(11, (5,), answered=False),
    chat(12, (0,), answered=False),
    chat(13, (1, 0), answered=False),
    chat(14, (1, 1), answered=False),
    chat(15, (0,), answered=False),
]
PICTURES = pixels(8)
BUDGETS = {"duet": tiny.DUET, "t2v": tiny.T2V_ONLY, "zero": tiny.TO_ZERO, "original": tiny.ORIGINAL, "none": None}


def step_logits(model, row: Row, images: Tensor, new: list[int]) -> Tensor:
    """Logits [steps, V] that chose each of the tokens of an answer, recomputed at once without a cache."""
    seen = [reference.visual_tokens(model, image, model.compression.v2v) for image in images]
    with torch.no_grad():
        logits = reference.answer_from(model, row.then(*new), seen, model.compression.t2v).logits
    return logits[-len(new) - 1 : -1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", BUDGETS)
def test_fault_12_rows_with_0_1_2_and_5_images_equal_each_row_alone(name: str, side: str):
    model = tiny_llava(compression=BUDGETS[name])
    assert [row.images for row in MIXED] == [5, 0, 1, 2, 0]
    options = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_logits": True, "do_sample": True}
    batch = collate(MIXED, side)
    torch.manual_seed(5)
    output = model.generate(batch.pop("input_ids"), images=PICTURES, **batch, **options)
    drawn = output.sequences.tolist()
    assert len({tuple(answer) for answer in drawn}) == len(MIXED), "the draws can tell rows apart"
    for number, (row, own) in enumerate(zip(MIXED, images_of(MIXED, PICTURES), strict=True)):
        expected = step_logits(model, row, own, drawn[number])
        torch.testing.assert_close(torch.stack(output.logits)[:, number], expected.float(), atol=1e-5, rtol=1e-5)


def test_fault_12_beams_of_a_mixed_batch_equal_each_row_alone():
    model, rows = tiny_llava(compression=tiny.DUET), MIXED[1:4]
    pictures = PICTURES[:3]
    expected = [beams_by_hand(model, row, own, 2, 3) for row, own in zip(rows, images_of(rows, pictures), strict=True)]
    for side in ("left", "right"):
        assert generate(model, rows, pictures, side, num_beams=2, max_new_tokens=3) == expected


def test_a_temperature_warps_the_logits_of_each_row_and_no_others():
    model, rows = tiny_llava(compression=tiny.DUET), MIXED[1:4]
    batch = collate(rows, "left")
    options = {"do_sample": True, "temperature": 0.5, "top_k": 0, "output_scores": True}
    torch.manual_seed(1)
    output = model.generate(
        batch.pop("input_ids"),
        images=PICTURES[:3],
        **batch,
        **options,
        max_new_tokens=NEW,
        num_return_sequences=2,
        return_dict_in_generate=True,
    )
    drawn = output.sequences.tolist()
    for number, answer in enumerate(drawn):
        own = images_of(rows, PICTURES[:3])[number // 2]
        expected = step_logits(model, rows[number // 2], own, answer) / 0.5
        torch.testing.assert_close(torch.stack(output.scores)[:, number], expected.float(), atol=1e-5, rtol=1e-5)


def first_turn(model, rows: list[Row], images: Tensor, **options) -> tuple[list[list[int]], StagedCache]:
    batch = collate(rows, "left")
    options = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True} | options
    output = model.generate(batch.pop("input_ids"), images=images if len(images) else None, **batch, **options)
    return output.sequences.tolist(), output.past_key_values


def pad_left(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + row for row in rows]
    return torch.tensor(ids), torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


@pytest.mark.parametrize("name", BUDGETS)
def test_fault_13_a_second_question_goes_on_behind_the_cache(name: str):
    """It sees, in each layer, the visual tokens of the first question: those that earlier voters alone would keep."""
    model, rows = tiny_llava(compression=BUDGETS[name]), MIXED[1:4]
    answers, cache = first_turn(model, rows, PICTURES[:3])
    questions = [[7, 9, 11], [8], [21, 22]]
    ids, mask = pad_left([[answer[-1], *question] for answer, question in zip(answers, questions, strict=True)])
    again = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=NEW, do_sample=False)
    for number, (row, own) in enumerate(zip(rows, images_of(rows, PICTURES[:3]), strict=True)):
        whole = row.then(*answers[number], *questions[number])
        assert again[number].tolist() == greedy_by_hand(model, whole, own, NEW)
        alone_answers, alone_cache = first_turn(model, [row], own)
        alone = model.generate(
            torch.tensor([[alone_answers[0][-1], *questions[number]]]),
            past_key_values=alone_cache,
            max_new_tokens=NEW,
            do_sample=False,
        )
        assert alone[0].tolist() == again[number].tolist()


def test_fault_13_rows_whose_first_answers_ended_early_go_on_too():
    """Compared by their logits, which padding that stayed in the cache would change."""
    model, rows = tiny_llava(compression=tiny.DUET), MIXED[1:4]
    free, _ = first_turn(model, rows, PICTURES[:3])
    end = free[1][0]
    answers, cache = first_turn(model, rows, PICTURES[:3], eos_token_id=end)
    ended = [answer[: answer.index(end) + 1] if end in answer else answer for answer in answers]
    assert len({len(answer) for answer in ended}) > 1, "the case has answers of different length"
    held = len(answers[0]) - 1
    cache.discard([held - min(len(answer), held) for answer in ended])
    lacking = [answer[held:] for answer in ended]
    questions = [[7, 9, 11], [8], [21, 22]]
    ids, mask = pad_left([rest + question for rest, question in zip(lacking, questions, strict=True)])
    again = model.generate(
        ids,
        attention_mask=mask,
        past_key_values=cache,
        max_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for number, (row, own) in enumerate(zip(rows, images_of(rows, PICTURES[:3]), strict=True)):
        whole = row.then(*ended[number], *questions[number])
        expected = step_logits(model, whole, own, again.sequences[number].tolist()).float()
        torch.testing.assert_close(torch.stack(again.logits)[:, number], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="2 counts were given for 3 rows"):
        cache.discard([1, 2])


def test_a_third_turn_and_beams_behind_the_cache():
    model, row, own = tiny_llava(compression=tiny.DUET), MIXED[2], PICTURES[:1]
    (answer,), cache = first_turn(model, [row], own)
    whole = row.then(*answer)
    for question in ([7, 8], [9]):
        held = cache.get_seq_length()
        new = torch.tensor([[whole.ids[-1], *question]])
        whole = whole.then(*question)
        beams = model.generate(new, past_key_values=cache, num_beams=2, max_new_tokens=3, do_sample=False)
        assert beams[0].tolist() == beams_by_hand(model, whole, own, 2, 3)
        assert cache.get_seq_length() == held, "beams work on a copy"
        answer = model.generate(new, past_key_values=cache, max_new_tokens=NEW, do_sample=False)[0].tolist()
        assert answer == greedy_by_hand(model, whole, own, NEW)
        whole = whole.then(*answer)


def test_crop_forgets_positions_of_tokens_only():
    """Padding among the new tokens took no position, so taking it back gives none."""
    model, rows = tiny_llava(compression=tiny.DUET), MIXED[1:4]
    token = torch.tensor([[5]] * 3)
    batch = collate(rows)
    caches = [model(**batch, images=PICTURES[:3], use_cache=True).past_key_values for _ in range(2)]
    expected = model(token, past_key_values=caches[0]).logits
    ids, mask = pad_left([[7, 8, 9], [7], [7, 8]])
    model(ids, attention_mask=mask, past_key_values=caches[1])
    caches[1].crop(-3)
    torch.testing.assert_close(model(token, past_key_values=caches[1]).logits, expected)


class Recorder(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.got: list[list[int]] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.got.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_each_new_token_and_no_prompt():
    model, row = tiny_llava(compression=tiny.DUET), MIXED[2]
    first = Recorder()
    expected = generate(model, [row], PICTURES[:1], streamer=first)[0]
    assert first.got == [[], *[[token] for token in expected]] and first.ended
    _, cache = first_turn(model, [row], PICTURES[:1])
    second = Recorder()
    ids = torch.tensor([[5, 6]])
    new = model.generate(ids, past_key_values=cache, max_new_tokens=NEW, do_sample=False, streamer=second)[0].tolist()
    assert second.got == [[], *[[token] for token in new]]


def test_streaming_a_batch_as_text_is_refused_before_anything_is_computed():
    model = tiny_llava(compression=tiny.DUET)
    with pytest.raises(ValueError, match="A TextStreamer streams one answer, but 5 prompts were given"):
        generate(model, MIXED, PICTURES, streamer=TextStreamer(tokenizer=None))


class InTurns(BaseStreamer):
    """Lets no thread go on to its next token before every thread has come as far."""

    def __init__(self, barrier: threading.Barrier, order: list[int], number: int) -> None:
        self.barrier, self.order, self.number = barrier, order, number

    def put(self, value: Tensor) -> None:
        self.order.append(self.number)
        self.barrier.wait(timeout=300)

    def end(self) -> None:
        pass


def test_fault_13_two_threads_that_take_turns_on_one_model_get_what_they_get_alone():
    model = tiny_llava(compression=tiny.DUET)
    requests = [
        (MIXED[0], PICTURES[:5], {}),
        (MIXED[2], PICTURES[5:6], {"compression": tiny.TO_ZERO}),
    ]
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = [generate(model, [row], own, **options, **more) for row, own, more in requests]
    assert expected[0] != expected[1]
    barrier, order = threading.Barrier(2), []
    answers: dict[int, list[list[int]]] = {}

    def work(number: int) -> None:
        row, own, more = requests[number]
        streamer = InTurns(barrier, order, number)
        answers[number] = generate(model, [row], own, streamer=streamer, **options, **more)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[number] for number in range(2)] == expected
    assert all(set(pair) == {0, 1} for pair in pairs(order)), "each token of one was made beside one of the other"


def pairs(order: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(order), 2):
        yield order[start : start + 2]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("name", BUDGETS)
def test_the_cache_takes_the_bytes_that_the_schedule_says(name: str, kv_heads: int):
    model = tiny_llava(compression=BUDGETS[name], kv_heads=kv_heads, dtype=torch.float32)
    shape = DecoderShape.of(model.config)
    for row, own in zip(MIXED, images_of(MIXED, PICTURES.float()), strict=True):
        cache = model(**collate([row]), images=own if len(own) else None, use_cache=True).past_key_values
        assert key_value_bytes(cache) == expected_bytes(model, row, shape)
    twins = [MIXED[2]] * 3
    cache = model(**collate(twins), images=PICTURES[:3].float(), use_cache=True).past_key_values
    assert key_value_bytes(cache) == 3 * expected_bytes(model, MIXED[2], shape)


def expected_bytes(model, row: Row, shape: DecoderShape) -> int:
    tokens = (0,) * shape.layers
    if row.images:
        tokens = staircase(model, row.images)
    return kv_bytes(tokens, len(row.ids) - row.images, shape, bytes_per_value=4)


def staircase(model, images: int) -> tuple[int, ...]:
    """Visual tokens by layer, from the settings alone."""
    settings = model.compression
    entered = images * (PATCHES if settings.v2v is None else settings.v2v.dominant + settings.v2v.contextual)
    tokens, alive = [], entered
    for layer in range(model.config.num_hidden_layers):
        if settings.t2v is not None and layer in settings.t2v.layers:
            alive = int(settings.t2v.keep[settings.t2v.layers.index(layer)] * entered + 1e-9)
        tokens.append(alive)
    return tuple(tokens)


@pytest.mark.parametrize("name", BUDGETS)
def test_a_padded_batch_caches_its_longest_row_in_every_layer(name: str):
    """Rows without images are padded to the longest of each stage; the schedule of that row says how much."""
    model = tiny_llava(compression=BUDGETS[name], dtype=torch.float32)
    shape = DecoderShape.of(model.config)
    cache = model(**collate(MIXED), images=PICTURES.float(), use_cache=True).past_key_values
    longest = [
        max(len(row.ids) - row.images + (staircase(model, row.images)[layer] if row.images else 0) for row in MIXED)
        for layer in range(shape.layers)
    ]
    per_token = 2 * shape.kv_heads * shape.head_dim * 4
    assert key_value_bytes(cache) == len(MIXED) * per_token * sum(longest)


def test_the_schedule_of_a_tiny_tower_agrees_with_the_settings():
    from llava.cost.shapes import VisionShape

    model = tiny_llava(compression=tiny.DUET)
    vision = VisionShape.of(model.get_vision_tower().config)
    for images in (1, 2, 5):
        assert visual_tokens_per_layer(model.compression, 6, vision, images) == staircase(model, images)
