"""Options: what cannot be meant is refused when the method is made, what makes sense works."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from paperhooks import PluginIncompatible
from paperhooks.plugins import describe_method
from paperhooks.testing import check_options
from paperhooks_miniplm import Distil, DistilTerm, MiniPLM


@pytest.mark.parametrize("method", [MiniPLM, Distil, DistilTerm])
def test_every_option_refuses_what_cannot_be_meant(method) -> None:
    assert check_options(method) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "max"}, "normalize is 'max'; expected 'mean', 'sum' or 'per_byte'"),
        ({"max_length": 0}, "max_length is 0; expected a whole number of at least 1, or None"),
        ({"over_long": None}, "over_long is None; expected 'truncate', 'split' or 'error'"),
        ({"end": "eos"}, "end is 'eos'; expected 'auto' or a token id"),
        ({"end": -1}, "end is -1; expected a whole number of at least 0, or None"),
        ({"append_end": 1}, "append_end is 1; expected True or False"),
        ({"batch_tokens": 2048.0}, "batch_tokens is 2048.0"),
        ({"chunk": 0}, "chunk is 0"),
    ],
    ids=str,
)
def test_options_of_scoring(options, message) -> None:
    with pytest.raises(ValueError) as caught:
        MiniPLM(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize("method", [Distil, DistilTerm])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": float("nan")}, "weight is nan; expected a"),
        ({"weight": float("inf")}, "weight is inf"),
        ({"weight": True}, "weight is True"),
        ({"divergence": "kl"}, "divergence is 'kl'; expected 'forward', "),
        ({"beta": 2}, "beta is 2; expected a number from 0 to 1"),
        ({"temperature": float("nan")}, "temperature is nan; expected a finite number above 0"),
        ({"reduction": 1}, "reduction is 1; expected 'sequence_mean' or 'token_mean'"),
        ({"official_mask": 0}, "official_mask is 0; expected True or False"),
        ({"eos_token_id": -1}, "eos_token_id is -1; expected a whole number of at least 0, a list of them, or None"),
        ({"eos_token_id": []}, "eos_token_id is []; expected a list of one or more whole numbers"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"vocabulary": 0}, "vocabulary is 0; expected a whole number of at least 1, or None"),
        ({"chunk": 1.5}, "chunk is 1.5; expected a whole number of at least 1"),
    ],
    ids=str,
)
def test_options_of_distillation(method, options, message) -> None:
    with pytest.raises(ValueError) as caught:
        method(**options)
    assert message in str(caught.value)


def test_a_teacher_that_is_no_model_is_refused_at_once() -> None:
    for method in (Distil, DistilTerm):
        with pytest.raises(PluginIncompatible, match=f"{method.__name__} needs a teacher, got str"):
            method(teacher="gpt2")


def test_numbers_of_other_libraries_are_taken_and_kept_as_plain_ones() -> None:
    method = Distil(weight=np.float32(0.5), chunk=torch.tensor(64), eos_token_id=np.array([0, 2]), beta=0)
    assert (method.weight, method.chunk, method.eos_token_id, method.beta) == (0.5, 64, [0, 2], 0.0)
    scoring = MiniPLM(end=np.int64(0), max_length=np.int32(64))
    assert (scoring.end, scoring.max_length) == (0, 64)
    assert (Distil(eos_token_id=torch.tensor(2)).eos_token_id, MiniPLM(end=None).end) == (2, None)
    for one in (method, scoring):
        described = describe_method(one)["options"]
        assert json.loads(json.dumps(described)) == described
