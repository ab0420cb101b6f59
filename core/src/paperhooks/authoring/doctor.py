"""A check-up of the installation: versions, devices, threads, plugins, conflicts, registry."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from packaging.requirements import Requirement

from paperhooks.info import HOOK_API
from paperhooks.io.harmless import error_text
from paperhooks.plugins.discovery import PluginStatus, trace_text
from paperhooks.plugins.installed import Catalog, catalog
from paperhooks.sessions.versions import tested, tested_range, untested, varied

__all__ = ["Check", "Verdict", "examine"]

Verdict: TypeAlias = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: its subject, the verdict, what was found, and for a problem what to do and the traceback."""

    subject: str
    verdict: Verdict
    found: str
    fix: str = ""
    traceback: str = ""


def examine(plugins: Catalog | None = None) -> list[Check]:
    """All findings. Imports torch, and every method of every healthy plugin."""
    known = plugins if plugins is not None else catalog()
    return [
        Check("python", "ok", platform.python_version()),
        *_requirements(),
        *_devices(),
        _threads(),
        *_plugins(known),
        *_conflicts(known),
    ]


def _requirements() -> Iterator[Check]:
    import paperhooks

    yield Check("paperhooks", "ok", f"{paperhooks.__version__}, hook API {HOOK_API}")
    try:
        wanted = importlib.metadata.requires("paperhooks") or []
    except importlib.metadata.PackageNotFoundError:
        fix = "pip install paperhooks (or pip install -e core in a checkout)"
        yield Check("installation", "note", "paperhooks runs from a folder, not as an installed package", fix)
        return
    needed = [r for r in map(Requirement, wanted) if r.marker is None or r.marker.evaluate({"extra": ""})]
    yield from map(_requirement, needed)
    for name in sorted(set(varied()) - {requirement.name for requirement in needed}):
        if _installed(name):
            yield _tested(name)


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _tested(distribution: str) -> Check:
    """A library whose version fits, and whether the tests have seen that version."""
    version, versions = importlib.metadata.version(distribution), tested(distribution)
    if not versions:
        return Check(distribution, "ok", version)
    if not untested(distribution):
        return Check(distribution, "ok", f"{version} (tested: {tested_range(distribution)})")
    found = f"{version} is outside what paperhooks is tested with: {tested_range(distribution)}"
    return Check(distribution, "problem", found, f"pip install '{distribution}=={versions[-1]}'")


def _requirement(requirement: Requirement) -> Check:
    fix = f"pip install '{requirement.name}{requirement.specifier}'"
    version = _installed(requirement.name)
    if not version:
        return Check(requirement.name, "problem", f"missing; needed: {requirement.specifier or 'any'}", fix)
    if requirement.specifier.contains(version, prereleases=True):
        return _tested(requirement.name)
    return Check(requirement.name, "problem", f"{version} is outside {requirement.specifier}", fix)


def _devices() -> Iterator[Check]:
    try:
        import torch
    except Exception as error:
        yield Check(
            "torch", "problem", f"cannot be imported: {error_text(error)}", "pip install --force-reinstall torch"
        )
        return
    yield Check("cpu", "ok", f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            yield Check(f"cuda:{index}", "ok", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    else:
        yield Check("cuda", "note", "no CUDA device; everything runs on the CPU")


def _threads() -> Check:
    try:
        import torch
    except Exception as error:
        return Check("threads", "note", f"unknown without torch: {error_text(error)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    if threads <= cores:
        return Check("threads", "ok", f"torch uses {threads} of {cores} usable cores")
    return Check(
        "threads", "note", f"torch uses {threads} threads on {cores} usable cores", f"set OMP_NUM_THREADS={cores}"
    )


def _plugins(known: Catalog) -> Iterator[Check]:
    if not known.plugins:
        yield Check("plugins", "note", "none is installed", "see: paperhooks plugins --available")
    failures = known.deep_check()
    for status in known.plugins:
        yield _plugin(status)
    for address, error in failures.items():
        cause = error.__cause__
        yield Check(f"method {address}", "problem", str(error), traceback=trace_text(cause) if cause else "")


def _plugin(status: PluginStatus) -> Check:
    subject = f"plugin {status.name}"
    if status.healthy:
        return Check(subject, "ok", status.origin)
    if status.state == "blocked":
        return Check(subject, "note", f"{status.origin} is blocked", status.fix)
    return Check(subject, "problem", f"{status.origin} is {status.state}: {status.error}", status.fix, status.traceback)


def _conflicts(known: Catalog) -> Iterator[Check]:
    for sentence in known.conflicts():
        yield Check(
            "conflict", "problem", sentence, "uninstall one, block one (PAPERHOOKS_BLOCK), or write plugin/method"
        )
