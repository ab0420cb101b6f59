"""Tokens drawn by the Gumbel trick with noise that is a function of seed, step and token.

The token with the largest sum of logit / temperature and Gumbel noise is a draw from the softmax (Maddison, Tarlow
and Minka, A* Sampling, 2014). The noise comes from a hash of a counter, SplitMix64 (Steele, Lea and Flood,
Fast Splittable Pseudorandom Number Generators, 2014, with the finaliser of Stafford's variant 13), so that

- it depends neither on the other rows of a batch nor on what was drawn before;
- a token at the edge of what is kept, which rounding lets in or leaves out, changes the noise of no other one;
- it is made for the kept tokens only.

Arithmetic of 64-bit integers wraps around in torch, which is what the hash needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from transformers import LogitsProcessor

from paperhooks.generation.requests import Sampling

__all__ = ["Draws", "gumbel_noise", "row_keys"]

_WORD: Final = 2**64
#: The golden ratio of 64 bits: counters that are multiples of it are far apart.
_STEP: Final = 0x9E3779B97F4A7C15 - _WORD
_FACTORS: Final = (0xBF58476D1CE4E5B9 - _WORD, 0x94D049BB133111EB - _WORD)
_SHIFTS: Final = (30, 27, 31)
#: Another stream than that of whoever seeds SplitMix64 with small numbers.
_STREAM: Final = 0x5851F42D4C957F2D
#: Of the noise: so many that the largest number with a half behind it is one of float64.
_BITS: Final = 52
#: The smallest temperature that float32 tells from nothing.
_COLDEST: Final = torch.finfo(torch.float32).tiny
#: How many of the largest logits are looked at first where the host need not wait for them.
_FIRST: Final = 256


def row_keys(samplings: Sequence[Sampling], device: torch.device) -> Tensor:
    """The state int64 [B] that the noise of each row begins with: of its seed alone."""
    seeds = torch.tensor([one.seed for one in samplings], dtype=torch.int64)
    return _mixed(seeds * _STEP + _STREAM).to(device)


def gumbel_noise(keys: Tensor, step: int, ids: Tensor) -> Tensor:
    """Standard Gumbel noise of tokens, float64 (float32 on devices without it), of the shape of ``keys`` with ``ids``.

    :param keys: of :func:`row_keys`, int64, of a shape that goes with that of ``ids``.
    :param step: how many tokens of the answer there are before this one.
    :param ids: token ids, int64.
    """
    state = _mixed(keys + _signed(step * _STEP))
    bits = (_mixed(state + (ids + 1) * _STEP) >> (64 - _BITS)) & (2**_BITS - 1)
    real = _real(bits.device)
    uniform = (bits.to(real) + 0.5).mul_(2.0**-_BITS).clamp_(max=1 - torch.finfo(real).eps / 2)
    # By an exponential, whose small values are the large ones of Gumbel's noise: no digits are lost there.
    noise: Tensor = uniform.neg_().log1p_().neg_().log_().neg_()
    return noise


class Draws(LogitsProcessor):  # type: ignore[misc, unused-ignore]
    """Draws a token for every row that has a sampling, and leaves no other to whoever picks the most likely one.

    Rows without one are handed on bit for bit. Stands behind all other processors of logits, with greedy generation.

    :param samplings: one a row; None for a greedy row.
    :param start: columns of the prompts, with padding.
    """

    def __init__(self, samplings: Sequence[Sampling | None], start: int, device: torch.device) -> None:
        cut = [row for row, one in enumerate(samplings) if one is not None and _cuts(one)]
        whole = [row for row, one in enumerate(samplings) if one is not None and not _cuts(one)]
        self._places, self.start = [*cut, *whole], start
        chosen = [one for one in (samplings[row] for row in self._places) if one is not None]
        self._cut = len(cut)
        self._rows = torch.tensor(self._places, dtype=torch.int64, device=device)
        self._keys = row_keys(chosen, device)
        colder = [max(one.temperature, _COLDEST) for one in chosen]
        top_p, top_k = ([getattr(one, name) for one in chosen[: self._cut]] for name in ("top_p", "top_k"))
        self._temperature = _column(colder, torch.float32, device)
        self._top_p = _column(top_p, _real(device), device)
        self._most = max((one for one in top_k if one), default=0)
        self._last = _column([(one or 1) - 1 for one in top_k], torch.int64, device)
        self._all = _column([one is None for one in top_k], torch.bool, device)
        self._broken = torch.zeros(len(chosen), dtype=torch.bool, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores float [B, V] with the drawn token of a row at 0 and all others at minus infinity."""
        step = input_ids.shape[1] - self.start
        mine = scores[self._rows].float()
        # From the largest one on, so that no temperature makes several of them infinite.
        scaled = (mine - mine.amax(dim=1, keepdim=True)) / self._temperature
        self._broken |= scaled.isnan().any(dim=1)
        drawn = torch.cat([self._from_cut(scaled[: self._cut], step), self._from_whole(scaled[self._cut :], step)])
        output = scores.index_fill(0, self._rows, -torch.inf)
        return output.index_put_((self._rows, drawn), output.new_zeros(len(drawn)))

    def broken_rows(self) -> set[int]:
        """Rows of which a logit was NaN or infinite, so that nothing could be drawn; the host waits for it."""
        return {row for row, broken in zip(self._places, self._broken.tolist(), strict=True) if broken}

    def _from_whole(self, scaled: Tensor, step: int) -> Tensor:
        """Tokens int64 [n] of rows in which every token may be drawn."""
        ids = torch.arange(scaled.shape[1], device=scaled.device)
        return (gumbel_noise(self._keys[self._cut :, None], step, ids) + scaled).argmax(dim=1)

    def _from_cut(self, scaled: Tensor, step: int) -> Tensor:
        """Tokens int64 [n] of rows of which a part is kept."""
        if not self._cut:
            return self._rows[:0]
        kept = scaled >= self._threshold(scaled)
        keys = self._keys[: self._cut]
        if scaled.device.type != "cpu":  # where to count what is kept is to wait for it
            ids = torch.arange(scaled.shape[1], device=scaled.device)
            noise = gumbel_noise(keys[:, None], step, ids)
            return (noise + scaled).masked_fill_(~kept, -torch.inf).argmax(dim=1)
        rows, ids = kept.nonzero(as_tuple=True)
        noise = gumbel_noise(keys[rows], step, ids)
        sums = noise.new_full(scaled.shape, -torch.inf)
        sums[rows, ids] = noise + scaled[rows, ids]
        return sums.argmax(dim=1)

    def _threshold(self, scaled: Tensor) -> Tensor:
        """The smallest logit [n, 1] that is kept."""
        size = scaled.shape[1]
        count = min(size, max(_FIRST, self._most)) if scaled.device.type == "cpu" else size
        while True:
            threshold, found = self._among(scaled, count)
            if count == size or bool(found.all()):
                return threshold
            count = min(size, 8 * count)

    def _among(self, scaled: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The threshold among the ``count`` largest logits, and whether it lies there; both [n, 1]."""
        largest = (
            scaled.topk(count, dim=1).values if count < scaled.shape[1] else scaled.sort(1, descending=True).values
        )
        last = largest.gather(1, self._last.clamp(max=count - 1)).masked_fill(self._all, -torch.inf)
        total = scaled.masked_fill(scaled < last, -torch.inf).logsumexp(dim=1, keepdim=True)
        shares = (largest - total).to(self._top_p.dtype).exp()
        before = shares.cumsum(dim=1) - shares
        kept = (before < self._top_p) & (largest >= last)
        place = (kept.sum(dim=1, keepdim=True) - 1).clamp(min=0)
        # Rows without top-p keep what the k-th leaves them, ties beyond these logits too.
        whole = self._top_p >= 1
        return torch.where(whole, last, largest.gather(1, place)), whole | (place < count - 1)


def _cuts(sampling: Sampling) -> bool:
    return sampling.top_p < 1 or sampling.top_k is not None


def _column(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)[:, None]


def _real(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _signed(value: int) -> int:
    """The same 64 bits as a number that torch takes."""
    return (value + _WORD // 2) % _WORD - _WORD // 2


def _mixed(state: Tensor) -> Tensor:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the state."""
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        state = _folded(state, shift) * factor
    return _folded(state, _SHIFTS[-1])


def _folded(state: Tensor, shift: int) -> Tensor:
    """Exclusive or with itself shifted to the right; torch's shift keeps the sign, which is taken off."""
    shifted: Tensor = (state >> shift) & (2 ** (64 - shift) - 1)
    return shifted.bitwise_xor_(state)
