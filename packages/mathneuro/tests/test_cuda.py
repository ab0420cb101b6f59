"""On a GPU, or on the emulated accelerator, the same sets and edits as on the CPU, in half precision too."""

from __future__ import annotations

import golden_mathneuro as golden
import pytest
import torch
from paperhooks.testing import fingerprint, host_waits, tiny_text
from paperhooks_mathneuro import apply, collect, control, select
from paperhooks_mathneuro.selection import weights_of

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]


def statistics(model, **options):
    return [collect(model, golden.samples()[side], progress=False, **options) for side in golden.SIDES]


@pytest.mark.parametrize("granularity", ["matrix", "row", "global"])
def test_the_same_statistics_give_the_same_sets(accelerator, granularity: str) -> None:
    cpu, other = golden.model(), golden.model().to(accelerator)
    known = statistics(cpu)
    one, two = (select(model, *known, ratio=0.05, granularity=granularity) for model in (cpu, other))
    for (matrix, weight), (_, moved) in zip(
        weights_of(cpu, one.matrices), weights_of(other, two.matrices), strict=True
    ):
        assert torch.equal(one.mask(matrix, weight), two.mask(matrix, moved).cpu())
        assert torch.equal(one.mask(matrix, weight), one.mask(matrix, moved).cpu())
        random = control(one, "random")
        assert torch.equal(random.mask(matrix, weight), random.mask(matrix, moved).cpu())


def test_norms_are_those_on_the_cpu(accelerator) -> None:
    other = golden.model().to(accelerator)
    for one, two in zip(statistics(golden.model()), statistics(other, batch_size=3), strict=True):
        for matrix in one.matrices:
            torch.testing.assert_close(
                one.sample_norms(matrix.name), two.sample_norms(matrix.name), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("mode", ["exact", "compat"])
def test_half_precision_edits_are_undone(accelerator, family: str, dtype: torch.dtype, mode: str) -> None:
    model = tiny_text(family, layers=2).to(accelerator, dtype)
    selection, before = select(model, *statistics(model), ratio=0.05, mode=mode), fingerprint(model)
    for rounding in ("nearest", "stochastic"):
        with apply(model, selection, 1.1, rounding=rounding) as surgery:
            assert surgery.entries == sum(selection.about["counts"].values())
        assert fingerprint(model) == before


@pytest.mark.parametrize("batch_size", [2, 8])
def test_the_host_waits_once_a_batch(emulated, batch_size: int) -> None:
    model, texts = golden.model().to(emulated), golden.samples()[golden.SIDES[0]]
    with host_waits() as waits:
        collect(model, texts, progress=False, batch_size=batch_size)
    digests = len(model.state_dict())
    assert waits.at("hashing.py") <= digests, "one for every weight whose digest is taken"
    assert waits.total - waits.at("hashing.py") <= -(-len(texts) // batch_size), str(waits)
