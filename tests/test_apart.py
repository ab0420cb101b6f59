"""Extras that bring an engine are left out of the shared environments, and no others."""

from __future__ import annotations

import ast

from packaging.requirements import Requirement
from repository import PACKAGES, ROOT, tree

#: Libraries that bring much of their own, or pin what the others need.
ENGINES = {"datatrove", "ray", "vllm"}


def left_out() -> set[str]:
    """What noxfile.py, which needs nox to be imported, names so."""
    assigned = (node for node in tree(ROOT / "noxfile.py").body if isinstance(node, ast.Assign))
    (found,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == "APART")
    return set(ast.literal_eval(found))


def test_extras_that_bring_an_engine_are_left_out_of_shared_environments() -> None:
    extras = [extra for package in PACKAGES for extra in package.project.get("optional-dependencies", {}).items()]
    brought = {name: {Requirement(line).name for line in lines} & ENGINES for name, lines in extras}
    apart = {name for name, engines in brought.items() if engines}
    assert apart == left_out()


def test_no_other_extra_and_no_dependency_brings_one_along() -> None:
    for package in PACKAGES:
        extras = package.project.get("optional-dependencies", {})
        shared = [line for name, lines in extras.items() if name not in left_out() for line in lines]
        found = [Requirement(line) for line in (*package.project["dependencies"], *shared)]
        assert not [str(each) for each in found if each.name in ENGINES or each.extras & left_out()], str(package)
