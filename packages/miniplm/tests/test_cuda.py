"""On a GPU, or on the emulated accelerator, scores and losses are those of the CPU, and the host seldom waits."""

from __future__ import annotations

import golden_miniplm as golden
import numpy as np
import paperhooks
import pytest
import torch
from paperhooks import LossContext
from paperhooks.testing import host_waits, tiny_text
from paperhooks.training import compute_loss
from paperhooks_miniplm import Distil, DistilTerm, LogLikelihood, MemoryRows, TrainingCollator, plan, score

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]


def _on_cuda(test):
    """What no other device has."""
    without = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.cuda(without(test))


COLLATOR = TrainingCollator(0, max_length=golden.MAX_LENGTH)


@pytest.mark.parametrize("name", ["teacher", "ref"])
@pytest.mark.parametrize("options", [{}, {"chunk": 7}, {"full_logits": True}, {"batch_tokens": 200}], ids=str)
def test_scores_are_the_official_ones(accelerator, name: str, options) -> None:
    found = LogLikelihood(golden.fresh(name).to(accelerator), 0, 64, **options).score(golden.chunks())
    np.testing.assert_allclose(found.nll / found.count, golden.scores()[f"{name}_nll"].numpy(), atol=2e-5)
    assert found.count.tolist() == golden.scores()["scored_tokens"].tolist()


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)], ids=["bf16", "fp16"])
def test_half_precision_scores_have_no_large_bias(accelerator, dtype: torch.dtype, error: float) -> None:
    found = LogLikelihood(golden.fresh("teacher").to(accelerator, dtype), 0, 64).score(golden.chunks())
    differences = found.nll / found.count - golden.scores()["teacher_nll"].numpy()
    assert float(np.sqrt((differences**2).mean())) < error
    assert abs(float(differences.mean())) < error / 2


def test_a_folder_begun_on_the_cpu_goes_on_on_the_gpu(accelerator, tmp_path, monkeypatch) -> None:
    rows, options = MemoryRows(golden.chunks()[:60]), {"end": 0, "max_length": 64, "unit_rows": 16, "progress": False}
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert score(golden.fresh("ref"), rows, tmp_path, **options) is None
    monkeypatch.undo()
    found = score(golden.fresh("ref").to(accelerator), rows, tmp_path, **options)
    np.testing.assert_allclose(found.values(), golden.scores()["ref_nll"][:60].numpy(), atol=2e-5)


@_on_cuda
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
@pytest.mark.parametrize("teacher_on", ["cpu", "the same", "another"])
def test_losses_and_gradients_are_those_of_the_cpu(accelerator, kind, divergence: str, teacher_on: str) -> None:
    places = {"cpu": "cpu", "the same": accelerator, "another": torch.device(accelerator.type, 1)}
    if teacher_on == "another" and accelerator.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    found = []
    for device, place in (("cpu", "cpu"), (accelerator, places[teacher_on])):
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


@_on_cuda
def test_a_plan_measures_the_gpu() -> None:
    found = plan({"ref": golden.fresh("ref").cuda()}, MemoryRows(golden.chunks()), max_length=64)
    assert found.models[0].tokens_per_second > 0


@pytest.mark.parametrize("kind", [Distil, DistilTerm])
@pytest.mark.parametrize("teacher_on", ["emulated:0", "emulated:1"])
def test_the_host_waits_once_a_step(emulated, kind, teacher_on: str) -> None:
    student, teacher = golden.fresh("ref").to(emulated), golden.fresh("teacher").to(teacher_on)
    rows = COLLATOR([ids.tolist() for ids in golden.chunks()[:4]])
    batch = {name: each.to(emulated) for name, each in rows.items()}
    with paperhooks.attach(student, kind(teacher, chunk=50)) as session:
        compute_loss(session, LossContext(student, batch, session)).backward()
        with host_waits() as waits:
            compute_loss(session, LossContext(student, batch, session)).backward()
    assert waits.total - waits.at("transformers/") <= 1, str(waits)


@pytest.mark.parametrize("options", [{}, {"chunk": 7}, {"full_logits": True}, {"batch_tokens": 200}], ids=str)
def test_the_host_waits_once_a_unit(emulated, options) -> None:
    likelihood = LogLikelihood(golden.fresh("teacher").to(emulated), 0, 64, **options)
    with host_waits() as waits:
        likelihood.score(golden.chunks()[:20])
    assert waits.total - waits.at("transformers/") <= 1, str(waits)
