"""What the hooks ``compression`` and ``compression_levels`` are asked, and the levels they offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from paperhooks.errors import DataError, HookError
from paperhooks.models.batches import token_batches
from paperhooks.models.calibration import find_module
from paperhooks.models.view import ModelView
from paperhooks.reports.run_folder import RunFolder
from paperhooks.weights.artefact import Artefact

if TYPE_CHECKING:
    from paperhooks.weights.journal import WeightJournal

__all__ = ["CompressionRequest", "Level", "LevelAction"]


class LevelAction(Protocol):
    """Brings one module to a level: writes its parameters through ``journal``, naming no method."""

    def __call__(self, journal: WeightJournal, name: str, module: nn.Module) -> object:
        """Write new values for the parameters of ``module``, whose qualified name is ``name``."""


@dataclass(frozen=True, eq=False)
class Level:
    """Something that could be done to one module.

    method, label
        Who offers it, and its name among that method's levels of the module, such as ``"sparsity 0.5"``.
    cost
        What the module costs at this level, by kind: ``{"bytes": ..., "flops": ..., "parameters": ...}``.
    action
        Brings the module to the level.
    options
        The level's own settings, for records.
    """

    method: str
    label: str
    cost: Mapping[str, float]
    action: LevelAction
    options: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, journal: WeightJournal, name: str, module: nn.Module) -> None:
        """Bring ``module`` to this level; levels start from the module's original weights, not from one another."""
        self.action(journal, name, module)


@dataclass(eq=False)
class CompressionRequest:
    """What the hooks ``compression`` and ``compression_levels`` are asked.

    method, options
        The name and options of the method that answers.
    data, tokenizer
        Calibration data as given, and what turns texts into tokens; see :meth:`batches`.
    target
        What to reach, in the method's own words, such as ``"3.0bit"`` or 0.5.
    run
        The run folder, for checkpoints (``run.path``) and results (``run.record``); None without ``out``.
    seed, progress
        See :meth:`generator`; whether to show progress bars.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    data: Any = None
    tokenizer: Any = None
    target: Any = None
    run: RunFolder | None = None
    seed: int = 0
    progress: bool = True
    offers: Sequence[Callable[..., Any]] = field(default=(), repr=False)

    def batches(self, part: str | None = None, *, max_length: int = 2048, batch_size: int = 1) -> list[dict[str, Any]]:
        """The calibration data, or one ``part`` of it, as inputs; see :func:`paperhooks.models.batches.token_batches`.

        Raises DataError when there is no data, or no such part of it.
        """
        data = self.data if part is None or not isinstance(self.data, Mapping) else self.data.get(part)
        if data is None or (part is not None and not isinstance(self.data, Mapping)):
            wanted = "data=[...] (texts, token ids or batches)" if part is None else f"data={{{part!r}: [...], ...}}"
            raise DataError(f"{self.method} needs calibration data; pass {wanted}")
        return token_batches(data, tokenizer=self.tokenizer, max_length=max_length, batch_size=batch_size)

    def generator(self) -> torch.Generator:
        """A new random generator on the CPU, seeded with :attr:`seed`."""
        return torch.Generator().manual_seed(self.seed)

    def levels(self, view: ModelView, modules: Iterable[str]) -> dict[str, list[Level]]:
        """What all methods of this run offer for each module, in the order in which the methods were given.

        Raises HookError for an offer that is no sequence of levels, LookupError for a module that does not exist.
        """
        found: dict[str, list[Level]] = {}
        for name in modules:
            module = find_module(view.model, name)
            found[name] = [level for offer in self.offers for level in _checked(offer(view, name, module, self))]
        return found

    def artefact(
        self, view: ModelView, *, data: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> Artefact:
        """The open edits of ``view.journal`` as the artefact of this request."""
        return Artefact.from_journal(view.journal, method=self.method, options=self.options, data=data, tensors=tensors)


def _checked(offer: Any) -> Sequence[Level]:
    if offer is None:
        return ()
    if not isinstance(offer, Sequence) or not all(isinstance(level, Level) for level in offer):
        raise HookError(f"compression_levels returned {type(offer).__name__}; expected a sequence of Level, or None")
    return offer
