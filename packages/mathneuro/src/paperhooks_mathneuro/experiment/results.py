"""What a study found, and how it is stored and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paperhooks import DataError
from paperhooks.reports import RunFolder

from paperhooks_mathneuro.experiment.choice import Choice
from paperhooks_mathneuro.experiment.effects import Effects, pooled
from paperhooks_mathneuro.experiment.stabilities import NoiseFloor, Stability
from paperhooks_mathneuro.selection.curves import Curves
from paperhooks_mathneuro.selection.selections import WeightSelection, load_selection

__all__ = ["ISOLATED", "Study", "load_study"]


#: What the target-minus-reference set is called in a study.
ISOLATED = "isolated"


@dataclass(eq=False)
class Study:
    """What a study found.

    sides
        Names of target and reference.
    selections
        By (ratio, repeat).
    effects
        Pruning of the isolated set and the controls on the report items, by ratio, averaged over repeats item by item.
    repeats
        The same for every repeat alone, by (ratio, repeat).
    development, chosen, reported
        Factors other than 0: measurements on development items, what was chosen, and its effect on the report items;
        None where no factors were asked for.
    """

    sides: tuple[str, str]
    selections: dict[tuple[float, int], WeightSelection]
    effects: dict[float, Effects] = field(default_factory=dict)
    repeats: dict[tuple[float, int], Effects] = field(default_factory=dict)
    stability: list[Stability] = field(default_factory=list)
    noise: NoiseFloor | None = None
    development: Effects | None = None
    chosen: Choice | None = None
    reported: Effects | None = None


def load_study(folder: str | Path) -> tuple[Study, Curves | None]:
    """The study in a folder, from its files. Raises DataError where there is none."""
    folder = Path(folder)
    try:
        result = RunFolder.open(folder, "mathneuro-study").result
        results, texts = result["results"], result["inputs"]["texts"]
        ratios, repeats = result["inputs"]["ratios"], result["inputs"]["repeats"]
        names = list(result["results"].get("sides") or texts)
        found = Study((names[0], names[1]), {})
        found.stability = [Stability(**_tuples(each)) for each in results["stability"]]
        noise = {key: value for key, value in results["noise"].items() if key != "share"}
        found.noise = NoiseFloor(**_tuples(noise))
        curves = Curves(**results["curves"]) if "curves" in results else None
        found.chosen = Choice(**results["scaled"]["chosen"]) if "scaled" in results else None
    except (DataError, KeyError, TypeError) as error:
        raise DataError(f"{folder} holds no finished study: {error!r}; study makes one") from error
    for ratio in ratios:
        for repeat in range(repeats):
            found.selections[ratio, repeat] = load_selection(folder / f"selection-{ratio:g}-{repeat}.safetensors")
            found.repeats[ratio, repeat] = Effects.load(folder / f"effects-{ratio:g}-{repeat}.json")
        found.effects[ratio] = pooled([one for (r, _), one in found.repeats.items() if r == ratio])
    if found.chosen is not None:
        found.development = Effects.load(folder / "scales-development.json")
        found.reported = Effects.load(folder / "scales-report.json")
    return found, curves


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
