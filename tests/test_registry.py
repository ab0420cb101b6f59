"""The registry agrees with the packages, and what is generated from it is up to date."""

from __future__ import annotations

import importlib
import re
import shlex

import pytest
from packaging.requirements import Requirement
from paperhooks.authoring import check_claims, check_registry, load_claims
from paperhooks.plugins import (
    load_registry,
    plugin_table_markdown,
    replace_between_markers,
    spread_table_markdown,
)
from repository import CORE, PACKAGES, PAPERS, PLUGINS, ROOT, TESTBED, TOOLKITS, Package

REGISTRY = load_registry(ROOT / "registry.toml")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_registry_metadata_plugin_info_and_traits_agree() -> None:
    assert list(map(str, check_registry(ROOT))) == []


def test_the_readme_has_the_generated_table() -> None:
    """Write it again with: paperhooks registry table --write README.md"""
    assert replace_between_markers(README, "paperhooks-plugins", plugin_table_markdown(REGISTRY)) == README


def test_the_page_of_several_gpus_has_the_table_of_spreads() -> None:
    """Write it again with: paperhooks registry table --write docs/several-gpus.md"""
    page = (ROOT / "docs" / "several-gpus.md").read_text(encoding="utf-8")
    assert replace_between_markers(page, "paperhooks-spreads", spread_table_markdown(REGISTRY)) == page


def test_every_plugin_of_the_registry_is_a_package_and_the_other_way_round() -> None:
    assert {entry.distribution for entry in REGISTRY.entries if entry.path} == {package.name for package in PLUGINS}


#: Papers, and what else has a file of claims.
CLAIMING = [each for each in PLUGINS if each in PAPERS or list(each.source.glob("claims.toml"))]


@pytest.mark.parametrize("package", CLAIMING, ids=str)
def test_readme_and_page_of_a_paper_have_its_claims(package: Package) -> None:
    """Print the tables with: paperhooks claims NAME --summary, and --markdown"""
    info = importlib.import_module(f"{package.module}.plugin").PLUGIN
    claims = load_claims(package.source / info.claims)
    page = ROOT / "docs" / f"{info.name}.md"
    for file, table in ((package.folder / "README.md", claims.as_summary()), (page, claims.as_markdown())):
        text = file.read_text(encoding="utf-8")
        assert replace_between_markers(text, "paperhooks-claims", table) == text


@pytest.mark.parametrize("package", CLAIMING, ids=str)
def test_claims_are_well_formed_and_their_commands_exist(package: Package) -> None:
    info = importlib.import_module(f"{package.module}.plugin").PLUGIN
    assert info.claims, f"{package.name} names no claims file"
    file = package.source / info.claims
    assert list(map(str, check_claims(file))) == []
    commands = [run.command for claim in load_claims(file).claims for run in claim.runs]
    scripts = {part for command in commands for part in shlex.split(command) if part.endswith(".py")}
    assert {script for script in scripts if not (ROOT / script).is_file()} == set()


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_packages_are_made_alike(package: Package) -> None:
    project = package.project
    assert project["requires-python"] == ">=3.11"
    assert project["license"] == "Apache-2.0"
    assert "version" in project["dynamic"]
    for name in ("README.md", "CHANGELOG.md", "LICENSE"):
        assert (package.folder / name).is_file(), f"{package.folder} has no {name}"
    assert (package.folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    version = importlib.import_module(package.module).__version__
    changelog = (package.folder / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(version)}( |$)", changelog, re.MULTILINE)


@pytest.mark.parametrize("package", [TESTBED, *PLUGINS], ids=str)
def test_packages_depend_on_a_range_of_core_with_a_floor(package: Package) -> None:
    requirements = [Requirement(line) for line in package.project["dependencies"]]
    (core,) = [requirement for requirement in requirements if requirement.name == CORE.name]
    assert sorted(spec.operator for spec in core.specifier) == ["<", ">="]
    assert core.specifier.contains(importlib.import_module(CORE.module).__version__)
    siblings = {each.name for each in PLUGINS if each not in TOOLKITS} - {package.name}
    assert siblings & {requirement.name for requirement in requirements} == set()


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_every_requirement_has_a_floor(package: Package) -> None:
    extras = package.project.get("optional-dependencies", {}).values()
    lines = [line for part in (package.project["dependencies"], *extras) for line in part]
    loose = [line for line in map(Requirement, lines) if not line.specifier and not line.name.startswith(CORE.name)]
    assert loose == []
