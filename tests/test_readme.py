"""The READMEs and the documentation say what is true: their code runs, their links lead somewhere."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
from paperhooks.catalog import catalog
from paperhooks.hookspecs import CHAINED
from paperhooks.methods import implemented_hooks
from repository import PACKAGES, PLUGINS, ROOT

README = ROOT / "README.md"
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s#]+)(?:#[^)]*)?\)")
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *[package.folder / "README.md" for package in PACKAGES],
]
RUNNABLE = [README, *[package.folder / "README.md" for package in PLUGINS]]


def acts_in_the_forward(page: Path) -> bool:
    """Whether the package of a README, or any for the main one, has a method that runs inside a model."""
    name = page.parent.name
    methods = catalog().method_class(name) if page != README else None
    return methods is None or bool(CHAINED & set(implemented_hooks(methods)))


def blocks(page: Path) -> str:
    """All Python of a page, one after the other: later blocks use what earlier ones made."""
    return "\n".join(FENCE.findall(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_runs(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = blocks(page)
    assert code
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("readme")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "readme", module)
    exec(compile(code, str(page), "exec"), vars(module))
    if acts_in_the_forward(page):
        assert "paperhooks.attach(" in code
        assert re.search("pre_(attention|decoder)", capsys.readouterr().out)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_two_commands_are_there_and_are_sessions() -> None:
    text = README.read_text(encoding="utf-8")
    assert "    pip install nox && nox -s demo\n    nox -s tests\n" in text
    sessions = set(re.findall(r"^def (\w+)\(session: nox\.Session\) -> None:", (ROOT / "noxfile.py").read_text(), re.M))
    assert set(re.findall(r"nox -s (\w+)", text)) <= sessions
    assert {"demo", "tests", "lint", "types", "wheels", "docs", "registry"} <= sessions


def test_commands_of_the_readme_exist() -> None:
    typer = pytest.importorskip("typer")
    from paperhooks.commands import build_app

    known = set(typer.main.get_command(build_app()).commands)
    used = set(re.findall(r"^    paperhooks ([a-z]+)", README.read_text(encoding="utf-8"), re.M))
    assert used
    assert used <= known


def test_no_page_names_a_place_on_a_machine() -> None:
    """Absolute paths of whoever wrote a page help no reader."""
    home = re.compile(r"(?<![\w.])/(?:tmp|root|home|Users)/\w")
    for page in PAGES:
        assert home.findall(page.read_text(encoding="utf-8")) == [], page
