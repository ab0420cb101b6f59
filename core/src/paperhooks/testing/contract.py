"""The contract every method keeps, as a test class to subclass.

    from paperhooks.testing import MethodContract

    class TestDamp(MethodContract):
        def make(self):
            return Damp(factor=0.5)

Class flags say what does not apply to a method. Every test runs on tiny random models, in about a second.
"""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from paperhooks.errors import UnsupportedGeneration
from paperhooks.info import Traits
from paperhooks.session import attach, strip
from paperhooks.testing.fingerprint import fingerprint
from paperhooks.testing.tiny import tiny_text, tiny_vlm, vlm_inputs

__all__ = ["MethodContract"]

_TEXT = ((9,), (5,), (7,))
_VISION = ((3, 12, 5), (2, 8, 4), (6,))
_ASK: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 2},
    "assisted": {"prompt_lookup_num_tokens": 2},
    "static_cache": {"cache_implementation": "static"},
    "chunked_prefill": {"prefill_chunk_size": 4},
}


class MethodContract(ABC):
    """Subclass it, define :meth:`make`, and set the flags that describe the method.

    vision, family
        Run on a vision-language model; which tiny family to use.
    changes_outputs
        Attached outputs differ from plain ones (False for observers).
    batch_independent
        A row of a batch gives what it gives alone.
    recompute
        Decoding with a cache gives the logits of one forward over the whole text. False for methods that decide by
        the prompt's last token.
    """

    vision: ClassVar[bool] = False
    family: ClassVar[str] = ""
    changes_outputs: ClassVar[bool] = True
    batch_independent: ClassVar[bool] = True
    recompute: ClassVar[bool] = True
    tolerance: ClassVar[float] = 2e-5

    @abstractmethod
    def make(self) -> Any:
        """A fresh configured method."""

    # -- material --------------------------------------------------------------------------------------------------

    def model(self, **options: Any) -> Any:
        """A fresh tiny model, the same at every call."""
        if self.vision:
            return tiny_vlm(self.family or "llava", **options)
        return tiny_text(self.family or "llama", **options)

    def inputs(self, model: Any, rows: slice = slice(None), pad: str = "left") -> dict[str, Any]:
        """A ragged batch of three prompts, or some of its rows (the same tokens and features either way)."""
        parts = _VISION if self.vision else _TEXT
        return vlm_inputs(model, parts, pad=pad, rows=rows)

    def logits(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Logits of the last real position, float32 [B, V]."""
        with torch.no_grad():
            out = model(**inputs).logits.float()
        last = (torch.arange(1, out.shape[1] + 1) * inputs["attention_mask"]).argmax(1)
        picked: Tensor = out[torch.arange(len(out)), last]
        return picked

    def generate(self, model: Any, inputs: dict[str, Any], **options: Any) -> Tensor:
        """Greedy tokens after the prompt, int64 [B, 5]."""
        out: Tensor = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, **options)
        return out[:, inputs["input_ids"].shape[1] :]

    @property
    def traits(self) -> Traits:
        """The declarations of the method under test."""
        traits = self.make().traits
        assert isinstance(traits, Traits)
        return traits

    # -- the contract ----------------------------------------------------------------------------------------------

    def test_undo_is_exact(self) -> None:
        """Everything is bit for bit what it was: attributes, hooks, weights, config, logits, tokens."""
        model = self.model()
        self.generate(model, self.inputs(model))  # transformers installs its own recorders at the first forward
        before, plain = fingerprint(model), self.logits(model, self.inputs(model))
        with attach(model, self.make()):
            attached = self.logits(model, self.inputs(model))
            self.generate(model, self.inputs(model))
        assert fingerprint(model).differences(before) == []
        assert torch.equal(self.logits(model, self.inputs(model)), plain)
        assert torch.equal(attached, plain) != self.changes_outputs

    def test_closing_twice_is_fine(self) -> None:
        """A session may be closed again, and its model attached again."""
        model = self.model()
        with attach(model, self.make()) as session:
            self.logits(model, self.inputs(model))
        session.close()
        with attach(model, self.make()):
            self.logits(model, self.inputs(model))

    def test_undone_after_an_error(self) -> None:
        """An exception inside the context leaves the model clean."""
        model = self.model()
        self.logits(model, self.inputs(model))
        before = fingerprint(model)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012, SIM117
            with attach(model, self.make()):
                self.logits(model, self.inputs(model))
                raise ZeroDivisionError
        assert fingerprint(model).differences(before) == []

    def test_two_models_do_not_meet(self) -> None:
        """Attached to one model, another one is untouched; both may be attached at once."""
        one, two = self.model(seed=0), self.model(seed=1)
        inputs = self.inputs(one)
        alone = self.logits(two, self.inputs(two))
        with attach(one, self.make()):
            first = self.logits(one, inputs)
            assert torch.equal(self.logits(two, self.inputs(two)), alone)
            with attach(two, self.make()):
                self.logits(two, self.inputs(two))
                assert torch.equal(self.logits(one, self.inputs(one)), first)

    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    @pytest.mark.parametrize("pad", ["left", "right"])
    def test_batch_equals_singles(self, pad: str, attn: str) -> None:
        """Padding, on either side, changes nothing for a row."""
        if not self.batch_independent:
            pytest.skip("declared: rows of a batch depend on each other")
        model = self.model(attn_implementation=attn)
        with attach(model, self.make()):
            batch = self.logits(model, self.inputs(model, pad=pad))
            for row in range(3):
                single = self.logits(model, self.inputs(model, slice(row, row + 1)))
                torch.testing.assert_close(batch[row : row + 1], single, atol=self.tolerance, rtol=1e-4)

    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    def test_batched_generation_equals_singles(self, attn: str) -> None:
        """Greedy tokens of a left-padded batch are those of its rows alone."""
        if not self.batch_independent:
            pytest.skip("declared: rows of a batch depend on each other")
        model = self.model(attn_implementation=attn)
        with attach(model, self.make()):
            batch = self.generate(model, self.inputs(model))
            singles = [self.generate(model, self.inputs(model, slice(row, row + 1))) for row in range(3)]
        assert batch.tolist() == torch.cat(singles).tolist()

    def test_cached_decoding_equals_recomputation(self) -> None:
        """Every generated token is the argmax of one forward over everything before it."""
        if not self.recompute:
            pytest.skip("declared: the method decides by the prompt's end")
        model = self.model()
        inputs = self.inputs(model, slice(0, 1))
        with attach(model, self.make()):
            tokens = self.generate(model, inputs)
            whole = torch.cat([inputs["input_ids"], tokens[:, :-1]], dim=1)
            with torch.no_grad():
                again = model(**{**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole)}).logits
        assert again[:, inputs["input_ids"].shape[1] - 1 :].argmax(-1).tolist() == tokens.tolist()

    @pytest.mark.parametrize("mode", sorted(_ASK))
    def test_generation_modes(self, mode: str) -> None:
        """Declared modes run (assisted decoding gives the greedy tokens); others are refused by name."""
        model = self.model()
        inputs = self.inputs(model, slice(0, 1))
        with attach(model, self.make()) as session:
            (name,) = session.methods
            if not getattr(self.traits, mode):
                with pytest.raises(UnsupportedGeneration, match=name):
                    self.generate(model, inputs, **_ASK[mode])
                self.generate(model, inputs)
                return
            tokens = self.generate(model, self.inputs(model, slice(0, 1)), **_ASK[mode])
            if mode != "beams":
                assert tokens.tolist() == self.generate(model, self.inputs(model, slice(0, 1))).tolist()

    @pytest.mark.filterwarnings("ignore:.*nobody asked for this session's loss:UserWarning")
    @pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "checkpointed"])
    def test_gradients(self, checkpointing: bool | None) -> None:
        """Every parameter that has a gradient without the method is finite with it; checkpointing changes nothing."""
        if not self.traits.training:
            pytest.skip("declared: not for training")
        plain = self._gradients(None)
        got = self._gradients(checkpointing)
        assert all(torch.isfinite(g).all() for g in got.values())
        for name, gradient in plain.items():
            torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-4)

    def _gradients(self, reentrant: bool | None) -> dict[str, Tensor]:
        model = self.model().train()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        inputs = self.inputs(model, pad="right")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        if self.vision:
            labels = labels.masked_fill(labels == 95, -100)
        labels[:, :2] = -100
        with attach(model, self.make()):
            loss = model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()  # after the session has closed
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        """The model's dtype is kept and nothing overflows."""
        model = self.model().to(dtype)
        with attach(model, self.make()), torch.no_grad():
            out = model(**self.inputs(model))
        assert out.logits.dtype == dtype
        assert torch.isfinite(out.logits.float()).all()

    def test_threads(self) -> None:
        """Four threads generating at once on one attached model give what one thread gives."""
        model = self.model()
        found: dict[int, Any] = {}
        with attach(model, self.make()):
            expected = [self.generate(model, self.inputs(model, slice(r, r + 1))).tolist() for r in (0, 1)]

            def work(i: int) -> None:
                found[i] = self.generate(model, self.inputs(model, slice(i % 2, i % 2 + 1))).tolist()

            threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert [found[i] for i in range(4)] == [expected[i % 2] for i in range(4)]

    def test_compile(self) -> None:
        """Attached, then compiled in one graph, gives the eager logits."""
        if not self.traits.compile:
            pytest.skip("declared: not for torch.compile in one graph")
        model = self.model()
        inputs = self.inputs(model, slice(0, 1))
        with attach(model, self.make()):
            expected = self.logits(model, inputs)
            compiled = torch.compile(model, backend="eager", fullgraph=True)
            got = self.logits(compiled, inputs)
        torch.testing.assert_close(got, expected, atol=self.tolerance, rtol=1e-4)
        torch.compiler.reset()

    def test_copies_can_be_stripped(self) -> None:
        """A deep copy of an attached model works on its own and can be cleaned."""
        model = self.model()
        plain = self.logits(model, self.inputs(model))
        with attach(model, self.make()):
            attached = self.logits(model, self.inputs(model))
            twin = copy.deepcopy(model)
        assert torch.equal(self.logits(twin, self.inputs(twin)), attached) or not self.batch_independent
        assert strip(twin) > 0
        assert torch.equal(self.logits(twin, self.inputs(twin)), plain)

    def test_global_state_is_left_alone(self) -> None:
        """Random state, default dtype and the table of attention kernels are what they were."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        model = self.model()
        before = (torch.get_rng_state(), torch.get_default_dtype(), sorted(ALL_ATTENTION_FUNCTIONS.keys()))
        with attach(model, self.make()):
            self.logits(model, self.inputs(model))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.get_default_dtype() == before[1]
        assert sorted(ALL_ATTENTION_FUNCTIONS.keys()) == before[2]
