"""A folder that looks like site-packages: distributions with entry points that importlib.metadata really finds."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
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
        self, distribution: str, name: str, source: str | None = None, *, version: str = "1.0", method: str = METHOD,
        requires: Sequence[str] = (), entries: bytes | None = None, metadata: bytes = b"",
    ) -> str:  # fmt: skip
        """Add a distribution with one entry point ``name``; returns its module's name.

        :param requires: requirements that it declares. :param entries: the whole ``entry_points.txt``, in place of one
            line. :param metadata: what follows in its ``METADATA``.
        """
        module = distribution.replace("-", "_")
        text = source if source is not None else info_source(name, module)
        (self.root / f"{module}.py").write_text(textwrap.dedent(text), encoding="utf-8")
        (self.root / f"{module}_method.py").write_text(textwrap.dedent(method), encoding="utf-8")
        info = self.root / f"{module}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
        lines += [f"Requires-Dist: {one}" for one in requires]
        (info / "METADATA").write_bytes("\n".join([*lines, ""]).encode() + metadata)
        entries = f"[paperhooks.plugins]\n{name} = {module}:PLUGIN\n".encode() if entries is None else entries
        (info / "entry_points.txt").write_bytes(entries)
        return module

    def forget(self) -> None:
        """Remove the modules of this folder from ``sys.modules``."""
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(self.root)):
                del sys.modules[name]
