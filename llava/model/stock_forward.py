"""The forward of a compressed model: with the signature of the class of transformers, and inputs of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers.utils.generic import can_return_tuple

from llava.model.cache_name import as_named, cache_name_of
from llava.model.call_checks import BYPASS, check_unstaged
from llava.model.staged_cache import StagedCache

if TYPE_CHECKING:
    from llava.model.staged_model import StagedModel

OWN_INPUTS = (
    "query_mask",
    "compression",
    "plan",
    "host_inputs",
    "layout",
    "prefill",
    "return_logits",
    "output_layouts",
    "packing",
)


def forward_like(stock: Any, *visual: str) -> Callable[..., Any]:
    """A forward that takes what the class of transformers takes, and `OWN_INPUTS` by name.

    query_mask: int64 [B, T], flags of `llava.compression.salience.QueryRole`; None derives them from the labels.
    compression: compression used instead of the model's own: an object, preset's name, YAML file or mapping.
    plan: `SplicePlan` of the batch, made on the host; None makes it here, and waits for the device unless there are
    host_inputs: `llava.model.host_inputs.HostInputs` of the batch, from which it is made without waiting.
    layout: layout of `inputs_embeds`, if those hold visual tokens; `prefill`: of a prompt that `generate` has prepared.
    return_logits: None leaves them out where labels are given in training.
    output_layouts: also return what each stage worked on (`layouts`) and what it was ranked by (`scores`); without a
        compression there is one stage.
    packing: whether rows stand end to end without padding inside the decoder: `on`, `off` or `auto`, see
        `llava.model.packing`. None is `auto` in training and in `generate`.

    Args:
        stock: the class of transformers.
        visual: names of inputs that describe images and that the class does not know.
    """
    theirs = inspect.signature(stock.forward)
    *named, rest = theirs.parameters.values()
    cache_name = cache_name_of(theirs)
    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in (*visual, *OWN_INPUTS)]

    @can_return_tuple
    def staged(self: StagedModel, *args: Any, **kwargs: Any) -> Any:
        inputs = dict(theirs.bind(self, *args, **as_named(kwargs, cache_name)).arguments)
        del inputs["self"]
        more = inputs.pop(rest.name, {})
        inputs = as_named(inputs)
        inputs |= {name: more.pop(name) for name in visual if name in more}
        return self.staged_forward(inputs, more)

    def forward(self: StagedModel, *args: Any, **kwargs: Any) -> Any:
        prepared = any(kwargs.get(name) is not None for name in ("plan", "layout", "prefill"))
        asked = kwargs.get("output_layouts") or kwargs.get("packing") == "on"
        if not prepared and asked and not self.is_staged(kwargs.get("compression")):
            self.check_decoder()
            prepared = True
        # A batch of the collators here may hold an image that no text shows, and ranks must make the same calls.
        prepared = prepared or all(kwargs.get(name) is not None for name in ("query_mask", "labels"))
        if prepared or self.is_staged(kwargs.get("compression")):
            return staged(self, *args, **kwargs)
        more = as_named({name: value for name, value in kwargs.items() if name not in OWN_INPUTS}, cache_name)
        if isinstance(more.get(cache_name), StagedCache):
            check_unstaged(more[cache_name])
        if self.is_staged():
            more[BYPASS] = True
        return stock.forward(self, *args, **more)

    made: Any = forward
    made.__signature__ = theirs.replace(parameters=[*named, *own, rest])
    made.__doc__ = f"As `{stock.__name__}.forward`, with both stages inside; see `forward_like`."
    return made
