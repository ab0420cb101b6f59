"""The light description that the entry point exposes."""

from paperhooks.info import Paper, PluginInfo

__all__ = ["PLUGIN"]

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
    claims="claims.toml",
)
