"""A teacher's next-token distributions, computed once and kept, and a divergence from them in one pass.

Where many candidates are measured against one teacher, its head need not run again for each. Of every position
:class:`TeacherRows` keeps either all of its distribution, or its most likely tokens with one bucket for the rest,
whichever a limit of memory allows. :class:`TeacherStates` keeps hidden states, which take least, and asks the head
again.

With p the teacher's kept probabilities, z a candidate's logits, C = sum p log p and S = sum p:

    KL(p || q) = C - sum p z + S logsumexp(z)

S is stored and not taken for 1: rounding leaves it off by up to 3e-5, and logsumexp(z) is about 27.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from paperhooks.errors import DataError
from paperhooks.logprobs.chunked import in_chunks
from paperhooks.logprobs.divergence import kl_divergence
from paperhooks.logprobs.head import Head

__all__ = ["TeacherRows", "TeacherStates"]

#: Bytes of a number that is kept, and of a kept token's id.
_FLOAT: Final = 4
_ID: Final = 4
#: Copies of a chunk's logits that stand in memory while its rows are made.
_COPIES: Final = 4
#: Most positions that the teacher's head sees at once while its rows are made, and what share of the limit they take.
_MOST: Final = 512
_SHARE: Final = 4
#: Tokens that are kept of a position at least; fewer would say too little.
_LEAST_TOKENS: Final = 16


@dataclass(frozen=True, eq=False)
class TeacherRows:
    """What a teacher says at n positions.

    :param probabilities: float32 [n, V]; or [n, K] of the tokens ``ids``.
    :param ids: int32 [n, K], the K most likely tokens of each position; None where all are kept.
    :param rest: float32 [n], the probability of all other tokens together; None where all are kept.
    :param entropies: float32 [n], C = sum p log p over what is kept, the rest as one token.
    :param sums: float32 [n], S = sum p.
    :param vocabulary: V, of the logits that are compared.
    """

    probabilities: Tensor
    ids: Tensor | None
    rest: Tensor | None
    entropies: Tensor
    sums: Tensor
    vocabulary: int
    temperature: float = 1.0

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        hidden: Tensor,
        head: Head,
        *,
        limit: int,
        tokens: int | None = None,
        temperature: float = 1.0,
        vocabulary: int | None = None,
    ) -> TeacherRows:
        """The rows of the hidden states of one batch, made within a limit of memory.

        :param hidden: [n, D] before ``head``, as ``last_hidden_state(model, batch).flatten(0, 1)`` gives them; where
            FSDP2 shards the model, what :meth:`Head.run` hands to its ``work``.
        :param limit: bytes that these rows and the work on them may take together, the hidden states not counted: with
            several batches, a share of what all may take.
        :param tokens: K; without it, all V tokens are kept where the limit allows, and otherwise as many as it allows.
        :param temperature: logits are divided by it. :param vocabulary: how many leading logits count.
        :raises DataError: hidden states of another form, a limit that holds not even 16 tokens a position, or a
            distribution that is NaN.
        """
        if hidden.ndim != 2:
            raise DataError(f"the teacher's hidden states are {list(hidden.shape)}; expected [positions, width]")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        size = head.vocabulary if vocabulary is None else vocabulary
        if not 0 < size <= head.vocabulary:
            raise DataError(f"vocabulary is {size}; the head gives {head.vocabulary} logits")
        kept, chunk = _fitting(len(hidden), head.vocabulary, size, limit, tokens)
        rows = cls._empty(len(hidden), kept, size, temperature, hidden.device)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            rows._fill(part, (head.logits(hidden[part])[..., :size] / temperature).softmax(-1))
        return rows

    @classmethod
    def _empty(cls, n: int, kept: int, size: int, temperature: float, device: torch.device) -> TeacherRows:
        def numbers(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        whole = kept == size
        ids = None if whole else torch.empty((n, kept), dtype=torch.int32, device=device)
        rest = None if whole else numbers(n)
        return cls(numbers(n, kept), ids, rest, numbers(n), numbers(n), size, temperature)

    def _fill(self, part: slice, p: Tensor) -> None:
        if bool(p.isnan().any()):
            raise DataError("a distribution of the teacher is NaN: its logits or weights are not finite")
        if self.ids is not None and self.rest is not None:
            p, ids = p.topk(self.ids.shape[1], dim=-1)
            self.ids[part] = ids.int()
            self.rest[part] = (1 - p.sum(-1)).clamp(min=0)
        self.probabilities[part] = p
        self.entropies[part] = torch.special.xlogy(p, p).sum(-1)
        self.sums[part] = p.sum(-1)
        if self.rest is not None:
            rest = self.rest[part]
            self.entropies[part] += torch.special.xlogy(rest, rest)

    def __len__(self) -> int:
        return len(self.sums)

    @property
    def tokens(self) -> int:
        """K, the tokens that are kept of a position."""
        return self.probabilities.shape[-1]

    @property
    def nbytes(self) -> int:
        """What the rows take in memory."""
        return sum(each.numel() * each.element_size() for each in self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        for each in (self.probabilities, self.ids, self.rest, self.entropies, self.sums):
            if each is not None:
                yield each

    def divergence(self, hidden: Tensor, head: Head, *, start: int = 0, chunk: int = 512) -> Tensor:
        """KL(teacher || candidate) in nats, float32 [m], of the positions ``start`` to ``start + m - 1``.

        Where only some tokens are kept, it is the divergence of distributions over these and the rest as one token,
        which is never more than the whole one. Infinite where the candidate excludes a token that the teacher does not.

        :param hidden: [m, D'] of the candidate; gradients flow. :param head: the candidate's.
        :param chunk: positions that the head sees at once.
        :raises DataError: more positions than there are rows, or a smaller vocabulary.
        """
        rows = _positions(hidden, start, len(self))
        if head.vocabulary < self.vocabulary:
            raise DataError(
                f"the candidate gives {head.vocabulary} logits; the teacher's rows are of {self.vocabulary}"
            )
        part = [each[rows].to(hidden.device, non_blocking=True) for each in self._tensors()]

        def divergences(h: Tensor, *taught: Tensor) -> Tensor:
            if self.ids is None:
                parts = head.slices(h, self.vocabulary)
                return _one_pass(((first, self._tempered(logits)) for first, logits in parts), *taught)
            return _with_rest(self._tempered(head.logits(h)[..., : self.vocabulary]), *taught)

        return in_chunks(divergences, chunk, hidden, *part)

    def _tempered(self, logits: Tensor) -> Tensor:
        return logits if self.temperature == 1 else logits / self.temperature


@dataclass(frozen=True, eq=False)
class TeacherStates:
    """A teacher's hidden states, whose distributions are made again, exact, wherever they are needed.

    They take 2 or 4 bytes times the width a position, thousands of times less than distributions; in return the
    teacher's head runs for every candidate. Its decoder does not.

    :param hidden: [n, D] before ``head``. :param head: the teacher's, not of a model that FSDP2 shards.
    """

    hidden: Tensor
    head: Head
    temperature: float = 1.0
    vocabulary: int | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def nbytes(self) -> int:
        """What the states take in memory."""
        return self.hidden.numel() * self.hidden.element_size()

    def divergence(self, hidden: Tensor, head: Head, *, start: int = 0, chunk: int = 512) -> Tensor:
        """As :meth:`TeacherRows.divergence`, over all tokens."""
        taught = self.hidden[_positions(hidden, start, len(self))]
        return kl_divergence(
            hidden, head, taught, self.head, temperature=self.temperature, vocabulary=self.vocabulary, chunk=chunk
        )


def _positions(hidden: Tensor, start: int, n: int) -> slice:
    """Where hidden states [m, D] from a position on stand among n rows; raises DataError where they do not fit."""
    stop = start + len(hidden)
    if hidden.ndim != 2 or not 0 <= start <= stop <= n:
        raise DataError(
            f"hidden states are {list(hidden.shape)} from position {start}; expected [positions, width] within the "
            f"teacher's {n} rows"
        )
    return slice(start, stop)


def _fitting(n: int, whole: int, size: int, limit: int, tokens: int | None) -> tuple[int, int]:
    """How many tokens are kept of a position, and how many positions are worked on at once."""
    chunk = max(1, min(_MOST, n, limit // _SHARE // (_COPIES * whole * _FLOAT)))
    left = limit - chunk * whole * _FLOAT * _COPIES - 3 * n * _FLOAT
    if tokens is not None and tokens < 1:
        raise ValueError(f"tokens is {tokens}; it must be at least 1")
    if (tokens is None or tokens >= size) and n * size * _FLOAT <= left:
        return size, chunk
    most = left // max(1, n * (_FLOAT + _ID))
    kept = min(size - 1, most if tokens is None else tokens)
    if kept < min(_LEAST_TOKENS, size - 1, tokens or size) or kept > most:
        least = limit - left + n * (_FLOAT + _ID) * min(size - 1, tokens or _LEAST_TOKENS)
        raise DataError(
            f"limit is {limit} bytes; {n} positions with {min(size - 1, tokens or _LEAST_TOKENS)} tokens each take "
            f"{least} with the work on them: raise the limit, or give fewer positions"
        )
    return kept, chunk


def _one_pass(parts: Iterable[tuple[int, Tensor]], p: Tensor, entropies: Tensor, sums: Tensor) -> Tensor:
    """C - sum p z + S logsumexp(z), over all tokens, whose logits come in parts with where each begins."""
    dots, whole = [], []
    for first, logits in parts:
        own = p[:, first : first + logits.shape[-1]]
        dot: Tensor = torch.linalg.vecdot(own, logits)
        if bool(dot.isnan().any()):  # 0 times -inf, of a token that neither has
            dot = torch.linalg.vecdot(own, torch.where(own > 0, logits, 0.0))
        dots.append(dot)
        whole.append(logits.logsumexp(-1))
    if len(dots) == 1:
        return entropies - dots[0] + sums * whole[0]
    return entropies - torch.stack(dots).sum(0) + sums * torch.stack(whole).logsumexp(0)


def _with_rest(logits: Tensor, p: Tensor, ids: Tensor, rest: Tensor, entropies: Tensor, sums: Tensor) -> Tensor:
    """The same over the kept tokens and one for the rest, whose logit is the logsumexp of all others."""
    whole, places = logits.logsumexp(-1), ids.long()
    kept = logits.gather(-1, places)
    dot = torch.where(p > 0, p * kept, 0.0).sum(-1)
    # Logits are nobody's here, and a copy of them costs as much as the sum.
    hide = logits.scatter if logits.requires_grad else logits.scatter_
    left = torch.where(rest > 0, rest * hide(-1, places, -torch.inf).logsumexp(-1), 0.0)
    return entropies - dot - left + (sums + rest) * whole
