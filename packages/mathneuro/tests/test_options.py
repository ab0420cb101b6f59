"""Options: what cannot be meant is refused when the method is made, what makes sense works."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from paperhooks.plugins import describe_method
from paperhooks.testing import check_options
from paperhooks_mathneuro import MathNeuro


def test_every_option_refuses_what_cannot_be_meant() -> None:
    assert check_options(MathNeuro) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0}, "ratio is 0; expected a number above 0 and at most 1"),
        ({"ratio": "5%"}, "ratio is '5%'"),
        ({"scale": True}, "scale is True; expected a finite number"),
        ({"reference_ratio": 2}, "reference_ratio is 2; expected a number above 0 and at most 1, or None"),
        ({"max_isolated": 0.0}, "max_isolated is 0.0"),
        ({"samples": 0}, "samples is 0; expected a whole number of at least 1, or None"),
        ({"samples": 10.0}, "samples is 10.0"),
        ({"mode": "fast"}, "mode is 'fast'; expected 'exact' or 'compat'"),
        ({"token_scope": "answers"}, "token_scope is 'answers'; expected 'all', 'answer' or 'no_first' (did you mean"),
        ({"combine": "union "}, "combine is 'union '"),
        ({"head": True}, "head is True; expected 'no', 'untied' or 'tied', or None"),
        ({"include": "("}, "include is '('; expected a regular expression"),
        ({"exclude": ["mlp"]}, "exclude is ['mlp']; expected text, or None"),
        ({"expression": "a +"}, "expression is 'a +'"),
        ({"expression": "a + b"}, "expression is 'a + b'"),
        ({"rounding": "up"}, "rounding is 'up'; expected 'nearest' or 'stochastic'"),
        ({"template": "Question:"}, "template is 'Question:'; expected text with {question}"),
        ({"max_length": -1}, "max_length is -1"),
        ({"truncate": "yes"}, "truncate is 'yes'; expected True or False"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number of at least 1"),
        ({"mode": "compat", "aggregate": "rms"}, "aggregate is 'rms'; expected 'sum_of_norms' with mode='compat'"),
    ],
    ids=str,
)
def test_the_option_its_value_and_what_is_expected(options, message) -> None:
    with pytest.raises(ValueError) as caught:
        MathNeuro(**options)
    assert message in str(caught.value)


def test_numbers_of_other_libraries_are_taken_and_kept_as_plain_ones() -> None:
    method = MathNeuro(
        ratio=np.float32(0.5), scale=torch.tensor(0), samples=np.int64(3), truncate=np.True_, expression="a - (b | c)"
    )
    assert (method.ratio, method.scale, method.samples, method.truncate) == (0.5, 0.0, 3, True)
    described = describe_method(method)["options"]
    assert json.loads(json.dumps(described)) == described
