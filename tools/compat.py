"""The matrix of the session ``compat``: which versions are tried, with which tests, and where the result is written.

An overlay is a virtual environment with some libraries in versions of its own on top of the pinned ones. There is one
for transformers at the floor of core's metadata, one for every minor version up to the newest that the index offers,
one with the oldest and one with the newest of the other libraries.
"""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs import ROOT, Job, counts, pytest_arguments
from packaging.requirements import Requirement
from packaging.version import Version

__all__ = ["Outcome", "Overlay", "ask_index", "jobs", "matrix", "pins", "report", "settle"]

TABLE = ROOT / "core" / "src" / "paperhooks" / "sessions" / "tested_versions.json"
PAGE = ROOT / "docs" / "versions.md"
#: Libraries whose tested range the table keeps: what calls the hooks, and what wraps the models that they run in.
RANGED = ("transformers", "pluggy", "peft")
#: What the overlay of the newest libraries holds.
NEWEST = ("pluggy", "peft", "accelerate", "datasets", "typer")

#: Folder to files: every method's contract.
CONTRACTS = {
    "core/tests": ("sessions/test_session.py",),
    "packages/pyramiddrop/tests": ("test_contract.py",),
    "packages/cca/tests": ("test_contract.py",),
}
#: What a whole run adds: reference values, selection, generation, training, wrappers.
WHOLE = {
    "core/tests": (
        "test_compat.py", "tokens/test_track.py", "sessions/test_generate_guard.py", "hooks/test_pre_decoder.py",
        "testing/test_flash_contract.py", "training/test_loss.py", "models/test_wrappers.py",
    ),
    "packages/pyramiddrop/tests": ("test_parity.py",),
    "packages/cca/tests": ("test_parity.py",),
    "packages/mathneuro/tests": ("test_parity.py",),
    "packages/miniplm/tests": ("distillation/test_methods.py",),
}  # fmt: skip
#: What it adds where other libraries than transformers vary: commands, adapters, data sets, the Trainer's own training.
LIBRARIES = {
    "core/tests": ("cli/test_entry.py", "weights/test_journal.py"),
    "packages/cca/tests": ("test_training.py",),
    "packages/miniplm/tests": ("corpus/test_sources.py",),
}


@dataclass(frozen=True)
class Overlay:
    """Libraries in exact versions; ``beyond`` when one is newer than its pin, so that a failure is only reported."""

    name: str
    versions: dict[str, str]
    beyond: bool = False

    @property
    def requirements(self) -> list[str]:
        """For pip."""
        return [f"{name}=={version}" for name, version in self.versions.items()]


@dataclass
class Outcome:
    """What the tests said on one overlay."""

    overlay: Overlay
    jobs: list[Job] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of all its test processes."""
        return sum(job.seconds for job in self.jobs)

    def count(self, word: str) -> int:
        """How many tests ``passed``, ``failed`` or were ``skipped``."""
        return sum(counts(job.summary).get(word, 0) for job in self.jobs)

    @property
    def good(self) -> bool:
        """Every process ended well, and tests were run."""
        return all(job.code == 0 for job in self.jobs) and self.count("passed") > 0


# -- which versions ----------------------------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    """Name to the version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def floor(name: str) -> Version:
    """The lowest version of ``name`` that core's metadata allow."""
    project = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    (wanted,) = [each for each in map(Requirement, lines) if each.name == name]
    return min(Version(spec.version) for spec in wanted.specifier if spec.operator == ">=")


def lowest(name: str, offered: dict[str, list[Version]]) -> Version:
    """The lowest version that the index offers within core's metadata; their floor itself when it offers none."""
    first = floor(name)
    return min((v for v in offered.get(name, []) if v >= first and v.major == first.major), default=first)


def available(answer: str) -> list[Version]:
    """The versions in what ``pip index versions`` printed, newest first; empty when the index did not answer."""
    found = re.search(r"^Available versions: (.+)$", answer, re.MULTILINE)
    return sorted(map(Version, found[1].split(", ")), reverse=True) if found else []


