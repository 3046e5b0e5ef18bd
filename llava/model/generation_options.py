"""Every option of transformers' `generate` and `forward`, and what a model with compression makes of it.

`generate` refuses by this table, docs/plug-in.md shows it, and a test holds it against the signatures of the installed
transformers: an option of a later release has to be looked at first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import GenerationConfig

_ASSISTED = (
    "Assisted decoding checks several guesses in one pass, and the first pass would let guesses choose visual tokens; "
    "leave it out"
)
_ON_THE_HUB = "that search is code on the hub, which knows nothing of layers that cache different lengths; leave it out"
_EMBEDDED = "the prompt reaches transformers as embeddings, so its ids are not looked at; leave it out"

REFUSED: dict[str, str] = {
    "cache_implementation": "layers may cache different lengths, in a StagedCache; leave it unset",
    "prefill_chunk_size": "visual tokens are chosen once the whole prompt is known; leave it unset",
    "assistant_model": _ASSISTED,
    "prompt_lookup_num_tokens": _ASSISTED,
    "assistant_early_exit": _ASSISTED,
    "use_mtp": _ASSISTED,
    "is_assistant": (
        "the compressed model was given as draft (assistant_model) of another, which goes back and forth in its cache; "
        'give the stock model, or compress(model, "none")'
    ),
    "penalty_alpha": _ON_THE_HUB,
    "dola_layers": _ON_THE_HUB,
    "constraints": _ON_THE_HUB,
    "force_words_ids": _ON_THE_HUB,
    "num_beam_groups": _ON_THE_HUB,
    "diversity_penalty": _ON_THE_HUB,
    "token_healing": "it rewrites the end of a prompt whose visual tokens are already chosen; leave it out",
    "custom_generate": "code from the hub knows nothing of layers that cache different lengths; give a function",
    "mm_encoder_outputs": "it holds features without V2V; give the pixels",
}
"""What `generate` refuses wherever a compression acts, and why."""

REFUSED_ON_EMBEDDINGS: dict[str, str] = {
    "is_assistant": (
        "the model was given as draft (assistant_model) of another, which goes back and forth in its cache; give a "
        "model of transformers"
    ),
    "encoder_repetition_penalty": _EMBEDDED,
    "encoder_no_repeat_ngram_size": _EMBEDDED,
    "forced_bos_token_id": _EMBEDDED,
}
"""What `LlavaLlamaForCausalLM.generate` refuses besides, because it hands embeddings on."""

NOTED: dict[str, str] = {
    "use_cache": "a cache is used in any case, in `generate`",
    "past_key_values": "a `StagedCache`; `forward` continues a filled one with text, `generate` takes an empty one",
    "cache": "what transformers calls `past_key_values` from 5.24 on; either name will do",
    "attention_mask": (
        "padding, [B, T] of 1 and 0; with 4 dimensions for text alone and without a cache; behind a filled cache that "
        "of the new tokens, or of all"
    ),
    "position_ids": (
        "they count each row's tokens one by one; for text alone, in `forward`, they may leave gaps, or start anew "
        "where packed sequences begin (without a cache); behind a filled cache they are its next ones; Qwen2.5-VL: "
        "also on 3 or 4 axes"
    ),
    "cu_seq_lens_q": "beside `position_ids` that start anew",
    "cu_seq_lens_k": "beside `position_ids` that start anew",
    "max_length_q": "beside `position_ids` that start anew",
    "max_length_k": "beside `position_ids` that start anew",
    "seq_idx": "beside `position_ids` that start anew",
    "inputs_embeds": "for text alone, without `input_ids` and pixels; soft prompts of peft work in `forward` only",
    "is_causal": "not False",
    "vision_feature_layer": "with V2V one layer, not several",
    "custom_generate": "a function; no code from the hub",
    "max_length": "counts the prompt as the processor made it, whatever is dropped",
    "guidance_scale": "the prompt without its images is the other side, as in the stock model",
}
"""What works with a remark."""

_WORKS: dict[str, str] = {
    "arguments of generate": (
        "inputs generation_config logits_processor stopping_criteria prefix_allowed_tokens_fn synced_gpus streamer "
        "negative_prompt_ids negative_prompt_attention_mask kwargs"
    ),
    "fields of GenerationConfig": (
        "bad_words_ids begin_suppress_tokens bos_token_id do_sample early_stopping encoder_no_repeat_ngram_size "
        "encoder_repetition_penalty eos_token_id epsilon_cutoff eta_cutoff exponential_decay_length_penalty "
        "forced_bos_token_id forced_eos_token_id length_penalty max_new_tokens max_time min_length min_new_tokens "
        "min_p no_repeat_ngram_size num_beams num_return_sequences output_attentions output_hidden_states "
        "output_logits output_scores pad_token_id remove_invalid_values renormalize_logits repetition_penalty "
        "return_dict_in_generate sequence_bias stop_strings suppress_tokens temperature top_h top_k top_p typical_p "
        "watermarking_config"
    ),
    "arguments of forward": (
        "self input_ids pixel_values pixel_values_images pixel_values_videos image_sizes image_sizes_videos "
        "batch_num_images vision_aspect_ratio image_grid_thw video_grid_thw mm_token_type_ids second_per_grid_ts "
        "vision_feature_select_strategy labels logits_to_keep num_items_in_batch"
    ),
}
WORKS = tuple(name for names in _WORKS.values() for name in names.split())
"""What works as in the stock model."""

WITHOUT_EFFECT: tuple[str, ...] = (
    "assistant_confidence_threshold",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "cache_config",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "low_memory",
    "max_cache_len",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_router_logits",
    "speculation_type",
    "target_lookbehind",
    "transformers_version",
    "_from_model_config",
)
"""What belongs to options that are refused or to models that cannot be compressed, and is not looked at."""

_HARMLESS: dict[str, Callable[[Any], bool]] = {
    "num_beam_groups": lambda value: value == 1,
    "diversity_penalty": lambda value: value == 0,
    "penalty_alpha": lambda value: value == 0,
    "encoder_repetition_penalty": lambda value: value == 1,
    "encoder_no_repeat_ngram_size": lambda value: value == 0,
    "custom_generate": callable,
    "mm_encoder_outputs": lambda value: not value,
}
"""Values of refused options that ask for nothing."""


def asked(name: str, given: Mapping[str, Any], *configs: GenerationConfig | None) -> Any:
    """An option as `generate` reads it: of the call, else of the first configuration that says something."""
    sources = [given.get(name), *(getattr(config, name, None) for config in configs)]
    return next((value for value in sources if value is not None), None)


def check_options(refused: Mapping[str, str], given: Mapping[str, Any], *configs: GenerationConfig | None) -> None:
    """Refuse what `generate` cannot do, before anything is computed.

    Args:
        refused: options and why they cannot be.
        given: arguments of the call, by name.
        configs: the call's `generation_config` and the model's own.

    Raises:
        ValueError: names the option, its value, why it cannot be, and what to do.
    """
    for name, reason in refused.items():
        value = asked(name, given, *configs)
        if value is None or value is False or _HARMLESS.get(name, lambda _: False)(value):
            continue
        shown = repr(value) if isinstance(value, (str, int, float, bool, list)) else f"a {type(value).__name__}"
        raise ValueError(f"{name} is {shown}, but this cannot be: {reason}.")


def check_chosen_logits(return_logits: Any) -> None:
    """Raise ValueError for `return_logits=False` of `forward`, given to `generate`, which chooses tokens by logits."""
    if return_logits is False:
        raise ValueError("return_logits is False, but generate chooses tokens by their logits; leave it out.")


def options_table() -> str:
    """The Markdown table of docs/plug-in.md: what is refused and what works with a remark."""
    lines = ["| argument or option | with a compression |", "|---|---|"]
    lines += [f"| `{name}` | refused: {reason} |" for name, reason in REFUSED.items() if name not in NOTED]
    lines += [f"| `{name}` | {note} |" for name, note in NOTED.items()]
    return "\n".join(lines) + "\n"
