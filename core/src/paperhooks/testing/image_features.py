"""Image features handed in place of pictures, also to versions of transformers whose models take pictures only.

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
        ids = kwargs.get("input_ids", args[0] if args else None)
        features = mm_encoder_outputs["image"] if mm_encoder_outputs and ids is not None else None
        if features is None or _times(features, ids == self.config.image_token_id) == 0:  # read in an earlier forward
            return base.forward(self, *args, **kwargs)
        token = _HANDED.set(_of_repeated_rows(features, ids == self.config.image_token_id))
        try:  # the pictures are looked at by nobody
            return base.forward(self, *args, **{**kwargs, "pixel_values": torch.zeros(1, 3, 2, 2)})
        finally:
            _HANDED.reset(token)

    return forward


def _get_image_features(self: Any, *args: Any, **kwargs: Any) -> Any:
    handed = _HANDED.get()
    return self._base.get_image_features(self, *args, **kwargs) if handed is None else handed


def _times(outputs: Any, images: Tensor) -> int:
    pooled = outputs.pooler_output
    return int(images.sum()) // (sum(map(len, pooled)) if isinstance(pooled, list) else pooled[..., 0].numel())


def _of_repeated_rows(outputs: Any, images: Tensor) -> Any:
    """``outputs`` for the image tokens [B, T] of rows of which ``generate`` may have made several from each prompt."""
    times = _times(outputs, images)
    if times == 1:
        return outputs
    lengths = images.sum(1)[::times].tolist()

    def repeat(features: Any) -> Any:
        flat = torch.cat(features) if isinstance(features, list) else features.flatten(0, -2)
        rows = torch.cat([row.repeat(times, 1) for row in flat.split(lengths)])
        return [rows] if isinstance(features, list) else rows.reshape(-1, *features.shape[1:])

    repeated = copy.copy(outputs)
    repeated.pooler_output = repeat(outputs.pooler_output)
    if hasattr(outputs, "deepstack_features"):
        repeated.deepstack_features = [repeat(layer) for layer in outputs.deepstack_features]
    return repeated
