"""Labels and query mask are right for every family of tokenizers, and ids are those of inference."""

from __future__ import annotations

import pytest
from tiny_text import TOKENIZERS, byte_level, llama, llama_legacy, word_level

from llava.compression.salience import QueryRole
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates, fill_template
from llava.data.tokenization import EncodedText, encode_conversation, encode_prompt, truncate
from llava.mm_utils import tokenizer_image_token

TURNS = ["<image>\nWhat digit is red?", "red three", "Where is the seven?", "top left seven"]
CHAT_TEMPLATES = [name for name in conv_templates if "plain" not in name]
SEPARATING = [name for name in TOKENIZERS if name != "across_words"]


def pieces(tokenizer, encoded: EncodedText, role: QueryRole) -> list[str]:
    marked = [token for token, roles in zip(encoded.input_ids, encoded.query_mask, strict=True) if roles & role]
    return tokenizer.convert_ids_to_tokens(marked)


def supervised(encoded: EncodedText) -> list[int]:
    return [label for label in encoded.labels if label != IGNORE_INDEX]


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_the_whole_prompt(name: str, template: str) -> None:
    tokenizer = TOKENIZERS[name]()
    encoded = encode_conversation(TURNS, tokenizer, template, with_images=True)
    prompt = fill_template(template, TURNS).get_prompt()
    assert encoded.input_ids == tokenizer_image_token(prompt, tokenizer)
    assert len(encoded.input_ids) == len(encoded.labels) == len(encoded.query_mask)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer_image_token_is_llavas_join_of_chunks(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    chunks = [tokenizer(chunk).input_ids for chunk in ("see ", "\nand ", " now")]
    bos = [tokenizer.bos_token_id] if chunks[0][0] == tokenizer.bos_token_id else []
    bare = [chunk[len(bos) :] for chunk in chunks]
    expected = bos + bare[0] + [IMAGE_TOKEN_INDEX] + bare[1] + [IMAGE_TOKEN_INDEX] + bare[2]
    assert tokenizer_image_token("see <image>\nand <image> now", tokenizer) == expected
    assert tokenizer_image_token("<image>", tokenizer, return_tensors="pt").tolist() == [
        *bos,
        IMAGE_TOKEN_INDEX,
    ]


@pytest.mark.parametrize("name", SEPARATING)
def test_fault_1_labels_are_exactly_the_answers(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    encoded = encode_conversation(TURNS, tokenizer, "v1", with_images=True)
    answers = [" red three</s>", " top left seven</s>"]
    expected = [token for text in answers for token in tokenizer(text, add_special_tokens=False).input_ids]
    if name == "llama_legacy":
        expected = tokenizer("red three</s>top left seven</s>", add_special_tokens=False).input_ids
    if name == "unigram":
        expected = tokenizer("red three</s>top left seven</s>", add_special_tokens=False).input_ids
    assert supervised(encoded) == expected
    assert supervised(encoded).count(tokenizer.eos_token_id) == 2
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (token, IGNORE_INDEX)


def test_labels_by_hand() -> None:
    tokenizer = word_level()
    encoded = encode_conversation(["<image>\nWhat digit is red?", "red three"], tokenizer, "mistral_instruct", True)
    words = ["[image]" if i < 0 else tokenizer.convert_ids_to_tokens(i) for i in encoded.input_ids]
    assert " ".join(words) == "<s> [ INST ] [image] What digit is red ? [/ INST ] red three </s>"
    assert encoded.labels == [IGNORE_INDEX] * 13 + encoded.input_ids[13:]
    #                                        What digit is red ?  [/  INST  ]
    assert encoded.query_mask == [0] * 5 + [3, 3, 1, 3, 3, 1, 1, 1 | 4] + [0, 0, 0]


@pytest.mark.parametrize("make", [llama, llama_legacy])
def test_v1_votes_by_hand(make) -> None:
    tokenizer = make()
    encoded = encode_conversation(TURNS, tokenizer, "v1", with_images=True)
    instruction = "".join(pieces(tokenizer, encoded, QueryRole.INSTRUCTION)).replace("▁", " ").strip()
    assert instruction == "What digit is red? ASSISTANT: USER: Where is the seven? ASSISTANT:".replace(
        ": USER", ": USER" if make is llama_legacy else ":USER"
    )
    assert pieces(tokenizer, encoded, QueryRole.LAST) == ["▁ASSISTANT:", "▁ASSISTANT:"]
    salient = "".join(pieces(tokenizer, encoded, QueryRole.SALIENT)).replace("▁", " ")
    assert salient == "What digit red? Where seven?"
    for label, roles in zip(encoded.labels, encoded.query_mask, strict=True):
        assert label == IGNORE_INDEX or roles == 0


def test_nothing_before_the_first_image_votes_and_images_are_not_salient() -> None:
    tokenizer = word_level()
    encoded = encode_conversation(["Which digit <image>", "red", "and <image> where?", "top"], tokenizer, "v1", True)
    first, second = (i for i, token in enumerate(encoded.input_ids) if token == IMAGE_TOKEN_INDEX)
    assert not any(roles & QueryRole.INSTRUCTION for roles in encoded.query_mask[: first + 1])
    assert encoded.query_mask[second] == 0
    assert encoded.query_mask[second + 1] & QueryRole.SALIENT


def test_text_without_image_has_only_last_votes_and_keeps_a_written_image_mark_as_text() -> None:
    tokenizer = byte_level()
    encoded = encode_conversation(["what is <image>?", "a tag"], tokenizer, "v1", with_images=False)
    assert encoded.num_images == 0
    assert not any(roles & QueryRole.INSTRUCTION for roles in encoded.query_mask)
    assert sum(bool(roles & QueryRole.LAST) for roles in encoded.query_mask) == 1


def test_plain_is_image_and_caption() -> None:
    tokenizer = llama()
    encoded = encode_conversation(["<image>\nDescribe.", "a green nine"], tokenizer, "plain", with_images=True)
    caption = tokenizer("a green nine\n", add_special_tokens=False).input_ids
    assert encoded.input_ids == [tokenizer.bos_token_id, IMAGE_TOKEN_INDEX, *caption]
    assert encoded.labels == [IGNORE_INDEX, IGNORE_INDEX, *caption]
    assert encoded.query_mask == [0, QueryRole.LAST] + [0] * len(caption)
    with pytest.raises(ValueError, match="holds no <image>"):
        encode_conversation(["Describe.", "a nine"], tokenizer, "plain", with_images=False)


@pytest.mark.parametrize("template", [*CHAT_TEMPLATES, "plain"])
@pytest.mark.parametrize("name", SEPARATING)
def test_inference_votes_as_training_does(name: str, template: str) -> None:
    tokenizer = TOKENIZERS[name]()
    turns = TURNS[:2] if template == "plain" else TURNS
    trained = encode_conversation(turns, tokenizer, template, with_images=True)
    asked = encode_prompt(turns[:-1], tokenizer, template)
    length = len(asked.input_ids)
    assert asked.input_ids == trained.input_ids[:length]
    assert asked.query_mask == trained.query_mask[:length]
    assert trained.labels[length] != IGNORE_INDEX
    assert set(asked.labels) == {IGNORE_INDEX}


def test_prompt_that_ends_with_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="2 turns; it must end with a human turn"):
        encode_prompt(TURNS[:2], llama(), "v1")


def test_an_empty_answer_still_teaches_to_stop() -> None:
    tokenizer = word_level()
    encoded = encode_conversation(["<image>\nWhat?", ""], tokenizer, "v1", with_images=True)
    assert supervised(encoded) == [tokenizer.eos_token_id]


def test_slow_tokenizer_is_refused_in_words() -> None:
    class Slow:
        is_fast = False
        bos_token_id = None

    with pytest.raises(ValueError, match="Slow gives no character offsets"):
        encode_conversation(TURNS, Slow(), "v1", with_images=True)


def test_fault_2_truncation_counts_expanded_images_and_keeps_them_whole() -> None:
    text = EncodedText(
        [1, IMAGE_TOKEN_INDEX, 5, 6, IMAGE_TOKEN_INDEX, 7, 8],
        [IGNORE_INDEX] * 5 + [7, 8],
        [0, 0, 1, 5, 0, 0, 0],
    )
    assert text.expanded_length(10) == 25
    assert truncate(text, 25, 10) is text
    cut = truncate(text, 24, 10)
    assert cut.truncated and cut.input_ids == text.input_ids[:6] and cut.is_supervised
    without_second = truncate(text, 23, 10)
    assert without_second.input_ids == [1, IMAGE_TOKEN_INDEX, 5, 6, IMAGE_TOKEN_INDEX]
    assert not without_second.is_supervised
    half_an_image = truncate(text, 20, 10)
    assert half_an_image.input_ids == [1, IMAGE_TOKEN_INDEX, 5, 6]
    assert half_an_image.query_mask[-1] == QueryRole.INSTRUCTION
    assert half_an_image.num_images == 1
