"""The light description that the entry point exposes, and the process-wide hooks."""

from typing import Any

from paperhooks import hookimpl
from paperhooks.info import Paper, PluginInfo

__all__ = ["PLUGIN", "register_commands"]

PLUGIN = PluginInfo(
    name="pyramiddrop",
    api=1,
    summary="Drops redundant image tokens stage by stage, ranked by the last instruction token.",
    methods={
        "pyramiddrop": "paperhooks_pyramiddrop.method:PyramidDrop",
        "paper": "paperhooks_pyramiddrop.method:PaperPyramidDrop",
        "random": "paperhooks_pyramiddrop.method:RandomDrop",
    },
    paper=Paper(
        arxiv="2410.17247",
        title="PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
        authors="Long Xing et al.",
        year=2025,
        venue="CVPR 2025",
        code="Cooperx521/PyramidDrop",
    ),
    hooks="paperhooks_pyramiddrop.plugin",
    demo="paperhooks_pyramiddrop.demo:run",
    claims="claims.toml",
)


@hookimpl
def register_commands(app: Any) -> None:
    """Add ``paperhooks pyramiddrop ...``; the command line's libraries are imported only here."""
    from paperhooks_pyramiddrop.commands import add_commands

    add_commands(app)
