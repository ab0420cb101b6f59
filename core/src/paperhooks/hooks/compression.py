"""What the hooks ``compression`` and ``compression_levels`` are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from paperhooks.errors import DataError, HookError
from paperhooks.hooks.level import Level
from paperhooks.hooks.levels import Levels
from paperhooks.models.batches import token_batches
from paperhooks.models.view import ModelView
from paperhooks.reports.blocks import Block
from paperhooks.reports.run_folder import RunFolder
from paperhooks.weights.artefact import Artefact
from paperhooks.weights.structure import module_at

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
    opened
        The levels that :meth:`levels` has given.
    blocks
        What the method adds to the report of its run folder, before the table of edits.
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
    opened: list[Levels] = field(default_factory=list, repr=False)
    blocks: list[Block] = field(default_factory=list, repr=False)

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

        Every method is asked once, for all modules together, so that it reads its calibration data once. A choice that
        the model stands at when the hook returns or raises is taken back, but for what was written to the journal.

        :raises HookError: an offer that is no mapping to levels, or two levels of one label for a module.
        :raises LookupError: a module that does not exist. :raises DataError: two modules that share a parameter.
        """
        levels = Levels(view, _collected(self.offers, view, modules, self))
        self.opened.append(levels)
        return levels

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


def _collected(
    offers: Iterable[Callable[..., Any]], view: ModelView, names: Iterable[str], request: Any
) -> dict[str, list[Level]]:
    """What all offers of ``compression_levels`` say of the modules, in their order.

    :raises HookError: an offer that is no mapping of names to levels, or names a module that was not asked for.
    :raises LookupError: a module that does not exist.
    """
    if isinstance(names, str):
        raise DataError(
            f"levels are asked of modules by a sequence of their names, not of {names!r} alone: [{names!r}]"
        )
    modules = {name: module_at(view.model, name) for name in names}
    found: dict[str, list[Level]] = {name: [] for name in modules}
    for offer in offers:
        answer = offer(view, MappingProxyType(modules), request)
        if answer is None:
            continue
        if not isinstance(answer, Mapping):
            raise HookError(
                f"compression_levels returned {type(answer).__name__}; expected a mapping of module names to levels, "
                "or None"
            )
        for name, levels in answer.items():
            if name not in found:
                raise HookError(f"compression_levels offers levels of {name!r}, which it was not asked about")
            if not isinstance(levels, Sequence) or not all(isinstance(level, Level) for level in levels):
                odd = (
                    [type(each).__name__ for each in levels]
                    if isinstance(levels, Sequence)
                    else [type(levels).__name__]
                )
                raise HookError(f"compression_levels gave {', '.join(odd)} for {name}; expected a sequence of Level")
            found[name] += levels
    return found
