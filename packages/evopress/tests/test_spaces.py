"""What a budget allows: feasible states, mutation and repair, for every kind of target."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from random import Random

import pytest
from paperhooks_evopress.spaces.space import (
    Space,
    Unit,
)
from paperhooks_evopress.spaces.space import (
    UnitLevel as Choice,
)


def depth(n: int = 30, k: int = 6, legal: str = "") -> Space:
    """k of n attentions and k of n MLPs are left out; those that ``legal`` does not list stay."""
    units = []
    for kind in ("attention", "mlp"):
        for i in range(n):
            name = f"layers.{i}.{kind}"
            choices = (Choice("kept", 1), Choice("left out", 0, skip=True))
            units.append(Unit(name, kind, choices[: 2 if not legal or name in legal.split() else 1]))
    return Space(units, None, {"attention": n - k, "mlp": n - k})


def whole_layers(n: int = 12, k: int = 4) -> Space:
    choices = (Choice("kept", 1), Choice("left out", 0, skip=True))
    parts = [(f"layers.{i}.attention", f"layers.{i}.mlp") for i in range(n)]
    return Space([Unit(f"layers.{i}", "layer", choices, parts[i]) for i in range(n)], n - k)


def sparsity(limits: bool = False) -> Space:
    """Levels a million weights apart, as many as each matrix has."""
    units, start = [], []
    for i in range(4):
        for name, size, first, last in [("q", 17, -8, 5), ("k", 4, -2, 1), ("up", 57, -8, 8)]:
            costs = [size * 0.3 - level for level in range(first, last + 1)]
            units.append(Unit(f"layers.{i}.{name}", "", tuple(Choice(f"{c:.2f}", c) for c in costs)))
            start.append(-first)
    budget = sum(unit.choices[place].cost for unit, place in zip(units, start, strict=True))
    return Space(
        units, budget, start=tuple(start), max_level=3 if limits else None, max_deviation=10 if limits else None
    )


SIZES = {"q_proj": 16, "k_proj": 4, "v_proj": 4, "o_proj": 16, "gate_proj": 56, "up_proj": 56, "down_proj": 56}


def bits(rule: str, average: float = 3, widths: tuple[int, ...] = (6, 5, 4, 3, 2), layers: int = 4) -> Space:
    units = []
    for i in range(layers):
        for name, size in SIZES.items():
            classes = {"size": str(size), "name": name, "none": ""}
            choices = tuple(Choice(f"{width} bits", width * size) for width in widths)
            units.append(Unit(f"layers.{i}.{name}", classes[rule], choices))
    return Space(units, average * layers * sum(SIZES.values()))


def fused() -> Space:
    """q, k, v alike and gate, up alike, any with any."""
    groups = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    units = []
    for i in range(4):
        for group in groups:
            choices = tuple(Choice(f"{w} bits", w * sum(SIZES[name] for name in group)) for w in (6, 5, 4, 3, 2))
            units.append(Unit(f"layers.{i}.{group[0]}", "", choices, tuple(f"layers.{i}.{name}" for name in group)))
    return Space(units, 3 * 4 * sum(SIZES.values()))


def mixed(share: float = 0.3, layers: int = 4) -> Space:
    """Sublayers, and in them matrices of bits and sparsities, in bytes; two levels cost the same."""
    units = []
    for i in range(layers):
        for sub, names, own in [("attn", ("q", "o"), 0), ("mlp", ("up", "down"), 7)]:
            choices = (Choice("kept", own), Choice("left out", 0, skip=True))
            units.append(Unit(f"layers.{i}.{sub}", "", choices))
            for name in names:
                size = 1000 if sub == "attn" else 2730
                levels = [("whole", 16), ("8 bits", 8.5), ("half", 8.5), ("4 bits", 4.5), ("3 bits", 3.5)]
                choices = tuple(Choice(label, width * size / 8) for label, width in levels)
                units.append(Unit(f"layers.{i}.{sub}.{name}", "", choices))
    return Space(units, share * layers * 2 * 2 * 3730)


SPACES = {
    "depth": lambda: depth(),
    "depth of the paper": lambda: depth(32, 12),
    "depth where few may go": lambda: depth(6, 2, "layers.1.attention layers.2.attention layers.3.attention "
                                            "layers.2.mlp layers.3.mlp layers.4.mlp layers.5.mlp"),
    "whole layers": whole_layers,
    "sparsity": sparsity,
    "sparsity within limits": lambda: sparsity(limits=True),
    "bits by size": lambda: bits("size"),
    "bits by name, 2.5": lambda: bits("name", 2.5),
    "bits, any": lambda: bits("none"),
    "bits, any, 2.25": lambda: bits("none", 2.25),
    "bits with unequal steps": lambda: bits("size", 4.1, (8, 6, 4, 3, 2)),
    "bits of 4 and 8": lambda: bits("none", 5, (8, 4)),
    "fused": fused,
    "mixed": mixed,
}  # fmt: skip


#: One of each application, which is tried the longest.
APPLICATIONS = {"depth", "whole layers", "sparsity", "bits by size", "bits, any", "mixed"}


@pytest.mark.parametrize("kind", SPACES)
def test_ten_thousand_mutations_keep_the_budget(kind: str) -> None:
    space, random = SPACES[kind](), Random(7)
    state = space.initial(random)
    assert space.feasible(state)
    for step in range(10_000 if kind in APPLICATIONS else 2000):
        child = space.mutate(state, 1 + step % 3, random)
        if child is None:
            assert "limits" in kind  # which a switch may leave
            continue
        assert space.canonical(child) != space.canonical(state)
        assert space.cost(child) <= (space.budget or sum(space.budgets.values())) * (1 + 1e-12)
        if kind in ("bits by size", "bits by name, 2.5"):
            assert sums(space, child) == sums(space, state)  # the average stays the same in every class
        if step % 10 == 0:
            assert space.feasible(child)
            check_costs(space, child)
            check_steps(space, child)
        state = child


def pools(space: Space) -> list[tuple[float, list[int]]]:
    if not space.budgets:
        return [(space.budget, list(range(len(space.units))))]
    return [(own, [i for i, u in enumerate(space.units) if u.exchange == name]) for name, own in space.budgets.items()]


def check_costs(space: Space, state: tuple[int, ...]) -> None:
    """In plain words: within the budget, and less than the smallest step is left."""
    for budget, members in pools(space):
        left = budget * (1 + 1e-12) - plain_cost(space, state, members)
        assert left >= 0
        ladders = [[choice.cost for choice in space.units[i].choices] for i in members]
        steps = {a - b for ladder in ladders for a, b in itertools.pairwise(ladder)}
        if 0 not in steps and all(len(set(map(lambda a, b: a - b, x[:-1], x[1:]))) < 2 for x in ladders):
            assert left < min(steps)


def check_steps(space: Space, state: tuple[int, ...]) -> None:
    """In plain words: no unit can take a dearer level; what comes back would be at its cheapest."""
    for budget, members in pools(space):
        for i in members:
            bottom = list(state)
            if space.units[i].choices[state[i]].skip:
                for j in members:
                    if space.units[j].name.startswith(f"{space.units[i].name}."):
                        bottom[j] = len(space.units[j].choices) - 1
            for place in range(state[i]):
                bottom[i] = place
                dearer = plain_cost(space, tuple(bottom), members)
                assert dearer > budget or dearer == plain_cost(space, state, members) > 0


def plain_cost(space: Space, state: tuple[int, ...], members: list[int]) -> float:
    chosen = {m: unit.choices[state[i]] for i, unit in enumerate(space.units) for m in unit.modules}
    gone = tuple(f"{module}." for module, choice in chosen.items() if choice.skip)
    return sum(
        space.units[i].choices[state[i]].cost for i in members if not space.units[i].modules[0].startswith(gone or "?")
    )


def sums(space: Space, state: tuple[int, ...]) -> dict[str, float]:
    found: Counter[str] = Counter()
    for unit, place in zip(space.units, state, strict=True):
        found[unit.exchange] += place
    return dict(found)


def test_attention_and_mlp_change_equally_often() -> None:
    space, random = depth(), Random(1)
    start = space.initial(random)
    changed = Counter()
    for _ in range(10_000):
        child = space.mutate(start, 1, random)
        (kind,) = {space.units[i].exchange for i in range(60) if child[i] != start[i]}
        changed[kind] += 1
    assert abs(changed["attention"] - 5000) < 4 * 50  # 4 standard deviations


def test_the_first_state_of_a_depth_is_any_with_equal_chances() -> None:
    space, random = depth(5, 2), Random(3)
    counts = Counter(space.initial(random)[:5] for _ in range(5000))
    assert len(counts) == 10
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 27.9  # chi-square, 9 degrees, p = 0.001


def test_first_states_are_even() -> None:
    assert set(bits("size").initial(Random(0))) == {3}  # 3 bits everywhere
    assert set(bits("none", 2.5).initial(Random(0))) <= {2, 3, 4}
    assert set(bits("name", 5, (8, 4)).initial(Random(0))) == {0, 1}
    space = mixed(0.45)
    labels = Counter(space.choice(space.initial(Random(0))).values())
    assert "left out" not in labels  # what harms most comes last
    assert space.initial(Random(0)) != space.initial(Random(1))
    assert sparsity().initial(Random(0)) == sparsity().initial(Random(5))  # given, and within the budget


def test_a_start_is_mended_and_limits_refer_to_it() -> None:
    units = bits("none").units
    start = (0,) * len(units)
    state = Space(units, bits("none").budget, start=start).initial(Random(0))
    assert Space(units, bits("none").budget).feasible(state)
    near = Space(units, bits("none").budget, max_level=1)
    random = Random(2)
    state = first = near.initial(random)
    assert set(first) == {3}
    for _ in range(500):
        state = near.mutate(state, 2, random)
        assert set(state) <= {2, 3, 4}
    few = Space(units, bits("none").budget, max_deviation=4)
    state = few.initial(random)
    for _ in range(300):
        state = few.mutate(state, 3, random) or state
        assert sum(abs(place - 3) for place in state) <= 4
    with pytest.raises(ValueError, match="near the start, which costs 4992"):
        Space(units, bits("none").budget, start=start, max_deviation=3).initial(random)
    with pytest.raises(ValueError, match="out of reach"):
        Space(units, bits("none").budget, start=start, max_level=1)
    with pytest.raises(ValueError, match="max_level=-1"):
        Space(units, bits("none").budget, start=start, max_level=-1)


# -- brute force -------------------------------------------------------------------------------------------------------


def brute(space: Space) -> set[tuple[int, ...]]:
    every = itertools.product(*(range(len(unit.choices)) for unit in space.units))
    return {space.canonical(state) for state in every if space.feasible(state)}


@pytest.mark.parametrize(
    "space",
    [
        depth(4, 2), depth(3, 0), depth(3, 3), whole_layers(6, 2), bits("size", 3.3, (4, 3, 2), 1),
        bits("none", 2.6, (4, 3, 2), 1), mixed(0.25, 1), mixed(0.6, 1), mixed(1.0, 1),
        Space(bits("size", 3, (4, 3, 2), 1).units, 3 * 208, max_level=1, max_deviation=3),
    ],
    ids=["depth", "nothing", "all", "layers", "size", "none", "mixed 0.25", "mixed 0.6", "mixed 1", "limits"],
)  # fmt: skip
def test_all_states_are_found_and_counted(space: Space) -> None:
    found = list(space.states())
    assert set(found) == brute(space)
    assert len(found) == len(set(found)) == space.size(10_000)
    assert len(found) < 2 or space.size(len(found) - 1) is None


@pytest.mark.parametrize("kind", SPACES)
def test_large_spaces_are_not_counted(kind: str) -> None:
    space = SPACES[kind]()
    assert (space.size(1000) is None) == ("few" not in kind and "layers" not in kind)
    if "limits" not in kind:
        assert all(map(space.feasible, itertools.islice(space.states(), 3)))


@pytest.mark.parametrize("space", [depth(3, 1), whole_layers(6, 2), bits("none", 2.6, (4, 3, 2), 1), mixed(0.25, 1)])
def test_mutation_reaches_every_state(space: Space) -> None:
    random = Random(0)
    state = space.initial(random)
    seen = {space.canonical(state)}
    for step in range(3000):
        state = space.mutate(state, 1 + step % 3, random) or state
        seen.add(space.canonical(state))
    assert seen == set(space.states())


# -- what units mean ---------------------------------------------------------------------------------------------------


def test_choices_name_every_module_that_is_left() -> None:
    space = whole_layers(3, 1)
    assert space.choice((0, 1, 0))["layers.1.mlp"] == space.choice((0, 1, 0))["layers.1.attention"] == "left out"
    space = mixed(0.3, 1)
    names = [unit.name for unit in space.units]
    state = tuple(1 if name == "layers.0.mlp" else 0 for name in names)
    assert set(space.choice(state)) == {n for n in names if not n.startswith("layers.0.mlp.")}
    assert space.cost(state) == 4000  # the attention's matrices
    hidden = tuple(1 if name == "layers.0.mlp" else 3 if "mlp." in name else 0 for name in names)
    assert space.canonical(hidden) == state
    assert space.cost(hidden) == space.cost(state)


def test_levels_of_one_cost_are_all_tried() -> None:
    units = [Unit(f"m{i}", "", (Choice("a", 2), Choice("b", 2), Choice("c", 1))) for i in range(2)]
    space, random = Space(units, 4), Random(0)
    state, seen = space.initial(random), set()
    for _ in range(100):
        state = space.mutate(state, 1, random)
        seen.add(state)
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)} == set(space.states())


def test_where_nothing_can_move_there_is_no_child() -> None:
    for space in (depth(4, 0), depth(4, 4), Space([Unit("m", "", (Choice("only", 1),))], 1)):
        state = space.initial(Random(0))
        assert space.size(5) == 1
        assert list(space.states()) == [space.canonical(state)]
        assert space.mutate(state, 1, Random(0)) is None


def test_a_class_without_moves_is_passed_over() -> None:
    units = [*depth(4, 0).units[:4], *depth(4, 0).units[4:]]
    space, random = Space(units, None, {"attention": 4, "mlp": 2}), Random(0)
    state = space.initial(random)
    assert all(space.mutate(state, 1, random)[:4] == (0, 0, 0, 0) for _ in range(50))


def test_less_than_the_smallest_step_is_left_although_its_units_are_full() -> None:
    units = [Unit("small", "", (Choice("a", 2), Choice("b", 1)))]
    units += [Unit(f"large{i}", "", (Choice("a", 4), Choice("b", 2))) for i in range(2)]
    space = Space(units, 7)
    assert space.cost(space.repair((0, 1, 1), Random(0))) == 7


def test_a_budget_above_all_levels_leaves_everything_as_it_is() -> None:
    space = Space(bits("none").units, 1e9)
    assert space.initial(Random(0)) == (0,) * 28
    assert space.size(1) == 1


def test_rounding_of_sums_does_not_matter() -> None:
    units = [Unit(f"m{i}", "", (Choice("a", 0.1), Choice("b", 0.05))) for i in range(10)]
    space = Space(units, 0.3 + 0.3 + 0.1)  # 0.7 in fewer roundings
    assert Counter(space.initial(Random(0))) == {0: 4, 1: 6}


# -- what is refused ---------------------------------------------------------------------------------------------------

TWO = (Choice("a", 2), Choice("b", 1))
OUT = Choice("out", 0, skip=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Space([], 1), "nothing to search"),
        (lambda: Space([Unit("m", "", TWO)], 0.5), "budget 0.5 is out of reach: the levels of 1 unit cost 1 to 2"),
        (lambda: Space([Unit("m", "", TWO)], math.nan), "budget nan is out of reach"),
        (lambda: depth(4, 3, "layers.0.attention layers.1.attention"),
         r"budget 1 of 'attention' is out of reach: .* cost 2 to 4, and 2 units cannot change \(layers.2.attention, "),
        (lambda: Space([Unit("m", "a", TWO)], None), "classes 'a' have no budget"),
        (lambda: Space([Unit("m", "a", TWO)], 2, {"a": 2}), "is for no unit"),
        (lambda: Space([Unit("m", "a", TWO)], 2, {"b": 2}), "budgets of b: the classes are a"),
        (lambda: Space([Unit("m", "", TWO), Unit("n", "", TWO, ("m",))], 3), "m is in two units, m and n"),
        (lambda: Space([Unit("m", "a", (TWO[0], OUT)), Unit("m.n", "b", TWO)], None, {"a": 1, "b": 1}),
         "m.n is inside m"),
        (lambda: Space([Unit("m", "", (TWO[0], OUT)), Unit("u", "", TWO, ("m.n", "k"))], 3),
         "part of the unit u"),
        (lambda: Unit("m", "", ()), "expected one or more"),
        (lambda: Unit("m", "", (TWO[0], TWO[0])), "labels of their own"),
        (lambda: Unit("m", "", TWO[::-1]), "'a' of m costs more than 'b' before it"),
        (lambda: Unit("m", "", (Choice("a", math.nan),)), "costs nan"),
        (lambda: Unit("m", "", (Choice("a", 0, True), Choice("b", 0))), "last of its choices"),
        (lambda: Space([Unit("m", "", TWO)], 2).cost((0, 0)), "a state of 2 places: there are 1 unit"),
        (lambda: Space([Unit("m", "", TWO)], 2).choice((2,)), "place 2 of m: it has 2 choices"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
