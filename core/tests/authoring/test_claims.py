"""claims.toml: strict loading and rendering."""

from __future__ import annotations

from pathlib import Path

import pytest
from paperhooks.authoring import check_claims, load_claims
from paperhooks.authoring.claims import plugin_claims
from paperhooks.errors import DataError
from paperhooks.testing.fake_site import FakeSite, info_source

pytest_plugins = ["paperhooks.testing.site_fixtures"]

GOOD = """
schema = 1
plugin = "t-one"

[[claim]]
id = "faster"
statement = "Prefill is faster | cheaper."
source = "Table 2"
published = "2x"
status = "reproduced"

[[claim.run]]
scale = "tiny model"
command = "python bench.py"
date = 2026-01-31

[[claim.run.figure]]
name = "speed-up"
value = 1.5
unit = "x"
n = 20
low = 1.4
high = 1.6
confidence = 0.95

[[claim.run.figure]]
name = "FLOPs"
value = 0.5
n = 1
exact = true

[[claim]]
id = "better"
statement = "Training helps."
source = "Table 3"
status = "not-reproduced"
why = "It needs eight GPUs."
"""


def test_good_claims_load_and_render(tmp_path: Path) -> None:
    file = tmp_path / "claims.toml"
    file.write_text(GOOD)
    claims = load_claims(file)
    assert [c.status for c in claims.claims] == ["reproduced", "not-reproduced"]
    text = claims.as_text()
    assert "speed-up 1.5 x [1.4, 1.6] at 95%, n = 20" in text
    assert "FLOPs 0.5 (exact)" in text
    assert "why: It needs eight GPUs." in text
    table = claims.as_markdown().splitlines()
    assert len(table) == 4
    assert "Prefill is faster \\| cheaper. (Table 2)" in table[2]
    assert claims.as_summary().splitlines()[2:] == [
        "| Prefill is faster \\| cheaper. | reproduced | speed-up 1.5 x [1.4, 1.6] at 95%, n = 20 |",
        "| Training helps. | not-reproduced | – |",
    ]
    file.write_text(GOOD.replace('status = "reproduced"', 'status = "reproduced"\nheadline = "FLOPs"'))
    assert "| FLOPs 0.5 (exact) |" in load_claims(file).as_summary()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("statement = ", "statment = ", "did you mean 'statement'"),
        ('status = "reproduced"', 'status = "partly"', "say why"),
        ('status = "not-reproduced"', 'status = "reproduced"', "has 0 runs"),
        ("low = 1.4\n", "", "has only high, confidence"),
        ("low = 1.4\nhigh = 1.6\nconfidence = 0.95\n", "", "or exact = true"),
        ("low = 1.4", "low = 1.55", r"outside \[1.55, 1.6\]"),
        ("confidence = 0.95", "confidence = 95", "between 0 and 1"),
        ("n = 20", "n = 0", "at least 1"),
        ("date = 2026-01-31", 'date = "today"', "must be a date"),
        ('id = "better"', 'id = "faster"', "there twice"),
        ('id = "faster"', 'id = "faster"\nheadline = "FLOP"', "did you mean 'FLOPs'"),
        ("schema = 1", "schema = 2", "must be one of 1"),
    ],
)
def test_faulty_claims_are_refused_with_the_file(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "claims.toml"
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(DataError, match=said):
        load_claims(file)
    assert all(str(problem).startswith(str(file)) for problem in check_claims(file))


def test_claims_of_an_installed_plugin_lie_beside_its_module(site: FakeSite) -> None:
    site.add("dist-one", "t-one", info_source("t-one", "dist_one", extra='claims="one_claims.toml"'))
    site.add("dist-two", "t-two", info_source("t-two", "dist_two"))
    with pytest.raises(DataError, match="is not there; reinstall"):
        plugin_claims("t-one")
    (site.root / "one_claims.toml").write_text(GOOD)
    assert plugin_claims("t-one").plugin == "t-one"
    (site.root / "one_claims.toml").write_text(GOOD.replace('"t-one"', '"t-other"'))
    with pytest.raises(DataError, match="plugin = 't-other'"):
        plugin_claims("t-one")
    with pytest.raises(DataError, match="has no claims file"):
        plugin_claims("t-two")
