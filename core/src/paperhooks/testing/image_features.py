"""Image features handed in place of images, also to versions of transformers whose models take images only.

Models take features as ``mm_encoder_outputs`` since 5.18. For older versions :func:`taking_features` makes a subclass
whose forward takes them under the same name, so that a test is written once.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import Tensor

from paperhooks.compat import find_cache, token_count

__all__ = ["taking_features"]

_NAME: Final = "mm_encoder_outputs"
_HANDED: Final[ContextVar[Any]] = ContextVar("image features of the forward that runs", default=None)


def taking_features(model_class: type) -> type:
    """``model_class`` where its forward takes image features, else a subclass of the same name whose forward does."""
    if _NAME in inspect.signature(model_class.forward).parameters:  # type: ignore[attr-defined]
        return model_class

    def __init__(self: Any, config: Any) -> None:
        model_class.__init__(self, config)  # type: ignore[misc]
        self.model.__class__ = _derived(type(self.model), _inner_forward, get_image_features=_get_image_features)

    return _derived(model_class, _outer_forward, __init__=__init__)


def _derived(base: type, make_forward: Callable[[type], Any], **members: Any) -> type:
    """A subclass whose forward names the features among its parameters, as ``generate`` wants."""
    signature = inspect.signature(base.forward)  # type: ignore[attr-defined]
    *known, rest = signature.parameters.values()
    added = inspect.Parameter(_NAME, inspect.Parameter.KEYWORD_ONLY, default=None)
    forward = make_forward(base)
    forward.__signature__ = signature.replace(parameters=[*known, added, rest])
    return type(base.__name__, (base,), {**members, "forward": forward, "_base": base})


def _outer_forward(base: Any) -> Any:
    """The model with a head hands what it does not know down to the model without."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return base.forward(self, *args, **kwargs)

    return forward


def _inner_forward(base: Any) -> Any:
    """The features take the place of what the vision tower would make."""

    def forward(self: Any, *args: Any, mm_encoder_outputs: Any = None, **kwargs: Any) -> Any:
        features = mm_encoder_outputs["image"] if mm_encoder_outputs else None
        ids = kwargs.get("input_ids", args[0] if args else None)
        images = None if ids is None else ids == self.config.image_token_id
        if features is None or _read_before(features, images, kwargs):
            return base.forward(self, *args, **kwargs)
        token = _HANDED.set(_of_repeated_rows(features, images))
        try:  # the images are looked at by nobody
            return base.forward(self, *args, **{**kwargs, "pixel_values": torch.zeros(1, 3, 2, 2)})
        finally:
            _HANDED.reset(token)

    return forward


def _get_image_features(self: Any, *args: Any, **kwargs: Any) -> Any:
    handed = _HANDED.get()
    return self._base.get_image_features(self, *args, **kwargs) if handed is None else handed


def _read_before(outputs: Any, images: Tensor | None, arguments: dict[str, Any]) -> bool:
    """Whether this forward goes on behind the prompt: ``generate`` hands the features to all of them."""
    cache = find_cache(arguments)
    return cache is not None and int(token_count(cache)) > 0 and (images is None or _times(outputs, images) == 0)


def _times(outputs: Any, images: Tensor) -> int:
    pooled = outputs.pooler_output
    return int(images.sum()) // (sum(map(len, pooled)) if isinstance(pooled, list) else pooled[..., 0].numel())


def _of_repeated_rows(outputs: Any, images: Tensor | None) -> Any:
    """``outputs`` for the image tokens [B, T] of rows of which ``generate`` may have made several from each prompt."""
    made = copy.copy(outputs)
    if hasattr(outputs, "deepstack_features"):  # by image since 5.18
        made.deepstack_features = [torch.cat(layer) for layer in outputs.deepstack_features]
    if images is None or (times := _times(outputs, images)) < 2:
        return made
    lengths = images.sum(1)[::times].tolist()

    def repeat(flat: Tensor) -> Tensor:
        return torch.cat([row.repeat(times, 1) for row in flat.split(lengths)])

    pooled = outputs.pooler_output
    if isinstance(pooled, list):
        made.pooler_output = [repeat(torch.cat(pooled))]
    else:
        made.pooler_output = repeat(pooled.flatten(0, -2)).reshape(-1, *pooled.shape[1:])
    if hasattr(outputs, "deepstack_features"):
        made.deepstack_features = [repeat(layer) for layer in made.deepstack_features]
    return made
