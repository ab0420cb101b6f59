"""What is in the built distributions. The session ``wheels`` installs them and runs their tests."""

from __future__ import annotations

import email
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from paperhooks.testing import run_python
from repository import CORE, PACKAGES, PLUGINS, Package

pytest.importorskip("build")
pytest.importorskip("hatchling")


BUILT = os.environ.get("PAPERHOOKS_WHEELS")


@pytest.fixture(scope="module", params=PACKAGES, ids=str)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Path, Path]:
    """A package, its wheel (built from its sdist) and its sdist; the session ``wheels`` has built them already."""
    package: Package = request.param
    if BUILT:
        out = Path(BUILT) / package.name
    else:
        out = tmp_path_factory.mktemp("dist")
        run_python("-m", "build", "--no-isolation", "--outdir", out, package.folder)
    return package, next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def names(wheel: Path) -> set[str]:
    """The files of a wheel."""
    return set(zipfile.ZipFile(wheel).namelist())


def metadata(wheel: Path) -> email.message.Message:
    """METADATA of a wheel."""
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_every_file_of_the_source_and_nothing_else(built) -> None:
    package, wheel, _ = built
    source = package.folder / "src"
    files = {f.relative_to(source).as_posix() for f in source.rglob("*") if f.is_file() and "__pycache__" not in str(f)}
    extra = {"paperhooks/registry.toml"} if package == CORE else set()
    assert {name for name in names(wheel) if ".dist-info/" not in name} == files | extra


def test_licence_and_metadata(built) -> None:
    package, wheel, _ = built
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names(wheel))
    assert wheel.name.endswith("-py3-none-any.whl")
    found = metadata(wheel)
    assert found["Name"] == package.name
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Requires-Python"] == ">=3.11"
    assert found.get_payload().startswith("# ")


def test_entry_points_are_there(built) -> None:
    package, wheel, _ = built
    archive = zipfile.ZipFile(wheel)
    found = [archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt")]
    wanted = "[paperhooks.plugins]" if package in PLUGINS else "paperhooks = paperhooks.cli:main"
    if package in PLUGINS or package == CORE:
        assert wanted in found[0]
    else:
        assert found == []


def test_wheels_are_small(built) -> None:
    _, wheel, _ = built
    assert wheel.stat().st_size < 15_000_000


def test_the_sdist_has_tests_and_changelog(built) -> None:
    package, _, sdist = built
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    tests = {f"tests/{file.name}" for file in (package.folder / "tests").glob("test_*.py")}
    assert {"CHANGELOG.md", "README.md", "LICENSE", "pyproject.toml", *tests} <= found
