"""Guards: which generation modes the attached methods allow.

While a method with runtime hooks is attached, the model instance's ``generate`` is wrapped by a check that refuses
every mode the method has not declared in its :class:`~paperhooks.Traits`. A mode that merely looks as if it worked
(assisted decoding over a cache whose layers have different lengths, say) would otherwise give wrong tokens silently.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from paperhooks.errors import UnsupportedGeneration
from paperhooks.info import Traits
from paperhooks.runtime import GENERATE, Hook, cache_states

__all__ = ["MASK_MAKER", "CacheGuard", "GuardedGenerate", "MaskNotes", "check_cache", "check_generation", "leave_notes"]

#: The attribute of a model that ``generate`` asks for 4-D masks when a cache is preallocated.
MASK_MAKER = "create_masks_for_generate"

# Cache implementations that allocate their full length up front.
_STATIC = ("static", "offloaded_static", "hybrid", "offloaded_hybrid", "sliding_window", "paged")
#: What says the grids of pictures; ``generate`` uses it up before the first forward.
_LAYOUT = ("image_sizes", "image_grid_thw")
_ASSISTANTS = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


class GuardedGenerate:
    """Stands in for ``model.generate`` while methods are attached; checks, then calls the original."""

    def __init__(self, model: nn.Module, inner: Callable[..., Any] | None, rules: Sequence[tuple[str, Traits]]) -> None:
        self.model = model
        self.inner = inner
        self.rules = tuple(rules)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        check_generation(self.model, self.rules, kwargs)
        kwargs = leave_notes(self.model, args, kwargs)
        try:
            if self.inner is not None:
                return self.inner(*args, **kwargs)
            return type(self.model).generate(self.model, *args, **kwargs)  # type: ignore[attr-defined]
        finally:  # a later turn over the same cache has a prompt of its own
            getattr(kwargs.get("past_key_values"), "paperhooks_state", {}).pop(GENERATE, None)


def check_generation(model: nn.Module, rules: Sequence[tuple[str, Traits]], kwargs: dict[str, Any]) -> None:
    """Raise UnsupportedGeneration for the first mode that ``kwargs`` ask for and a method does not declare."""
    setting = functools.partial(_setting, model, kwargs)
    beams = setting("num_beams")
    static = setting("cache_implementation")
    assistant = _assistant(model, kwargs)
    chunk = setting("prefill_chunk_size")
    asked = [
        ("beams", "beam search", f"num_beams={beams}", bool(beams and beams > 1), "leave num_beams at 1"),
        (
            "static_cache",
            "a preallocated cache",
            f"cache_implementation={static!r}",
            static in _STATIC,
            "leave cache_implementation unset",
        ),
        (
            "assisted",
            "assisted decoding",
            f"{assistant}={_brief(setting(assistant)) if assistant else None}",
            assistant is not None,
            f"leave {assistant} unset",
        ),
        (
            "chunked_prefill",
            "chunked prefill",
            f"prefill_chunk_size={chunk}",
            bool(chunk),
            "leave prefill_chunk_size unset",
        ),
    ]
    for trait, what, setting_text, used, remedy in asked:
        for method, traits in rules:
            if used and not getattr(traits, trait):
                raise UnsupportedGeneration(f"{method} does not support {what} ({setting_text}); detach it or {remedy}")
    if kwargs.get("past_key_values") is not None:
        check_cache(rules, kwargs["past_key_values"])


def leave_notes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Put on the cache what a forward inside ``generate`` cannot know: the prompt's length, its visual tokens, and the
    sizes of its pictures.

    The first forward of assisted decoding already holds draft tokens, and ``generate`` accepts no arguments that the
    model's signature does not name and keeps those that its vision encoder takes. Without any need nothing is changed;
    a cache of a kind that ``generate`` makes itself carries no sizes.
    """
    visual, assistant = kwargs.get("visual_mask"), _assistant(model, kwargs)
    layout = {name: kwargs[name] for name in _LAYOUT if kwargs.get(name) is not None}
    own_cache = kwargs.get("past_key_values") is None
    if own_cache and (_setting(model, kwargs, "cache_implementation") or _setting(model, kwargs, "use_cache") is False):
        layout = {}
    if assistant is None and visual is None and not layout:
        return kwargs
    kwargs = {name: value for name, value in kwargs.items() if name != "visual_mask"}
    if own_cache:
        from transformers import DynamicCache

        kwargs["past_key_values"] = DynamicCache(config=model.config.get_text_config(decoder=True))  # type: ignore
    prompts = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1])
    prompt = next((p for p in prompts if p is not None), None)
    notes: dict[str, Any] = {"visual_mask": visual, "layout": layout}
    if prompt is not None:
        notes |= {"prompt_rows": prompt.shape[0]}
        if assistant is not None or visual is not None:
            notes |= {"prompt_length": prompt.shape[1]}
    cache_states(kwargs["past_key_values"])[GENERATE] = notes
    return kwargs


class MaskNotes:
    """Stands in for what makes 4-D masks for preallocated caches, and leaves the 2-D mask it was given on the cache.

    A method that makes its own mask needs to know which tokens are padding; a finished 4-D mask does not say.
    """

    def __init__(self, inner: Callable[..., Any], previous: Callable[..., Any] | None) -> None:
        self.inner = inner
        self.previous = previous

    @classmethod
    def around(cls, model: nn.Module) -> MaskNotes:
        """A wrapper of what ``generate`` would use for ``model``."""
        from transformers.masking_utils import create_masks_for_generate

        return cls(getattr(model, MASK_MAKER, create_masks_for_generate), model.__dict__.get(MASK_MAKER))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        if cache is not None and (mask is None or mask.ndim == 2):
            cache_states(cache).setdefault(GENERATE, {})["padding_mask"] = mask
        return self.inner(*args, **kwargs)


def check_cache(rules: Sequence[tuple[str, Traits]], cache: Any) -> None:
    """Raise UnsupportedGeneration when ``cache`` is preallocated and a method has not declared ``static_cache``."""
    if not getattr(cache, "is_compileable", False):
        return
    for method, traits in rules:
        if not traits.static_cache:
            raise UnsupportedGeneration(
                f"{method} does not support a preallocated cache ({type(cache).__name__}); pass a DynamicCache or none"
            )


class CacheGuard(Hook):
    """Forward pre-hook of the decoder that refuses preallocated caches."""

    def __init__(self, rules: tuple[tuple[str, Traits], ...]) -> None:
        self.rules = rules

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        if cache is not None:
            check_cache(self.rules, cache)


def _setting(model: nn.Module, kwargs: dict[str, Any], name: str) -> Any:
    """What ``generate(**kwargs)`` will go by for one setting: the argument, else the generation config."""
    config = kwargs.get("generation_config") or getattr(model, "generation_config", None)
    return kwargs[name] if name in kwargs else getattr(config, name, None)


def _assistant(model: nn.Module, kwargs: dict[str, Any]) -> str | None:
    """The setting that asks for assisted decoding, or None."""
    return next((name for name in _ASSISTANTS if _setting(model, kwargs, name)), None)


def _brief(value: Any) -> str:
    return type(value).__name__ if isinstance(value, nn.Module) else repr(value)
