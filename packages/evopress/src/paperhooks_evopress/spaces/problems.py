"""The problem that a target poses: the units of a model, their levels and costs, and who may trade with whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from paperhooks import DataError, Level, ModelView
from paperhooks.hooks import Levels
from torch import nn

from paperhooks_evopress.spaces.ladders import Ladders
from paperhooks_evopress.spaces.space import Space
from paperhooks_evopress.spaces.targets import Target
from paperhooks_evopress.spaces.units import Unit, UnitLevel

__all__ = ["AS_IT_IS", "COSTS", "Exchange", "Fuse", "LevelProblem", "module_names", "problem"]

Exchange = Literal["size", "name", "none"]
Fuse = Literal["no", "vllm"]

#: The kind of cost that a target budgets.
COSTS: Final = {
    "depth": "count",
    "sparsity": "parameters",
    "bits": "codes",
    "bytes": "bytes",
    "parameters": "parameters",
    "flops": "flops",
}
#: Projections that vLLM and SGLang run as one matrix, and which so need one level.
_FUSED_BY_VLLM: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
#: The label of a unit that has its own weights and is in no choice.
AS_IT_IS: Final = ""


def module_names(view: ModelView, target: Target, *, whole_layers: bool = False) -> list[str]:
    """The modules whose levels are asked for: sublayers (or whole layers) for a depth, matrices and experts in the
    decoder's layers for bits and sparsity, all of these for other targets. Adapters of PEFT stay as they are."""
    inside = {id(module) for layer in view.layers for module in layer.modules()} - _adapters(view)
    matrices = [n for n, module in view.model.named_modules() if id(module) in inside and _holds_matrices(module)]
    if target.kind in ("sparsity", "bits"):
        return matrices  # the model need not be tried for what can be left out
    parts = [n for n, s in view.sublayers.items() if not s.refusal and (s.kind == "layer") == whole_layers]
    return parts if target.kind == "depth" else [*parts, *matrices]


def _adapters(view: ModelView) -> set[int]:
    """Ids of the modules that are put beside a module of the model, as PEFT does."""
    wrapped = (dict(module.named_children()) for module in view.model.modules())
    beside = (child for each in wrapped if "base_layer" in each for name, child in each.items() if name != "base_layer")
    return {id(module) for child in beside for module in child.modules()}


def _holds_matrices(module: nn.Module) -> bool:
    experts = any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" or experts


class LevelProblem:
    """A space, and the choices of levels that its states mean.

    :param space: units and their budget. :param target: what it stands for. :param kind: of the cost that is budgeted.
    """

    def __init__(self, space: Space, target: Target, kind: str) -> None:
        self.space, self.target, self.kind = space, target, kind

    def choice(self, state: Sequence[int]) -> dict[str, str]:
        """Module name to label, without the modules that stay as they are."""
        return {name: label for name, label in self.space.choice(tuple(state)).items() if label != AS_IT_IS}

    def state(self, choice: Mapping[str, str]) -> tuple[int, ...]:
        """The state that a choice means; modules that it does not name are as they are.

        :raises DataError: a module that is not searched, or a label that is not offered for it or differs from that of
            a module with which it shares its level.
        """
        if odd := sorted(set(choice) - {name for unit in self.space.units for name in unit.modules}):
            raise DataError(f"{odd[0]} has the level {choice[odd[0]]!r}, and is not among what is searched")
        places = []
        for unit in self.space.units:
            wanted = {choice.get(name, AS_IT_IS) for name in unit.modules}
            labels = [each.label for each in unit.choices]
            if len(wanted) > 1 or not wanted <= set(labels):
                names = ", ".join(sorted(repr(label or "as it is") for label in wanted))
                offered = ", ".join(repr(label or "as it is") for label in labels)
                raise DataError(f"{unit.name} is to stand at {names}; offered are {offered}")
            places.append(labels.index(wanted.pop()))
        return tuple(places)


