"""The contract's checks of generation: modes, settings, caches and their rows, threads."""

from __future__ import annotations

import copy
import functools
import itertools
import threading
from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from paperhooks.errors import PaperhooksError, UnsupportedGeneration
from paperhooks.sessions.session import attach
from paperhooks.testing.contract_material import ROWS
from paperhooks.testing.contract_rows import RowChecks
from paperhooks.testing.fingerprints import fingerprint

__all__ = ["ASK", "GenerationChecks"]

#: Modes that a method may declare, and what asks ``generate`` for them.
ASK: Final[dict[str, dict[str, Any]]] = {
    "beams": {"num_beams": 2},
    "assisted": {"prompt_lookup_num_tokens": 2},
    "static_cache": {"cache_implementation": "static"},
    "chunked_prefill": {"prefill_chunk_size": 4},
}

#: What may happen to the rows of a cache between two forwards, and which rows it holds then.
_CHANGES: Final[dict[str, tuple[Callable[[Any], object], list[int]]]] = {
    "reorder_cache": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 1])), [2, 0, 1]),
    "batch_select_indices": (lambda cache: cache.batch_select_indices(torch.tensor([1, 1, 2, 0])), [1, 1, 2, 0]),
    "batch_select_indices of one row": (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    "batch_repeat_interleave": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
}
#: What follows a prompt, a token of text each.
_NEXT: Final = (7, 12)


