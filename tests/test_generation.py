"""Generation with a cache whose layers differ in length, against greedy search by recomputing everything."""

from __future__ import annotations

import random
import threading

import pytest
import reference
import tiny
import torch
from tiny import Row, chat, collate, images_of, pixels, stock_llama, tiny_llava
from torch import Tensor
from transformers import DynamicCache

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.staged_cache import StagedCache

ROWS = [chat(1, answered=False), chat(2, (0,), answered=False), chat(3, (2, 1), answered=False)]
IMAGES = pixels(4)
NEW = 5


def greedy_by_hand(model, row: Row, images: Tensor, count: int = NEW) -> list[int]:
    """Recompute the whole sample for every token."""
    new: list[int] = []
    seen = [reference.visual_tokens(model, image, model.compression.v2v) for image in images]
    with torch.no_grad():
        for _ in range(count):
            logits = reference.answer_from(model, row.then(*new), seen, model.compression.t2v).logits
            new.append(int(logits[-1].argmax()))
    return new


def generate(model, rows: list[Row], images: Tensor, side: str = "left", **kwargs) -> list[list[int]]:
    batch = collate(rows, side)
    options = {"max_new_tokens": NEW, "do_sample": False} | kwargs
    ids = batch.pop("input_ids")
    return model.generate(ids, images=images if len(images) else None, **batch, **options).tolist()


