"""Metadata, pins and the table of tested versions agree; and the matrix that makes the table."""

from __future__ import annotations

import json
import sys
from itertools import chain

import compat
import pytest
from compat import Outcome, Overlay
from jobs import Job, counts, longest
from packaging.requirements import Requirement
from packaging.version import Version
from repository import CORE, PACKAGES

TESTED = json.loads(compat.TABLE.read_text(encoding="utf-8"))
INDEX = "transformers (5.25.1)\nAvailable versions: 5.25.1, 5.25.0, 5.24.0, 5.18.2, 5.18.0, 5.17.3, 5.17.0, 5.16.1\n"


def requirements(package, name: str) -> list[Requirement]:
    """What a package's metadata say of one library, extras included."""
    extras = package.project.get("optional-dependencies", {})
    lines = [*package.project["dependencies"], *chain.from_iterable(extras.values())]
    return [each for each in map(Requirement, lines) if each.name == name]


def outcome(name: str, version: str, summary: str, code: int = 0, beyond: bool = False) -> Outcome:
    """What a run of one process on one overlay leaves behind."""
    job = Job("job", "python", [])
    job.summary, job.code, job.seconds = summary, code, 2.0
    return Outcome(Overlay(f"{name} {version}", {name: version}, beyond), [job])


# -- what is written ---------------------------------------------------------------------------------------------------


NEEDING = [package for package in PACKAGES if requirements(package, "transformers")]


@pytest.mark.parametrize("package", NEEDING, ids=str)
def test_every_package_allows_what_is_tested_and_nothing_older(package) -> None:
    (wanted,) = requirements(package, "transformers")
    assert all(wanted.specifier.contains(version) for version in TESTED["transformers"])
    (lowest,) = [Version(spec.version) for spec in wanted.specifier if spec.operator == ">="]
    assert lowest.release[:2] == Version(TESTED["transformers"][0]).release[:2]
    (highest,) = [Version(spec.version) for spec in wanted.specifier if spec.operator == "<"]
    assert highest == Version(str(Version(TESTED["transformers"][-1]).major + 1))


@pytest.mark.parametrize("name", compat.RANGED)
def test_core_begins_where_the_tests_begin_and_the_pin_is_tested(name: str) -> None:
    assert TESTED[name] == sorted(TESTED[name], key=Version)
    assert compat.floor(name).release[:2] == Version(TESTED[name][0]).release[:2]
    assert compat.pins()[name] in TESTED[name]
    assert requirements(CORE, name)


def test_the_page_shows_what_is_tested() -> None:
    page = compat.PAGE.read_text(encoding="utf-8")
    missing = [f"{name} {version}" for name in compat.RANGED for version in TESTED[name] if f"{version}" not in page]
    assert missing == []


@pytest.mark.parametrize("page", ["README.md", "core/README.md"])
def test_the_readmes_name_the_oldest_version(page: str) -> None:
    lowest = compat.floor("transformers")
    assert f"transformers {lowest.major}.{lowest.minor}" in (compat.ROOT / page).read_text(encoding="utf-8")


# -- which versions are tried ------------------------------------------------------------------------------------------


@pytest.fixture
def metadata(monkeypatch) -> None:
    """Floors and pins that do not move with the repository's."""
    lowest = {"transformers": "5.17", "pluggy": "1.6", "peft": "0.18"}
    pinned = {"transformers": "5.24.0", "pluggy": "1.7.0", "peft": "0.21.2", "accelerate": "1.15.0", "typer": "0.29.2"}
    monkeypatch.setattr(compat, "floor", lambda name: Version(lowest[name]))
    monkeypatch.setattr(compat, "pins", lambda: {**pinned, "datasets": "5.2.0"})


def test_the_index_is_read() -> None:
    assert [str(version) for version in compat.available(INDEX)][:2] == ["5.25.1", "5.25.0"]
    assert compat.available("ERROR: No matching distribution found") == []


def test_the_floor_and_the_last_patch_of_every_minor_version_are_tried(metadata) -> None:
    overlays = compat.matrix({"transformers": compat.available(INDEX)})
    tried = {each.versions["transformers"]: each.beyond for each in overlays if "transformers" in each.versions}
    assert tried == {"5.17.0": False, "5.18.2": False, "5.24.0": False, "5.25.1": True}
    assert [each.name for each in overlays[-2:]] == ["oldest libraries", "newest libraries"]
    assert overlays[-2].requirements == ["pluggy==1.6", "peft==0.18"]
    assert not overlays[-1].beyond


