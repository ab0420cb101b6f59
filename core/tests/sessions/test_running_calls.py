"""A running call is never switched under its feet: closing waits, attaching refuses, nothing is closed from inside."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from dataclasses import dataclass

import pytest
import torch
from methods import Damp
from paperhooks import PluginConflict, Traits, UnsupportedGeneration, attach, hookimpl
from paperhooks.sessions.threads import still_inside
from paperhooks.testing import fingerprint, tiny_llama
from transformers import StoppingCriteria

IDS = torch.tensor([[5, 6, 7, 8, 9]])


class Gate(StoppingCriteria):
    """Stops a generation at its second token until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, input_ids, scores, **kwargs):
        if input_ids.shape[1] == IDS.shape[1] + 2:
            self.reached.set()
            assert self.opened.wait(60)
        return torch.zeros(len(input_ids), dtype=torch.bool)


def generate(model, gate, found):
    found.append(model.generate(IDS, max_new_tokens=8, min_new_tokens=8, do_sample=False, stopping_criteria=[gate]))


@pytest.mark.timeout(120)
def test_the_block_is_left_while_a_thread_still_generates():
    model, gate, found = tiny_llama(), Gate(), []
    model.generate(IDS, max_new_tokens=2)
    before = fingerprint(model)
    with attach(model, Damp(0.5)):
        expected = model.generate(IDS, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        thread = threading.Thread(target=generate, args=(model, gate, found))
        thread.start()
        assert gate.reached.wait(60)
        assert still_inside([thread.ident]) == {thread.ident}
        threading.Timer(0.3, gate.opened.set).start()
    thread.join(60)
    assert found[0].tolist() == expected.tolist()
    assert fingerprint(model).differences(before) == []


@pytest.mark.timeout(120)
def test_calls_that_begin_while_closing_waits_run_without_the_method():
    model, gate, found = tiny_llama(), Gate(), []
    plain = model(IDS).logits
    session = attach(model, Damp(0.5))
    thread = threading.Thread(target=generate, args=(model, gate, found))
    thread.start()
    assert gate.reached.wait(60)
    closing = threading.Thread(target=session.close)
    closing.start()
    while not session._flags.closing:
        time.sleep(0.001)
    assert torch.equal(model(IDS).logits, plain)
    assert model.generate(IDS, max_new_tokens=2).shape == (1, 7)
    assert not session.closed
    gate.opened.set()
    closing.join(60)
    thread.join(60)
    assert session.closed
    assert not torch.equal(found[0], model.generate(IDS, max_new_tokens=8, min_new_tokens=8, do_sample=False))


@pytest.mark.timeout(120)
def test_a_call_that_began_before_attaching_ends_as_it_began():
    model, gate, found = tiny_llama(), Gate(), []
    plain = model.generate(IDS, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    thread = threading.Thread(target=generate, args=(model, gate, found))
    thread.start()
    assert gate.reached.wait(60)
    with attach(model, Damp(0.5)):
        model(IDS)
        gate.opened.set()
        thread.join(60)
    assert found[0].tolist() == plain.tolist()


@pytest.mark.timeout(120)
def test_a_thread_that_goes_on_while_its_stack_is_read_stays_inside():
    """A generator that yields while its frame is looked at has no caller any more."""

    def numbers():
        yield from itertools.repeat(1, 50)

    def generate():
        begun.set()
        while not left.is_set():
            sum(number for number in numbers())

    begun, left, interval = threading.Event(), threading.Event(), sys.getswitchinterval()
    thread = threading.Thread(target=generate)
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        assert begun.wait(60)
        looks = [still_inside([thread.ident]) for _ in range(100_000)]
    finally:
        left.set()
        sys.setswitchinterval(interval)
        thread.join(60)
    assert all(look == {thread.ident} for look in looks)
    assert still_inside([thread.ident]) == set()


def test_attaching_inside_a_call_is_refused():
    class Attach(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            attach(model, Damp(0.5))

    model = tiny_llama()
    with pytest.raises(PluginConflict, match="is being called right now"):
        model.generate(IDS, max_new_tokens=3, stopping_criteria=[Attach()])
    with attach(model, Damp(0.5)):
        model(IDS)


def test_closing_inside_a_call_is_refused():
    @dataclass(eq=False)
    class Closer:
        traits = Traits()

        @hookimpl
        def post_layer(self, hidden_states):
            session.close()

    class Stop(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            second.close()

    model = tiny_llama()
    session = attach(model, Closer())
    with pytest.raises(UnsupportedGeneration, match="closed inside a call of its model"):
        model(IDS)
    session.close()
    second = attach(model, Damp())
    with pytest.raises(UnsupportedGeneration, match="closed inside a call of its model"):
        model.generate(IDS, max_new_tokens=3, stopping_criteria=[Stop()])
    model(IDS)
    second.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_error_in_a_call_leaves_nothing_to_wait_for():
    model = tiny_llama()
    with attach(model, Damp()):
        for error in (KeyboardInterrupt, ZeroDivisionError):

            def fail(*_, error=error):
                raise error

            handle = model.model.layers[1].register_forward_pre_hook(fail)
            with pytest.raises(error):
                model.generate(IDS, max_new_tokens=2)
            with pytest.raises(error):
                model(IDS)
            handle.remove()
        model(IDS)
