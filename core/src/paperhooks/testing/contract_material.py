"""What the checks of the contract work with: flags, tiny models, prompts, logits, tokens, caches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final

import pytest
import torch
from torch import Tensor

from paperhooks.compat import cache_parameter, dynamic_cache, set_cache
from paperhooks.info import Traits
from paperhooks.models.view import ModelView
from paperhooks.testing.tiny import placed, tiny_text, tiny_vlm, vlm_inputs

__all__ = ["ROWS", "Material"]

Parts = tuple[tuple[int, ...], ...]

# Lengths of both parities, as whole prompts and as differences between them.
_TEXT: Final[Parts] = ((9,), (6,), (7,))
_VISION: Final[Parts] = ((3, 12, 5), (2, 8, 3), (7,))
_SHORT_TEXT: Final[Parts] = ((1,), (2,), (4,))
_SHORT_VISION: Final[Parts] = ((1,), (2,), (0, 4, 1))

#: Rows of every batch.
ROWS: Final = 3


class Material(ABC):
    """Base of the contract's checks; the flags are told by :class:`paperhooks.testing.MethodContract`."""

    vision: ClassVar[bool] = False
    family: ClassVar[str] = ""
    changes_outputs: ClassVar[bool] = True
    batch_independent: ClassVar[bool] = True
    recompute: ClassVar[bool] = True
    cache_rows: ClassVar[bool] = True
    behind_dropper: ClassVar[bool] = True
    exact_gradients: ClassVar[bool] = True
    prefill_waits: ClassVar[int | None] = None
    decode_waits: ClassVar[int | None] = 0
    tolerance: ClassVar[float] = 2e-5

    @abstractmethod
    def make(self) -> Any:
        """A fresh configured method."""

    def model(self, **options: Any) -> Any:
        """A fresh tiny model, the same at every call."""
        if self.vision:
            return tiny_vlm(self.family or "llava", **options)
        return tiny_text(self.family or "llama", **options)

    def inputs(self, model: Any, rows: slice = slice(None), pad: str = "left") -> dict[str, Any]:
        """A ragged batch of three prompts, or some of its rows (the same tokens and features either way)."""
        return self._placed(model, vlm_inputs(model, _VISION if self.vision else _TEXT, pad=pad, rows=rows))

    def short_inputs(self, model: Any, rows: slice = slice(None), pad: str = "left") -> dict[str, Any]:
        """The same for the shortest prompts: of one token, of two, and (with vision) one that begins with an image."""
        return self._placed(model, vlm_inputs(model, _SHORT_VISION if self.vision else _SHORT_TEXT, pad=pad, rows=rows))

    def _placed(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = placed(inputs, model.device)
        return made

    def logits(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Logits of the last real position, float32 [B, V]."""
        with torch.no_grad():
            out = model(**inputs).logits.float()
        last = (torch.arange(1, out.shape[1] + 1, device=out.device) * inputs["attention_mask"]).argmax(1)
        picked: Tensor = out[torch.arange(len(out), device=out.device), last]
        return picked

    def generate(self, model: Any, inputs: dict[str, Any], **options: Any) -> Tensor:
        """Greedy tokens after the prompt, int64 [B, 5]."""
        out: Tensor = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, **options)
        return out[:, inputs["input_ids"].shape[1] :]

    def read(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        """Read a batch: the cache that holds it now, and the logits [B, V] of its last position."""
        cache = dynamic_cache(model)
        return cache, self._over(model, dict(inputs), cache)

    def follow(self, model: Any, mask: Tensor, cache: Any, tokens: Tensor, at_once: bool = False) -> Tensor:
        """Logits [B, n, V] (``at_once``: [B, 1, V], the last) behind ``tokens`` int64 [B, n] that follow a cache.

        :param mask: int64 [B, S], which of the tokens read so far are real.
        """
        steps = [tokens] if at_once else list(tokens.split(1, dim=1))
        found = []
        for step in steps:
            mask = torch.cat([mask, torch.ones_like(step)], dim=1)
            found.append(self._over(model, {"input_ids": step, "attention_mask": mask}, cache))
        return torch.stack(found, dim=1)

    def _over(self, model: Any, given: dict[str, Any], cache: Any) -> Tensor:
        if ModelView.from_model(model).multimodal_rotary:  # such models guess positions from what they did last
            places = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)[:, -given["input_ids"].shape[1] :]
            given["position_ids"] = places.expand(3, -1, -1)
        set_cache(given, cache_parameter(model.forward), cache)
        with torch.no_grad():
            logits: Tensor = model(**given, use_cache=True).logits[:, -1].float()
        return logits

    def single(self, model: Any, row: int, short: bool = False, pad: str = "left") -> dict[str, Any]:
        """One row of a batch alone."""
        make = self.short_inputs if short else self.inputs
        return make(model, slice(row, row + 1), pad)

    def assert_same(self, found: Tensor, expected: Tensor, what: str) -> None:
        """Logits agree within the tolerance; a failure begins with ``what``."""
        torch.testing.assert_close(found, expected, atol=self.tolerance, rtol=1e-4, msg=lambda text: f"{what}: {text}")

    def assert_refused(self, error: type[Exception], named: str, what: str, action: Callable[[], object]) -> None:
        """``action`` raises ``error`` with a text that holds ``named``; a failure begins with ``what``."""
        try:
            action()
        except error as exc:
            text = str(exc)
        else:
            pytest.fail(f"{what}: not refused")
        assert named in text, f"{what}: refused, but without naming {named}: {text}"

    @property
    def traits(self) -> Traits:
        """The declarations of the method under test."""
        traits = self.make().traits
        assert isinstance(traits, Traits)
        return traits
