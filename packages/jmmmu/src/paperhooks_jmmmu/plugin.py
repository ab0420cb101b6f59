"""The light description that the entry point exposes, and the evaluation tasks: importing this imports no task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from paperhooks import hookimpl
from paperhooks.info import Paper, PluginInfo, TaskInfo

__all__ = ["PLUGIN", "TASKS", "evaluation_tasks", "register_commands"]

_NEEDS: Final = ("text", "image")

TASKS: Final[tuple[TaskInfo, ...]] = (
    TaskInfo(
        name="jmmmu",
        summary="Japanese exam questions with pictures: 720 on general subjects, 600 on Japanese culture.",
        task="paperhooks_jmmmu.method:Jmmmu",
        needs=_NEEDS,
    ),
    TaskInfo(
        name="jmmmu-verified",
        summary="JMMMU with all questions multiple choice (JMMMU-verified-2025-12, the standard of JMMMU-Pro).",
        task="paperhooks_jmmmu.method:JmmmuVerified",
        needs=_NEEDS,
    ),
    TaskInfo(
        name="jmmmu-pro",
        summary="JMMMU-Pro: question, options and picture drawn into one image.",
        task="paperhooks_jmmmu.method:JmmmuPro",
        needs=_NEEDS,
    ),
    TaskInfo(
        name="mmmu-paired",
        summary="The English questions with the ids of JMMMU's general subjects, to pair with a Japanese run.",
        task="paperhooks_jmmmu.method:MmmuPaired",
        needs=_NEEDS,
    ),
)

PLUGIN: Final = PluginInfo(
    name="jmmmu",
    api=1,
    kind="benchmark",
    summary="JMMMU, JMMMU-verified and JMMMU-Pro: Japanese exams with pictures, and the scores behind the score.",
    paper=Paper(
        arxiv="2410.17250",
        title=(
            "JMMMU: A Japanese Massive Multi-discipline Multimodal Understanding Benchmark for Culture-aware Evaluation"
        ),
        authors="Shota Onohara et al.",
        year=2025,
        venue="NAACL 2025",
        code="EvolvingLMMs-Lab/lmms-eval",
    ),
    hooks="paperhooks_jmmmu.plugin",
    demo="paperhooks_jmmmu.demo:run",
    claims="claims.toml",
)


@hookimpl
def evaluation_tasks() -> Sequence[TaskInfo]:
    """The tasks ``jmmmu``, ``jmmmu-verified``, ``jmmmu-pro`` and ``mmmu-paired``."""
    return TASKS


@hookimpl
def register_commands(app: Any) -> None:
    """Add the commands under ``paperhooks jmmmu``."""
    from paperhooks_jmmmu.commands import add_commands

    add_commands(app)