CASES = {
    "duet-mha": (tiny.DUET, 4),
    "duet-gqa": (tiny.DUET, 2),
    "t2v-mqa": (tiny.T2V_ONLY, 1),
    "to-zero": (tiny.TO_ZERO, 2),
    "original": (tiny.ORIGINAL, 2),
    "before": (tiny.BEFORE, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_greedy_equals_recomputing_everything_for_every_token(name: str):
    settings, kv_heads = CASES[name]
    model = tiny_llava(compression=settings, kv_heads=kv_heads)
    expected = [greedy_by_hand(model, row, own) for row, own in zip(ROWS, images_of(ROWS, IMAGES), strict=True)]
    assert len({tuple(answer) for answer in expected}) == 3, "the case can tell rows apart"
    for side in ("left", "right"):
        assert generate(model, ROWS, IMAGES, side) == expected
    for row, own, answer in zip(ROWS, images_of(ROWS, IMAGES), expected, strict=True):
        assert generate(model, [row], own) == [answer]


def test_prompts_may_come_without_masks_and_as_keywords():
    model, row = tiny_llava(compression=tiny.DUET), ROWS[0]
    by_roles = Row(row.ids, [0] * (len(row.ids) - 1) + [4], row.labels)
    expected = greedy_by_hand(model, by_roles, IMAGES[:1])
    ids = torch.tensor([row.ids])
    assert model.generate(ids, images=IMAGES[:1], image_sizes=[(56, 56)], max_new_tokens=NEW).tolist() == [expected]
    assert model.generate(input_ids=ids, images=[IMAGES[0]], max_new_tokens=NEW).tolist() == [expected]
    with pytest.raises(ValueError, match="token ids"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 32), max_new_tokens=2)


def test_compression_can_be_chosen_for_one_call():
    plain, budget = tiny_llava(), tiny_llava(compression=tiny.DUET)
    expected = generate(budget, ROWS, IMAGES)
    assert generate(plain, ROWS, IMAGES) != expected
    assert generate(plain, ROWS, IMAGES, compression=tiny.DUET) == expected
    assert generate(budget, ROWS, IMAGES, compression="none") == generate(plain, ROWS, IMAGES)
    with pytest.raises(ValueError, match="the decoder has 6 layers"):
        generate(plain, ROWS, IMAGES, compression="pyramiddrop")


def test_without_compression_beams_equal_the_stock_model():
    model, stock = tiny_llava(), stock_llama(tiny_llava())
    prompt = torch.tensor([ROWS[1].ids])
    options = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    expected = stock.generate(inputs_embeds=stock.model.embed_tokens(prompt), **options)
    assert model.generate(prompt, **options).tolist() == expected.tolist()


def beams_by_hand(model, row: Row, images: Tensor, width: int, count: int) -> list[int]:
    """Beam search over sums of log probabilities, recomputing every hypothesis."""
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    seen = [reference.visual_tokens(model, image, model.compression.v2v) for image in images]
    with torch.no_grad():
        for _ in range(count):
            grown = []
            for total, new in beams:
                logits = reference.answer_from(model, row.then(*new), seen, model.compression.t2v).logits[-1]
                best = logits.log_softmax(-1).topk(2 * width)
                grown += [(total + float(p), [*new, int(t)]) for p, t in zip(*best, strict=True)]
            beams = sorted(grown, key=lambda beam: -beam[0])[:width]
    return beams[0][1]


@pytest.mark.parametrize("settings", [tiny.DUET, tiny.ORIGINAL, tiny.BEFORE], ids=["duet", "original", "before"])
def test_beam_search_equals_beams_by_hand(settings):
    model = tiny_llava(compression=settings)
    expected = [beams_by_hand(model, row, own, 3, 4) for row, own in zip(ROWS, images_of(ROWS, IMAGES), strict=True)]
    assert generate(model, ROWS, IMAGES, num_beams=3, max_new_tokens=4) == expected


def test_sampling_is_reproducible_and_sequences_differ():
    model = tiny_llava(compression=tiny.DUET)
    options = {"do_sample": True, "temperature": 1.5, "num_return_sequences": 3, "max_new_tokens": 8}
    torch.manual_seed(3)
    first = generate(model, ROWS[:1], IMAGES[:1], **options)
    torch.manual_seed(3)
    assert generate(model, ROWS[:1], IMAGES[:1], **options) == first
    assert len({tuple(answer) for answer in first}) == 3


def test_sampled_tokens_come_from_the_right_distribution():
    """With top_k=1 sampling is greedy, for each of several returned sequences."""
    model = tiny_llava(compression=tiny.DUET)
    expected = [greedy_by_hand(model, row, own) for row, own in zip(ROWS, images_of(ROWS, IMAGES), strict=True)]
    options = {"do_sample": True, "top_k": 1, "num_return_sequences": 2}
    assert generate(model, ROWS, IMAGES, **options) == [answer for answer in expected for _ in range(2)]


def test_without_cache_the_same_text():
    model = tiny_llava(compression=tiny.DUET)
    assert generate(model, ROWS, IMAGES, use_cache=False) == generate(model, ROWS, IMAGES)


def test_two_models_with_different_budgets_in_one_process():
    models = [
        tiny_llava(compression=settings, seed=seed) for seed, settings in enumerate((tiny.DUET, None, tiny.TO_ZERO))
    ]
    pictures = images_of(ROWS, IMAGES)
    expected = [greedy_by_hand(model, ROWS[0], pictures[0]) for model in models]
    for _ in range(2):
        assert [generate(model, ROWS[:1], IMAGES[:1])[0] for model in models] == expected


def test_text_after_an_image_carries_nothing_over():
    model = tiny_llava(compression=tiny.DUET)
    text = ROWS[1]
    expected = greedy_by_hand(model, text, IMAGES[:0])
    assert generate(model, [text], IMAGES[:0]) == [expected]
    generate(model, ROWS[:1], IMAGES[:1])
    assert generate(model, [text], IMAGES[:0]) == [expected]
    assert generate(model, [text], IMAGES[:1]) == [expected], "a dummy image changes nothing"


def test_fault_13_two_interleaved_generations_on_one_model():
    model, pictures = tiny_llava(compression=tiny.DUET), images_of(ROWS, IMAGES)
    expected = [greedy_by_hand(model, row, own) for row, own in zip(ROWS, pictures, strict=True)]
    answers: list[list[int]] = [[], [], []]
    requests = [
        model(**collate([row]), images=own if len(own) else None, use_cache=True)
        for row, own in zip(ROWS, pictures, strict=True)
    ]
    for _ in range(NEW):
        for number, output in enumerate(requests):
            token = int(output.logits[0, -1].argmax())
            answers[number].append(token)
            requests[number] = model(torch.tensor([[token]]), past_key_values=output.past_key_values)
    assert answers == expected


def test_generations_in_threads_do_not_mix():
    model, pictures = tiny_llava(compression=tiny.DUET), images_of(ROWS, IMAGES)
    expected = [generate(model, [row], own) for row, own in zip(ROWS, pictures, strict=True)]
    wrong: list[str] = []

    def work(seed: int) -> None:
        order = random.Random(seed).choices(range(3), k=6)
        for number in order:
            if generate(model, [ROWS[number]], pictures[number]) != expected[number]:
                wrong.append(f"thread {seed}, row {number}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "settings", [None, tiny.DUET, tiny.T2V_ONLY, tiny.TO_ZERO], ids=["none", "duet", "t2v", "zero"]
)
def test_a_prompt_of_nothing_but_an_image(settings):
    model = tiny_llava(compression=settings)
    output = model(torch.tensor([[IMAGE_TOKEN_INDEX]]), images=IMAGES[:1])
    assert output.logits.isfinite().all() and output.logits.shape[1] >= 1
    answer = model.generate(torch.tensor([[IMAGE_TOKEN_INDEX]]), images=IMAGES[:1], max_new_tokens=NEW)
    assert answer.shape == (1, NEW)
    assert answer[0, 0] == output.logits[0, -1].argmax()


def filled_cache(model) -> StagedCache:
    return model(**collate(ROWS), images=IMAGES, use_cache=True).past_key_values


def test_crop_takes_back_the_newest_tokens():
    model = tiny_llava(compression=tiny.DUET)
    new = torch.randint(3, 40, (3, 4), generator=torch.Generator().manual_seed(2))
    cache = filled_cache(model)
    model(new[:, :1], past_key_values=cache)
    expected = model(new[:, 1:2], past_key_values=cache).logits
    model(new[:, 2:], past_key_values=cache)
    cache.crop(-3)
    for stage in cache.stages:
        assert stage.key_mask is None or stage.key_mask.shape[1] == cache.layers[stage.first_layer].keys.shape[2]
    torch.testing.assert_close(model(new[:, 1:2], past_key_values=cache).logits, expected)
    with pytest.raises(ValueError, match="positive"):
        cache.crop(2)


def test_a_cache_that_a_call_left_halfway_is_not_gone_on_with():
    """An interrupt or a lack of memory while layers run; positions had gone on, and some of the layers."""
    model, token = tiny_llava(compression=tiny.DUET), torch.tensor([[5], [6], [7]])

    def end(*_) -> None:
        raise KeyboardInterrupt

    for layer in (0, 1, 4):
        left = filled_cache(model)
        handle = model.model.layers[layer].register_forward_pre_hook(end)
        with pytest.raises(KeyboardInterrupt):
            model(token, past_key_values=left)
        handle.remove()
        with pytest.raises(ValueError, match="left by a call that ended halfway"):
            model(token, past_key_values=left)
    empty = StagedCache(model.config)
    handle = model.model.layers[0].register_forward_pre_hook(end)
    with pytest.raises(KeyboardInterrupt):
        model(torch.tensor([[1, 5, 6, 7]]), past_key_values=empty, use_cache=True)
    handle.remove()
    model(**collate(ROWS), images=IMAGES, past_key_values=empty, use_cache=True)
    expected = model(token, past_key_values=filled_cache(model)).logits
    torch.testing.assert_close(model(token, past_key_values=empty).logits, expected)


def test_a_cache_is_not_cropped_to_where_its_layers_hold_different_tokens():
    """Text behind the image may go, and comes back the same; before it each layer would have lost something else."""
    model, image = tiny_llava(compression=tiny.DUET), IMAGES[:1]
    ids = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 6, 9, 7]])
    cache = model(ids, images=image, use_cache=True).past_key_values
    expected = model(torch.tensor([[8, 4]]), past_key_values=cache).logits
    for change in (lambda: cache.crop(-6), lambda: cache.crop(-100), lambda: cache.discard([6])):
        with pytest.raises(ValueError, match="tokens of the cache cannot be forgotten, but 5"):
            change()
    cache.crop(-4)  # the two that are new, and two of the prompt
    with pytest.raises(ValueError, match="The newest 2 tokens of the cache cannot be forgotten, but 1"):
        cache.crop(-2)
    again = model(torch.tensor([[9, 7, 8, 4]]), past_key_values=cache).logits
    torch.testing.assert_close(again[:, 2:], expected)
    padded = filled_cache(model)  # rows of different length, padded on the right: layers hold different padding
    with pytest.raises(ValueError, match="cannot be forgotten, but 0"):
        padded.crop(-1)
    text = torch.tensor([[1, 5, 6]])
    emptied = model(text, use_cache=True).past_key_values
    emptied.crop(-3)
    assert not emptied.stages and emptied.get_seq_length() == 0
    refilled = model(ids, images=image, past_key_values=emptied, use_cache=True).past_key_values
    torch.testing.assert_close(model(torch.tensor([[8, 4]]), past_key_values=refilled).logits, expected)


