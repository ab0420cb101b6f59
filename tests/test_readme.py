"""The READMEs and the documentation say what is true: their code runs, their links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from installing import brought, install_lines, lay_out, named
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paperhooks.hooks import CHAINED
from paperhooks.plugins import catalog, implemented_hooks
from paperhooks.testing import ChildError, run_python
from repository import PACKAGES, PAPERS, ROOT, imports

README = ROOT / "README.md"
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s#]+)(?:#[^)]*)?\)")
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *[package.folder / "README.md" for package in PACKAGES],
]
RUNNABLE = [README, *[package.folder / "README.md" for package in PACKAGES]]


def acts_in_the_forward(page: Path) -> bool:
    """Whether a README shows a method that runs inside a model: that of its plugin, or any in the main one."""
    if page.parent not in [package.folder for package in PAPERS]:
        return "paperhooks.attach(" in blocks(page)
    return bool(CHAINED & set(implemented_hooks(catalog().method_class(page.parent.name))))


def blocks(page: Path) -> str:
    """All Python of a page, one after the other: later blocks use what earlier ones made."""
    return "\n".join(FENCE.findall(page.read_text(encoding="utf-8")))


def requirements(page: Path) -> list[Requirement]:
    """What the commands of a page install before its first import."""
    return [each for line in install_lines(page.read_text(encoding="utf-8")) for each in named(line)]


def run_with(installed: list[Requirement], code: str, folder: Path) -> str:
    """What code prints where nothing is installed but some requirements and what they need."""
    script, links = folder / "readme.py", folder / "installed"
    links.mkdir(parents=True)
    script.write_text(code, encoding="utf-8")
    paths = os.pathsep.join(map(str, lay_out(brought(installed), links)))
    return run_python("-S", script, cwd=folder, environment={"PYTHONPATH": paths}).stdout


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_the_code_imports_is_installed_before(page: Path) -> None:
    assert requirements(page), "no line installs anything before the first import"
    installed, homes = brought(requirements(page)), packages_distributions()
    homes |= {package.module: [package.name] for package in PACKAGES}
    wanted = {each.top for each in imports(ast.parse(blocks(page)))}
    names = {top: set(map(canonicalize_name, homes[top])) for top in wanted if top in homes}
    assert {package.module for package in PACKAGES} & set(names)
    assert {top: found for top, found in names.items() if not found & installed} == {}


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_runs_with_what_the_page_installs(page: Path, tmp_path: Path) -> None:
    code = blocks(page)
    printed = run_with(requirements(page), code, tmp_path)
    if acts_in_the_forward(page):
        assert "paperhooks.attach(" in code
        assert re.search("pre_(attention|decoder)", printed)


def test_code_that_needs_more_than_is_installed_does_not_run(tmp_path: Path) -> None:
    core = [Requirement("paperhooks")]
    with pytest.raises(ChildError, match="ModuleNotFoundError: No module named 'paperhooks_testbed'"):
        run_with(core, "import paperhooks_testbed", tmp_path / "one")
    with pytest.raises(ChildError, match="ModuleNotFoundError: No module named 'pytest'"):
        run_with(core, "import paperhooks\nimport pytest", tmp_path / "two")


def test_a_page_of_a_package_installs_that_package_and_says_how_to_from_a_clone() -> None:
    for package in PACKAGES:
        text = (package.folder / "README.md").read_text(encoding="utf-8")
        assert package.name in brought(requirements(package.folder / "README.md"))
        assert re.search(r"from a clone\]\((\.\./)+README\.md#install\)", text), package
    main = README.read_text(encoding="utf-8")
    assert "\n## Install\n" in main.partition("```python")[0]
    assert [package.name for package in PACKAGES if package.name not in main] == []


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
    from paperhooks.cli import build_app

    known = set(typer.main.get_command(build_app()).commands)
    used = set(re.findall(r"^    paperhooks ([a-z]+)", README.read_text(encoding="utf-8"), re.M))
    assert used
    assert used <= known


def test_no_page_names_a_place_on_a_machine() -> None:
    """Absolute paths of whoever wrote a page help no reader."""
    home = re.compile(r"(?<![\w.])/(?:tmp|root|home|Users)/\w")
    for page in PAGES:
        assert home.findall(page.read_text(encoding="utf-8")) == [], page
