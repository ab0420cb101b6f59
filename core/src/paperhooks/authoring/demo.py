"""Running plugins' demos: small, offline, with a report at the end.

A plugin's ``PluginInfo.demo`` names a function that takes a :class:`DemoContext`, prints what it does through
``context.echo`` and leaves its report in ``context.out``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from paperhooks.errors import PluginBroken, PluginNotFound
from paperhooks.io.harmless import error_text
from paperhooks.plugins.discovery import PluginStatus, as_error
from paperhooks.plugins.installed import catalog
from paperhooks.plugins.methods import import_target
from paperhooks.reports.run_folder import RunFolder

__all__ = ["DEFAULT_OUT", "DemoContext", "DemoResult", "run_demo"]

#: Where demos leave their reports unless told otherwise.
DEFAULT_OUT = Path("paperhooks-demo")


def _silent(_: str) -> None:
    """Library use prints nothing."""


@dataclass(frozen=True, slots=True)
class DemoContext:
    """What a demo function receives.

    out
        Folder of this plugin's demo; it exists. An earlier demo's files may lie there and may be replaced.
    echo
        Prints one line for the person who watches.
    quick
        Asks for the shortest run that still shows something.
    seed
        Seed of everything random in the demo.
    """

    out: Path
    echo: Callable[[str], None] = _silent
    quick: bool = False
    seed: int = 0

    def run_folder(self, name: str = "") -> RunFolder:
        """A run folder for the demo's results: ``out`` itself, or a folder in it."""
        return RunFolder(self.out / name if name else self.out)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """How one plugin's demo ended: seconds, its folder, its report when it wrote one, its error when it failed."""

    plugin: str
    out: Path
    seconds: float
    report: Path | None = None
    error: Exception | None = field(default=None, repr=False)


def run_demo(
    name: str | None = None,
    out: str | Path | None = None,
    *,
    echo: Callable[[str], None] = _silent,
    quick: bool = False,
    seed: int = 0,
) -> list[DemoResult]:
    """Run one plugin's demo, or those of all healthy plugins that have one.

    Asked for one plugin, its error is raised as it is; asked for all, errors are kept in the results and the others
    still run. Raises PluginNotFound when there is no such plugin, or none with a demo.
    """
    root = Path(out) if out is not None else DEFAULT_OUT
    if name is not None:
        result = _run(_with_demo(name), root, echo, quick, seed)
        if result.error is not None:
            raise result.error
        return [result]
    plugins = [status for status in catalog().healthy if status.info and status.info.demo]
    if not plugins:
        raise PluginNotFound("no installed plugin has a demo; see: paperhooks plugins --available")
    return [_run(status, root, echo, quick, seed) for status in plugins]


def _with_demo(name: str) -> PluginStatus:
    status = catalog().plugin(name)
    if status.info is None:
        raise as_error(status)
    if status.info.demo is None:
        raise PluginNotFound(f"plugin {name!r} has no demo")
    return status


def _run(status: PluginStatus, root: Path, echo: Callable[[str], None], quick: bool, seed: int) -> DemoResult:
    folder = root / status.name
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    error: Exception | None = None
    try:
        _load(status)(DemoContext(folder, echo, quick, seed))
    except Exception as failure:
        failure.add_note(f"in the demo of plugin {status.name!r}")
        error = failure
    except (SystemExit, GeneratorExit) as failure:  # nothing but Ctrl-C ends the others
        error = PluginBroken(f"the demo of plugin {status.name!r} raised {error_text(failure)}")
    report = folder / "report.html"
    shown = report if error is None and report.is_file() else None
    return DemoResult(status.name, folder, time.perf_counter() - begin, shown, error)


def _load(status: PluginStatus) -> Callable[[DemoContext], object]:
    target = status.info.demo if status.info else None
    try:
        demo = import_target(str(target))
    except Exception as error:
        raise PluginBroken(
            f"the demo of plugin {status.name!r} ({target}) cannot be imported: {error_text(error)}"
        ) from error
    if not callable(demo):
        raise PluginBroken(f"the demo of plugin {status.name!r} ({target}) is not callable")
    return demo  # type: ignore[no-any-return]
