"""``claims.toml``: what a paper claims, what was reproduced here, and what was not and why.

Schema 1; unknown keys are refused::

    schema = 1
    plugin = "pyramiddrop"

    [[claim]]
    id = "prefill-flops"                       # unique, kebab-case
    statement = "Prefill needs 55 % fewer FLOPs at no loss of accuracy."   # the paper's claim in our words
    source = "Table 2"                         # where the paper says so
    published = "-55 % FLOPs, LLaVA-NeXT-7B"   # optional: the paper's figure
    status = "reproduced"                      # reproduced | partly | contradicted | not-reproduced
    why = "..."                                # required unless reproduced: what is missing, or what differs
    headline = "prefill FLOPs"                 # optional: the figure that stands for the claim; default: its first

    [[claim.run]]                              # at least one, unless not-reproduced
    scale = "test bed model, 8 layers, 2 CPU cores"
    command = "python packages/pyramiddrop/benchmarks/prefill.py"
    date = 2026-01-31
    note = "..."                               # optional

    [[claim.run.figure]]                       # at least one a run
    name = "prefill FLOPs"
    value = 0.46
    unit = "of the full model"                 # optional
    n = 200                                    # how many independent measurements, items or repetitions
    low = 0.45                                 # bounds of the interval ...
    high = 0.47
    confidence = 0.95                          # ... and its level; all three or none
    exact = false                              # optional; true: arithmetic, not a measurement, so no interval

A figure that is not exact needs an interval. A null result is a result: ``contradicted`` and ``not-reproduced`` are
as welcome here as ``reproduced``.
"""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError, did_you_mean
from paperhooks.io.harmless import markdown_text
from paperhooks.io.toml import Field, Problem, check_table, line_of, read_toml

__all__ = [
    "Claim",
    "ClaimFigure",
    "Claims",
    "Run",
    "check_claims",
    "claims_file",
    "load_claims",
    "package_folder",
    "plugin_claims",
]

#: How many figures of a run a Markdown table shows.
FIGURES_IN_TABLES: Final = 4

STATUSES: Final = ("reproduced", "partly", "contradicted", "not-reproduced")

_TOP: Final = {"schema": Field("int", choices=(1,)), "plugin": Field("str"), "claim": Field("tables")}
_CLAIM: Final = {
    "id": Field("str", pattern=r"[a-z0-9]+(-[a-z0-9]+)*"),
    "statement": Field("str"),
    "source": Field("str"),
    "published": Field("str", required=False),
    "status": Field("str", choices=STATUSES),
    "why": Field("str", required=False),
    "headline": Field("str", required=False),
    "run": Field("tables", required=False),
}
_RUN: Final = {
    "scale": Field("str"),
    "command": Field("str"),
    "date": Field("date"),
    "note": Field("str", required=False),
    "figure": Field("tables"),
}
_FIGURE: Final = {
    "name": Field("str"),
    "value": Field("float"),
    "unit": Field("str", required=False),
    "n": Field("int"),
    "low": Field("float", required=False),
    "high": Field("float", required=False),
    "confidence": Field("float", required=False),
    "exact": Field("bool", required=False),
}


@dataclass(frozen=True, slots=True)
class ClaimFigure:
    """One measured (or exactly computed) number with its interval."""

    name: str
    value: float
    n: int
    unit: str = ""
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    exact: bool = False

    def __str__(self) -> str:
        text = f"{self.name} {self.value:g}" + (f" {self.unit}" if self.unit else "")
        if self.low is not None and self.high is not None and self.confidence is not None:
            text += f" [{self.low:g}, {self.high:g}] at {self.confidence:.0%}"
        return text + (" (exact)" if self.exact else f", n = {self.n}")


