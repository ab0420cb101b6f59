"""What needs a GPU: scores and losses are those of the CPU, and memory stays bounded. Skipped without one."""

from __future__ import annotations

import golden_miniplm as golden
import numpy as np
import paperhooks
import pytest
import torch
from paperhooks import LossContext
from paperhooks.testing import tiny_text
from paperhooks.training import compute_loss
from paperhooks_miniplm import Distil, DistilTerm, LogLikelihood, MemoryRows, TrainingCollator, plan, score

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

COLLATOR = TrainingCollator(0, max_length=golden.MAX_LENGTH)


@pytest.mark.parametrize("name", ["teacher", "ref"])
@pytest.mark.parametrize("options", [{}, {"chunk": 7}, {"full_logits": True}, {"batch_tokens": 200}], ids=str)
def test_scores_are_the_official_ones(name: str, options) -> None:
    found = LogLikelihood(golden.fresh(name).cuda(), 0, 64, **options).score(golden.chunks())
    np.testing.assert_allclose(found.nll / found.count, golden.scores()[f"{name}_nll"].numpy(), atol=2e-5)
    assert found.count.tolist() == golden.scores()["scored_tokens"].tolist()


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)], ids=["bf16", "fp16"])
def test_half_precision_scores_have_no_large_bias(dtype: torch.dtype, error: float) -> None:
    found = LogLikelihood(golden.fresh("teacher").to("cuda", dtype), 0, 64).score(golden.chunks())
    differences = found.nll / found.count - golden.scores()["teacher_nll"].numpy()
    assert float(np.sqrt((differences**2).mean())) < error
    assert abs(float(differences.mean())) < error / 2


def test_a_folder_begun_on_the_cpu_goes_on_on_the_gpu(tmp_path) -> None:
    rows, options = MemoryRows(golden.chunks()[:60]), {"end": 0, "max_length": 64, "unit_rows": 16, "progress": False}
    assert score(golden.fresh("ref"), rows, tmp_path, worker=(0, 2), **options) is None
    found = score(golden.fresh("ref").cuda(), rows, tmp_path, worker=(1, 2), **options)
    np.testing.assert_allclose(found.values(), golden.scores()["ref_nll"][:60].numpy(), atol=2e-5)


def test_scoring_memory_is_bounded_by_the_chunk() -> None:
    vocabulary, chunk = 50_000, 64
    model = tiny_text(layers=1, vocab_size=vocabulary).cuda()
    rows = [np.arange(3, 203) for _ in range(16)]
    likelihood = LogLikelihood(model, 2, 256, chunk=chunk)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    likelihood.score(rows)
    logits = 4 * chunk * vocabulary
    assert torch.cuda.max_memory_allocated() - before < 5 * logits < 4 * 16 * 199 * vocabulary / 8


@pytest.mark.parametrize("kind", [Distil, DistilTerm])
@pytest.mark.parametrize("divergence", ["cross_entropy", "reverse", "jsd"])
@pytest.mark.parametrize("teacher_on", ["cpu", "cuda"])
def test_losses_and_gradients_are_those_of_the_cpu(kind, divergence: str, teacher_on: str) -> None:
    found = []
    for device, place in (("cpu", "cpu"), ("cuda", teacher_on)):
        model = golden.fresh("ref").to(device)
        batch = {
            name: each.to(device) for name, each in COLLATOR([ids.tolist() for ids in golden.chunks()[:4]]).items()
        }
        method = kind(golden.fresh("teacher").to(place), divergence=divergence, chunk=50)
        with paperhooks.attach(model, method) as session:
            loss = compute_loss(session, LossContext(model, batch, session))
        loss.backward()
        found.append((loss.item(), [p.grad.cpu() for p in model.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)


def test_a_plan_measures_the_gpu() -> None:
    found = plan({"ref": golden.fresh("ref").cuda()}, MemoryRows(golden.chunks()), max_length=64)
    assert found.models[0].tokens_per_second > 0
