"""The whole experiment: find a skill's entries, edit them and the controls, measure both sides, report.

Texts are split first, so that nothing is measured on what it was found with: a pool for identification, from which
every repeat draws its samples (cached norms: no further forward pass), and items for measuring, of which a development
part chooses ratio and factor and the rest is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from paperhooks import DataError
from paperhooks.errors import did_you_mean
from paperhooks.io import hash_json, model_digest
from paperhooks.models import find_tokenizer, running_model
from paperhooks.reports import RunFolder
from torch import nn

from paperhooks_mathneuro.experiment.choice import choose
from paperhooks_mathneuro.experiment.control_sets import CONTROLS, controls
from paperhooks_mathneuro.experiment.effects import pooled
from paperhooks_mathneuro.experiment.evaluation import evaluate
from paperhooks_mathneuro.experiment.results import ISOLATED, Study
from paperhooks_mathneuro.experiment.stabilities import noise_floor, stability
from paperhooks_mathneuro.selection.curves import threshold_curves
from paperhooks_mathneuro.selection.ratio_sweep import check_options, sweep
from paperhooks_mathneuro.statistics.collector import TokenScope, collect
from paperhooks_mathneuro.statistics.statistics import Statistics
from paperhooks_mathneuro.surgery import check_scale
from paperhooks_mathneuro.texts import TEMPLATE, PlacedRecords, check_template, needs_tokenizer, read_records

__all__ = ["check_study", "split_texts", "study"]


def study(
    model: nn.Module,
    target: Any,
    reference: Any,
    out: str | Path,
    *,
    tokenizer: Any = None,
    names: tuple[str, str] = ("target", "reference"),
    ratios: Sequence[float] = (0.01, 0.05),
    scales: Sequence[float] = (),
    samples: int = 48,
    items: int = 100,
    repeats: int = 1,
    control_names: Sequence[str] = CONTROLS,
    splits: int = 3,
    token_scope: TokenScope = "all",
    template: str = TEMPLATE,
    batch_size: int = 8,
    seed: int = 0,
    report: bool = True,
    progress: bool = True,
    **options: Any,
) -> Study:
    """Run the experiment and leave everything in the folder ``out``; an interrupted run goes on there.

    :param target, reference: records, a file of them or ``hub:NAME:SPLIT``; enough for both uses.
    :param ratios: for each of them the isolated set and the controls are pruned.
    :param scales: factors near 1, searched with all ratios on as many development items and reported on the others.
    :param samples: texts a side for identification; with ``repeats`` above 1 each repeat draws them from twice as many.
    :param items: texts a side that results are reported on.
    :param splits: random splits for stability and noise floor.
    :param options: further options of :func:`paperhooks_mathneuro.sweep`.
    :raises DataError: too few texts, or a folder of another study. :raises ValueError: a ratio or factor that is none.
    """
    model, out = running_model(model), Path(out)
    check_study(ratios, scales, template, control_names)
    records = {name: read_records(each) for name, each in zip(names, (target, reference), strict=True)}
    if tokenizer is None and any(needs_tokenizer(each) for each in records.values()):
        tokenizer = find_tokenizer(model)
    parts = {
        name: split_texts(name, each, samples=samples, items=items, repeats=repeats, scales=scales, seed=seed)
        for name, each in records.items()
    }
    with RunFolder(out) as run:
        asked = {"ratios": ratios, "scales": scales, "samples": samples, "repeats": repeats, "controls": control_names}
        asked |= {"splits": splits, "token_scope": token_scope, "template": template, "options": options}
        run.start("mathneuro-study", inputs={**_identity(model, parts), **asked}, seed=seed)
        with run.timed("collect"):
            statistics = {
                name: collect(
                    model, part["pool"], tokenizer=tokenizer, name=name, token_scope=token_scope, template=template,
                    batch_size=batch_size, out=out / name, progress=progress,
                )
                for name, part in parts.items()
            }  # fmt: skip
        found = Study(names, {})
        with run.timed("select"):
            for repeat in range(repeats):
                drawn = [_drawn(side, samples, seed + repeat) for side in statistics.values()]
                for ratio, selection in sweep(model, *drawn, ratios=ratios, **options).items():
                    found.selections[ratio, repeat] = selection.named(ISOLATED)
                    selection.save(out / f"selection-{ratio:g}-{repeat}")
        with run.timed("stability"):
            sides, main = tuple(statistics.values()), max(ratios)
            found.stability = stability(
                model, *sides, ratio=main, splits=splits, seed=seed, progress=progress, **options
            )
            found.noise = noise_floor(model, *sides, ratio=main, splits=splits, seed=seed, progress=progress, **options)
        common = {"tokenizer": tokenizer, "template": template, "batch_size": batch_size, "progress": progress}
        common |= {"seed": seed, "with_controls": False}
        with run.timed("evaluate"):
            _prune(model, found, parts, control_names, out, common)
        if scales:
            with run.timed("scale"):
                _scale(model, found, parts, scales, out, common)
        _record(run, found)
        curves = threshold_curves(model, *statistics.values(), **options)
        run.record(sides=list(names), curves=asdict(curves))
        if report:
            from paperhooks_mathneuro.experiment.study_report import report as write_report

            write_report(out, found, curves=curves)
        run.finish()
        return found


def check_study(
    ratios: Sequence[float], scales: Sequence[float], template: str, control_names: Sequence[str] = CONTROLS
) -> None:
    """Raise ValueError or DataError for options of :func:`study` that cannot be meant."""
    check_options(ratios)
    for scale in scales:
        check_scale(scale)
    check_template(template)
    unknown = [name for name in control_names if name not in CONTROLS]
    if unknown:
        raise DataError(f"there is no control {unknown[0]!r}; {did_you_mean(unknown[0], CONTROLS)}")


def split_texts(
    name: str, records: PlacedRecords, *, samples: int, items: int, repeats: int, scales: Sequence[float], seed: int
) -> dict[str, PlacedRecords]:
    """The texts of one side in parts that share none: "pool" to identify with, "report", and "development".

    :param name: of the side, for messages. The others are those of :func:`study`. :raises DataError: too few texts.
    """
    pool, developed = samples if repeats == 1 else 2 * samples, bool(scales)
    wanted = pool + items * (2 if developed else 1)
    if len(records) < wanted:
        raise DataError(
            f"{name} has {len(records)} texts; {wanted} are needed: {pool} to identify with and {items} to report on"
            + (f", and {items} to choose factors on" if developed else "")
        )
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()[:wanted]
    places = {"pool": order[:pool], "report": order[pool : pool + items], "development": order[pool + items :]}
    return {part: records.take(rows) for part, rows in places.items()}


def _identity(model: nn.Module, parts: Mapping[str, Mapping[str, PlacedRecords]]) -> dict[str, Any]:
    texts = {side: {part: hash_json(each) for part, each in own.items()} for side, own in parts.items()}
    return {"model": model_digest(model), "texts": texts}


def _drawn(side: Statistics, samples: int, seed: int) -> Statistics:
    return side if len(side) == samples else side.draw(samples, seed=seed)


def _prune(
    model: nn.Module, found: Study, parts: Mapping[str, Mapping[str, Any]], control_names: Sequence[str], out: Path,
    common: Mapping[str, Any],
) -> None:  # fmt: skip
    items = {side: part["report"] for side, part in parts.items()}
    for (ratio, repeat), selection in found.selections.items():
        sets = {ISOLATED: selection, **controls(selection, seed=common["seed"] + repeat)}
        sets = {name: each for name, each in sets.items() if name in (ISOLATED, *control_names)}
        file = out / f"effects-{ratio:g}-{repeat}.json"
        earlier = next(iter(found.repeats.values()), None)
        found.repeats[ratio, repeat] = evaluate(model, sets, items, base=earlier, out=file, **common)
    for ratio in dict.fromkeys(ratio for ratio, _ in found.selections):
        found.effects[ratio] = pooled([one for (r, _), one in found.repeats.items() if r == ratio])


def _scale(
    model: nn.Module, found: Study, parts: Mapping[str, Mapping[str, Any]], scales: Sequence[float], out: Path,
    common: Mapping[str, Any],
) -> None:  # fmt: skip
    sets = {f"{ISOLATED} @ {ratio:g}": each for (ratio, repeat), each in found.selections.items() if repeat == 0}
    items = {side: part["development"] for side, part in parts.items()}
    file = out / "scales-development.json"
    found.development = evaluate(model, sets, items, scales=scales, out=file, **common)
    found.chosen = choose(found.development, "improve")
    # Where nothing improved the development items, the mildest edit is reported, so that there is a figure to look at.
    name = found.chosen.selection or next(iter(sets))
    scale = found.chosen.scale if found.chosen.selection else min(scales, key=lambda s: abs(s - 1))
    items = {side: part["report"] for side, part in parts.items()}
    base, file = next(iter(found.repeats.values())), out / "scales-report.json"
    found.reported = evaluate(model, {name: sets[name]}, items, scales=[scale], base=base, out=file, **common)


def _record(run: RunFolder, found: Study) -> None:
    pruned = {}
    for ratio, effects in found.effects.items():
        against = [(ISOLATED, one.selection) for one in effects.edited if one.selection != ISOLATED]
        pruned[f"{ratio:g}"] = {
            "changes": [asdict(each) for each in effects.changes()],
            "contrasts": [asdict(each) for each in effects.contrasts(against)],
            "selectivity": {one.selection: effects.selectivity(one) for one in effects.edited},
            "shares": {one.selection: one.share for one in effects.edited},
        }
    results: dict[str, Any] = {"pruned": pruned, "stability": [asdict(each) for each in found.stability]}
    if found.noise is not None:
        results["noise"] = {**asdict(found.noise), "share": found.noise.share}
    if found.chosen is not None and found.reported is not None and found.development is not None:
        results["scaled"] = {
            "development": [asdict(each) for each in found.development.changes()],
            "chosen": asdict(found.chosen),
            "report": [asdict(each) for each in found.reported.changes()],
        }
    run.record(**results)
