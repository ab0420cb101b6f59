"""A folder that looks like site-packages: distributions with entry points that importlib.metadata really finds."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

__all__ = ["METHOD", "FakeSite", "info_source"]

METHOD = """
    from dataclasses import dataclass

    import paperhooks


    @dataclass(eq=False)
    class Scale:
        factor: float = 0.5
        first_layer: int = 0
        traits = paperhooks.Traits(training=True)

        @paperhooks.hookimpl
        def post_layer(self, hidden_states):
            return hidden_states * self.factor
"""


def info_source(name: str, module: str, *, api: int = 1, methods: str | None = None, extra: str = "") -> str:
    """Source of a plugin module that describes one method ``Scale`` of ``module``."""
    offered = methods if methods is not None else f'{{"{name}": "{module}_method:Scale"}}'
    return (
        "from paperhooks.info import PluginInfo\n"
        f'PLUGIN = PluginInfo(name="{name}", api={api}, summary="Scales layers.", methods={offered}, {extra})\n'
    )


class FakeSite:
    """Writes distributions under ``root``, which is on ``sys.path``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self, distribution: str, name: str, source: str | None = None, *, version: str = "1.0", method: str = METHOD
    ) -> str:
        """Add a distribution with one entry point ``name``; returns its module's name."""
        module = distribution.replace("-", "_")
        text = source if source is not None else info_source(name, module)
        (self.root / f"{module}.py").write_text(textwrap.dedent(text), encoding="utf-8")
        (self.root / f"{module}_method.py").write_text(textwrap.dedent(method), encoding="utf-8")
        info = self.root / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[paperhooks.plugins]\n{name} = {module}:PLUGIN\n")
        return module

    def forget(self) -> None:
        """Remove the modules of this folder from ``sys.modules``."""
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(self.root)):
                del sys.modules[name]
