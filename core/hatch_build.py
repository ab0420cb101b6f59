"""Build hook: puts the repository's ``registry.toml`` into the sdist and into the wheel.

The file lies one folder above the package in the repository and beside ``pyproject.toml`` in an unpacked sdist; a
static ``force-include`` can only name one of the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RegistryHook(BuildHookInterface):
    """Adds ``registry.toml`` to what is built; an editable install finds it by walking up instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raise FileNotFoundError when neither place has the registry."""
        if version == "editable":
            return
        root = Path(self.root)
        for candidate in (root / "registry.toml", root.parent / "registry.toml"):
            if candidate.is_file():
                target = "registry.toml" if self.target_name == "sdist" else "paperhooks/registry.toml"
                build_data["force_include"][str(candidate)] = target
                return
        raise FileNotFoundError(f"registry.toml is neither in {root} nor in {root.parent}")
