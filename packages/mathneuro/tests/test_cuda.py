"""What needs a GPU: the same sets and edits as on the CPU, in half precision too. Skipped without one, and says so."""

from __future__ import annotations

import golden_mathneuro as golden
import pytest
import torch
from paperhooks.testing import fingerprint, tiny_text
from paperhooks_mathneuro import apply, collect, control, select
from paperhooks_mathneuro.selection import weights_of

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def statistics(model, **options):
    return [collect(model, golden.samples()[side], progress=False, **options) for side in golden.SIDES]


@pytest.mark.parametrize("granularity", ["matrix", "row", "global"])
def test_the_same_statistics_give_the_same_sets(granularity: str) -> None:
    cpu, cuda = golden.model(), golden.model().cuda()
    known = statistics(cpu)
    one, two = (select(model, *known, ratio=0.05, granularity=granularity) for model in (cpu, cuda))
    for (matrix, weight), (_, other) in zip(weights_of(cpu, one.matrices), weights_of(cuda, two.matrices), strict=True):
        assert torch.equal(one.mask(matrix, weight), two.mask(matrix, other).cpu())
        assert torch.equal(one.mask(matrix, weight), one.mask(matrix, other).cpu())
        random = control(one, "random")
        assert torch.equal(random.mask(matrix, weight), random.mask(matrix, other).cpu())


def test_norms_on_cuda_are_those_on_the_cpu() -> None:
    for one, two in zip(statistics(golden.model()), statistics(golden.model().cuda(), batch_size=3), strict=True):
        for matrix in one.matrices:
            torch.testing.assert_close(
                one.sample_norms(matrix.name), two.sample_norms(matrix.name), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("mode", ["exact", "compat"])
def test_half_precision_edits_are_undone(family: str, dtype: torch.dtype, mode: str) -> None:
    model = tiny_text(family, layers=2).to("cuda", dtype)
    selection, before = select(model, *statistics(model), ratio=0.05, mode=mode), fingerprint(model)
    for rounding in ("nearest", "stochastic"):
        with apply(model, selection, 1.1, rounding=rounding) as surgery:
            assert surgery.entries == sum(selection.about["counts"].values())
        assert fingerprint(model) == before
