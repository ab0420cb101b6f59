"""The check-up: what counts as a problem, and what to do about it."""

from __future__ import annotations

import importlib.metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from paperhooks.authoring.doctor import _requirement, examine
from paperhooks.plugins import refresh
from paperhooks.plugins.installed import Catalog
from paperhooks.sessions import versions
from paperhooks.testing.fake_site import FakeSite, info_source

pytest_plugins = ["paperhooks.testing.site_fixtures"]


@pytest.mark.parametrize(
    ("text", "verdict", "found", "fix"),
    [
        ("pluggy>=1.0", "ok", "", ""),
        ("pluggy>=999", "problem", "is outside >=999", "pip install 'pluggy>=999'"),
        ("a-package-that-is-not-there", "problem", "missing", "pip install 'a-package-that-is-not-there'"),
    ],
)
def test_requirements_are_compared_with_what_is_installed(text: str, verdict: str, found: str, fix: str) -> None:
    check = _requirement(Requirement(text))
    assert (check.verdict, check.fix if verdict == "problem" else "") == (verdict, fix)
    assert found in check.found


def installed(monkeypatch, **others: str | None) -> None:
    """Lets some distributions look as if they were installed in other versions, or, with None, not at all."""
    true = importlib.metadata.version

    def version(name: str) -> str:
        found = others.get(name, "")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found or true(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize("name", ["transformers", "pluggy", "peft"])
def test_a_version_outside_what_is_tested_is_a_problem(name: str, own_catalog: Catalog, monkeypatch) -> None:
    newest = Version(versions.tested(name)[-1])
    beyond = f"{newest.major}.{newest.minor + 1}.0"
    for version, verdict in (
        (versions.tested(name)[0], "ok"),
        (f"{newest.major}.{newest.minor}.99", "ok"),
        (beyond, "problem"),
    ):
        installed(monkeypatch, **{name: version})
        (check,) = [each for each in examine(own_catalog) if each.subject == name]
        assert check.verdict == verdict
        assert check.found.startswith(version)
        assert versions.tested_range(name) in check.found
    assert check.fix == f"pip install '{name}=={newest}'"


def test_what_is_older_than_the_metadata_allow_is_named_with_them(own_catalog: Catalog, monkeypatch) -> None:
    installed(monkeypatch, transformers="5.3.0")
    (check,) = [each for each in examine(own_catalog) if each.subject == "transformers"]
    assert (check.verdict, check.found[:17]) == ("problem", "5.3.0 is outside ")
    assert check.fix.startswith("pip install 'transformers")


def test_peft_is_not_needed(own_catalog: Catalog, monkeypatch) -> None:
    installed(monkeypatch, peft=None)
    assert "peft" not in {check.subject for check in examine(own_catalog)}


def test_an_empty_catalogue_is_a_note_not_a_problem(own_catalog: Catalog) -> None:
    verdicts = {
        check.subject: check.verdict for check in examine(own_catalog) if check.subject not in versions.varied()
    }
    assert verdicts["plugins"] == "note"
    assert "problem" not in verdicts.values()


def test_every_kind_of_trouble_is_found(site: FakeSite, monkeypatch) -> None:
    site.add("dist-bad", "t-bad", "1 / 0\n")
    site.add("dist-one", "t-same")
    site.add("dist-two", "t-same", info_source("t-same", "dist_two"))
    site.add("dist-off", "t-off")
    site.add("dist-dead", "t-dead", method="import nothing_of_that_name\n")
    monkeypatch.setenv("PAPERHOOKS_BLOCK", "t-off")
    checks = [(check.subject, check.verdict) for check in examine(refresh())]
    assert ("plugin t-bad", "problem") in checks
    assert checks.count(("plugin t-same", "problem")) == 2
    assert ("plugin t-off", "note") in checks
    assert ("method t-dead/t-dead", "problem") in checks
    assert ("conflict", "problem") in checks
