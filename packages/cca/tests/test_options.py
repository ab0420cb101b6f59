"""Options: what cannot be meant is refused when the method is made, what makes sense works."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from paperhooks import attach
from paperhooks.errors import DataError
from paperhooks.models import GridPart, ImageSpan
from paperhooks.plugins import describe_method
from paperhooks.testing import check_options, tiny_vlm, vlm_inputs
from paperhooks_cca import CCA, mark, read_mark, ring_table
from paperhooks_cca.schemes import levels, order_table

pytestmark = pytest.mark.filterwarnings("ignore:cca. this model was not trained with CCA:UserWarning")
ONE = ((3, 16, 5),)


def test_every_option_refuses_what_cannot_be_meant():
    assert check_options(CCA) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 16}, "grid is 16; expected (H, W), two whole numbers of at least 1, or a function, or None"),
        ({"grid": "24"}, "grid is '24'"),
        ({"grid": (4, 4.0)}, "grid is (4, 4.0)"),
        ({"grid": (4, 4, 4)}, "grid is (4, 4, 4)"),
        ({"grid": (True, 4)}, "grid is (True, 4)"),
        ({"grid": (0, 4)}, "grid is (0, 4)"),
        ({"scheme": "concentrik"}, "scheme is 'concentrik'; expected 'concentric', "),
        ({"scheme": 3}, "scheme is 3"),
        ({"scheme": None}, "scheme is None"),
        ({"tiles": 1}, "tiles is 1; expected True or False"),
        ({"apply_mask": "no"}, "apply_mask is 'no'"),
    ],
    ids=str,
)
def test_the_option_its_value_and_what_is_expected(options, message):
    with pytest.raises(ValueError) as caught:
        CCA(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize("grid", [[4, 4], (np.int64(4), 4), torch.Size((4, 4)), torch.tensor([4, 4])], ids=str)
def test_grids_of_other_libraries_are_taken(grid):
    method = CCA(grid=grid, tiles=np.False_, scheme=np.str_("raster"))
    assert method.grid == (4, 4)
    described = describe_method(method)["options"]
    assert json.loads(json.dumps(described)) == described
    assert method.settings["grid"] == [4, 4]


@dataclass
class Shifted:
    """A callable object without a name, which compares by value and so cannot be hashed."""

    calls: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, height, width):
        self.calls.append((height, width))
        return ring_table(height, width)


@torch.no_grad()
def test_anything_that_can_be_called_is_a_scheme():
    model, wanted = tiny_vlm("llava", layers=2), None
    for scheme in ("concentric", ring_table, functools.partial(ring_table), Shifted(), lambda h, w: ring_table(h, w)):
        with attach(model, CCA(scheme=scheme)):
            found = model(**vlm_inputs(model, ONE)).logits
        wanted = found if wanted is None else wanted
        assert torch.equal(found, wanted)


def test_a_table_is_made_once_where_the_scheme_can_be_hashed():
    made = []

    def counting(height, width):
        made.append((height, width))
        return ring_table(height, width)

    assert levels(counting, 5, 5) == levels(counting, 5, 5) == 3
    assert made == [(5, 5)]
    own = Shifted()
    assert (levels(own, 5, 5), own.calls) == (3, [(5, 5)])
    with pytest.raises(ValueError, match=r"scheme '.*' returned list; expected int64 \[2, 2\]"):
        order_table(lambda height, width: [[0, 0], [0, 0]], 2, 2)


# -- functions that say where images are -------------------------------------------------------------------------------


def span(row, start, side):
    return ImageSpan(row, start, start + side * side, (GridPart(start, side, side, side),))


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        (None, "returned None; expected a list of paperhooks.models.ImageSpan"),
        ([(0, 3, 19)], r"returned \[\(0, 3, 19\)\]"),
        ([span(1, 3, 4)], r"puts 4 x 4 image tokens into columns 3 to 19 of row 1; this forward has 1 rows of 24"),
        ([span(-1, 3, 4)], "of row -1"),
        ([span(0, 12, 4)], "columns 12 to 28 of row 0"),
        ([span(0, -2, 4)], "columns -2 to 14 of row 0"),
        ([span(0, 3, 3), span(0, 8, 3)], "columns 8 to 17 of row 0.*images do not overlap"),
    ],
    ids=["nothing", "tuples", "row", "negative row", "beyond", "before", "overlap"],
)
@torch.no_grad()
def test_a_grid_function_that_gives_something_else_is_refused(spans, words):
    model = tiny_vlm("llava", layers=2)
    with attach(model, CCA(grid=lambda view, call: spans)), pytest.raises(DataError, match=words):
        model(**vlm_inputs(model, ONE))


def test_document_numbers_of_another_length_are_refused():
    model = tiny_vlm("llava", layers=2)
    inputs = vlm_inputs(model, ONE)
    del inputs["attention_mask"]
    with attach(model, CCA()), torch.no_grad(), pytest.raises(DataError, match=r"document_ids is \[1, 5\].*\[1, 24\]"):
        model(**inputs, document_ids=torch.zeros(1, 5, dtype=torch.int64))


# -- the mark in the config --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*none of its hooks ever ran:UserWarning")
def test_undoing_a_mark_leaves_what_others_have_written():
    model = tiny_vlm("llava", layers=2)
    with attach(model, CCA()):
        model.config.paperhooks = {**model.config.paperhooks, "other": {"a": 1}}
    assert model.config.paperhooks == {"other": {"a": 1}}
    with attach(model, CCA(scheme="raster")) as session:
        mark(model, session.methods["cca"].settings)
    assert read_mark(model)["scheme"] == "raster", "a mark that was set to stay stays"
    with attach(model, CCA(scheme="raster")):
        model.config.paperhooks = {"other": {"a": 1}}
    assert model.config.paperhooks == {"other": {"a": 1}}, "a mark that others have taken out stays out"
    del model.config.paperhooks
    with attach(model, CCA()):
        pass
    assert not hasattr(model.config, "paperhooks")
    model.config.paperhooks = before = {"cca": {"scheme": "raster"}}
    with pytest.warns(UserWarning, match="is attached with"), attach(model, CCA()):
        assert read_mark(model)["scheme"] == "concentric"
    assert model.config.paperhooks is before
    assert before == {"cca": {"scheme": "raster"}}
