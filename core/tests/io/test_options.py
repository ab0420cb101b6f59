"""Checks of options: one voice, plain values, and a check that feeds a method what it cannot mean."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType

import numpy as np
import pytest
import torch
from paperhooks import Paper, PluginError, PluginInfo, Traits
from paperhooks.io import (
    choice,
    flag,
    function_or_choice,
    number,
    number_list,
    optional,
    pattern,
    shown,
    text,
    whole,
    whole_list,
)
from paperhooks.testing import check_options
from paperhooks.testing.wrong_options import wrong_values

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]

# -- values that make sense --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [4, np.int64(4), np.uint8(4), np.array(4), torch.tensor(4), torch.tensor(4).byte()])
def test_whole_numbers_of_any_library_become_ints(value: Any) -> None:
    found = whole("n", value, at_least=4, at_most=4)
    assert (found, type(found)) == (4, int)


@pytest.mark.parametrize(
    "value", [0.5, Fraction(1, 2), np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5).bfloat16()]
)
def test_numbers_of_any_library_become_floats(value: Any) -> None:
    found = number("n", value, low=0.5, high=0.5)
    assert (found, type(found)) == (0.5, float)
    assert number("n", 2) == 2.0


def test_flags_words_lists_and_functions() -> None:
    assert flag("f", np.True_) is True
    assert flag("f", torch.tensor(False)) is False
    assert type(choice("w", np.str_("a"), ("a", "b"))) is str
    assert whole_list("l", (np.int64(1), torch.tensor(2))) == [1, 2]
    assert whole_list("l", torch.arange(3)) == [0, 1, 2]
    assert whole_list("l", [], empty=True) == []
    assert number_list("l", np.array([0.5, 1])) == [0.5, 1.0]
    part = functools.partial(print)
    assert function_or_choice("f", part, ("a",)) is part
    assert function_or_choice("f", "a", ("a",)) == "a"
    assert optional(whole, "n", None, at_least=1) is None
    assert optional(whole, "n", 2, at_least=1) == 2
    assert (text("t", ""), pattern("p", "a|b")) == ("", "a|b")


# -- values that make none ---------------------------------------------------------------------------------------------

NO_NUMBER = [None, object(), True, np.True_, torch.tensor(True), math.nan, math.inf, "1", [1], {}, torch.ones(1), 1j]
NO_NUMBER += [torch.tensor(1, device="meta"), 10**400, b"1"]


def refusals(check: Callable[..., Any], values: Sequence[Any], *args: Any, **limits: Any) -> None:
    for value in values:
        with pytest.raises(ValueError) as caught:
            check("some_option", value, *args, **limits)
        assert str(caught.value).startswith("some_option is ")
        assert "; expected " in str(caught.value)


def test_every_check_refuses_what_is_none_and_names_the_option() -> None:
    refusals(whole, [*NO_NUMBER, 1.0, 1.5, np.float64(1), -1], at_least=0, at_most=9)
    refusals(number, [*NO_NUMBER, -0.1, 1.1], low=0, high=1)
    refusals(number, [0, -1], above=0)
    refusals(flag, [None, 0, 1, "true", "", np.int64(1), torch.tensor(1), [True]])
    refusals(text, [None, 1, b"a", ["a"]])
    refusals(pattern, ["(", None])
    refusals(choice, [None, "c", "", 1, ["a"], np.array(["a"])], ("a", "b"))
    refusals(function_or_choice, [None, "c", 1, []], ("a", "b"))
    refusals(whole_list, [None, 1, "12", b"12", {1: 2}, [], [1.0], [True], [[1]], torch.tensor(1), [-1]], at_least=0)
    refusals(whole_list, [None, 1, "", {}], empty=True)
    refusals(number_list, [0.5, [], [math.nan], ["a"], [2]], low=0, high=1)
    refusals(functools.partial(optional, whole), [0, "a"], at_least=1)


def test_messages_say_what_is_expected() -> None:
    for check, value, limits, words in [
        (whole, "x", {}, "n is 'x'; expected a whole number"),
        (whole, 0, {"at_least": 1}, "n is 0; expected a whole number of at least 1"),
        (whole, 9, {"at_most": 8}, "n is 9; expected a whole number of at most 8"),
        (whole, 9, {"at_least": 1, "at_most": 8}, "n is 9; expected a whole number from 1 to 8"),
        (number, math.nan, {}, "n is nan; expected a finite number"),
        (number, 2, {"above": 0, "high": 1}, "n is 2; expected a number above 0 and at most 1"),
        (number, -1, {"low": 0}, "n is -1; expected a finite number of at least 0"),
        (whole_list, 5, {"at_least": 0}, "n is 5; expected a list of one or more whole numbers of at least 0"),
        (functools.partial(optional, whole), 0, {"at_least": 1}, "expected a whole number of at least 1, or None"),
    ]:
        with pytest.raises(ValueError) as caught:
            check("n", value, **limits)
        assert words in str(caught.value)
    with pytest.raises(ValueError, match=r"expected 'sample' or 'segment' \(did you mean 'sample'\?\)$"):
        choice("scope", "sampel", ("sample", "segment"))


def test_long_and_broken_values_are_shown_shortly() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown(Broken()) == "a Broken"
    assert len(shown(list(range(1000)))) == 100
    assert "\n" not in shown(torch.nn.Sequential(torch.nn.Linear(1, 1)))


# -- declarations ------------------------------------------------------------------------------------------------------


def test_traits_take_indices_of_any_kind() -> None:
    assert Traits(layers=[np.int64(2), 3]).layers == (2, 3)
    assert Traits(layers=range(2)).layers == (0, 1)
    assert Traits(writes=["tokens"], dtypes=["float32"]).writes == frozenset({"tokens"})  # type: ignore[arg-type]
    hash(Traits(layers=[1], devices=["cpu"]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": "some"}, "Traits.layers is 'some'; expected 'all', 'attention', indices or a predicate"),
        ({"layers": 3}, "Traits.layers is 3"),
        ({"layers": []}, "Traits.layers is []"),
        ({"layers": [-1]}, "Traits.layers is [-1]"),
        ({"layers": [1.0]}, "Traits.layers is [1.0]"),
        ({"layers": [True]}, "Traits.layers is [True]"),
        ({"writes": "tokens"}, "Traits.writes is 'tokens'; expected a list of words"),
        ({"writes": {"token"}}, "Traits.writes has unknown entries ['token']"),
        ({"writes": None}, "Traits.writes is None"),
        ({"beams": "yes"}, "Traits.beams is 'yes'; expected True or False"),
        ({"training": 1}, "Traits.training is 1"),
        ({"devices": "cuda"}, "Traits.devices is 'cuda'; expected a list of words"),
        ({"dtypes": (torch.float32,)}, "each of Traits.dtypes is torch.float32; expected text"),
    ],
    ids=str,
)
def test_traits_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        Traits(**options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Paper(arxiv="24", title="x"), "Paper.arxiv is '24'"),
        (lambda: Paper(arxiv="2410.17247", title=None), "Paper.title is None"),
        (lambda: Paper(arxiv="", title="x", year="2024"), "Paper.year is '2024'"),
        (lambda: PluginInfo(name=None, api=1, summary="x"), "PluginInfo.name is None"),
        (lambda: PluginInfo(name="x", api="1", summary="x"), "PluginInfo.api of 'x' is '1'"),
        (lambda: PluginInfo(name="x", api=1, summary="x", methods=["a:B"]), "PluginInfo.methods of 'x' is ['a:B']"),
        (lambda: PluginInfo(name="x", api=1, summary="x", methods={"x": 3}), "PluginInfo.methods of 'x'"),
        (lambda: PluginInfo(name="x", api=1, summary="x", hooks=3), "PluginInfo.hooks of 'x' is 3"),
        (lambda: PluginInfo(name="x", api=1, summary="x", paper="2410.17247"), "PluginInfo.paper of 'x'"),
    ],
)
def test_descriptions_of_the_wrong_type_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)


# -- feeding wrong values ----------------------------------------------------------------------------------------------

Id = NewType("Id", int)


@dataclass
class Typed:
    """One field for every kind of annotation."""

    whole_number: int = 1
    real: float = 1.0
    endless: float = math.inf
    yes: bool = True
    word: str = ""
    chosen: Literal["a", "b"] = "a"
    several: Sequence[int] = ()
    pair: tuple[int, int] = (1, 2)
    table: Mapping[int, float] = field(default_factory=dict)
    function: Callable[[int], int] | None = None
    mixed: int | Literal["auto"] | None = None
    identity: Id = Id(1)
    noted: Annotated[int, "note"] = 1
    place: Path | None = None
    anything: Any = None
    unreadable: Unknown = None


def tried(name: str) -> list[Any]:
    found = next(f for f in dataclasses.fields(Typed) if f.name == name)
    return wrong_values(found, found.default, Typed)


def has(values: list[Any], wanted: Any) -> bool:
    return any(type(v) is type(wanted) and (v == wanted or v is wanted) for v in values)


@pytest.mark.parametrize(
    ("name", "wrong", "meaningful"),
    [
        ("whole_number", [None, True, 1.5, "", [], {}], [2, -1]),
        ("real", [None, True, math.inf, "", []], [2, 1.5, -1]),
        ("endless", [None, True, ""], [math.inf, 1.5]),
        ("yes", [None, 2, -1, 1.5, "", []], [True]),
        ("word", [None, True, 1.5, [], {}], ["", "no such word"]),
        ("chosen", [None, "", "no such word", 2, []], []),
        ("several", [None, 2, 1.5, "", "no such word", {}, [True], [1.5]], [[]]),
        ("pair", [None, 2, "", [], [1.5], {}], []),
        ("table", [None, 2, "", [], [1.5]], [{}]),
        ("function", [True, 2, "", [], {}], [None]),
        ("mixed", [True, 1.5, "", "no such word", []], [None, 2, -1]),
        ("identity", [None, True, 1.5, ""], [2]),
        ("noted", [None, True, 1.5, ""], [2]),
        ("place", [], [None, "", 1.5]),
    ],
)
def test_wrong_values_follow_from_the_annotation(name: str, wrong: list[Any], meaningful: list[Any]) -> None:
    values = tried(name)
    assert [value for value in wrong if not has(values, value)] == []
    assert [value for value in meaningful if has(values, value)] == []
    assert any(repr(value) == "object()" for value in values)


def test_nan_is_no_number() -> None:
    for name in ("whole_number", "real", "endless", "several", "yes"):
        assert any(isinstance(v, float) and math.isnan(v) for v in tried(name))


def test_nothing_is_tried_where_anything_may_be_meant() -> None:
    assert tried("anything") == []
    assert tried("unreadable") == []


@dataclass
class Checked:
    """A method that checks its options in every way but the right one."""

    needed: int
    good: int = 1
    silent: float = 0.5
    unnamed: int = 1
    crashing: int = 1
    kept: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.needed = whole("needed", self.needed)
        self.good = whole("good", self.good)
        if not isinstance(self.unnamed, int) or isinstance(self.unnamed, bool):
            raise ValueError("that is no number")
        if not isinstance(self.crashing, int) or isinstance(self.crashing, bool):
            raise AttributeError("crashing")


def test_a_method_is_told_what_it_takes_and_how_it_refuses() -> None:
    complaints = check_options(lambda: Checked(3))
    assert [words.split(" with ")[0] for words in complaints] == [
        "Checked(silent=...) is accepted",
        "Checked(unnamed=...) raises a ValueError without the option's name",
        "Checked(crashing=...) raises AttributeError",
    ]
    assert complaints[0].endswith("expected a ValueError that names 'silent'")
    assert "None, object(), True, nan, inf" in complaints[0]
    assert "no dataclass instance" in check_options(lambda: 3)[0]


def test_errors_of_paperhooks_count_as_refusals() -> None:
    @dataclass
    class Refusing:
        option: int = 1

        def __post_init__(self) -> None:
            if self.option != 1:
                raise PluginError(f"option is {self.option}")

    assert check_options(Refusing) == [
        "Refusing(option=...) is accepted with True; expected a ValueError that names 'option'"
    ]
