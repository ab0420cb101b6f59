"""The light description that the entry point exposes, and the process-wide hooks."""

from typing import Any

from paperhooks import hookimpl
from paperhooks.info import Paper, PluginInfo

__all__ = ["PLUGIN", "register_commands"]

PLUGIN = PluginInfo(
    name="sso",
    api=1,
    summary="Preference pairs that a chat model writes itself, and an objective that keeps it able to.",
    methods={"sso": "paperhooks_sso.method:SSO"},
    paper=Paper(
        arxiv="2410.17131",
        title="Self-Steering Optimization: Autonomous Preference Optimization for Large Language Models",
        authors="Hao Xiang et al.",
        year=2024,
        venue="Findings of ACL 2025",
        code="icip-cas/SSO",
    ),
    hooks="paperhooks_sso.plugin",
    demo="paperhooks_sso.demo:run",
    claims="claims.toml",
)


@hookimpl
def register_commands(app: Any) -> None:
    """Add ``paperhooks sso ...``; the command line's libraries are imported only here."""
    from paperhooks_sso.commands import add_commands

    add_commands(app)
