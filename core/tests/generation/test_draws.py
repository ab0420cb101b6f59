"""Drawing tokens: the noise is uniform and of seed, step and token alone; what is kept and drawn is exact."""

from __future__ import annotations

import math

import pytest
import torch
from paperhooks.generation import Sampling
from paperhooks.generation.draws import Draws, gumbel_noise, row_keys
from torch import Tensor

CPU = torch.device("cpu")
WORD = 2**64


def uniform(seeds: list[int], step: int, ids: Tensor) -> Tensor:
    """The noise as the uniform numbers [seeds, ids] that it is made of."""
    keys = row_keys([Sampling(seed=seed) for seed in seeds], CPU)
    return (-(-gumbel_noise(keys[:, None], step, ids)).exp()).exp()


def chi_square(counts: Tensor) -> float:
    """How many standard deviations the statistic lies from its mean."""
    expected = counts.sum() / counts.numel()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.numel() - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def drawn(scores: Tensor, *samplings: Sampling | None, step: int = 0) -> list[int]:
    """The tokens that are drawn from scores [B, V]."""
    ids = torch.zeros(len(samplings), 3 + step, dtype=torch.int64)
    return Draws(samplings, 3, CPU)(ids, scores).argmax(dim=1).tolist()


# -- the noise ---------------------------------------------------------------------------------------------------------


def mixed(state: int) -> int:
    """SplitMix64's finaliser by Python's own numbers."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % WORD
    state = (state ^ state >> 27) * 0x94D049BB133111EB % WORD
    return state ^ state >> 31


@pytest.mark.parametrize("seed", [0, 1, 77, 2**63 - 1])
def test_the_hash_is_that_of_unbounded_numbers(seed: int) -> None:
    golden = 0x9E3779B97F4A7C15
    for step in (0, 1, 5000):
        state = mixed((mixed((seed * golden + 0x5851F42D4C957F2D) % WORD) + step * golden) % WORD)
        ids = [0, 1, 49_151, 2**31]
        expected = [(mixed((state + (one + 1) * golden) % WORD) >> 12) + 0.5 for one in ids]
        found = gumbel_noise(row_keys([Sampling(seed=seed)], CPU), step, torch.tensor(ids))
        torch.testing.assert_close(found, torch.tensor([-math.log(-math.log1p(-e / 2**52)) for e in expected]).double())


def test_splitmix_gives_its_published_numbers() -> None:
    """The first three of the reference implementation for the seed 1234567."""
    golden = 0x9E3779B97F4A7C15
    found = [mixed((1234567 + n * golden) % WORD) for n in (1, 2, 3)]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("along", ["ids", "steps", "seeds", "large seeds"])
def test_the_noise_is_uniform(along: str) -> None:
    ids, count = torch.arange(2**16), 2**16
    if along == "ids":
        found = uniform([5], 3, ids).flatten()
    elif along == "steps":
        found = torch.cat([uniform([5], step, ids[:256]).flatten() for step in range(count // 256)])
    else:
        begin = 0 if along == "seeds" else 2**63 - count
        found = uniform([begin + one for one in range(count)], 3, ids[7:8]).flatten()
    assert 0 < found.min() < found.max() < 1
    assert abs(chi_square(torch.histc(found.double(), 256, 0, 1))) < 4
    assert abs(float(found.mean()) - 0.5) * math.sqrt(12 * count) < 4


@pytest.mark.parametrize("along", ["ids", "steps", "seeds"])
def test_neighbours_have_nothing_to_do_with_one_another(along: str) -> None:
    ids = torch.arange(2**15)
    if along == "ids":
        found = uniform([5], 3, ids).flatten()
        pairs = found[:-1], found[1:]
    else:
        other = ([5], 4) if along == "steps" else ([6], 3)
        pairs = uniform([5], 3, ids).flatten(), uniform(*other, ids).flatten()
    cells = (pairs[0] * 16).long() * 16 + (pairs[1] * 16).long()
    assert abs(chi_square(torch.bincount(cells, minlength=256).double())) < 4


def test_a_short_cycle_would_be_seen() -> None:
    """The checks above find a generator that is not uniform."""
    found = uniform([5], 3, torch.arange(2**16)).flatten()
    assert chi_square(torch.histc((found * 0.99).double(), 256, 0, 1)) > 4
    cells = (found * 16).long() * 16 + (found.roll(1) * 0.5 + found * 0.5).mul(16).long()
    assert chi_square(torch.bincount(cells, minlength=256).double()) > 4


# -- what is drawn -----------------------------------------------------------------------------------------------------


def by_the_book(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities float64 [V] after temperature, top-k and top-p, by sorting."""
    scaled = logits.double() / sampling.temperature
    if sampling.top_k is not None:
        scaled[scaled < scaled.sort(descending=True).values[: sampling.top_k][-1]] = -math.inf
    shares, order = scaled.softmax(dim=0).sort(descending=True)
    if sampling.top_p < 1:
        shares[shares.cumsum(0) - shares >= sampling.top_p] = 0
    return torch.zeros_like(shares).scatter(0, order, shares / shares.sum())


