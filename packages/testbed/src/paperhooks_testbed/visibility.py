"""Hiding the image from the text at chosen decoder layers, with forward pre-hooks that replace the layer's mask.

Used in training (so that the model does not read everything in its first layers) and to measure at which depth the
model needs the image: hiding the image from layer r on has the same effect on the answer as dropping every image
token there, because nothing but later text would look at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from paperhooks.compat import attention_kernel
from transformers import LlavaForConditionalGeneration

__all__ = ["attention_form", "hide_from_text", "hide_image"]


def attention_form(model: LlavaForConditionalGeneration, mask: torch.Tensor) -> torch.Tensor:
    """A bool mask ``[B, 1, T, T]`` in the form that the model's attention takes: bool for sdpa, additive for eager.

    :raises ValueError: other attention implementations, which take no four-dimensional mask.
    """
    kernel = attention_kernel(model.config.text_config)
    if kernel == "sdpa":
        return mask
    if kernel == "eager":
        lowest = torch.finfo(model.dtype).min
        return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill_(~mask, lowest)
    raise ValueError(f"layer-wise masks need attn_implementation 'sdpa' or 'eager'; this model uses {kernel!r}")


def hide_from_text(mask: torch.Tensor, image: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Take the image away from all later text.

    :param mask: ``[B, 1, T, T]`` bool, True = may look.
    :param image: ``[B, T]`` bool, True at image tokens.
    :param rows: ``[B]`` bool, the sequences to change.
    :returns: A new mask of the same shape.
    """
    text = ~image
    text[:, 0] = False
    blocked = rows[:, None, None] & text[:, :, None] & image[:, None, :]
    return mask & ~blocked[:, None]


@contextmanager
def hide_image(model: LlavaForConditionalGeneration, mask_for: Callable[[int], torch.Tensor | None]) -> Iterator[None]:
    """While open, layer i attends with the mask ``mask_for(i)`` instead of the model's; None leaves it as it is."""
    handles = [
        layer.register_forward_pre_hook(_replace_mask(mask_for, number), with_kwargs=True)
        for number, layer in enumerate(model.model.language_model.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _replace_mask(mask_for: Callable[[int], torch.Tensor | None], number: int) -> Callable[..., Any]:
    def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = mask_for(number)
        return None if mask is None else (args, {**kwargs, "attention_mask": mask})

    return hook
