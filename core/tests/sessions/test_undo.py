"""Undo takes back what is still its own, and says what somebody else has written over."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from methods import Damp
from paperhooks import attach
from paperhooks.sessions.generate_guard import GuardedGenerate
from paperhooks.testing import fingerprint, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def counted(function, calls):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    return wrapper


def test_a_wrapper_put_around_generate_during_the_session_stays_and_works():
    model, calls = tiny_llama(), []
    plain = model.generate(IDS, max_new_tokens=4)
    session = attach(model, Damp(0.5))
    model.generate = wrapper = counted(model.generate, calls)
    attached = model.generate(IDS, max_new_tokens=4)
    with pytest.warns(UserWarning, match=r"model\.generate was replaced by .* while attached") as seen:
        session.close()
    assert len([w for w in seen if "generate" in str(w.message)]) == 1
    assert model.generate is wrapper
    assert model.generate(IDS, max_new_tokens=4, num_beams=2) is not None  # nothing is refused any more
    assert model.generate(IDS, max_new_tokens=4).tolist() == plain.tolist() != attached.tolist()
    assert len(calls) == 3
    with attach(model, Damp(0.5)):
        assert model.generate(IDS, max_new_tokens=4).tolist() == attached.tolist()
    assert model.generate is wrapper


def test_a_guard_that_others_put_back_after_the_session_takes_itself_off():
    model = tiny_llama()
    plain = model.generate(IDS, max_new_tokens=4)
    before = fingerprint(model)
    session = attach(model, Damp(0.5))
    model(IDS)
    kept, model.generate = model.generate, lambda *args, **kwargs: kept(*args, **kwargs)
    with pytest.warns(UserWarning, match=r"model\.generate was replaced"):
        session.close()
    model.generate = kept  # whoever wrapped it takes the wrapper off again
    assert isinstance(vars(model)["generate"], GuardedGenerate)
    assert model.generate(IDS, max_new_tokens=4, num_beams=1).tolist() == plain.tolist()
    assert fingerprint(model).differences(before) == []


def test_a_deleted_attribute_is_no_news():
    model = tiny_llama()
    before = fingerprint(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attach(model, Damp(0.5)):
            model(IDS)
            del model.generate
    assert fingerprint(model).differences(before) == []


def test_a_loss_function_of_the_users_own_that_was_set_meanwhile_stays():
    from methods import KeepRows

    model = tiny_llama()

    def own(logits, labels, **kwargs):
        return logits.sum()

    session = attach(model, KeepRows(2, compact_loss=True))
    model(IDS, labels=IDS)
    model._loss_function = own
    with pytest.warns(UserWarning, match=r"model\._loss_function was replaced by .*own"):
        session.close()
    assert model._loss_function is own
