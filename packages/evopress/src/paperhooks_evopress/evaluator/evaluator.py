"""How far compressed models are from the model itself, many at a time.

A stage's candidates read one minibatch, a chunk of sequences after another. Of each chunk the teacher's distributions
are made once for all, layers that candidates have in common run once (the module ``prefix_tree``), and a
candidate that cannot be among the survivors any more is not run further. None of this changes who survives. What a
candidate gave on a chunk is remembered, so that a parent is not run twice on the same text.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import torch
from paperhooks.errors import DataError, UnsupportedModel, did_you_mean
from paperhooks.logprobs import Head, token_logprobs
from paperhooks.models import ModelView, evaluation_mode
from torch import Tensor

from paperhooks_evopress.evaluator.calibration import check_causal, usable_sequences
from paperhooks_evopress.evaluator.minibatches import Chunk, chunks, minibatch, padded
from paperhooks_evopress.evaluator.prefix_tree import Path, PrefixTree
from paperhooks_evopress.evaluator.teacher import Teacher

if TYPE_CHECKING:
    from paperhooks.hooks import Levels

__all__ = ["Counters", "Evaluator", "Fitness"]

#: Divergence from the teacher, or perplexity on the text; lower is better for both.
Fitness: TypeAlias = Literal["kl", "perplexity"]

#: Most tokens of a chunk. A CPU gains little from more, and chunks of one sequence can be remembered and left early.
_CPU_BATCH: Final = 128
_BATCH: Final = 4096
#: By how much a divergence may be off at a position, so that rounding drops nobody; tens of times what was seen.
_SLACK: Final = 1e-4
#: Share of a pass that a candidate saves by running beside all others and not a part of them.
_SHARED: Final = 0.08
#: Positions that the head sees at once for perplexity.
_HEAD_ROWS: Final = 512
#: Results that are remembered, of 250 bytes each.
_REMEMBERED: Final = 200_000
#: Tokens on which the teacher is tried.
_TRIED: Final = 2048


@dataclass
class Counters:
    """What was done so far.

    tokens
        Tokens that candidates have read, those of remembered results not counted.
    layers
        How many times a layer was run on a chunk.
    remembered
        Results of a candidate on a chunk that were there already.
    dropped
        Candidates that were not run to the end, as they could not survive.
    seconds
        Of wall-clock time spent in :meth:`Evaluator.score`.
    """

    tokens: int = 0
    layers: int = 0
    remembered: int = 0
    dropped: int = 0
    seconds: float = 0.0


class Evaluator:
    """The fitness of choices of levels: mean KL(teacher || candidate) a predicted position in nats, or perplexity.

    The teacher is the model at its own weights. Softmax and sums are float32, whatever the model's dtype is. One hidden
    state of a chunk is held of each candidate, besides the teacher's.

    :param view: of the model. :param levels: what is offered, held open by the caller; scoring moves where it stands.
    :param sequences: calibration text, int64 [T] each; those of fewer than 2 tokens are left out, with a warning.
    :param fitness: ``"kl"`` or ``"perplexity"``.
    :param limit: bytes that the teacher's distributions and states, and the work on them, may take together.
    :param tokens: K, the teacher's most likely tokens that count, for divergences that take less memory; None for all.
    :param rest: whether all others count as one more token where ``tokens`` is given; without it both distributions
        are made to sum to 1 over the K.
    :param batch_tokens: most tokens of a chunk with padding; by default 128 on a CPU and 4,096 elsewhere.
    :param early_stop: leave candidates that cannot survive, where the number of survivors is told.
    :param most_perplexity: above which the teacher is refused; by default the size of its vocabulary, which guessing
        has. ``math.inf`` lets untrained models pass.
    :raises DataError: no usable sequence, ids that the model does not know, sequences longer than it reads, a teacher
        that is not finite or worse than guessing, or a limit that is too small.
    :raises UnsupportedModel: a head that core cannot reproduce, levels of a module that contains all layers, or a model
        whose positions see later tokens.
    :raises ValueError: another fitness, or ``tokens`` or ``batch_tokens`` below 1.
    """

    def __init__(
        self,
        view: ModelView,
        levels: Levels,
        sequences: Sequence[Tensor],
        *,
        fitness: Fitness = "kl",
        limit: int = 2**30,
        tokens: int | None = None,
        rest: bool = True,
        batch_tokens: int | None = None,
        early_stop: bool = True,
        most_perplexity: float | None = None,
    ) -> None:
        if fitness not in get_args(Fitness):
            raise ValueError(f"fitness is {fitness!r}; {did_you_mean(str(fitness), get_args(Fitness))}")
        if batch_tokens is not None and batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}; expected at least 1")
        self.view, self.fitness, self.early_stop = view, fitness, early_stop
        self.counters = Counters()
        self.sequences = usable_sequences(view, sequences)
        self._lengths = [len(each) for each in self.sequences]
        device: Any = getattr(view.model, "device", torch.device("cpu"))
        # Offloaded weights are nowhere until they run; the hooks that bring them move what they read.
        self._device = torch.device("cpu") if device.type == "meta" else device
        default = _CPU_BATCH if self._device.type == "cpu" else _BATCH
        self._batch_tokens = default if batch_tokens is None else batch_tokens
        self._tree = PrefixTree(view, levels)
        self._tree.put_own()
        self.head = self._checked_head()
        #: What is kept of the teacher; None for perplexity, which needs nothing of it.
        self.teacher = Teacher(self.head, limit=limit, tokens=tokens, rest=rest) if fitness == "kl" else None
        self._remembered: OrderedDict[tuple[bytes, Chunk], float] = OrderedDict()
        #: Perplexity of the model itself, on up to 2,048 tokens of the sequences in their order.
        self.teacher_perplexity = self._tried(most_perplexity)
        check_causal(view, self.sequences[0])

    @property
    def tokens(self) -> int:
        """Tokens of all usable sequences."""
        return sum(self._lengths)

    def score(
        self, choices: Sequence[Mapping[str, str]], tokens: int, seed: int, survivors: int | None = None
    ) -> list[float]:
        """Fitness of each choice on one minibatch, lower is better; ``inf`` where it is not finite.

        The model's mode and gradients are left as they were; its levels stand at one of the choices afterwards.

        :param choices: module name to label; modules that a choice does not name have their own weights.
        :param tokens: of the minibatch, whose sequences' lengths add up to this number. Where there are fewer, all are
            used, with a warning. :param seed: of its draw.
        :param survivors: how many of the choices will be kept. Then ``inf`` also stands for choices that provably are
            not among them; who is, and with which fitness, does not change.
        :raises DataError: an unknown module or label. :raises ValueError: fewer than 2 tokens or 1 survivor.
        """
        if survivors is not None and survivors < 1:
            raise ValueError(f"survivors is {survivors}; expected at least 1, or None")
        begin = time.perf_counter()
        paths = [self._tree.path(choice) for choice in choices]
        plan = chunks(minibatch(self._lengths, tokens, seed), self._batch_tokens)
        # Not inference mode: calls of layers are recorded outside of it, and not every kind of tensor can be mixed.
        with evaluation_mode(self.view.model), torch.no_grad():
            sums = self._sums(paths, plan, survivors)
        self.counters.seconds += time.perf_counter() - begin
        positions = _positions(plan)
        return [self._mean(sums[path], positions) for path in paths]

    def by_sequence(self, choices: Sequence[Mapping[str, str]]) -> list[list[float]]:
        """Fitness of each choice on each of the sequences by itself, for intervals of what two choices differ by.

        As :meth:`score` in all else: a list of one number a sequence for each choice.
        """
        begin = time.perf_counter()
        paths = [self._tree.path(choice) for choice in choices]
        found: list[list[float]] = [[] for _ in paths]
        with evaluation_mode(self.view.model), torch.no_grad():
            for number, length in enumerate(self._lengths):
                for own, total in zip(found, self._values(paths, ((number, length),)), strict=True):
                    own.append(self._mean(total, length - 1))
        self.counters.seconds += time.perf_counter() - begin
        return found

    def _mean(self, total: float, positions: int) -> float:
        if not math.isfinite(total):
            return math.inf
        return total / positions if self.fitness == "kl" else _perplexity(total, positions)

    # -- who is run on what --------------------------------------------------------------------------------------------

    def _sums(self, paths: Sequence[Path], plan: Sequence[Chunk], survivors: int | None) -> dict[Path, float]:
        """Fitness of each path, summed over all positions; inf for those that were left, or are not finite."""
        sums = dict.fromkeys(paths, 0.0)
        if not self.early_stop or self.fitness != "kl" or survivors is None or survivors >= len(paths):
            self._run(sums, list(sums), plan)
            return sums
        left, worst = list(sums), math.inf
        for place, chunk in enumerate(plan):
            if worst == math.inf and place:
                leaders = list(dict.fromkeys(sorted(paths, key=lambda path: sums[path])[:survivors]))
                if _worth_stopping(sums, leaders, plan, place):
                    # Nobody survives whose sum so far is above the worst of these at the end, since no position's
                    # divergence is negative.
                    self._run(sums, leaders, plan[place:])
                    worst = max(sums[path] for path in leaders)
                    left = [path for path in left if path not in set(leaders)]
            allowed = worst + _SLACK * _positions(plan[place:])
            for path in left:
                if allowed < sums[path] < math.inf:
                    sums[path] = math.inf
                    self.counters.dropped += 1
            self._run(sums, left, [chunk])
        return sums

    def _run(self, sums: dict[Path, float], paths: Sequence[Path], plan: Iterable[Chunk]) -> None:
        """Add to the sums of some paths what they give on some chunks; what is not finite is not run further."""
        for chunk in plan:
            finite = [path for path in paths if sums[path] < math.inf]
            for path, value in zip(finite, self._values(finite, chunk), strict=True):
                sums[path] += value

    def _values(self, paths: Sequence[Path], chunk: Chunk) -> list[float]:
        """What each path gives on a chunk, summed over its positions; remembered, or run."""
        keys = [(_digest(path), chunk) for path in paths]
        new = [place for place, key in enumerate(keys) if key not in self._remembered]
        self.counters.remembered += len(keys) - len(new)
        if new:
            found = self._summed([paths[place] for place in new], chunk)
            for place, value in zip(new, found, strict=True):
                self._remembered[keys[place]] = value if math.isfinite(value) else math.inf
        values = [self._remembered[key] for key in keys]
        for key in keys:
            self._remembered.move_to_end(key)
        while len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return values

    # -- what they give ------------------------------------------------------------------------------------------------

    def _summed(self, paths: Sequence[Path], chunk: Chunk) -> list[float]:
        """Divergences or negative log-likelihoods of one chunk, summed, of each path."""
        read = padded(self.sequences, chunk, self._device)
        self.counters.tokens += len(paths) * sum(tokens for _, tokens in chunk)
        known = None if self.teacher is None else self.teacher.states(chunk)
        joins = self.teacher is not None and known is None
        last = self._tree.last([*paths, self._tree.own] if joins else paths, read.inputs)
        hidden = [each.flatten(0, 1)[read.rows] for each in last]
        self.counters.layers = self._tree.layers_run
        if self.teacher is None:
            return _totals([[-each] for each in self._logprobs(paths, hidden, read.targets)])
        if joins:
            known = hidden.pop()
            self.teacher.keep(chunk, known)
        assert known is not None
        return self._divergences(self.teacher, paths, hidden, chunk, known)

    def _divergences(
        self, teacher: Teacher, paths: Sequence[Path], hidden: Sequence[Tensor], chunk: Chunk, known: Tensor
    ) -> list[float]:
        """Summed KL of each path from the teacher, a piece of the chunk's positions after another."""
        found: list[list[Tensor]] = [[] for _ in paths]
        for start in range(0, len(known), teacher.piece):
            if not teacher.has_rows(chunk, start):
                self._tree.put_head(self._tree.own)
            rows = teacher.rows(chunk, known, start)
            for number in self._by_head(paths):
                found[number].append(teacher.divergence(rows, hidden[number][start : start + len(rows)]))
        return _totals(found)

    def _logprobs(self, paths: Sequence[Path], hidden: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for number in self._by_head(paths):
            found[number] = token_logprobs(hidden[number], self.head, targets, chunk=_HEAD_ROWS)
        return [found[number] for number in range(len(paths))]

    def _by_head(self, paths: Sequence[Path]) -> Iterable[int]:
        """Numbers of paths, those with the same output embeddings together, which are brought to their state."""
        if not self._tree.head_has_levels:
            yield from range(len(paths))
            return
        for number in sorted(range(len(paths)), key=lambda n: paths[n][-1]):
            self._tree.put_head(paths[number])
            yield number

    # -- the teacher ---------------------------------------------------------------------------------------------------

    def _checked_head(self) -> Head:
        try:
            return Head.from_model(self.view)
        except UnsupportedModel:
            # A head cannot be told where all is NaN, and the teacher is what is wrong then.
            ids = self.sequences[0][None, :64].to(self._device)
            with evaluation_mode(self.view.model), torch.no_grad():
                logits = self.view.model(input_ids=ids, use_cache=False).logits
            if not bool(logits.isfinite().all()):
                raise self._not_finite(f"on {ids.numel()} tokens") from None
            raise

    def _not_finite(self, where: str) -> DataError:
        model = self.view.model
        return DataError(
            f"{type(model).__name__} itself gives logits that are not finite {where} of the calibration text, so that "
            f"nothing can be compared with it; its dtype is {model.dtype}: load it in float32 or bfloat16, and check "
            "its weights"
        )

    def _tried(self, most: float | None) -> float:
        """The teacher's perplexity; raises DataError where nothing can be searched with it."""
        drawn, left = [], _TRIED
        for number, length in enumerate(self._lengths):
            if left >= 2:
                drawn.append((number, min(length, left)))
                left -= length
        plan, total = chunks(tuple(drawn), self._batch_tokens), 0.0
        with evaluation_mode(self.view.model), torch.no_grad():
            for chunk in plan:
                read = padded(self.sequences, chunk, self._device)
                hidden = self._tree.last([self._tree.own], read.inputs)[0].flatten(0, 1)[read.rows]
                total -= float(token_logprobs(hidden, self.head, read.targets, chunk=_HEAD_ROWS).sum())
                if self.teacher is not None and math.isfinite(total):
                    self.teacher.keep(chunk, hidden)
        positions, most = _positions(plan), self.head.vocabulary if most is None else most
        if not math.isfinite(total):
            raise self._not_finite(f"on {positions} positions")
        found = _perplexity(total, positions)
        if found > most:
            raise DataError(
                f"{type(self.view.model).__name__} itself has a perplexity of {found:.6g} on {positions} positions of "
                f"the calibration text, and more than {most:g} is not searched (guessing among its vocabulary has "
                f"{self.head.vocabulary}): its weights are untrained or broken, or the text was made with another "
                "tokenizer or without the token that it has to begin with. Mend that; for a model that is meant to be "
                "so, pass check_model=False to EvoPress (most_perplexity=math.inf to an Evaluator)"
            )
        return found


def _worth_stopping(sums: Mapping[Path, float], leaders: Sequence[Path], plan: Sequence[Chunk], place: int) -> bool:
    """Whether to run those who lead after ``place`` chunks to the end before the others.

    Apart from the others they share fewer layers with them; in return others are left before the end, if they go on as
    they have begun.
    """
    worst = max(sums[path] for path in leaders)
    saved = 0.0
    for total in sums.values():
        if worst < total < math.inf:
            saved += max(0.0, len(plan) - max(place, math.ceil(len(plan) * worst / total)))
    return saved > _SHARED * len(sums) * (len(plan) - place)


def _positions(plan: Iterable[Chunk]) -> int:
    """How many positions chunks predict: all but the last of each sequence."""
    return sum(tokens - 1 for chunk in plan for _, tokens in chunk)


def _perplexity(total: float, positions: int) -> float:
    mean = total / positions
    return math.exp(mean) if mean < 700 else math.inf


def _totals(parts: Sequence[Sequence[Tensor]]) -> list[float]:
    """The sum of each list of tensors [n], with one wait for the device."""
    if not parts:
        return []
    sums = torch.stack([torch.stack([part.sum() for part in each]).sum() for each in parts])
    return [float(each) for each in sums.tolist()]


def _digest(path: Path) -> bytes:
    """Of a path, whose names take kilobytes."""
    return hashlib.blake2b(repr(path).encode(), digest_size=16).digest()