@dataclass(frozen=True, slots=True)
class Run:
    """One reproduction: how large, by which command, when, with which figures."""

    scale: str
    command: str
    date: datetime.date
    figures: tuple[ClaimFigure, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of the paper and what became of it here."""

    id: str
    statement: str
    source: str
    status: str
    published: str = ""
    why: str = ""
    headline: str = ""
    runs: tuple[Run, ...] = ()

    @property
    def figure(self) -> ClaimFigure | None:
        """The figure that stands for the claim; None where nothing was run."""
        figures = [figure for run in self.runs for figure in run.figures]
        return next((figure for figure in figures if figure.name == self.headline), figures[0] if figures else None)


@dataclass(frozen=True, slots=True)
class Claims:
    """All claims of one plugin's paper."""

    plugin: str
    claims: tuple[Claim, ...]

    def as_text(self) -> str:
        """For the terminal."""
        return "\n\n".join("\n".join(_text_lines(claim)) for claim in self.claims)

    def as_summary(self) -> str:
        """A table for the plugin's README: a short line a claim, with one figure."""
        lines = (map(markdown_text, (c.statement, c.status, c.figure or "–")) for c in self.claims)
        return _table(("claim", "here", "figure"), lines)

    def as_markdown(self) -> str:
        """A table for the plugin's page in docs/; of every run the first figures, the others counted."""
        return _table(("claim", "published", "here", "figures"), map(_markdown_cells, self.claims))


def _table(header: Sequence[str], lines: Iterable[Iterable[str]]) -> str:
    rows: list[Iterable[str]] = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _markdown_cells(claim: Claim) -> list[str]:
    figures = "<br>".join(map(_markdown_run, claim.runs))
    status = claim.status + (f": {claim.why}" if claim.why else "")
    cells = map(markdown_text, (f"{claim.statement} ({claim.source})", claim.published or "–", status))
    return [*cells, figures or "–"]


def _markdown_run(run: Run) -> str:
    shown = "; ".join(map(str, run.figures[:FIGURES_IN_TABLES]))
    more = len(run.figures) - FIGURES_IN_TABLES
    return markdown_text(f"{run.scale}: {shown}" + (f"; and {more} more" if more > 0 else ""))


def _text_lines(claim: Claim) -> list[str]:
    published = f"  published: {claim.published}" if claim.published else ""
    lines = [f"[{claim.status}] {claim.statement} ({claim.source})", published]
    for run in claim.runs:
        lines += [f"  {run.date}, {run.scale}", *(f"    {figure}" for figure in run.figures), f"    $ {run.command}"]
        lines.append(f"    {run.note}" if run.note else "")
    lines.append(f"  why: {claim.why}" if claim.why else "")
    return [line for line in lines if line]


def check_claims(path: str | Path) -> list[Problem]:
    """Every fault of a claims file; empty when it can be loaded."""
    file = Path(path)
    data, text, problems = read_toml(file)
    if problems:
        return problems
    faults = [Problem(str(file), 0, fault) for _, fault in check_table(data, _TOP, "the claims file")]
    if faults:
        return faults
    seen: set[object] = set()
    for index, table in enumerate(data["claim"]):
        for key, fault in _claim_faults(table, f"claim {table.get('id', index + 1)!r}", seen):
            faults.append(Problem(str(file), line_of(text, "claim", index, key), fault))
        seen.add(table.get("id"))
    return faults


def _claim_faults(table: Mapping[str, Any], where: str, seen: set[object]) -> list[tuple[str, str]]:
    faults = check_table(table, _CLAIM, where)
    if faults:
        return faults
    if table["id"] in seen:
        faults.append(("id", f"{where} is there twice"))
    runs: Sequence[Mapping[str, Any]] = table.get("run", [])
    if table["status"] != "reproduced" and not table.get("why"):
        faults.append(("status", f"{where} is {table['status']}; say why"))
    if (table["status"] == "not-reproduced") == bool(runs):
        faults.append(("status", f"{where} is {table['status']} and has {len(runs)} runs"))
    for number, run in enumerate(runs, 1):
        faults += _run_faults(run, f"{where}, run {number}")
    names = [] if faults else [figure["name"] for run in runs for figure in run["figure"]]
    if not faults and "headline" in table and table["headline"] not in names:
        faults.append(
            ("headline", f"{where}: headline = {table['headline']!r}; {did_you_mean(table['headline'], names)}")
        )
    return faults


def _run_faults(run: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    faults = check_table(run, _RUN, where)
    if faults:
        return faults
    if not run["figure"]:
        faults.append(("figure", f"{where} needs at least one figure"))
    for figure in run["figure"]:
        name = f"{where}, figure {figure.get('name')!r}"
        faults += check_table(figure, _FIGURE, name) or [("value", fault) for fault in _interval_faults(figure, name)]
    return faults


def _interval_faults(figure: Mapping[str, Any], where: str) -> list[str]:
    given = [key for key in ("low", "high", "confidence") if key in figure]
    if figure["n"] < 1:
        return [f"{where}: n = {figure['n']} must be at least 1"]
    if not given:
        return [] if figure.get("exact") else [f"{where} needs low, high and confidence, or exact = true"]
    if len(given) < 3:
        return [f"{where} has only {', '.join(given)}; give low, high and confidence"]
    if not figure["low"] <= figure["value"] <= figure["high"]:
        return [f"{where}: {figure['value']} is outside [{figure['low']}, {figure['high']}]"]
    if not 0 < figure["confidence"] < 1:
        return [f"{where}: confidence = {figure['confidence']} must lie between 0 and 1, such as 0.95"]
    return []


def load_claims(path: str | Path) -> Claims:
    """Read a claims file; raises DataError listing every fault with its line."""
    problems = check_claims(path)
    if problems:
        raise DataError("the claims file has faults:\n" + "\n".join(map(str, problems)))
    data, _, _ = read_toml(Path(path))
    return Claims(data["plugin"], tuple(_claim(table) for table in data["claim"]))


def _claim(table: Mapping[str, Any]) -> Claim:
    runs = tuple(_run(run) for run in table.get("run", []))
    return Claim(**{key: value for key, value in table.items() if key != "run"}, runs=runs)


def _run(table: Mapping[str, Any]) -> Run:
    figures = tuple(ClaimFigure(**figure) for figure in table["figure"])
    return Run(**{key: value for key, value in table.items() if key != "figure"}, figures=figures)


def claims_file(plugin: str) -> Path:
    """The claims file of an installed plugin.

    Raises PluginNotFound for an unknown plugin, DataError when it has no claims or the file is missing.
    """
    from paperhooks.plugins.installed import catalog

    status = catalog().plugin(plugin)
    if status.info is None or status.info.claims is None:
        raise DataError(f"plugin {plugin!r} has no claims file")
    file = package_folder(status.target) / status.info.claims
    if not file.is_file():
        raise DataError(f"plugin {plugin!r} names the claims file {file}, which is not there; reinstall the plugin")
    return file


def package_folder(target: str) -> Path:
    """The folder of the module in ``"package.module:PLUGIN"``; raises DataError when it has no file."""
    spec = importlib.util.find_spec(target.partition(":")[0])
    if spec is None or spec.origin is None:
        raise DataError(f"the module of {target!r} has no file, so its claims cannot be found")
    return Path(spec.origin).parent


def plugin_claims(plugin: str) -> Claims:
    """The claims of an installed plugin; raises like :func:`claims_file` and :func:`load_claims`."""
    claims = load_claims(claims_file(plugin))
    if claims.plugin != plugin:
        raise DataError(f"the claims file of plugin {plugin!r} says plugin = {claims.plugin!r}")
    return claims
