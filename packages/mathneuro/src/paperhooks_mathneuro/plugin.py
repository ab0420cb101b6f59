"""The light description that the entry point exposes."""

from paperhooks.info import Paper, PluginInfo

PLUGIN = PluginInfo(
    name="mathneuro",
    api=1,
    summary="Finds the weights of a skill with forward passes alone, and prunes or scales them reversibly.",
    methods={"mathneuro": "paperhooks_mathneuro.mathneuro:MathNeuro"},
    paper=Paper(
        arxiv="2410.16930",
        title="Math Neurosurgery: Isolating Language Models' Math Reasoning Abilities Using Only Forward Passes",
        authors="Bryan R. Christ et al.",
        year=2025,
        venue="ACL 2025",
        code="bryanchrist/MathNeuro",
    ),
    hooks="paperhooks_mathneuro.hooks:HOOKS",
    demo="paperhooks_mathneuro.demo:run",
    claims="claims.toml",
)