def problem(
    view: ModelView,
    levels: Levels,
    target: Target,
    *,
    exchange: Exchange = "size",
    fuse: Fuse = "no",
    max_level: int | None = None,
    max_deviation: int | None = None,
) -> LevelProblem:
    """What is searched for a target.

    :param exchange: who may trade a level: units of equal size, of equal names, or any with any. Sparsity and mixed
        kinds trade among all.
    :param fuse: "vllm" gives matrices that are run as one (q, k, v; gate, up) the same level.
    :raises DataError: no levels, or a target outside of what they allow; says the range.
    """
    offered = {name: own for name, own in levels.items() if own}
    if not offered:
        raise DataError(f"nobody offers levels for {target}{_why_nothing(view, levels, target)}")
    if target.kind == "depth":
        units, budgets = _depth(view, offered, target)
        return LevelProblem(_space(target, units, None, budgets, max_level, max_deviation), target, COSTS["depth"])
    kind = COSTS[target.kind]
    keep = target.kind not in ("sparsity", "bits")
    rule = exchange if target.kind == "bits" else "none"
    units = [_unit(levels, group, kind, rule, keep) for group in _groups(offered, fuse)]
    budget = _budget(view, levels, units, target, kind)
    _check_reach(view, levels, units, target, budget, keep)
    start = _even(levels, units, target.value) if target.kind == "sparsity" else None
    return LevelProblem(_space(target, units, budget, {}, max_level, max_deviation, start), target, kind)


def _even(levels: Levels, units: Sequence[Unit], sparsity: float) -> tuple[int, ...]:
    """The level of each unit that is nearest to the target: the uniform choice with which a search begins."""
    places = []
    for unit in units:
        kept = (1 - sparsity) * sum(levels.own_cost(member)["parameters"] for member in unit.modules)
        places.append(min(range(len(unit.choices)), key=lambda place: abs(unit.choices[place].cost - kept)))
    return tuple(places)


def _space(
    target: Target,
    units: Sequence[Unit],
    budget: float | None,
    budgets: Mapping[str, float],
    max_level: int | None,
    max_deviation: int | None,
    start: tuple[int, ...] | None = None,
) -> Space:
    try:
        return Space(units, budget, budgets, start=start, max_level=max_level, max_deviation=max_deviation)
    except ValueError as error:
        raise DataError(f"{target} cannot be met: {error}") from error


def _groups(offered: Mapping[str, Sequence[Level]], fuse: Fuse) -> list[tuple[str, ...]]:
    """Modules that have one level together."""
    if fuse == "no":
        return [(name,) for name in offered]
    found: dict[str, list[str]] = {}
    for name in offered:
        parent, _, leaf = name.rpartition(".")
        together = next((names for names in _FUSED_BY_VLLM if leaf in names), (leaf,))
        found.setdefault(f"{parent}.{'+'.join(together)}", []).append(name)
    return [tuple(names) for names in found.values()]


def _unit(levels: Levels, members: tuple[str, ...], kind: str, exchange: Exchange, keep: bool) -> Unit:
    """A unit of one module, or of several with the labels that all of them have."""
    by_label = [{each.label: each for each in levels[member]} for member in members]
    common = [label for label in by_label[0] if all(label in own for own in by_label)]
    if not common:
        raise DataError(f"{', '.join(members)} are fused and have no level in common")
    found: list[UnitLevel] = []
    for label in common:
        each = [own[label] for own in by_label]
        if lacking := [level.method for level in each if kind not in level.cost]:
            raise DataError(f"the level {label!r} of {members[0]} by {lacking[0]!r} tells no {kind!r}")
        found.append(UnitLevel(label, sum(level.cost[kind] for level in each), each[0].skip))
    plain = any(level.prepare is None and not level.skip for own in by_label for level in own.values())
    if keep and not plain:
        found.append(UnitLevel(AS_IT_IS, sum(levels.own_cost(member)[kind] for member in members)))
    ordered = sorted(found, key=lambda choice: (choice.skip, -choice.cost))
    cheapest = ordered[-1].cost
    usable = [c for c in ordered if c.skip or c.cost >= cheapest]
    size = sum(levels.own_cost(member)["parameters"] for member in members)
    classes = {"size": f"{size:.0f}", "name": members[0].rpartition(".")[2], "none": "all"}
    return Unit(members[0], classes[exchange], tuple(usable), members)


def _budget(view: ModelView, levels: Levels, units: Sequence[Unit], target: Target, kind: str) -> float:
    """What the units may cost together."""
    members = [member for unit in units for member in unit.modules]
    parameters = sum(levels.own_cost(name)["parameters"] for name in members)
    if target.kind == "sparsity":
        return float(parameters - round(target.value * parameters))
    if target.kind == "bits":
        return target.value / 8 * parameters
    own = sum(levels.own_cost(name)[kind] for name in members)
    if target.kind in ("parameters", "flops"):
        return target.value * own
    return target.value - _outside(view, levels, members)


