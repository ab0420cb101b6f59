"""What the hooks ``compression`` and ``compression_levels`` are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from paperhooks.errors import DataError
from paperhooks.hooks.levels import Levels, collected
from paperhooks.models.batches import token_batches
from paperhooks.models.view import ModelView
from paperhooks.reports.run_folder import RunFolder
from paperhooks.weights.artefact import Artefact

__all__ = ["CompressionRequest"]


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

    def levels(self, view: ModelView, modules: Iterable[str]) -> Levels:
        """What all methods of this run offer for the modules, in the order in which the methods were given.

        Every method is asked once, for all modules together, so that it reads its calibration data once.

        :raises HookError: an offer that is no mapping to levels, or two levels of one label for a module.
        :raises LookupError: a module that does not exist. :raises DataError: two modules that share a parameter.
        """
        return Levels(view, collected(self.offers, view, modules, self))

    def artefact(
        self,
        view: ModelView,
        *,
        data: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        levels: Levels | None = None,
    ) -> Artefact:
        """The open edits of ``view.journal`` as the artefact of this request.

        :param levels: whose choice was written: their values are kept packed, and not as whole weights, and which
            these were as ``data["levels"]``, where ``data`` says nothing else there.
        """
        if levels is not None:
            data = {"levels": levels.chosen, **(data or {})}
        return Artefact.from_journal(
            view.journal, method=self.method, options=self.options, data=data, tensors=tensors,
            packed=None if levels is None else levels.written,
        )  # fmt: skip
