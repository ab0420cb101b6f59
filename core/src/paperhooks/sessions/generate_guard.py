"""Guards: which generation modes the attached methods allow.

While a method with runtime hooks is attached, the model instance's ``generate`` is wrapped by a check that refuses
every mode the method has not declared in its :class:`~paperhooks.Traits`. A mode that merely looks as if it worked
(assisted decoding over a cache whose layers have different lengths, say) would otherwise give wrong tokens silently.

Which modes are asked for is read off the settings as transformers itself merges them: arguments, a passed config, and
the model's own config, which fills what the others leave open.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperhooks.compat import (
    MASK_MAKER,
    cache_parameter,
    find_cache,
    generate_arguments,
    is_cache,
    made_mask_arguments,
    make_mask_maker,
    merged_generation,
    preallocated,
    version,
)
from paperhooks.errors import UnsupportedGeneration
from paperhooks.hooks.call import GENERATE, check_token_mask
from paperhooks.info import Traits
from paperhooks.models.own_hooks import Hook
from paperhooks.sessions.threads import in_stack
from paperhooks.tokens.row_state import cache_states

__all__ = ["CacheGuard", "GuardedGenerate", "MaskNotes", "check_cache", "check_generation"]

# Cache implementations that allocate their full length up front.
_STATIC = ("static", "offloaded_static", "hybrid", "offloaded_hybrid", "sliding_window", "paged")
#: What says the grids of images; ``generate`` uses it up before the first forward.
_LAYOUT = ("image_sizes", "image_grid_thw")
#: Settings that ask for assisted decoding, and the argument that does.
_DRAFTS = ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
_ASSISTANT = "assistant_model"

Rules = Sequence[tuple[str, Traits]]


class GuardedGenerate:
    """Stands in for ``model.generate`` while methods are attached; checks, then calls the original.

    Somebody else may wrap it in turn and keep it after the session has closed: then it passes calls on unchanged.
    """

    def __init__(self, model: nn.Module, inner: Callable[..., Any] | None, rules: Rules) -> None:
        self.model = model
        self.inner = inner
        self.rules = tuple(rules)
        self.active = True
        #: The notes of every thread's calls under way, the innermost last; threads without any are not in it.
        self.calls: dict[int, list[dict[str, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "calls": {}}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            self._take_off()
            return self._original(*args, **kwargs)
        thread = threading.get_ident()
        stack = self.calls.setdefault(thread, [])
        stack.append({})
        try:
            stack[-1] = self._checked(args, kwargs)
            return self._original(*args, **{name: value for name, value in kwargs.items() if name != "visual_mask"})
        finally:
            stack.pop()
            if not stack:
                self.calls.pop(thread, None)

    def inside(self) -> bool:
        """Whether this thread is inside a call that began while the session was open."""
        thread = threading.get_ident()
        if thread not in self.calls:
            return False
        if not in_stack(self):  # an interrupt has ended the call at its very edge
            self.calls.pop(thread, None)
            return False
        return True

    def notes(self) -> dict[str, Any] | None:
        """What a forward of this thread needs to know of the ``generate`` around it; None outside of one."""
        if not self.calls or torch.compiler.is_compiling() or not self.inside():
            return None
        return self.calls[threading.get_ident()][-1]

    def _checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = generate_arguments(self.model, args, kwargs)
        settings = merged_generation(self.model, given)
        check_generation(self.rules, settings, given)
        cache = find_cache(given, cache_parameter(self.model.forward))
        if cache is not None:
            check_cache(self.rules, cache)
        return _notes(settings, given)

    def _take_off(self) -> None:
        """After the session: whoever wrapped this and has put it back meant the function that was there before."""
        if self.model.__dict__.get("generate") is self:
            del self.model.__dict__["generate"]
            if self.inner is not None:
                self.model.__dict__["generate"] = self.inner

    def _original(self, *args: Any, **kwargs: Any) -> Any:
        if self.inner is not None:
            return self.inner(*args, **kwargs)
        return type(self.model).generate(self.model, *args, **kwargs)  # type: ignore[attr-defined]


def check_generation(rules: Rules, settings: Any, given: Mapping[str, Any]) -> None:
    """Raise UnsupportedGeneration for the first mode that a call asks for and a method does not declare.

    :param settings: the merged generation config. :param given: the call's arguments by name.
    """
    beams = getattr(settings, "num_beams", None)
    static = getattr(settings, "cache_implementation", None)
    assistant = _assistant(settings, given)
    chunk = getattr(settings, "prefill_chunk_size", None)
    asked = [
        ("beams", "beam search", "num_beams", beams, bool(beams and beams > 1), "leave num_beams at 1"),
        ("static_cache", "a preallocated cache", "cache_implementation", static, static in _STATIC, ""),
        ("assisted", "assisted decoding", assistant or "", _draft(settings, given, assistant), bool(assistant), ""),
        ("chunked_prefill", "chunked prefill", "prefill_chunk_size", chunk, bool(chunk), ""),
    ]
    for trait, what, name, value, used, remedy in asked:
        for method, traits in rules:
            if used and not getattr(traits, trait):
                raise UnsupportedGeneration(
                    f"{method} does not support {what} ({name}={_brief(value)}); detach it or "
                    f"{remedy or f'leave {name} unset'}{_origin(name, given)}"
                )


def _origin(name: str, given: Mapping[str, Any]) -> str:
    """Where a setting comes from that the caller did not write; config of the model fills what a call leaves open."""
    config = given.get("generation_config")
    written = name in given or getattr(config, name, None) is not None
    return "" if written else f" (it comes from model.generation_config: set model.generation_config.{name} to None)"


def _notes(settings: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a forward inside ``generate`` cannot know: where the prompt ends, its visual tokens, its images' sizes.

    The first forward of assisted decoding already holds draft tokens, and without a cache every forward holds all that
    was generated. ``generate`` accepts no arguments that the model's signature does not name, and keeps those that its
    vision encoder takes.

    :raises DataError: a ``visual_mask`` that does not fit the prompt.
    """
    visual = given.get("visual_mask")
    notes: dict[str, Any] = {"visual_mask": visual}
    notes["layout"] = {name: given[name] for name in _LAYOUT if given.get(name) is not None}
    prompt = next((p for p in map(given.get, ("inputs_embeds", "input_ids", "inputs")) if p is not None), None)
    if isinstance(prompt, Tensor):
        assisted = _assistant(settings, given) is not None
        notes |= {"prompt_rows": prompt.shape[0], "prompt_length": prompt.shape[1], "assisted": assisted}
        notes["drafts"] = assisted or getattr(settings, "use_cache", True) is False
        if visual is not None:
            check_token_mask("visual_mask", visual, *prompt.shape[:2])
    return notes


