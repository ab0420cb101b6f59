"""The light description that the entry point exposes."""

from paperhooks.info import Paper, PluginInfo

PLUGIN = PluginInfo(
    name="cca",
    api=1,
    summary="Places image patches by concentric rings, in positions and mask; POPE, CHAIR and MME.",
    methods={"cca": "paperhooks_cca.cca:CCA"},
    paper=Paper(
        arxiv="2410.15926",
        title="Mitigating Object Hallucination via Concentric Causal Attention",
        authors="Yun Xing et al.",
        year=2024,
        venue="NeurIPS 2024",
        code="xing0047/cca-llava",
    ),
    hooks="paperhooks_cca.hooks:HOOKS",
    demo="paperhooks_cca.demo:run",
    claims="claims.toml",
)
