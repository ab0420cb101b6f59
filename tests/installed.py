"""Looks at an environment in which wheels were installed; run by the session ``wheels`` inside that environment.

Its one argument is a JSON object: ``first_party`` (distributions that must be there), ``all`` (distributions of the
repository; the others of these must not be there), ``module`` (what the wheel under test provides), ``plugins`` (entry
points of it and of what it needs), ``environment`` (where first-party code must come from).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Exit with a message when something is not as expected."""
    wanted = json.loads(sys.argv[1])
    check_distributions(wanted)
    check_module(wanted)
    check_plugins(wanted)
    print(f"{wanted['module']}: alone with {', '.join(wanted['first_party'])}; entry points {wanted['plugins']}")


def check_distributions(wanted: dict[str, Any]) -> None:
    """Exactly the expected distributions of the repository are installed, in this environment."""
    environment = Path(wanted["environment"]).resolve()
    for name in wanted["all"]:
        found = list(importlib.metadata.distributions(name=name))
        expected = name in wanted["first_party"]
        if len(found) != expected:
            sys.exit(f"{name}: found {len(found)} times in {sys.path}, expected {int(expected)}")
        if expected and environment not in Path(str(found[0].locate_file(""))).resolve().parents:
            sys.exit(f"{name} lies in {found[0].locate_file('')}, not in {environment}")


def check_module(wanted: dict[str, Any]) -> None:
    """The module comes from the installed wheel, is typed, and says the version of the distribution."""
    module = importlib.import_module(wanted["module"])
    file = Path(str(module.__file__)).resolve()
    if Path(wanted["environment"]).resolve() not in file.parents:
        sys.exit(f"{wanted['module']} was imported from {file}, not from {wanted['environment']}")
    if not (file.parent / "py.typed").is_file():
        sys.exit(f"{file.parent} has no py.typed")
    version = importlib.metadata.version(wanted["module"].replace("_", "-"))
    if module.__version__ != version:
        sys.exit(f"{wanted['module']}.__version__ is {module.__version__}, the distribution says {version}")


def check_plugins(wanted: dict[str, Any]) -> None:
    """Every entry point resolves, core finds it healthy with all its methods, and no torch was needed to list it."""
    from paperhooks.plugins import catalog

    found = {status.name: status for status in catalog().plugins}
    if sorted(found) != wanted["plugins"]:
        sys.exit(f"core finds the plugins {sorted(found)}, expected {wanted['plugins']}")
    if "torch" in sys.modules:
        sys.exit("listing the plugins imported torch")
    for name, status in found.items():
        if not status.healthy:
            sys.exit(f"plugin {name} is {status.state}: {status.error}")
    failures = catalog().deep_check()
    if failures:
        sys.exit("; ".join(f"{name}: {error}" for name, error in failures.items()))


if __name__ == "__main__":
    main()
