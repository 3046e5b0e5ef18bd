"""Templates give LLaVA's prompts, and their segments say what each piece is."""

from __future__ import annotations

import pytest

from llava.conversation import SegmentKind, conv_templates, fill_template, get_template

TURNS = ["<image>\nWhat is it?", "A cat.", "Sure?", "Yes."]
CURIOUS = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)
PROMPTS = {
    "v1": CURIOUS.format("user") + " USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT: Yes.</s>",
    "llava_v1": CURIOUS.format("human")
    + " USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT: Yes.</s>",
    "llava_v0": CURIOUS.format("human")
    + "###Human: <image>\nWhat is it?###Assistant: A cat.###Human: Sure?###Assistant: Yes.###",
    "mistral_instruct": "[INST] <image>\nWhat is it? [/INST] A cat. </s>[INST] Sure? [/INST] Yes. </s>",
    "llava_llama_2": "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to "
    "understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using natural "
    "language.\n"
    "<</SYS>>\n\n<image>\nWhat is it? [/INST] A cat. </s><s>[INST] Sure? [/INST] Yes. </s>",
    "chatml_direct": "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nWhat "
    "is it?<|im_end|><|im_start|>assistant\nA cat.<|im_end|><|im_start|>user\nSure?<|im_end|>"
    "<|im_start|>assistant\nYes.<|im_end|>",
    "plain": "<image>\nWhat is it?\nA cat.\nSure?\nYes.\n",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_is_llavas(name: str) -> None:
    assert fill_template(name, TURNS).get_prompt() == PROMPTS[name]


def test_open_answer_ends_after_the_role() -> None:
    assert fill_template("v1", ["Hi", None]).get_prompt().endswith(" USER: Hi ASSISTANT:")
    assert fill_template("mistral_instruct", ["Hi", None]).get_prompt() == "[INST] Hi [/INST]"
    assert fill_template("chatml_direct", ["Hi", None]).get_prompt().endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("name", conv_templates)
def test_answers_hold_the_text_and_its_end_and_nothing_of_the_question(name: str) -> None:
    conversation = fill_template(name, TURNS)
    segments = conversation.segments()
    answers = [segment.text for segment in segments if segment.kind is SegmentKind.ANSWER]
    questions = [segment.text for segment in segments if segment.kind is SegmentKind.QUESTION]
    ends = conversation.end_mark
    assert [answer.removesuffix(ends).strip() for answer in answers] == TURNS[1::2]
    assert all(answer.endswith(ends) for answer in answers)
    assert questions == TURNS[::2]
    assert "".join(segment.text for segment in segments) == conversation.get_prompt()


def test_open_answer_is_a_prefix_of_the_closed_one() -> None:
    for name in conv_templates:
        asked = fill_template(name, [*TURNS[:3], None]).get_prompt()
        assert fill_template(name, TURNS).get_prompt().startswith(asked), name


def test_copies_leave_the_template_as_it_is() -> None:
    conversation = get_template("v1")
    conversation.append_message("USER", "Hi")
    assert conv_templates["v1"].messages == []
    copy = conversation.copy()
    copy.messages[0][1] = "changed"
    assert conversation.messages[0][1] == "Hi"


def test_unknown_template_is_named_with_the_accepted_ones() -> None:
    with pytest.raises(ValueError, match=r"'v7'; accepted are default, v0, v1"):
        get_template("v7")