def test_rows_of_a_cache_can_be_reordered_selected_and_repeated():
    model = tiny_llava(compression=tiny.DUET)
    token = torch.tensor([[5], [6], [7]])
    expected = model(token, past_key_values=filled_cache(model)).logits
    for change, order in (
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1, 2])), [1, 2]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ):
        cache = filled_cache(model)
        change(cache)
        torch.testing.assert_close(model(token[order], past_key_values=cache).logits, expected[order])
    cache.reset()
    assert cache.get_seq_length() == 0 and not cache.stages


def test_caches_that_cannot_hold_layers_of_different_length_are_rejected():
    model = tiny_llava(compression=tiny.DUET)
    prompt = torch.tensor([ROWS[0].ids])
    for kind in ("static", "dynamic"):
        with pytest.raises(ValueError, match=f"cache_implementation is '{kind}'"):
            model.generate(prompt, images=IMAGES[:1], max_new_tokens=2, cache_implementation=kind)
    for call in (
        lambda: model.generate(prompt, images=IMAGES[:1], max_new_tokens=2, past_key_values=DynamicCache()),
        lambda: model(prompt, images=IMAGES[:1], past_key_values=DynamicCache(), use_cache=True),
    ):
        with pytest.raises(ValueError, match="past_key_values is a DynamicCache; it must be a StagedCache"):
            call()


