"""The light description that the entry point exposes, and the process-wide hooks."""

from typing import Any

from paperhooks import hookimpl
from paperhooks.info import Paper, PluginInfo

__all__ = ["PLUGIN", "register_commands"]

PLUGIN = PluginInfo(
    name="miniplm",
    api=1,
    summary="Scores a corpus with two models and keeps what teaches; distillation losses beside it.",
    methods={
        "miniplm": "paperhooks_miniplm.method:MiniPLM",
        "distil": "paperhooks_miniplm.distillation.methods:Distil",
        "distil-term": "paperhooks_miniplm.distillation.methods:DistilTerm",
    },
    paper=Paper(
        arxiv="2410.17215",
        title="MiniPLM: Knowledge Distillation for Pre-Training Language Models",
        authors="Yuxian Gu et al.",
        year=2024,
        venue="ICLR 2025",
        code="thu-coai/MiniPLM",
    ),
    hooks="paperhooks_miniplm.plugin",
    demo="paperhooks_miniplm.demo:run",
    claims="claims.toml",
)


@hookimpl
def register_commands(app: Any) -> None:
    """Add ``paperhooks miniplm ...``; the command line's libraries are imported only here."""
    from paperhooks_miniplm.commands import add_commands

    add_commands(app)
