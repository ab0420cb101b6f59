"""The light description that the entry point exposes, and the process-wide hooks."""

from typing import Any, Final

from paperhooks import hookimpl
from paperhooks.info import Paper, PluginInfo

__all__ = ["DEFAULT_LEVELS", "PLUGIN", "register_commands"]

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
        "drop": "paperhooks_evopress.levels.drop:Drop",
        "sparsegpt": "paperhooks_evopress.levels.sparsegpt:SparseGPT",
        "gptq": "paperhooks_evopress.levels.gptq:GPTQ",
        "gguf": "paperhooks_evopress.levels.gguf:Gguf",
    },
    paper=Paper(
        arxiv="2410.14649",
        title="EvoPress: Accurate Dynamic Model Compression via Evolutionary Search",
        authors="Oliver Sieberling et al.",
        year=2025,
        venue="ICML 2025",
        code="IST-DASLab/EvoPress",
    ),
    hooks="paperhooks_evopress.plugin",
    demo="paperhooks_evopress.demo:run",
    claims="claims.toml",
)


@hookimpl
def register_commands(app: Any) -> None:
    """Add ``paperhooks evopress ...``; the command line's libraries are imported only here."""
    from paperhooks_evopress.commands import add_commands

    add_commands(app)
