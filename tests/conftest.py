"""Shared by the tests that span packages: offline, few threads."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads on small matrices cost more than they give."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many of the trials with faults hold; one that tries several things tells how many of how many."""
    held = tried = 0
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if "tests/faults/" not in report.nodeid or (outcome == "passed" and report.when != "call"):
                continue
            good, all_ = dict(report.user_properties).get("checks", (int(outcome == "passed"), 1))
            held, tried = held + good, tried + all_
    if tried:
        terminalreporter.write_line(f"faults: {held} of {tried} checks hold")
