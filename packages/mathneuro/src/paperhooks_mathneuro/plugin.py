"""The light description that the entry point exposes, and the process-wide hooks."""

from typing import Any

from paperhooks import hookimpl
from paperhooks.info import Paper, PluginInfo

__all__ = ["PLUGIN", "register_commands"]

PLUGIN = PluginInfo(
    name="mathneuro",
    api=1,
    summary="Finds the weights of a skill with forward passes alone, and prunes or scales them reversibly.",
    methods={"mathneuro": "paperhooks_mathneuro.method:MathNeuro"},
    paper=Paper(
        arxiv="2410.16930",
        title="Math Neurosurgery: Isolating Language Models' Math Reasoning Abilities Using Only Forward Passes",
        authors="Bryan R. Christ et al.",
        year=2025,
        venue="ACL 2025",
        code="bryanchrist/MathNeuro",
    ),
    hooks="paperhooks_mathneuro.plugin",
    demo="paperhooks_mathneuro.demo:run",
    claims="claims.toml",
)


@hookimpl
def register_commands(app: Any) -> None:
    """Add ``paperhooks mathneuro ...``; the command line's libraries are imported only here."""
    from paperhooks_mathneuro.commands import add_commands

    add_commands(app)