class MaskNotes:
    """Stands in for what makes 4-D masks for preallocated caches, and leaves the 2-D mask it was given on the cache.

    A method that makes its own mask needs to know which tokens are padding; a finished 4-D mask does not say.
    """

    def __init__(self, inner: Callable[..., Any], previous: Callable[..., Any] | None) -> None:
        self.inner = inner
        self.previous = previous
        self.active = True

    @classmethod
    def around(cls, model: nn.Module) -> MaskNotes:
        """A wrapper of what ``generate`` would use for ``model``."""
        return cls(make_mask_maker(model), model.__dict__.get(MASK_MAKER))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cache, mask = made_mask_arguments(kwargs)
        if self.active and cache is not None and (mask is None or mask.ndim == 2):
            cache_states(cache)[GENERATE] = {"padding_mask": mask}
        return self.inner(*args, **kwargs)


def check_cache(rules: Rules, cache: Any) -> None:
    """Refuse a cache that the attached methods cannot work with.

    :raises UnsupportedGeneration: it is preallocated and a method has not declared ``static_cache``, or it is no cache
        of transformers' own kind, whose entries nobody here can follow.
    """
    if not is_cache(cache):
        raise UnsupportedGeneration(
            f"{', '.join(name for name, _ in rules)}: a {type(cache).__name__} is no Cache of {version()}; pass a "
            "DynamicCache or none (generate_batch and paged caches do not go with attached methods)"
        )
    if not preallocated(cache):
        return
    for method, traits in rules:
        if not traits.static_cache:
            raise UnsupportedGeneration(
                f"{method} does not support a preallocated cache ({type(cache).__name__}); pass a DynamicCache or none"
            )


class CacheGuard(Hook):
    """Forward pre-hook of the decoder that refuses caches the methods do not support."""

    def __init__(self, rules: Rules, cache_name: str) -> None:
        self.rules = tuple(rules)
        self.cache_name = cache_name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = find_cache(kwargs, self.cache_name)
        if cache is not None:
            check_cache(self.rules, cache)


def _assistant(settings: Any, given: Mapping[str, Any]) -> str | None:
    """The setting or argument that asks for assisted decoding, or None."""
    if given.get(_ASSISTANT) is not None:
        return _ASSISTANT
    return next((name for name in _DRAFTS if getattr(settings, name, None)), None)


def _draft(settings: Any, given: Mapping[str, Any], name: str | None) -> Any:
    """The value of what :func:`_assistant` found; the class of an assistant model."""
    if name == _ASSISTANT:
        return type(given[_ASSISTANT])
    return getattr(settings, name, None) if name else None


def _brief(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)