def test_what_cannot_stand_behind_a_filled_cache_is_refused():
    model = tiny_llava(compression=tiny.DUET)
    new, prompt = torch.tensor([[5]] * 3), torch.tensor([ROWS[0].ids])
    for reason, ids, options in (
        ("Images cannot be added behind a filled cache", prompt, {"images": IMAGES[:1]}),
        ("Images cannot be added behind a filled cache", torch.tensor([[IMAGE_TOKEN_INDEX]] * 3), {}),
        ("compression cannot be changed behind a filled cache", new, {"compression": "none"}),
        ("2 rows were given, but past_key_values holds 3", new[:2], {}),
        ("padded on the right", torch.tensor([[5, 0]] * 3), {"attention_mask": torch.tensor([[1, 0]] * 3)}),
    ):
        with pytest.raises(ValueError, match=reason):
            model.generate(ids, past_key_values=filled_cache(model), max_new_tokens=2, **options)
    with pytest.raises(ValueError, match="There is no loss for tokens behind a filled cache"):
        model(new, past_key_values=filled_cache(model), labels=new)


def test_options_that_would_let_guesses_choose_visual_tokens_are_refused():
    model = tiny_llava(compression=tiny.DUET)
    prompt = {"inputs": torch.tensor([ROWS[0].ids]), "images": IMAGES[:1], "max_new_tokens": 2}
    with pytest.raises(ValueError, match="Assisted decoding"):
        model.generate(**prompt, prompt_lookup_num_tokens=2)
    with pytest.raises(ValueError, match="Assisted decoding"):
        model.generate(**prompt, assistant_model=tiny_llava(layers=2))
    with pytest.raises(ValueError, match="prefill_chunk_size is 4"):
        model.generate(**prompt, prefill_chunk_size=4)


def test_a_sliding_window_is_rejected():
    from transformers import MistralConfig

    with pytest.raises(ValueError, match="sliding-window"):
        StagedCache(MistralConfig(num_hidden_layers=2, sliding_window=4))


def test_eager_and_sdpa_give_the_same_text():
    """In float32: transformers' eager attention gives NaN on padding in float64, where its mask overflows float32."""
    models = [tiny_llava(compression=tiny.DUET, attention=kind, dtype=torch.float32) for kind in ("sdpa", "eager")]
    for side in ("left", "right"):
        answers = [generate(model, ROWS, IMAGES.float(), side) for model in models]
        assert answers[0] == answers[1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16_runs_and_chooses_like_float32(attention: str):
    model = tiny_llava(compression=tiny.DUET, dtype=torch.bfloat16, attention=attention)
    answer = generate(model, ROWS, IMAGES.bfloat16())
    assert len(answer) == 3 and all(len(ids) == NEW for ids in answer)
    output = model(**collate(ROWS), images=IMAGES.bfloat16())
    assert output.logits.dtype == torch.bfloat16 and output.logits.isfinite().all()
    assert all(scores.dtype == torch.float32 for scores in output.scores)


def test_generation_stops_at_the_end_token_row_by_row():
    model = tiny_llava(compression=tiny.DUET)
    expected = [greedy_by_hand(model, row, own) for row, own in zip(ROWS, images_of(ROWS, IMAGES), strict=True)]
    end = expected[0][2]
    first = [answer.index(end) + 1 if end in answer else NEW for answer in expected]
    answers = generate(model, ROWS, IMAGES, eos_token_id=end, pad_token_id=0)
    for answer, whole, length in zip(answers, expected, first, strict=True):
        assert answer[:length] == whole[:length] and not any(answer[length:])


def test_attentions_and_hidden_states_can_be_asked_for():
    model = tiny_llava(compression=tiny.DUET, attention="eager")
    output = model(**collate(ROWS[:1]), images=IMAGES[:1], output_attentions=True, output_hidden_states=True)
    lengths = [layout.valid.shape[1] for layout in output.layouts for _ in range(2)]
    assert [attention.shape[-1] for attention in output.attentions] == lengths
    assert len(output.hidden_states) == 7
