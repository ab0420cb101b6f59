"""Processes that form a group of ``torch.distributed`` for a test, and leave it in order.

    def train(folder):  # at the top of a module; runs in every process
        ...
        return torch.distributed.get_rank()

    assert run_ranks(train, tmp_path, count=2) == [0, 1]

:class:`RankPool` keeps the processes for further calls, which saves the seconds that loading torch takes. A process
that ends while its group stands has threads that outlive the interpreter, and now
and then aborts.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import inspect
import itertools
import json
import os
import runpy
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from paperhooks.testing.failures import Failure, is_echo, report
from paperhooks.testing.processes import LIMIT, ChildError, Processes

_GRACE, _PAUSE = 5.0, 0.02  # seconds that the others have when a rank has failed; how often files are looked for

__all__ = ["RankPool", "run_ranks"]


def run_ranks(
    target: Callable[..., Any] | str | Path,
    *arguments: Any,
    count: int = 2,
    launcher: Literal["", "torchrun"] = "",
    limit: float = LIMIT,
    environment: Mapping[str, str | None] | None = None,
) -> list[Any]:
    """Call a function in ``count`` processes that form a gloo group; returns what each rank's call returned.

    Every process has ``RANK``, ``WORLD_SIZE`` and their like, and this process' ``sys.path``. The group meets in a
    file, so that no port can be taken, and is destroyed when all have returned, or where one has failed.

    :param target: a function at the top of a module, or the path of a script, whose words are the arguments.
    :param arguments: what JSON can say; paths arrive as texts. The function returns what JSON can say, a script None.
    :param launcher: with "torchrun" that starts the processes, and they form a group themselves (as a Trainer does).
    :param limit: seconds for all of it. :param environment: variables that differ from this process'; None removes.
    :raises ChildError: a rank failed, or was not done in time; it is named, and its own error comes first.
    :raises ValueError: the target is no such function, or an argument is nothing that JSON can say.
    """
    with _Ranks(count, limit) as ranks:
        ranks.order(target, arguments, group=not launcher)
        ranks.begin(launcher, environment or {})
        ranks.wait()
        return ranks.values()


class RankPool:
    """Processes that form a gloo group for one call after another; a call that fails costs them their lives.

        with RankPool(count=2) as pool:
            assert pool.run(train, tmp_path) == [0, 1]

    The processes start with the first call. Each call has a group of its own, and finds accelerate's state as new; what
    else a call leaves in its process (modules, caches, random states) the next one finds.
    """

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self._ranks: _Pool | None = None

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, target: Callable[..., Any], *arguments: Any, limit: float = 60.0) -> list[Any]:
        """Call a function in every process, as :func:`run_ranks` does.

        :param limit: seconds for this call; where they pass, all processes say where they stand, and end.
        :raises ChildError: a rank failed, or was not done in time. :raises ValueError: as for :func:`run_ranks`.
        """
        if self._ranks is None:
            self._ranks = _Pool(self.count, limit)
            self._ranks.begin("", {"PAPERHOOKS_POOL": "1"})
        try:
            return self._ranks.turn(target, arguments, limit)
        except ChildError:
            self.close()
            raise

    def close(self) -> None:
        """End the processes; a later call starts new ones."""
        if self._ranks is not None:
            self._ranks.close()
            self._ranks = None


class _Ranks(Processes):
    """The processes of :func:`run_ranks`; each leaves its value or its error as a file."""

    def __init__(self, count: int, limit: float) -> None:
        super().__init__(limit)
        self.names = [f"rank {rank} of {count}" for rank in range(count)]

    def __enter__(self) -> _Ranks:
        return self

    @property
    def place(self) -> Path:
        """Where the order lies and the answers come."""
        return self.folder

    def order(self, target: Callable[..., Any] | str | Path, arguments: tuple[Any, ...], group: bool) -> None:
        order = {"target": _named(target), "arguments": arguments, "group": group, "limit": self.limit}
        try:
            text = json.dumps(order, default=os.fspath)
        except TypeError as error:
            raise ValueError(f"arguments are {arguments!r}; expected what JSON can say, and paths") from error
        _write(self.place / "order.json", text)

    def begin(self, launcher: str, environment: Mapping[str, str | None]) -> None:
        count, worker = len(self.names), ("-m", "paperhooks.testing.ranks", self.folder)
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment}
        if launcher:  # standalone: the launcher's store takes a free port itself, and all use that store
            options = ("--standalone", f"--nproc-per-node={count}")
            self.start("-m", "torch.distributed.run", *options, *worker, name=launcher, environment=paths)
            return
        shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        for rank, name in enumerate(self.names):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            self.start(*worker, name=name, environment={**paths, **shared, **own})

    def values(self) -> list[Any]:
        files = [self._left(rank, "value") for rank in range(len(self.names))]
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def unfinished(self) -> list[str]:
        left = [(name, self._left(n, "value"), self._left(n, "error")) for n, name in enumerate(self.names)]
        return [name for name, *files in left if not any(file.exists() for file in files)] or super().unfinished()

    def failures(self) -> list[Failure]:
        found = {}
        for rank, name in enumerate(self.names):
            if (file := self._left(rank, "error")).exists():
                told = json.loads(file.read_text(encoding="utf-8"))
                headline = f"{name} failed: {told['error']}"
                found[name] = Failure(headline, told["text"], told["when"], int(is_echo(told["error"])))
        known = any(failure.depth == 0 for failure in found.values())
        others = zip([child.name for child in self.children if child.status], super().failures(), strict=True)
        # A launcher that fails tells nothing new, unless a rank died without a word.
        silent = [
            Failure(each.headline, each.text, each.when, 2 if known and name not in self.names else each.depth)
            for name, each in others
            if name not in found
        ]
        return [*found.values(), *silent]

    def _left(self, rank: int, what: str) -> Path:
        return self.place / f"rank-{rank}.{what}"


class _Pool(_Ranks):
    """The processes of :class:`RankPool`: they wait for one order after another, each in a folder of its own."""

    turns = 0

    @property
    def place(self) -> Path:
        return self.folder / f"turn-{self.turns}"

    def unfinished(self) -> list[str]:
        """Those that have left the group neither in order nor by an error."""
        left = [(name, self._left(n, "done"), self._left(n, "error")) for n, name in enumerate(self.names)]
        return [name for name, *files in left if not any(file.exists() for file in files)]

    def turn(self, target: Callable[..., Any], arguments: tuple[Any, ...], limit: float) -> list[Any]:
        self.turns, self.limit = self.turns + 1, limit
        self._deadline = time.monotonic() + limit
        self.place.mkdir()
        self.order(target, arguments, group=True)
        failed = 0.0
        while names := self.unfinished():
            now = time.monotonic()
            failed = failed or (now if self.failures() or any(child.status for child in self.children) else 0.0)
            if failed and now > failed + _GRACE:
                break
            if now > self._deadline:
                raise self._late(self.children)
            time.sleep(_PAUSE)
        if failures := self.failures():
            raise ChildError("\n".join([report(failures), *(f"{name} had not ended" for name in names)]))
        return self.values()


def _named(target: Callable[..., Any] | str | Path) -> list[str]:
    """The path of a script; or a function's name, its module and the file of that."""
    if isinstance(target, str | Path):
        return [str(Path(target).resolve())]
    module, name = getattr(target, "__module__", ""), getattr(target, "__qualname__", "")
    if module == "__main__" or getattr(sys.modules.get(module), name, None) is not target:
        raise ValueError(f"target is {target!r}; expected a function at the top of a module that can be imported")
    return [name, module, str(inspect.getsourcefile(target))]


