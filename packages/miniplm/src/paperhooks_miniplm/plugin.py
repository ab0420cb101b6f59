"""The light description that the entry point exposes."""

from paperhooks.info import Paper, PluginInfo

PLUGIN = PluginInfo(
    name="miniplm",
    api=1,
    summary="Scores a corpus with two models and keeps what teaches; distillation losses beside it.",
    methods={
        "miniplm": "paperhooks_miniplm.miniplm:MiniPLM",
        "distil": "paperhooks_miniplm.distilling:Distil",
        "distil-term": "paperhooks_miniplm.distilling:DistilTerm",
    },
    paper=Paper(
        arxiv="2410.17215",
        title="MiniPLM: Knowledge Distillation for Pre-Training Language Models",
        authors="Yuxian Gu et al.",
        year=2024,
        venue="ICLR 2025",
        code="thu-coai/MiniPLM",
    ),
    hooks="paperhooks_miniplm.hooks:HOOKS",
    demo="paperhooks_miniplm.demo:run",
    claims="claims.toml",
)
