"""``paperhooks export``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paperhooks.testing import FakeSite, info_source
from quiz_task import write_quiz

pytest_plugins = ["paperhooks.testing.site_fixtures"]

HOOKS = """
from paperhooks import hookimpl
from paperhooks.info import TaskInfo


@hookimpl
def evaluation_tasks():
    return [TaskInfo(name="color-quiz", summary="Colors.", task="quiz_task:Quiz", needs=("text", "image"))]
"""


@pytest.mark.parametrize("harness", ["lm-eval", "lmms-eval"])
def test_a_task_of_a_plugin_is_exported(site: FakeSite, cli, tmp_path: Path, harness: str) -> None:
    site.add("dist-one", "t-one", info_source("t-one", "dist_one", extra='hooks="dist_one_hooks"'))
    (site.root / "dist_one_hooks.py").write_text(HOOKS)
    write_quiz(tmp_path / "data")
    arguments = (
        "export",
        "color-quiz",
        "--data",
        str(tmp_path / "data"),
        "--to",
        harness,
        "--out",
        str(tmp_path / "f"),
    )
    code, out, err = cli(*arguments, "--layout", "interleave", "--stop", "x", "--option", "limit=7")
    assert code == 0, err
    assert "4 tasks for" in out
    assert "--tasks paperhooks_color_quiz" in out
    record = json.loads((tmp_path / "f" / "export.json").read_text())
    assert record["generation"] == {"max_new_tokens": 7, "stop": ["x"]}
    assert (record["task"], record["class"], record["mode"]) == ("color-quiz", "quiz_task:Quiz", "wrong")
    code, _, err = cli(*arguments, "--mode", "drawn")
    assert (code, "whole run" in err) == (1, True)
