"""A search as lines of text: what it was, the levels by layer, the course of its fitness."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from paperhooks_evopress.history import Generation
from paperhooks_evopress.report.search_runs import SearchRun
from paperhooks_evopress.spaces.targets import Target, amount

__all__ = ["described", "layer_and_kind", "level_strip"]

_LAYER: Final = re.compile(r"^(.*?\.)(\d+)(?:\.(.*))?$")
#: From little to much.
_SHADES: Final = "▁▂▃▄▅▆▇█"
_SYMBOLS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NOTHING: Final = "·"
#: Generations in the table and columns of the line; of more, some are shown.
_ROWS: Final = 12
_COLUMNS: Final = 72


def described(run: SearchRun) -> list[str]:
    """All that is shown of a search; of one that is under way, what there is."""
    lines = [*_facts(run), ""]
    if run.finished:
        lines += [*level_strip(run.chosen), ""]
    return [*lines, *_course(run.history)]


def _facts(run: SearchRun) -> list[str]:
    inputs = run.result["inputs"]
    options = {name: value for name, value in run.options.items() if value is not None}
    lines = [
        f"search for {Target.of(inputs['target'])}, {run.result['status']}, seed {run.result['seed']}",
        f"levels: {run.methods}",
        "options: " + ", ".join(f"{name} {value}" for name, value in options.items()),
    ]
    if not run.finished:
        return lines
    told = run.told
    lines.append(f"cost: {told['cost']:,.0f}, of at most {amount(told['budget'], told['cost_kind'])}")
    lines.append(f"candidates read {told['evaluations']:,} tokens; all in all it took {run.seconds:,.0f} s")
    if told.get("final") is not None and told.get("first") is not None:
        lines.append(
            f"{told['fitness']} on all calibration text: {told['final']:.4g}, of the first choice {told['first']:.4g}"
        )
    return lines


def layer_and_kind(name: str) -> tuple[int, str]:
    """The layer that a module is in, and its name there; one outside of the layers counts as of the first.

    >>> layer_and_kind("model.layers.3.mlp.up_proj")
    (3, 'mlp.up_proj')
    """
    match = _LAYER.match(name)
    return (int(match[2]), match[3] or "layer") if match else (0, name)


def level_strip(chosen: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line a kind of module, a character a layer; the legend tells what each character stands for.

    :param chosen: module name to the plain data of its level.

    >>> level_strip({"layers.0.mlp": {"label": "kept"}, "layers.1.mlp": {"label": "dropped"}})
    ['     0 1', 'mlp  1 0', '0 dropped (1), 1 kept (1)']
    """
    cells: dict[tuple[str, int], str] = {}
    for name, level in chosen.items():
        layer, kind = layer_and_kind(name)
        cells[kind, layer] = str(level["label"])
    labels = sorted(set(cells.values()), key=_natural)
    symbols = {label: _SYMBOLS[place % len(_SYMBOLS)] for place, label in enumerate(labels)}
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    layers = range(max((layer for _, layer in cells), default=-1) + 1)
    width = max([len(kind) for kind in kinds], default=0)
    lines = [" " * width + "  " + " ".join(str(layer % 10) for layer in layers)]
    for kind in kinds:
        row = " ".join(symbols[cells[kind, n]] if (kind, n) in cells else _NOTHING for n in layers)
        lines.append(f"{kind.ljust(width)}  {row}")
    counts = [f"{symbols[label]} {label} ({list(cells.values()).count(label)})" for label in labels]
    has_gaps = any((kind, n) not in cells for kind in kinds for n in layers)
    return [*lines, ", ".join([*counts, *([f"{_NOTHING} as it is, or part of what is left out"] if has_gaps else [])])]


def _natural(label: str) -> tuple[list[tuple[int, float, str]], int]:
    """Labels in the order of the numbers in them; those that are steps from another one, as "0.5 -1", about it."""
    base, step = re.fullmatch(r"(.*?)(?: ([+-]\d+))?", label, re.DOTALL).groups()  # type: ignore[union-attr]
    parts = re.split(r"(\d+(?:\.\d+)?)", base)
    return [(0, float(part), "") if i % 2 else (1, 0.0, part) for i, part in enumerate(parts)], int(step or 0)


def _course(history: Sequence[Generation]) -> list[str]:
    """Fitness by generation, and when the best choice came."""
    if not history:
        return ["no generation is done yet"]
    scored = [each for each in history if each.fitness is not None]
    lines = []
    if scored:
        lines += ["fitness by generation, on a minibatch of each", _line([float(each.fitness or 0) for each in scored])]
        step = max(1, -(-len(scored) // _ROWS))
        shown = [*scored[:-1][::step], scored[-1]]
        lines += [f"{each.number:>6}  {each.fitness:.4g}" for each in shown]
    if history[-1].kind == "exhaustive":
        return [*lines, history[-1].note]
    best = history[-1].best
    came = history[-1].number
    for each in reversed(history):
        if each.best != best:
            break
        came = each.number
    told = "it was there from the start" if came == 0 else f"it came in generation {came}"
    wins = sum(a.best != b.best for a, b in pairwise(history))
    lines.append(
        f"the choice of the last generation: {told}; children replaced their parent in {wins} of {len(history) - 1} "
        "generations"
    )
    return lines


def _line(values: Sequence[float]) -> str:
    """A character a value, or a mean of some."""
    step = max(1, -(-len(values) // _COLUMNS))
    means = [sum(part) / len(part) for part in (values[i : i + step] for i in range(0, len(values), step))]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(_SHADES[round((value - low) / span * (len(_SHADES) - 1))] for value in means)
