"""The light description that the entry point exposes."""

from paperhooks.info import Paper, PluginInfo

PLUGIN = PluginInfo(
    name="pyramiddrop",
    api=1,
    summary="Drops redundant image tokens stage by stage, ranked by the last instruction token.",
    methods={
        "pyramiddrop": "paperhooks_pyramiddrop.pyramiddrop:PyramidDrop",
        "paper": "paperhooks_pyramiddrop.pyramiddrop:PaperPyramidDrop",
        "random": "paperhooks_pyramiddrop.pyramiddrop:RandomDrop",
    },
    paper=Paper(
        arxiv="2410.17247",
        title="PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
        authors="Long Xing et al.",
        year=2025,
        venue="CVPR 2025",
        code="Cooperx521/PyramidDrop",
    ),
    hooks="paperhooks_pyramiddrop.hooks:HOOKS",
    demo="paperhooks_pyramiddrop.demo:run",
    claims="claims.toml",
)
