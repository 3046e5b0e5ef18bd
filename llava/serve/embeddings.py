"""What other engines take in place of pixels: V2V-compressed embeddings of images, and of whole prompts.

vLLM and SGLang keep one cache length for all layers, so T2V cannot run there; V2V can, because it is over before the
language model begins. Shapes: n visual tokens of an image, T tokens of a prompt, D width of the language model.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava.compression.config import CompressionConfig
from llava.conversation import fill_template
from llava.inference.batches import Prompt
from llava.inference.engine import Budget, Engine
from llava.model.prefill import Prefill

FORMS = ("image_embeds", "prompt_embeds", "input_embeds")
"""Fields of requests: vLLM's for an image, vLLM's for a prompt, SGLang's for a prompt."""
PLACED_BY_LENGTH = ("llava", "llava_next", "llava_onevision")
"""Models of transformers for which vLLM writes as many placeholders as an image's embeddings have rows."""


@dataclass(frozen=True)
class PromptEmbedding:
    """A prompt as embeddings.

    Attributes:
        values: [T, D].
        visual: how many of the T are visual tokens.
    """

    values: Tensor
    visual: int


def v2v_of(engine: Engine, budget: Budget = None, drop_t2v: bool = False) -> CompressionConfig:
    """The budget that is embedded with.

    Args:
        engine: the model.
        budget: compression used instead of the model's own.
        drop_t2v: whether a budget with T2V counts without it.

    Raises:
        ValueError: if it has T2V, or does not fit the model.
    """
    compression = engine.model.compression if budget is None else engine.model.checked(budget)
    if compression.t2v is not None and not drop_t2v:
        raise ValueError(
            "The budget drops visual tokens between decoder layers (t2v), which other engines cannot do. Choose one "
            "with V2V alone (--compression duet-v2v-64), or give --without-t2v: what V2V leaves then goes through all "
            "layers, which costs more, and answers are not those that this model gives with its budget."
        )
    return CompressionConfig(v2v=compression.v2v)


def require_placed_by_length(model: Any, counterpart: str) -> None:
    """Check that vLLM can place embeddings of images that have another length than it would compute itself.

    Args:
        model: the opened model.
        counterpart: `model_type` of its checkpoint in transformers' format.

    Raises:
        ValueError: if it cannot; says what to do instead.
    """
    if counterpart in PLACED_BY_LENGTH:
        return
    if model.position_axes:
        reason = "places an image's tokens, and numbers their positions, by its grid of patches, not by its embeddings"
    else:
        reason = "has no such model that takes embeddings of any length"
    also = "" if model.position_axes else " Whole prompts can be embedded: --form prompt_embeds or input_embeds."
    raise ValueError(f"image_embeds are for {', '.join(PLACED_BY_LENGTH)}; for a {counterpart} vLLM {reason}.{also}")


@torch.inference_mode()
def image_embeddings(engine: Engine, pictures: Sequence[Image.Image], compression: CompressionConfig) -> list[Tensor]:
    """The visual tokens of images as they enter the language model.

    Args:
        engine: the model.
        pictures: RGB images; at least one.
        compression: result of `v2v_of`.

    Returns:
        [n, D] of each, in the model's data type, on the host.

    Raises:
        ValueError: if an image becomes larger than images may be, or the model adds features to several layers.
    """
    made = _prefill(engine, [Prompt("", (picture,)) for picture in pictures], compression)
    return [row[visual].cpu() for row, visual in zip(made.embeddings, made.layout.is_visual, strict=True)]


@torch.inference_mode()
def prompt_embedding(engine: Engine, prompt: Prompt, compression: CompressionConfig) -> PromptEmbedding:
    """A question with its media, in the conversation template, as the language model gets it.

    Args:
        engine: the model.
        prompt: the question.
        compression: result of `v2v_of`.

    Raises:
        ValueError: if the model's positions or added features cannot be said by embeddings, or a medium cannot be read.
    """
    made = _prefill(engine, [prompt], compression)
    return PromptEmbedding(made.embeddings[0].cpu(), made.layout.visual[0])


def _prefill(engine: Engine, prompts: Sequence[Prompt], compression: CompressionConfig) -> Prefill:
    model, batch = engine.model, engine.batch([engine.sample(prompt, compression) for prompt in prompts])
    made: Prefill = model.prefill(batch, compression)
    if model.position_axes or made.added:
        raise ValueError(
            f"What a {type(model).__name__} sees cannot be given as embeddings: its positions have several axes, or "
            "it adds features of images to several decoder layers."
        )
    return made


def encoded(tensor: Tensor) -> str:
    """A tensor as vLLM reads it in a request: what `torch.save` writes, in base64."""
    buffer = io.BytesIO()
    torch.save(tensor.contiguous(), buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def chat_request(model: str, question: str, images: Sequence[Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request to vLLM's `/v1/chat/completions`, images in front of the question.

    Args:
        model: name that the server knows the model by.
        question: text of the question.
        images: [n, D] of each.
        options: further fields, such as `max_tokens`.
    """
    shown = [{"type": "image_embeds", "image_embeds": encoded(image)} for image in images]
    content = [*shown, {"type": "text", "text": question}]
    return {"model": model, "messages": [{"role": "user", "content": content}], **options}


def prompt_request(form: str, model: str, prompt: Tensor, max_new_tokens: int, temperature: float) -> dict[str, Any]:
    """The body of a request whose prompt is embeddings [T, D].

    Args:
        form: `prompt_embeds` for vLLM's `/v1/completions`, `input_embeds` for SGLang's `/generate`.
        model: name that the server knows the language model by.
        prompt: [T, D].
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token.

    Raises:
        ValueError: if there is no such form.
    """
    match form:
        case "prompt_embeds":
            return {
                "model": model,
                "prompt_embeds": encoded(prompt),
                "max_tokens": max_new_tokens,
                "temperature": temperature,
            }
        case "input_embeds":
            sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature}
            return {"input_embeds": prompt.float().tolist(), "sampling_params": sampling}
        case other:
            raise ValueError(f"The form of a prompt is {other!r}; accepted are {' and '.join(FORMS[1:])}.")


def chat_template(template: str) -> str:
    """A chat template (Jinja) that writes what a conversation template does, for servers that ask for one.

    Args:
        template: key of `conv_templates`.

    Raises:
        ValueError: if there is no such template, or its turns are not joined alike.
    """
    question, answer, second = "\x00Q\x00", "\x00A\x00", "\x00R\x00"
    before, ask = fill_template(template, [question, None]).get_prompt().split(question)
    first, rest = fill_template(template, [question, answer, second, None]).get_prompt().split(answer)
    between = first.split(question)[1]
    end, again = rest.split(second)
    if again != ask or not between.startswith(ask):
        raise ValueError(f"Turns of the conversation template {template!r} are not joined alike; write one by hand.")
    written = {"before": before, "ask": ask, "gap": between[len(ask) :], "end": end}
    return _JINJA.format(**{name: json.dumps(text, ensure_ascii=False) for name, text in written.items()})


_JINJA = (
    "{{{{ bos_token }}}}{{{{ {before} }}}}{{% for message in messages %}}"
    "{{% if message['role'] == 'user' %}}{{{{ message['content'] }}}}{{{{ {ask} }}}}"
    "{{% elif message['role'] == 'assistant' %}}{{{{ {gap} }}}}{{{{ message['content'] }}}}{{{{ {end} }}}}"
    "{{% else %}}{{{{ raise_exception('only user and assistant take turns here') }}}}{{% endif %}}{{% endfor %}}"
)
