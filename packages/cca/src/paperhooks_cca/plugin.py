"""The light description that the entry point exposes, and the process-wide hooks."""

from typing import Any

from paperhooks import hookimpl
from paperhooks.info import Paper, PluginInfo

__all__ = ["PLUGIN", "register_commands"]

PLUGIN = PluginInfo(
    name="cca",
    api=1,
    summary="Places image patches by concentric rings, in positions and mask.",
    methods={"cca": "paperhooks_cca.method:CCA"},
    paper=Paper(
        arxiv="2410.15926",
        title="Mitigating Object Hallucination via Concentric Causal Attention",
        authors="Yun Xing et al.",
        year=2024,
        venue="NeurIPS 2024",
        code="xing0047/cca-llava",
    ),
    hooks="paperhooks_cca.plugin",
    demo="paperhooks_cca.demo:run",
    claims="claims.toml",
)


@hookimpl
def register_commands(app: Any) -> None:
    """Add ``paperhooks cca ...``; the command line's libraries are imported only here."""
    from paperhooks_cca.commands import add_commands

    add_commands(app)
