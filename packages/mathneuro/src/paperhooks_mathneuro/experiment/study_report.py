"""Reports: what was found, where it lies, what its edits do, and how much of it is noise; as Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from paperhooks.reports import Block, Figure, Heading, Paragraph, RunFolder, Table, smallest_p

from paperhooks_mathneuro.experiment.choice import Choice
from paperhooks_mathneuro.experiment.effects import Effects, Measurement
from paperhooks_mathneuro.experiment.figures import (
    dissociation_figure,
    share_figure,
    stability_figure,
    threshold_figure,
)
from paperhooks_mathneuro.experiment.results import Study, load_study
from paperhooks_mathneuro.experiment.stabilities import NoiseFloor, Stability
from paperhooks_mathneuro.selection.curves import Curves
from paperhooks_mathneuro.selection.overlaps import shares
from paperhooks_mathneuro.selection.selections import WeightSelection

__all__ = ["report", "report_blocks"]


def report(
    out: str | Path,
    found: Study | None = None,
    *,
    selections: Mapping[str, WeightSelection] | None = None,
    effects: Mapping[str, Effects] | None = None,
    stability: Sequence[Stability] = (),
    noise: NoiseFloor | None = None,
    curves: Curves | None = None,
    title: str = "",
) -> Path:
    """Write ``report.html``, ``report.md`` and the figures of what is given into the folder ``out``.

    Without anything given, ``out`` must hold a study, whose report is written anew from its files.

    :param selections, effects: by a name that becomes a heading, such as a ratio.
    :return: the path of report.html. :raises DataError: nothing to report.
    """
    if found is None and not (selections or effects or stability or noise or curves):
        found, curves = load_study(out)
    if (Path(out) / "result.json").exists():
        run = RunFolder.open(out)
    else:
        run = RunFolder(out)
        run.start("mathneuro-report", inputs={})
    if found is not None:
        title = title or f"MathNeuro: {found.sides[0]} and not {found.sides[1]}"
    else:
        found = Study(("target", "reference"), {}, {}, {}, list(stability), noise)
    blocks = report_blocks(run, found, curves, selections or {}, effects or {})
    try:
        return run.report(title or "MathNeuro", blocks)
    finally:
        run.release()


def report_blocks(
    run: RunFolder,
    found: Study,
    curves: Curves | None = None,
    selections: Mapping[str, WeightSelection] | None = None,
    effects: Mapping[str, Effects] | None = None,
) -> list[Block]:
    """The blocks of a report, for those who put it into a larger one; figures go into the run folder."""
    chosen = {f"ratio {ratio:g}": one for (ratio, repeat), one in found.selections.items() if repeat == 0}
    measured = {f"ratio {ratio:g}": one for ratio, one in found.effects.items()}
    blocks: list[Block] = []
    for name, each in {**measured, **(effects or {})}.items():
        blocks += _effect_blocks(run, name, each)
    if found.development is not None and found.chosen is not None and found.reported is not None:
        blocks += _scale_blocks(run, found.development, found.chosen, found.reported)
    for name, selection in {**chosen, **(selections or {})}.items():
        blocks += _selection_blocks(run, name, selection)
    if found.stability or found.noise is not None:
        blocks += _stability_blocks(run, found.stability, found.noise)
    if curves is not None:
        blocks += _curve_blocks(run, curves)
    return blocks


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _effect_blocks(run: RunFolder, name: str, effects: Effects) -> list[Block]:
    target, *others = effects.sides
    repeats = effects.about.get("repeats", 1)
    averaged = f", averaged over {repeats} draws of identification texts" if repeats > 1 else ""
    blocks: list[Block] = [
        Heading(f"What the edits do: {name}"),
        Paragraph(
            f"Change of the mean negative log-likelihood a token, in nats, on {len(effects.base.nll[target])} items of "
            f"{target}"
            + "".join(f" and {len(effects.base.nll[side])} of {side}" for side in others)
            + f"{averaged}. Positive is worse. 95 % intervals: paired bootstrap over items."
        ),
    ]
    rows = []
    for one in effects.edited:
        cells = [_interval(c.delta, c.low, c.high) for c in (effects.change(one, side) for side in effects.sides)]
        rows.append((one.selection, f"{one.scale:g}", f"{one.share:.2%}", *cells, _interval(*effects.selectivity(one))))
    header = ("set", "factor", "share edited", *effects.sides, f"{target} beyond the rest")
    before = ", ".join(f"{side} {sum(v) / len(v):.3f}" for side, v in effects.base.nll.items())
    blocks.append(Table(header, rows, f"Before the edits: {before}."))
    if others:
        figure = f"dissociation-{_slug(name)}"
        run.figure(figure, dissociation_figure(effects, title="Each set's edits"))
        alt = "; ".join(_in_words(effects, one) for one in effects.edited)
        blocks.append(Figure(figure, alt=alt, caption="Above the dashed line an edit hurts the target more."))
    blocks += _accuracy_blocks(effects)
    return blocks + _contrast_blocks(effects)


def _in_words(effects: Effects, one: Measurement) -> str:
    means = ", ".join(f"{float(effects.deltas(one, side).mean()):+.2f} {side}" for side in effects.sides)
    return f"{one.selection} at {one.scale:g}: {means}"


def _accuracy_blocks(effects: Effects) -> list[Block]:
    found = [change for change in effects.changes(resamples=1) if change.accuracy_before is not None]
    rows = [(c.selection, f"{c.scale:g}", c.side, c.accuracy_before, c.accuracy_after, c.p_accuracy) for c in found]
    caption = "Share answered rightly before and after; p: exact McNemar test, not corrected."
    return [Table(("set", "factor", "side", "before", "after", "p"), rows, caption)] if rows else []


def _contrast_blocks(effects: Effects) -> list[Block]:
    names = list(dict.fromkeys(one.selection for one in effects.edited))
    if len(names) < 2:
        return []
    contrasts = effects.contrasts([(names[0], other) for other in names[1:]])
    rows = [
        (c.against, f"{c.scale:g}", c.side, _interval(c.difference, c.low, c.high), f"{c.p:.2g}", f"{c.p_holm:.2g}")
        for c in contrasts
    ]
    caption = (
        f"{names[0]} minus the control, item by item. {_test([c.n for c in contrasts])} Corrected after Holm over "
        f"these {len(rows)} tests."
    )
    return [Table(("control", "factor", "side", "difference", "p", "p (Holm)"), rows, caption)]


def _test(ns: Sequence[int]) -> str:
    return f"p: sign-flip test, with all flips up to 20 items; it cannot fall below {max(map(smallest_p, ns)):.2g}."


def _scale_blocks(run: RunFolder, development: Effects, chosen: Choice, reported: Effects) -> list[Block]:
    target, *others = development.sides
    run.figure("scales", dissociation_figure(development, title="Factors, on development items"))
    if chosen.selection:
        what = f"Chosen among {chosen.candidates} edits: {chosen.selection}, factor {chosen.scale:g}."
    else:
        what = (
            f"None of {chosen.candidates} edits lowered the {target} NLL on the development items without raising "
            "another side's by more than 0.01 nats; the mildest one is shown below all the same."
        )
    changes = reported.changes()
    rows = [
        (c.selection, f"{c.scale:g}", c.side, c.n, _interval(c.delta, c.low, c.high), f"{c.p:.2g}") for c in changes
    ]
    caption = f"On items that took no part in the choice. {_test([c.n for c in changes])}"
    return [
        Heading("Factors near one"),
        Paragraph(f"Factors were searched on {len(development.base.nll[target])} development items a side. {what}"),
        Figure("scales", alt=f"{len(development.edited)} factors: change of {target} against {', '.join(others)}"),
        Table(("set", "factor", "side", "n", "change of the NLL", "p"), rows, caption),
    ]


def _selection_blocks(run: RunFolder, name: str, selection: WeightSelection) -> list[Block]:
    counts = selection.about.get("counts") or {}
    if not counts:
        return []
    found, figure = shares(selection.matrices, counts), f"share-{_slug(name)}"
    run.figure(figure, share_figure(found))
    kinds = ", ".join(f"{kind} {share:.2%}" for kind, share in found.by_kind.items())
    facts = [
        f"{sum(counts.values())} of {sum(m.numel for m in selection.matrices)} entries ({found.total:.2%}) in "
        f"{len(selection.matrices)} matrices."
    ]
    uncovered = selection.about.get("uncovered") or []
    if uncovered:
        facts.append(f"Not scored: {', '.join(f'{one[0]} ({one[2]})' for one in uncovered[:5])}.")
    unreached = {side: names for side, names in (selection.about.get("unreached") or {}).items() if names}
    if unreached:
        facts.append("Not reached: " + ", ".join(f"{len(v)} matrices by {side}" for side, v in unreached.items()) + ".")
    return [
        Heading(f"Where the selected entries lie: {name}"),
        Paragraph(" ".join(facts)),
        Figure(figure, alt=f"share by kind: {kinds}", caption="Dashed: the share over all matrices."),
    ]


def _stability_blocks(run: RunFolder, found: Sequence[Stability], noise: NoiseFloor | None) -> list[Block]:
    blocks: list[Block] = [Heading("Signal and noise")]
    rows = [
        (one.n, f"{sum(one.found_again) / len(one.found_again):.3f}", f"{sum(one.jaccard) / len(one.jaccard):.3f}")
        for one in found
    ]
    if found:
        run.figure("stability", stability_figure(found, noise))
        alt = "; ".join(f"{n} samples: {again} found again" for n, again, _ in rows)
        blocks.append(Figure("stability", alt=alt))
        caption = (
            f"Sets at ratio {found[0].ratio:g} from two disjoint halves, means over {len(found[0].jaccard)} splits."
        )
        blocks.append(Table(("samples a side", "found again", "Jaccard"), rows, caption))
    if noise is not None:
        share = "" if math.isnan(noise.share) else f" That is {noise.share:.0%} of what the contrast selects."
        blocks.append(
            Paragraph(
                f"Noise floor at ratio {noise.ratio:g}, {noise.n} samples a side: half of the target against its other "
                f"half selects {_percent(noise.target)} of the entries, half of the reference "
                f"{_percent(noise.reference)}; target against reference {_percent(noise.isolated)}.{share}"
            )
        )
    return blocks


def _percent(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2%}"


def _curve_blocks(run: RunFolder, curves: Curves) -> list[Block]:
    run.figure("thresholds", threshold_figure(curves.ratios, curves.selected, curves.bars))
    rows = [
        (f"{ratio:g}", *(f"{values[i]:.4%}" for values in curves.selected.values()))
        for i, ratio in enumerate(curves.ratios)
    ]
    return [
        Heading("Sets and thresholds by ratio"),
        Figure("thresholds", alt="share of the entries selected, and thresholds, against the ratio"),
        Table(("ratio", *curves.selected), rows, "Share of all scored entries."),
    ]