def test_a_library_beyond_its_pin_is_reported_only(metadata) -> None:
    newest = compat.matrix({"peft": [Version("0.22.0"), Version("0.18.0")], "typer": [Version("0.29.2")]})[-1]
    assert (newest.versions["peft"], newest.versions["typer"], newest.beyond) == ("0.22.0", "0.29.2", True)


def test_the_ends_are_the_floor_and_what_is_beyond_the_pin(metadata) -> None:
    offered = {"transformers": compat.available(INDEX)}
    assert [each.name for each in compat.matrix(offered, ends=True)] == ["transformers 5.17.0", "transformers 5.25.1"]
    offered["transformers"] = [v for v in offered["transformers"] if v <= Version("5.24.0")]
    assert [each.name for each in compat.matrix(offered, ends=True)] == ["transformers 5.17.0"]


def test_without_the_index_the_floor_and_the_pin_are_tried(metadata) -> None:
    tried = [each.versions for each in compat.matrix({})]
    assert tried[:2] == [{"transformers": "5.17"}, {"transformers": "5.24.0"}]


def test_the_next_major_version_is_not_tried(metadata) -> None:
    assert "transformers 6.0.0" not in [o.name for o in compat.matrix({"transformers": [Version("6.0.0")]})]


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", ["transformers", "pluggy"])
def test_every_file_of_the_matrix_is_there(name: str, quick: bool) -> None:
    found = compat.jobs(Overlay("x", {name: "1"}), "python", quick)
    files = [each for job in found for each in job.arguments if each.endswith(".py")]
    assert files
    assert [file for file in files if not (compat.ROOT / file).is_file()] == []


# -- what came out -----------------------------------------------------------------------------------------------------


def test_counts_are_read_off_the_closing_line() -> None:
    summary = "1 failed, 47 passed, 2 skipped, 1 warning, 1 error in 22.95s"
    assert counts(summary) == {"failed": 2, "passed": 47, "skipped": 2}
    assert counts("no tests ran in 0.01s") == {}


def test_the_tests_that_took_longest_are_told(tmp_path) -> None:
    (tmp_path / "test_it.py").write_text("import time\ndef test_slow(): time.sleep(0.2)\ndef test_fast(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    arguments = ["-c", str(tmp_path / "pytest.ini"), "-q", "--durations=3", "--durations-min=0.1", str(tmp_path)]
    job = Job("slow", sys.executable, arguments, tmp_path)()
    assert (job.code, counts(job.summary)) == (0, {"passed": 2})
    (line,) = longest([job]).splitlines()
    assert line.endswith("test_it.py::test_slow")


def test_only_what_passed_counts_as_tested(metadata, tmp_path) -> None:
    page, versions = tmp_path / "versions.md", tmp_path / "tested.json"
    page.write_text("before\n<!-- tested versions -->\nold\n<!-- end of tested versions -->\nafter\n")
    outcomes = [
        outcome("transformers", "5.17.0", "9 passed, 1 skipped in 2s"),
        outcome("transformers", "5.24.0", "10 passed in 2s"),
        outcome("transformers", "5.25.0", "1 failed, 9 passed in 2s", code=1, beyond=True),
        outcome("pluggy", "1.6.0", "10 passed in 2s"),
    ]
    compat.write(outcomes, versions, page)
    assert json.loads(versions.read_text()) == {
        "transformers": ["5.17.0", "5.24.0"],
        "pluggy": ["1.6.0", "1.7.0"],
        "peft": ["0.21.2"],
    }
    text = page.read_text()
    assert "| transformers 5.17.0 | 9 | 1 |" in text
    assert "5.25.0" not in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "beyond the pins, reported only" in compat.report(outcomes)


def test_a_run_without_tests_is_no_good() -> None:
    assert not outcome("transformers", "5.24.0", "no tests ran in 0.01s", code=0).good
    assert not outcome("transformers", "5.24.0", "5 passed in 1s", code=1).good


def test_comparing_writes_nothing(metadata, monkeypatch, tmp_path) -> None:
    versions = tmp_path / "tested.json"
    versions.write_text(json.dumps({"transformers": ["5.24.0"], "pluggy": ["1.7.0"], "peft": ["0.21.2"]}))
    monkeypatch.setattr(compat, "TABLE", versions)
    assert compat.settle([outcome("transformers", "5.24.0", "1 passed in 1s")], only_compare=True) == ""
    complaint = compat.settle([outcome("transformers", "5.17.0", "1 passed in 1s")], only_compare=True)
    assert "run nox -s compat" in complaint
    assert json.loads(versions.read_text())["transformers"] == ["5.24.0"]