# -- inside a rank ---------------------------------------------------------------------------------------------------


def _serve(folder: Path, rank: str) -> None:
    """What each process of a pool runs."""
    for turn in itertools.count(1):
        place = folder / f"turn-{turn}"
        while not (place / "order.json").exists():
            time.sleep(_PAUSE)
        _work(place, rank)
        _write(place / f"rank-{rank}.done", "")
        if (state := sys.modules.get("accelerate.state")) is not None:
            state.AcceleratorState._reset_state(reset_partial_state=True)


def _work(folder: Path, rank: str) -> None:
    """What each process runs."""
    order = json.loads((folder / "order.json").read_text(encoding="utf-8"))
    with _group(folder if order["group"] else None, order["limit"], folder / f"rank-{rank}.error"):
        value = json.dumps(_called(order["target"], order["arguments"]))
        _write(folder / f"rank-{rank}.value", value)


def _called(target: list[str], arguments: list[Any]) -> Any:
    if len(target) == 1:
        (script,) = target
        sys.argv = [script, *map(str, arguments)]
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")
        return None
    name, module, file = target
    return getattr(_imported(module, file), name)(*arguments)


def _imported(name: str, file: str) -> ModuleType:
    """A module by its name; from its file where the name is no place on the path, as in pytest's importlib mode."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        spec = importlib.util.spec_from_file_location(name, file)
        if error.name is None or not f"{name}.".startswith(f"{error.name}.") or spec is None or spec.loader is None:
            raise
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _group(folder: Path | None, limit: float, file: Path) -> Iterator[None]:
    """A gloo group that is left in order; an error is written down before the others can learn of it."""
    from torch import distributed

    try:
        if folder is not None:
            distributed.init_process_group(
                "gloo", init_method=(folder / "group").as_uri(), rank=int(os.environ["RANK"]),
                world_size=int(os.environ["WORLD_SIZE"]), timeout=timedelta(seconds=limit),
            )  # fmt: skip
        yield
        gc.collect()  # a wrapper in a reference cycle would keep threads of the group until the interpreter ends
        if distributed.is_initialized():
            distributed.barrier()
    except BaseException as error:
        told = {"when": time.time(), "error": _line(error), "text": traceback.format_exc()}
        _write(file, json.dumps(told))
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _write(file: Path, text: str) -> None:
    """Whole or not at all: another process may look at any time."""
    part = file.with_suffix(f"{file.suffix}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


if __name__ == "__main__":
    (_serve if os.environ.get("PAPERHOOKS_POOL") else _work)(Path(sys.argv[1]), os.environ["RANK"])
