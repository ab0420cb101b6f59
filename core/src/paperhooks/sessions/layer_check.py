"""Whether a decoder calls its layers as hooks expect it. A version that does otherwise is refused, never guessed at."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from paperhooks.compat import LayerCall, strange_caches, version
from paperhooks.errors import UnsupportedModel
from paperhooks.hooks.call import Call, Site
from paperhooks.hooks.inputs import shape_text

__all__ = ["check_layer_call", "unknown_call"]


def check_layer_call(site: Site, names: LayerCall, call: Call, hidden: Any, kwargs: dict[str, Any]) -> None:
    """Whether a layer is called as hooks expect it; once a session, in its first forward.

    :raises UnsupportedModel: names the version and what is missing.
    """
    layer = site.layer
    if not isinstance(hidden, Tensor) or hidden.ndim != 3 or hidden.shape[:2] != (call.rows, call.query_length):
        found = shape_text(hidden)
        raise unknown_call(
            layer, f"{names.names[0]!r} is {found}, not hidden states [{call.rows}, {call.query_length}, D]"
        )
    if strange := strange_caches(kwargs, names.cache):
        raise unknown_call(layer, f"a cache arrives as {strange[0]!r}, a name that is not known")
    if names.mask not in kwargs:
        raise unknown_call(layer, f"it is handed no {names.mask!r}")
    if site.attends and site.view.rotary is not None and kwargs.get(names.rotary) is None:
        raise unknown_call(layer, f"the decoder has rotary positions, but hands none as {names.rotary!r}")


def unknown_call(module: nn.Module, what: str) -> UnsupportedModel:
    """The error for a model whose parts are called in a way that core does not know."""
    return UnsupportedModel(
        f"{type(module).__name__} of {version()} is called in a way that paperhooks does not know: {what}; use a "
        "version that `paperhooks doctor` lists as tested"
    )
