"""A search on a GPU: within its budget, undone exactly, and what it reports is what a CPU finds of the same choice."""

from __future__ import annotations

from pathlib import Path

import paperhooks
import pytest
import torch
from paperhooks import Artefact, CompressionRequest, ModelView, Traits, hookimpl
from paperhooks.testing import fingerprint, tiny_llama, tiny_text
from paperhooks_evopress import GPTQ, Evaluator, EvoPress, SparseGPT, SublayerDrop, Target, problem
from paperhooks_evopress.baselines import BASELINES, Setting, baselines_of
from paperhooks_evopress.export import sparse, stock, zeroed
from paperhooks_evopress.spaces import module_names

pytestmark = pytest.mark.cuda


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 90, (24 + i,), generator=generator).tolist() for i in range(12)]


@pytest.mark.parametrize("target", ["depth=0.5", "sparsity=0.5", "bits=3", "bytes=52kB"])
def test_searches_end_as_they_report(tmp_path: Path, target: str) -> None:
    model = tiny_llama(layers=3).to("cuda")
    before = fingerprint(model)
    search = EvoPress(schedule="quick", generations=3, check_model=False)
    artefact = paperhooks.compress(model, search, data=texts(), target=target, out=tmp_path / "run", progress=False)
    with torch.no_grad():
        there = [model(torch.tensor([ids], device="cuda")).logits.cpu() for ids in texts()]
    artefact.undo()
    assert fingerprint(model) == before
    here = tiny_llama(layers=3)
    with torch.no_grad():
        own = [here(torch.tensor([ids])).logits for ids in texts()]
    Artefact.load(tmp_path / "run").apply(here)
    total, positions = 0.0, 0
    for ids, logits, plain in zip(texts(), there, own, strict=True):
        with torch.no_grad():
            found = here(torch.tensor([ids])).logits
        assert torch.allclose(found, logits, atol=2e-4)
        p, q = plain[0, :-1].double().log_softmax(-1), found[0, :-1].double().log_softmax(-1)
        total, positions = total + float((p.exp() * (p - q)).sum()), positions + len(ids) - 1
    assert artefact.data["final"] == pytest.approx(total / positions, rel=1e-3, abs=1e-6)


class EveryBaseline:
    """Asks all baselines of a target, as a search would."""

    traits = Traits(writes=frozenset({"weights"}))

    @hookimpl
    def compression(self, view: ModelView, request: CompressionRequest) -> Artefact:
        target = Target.of(request.target)
        with request.levels(view, module_names(view, target)) as levels:
            sequences = [torch.tensor(ids) for ids in texts()]
            evaluator = Evaluator(view, levels, sequences, most_perplexity=float("inf"))
            setting = Setting(levels, problem(view, levels, target), evaluator, tokens=64)
            for name in baselines_of(target.kind):
                found = BASELINES[name](setting)
                assert setting.problem.space.feasible(found.state), name
            levels.restore()
            return request.artefact(view)


@pytest.mark.parametrize(
    ("target", "offer"),
    [
        ("depth=0.4", SublayerDrop()),
        ("sparsity=0.5", SparseGPT(sparsities=(0.3, 0.5, 0.7))),
        ("bits=3", GPTQ(group=16)),
    ],
    ids=["depth", "sparsity", "bits"],
)
def test_baselines_answer(target: str, offer: object) -> None:
    model = tiny_llama(layers=3).to("cuda")
    before = fingerprint(model)
    paperhooks.compress(model, EveryBaseline(), data=texts(), target=target, levels_from=[offer], progress=False)
    assert fingerprint(model) == before


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_other_families(family: str) -> None:
    model = tiny_text(family, layers=2).to("cuda")
    before = fingerprint(model)
    for target in ("depth=0.5", "bits=3"):
        search = EvoPress(schedule="quick", generations=2, check_model=False)
        artefact = paperhooks.compress(model, search, data=texts(), target=target, progress=False)
        artefact.undo()
        assert fingerprint(model) == before


def test_exports_are_written_from_a_gpu(tmp_path: Path) -> None:
    for number, (target, whole, export) in enumerate((
        ("depth=0.4", True, stock), ("depth=0.4", False, zeroed), ("sparsity=0.5", False, sparse),
    )):  # fmt: skip
        model = tiny_llama(layers=3).to("cuda")
        search = EvoPress(schedule="quick", generations=2, check_model=False, whole_layers=whole)
        artefact = paperhooks.compress(model, search, data=texts(), target=target, progress=False)
        export(model, artefact, tmp_path / str(number))
        assert (tmp_path / str(number) / "config.json").exists()
        artefact.undo()
