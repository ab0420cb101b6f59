"""The light description that the entry point exposes."""

from typing import Final

from paperhooks.info import Paper, PluginInfo

__all__ = ["DEFAULT_LEVELS", "PLUGIN"]

#: Whose levels are searched for a kind of target, where the user names no methods.
DEFAULT_LEVELS: Final = {
    "depth": ("evopress/drop",),
    "sparsity": ("evopress/sparsegpt",),
    "bits": ("evopress/gptq",),
    "bytes": ("evopress/drop", "evopress/sparsegpt", "evopress/gptq"),
    "parameters": ("evopress/drop", "evopress/sparsegpt"),
    "flops": ("evopress/drop",),
}

PLUGIN = PluginInfo(
    name="evopress",
    api=1,
    summary="Searches the best non-uniform compression under one budget, over the levels that any methods offer.",
    methods={
        "evopress": "paperhooks_evopress.method:EvoPress",
        "drop": "paperhooks_evopress.levels.drop:SublayerDrop",
        "sparsegpt": "paperhooks_evopress.levels.sparsegpt:SparseGPT",
        "gptq": "paperhooks_evopress.levels.gptq:GPTQ",
        "gguf": "paperhooks_evopress.levels.gguf:Gguf",
        "baselines": "paperhooks_evopress.simple_choices:BestBaseline",
    },
    paper=Paper(
        arxiv="2410.14649",
        title="EvoPress: Accurate Dynamic Model Compression via Evolutionary Search",
        authors="Oliver Sieberling et al.",
        year=2025,
        venue="ICML 2025",
        code="IST-DASLab/EvoPress",
    ),
    hooks="paperhooks_evopress.registration",
    demo="paperhooks_evopress.demo:run",
    claims="claims.toml",
)
