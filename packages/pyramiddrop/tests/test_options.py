"""Options: what cannot be meant is refused when the method is made, what makes sense works."""

from __future__ import annotations

import functools
import json
from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from paperhooks import attach
from paperhooks.plugins import describe_method
from paperhooks.testing import check_options, tiny_vlm, vlm_inputs
from paperhooks_pyramiddrop import PaperPyramidDrop, PyramidDrop, RandomDrop, Ranking, Schedule, policies

METHODS = [PyramidDrop, PaperPyramidDrop, RandomDrop]


@pytest.mark.parametrize("method", METHODS)
def test_every_option_refuses_what_cannot_be_meant(method):
    assert check_options(method) == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 0.5}, "stages is 0.5; expected a whole number of at least 2, or {layer: ratio}"),
        ({"stages": True}, "stages is True; expected a whole number"),
        ({"stages": [1, 2]}, "stages is [1, 2]; expected a whole number"),
        ({"stages": 1}, "stages is 1; expected a whole number of at least 2"),
        ({"stages": {}}, "stages is {}; expected at least one drop layer"),
        ({"stages": {2: float("nan")}}, "a keep ratio of stages is nan; expected a number from 0 to 1"),
        ({"stages": {2: None}}, "a keep ratio of stages is None"),
        ({"stages": {"2": 0.5}}, "a drop layer of stages is '2'"),
        ({"ratio": float("nan")}, "ratio is nan; expected a number from 0 to 1"),
        ({"ratio": "0.5"}, "ratio is '0.5'"),
        ({"stages": {2: 0.5}, "ratio": 7}, "ratio is 7"),
        ({"layers": 8}, "layers is 8; expected a list of one or more whole numbers of at least 1, or None"),
        ({"layers": []}, "layers is []"),
        ({"layers": [2.0]}, "layers is [2.0]"),
        ({"layers": [4, 2]}, "layers is [4, 2]: drop layers must increase strictly"),
        (
            {"layers": [2, 4], "ratios": [0.1, 0.5]},
            "layers is [2, 4], ratios is [0.1, 0.5]: keep ratios are cumulative",
        ),
        ({"layers": [2], "ratios": 0.5}, "ratios is 0.5; expected a list of one or more finite numbers from 0 to 1"),
        ({"layers": [2], "ratios": [float("inf")]}, "ratios is [inf]"),
        ({"min_visual_tokens": 1.5}, "min_visual_tokens is 1.5; expected a whole number of at least 0"),
        ({"min_visual_tokens": True}, "min_visual_tokens is True"),
        (
            {"visual_token_ids": []},
            "visual_token_ids is []; expected a list of one or more whole numbers of at least 0",
        ),
        ({"visual_token_ids": 95}, "visual_token_ids is 95"),
        ({"visual_token_ids": "95"}, "visual_token_ids is '95'"),
        ({"visual_token_ids": [-1]}, "visual_token_ids is [-1]"),
        ({"protect_queries": 1}, "protect_queries is 1; expected True or False"),
        ({"restore_outputs": None}, "restore_outputs is None"),
        ({"seed": 0.5}, "seed is 0.5; expected a whole number"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"record": ()}, "record is (); expected a list"),
        ({"rank": "last"}, "rank is 'last'; expected 'last_token'"),
        ({"rank": 3}, "rank is 3"),
        ({"query": None}, "query is None; expected 'auto', 'last' or a function"),
    ],
    ids=str,
)
def test_the_option_its_value_and_what_is_expected(method, options, message):
    with pytest.raises(ValueError) as caught:
        method(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"stages": np.int64(4), "ratio": np.float32(0.5)},
        {"stages": {np.int64(4): 0.5}},
        {"stages": {torch.tensor(4): torch.tensor(0.5)}},
        {"stages": {np.int32(2): np.float64(0.5), 4: 0}},
        {"layers": np.array([2, 4]), "ratios": torch.tensor([0.5, 0.25])},
        {"layers": range(2, 5)},
        {"min_visual_tokens": np.int64(3), "seed": np.uint32(7), "protect_queries": np.True_},
        {"visual_token_ids": torch.tensor([95])},
        {"visual_token_ids": {95}},
        {"seed": -1, "query": np.str_("last"), "rank": np.str_("random")},
    ],
    ids=str,
)
def test_numbers_of_other_libraries_are_taken_and_kept_as_plain_ones(options):
    described = describe_method(PyramidDrop(**options))["options"]
    assert json.loads(json.dumps(described)) == described
    assert all("tensor" not in str(value) for value in described.values())


def test_normalised_options_say_what_was_meant():
    method = PyramidDrop(stages={np.int64(4): np.float64(0.5)}, seed=np.int64(3))
    assert (method.stages, type(next(iter(method.stages))), type(method.seed)) == ({4: 0.5}, int, int)
    assert method.schedule_for(6) == Schedule((4,), (0.5,))
    assert Schedule(np.array([2, 4]), [np.float32(0.5), 0]) == Schedule((2, 4), (0.5, 0.0))
    with pytest.raises(ValueError, match="and each once"):
        PyramidDrop(stages={torch.tensor(4): 0.5, torch.tensor(4): 0.25})


@dataclass
class Scorer:
    """A callable object without a name."""

    factor: float

    def __call__(self, given: Ranking):
        return policies.last_token(given) * self.factor


def scaled(given: Ranking, factor: float):
    return policies.last_token(given) * factor


@pytest.mark.parametrize(
    "rank",
    [functools.partial(scaled, factor=2.0), Scorer(2.0), Scorer(2.0).__call__, policies.last_token],
    ids=["partial", "object", "method", "function"],
)
@torch.no_grad()
def test_anything_that_can_be_called_ranks(rank):
    model, plain, drops = tiny_vlm(), [], []
    for record, policy in ((plain, "last_token"), (drops, rank)):
        with attach(model, PyramidDrop(stages={2: 0.5}, rank=policy, record=record)):
            model(**vlm_inputs(model, ((3, 12, 5),)))
    assert torch.equal(plain[0].kept, drops[0].kept)


@torch.no_grad()
def test_anything_that_can_be_called_says_which_rows_rank():
    class Second:
        def __call__(self, call):
            return torch.arange(call.query_length).expand(call.input_ids.shape) == 1

    def nth(call, n):
        return torch.arange(call.query_length).expand(call.input_ids.shape) == n

    for query in (Second(), functools.partial(nth, n=1)):
        drops = deque()
        model = tiny_vlm()
        with attach(model, PyramidDrop(stages={2: 0.5}, query=query, record=drops)):
            model(**vlm_inputs(model, ((3, 12, 5),)))
        assert len(drops) == 1
