"""KeyboardInterrupt and SystemExit at any moment of opening and closing: what was begun can be finished."""

from __future__ import annotations

import functools
import inspect
import random
import warnings
from dataclasses import dataclass, field
from typing import Any

import paperhooks.weights.entries
import paperhooks.weights.journal
import pytest
import torch
from paperhooks import Traits, attach, hookimpl, strip
from paperhooks.sessions import active_session
from paperhooks.testing import fingerprint, tiny_llama
from paperhooks.testing.contract_traces import closing_files
from paperhooks.testing.interrupts import LineTracer, count_lines, interrupted

MOMENTS = 60
IDS = torch.tensor([[5, 6, 7, 8, 9]])

pytestmark = pytest.mark.filterwarnings("ignore:.*none of its hooks ever ran:UserWarning")


@dataclass(eq=False)
class Everything:
    """Hooks in every place, edits of weights, deferred callbacks, a compact loss, and a teardown."""

    undone: list[str] = field(default_factory=list)
    traits = Traits(layers=[1, 2], writes=frozenset({"tokens", "weights"}), training=True)

    @hookimpl
    def setup(self, view):
        view.use_compact_loss()
        name, weight = "model.layers.0.mlp.up_proj.weight", view.layers[0].mlp.up_proj.weight
        view.journal.write(name, torch.zeros_like(weight))
        view.journal.write_sparse("lm_head.weight", torch.tensor([3, 40]), torch.tensor([1.0, 2.0]))
        before = view.config.rope_theta if hasattr(view.config, "rope_theta") else None
        view.config.planted = 1
        view.defer(functools.partial(self._forget, view.config))
        view.defer(functools.partial(self.undone.append, f"deferred {before}"))
        view.layers[1].planted = "note"

    def _forget(self, config: Any) -> None:
        if hasattr(config, "planted"):
            del config.planted

    @hookimpl
    def pre_decoder(self, inputs):
        return None

    @hookimpl
    def pre_attention(self, call, inputs):
        length = inputs.hidden_states.shape[1]
        return inputs.select(torch.arange(1, length)[None]) if call.is_prefill else None

    @hookimpl
    def post_layer(self, hidden_states):
        return hidden_states * 0.5

    @hookimpl
    def teardown(self, view):
        vars(view.layers[1]).pop("planted", None)
        self.undone.append("teardown")


@dataclass(eq=False)
class Observing:
    """A second method, so that there are two teardowns."""

    undone: list[str] = field(default_factory=list)
    traits = Traits()

    @hookimpl
    def post_layer(self, hidden_states):
        return None

    @hookimpl
    def teardown(self, view):
        self.undone.append("teardown")


FILES = [
    *closing_files(),
    *map(inspect.getfile, (paperhooks.weights.journal, paperhooks.weights.entries, Everything)),
]


def used_model() -> Any:
    """A model to which transformers has put what it puts there at first use."""
    model = tiny_llama(layers=3)
    model.generate(IDS, max_new_tokens=2)
    return model


def opened(model: Any) -> Any:
    """A session in which the model was called and generated."""
    session = attach(model, Everything(), Observing())
    model(IDS)
    model.generate(IDS, max_new_tokens=2)
    return session


def chosen(lines: int, count: int = MOMENTS) -> list[int]:
    """Random moments, the same at every run of the tests."""
    assert lines > count
    return sorted(random.Random(0).sample(range(1, lines + 1), count))


def test_there_is_something_to_interrupt_and_to_undo():
    model = used_model()
    before = fingerprint(model)
    session = opened(model)
    changed = fingerprint(model).differences(before)
    assert {"lm_head.weight:bits", "model.layers.0.mlp.up_proj.weight:bits", "config"} <= set(changed)
    assert {".generate", "model.layers.1.planted"} <= set(changed)
    assert count_lines(session.close, FILES) > 2 * MOMENTS
    assert fingerprint(model).differences(before) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("finish", ["close", "strip", "with"])
def test_closing_goes_on_after_an_interrupt(finish, error):
    model = used_model()
    before, plain = fingerprint(model), model(IDS).logits
    moments = chosen(count_lines(opened(model).close, FILES))
    for moment in moments if finish == "close" else moments[:: MOMENTS // 12]:
        session = opened(model)
        close = session.close if finish != "with" else functools.partial(_leave, session)
        place = interrupted(close, FILES, moment, error)
        assert place
        strip(model) if finish == "strip" else session.close()
        assert fingerprint(model).differences(before) == [], place
        assert active_session(model) is None, place
        for method in session.methods.values():
            assert "teardown" in method.undone, place
        assert torch.equal(model(IDS).logits, plain)


def _leave(session: Any) -> None:
    with session:
        pass


def test_closing_goes_on_after_many_interrupts():
    """The second, third, ... attempt is interrupted too."""
    model = used_model()
    before, lines = fingerprint(model), count_lines(opened(model).close, FILES)
    attempts = 0
    for seed in range(8):
        session, chance = opened(model), random.Random(seed)
        while interrupted(session.close, FILES, chance.randrange(1, lines)):
            attempts += 1
            assert attempts < 1000
        assert fingerprint(model).differences(before) == [], seed
    assert attempts > 8


def test_opening_that_was_interrupted_leaves_nothing_behind():
    model = used_model()
    before = fingerprint(model)
    opening = functools.partial(attach, model, Everything(), Observing())
    lines = count_lines(opening, FILES)
    strip(model)
    for moment in chosen(lines):
        place = interrupted(functools.partial(attach, model, Everything(), Observing()), FILES, moment)
        assert place
        strip(model)
        assert fingerprint(model).differences(before) == [], place
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attach(model, Everything(), Observing()).close()  # and it can be attached again


def test_the_error_of_a_block_is_kept_when_closing_is_interrupted():
    model = used_model()
    before = fingerprint(model)
    session = opened(model)

    def work() -> None:
        with session:
            raise ZeroDivisionError

    tracer = LineTracer(FILES)
    with pytest.raises(ZeroDivisionError):
        tracer.run(work)
    session = opened(model)
    half = LineTracer(FILES, tracer.lines // 2)
    with pytest.raises(KeyboardInterrupt) as caught:
        half.run(work)
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    session.close()
    assert fingerprint(model).differences(before) == []
