"""What a search over bits holds in memory and on disk, and what its selection reads and copies.

A random model of SmolLM2's size (30 layers of width 576, 540 MB in float32), its matrices at 2 to 6 bits in groups
of 64.

    peak_ratio           resident peak of a whole search with its database in memory, from the model to the artefact,
                         what is kept of the teacher included, above what the libraries take; against model and packed
                         database. Beside its own weights the model has whole weights for what stands at a level
    database_ratio       bytes of the packed levels, scales and zeros included, against dense half-precision tensors
    files_ratio          the same of the files that a prepared database is
    files_opened         while candidates are scored, the database mapped from its files
    bytes_copied_twice   by switches: what is copied of values that were unpacked already

    python packages/evopress/benchmarks/memory.py [--quick] [--teacher MIB]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import paperhooks
import torch
from paperhooks import CompressionRequest, ModelView
from paperhooks.hooks import Levels
from paperhooks.testing import fresh_process, print_peak, tiny_llama
from paperhooks.weights import packed_bytes
from paperhooks_evopress import (
    GPTQ,
    Evaluator,
    Evolution,
    EvoPress,
    LevelProblem,
    SearchSchedule,
    SelectionStage,
    Target,
    problem,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

WIDTHS: Final = (2, 3, 4, 5, 6)
GROUP: Final = 64
TOKENS: Final = 128
TEXTS: Final = 8
MIB: Final = 2**20
#: Operations that give the values that they are given.
COPIES: Final = ("aten.clone", "aten.copy_", "aten._to_copy")
#: Options of the search: few generations, each of which brings every matrix to some level.
SEARCH: Final = {"schedule": "quick", "generations": 3, "check_model": False}


def model_of(layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49_152, tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def matrices(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear layers in the decoder's layers, by name."""
    inside = ((name, module) for name, module in model.named_modules() if ".layers." in name)
    return {name: module for name, module in inside if isinstance(module, torch.nn.Linear)}


def texts(vocabulary: int, count: int = TEXTS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (TOKENS,), generator=generator).tolist() for _ in range(count)]


def packed_size(model: torch.nn.Module) -> int:
    """Bytes of all levels of a model's matrices."""
    shapes = [(module.weight.shape, module.weight.element_size()) for module in matrices(model).values()]
    return sum(
        packed_bytes(shape, width=width, group=GROUP, itemsize=size)["bytes"]
        for shape, size in shapes
        for width in WIDTHS
    )


# -- the peak of a search ----------------------------------------------------------------------------------------------


def searched(model: torch.nn.Module, vocabulary: int, teacher: int) -> Any:
    method = EvoPress(**SEARCH, teacher_bytes=teacher)
    levels = GPTQ(widths=WIDTHS, group=GROUP)
    return paperhooks.compress(
        model, method, data=texts(vocabulary), target="bits=3", levels_from=[levels], progress=False
    )


def peak(layers: int, teacher: int) -> None:
    """In a process of its own: the peak of model, database and search, above the libraries."""
    searched(tiny_llama(layers=2, hidden_size=64, intermediate_size=128), 90, teacher)  # what is loaded once

    def work() -> dict[str, float]:
        model = model_of(layers)
        own = sum(parameter.nbytes for parameter in model.parameters())
        packed = packed_size(model)
        artefact = searched(model, 49_152, teacher)
        return {"model_mib": own / MIB, "packed_mib": packed / MIB, "edits": len(artefact.edits)}

    print_peak(work)


# -- the database ------------------------------------------------------------------------------------------------------


def opened(view: ModelView) -> Levels:
    request = CompressionRequest(
        "memory", data=texts(49_152, 2), offers=[GPTQ(widths=WIDTHS, group=GROUP).compression_levels], progress=False
    )
    return request.levels(view, list(matrices(view.model)))


def sizes(levels: Levels, folder: Path) -> dict[str, float]:
    """Bytes of a prepared database, in memory and as files, against dense half-precision tensors."""
    dense = sum(2 * module.weight.numel() * len(WIDTHS) for module in matrices(levels.view.model).values())
    packed = sum(each.nbytes for n in levels for own in levels[n] for each in levels.packed(n, own.label).values())
    files = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"database_ratio": packed / dense, "files_ratio": files / dense}


# -- the selection -----------------------------------------------------------------------------------------------------


class Copies(TorchDispatchMode):
    """Counts the bytes that copying operations give back in the dtype in which they were."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        source = args[1] if name == "aten.copy_" else args[0] if args else None
        if name in COPIES and isinstance(source, Tensor) and source.dtype == result.dtype:
            self.nbytes += result.nbytes
        return result


def selection(levels: Levels, texts: Sequence[Tensor]) -> dict[str, int]:
    """A search over prepared levels: files opened while candidates are scored, and what switches copy."""
    posed: LevelProblem = problem(levels.view, levels, Target.of("bits=3"))
    evaluator = Evaluator(levels.view, levels, texts, limit=64 * MIB, most_perplexity=math.inf)
    copies, files, scoring = Copies(), list[str](), [False]
    switches, own = [0], levels.switch

    def switch(choice: Mapping[str, str]) -> None:
        switches[0] += 1
        with copies:
            own(choice)

    def audit(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and scoring[0]:
            files.append(str(details[0]))

    def score(states: Sequence[tuple[int, ...]], tokens: int, seed: int, survivors: int | None) -> list[float]:
        scoring[0] = True
        try:
            return evaluator.score([posed.choice(state) for state in states], tokens, seed, survivors)
        finally:
            scoring[0] = False

    levels.switch = switch  # type: ignore[method-assign]
    sys.addaudithook(audit)
    schedule = SearchSchedule(4, 8, (SelectionStage(2, 64), SelectionStage(1, 128)), initial=8, initial_tokens=64)
    for _ in Evolution(posed.space, schedule, score, 0).run():
        pass
    return {
        "switches": switches[0],
        "layers_run": evaluator.counters.layers,
        "files_opened": len(files),
        "bytes_copied_twice": copies.nbytes,
    }


def watched(layers: int) -> dict[str, Any]:
    view = ModelView.from_model(model_of(layers))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), opened(view) as levels:
        levels.prepare(folder, progress=False)
        figures: dict[str, Any] = dict(sizes(levels, Path(folder)))
        return figures | selection(levels, [torch.tensor(text) for text in texts(49_152, 4)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three layers for the peak, one elsewhere")
    parser.add_argument("--teacher", type=int, default=16, help="MiB for what the model itself says (default: 16)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    layers = 3 if options.quick else 30
    torch.set_num_threads(1)
    if options.child:
        peak(layers, options.teacher * MIB)
        return
    figures: dict[str, Any] = {"quick": options.quick, "layers": layers, "teacher_mib": options.teacher}
    figures |= watched(1 if options.quick else 3)
    words = ["--child", "--teacher", str(options.teacher), *(["--quick"] if options.quick else [])]
    found = fresh_process(__file__, *words)
    figures |= {"peak_mib": found["mib"], "model_mib": found["model_mib"], "packed_mib": found["packed_mib"]}
    figures["peak_ratio"] = found["mib"] / (found["model_mib"] + found["packed_mib"])
    print(json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in figures.items()}))


if __name__ == "__main__":
    main()
