"""The check-up: what counts as a problem, and what to do about it."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement
from paperhooks.catalog import Catalog, refresh
from paperhooks.doctor import _requirement, examine
from plugins.fake_site import FakeSite, info_source

pytest_plugins = ["plugins.fixtures"]


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


def test_an_empty_catalogue_is_a_note_not_a_problem(own_catalog: Catalog) -> None:
    verdicts = {check.subject: check.verdict for check in examine(own_catalog)}
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
