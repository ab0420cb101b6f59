"""Writes a constraints file with the lowest version that every ``>=`` in the repository's packages allows.

    python tests/lowest.py OUT [--keep CONSTRAINTS NAME ...]

pip has no resolver for lowest versions. Where several packages give different floors for one requirement, the highest
is taken, since all of them must hold. Names after ``--keep`` are taken from CONSTRAINTS as they are.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


def requirements(folder: Path) -> list[Requirement]:
    """All requirements of a package with its extras, but for the extra ``test``: tools may be as new as they like."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [lines for extra, lines in project.get("optional-dependencies", {}).items() if extra != "test"]
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


def lowest(found: Iterable[Requirement]) -> dict[str, Version]:
    """Name to the lowest version that all requirements on it allow.

    Raises ValueError for a requirement without a floor.
    """
    floors: dict[str, Version] = {}
    for requirement in found:
        versions = [Version(spec.version) for spec in requirement.specifier if spec.operator in (">=", "==", "~=")]
        if not versions and not requirement.extras:
            raise ValueError(f"{requirement} has no lower bound; write {requirement.name}>=VERSION")
        name = canonicalize_name(requirement.name)
        if versions:
            floors[name] = max([*versions, *([floors[name]] if name in floors else [])])
    return floors


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep", nargs="+", default=[], metavar="CONSTRAINTS NAME")
    options = parser.parse_args()
    folders = [ROOT / "core", *(file.parent for file in sorted((ROOT / "packages").glob("*/pyproject.toml")))]
    floors = lowest(requirement for folder in folders for requirement in requirements(folder))
    own = {canonicalize_name(tomllib.loads((f / "pyproject.toml").read_text())["project"]["name"]) for f in folders}
    kept = {canonicalize_name(name) for name in options.keep[1:]}
    lines = [f"{name}=={version}" for name, version in sorted(floors.items()) if name not in own | kept]
    if kept:
        pins = [Requirement(line) for line in _lines(Path(options.keep[0]))]
        lines += [str(pin) for pin in pins if canonicalize_name(pin.name) in kept]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


if __name__ == "__main__":
    main()