def ask_index(python: str, name: str) -> list[Version]:
    """What the index offers of a library now, newest first; empty when it does not answer."""
    command = [python, "-m", "pip", "index", "versions", name]
    return available(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


def minors(versions: Iterable[Version], first: Version) -> list[Version]:
    """``first`` and the last patch of every minor version above it, oldest first."""
    last: dict[tuple[int, ...], Version] = {}
    for version in sorted(v for v in versions if v > first):
        last[version.release[:2]] = version
    return [first, *(v for minor, v in sorted(last.items()) if minor > first.release[:2])]


def matrix(offered: dict[str, list[Version]], ends: bool = False) -> list[Overlay]:
    """The overlays to try.

    :param offered: library to the versions that the index offers, newest first; a library that is missing or has none
        stays at its pin.
    :param ends: only transformers' floor, and its newest version if that is beyond the pin.
    """
    pinned = pins()
    pin = Version(pinned["transformers"])
    versions = [v for v in offered.get("transformers", []) if v.major == pin.major]
    ladder = sorted({*minors(versions, lowest("transformers", offered)), pin})
    overlays = [Overlay(f"transformers {v}", {"transformers": str(v)}, v > pin) for v in ladder]
    if ends:
        return [each for each in overlays if each is overlays[0] or each.beyond]
    oldest = {name: str(lowest(name, offered)) for name in RANGED[1:]}
    newest = {name: str(offered[name][0]) if offered.get(name) else pinned[name] for name in NEWEST}
    beyond = any(Version(version) > Version(pinned.get(name, version)) for name, version in newest.items())
    return [*overlays, Overlay("oldest libraries", oldest), Overlay("newest libraries", newest, beyond)]


# -- tests and results -------------------------------------------------------------------------------------------------


def jobs(overlay: Overlay, python: str, quick: bool) -> list[Job]:
    """One process for every folder of tests, since their modules share names."""
    chosen = [CONTRACTS] if quick else [CONTRACTS, WHOLE]
    if not quick and "transformers" not in overlay.versions:
        chosen.append(LIBRARIES)
    files: dict[str, list[str]] = {}
    for each in chosen:
        for folder, names in each.items():
            files.setdefault(folder, []).extend(f"{folder}/{name}" for name in names)
    return [Job(f"{overlay.name}: {folder}", python, pytest_arguments(found)) for folder, found in files.items()]


def report(outcomes: Sequence[Outcome]) -> str:
    """A table for the terminal."""
    lines = [f"{'versions':<24} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}"]
    for each in outcomes:
        numbers = f"{each.count('passed'):>7} {each.count('failed'):>7} {each.count('skipped'):>8} {each.seconds:>8.0f}"
        remark = "" if each.good else "  beyond the pins, reported only" if each.overlay.beyond else "  FAILED"
        lines.append(f"{each.overlay.name:<24} {numbers}{remark}")
    return "\n".join(lines)


def tested(outcomes: Iterable[Outcome]) -> dict[str, list[str]]:
    """Library to the versions that passed, oldest first: what tested_versions.json holds."""
    found: dict[str, set[str]] = {name: {pins()[name]} for name in RANGED}
    for each in outcomes:
        for name, version in each.overlay.versions.items():
            if each.good and name in found:
                found[name].add(version)
    return {name: sorted(versions, key=Version) for name, versions in found.items()}


def table(outcomes: Iterable[Outcome]) -> str:
    """The table of docs/versions.md."""
    rows = ["| versions | tests passed | skipped |", "| --- | ---: | ---: |"]
    for each in outcomes:
        if each.good:
            names = ", ".join(f"{name} {version}" for name, version in each.overlay.versions.items())
            rows.append(f"| {names} | {each.count('passed')} | {each.count('skipped')} |")
    return "\n".join(rows)


def write(outcomes: Sequence[Outcome], versions: Path = TABLE, page: Path = PAGE) -> None:
    """Write the table of versions and the page that shows it."""
    lines = [f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in tested(outcomes).items()]
    versions.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    begin, end = "<!-- tested versions -->\n", "<!-- end of tested versions -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n{table(outcomes)}\n\n{end}{after}", encoding="utf-8")


def settle(outcomes: Sequence[Outcome], only_compare: bool) -> str:
    """Write what a whole run has found, or only compare; what is wrong, else an empty string."""
    if not only_compare:
        write(outcomes)
        return ""
    found, kept = tested(outcomes), json.loads(TABLE.read_text(encoding="utf-8"))
    return "" if found == kept else f"{TABLE.name} says {kept}, the tests passed on {found}; run nox -s compat"
