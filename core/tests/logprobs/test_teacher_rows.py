"""A teacher's distributions, kept under a limit, and the divergence from them in one pass."""

from __future__ import annotations

import pytest
import torch
from paperhooks.errors import DataError
from paperhooks.logprobs import Head, TeacherRows, TeacherStates
from paperhooks.logprobs.divergence import kl_divergence
from paperhooks.testing import LargestTensor
from torch import Tensor, nn

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]

N, D, V = 37, 16, 300
PLENTY = 1 << 24


def material(seed: int = 0, sharp: float = 4.0, vocabulary: int = V) -> tuple[Tensor, Head]:
    """Hidden states and a head whose distributions are far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.Linear(D, vocabulary, bias=False)
    with torch.no_grad():
        module.weight.copy_(sharp * torch.randn(vocabulary, D, generator=generator) / D**0.5)
    return torch.randn(N, D, generator=generator), Head(module)


def logprobs(hidden: Tensor, head: Head, temperature: float = 1.0) -> Tensor:
    weight: Tensor = head.module.weight
    return ((hidden.double() @ weight.double().T) / temperature).log_softmax(-1)


def bucketed(p: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    """KL over some tokens and the rest as one, of log-probabilities [n, V] in float64."""
    inside = torch.zeros_like(p, dtype=torch.bool).scatter(-1, ids.long(), True)
    pairs = []
    for each in (p, q):
        rest = each.masked_fill(inside, -torch.inf).logsumexp(-1, keepdim=True)
        pairs.append(torch.cat([each.gather(-1, ids.long()), rest], -1))
    return (pairs[0].exp() * (pairs[0] - pairs[1])).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk", [1, 10, 512])
def test_over_all_tokens_it_is_the_divergence(temperature: float, chunk: int) -> None:
    (taught, teacher), (hidden, head) = material(0), material(1)
    rows = TeacherRows.of(taught, teacher, limit=PLENTY, temperature=temperature)
    assert (rows.tokens, rows.ids, len(rows)) == (V, None, N)
    p, q = logprobs(taught, teacher, temperature), logprobs(hidden, head, temperature)
    expected = (p.exp() * (p - q)).sum(-1)
    found = rows.divergence(hidden, head, chunk=chunk)
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)
    whole = kl_divergence(hidden, head, taught, teacher, temperature=temperature)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("tokens", [1, 16, 100, V - 1])
def test_over_some_tokens_the_rest_is_one(tokens: int) -> None:
    (taught, teacher), (hidden, head) = material(0), material(1)
    rows = TeacherRows.of(taught, teacher, limit=PLENTY, tokens=tokens)
    assert (rows.tokens, rows.ids is not None) == (tokens, True)
    p, q = logprobs(taught, teacher), logprobs(hidden, head)
    found = rows.divergence(hidden, head).double()
    torch.testing.assert_close(found, bucketed(p, q, rows.ids), rtol=5e-5, atol=5e-5)
    assert bool((found <= (p.exp() * (p - q)).sum(-1) + 5e-5).all()), "never more than the whole"
    assert bool((found >= -5e-5).all())


def test_a_teacher_is_no_distance_from_itself() -> None:
    taught, teacher = material()
    for tokens in (None, 20):
        rows = TeacherRows.of(taught, teacher, limit=PLENTY, tokens=tokens)
        assert float(rows.divergence(taught, teacher).abs().max()) < 2e-5


def test_the_stored_sum_corrects_what_rounding_leaves_off() -> None:
    """With logits near 1,000 the plain formula is off by a thousand times as much as the sum of probabilities."""
    (taught, teacher), (hidden, head) = material(0), material(1)
    rows = TeacherRows.of(taught, teacher, limit=PLENTY)
    p, q = logprobs(taught, teacher), logprobs(hidden, head)
    expected = (p.exp() * (p - q)).sum(-1)
    shifted = nn.Linear(D, V)
    with torch.no_grad():
        shifted.weight.copy_(head.module.weight)
        shifted.bias.fill_(1000.0)
    found = rows.divergence(hidden, Head(shifted)).double()
    assert float((found - expected).abs().max()) < 1e-3
    plain = rows.entropies + (-rows.sums + 1) * 1000
    assert float((plain - rows.entropies).abs().max()) > 1e-5, "the sums are not 1"


def test_parts_of_the_positions() -> None:
    (taught, teacher), (hidden, head) = material(0), material(1)
    rows = TeacherRows.of(taught, teacher, limit=PLENTY, tokens=30)
    whole = rows.divergence(hidden, head)
    parts = [rows.divergence(hidden[start : start + 10], head, start=start) for start in range(0, N, 10)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)
    assert rows.divergence(hidden[:0], head, start=5).shape == (0,)
    for given, start in ((hidden, 1), (hidden[:3], N - 2), (hidden[:3], -1), (hidden[None], 0)):
        with pytest.raises(DataError, match=rf"from position {start}; expected .* within the teacher's 37 rows"):
            rows.divergence(given, head, start=start)


@pytest.mark.parametrize("tokens", [None, 20])
def test_gradients_are_those_of_the_divergence(tokens: int | None) -> None:
    (taught, teacher), (hidden, head) = material(0), material(1)
    rows = TeacherRows.of(taught, teacher, limit=PLENTY, tokens=tokens)
    hidden.requires_grad_()
    rows.divergence(hidden, head, chunk=7).sum().backward()
    found, hidden.grad = hidden.grad, None
    p = logprobs(taught, teacher)
    q = (hidden.double() @ head.module.weight.double().T).log_softmax(-1)
    expected = (p.exp() * (p - q)).sum() if rows.ids is None else bucketed(p, q, rows.ids).sum()
    expected.backward()
    torch.testing.assert_close(found, hidden.grad, rtol=1e-3, atol=1e-4)


def test_tokens_that_a_candidate_excludes() -> None:
    """Infinite where the teacher has them; nothing where it has not."""
    taught, teacher = material()
    bias = nn.Linear(D, V)
    with torch.no_grad():
        bias.weight.copy_(teacher.module.weight)
        bias.bias.zero_()[5] = -torch.inf
    for tokens in (None, 20):
        rows = TeacherRows.of(taught, teacher, limit=PLENTY, tokens=tokens)
        found = rows.divergence(taught, Head(bias))
        kept = torch.ones(N, dtype=torch.bool) if rows.ids is None else (rows.ids == 5).any(-1)
        assert bool(found[kept].isposinf().all())
        assert bool(found[~kept].isfinite().all())
        # A teacher that excludes it as well.
        same = TeacherRows.of(taught, Head(bias), limit=PLENTY, tokens=tokens)
        assert float(same.divergence(taught, Head(bias)).abs().max()) < 2e-5


@pytest.mark.parametrize("limit", [400_000, 120_000, 90_000, 40_000])
def test_the_limit_is_kept(limit: int) -> None:
    """Rows and the work on them; the tighter it is, the fewer tokens are kept."""
    taught, teacher = material(vocabulary=600)
    held: list[int] = []

    class Watched(nn.Module):
        out_features = 600

        def forward(self, hidden: Tensor) -> Tensor:
            held.append(len(hidden))
            return teacher.module(hidden)

    with LargestTensor() as seen:
        rows = TeacherRows.of(taught, Head(Watched()), limit=limit)
    assert rows.nbytes + 4 * max(held) * 600 * 4 <= limit
    assert seen.entries <= max(max(held) * 600, rows.probabilities.numel(), D * 600)
    assert (rows.tokens == 600) == (limit >= 120_000)


def test_a_limit_that_is_too_small_is_told() -> None:
    taught, teacher = material()
    with pytest.raises(DataError, match=r"limit is 8000 bytes; 37 positions with 16 tokens each take \d+ with the"):
        TeacherRows.of(taught, teacher, limit=8_000)
    with pytest.raises(DataError, match="37 positions with 250 tokens each"):
        TeacherRows.of(taught, teacher, limit=60_000, tokens=250)


def test_what_cannot_be_is_refused() -> None:
    taught, teacher = material()
    with pytest.raises(DataError, match=r"hidden states are \[1, 37, 16\]; expected \[positions, width\]"):
        TeacherRows.of(taught[None], teacher, limit=PLENTY)
    with pytest.raises(ValueError, match="temperature is 0"):
        TeacherRows.of(taught, teacher, limit=PLENTY, temperature=0)
    with pytest.raises(ValueError, match="tokens is 0"):
        TeacherRows.of(taught, teacher, limit=PLENTY, tokens=0)
    with pytest.raises(DataError, match="vocabulary is 301; the head gives 300 logits"):
        TeacherRows.of(taught, teacher, limit=PLENTY, vocabulary=V + 1)
    with pytest.raises(DataError, match="a distribution of the teacher is NaN"):
        TeacherRows.of(taught * torch.nan, teacher, limit=PLENTY)
    rows = TeacherRows.of(taught, teacher, limit=PLENTY)
    with pytest.raises(DataError, match="the candidate gives 200 logits; the teacher's rows are of 300"):
        rows.divergence(taught, material(vocabulary=200)[1])


def test_padded_vocabularies_are_compared_as_far_as_they_go() -> None:
    (taught, teacher), (hidden, head) = material(0), material(1, vocabulary=V + 20)
    rows = TeacherRows.of(taught, teacher, limit=PLENTY, vocabulary=V - 8)
    expected = kl_divergence(hidden, head, taught, teacher, vocabulary=V - 8)
    torch.testing.assert_close(rows.divergence(hidden, head), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_states_give_what_rows_of_all_tokens_give(temperature: float) -> None:
    (taught, teacher), (hidden, head) = material(0), material(1)
    states = TeacherStates(taught, teacher, temperature, V - 8)
    rows = TeacherRows.of(taught, teacher, limit=PLENTY, temperature=temperature, vocabulary=V - 8)
    torch.testing.assert_close(states.divergence(hidden, head), rows.divergence(hidden, head), rtol=1e-4, atol=2e-5)
    part = states.divergence(hidden[3:9], head, start=3, chunk=2)
    torch.testing.assert_close(part, rows.divergence(hidden, head)[3:9], rtol=1e-4, atol=2e-5)
    assert (len(states), states.nbytes) == (N, N * D * 4)
    with pytest.raises(DataError, match=r"from position 1; expected .* within the teacher's 37 rows"):
        states.divergence(hidden, head, start=1)


def test_rows_may_be_on_a_device(accelerator: torch.device) -> None:
    (taught, teacher), (hidden, head) = material(0), material(1)
    for tokens in (None, 20):
        wanted = TeacherRows.of(taught, teacher, limit=PLENTY, tokens=tokens).divergence(hidden, head)
        placed = [Head(nn.Linear(D, V, bias=False).to(accelerator)) for _ in range(2)]
        with torch.no_grad():
            for one, other in zip(placed, (teacher, head), strict=True):
                one.module.weight.copy_(other.module.weight)
        rows = TeacherRows.of(taught.to(accelerator), placed[0], limit=PLENTY, tokens=tokens)
        found = rows.divergence(hidden.to(accelerator), placed[1])
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-4)
