"""Compressing or editing a model with a method: one call, one artefact, one run folder.

>>> artefact = paperhooks.compress(model, "evopress", data=texts, target="3.0bit", out="run/")  # doctest: +SKIP
>>> artefact.undo()  # the model has its old weights again  # doctest: +SKIP

The method's hook ``compression`` gets a :class:`CompressionRequest`. What could be done to a module, and at what cost,
is a :class:`Level`; any method may offer levels through ``compression_levels``, and a search may use those of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import Tensor, nn

from paperhooks.artefacts import Artefact
from paperhooks.calibration import CalibrationBatch, calibrate, find_module, token_batches
from paperhooks.calibration_data import data_digest, find_tokenizer, has_text
from paperhooks.catalog import catalog
from paperhooks.engine import evaluation_mode
from paperhooks.errors import DataError, HookError, PluginConflict, PluginError, PluginIncompatible
from paperhooks.methods import describe_method
from paperhooks.methodset import MethodSet
from paperhooks.modelview import ModelView
from paperhooks.provenance import model_digest, plain
from paperhooks.report import Heading, Paragraph, RunFolder, Table

if TYPE_CHECKING:
    from paperhooks.weights import WeightJournal

__all__ = ["CalibrationBatch", "CompressionRequest", "Level", "LevelAction", "calibrate", "compress", "token_batches"]

_ARTEFACT: Final = "artefact.safetensors"


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
        """The calibration data, or one ``part`` of it, as inputs; see :func:`paperhooks.calibration.token_batches`.

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


def compress(
    model: nn.Module,
    method: str | object,
    *,
    data: Any = None,
    target: Any = None,
    out: str | Path | None = None,
    levels_from: Sequence[str | object] = (),
    tokenizer: Any = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Artefact:
    """Compress ``model`` in place with a method and return the artefact that reproduces it.

    Afterwards the model holds the compressed weights; ``artefact.undo()`` restores it bit for bit. When anything fails,
    the model is as before.

    :param method: a method's name with ``options`` for its constructor, or an instance.
    :param data: calibration data: a ``.jsonl`` file, texts, token ids, or batches of inputs; or a mapping of several
        such parts, where a method needs them.
    :param target: what to reach, in the method's words.
    :param out: run folder for artefact, ``result.json`` and report. The artefact of a finished run there is applied
        again, an interrupted one goes on (as far as the method keeps checkpoints), one of other inputs is refused.
    :param levels_from: further methods whose levels a search may use, by name or as instances.
    :param tokenizer: for texts; found by the model's name or folder when missing.
    :raises PluginNotFound: an unknown name. :raises PluginIncompatible: a method that compresses nothing.
    :raises PluginConflict: the model is attached, or a method was given twice.
    :raises HookError: an answer that is no artefact of the edits made.
    :raises DataError: data or run folder that cannot be used.
    """
    from paperhooks.session import active_session

    if active_session(model) is not None:
        raise PluginConflict("the model is attached to a session; close it before compressing the model")
    view, methods = ModelView.from_model(model), MethodSet([_resolve(method, options), *levels_from])
    request = _request(model, methods, data, tokenizer)
    request.target, request.seed, request.progress = target, seed, progress
    if out is not None:
        request.run = RunFolder(out)
        request.run.start("compress", inputs=_inputs(model, methods, data, target), seed=seed)
    try:
        with evaluation_mode(model):
            return _run(view, request, methods)
    except BaseException:
        view.journal.abandon()
        raise


def _resolve(method: str | object, options: dict[str, Any]) -> object:
    if isinstance(method, str):
        return catalog().create_method(method, **options)
    if options:
        given = f"options {sorted(options)} were given beside an instance of {type(method).__name__}"
        raise PluginError(f"{given}; set them on the instance")
    return method


def _request(model: nn.Module, methods: MethodSet, data: Any, tokenizer: Any) -> CompressionRequest:
    name, main = next(iter(methods.methods.items()))
    if "compression" not in methods.hooks(name):
        hooks = ", ".join(sorted(methods.hooks(name)))
        raise PluginIncompatible(f"{name} does not compress models; it implements {hooks}")
    if tokenizer is None and has_text(data):
        tokenizer = find_tokenizer(model)
    offers = [i.function for i in methods.implementations("compression_levels")]
    return CompressionRequest(name, describe_method(main)["options"], data, tokenizer, offers=offers)


def _run(view: ModelView, request: CompressionRequest, methods: MethodSet) -> Artefact:
    run = request.run
    if run is not None and run.finished:
        artefact = Artefact.load(run.path / _ARTEFACT)
        if artefact.edits:
            artefact.apply(view.model, view.journal)
        return artefact
    view.journal.writer = request.method
    hook = next(i.function for i in methods.implementations("compression") if i.method == request.method)
    if run is None:
        return _accepted(hook(view, request), view, request)
    with run.timed("compress"):
        artefact = _accepted(hook(view, request), view, request)
    artefact.save(run.path)
    _report(run, artefact)
    run.finish()
    return artefact


def _accepted(artefact: Any, view: ModelView, request: CompressionRequest) -> Artefact:
    """Check that the answer reproduces the edits made; make them if the method has left that to core."""
    if not isinstance(artefact, Artefact):
        raise HookError(f"compression of {request.method!r} returned {type(artefact).__name__}; expected an Artefact")
    changed = set(view.journal.changed)
    if artefact.kind == "weights" and changed and changed != set(artefact.edits):
        odd = min(changed ^ set(artefact.edits))
        raise HookError(
            f"compression of {request.method!r}: the artefact and the edits made differ at {odd}; make it last, with "
            "request.artefact(view)"
        )
    if artefact.edits and not changed:
        artefact.apply(view.model, view.journal)
    artefact.journal = view.journal
    return artefact


def _checked(offer: Any) -> Sequence[Level]:
    if offer is None:
        return ()
    if not isinstance(offer, Sequence) or not all(isinstance(level, Level) for level in offer):
        raise HookError(f"compression_levels returned {type(offer).__name__}; expected a sequence of Level, or None")
    return offer


def _inputs(model: nn.Module, methods: MethodSet, data: Any, target: Any) -> dict[str, Any]:
    main, *others = methods.methods.values()
    return {
        "method": describe_method(main),
        "levels_from": [describe_method(method) for method in others],
        "target": plain(target),
        "model": model_digest(model),
        "data": data_digest(data),
    }


def _report(run: RunFolder, artefact: Artefact) -> None:
    rows = [
        (name, edit.values.numel(), _share(edit.values.numel(), edit.shape)) for name, edit in artefact.edits.items()
    ]
    run.record(parameters=len(rows), entries=sum(row[1] for row in rows), data=plain(artefact.data))
    table = Table(("parameter", "entries written", "share"), rows, "What the artefact writes.")
    run.report(f"Compression with {artefact.method}", [Heading("Edits"), Paragraph(str(artefact)), table])


def _share(entries: int, shape: Sequence[int]) -> float:
    return entries / max(1, torch.Size(shape).numel())