class GenerationChecks(RowChecks):
    """What holds for generated text."""

    def test_cached_decoding_equals_recomputation(self) -> None:
        """Every generated token is the argmax of one forward over everything before it."""
        if not self.recompute:
            pytest.skip("declared: the method decides by the prompt's end")
        model = self.model()
        with attach(model, self.make()):
            for row in range(ROWS):
                tokens = self.generate(model, self.single(model, row))
                again = self.recomputed(model, self.single(model, row), tokens)
                assert again in (None, tokens.tolist()), f"row {row}: decoding is not one forward over everything"

    def test_a_loop_over_a_cache_equals_generate(self) -> None:
        """Whoever calls the model token by token gets what ``generate`` gives."""
        model = self.model()
        with attach(model, self.make()):
            inputs = self.single(model, 0)
            expected = self.generate(model, self.single(model, 0)).tolist()
            cache, logits = self.read(model, inputs)
            mask, tokens = inputs["attention_mask"], [logits.argmax(-1)]
            for _ in range(4):
                logits = self.follow(model, mask, cache, tokens[-1][:, None])[:, 0]
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
                tokens.append(logits.argmax(-1))
        assert torch.stack(tokens, dim=1).tolist() == expected

    def test_sequences_in_turn(self) -> None:
        """Two texts that are read and continued in turn over caches of their own go on as each would alone."""
        model = self.model()
        tokens = torch.tensor([_NEXT])
        with attach(model, self.make()):
            alone = [self._followed(model, self.single(model, row)) for row in (0, 1)]
            inputs = [self.single(model, row) for row in (0, 1)]
            caches = [self.read(model, each)[0] for each in inputs]
            for row in (0, 1):
                found = self.follow(model, inputs[row]["attention_mask"], caches[row], tokens)
                self.assert_same(found, alone[row], f"text {row} after another one was read meanwhile")

    @pytest.mark.parametrize("mode", sorted(ASK))
    def test_generation_modes(self, mode: str) -> None:
        """Declared modes run (all but beam search give the greedy tokens); others are refused by name.

        Wherever the setting stands: among the arguments, in a config that is passed by name or second, in the model's.
        """
        model, ask = self.model(), ASK[mode]
        with attach(model, self.make()) as session:
            (name,) = session.methods
            if getattr(self.traits, mode):
                self._declared(model, mode)
                return
            for where, way in _PLACES.items():
                what = f"{mode} is not declared, and asked for {where}"
                self.assert_refused(UnsupportedGeneration, name, what, functools.partial(way, self, model, ask))
            self.generate(model, self.single(model, 0))

    def _declared(self, model: Any, mode: str) -> None:
        alone = self.generate(model, self.single(model, 1), **ASK[mode]).tolist()
        if mode != "beams":
            assert alone == self.generate(model, self.single(model, 1)).tolist(), f"{mode} gives other tokens"
        elif self.batch_independent:
            batch = self.generate(model, self.inputs(model), **ASK[mode]).tolist()
            assert batch[1:2] == alone, "a row alone generates other tokens with beams"

    def _by_argument(self, model: Any, ask: dict[str, Any]) -> Tensor:
        return self.generate(model, self.single(model, 0), **ask)

    def _by_config(self, model: Any, ask: dict[str, Any]) -> Tensor:
        return self.generate(model, self.single(model, 0), generation_config=GenerationConfig(**ask))

    def _by_position(self, model: Any, ask: dict[str, Any]) -> Tensor:
        inputs = self.single(model, 0)
        config = GenerationConfig(max_new_tokens=5, min_new_tokens=5, do_sample=False, **ask)
        ids = inputs.pop("input_ids")
        out: Tensor = model.generate(ids, config, **inputs)
        return out[:, ids.shape[1] :]

    def _by_model(self, model: Any, ask: dict[str, Any]) -> Tensor:
        own = model.generation_config
        before = {name: getattr(own, name) for name in ask}
        try:
            own.update(**ask)
            return self.generate(model, self.single(model, 0))
        finally:
            own.update(**before)

    # -- caches ----------------------------------------------------------------------------------------------------

    def test_rows_of_a_cache_may_change(self) -> None:
        """After a cache's rows were reordered, selected or repeated by its own methods, every row goes on as alone."""
        if not self.batch_independent:
            pytest.skip("declared: rows of a batch depend on each other")
        model = self.model()
        tokens = torch.tensor([_NEXT])
        with attach(model, self.make()):
            alone = [self._followed(model, self.single(model, row)) for row in range(ROWS)]
            mask, filled = self.inputs(model)["attention_mask"], self.read(model, self.inputs(model))[0]
            for name, (change, order) in _CHANGES.items():
                with self._may_refuse(name):
                    cache = copy.deepcopy(filled)
                    change(cache)
                    found = self.follow(model, mask[order], cache, tokens.expand(len(order), -1))
                    self.assert_same(found, torch.cat([alone[row] for row in order]), f"rows after {name}")

    def test_a_cache_may_be_cut_back(self) -> None:
        """After tokens behind the prompt were read and cut off by ``crop``, every row goes on as if they had not."""
        model = self.model()
        with attach(model, self.make()), self._may_refuse("crop"):
            expected = self._followed(model, self.inputs(model))
            found = self._followed(model, self.inputs(model), lambda cache: self._there_and_back(model, cache))
            self.assert_same(found, expected, "rows after crop")

    def _followed(
        self, model: Any, inputs: dict[str, Any], change: Callable[[Any], object] = lambda cache: None
    ) -> Tensor:
        """Logits [B, n, V] of the tokens that follow a batch whose cache somebody has changed in between."""
        cache, _ = self.read(model, inputs)
        change(cache)
        mask = inputs["attention_mask"]
        return self.follow(model, mask, cache, torch.tensor([_NEXT]).expand(len(mask), -1))

    def _there_and_back(self, model: Any, cache: Any) -> None:
        mask = self.inputs(model)["attention_mask"]
        self.follow(model, mask, cache, torch.tensor([[30, 31, 32]]).expand(len(mask), -1))
        cache.crop(-3)

    def _may_refuse(self, what: str) -> Any:
        return _MayRefuse(self.cache_rows, what)

    def test_a_cache_outlives_the_session(self) -> None:
        """A cache filled inside and used outside goes on as inside or is refused; never silently otherwise.

        A method that changes what follows any cache, also one that was filled without it (a scaling, say), is off
        outside, as it should be; there is nothing to compare then.
        """
        model = self.model()
        for rows, at_once in itertools.product((slice(0, 1), slice(None)), (False, True)):
            inside, outside = self._on_either_side(model, rows, at_once)
            if outside is not None and not self._acts_on_what_follows(model, rows, at_once):
                self.assert_same(outside, inside, "a cache filled inside the session goes on otherwise outside")

    def _on_either_side(self, model: Any, rows: slice, at_once: bool) -> tuple[Tensor, Tensor | None]:
        """Logits behind a cache that was filled inside a session: inside, and outside or None where that is refused."""
        inputs = self.inputs(model, rows)
        tokens = torch.tensor([_NEXT]).expand(len(inputs["input_ids"]), -1)
        with attach(model, self.make()):
            cache, _ = self.read(model, inputs)
            taken = copy.deepcopy(cache)
            inside = self.follow(model, inputs["attention_mask"], cache, tokens, at_once)
        try:
            return inside, self.follow(model, inputs["attention_mask"], taken, tokens, at_once)
        except PaperhooksError:
            return inside, None

    def _acts_on_what_follows(self, model: Any, rows: slice, at_once: bool) -> bool:
        """Whether the method changes the tokens that follow a cache which was filled without it."""
        inputs = self.inputs(model, rows)
        tokens = torch.tensor([_NEXT]).expand(len(inputs["input_ids"]), -1)
        cache, _ = self.read(model, inputs)
        plain = self.follow(model, inputs["attention_mask"], copy.deepcopy(cache), tokens, at_once)
        with attach(model, self.make()):
            return not torch.allclose(
                self.follow(model, inputs["attention_mask"], cache, tokens, at_once), plain, atol=self.tolerance
            )

    # -- threads ---------------------------------------------------------------------------------------------------

    def test_threads(self) -> None:
        """Four threads generating at once on one attached model give what one thread gives."""
        model = self.model()
        found: dict[int, Any] = {}
        with attach(model, self.make()):
            expected = [self.generate(model, self.single(model, row)).tolist() for row in (0, 1)]

            def work(i: int) -> None:
                found[i] = self.generate(model, self.single(model, i % 2)).tolist()

            threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert [found.get(i) for i in range(4)] == [expected[i % 2] for i in range(4)]

    def test_a_thread_that_still_generates_is_waited_for(self) -> None:
        """When the block is left while a thread generates, its answer is the session's, and the model is clean."""
        model = self.model()
        self.generate(model, self.single(model, 0))
        before, found, begun = fingerprint(model), [], threading.Event()
        with attach(model, self.make()):
            expected = self.generate(model, self.single(model, 0)).tolist()

        def hold(ids: Tensor, scores: Tensor) -> Tensor:
            begun.set()
            left.wait(0.02)
            return scores

        left = threading.Event()
        with attach(model, self.make()):
            inputs = self.single(model, 0)
            thread = threading.Thread(
                target=lambda: found.append(self.generate(model, inputs, logits_processor=[hold]).tolist())
            )
            thread.start()
            begun.wait(60)
        changed = fingerprint(model).differences(before)
        thread.join()
        assert found == [expected], "a thread that still generated when the block was left has another answer"
        assert changed == []


_PLACES: Final[dict[str, Callable[[GenerationChecks, Any, dict[str, Any]], Tensor]]] = {
    "by an argument": GenerationChecks._by_argument,
    "in generation_config=": GenerationChecks._by_config,
    "in a config that is the second argument": GenerationChecks._by_position,
    "in model.generation_config": GenerationChecks._by_model,
}


class _MayRefuse:
    """A block in which a PaperhooksError is a fault, unless the method does not promise to follow a cache's rows."""

    def __init__(self, promised: bool, what: str) -> None:
        self.promised = promised
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, PaperhooksError) and self.promised:
            pytest.fail(f"{self.what} of a cache is refused, which cache_rows=True promises: {error}")
        return isinstance(error, PaperhooksError)
