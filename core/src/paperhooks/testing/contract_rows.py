"""The contract's checks of batches: padding, lengths, tokens that another method has dropped, masks of the caller's."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from paperhooks.errors import DataError, PaperhooksError, UnsupportedModel
from paperhooks.plugins.methods import implemented_hooks
from paperhooks.sessions.session import attach
from paperhooks.testing.contract_material import ROWS, Material
from paperhooks.testing.dropper import Dropper
from paperhooks.testing.fingerprints import fingerprint
from paperhooks.testing.tiny import IMAGE_TOKEN

__all__ = ["RowChecks"]

_DEPENDENT: Final = "declared: rows of a batch depend on each other"
_COORDINATES: Final = (
    "a layer's inputs count the tokens that are still alive (inputs.image_mask, inputs.padding_mask, inputs.select), "
    "while call.image_mask, call.padding_mask and call.input_ids count those that the model received; see the page "
    "docs/coordinates.md of paperhooks"
)


class _OtherDropper(Dropper):
    """Under a name of its own, beside a method that may be called like it."""


class RowChecks(Material):
    """What holds for the rows of a batch."""

    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    @pytest.mark.parametrize("pad", ["left", "right"])
    def test_batch_equals_singles(self, pad: str, attn: str) -> None:
        """Padding, on either side, changes nothing for a row, whatever lengths the rows have."""
        if not self.batch_independent:
            pytest.skip(_DEPENDENT)
        model = self.model(attn_implementation=attn)
        with attach(model, self.make()):
            self._batch_equals_singles(model, pad, short=False)

    def test_short_prompts(self) -> None:
        """The same for prompts of one token, of two, and (with vision) one that begins with an image."""
        model = self.model()
        with attach(model, self.make()):
            tokens = self.generate(model, self.short_inputs(model))
            assert tokens.shape == (ROWS, 5), f"generated {list(tokens.shape)} tokens behind {ROWS} short prompts"
            if self.batch_independent:
                self._batch_equals_singles(model, "left", short=True)
                self._batch_equals_singles(model, "right", short=True)
                singles = [self.generate(model, self.single(model, row, short=True)) for row in range(ROWS)]
                assert tokens.tolist() == torch.cat(singles).tolist(), "short prompts alone generate other tokens"

    def _batch_equals_singles(self, model: Any, pad: str, short: bool, behind: str = "") -> None:
        make = self.short_inputs if short else self.inputs
        batch = self.logits(model, make(model, pad=pad))
        for row in range(ROWS):
            alone = self.single(model, row, short)
            length = alone["input_ids"].shape[1]
            what = f"row {row} ({length} tokens) of a {pad}-padded batch is not what it is alone{behind}"
            self.assert_same(batch[row : row + 1], self.logits(model, alone), what)

    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    def test_batched_generation_equals_singles(self, attn: str) -> None:
        """Greedy tokens of a left-padded batch are those of its rows alone."""
        if not self.batch_independent:
            pytest.skip(_DEPENDENT)
        model = self.model(attn_implementation=attn)
        with attach(model, self.make()):
            batch = self.generate(model, self.inputs(model))
            singles = [self.generate(model, self.single(model, row)) for row in range(ROWS)]
        assert batch.tolist() == torch.cat(singles).tolist(), "rows alone generate other tokens"

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        """The model's dtype is kept and nothing overflows."""
        model = self.model().to(dtype)
        with attach(model, self.make()), torch.no_grad():
            out = model(**self.inputs(model))
        assert out.logits.dtype == dtype
        assert torch.isfinite(out.logits.float()).all()

    # -- behind a method that drops tokens -------------------------------------------------------------------------

    @pytest.mark.parametrize("pad", ["left", "right"])
    def test_behind_a_dropper(self, pad: str) -> None:
        """Where another method has dropped tokens, this one still works, and a batch still equals its rows."""
        model = self.model()
        with self._dropper_alone(model):
            alone = self.logits(model, self.inputs(model, pad=pad))
        with self._living_coordinates(), attach(model, *self.behind()):
            together = self.logits(model, self.inputs(model, pad=pad))
            if self.batch_independent:
                for short in (False, True) if pad == "left" else (False,):
                    self._batch_equals_singles(model, pad, short, behind=f" behind a dropper; {_COORDINATES}")
        acts = not torch.equal(alone, together)
        assert acts == self.changes_outputs, f"outputs change behind a dropper: {acts}; {_COORDINATES}"

    def test_decoding_behind_a_dropper(self) -> None:
        """There too tokens of a batch are those of its rows, decoding equals recomputation, and undo is exact."""
        model = self.model()
        with self._dropper_alone(model):
            self.generate(model, self.inputs(model))
        plain, before = self.logits(model, self.inputs(model)), fingerprint(model)
        with self._living_coordinates(), attach(model, *self.behind()):
            singles = [self.generate(model, self.single(model, row)).tolist()[0] for row in range(ROWS)]
            batch = self.generate(model, self.inputs(model)).tolist()
            if self.batch_independent:
                assert batch == singles, f"rows alone generate other tokens behind a dropper; {_COORDINATES}"
            for row in (0, 1) if self.recompute else ():
                found = self.recomputed(model, self.single(model, row), torch.tensor(batch[row : row + 1]))
                what = f"decoding of row {row} is not recomputation behind a dropper"
                assert found in (None, batch[row : row + 1]), f"{what}; {_COORDINATES}"
        assert torch.equal(self.logits(model, self.inputs(model)), plain)
        assert fingerprint(model).differences(before) == []

    def behind(self) -> list[Any]:
        """The method and a dropper: behind it, or before it where the method places tokens at the decoder's entry."""
        method, other = self.make(), _OtherDropper()
        places = "positions" in method.traits.writes and "pre_decoder" in implemented_hooks(method)
        return [method, other] if places else [other, method]

    def recomputed(self, model: Any, inputs: dict[str, Any], tokens: Tensor) -> list[list[int]] | None:
        """The argmax at each of ``tokens`` [1, n] that follow ``inputs``, in one forward over everything.

        None where an image's token was generated: a forward over everything would want features for it.
        """
        if self.vision and IMAGE_TOKEN in tokens[0, :-1].tolist():
            return None
        whole = torch.cat([inputs["input_ids"], tokens[:, :-1]], dim=1)
        with torch.no_grad():
            logits = model(**{**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole)}).logits
        found: list[list[int]] = logits[:, inputs["input_ids"].shape[1] - 1 :].argmax(-1).tolist()
        return found

    @contextmanager
    def _dropper_alone(self, model: Any) -> Iterator[None]:
        try:
            session = attach(model, Dropper())
        except UnsupportedModel as error:
            pytest.skip(f"nothing can be dropped on this model: {error}")
        with session:
            yield

    @contextmanager
    def _living_coordinates(self) -> Iterator[None]:
        """Errors in here are those of a method that does not know of dropped tokens."""
        try:
            yield
        except AssertionError:
            raise
        except Exception as error:
            if not self.behind_dropper and isinstance(error, PaperhooksError):
                pytest.skip(f"declared: does not go behind a dropper, and refuses it: {error}")
            pytest.fail(
                f"raises {type(error).__name__} where another method has dropped tokens: {error}\n{_COORDINATES}"
            )

    # -- what the caller says about images -------------------------------------------------------------------------

    def test_a_visual_mask_is_checked(self) -> None:
        """A wrong length, wrong rows or a wrong dtype are refused by name, in a call and in ``generate``."""
        if not self.vision:
            pytest.skip("declared: for text")
        model = self.model()
        inputs = self.inputs(model)
        mask = inputs["input_ids"] == IMAGE_TOKEN
        wrong = {
            "too short": mask[:, 1:],
            "too long": torch.nn.functional.pad(mask, (0, 1)),
            "of one row": mask[:1],
            "of numbers": mask.float(),
            "of whole numbers": mask.long(),
        }
        with attach(model, self.make()):
            found = self.logits(model, {**inputs, "visual_mask": mask})
            assert torch.equal(found, self.logits(model, self.inputs(model))), "the mask of input_ids changes logits"
            for name, each in wrong.items():
                given = {**inputs, "visual_mask": each}
                for way in (self.logits, self.generate):
                    what = f"a visual_mask {name} that is given to {'generate' if way == self.generate else 'a call'}"
                    self.assert_refused(DataError, "visual_mask", what, functools.partial(way, model, given))