def _outside(view: ModelView, levels: Levels, members: Sequence[str]) -> float:
    """The bytes of all that has no levels."""
    whole = sum(parameter.numel() * parameter.element_size() for parameter in view.model.parameters())
    return whole - sum(levels.own_cost(name)["bytes"] for name in members)


def _check_reach(
    view: ModelView, levels: Levels, units: Sequence[Unit], target: Target, budget: float, keep: bool
) -> None:  # fmt: skip
    """Raise DataError for a budget that no choice meets; tells what they reach in the target's own number.

    :param keep: whether units may stay as they are, so that no budget is too much.
    """
    ladders, everything = Ladders(units, None, None, None), range(len(units))
    least = ladders.spent([len(unit.choices) - 1 for unit in units], everything)
    most = ladders.spent([0] * len(units), everything)
    too_little = least > budget * (1 + 1e-9)
    if not too_little and (keep or budget <= most * (1 + 1e-9)):
        return
    members = [member for unit in units for member in unit.modules]
    outside = _outside(view, levels, members)
    size = sum(levels.own_cost(name)["parameters"] for name in members)
    own = sum(levels.own_cost(name)[COSTS[target.kind]] for name in members) if keep else size
    told = {
        "sparsity": lambda cost: f"{1 - cost / size:.4g}",
        "bits": lambda cost: f"{8 * cost / size:.4g}",
        "bytes": lambda cost: f"{outside + cost:.0f}",
    }.get(target.kind, lambda cost: f"{cost / own:.4g}")
    low, high = sorted([told(least), told(most)], key=float)
    where = "above" if (target.kind == "sparsity") == too_little else "below"
    parts = f"; {outside:.0f} bytes are in parts without levels (embeddings, norms, head)"
    raise DataError(
        f"{target} cannot be met: it is {where} what the levels that are offered reach, {target.kind} from {low} to "
        f"{high}{parts if target.kind == 'bytes' else ''}"
    )


def _why_nothing(view: ModelView, levels: Levels, target: Target) -> str:
    """What is known of why nothing is offered, for a message."""
    if target.kind == "depth" and not levels:
        refused = [each for each in view.sublayers.values() if each.refusal]
        return f": nothing can be left out of {type(view.model).__name__}" + (
            f"; {refused[0].name}: {refused[0].refusal}" if refused else ""
        )
    for name in levels:
        for each, parameter in view.model.get_submodule(name).named_parameters():
            if not parameter.is_floating_point():
                return (
                    f": {name}.{each} is {parameter.dtype}, and looks quantised already; load the model unquantised, "
                    "or leave out sublayers (depth)"
                )
    return "; name methods that do with levels_from"


def _depth(
    view: ModelView, offered: Mapping[str, Sequence[Level]], target: Target
) -> tuple[list[Unit], dict[str, float]]:  # fmt: skip
    """Sublayers of which exactly k of each kind are left out, so that attentions and MLPs do not trade."""
    units: list[Unit] = []
    budgets: dict[str, float] = {}
    kinds = {name: view.sublayers[name].kind for name in offered if name in view.sublayers}
    for kind in dict.fromkeys(kinds.values()):
        total = sum(each.kind == kind for each in view.sublayers.values())
        names = [n for n, own in kinds.items() if own == kind and any(level.skip for level in offered[n])]
        k = target.count(total)
        if k > len(names):
            raise DataError(
                f"{target} leaves out {k} of {total} modules of the kind {kind!r}, and {len(names)} can be: "
                f"{', '.join(names) or 'none'}"
            )
        for name in names:
            skip = next(level for level in offered[name] if level.skip)
            kept = [level.label for level in offered[name] if not level.skip and level.prepare is None]
            units.append(
                Unit(name, kind, (UnitLevel(kept[0] if kept else AS_IT_IS, 1.0), UnitLevel(skip.label, 0.0, True)))
            )
        budgets[kind] = float(len(names) - k)
    if not units:
        raise DataError(f"nobody offers to leave out a module, which {target} asks for; name a method with levels_from")
    return units, budgets
