"""Demos run one by one, and one that fails does not stop the others."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from paperhooks.authoring.demo import run_demo
from paperhooks.errors import PluginBroken, PluginNotFound
from paperhooks.testing.fake_site import FakeSite, info_source

pytest_plugins = ["paperhooks.testing.site_fixtures"]

DEMO = """
def run(context):
    context.echo(f"quick {context.quick} seed {context.seed}")
    folder = context.run_folder()
    folder.start("demo", inputs={"seed": context.seed}, seed=context.seed)
    folder.report("Demo", [])
    folder.finish()

def fail(context):
    raise RuntimeError("no luck")
"""


def add(site: FakeSite, name: str, function: str) -> None:
    """A plugin with a demo."""
    module = f"dist_{name}"
    site.add(f"dist-{name}", f"t-{name}", info_source(f"t-{name}", module, extra=f'demo="{module}_demo:{function}"'))
    (site.root / f"{module}_demo.py").write_text(DEMO)


def test_one_demo_runs_into_its_own_folder(site: FakeSite, tmp_path: Path) -> None:
    add(site, "a", "run")
    lines: list[str] = []
    (result,) = run_demo("t-a", tmp_path / "out", echo=lines.append, quick=True, seed=4)
    assert result.report == tmp_path / "out" / "t-a" / "report.html"
    assert result.error is None
    assert lines == ["quick True seed 4"]


def test_all_demos_run_although_one_fails(site: FakeSite, tmp_path: Path, monkeypatch) -> None:
    # Plugins that happen to be installed have demos of their own, which would run here too.
    installed = {point.name for point in importlib.metadata.entry_points(group="paperhooks.plugins")}
    monkeypatch.setenv("PAPERHOOKS_BLOCK", ",".join(installed))
    add(site, "a", "fail")
    add(site, "b", "run")
    add(site, "c", "gone")
    results = {r.plugin: r for r in run_demo(None, tmp_path)}
    assert set(results) == {"t-a", "t-b", "t-c"}
    assert str(results["t-a"].error) == "no luck"
    assert results["t-b"].error is None
    assert isinstance(results["t-c"].error, PluginBroken)


def test_a_single_failing_demo_raises_its_own_error(site: FakeSite, tmp_path: Path) -> None:
    add(site, "a", "fail")
    with pytest.raises(RuntimeError, match="no luck") as caught:
        run_demo("t-a", tmp_path)
    assert "in the demo of plugin 't-a'" in caught.value.__notes__


def test_a_plugin_without_demo_is_named(site: FakeSite, tmp_path: Path, own_catalog) -> None:
    with pytest.raises(PluginNotFound, match="no installed plugin has a demo"):
        run_demo(None, tmp_path)
    with pytest.raises(PluginNotFound, match="t-none"):
        run_demo("t-none", tmp_path)