SETTINGS = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(temperature=2.5, top_p=0.9),
    Sampling(top_p=0.5),
    Sampling(top_k=5),
    Sampling(temperature=1.7, top_p=0.8, top_k=12),
    Sampling(top_p=1e-9),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_tokens_are_drawn_with_their_probability(sampling: Sampling) -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 1.5
    count = 20_000
    rows = [Sampling(sampling.temperature, sampling.top_p, sampling.top_k, seed) for seed in range(count)]
    found = torch.bincount(torch.tensor(drawn(logits.expand(count, -1), *rows)), minlength=40)
    expected = by_the_book(logits, sampling) * count
    assert found[expected == 0].sum() == 0
    often = expected >= 5
    statistic = float(((found - expected)[often] ** 2 / expected[often]).sum())
    freedom = max(int(often.sum()) - 1, 1)
    assert (statistic - freedom) / math.sqrt(2 * freedom) < 4


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("spread", [0.01, 3.0, 40.0])
def test_large_vocabularies_keep_what_sorting_keeps(sampling: Sampling, spread: float) -> None:
    """Also where what is kept goes beyond the tokens that are looked at first."""
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(2)) * spread
    draws = Draws([sampling] * 3, 3, CPU)
    if sampling.top_p < 1 or sampling.top_k:
        scaled = logits / sampling.temperature
        kept = (scaled >= draws._threshold(scaled)).sum(dim=1)
        book = torch.stack([(by_the_book(row, sampling) > 0).sum() for row in logits])
        assert (kept - book).abs().max() <= 1  # one at the edge may be rounded in or out
    assert len(drawn(logits, *[sampling] * 3)) == 3


def test_neither_the_batch_nor_its_order_matters() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(3))
    rows = [
        Sampling(seed=1),
        None,
        Sampling(0.7, 0.9, seed=2),
        Sampling(top_k=3, seed=3),
        None,
        Sampling(1, 0.6, 50, 4),
    ]
    together = drawn(logits, *rows)
    alone = [drawn(logits[i : i + 1], row)[0] for i, row in enumerate(rows)]
    order = [4, 2, 0, 5, 1, 3]
    assert together == alone
    assert drawn(logits[order], *[rows[i] for i in order]) == [together[i] for i in order]
    assert [together[1], together[4]] == logits[[1, 4]].argmax(dim=1).tolist()
    assert drawn(logits, *rows, step=1) != together


def test_greedy_rows_are_handed_on_bit_for_bit() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(3))
    logits[1, 4] = math.nan
    output = Draws([None, None, Sampling()], 3, CPU)(torch.zeros(3, 3, dtype=torch.int64), logits)
    assert torch.equal(output[0], logits[0])
    assert torch.equal(output[1].nan_to_num(9), logits[1].nan_to_num(9))
    assert output[2].isfinite().sum() == 1


def test_a_token_at_the_edge_changes_the_choice_only_where_it_is_drawn_itself() -> None:
    """Rounding may let it in or leave it out: the noise of the others stays."""
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    shares = logits.softmax(dim=1).cumsum(dim=1)[0].tolist()
    pairs = [
        (drawn(logits, Sampling(1, shares[1] - 1e-4, seed=s)), drawn(logits, Sampling(1, shares[1] + 1e-4, seed=s)))
        for s in range(400)
    ]
    assert all(wide == narrow or wide == [2] for narrow, wide in pairs)
    assert 0 < sum(wide == [2] for _, wide in pairs) < 100


def test_ties_are_kept_together() -> None:
    logits = torch.zeros(1, 600)
    found = {drawn(logits, Sampling(top_k=1, seed=seed))[0] for seed in range(50)}
    assert len(found) > 40
    assert {drawn(logits, Sampling(top_p=0.001, seed=seed))[0] for seed in range(5)} <= set(range(600))


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6])
def test_a_tiny_temperature_takes_the_most_likely_token(temperature: float) -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(3)) * 20
    for cut in ({}, {"top_p": 0.9}, {"top_k": 7}):
        assert drawn(logits, Sampling(temperature, **cut)) == logits.argmax(dim=1).tolist()


def test_a_forbidden_token_is_never_drawn() -> None:
    logits = torch.full((1, 30), -math.inf)
    logits[0, 17] = -50.0
    for cut in ({}, {"top_p": 0.9}, {"top_k": 7}):
        assert {drawn(logits, Sampling(seed=seed, **cut))[0] for seed in range(20)} == {17}


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_rows_without_numbers_are_told(broken: float) -> None:
    logits = torch.randn(4, 30)
    logits[0, 3] = logits[2, 5] = logits[3, 1] = broken
    draws = Draws([None, Sampling(), Sampling(top_p=0.9), Sampling()], 3, CPU)
    draws(torch.zeros(4, 3, dtype=torch.int64), logits)
    assert draws.broken_rows() == {2, 3}


def test_on_an_accelerator_the_same_is_drawn_and_nobody_waits() -> None:
    from paperhooks.testing import emulated_accelerator, host_waits

    logits = torch.randn(5, 3000, generator=torch.Generator().manual_seed(3))
    rows = [Sampling(seed=1), None, Sampling(0.7, 0.9, seed=2), Sampling(top_k=3, seed=3), Sampling(1, 0.6, 50, 4)]
    with emulated_accelerator():
        device = torch.device("emulated:0")
        draws, scores, ids = Draws(rows, 3, device), logits.to(device), torch.zeros(5, 3, dtype=torch.int64).to(device)
        with host_waits() as waits:
            output = draws(ids, scores)
        assert waits.total == 0, str(waits)
        assert output.cpu().argmax(dim=1).tolist() == drawn(logits, *rows)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0}, "temperature is 0; expected a finite number above 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0; expected a number above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": 0}, "top_k is 0; expected a whole number of at least 1, or None"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_settings_are_checked_when_made(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Sampling(**options)
    assert said in str(caught.value)
