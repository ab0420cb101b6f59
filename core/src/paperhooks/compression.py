"""Compressing or editing a model with a method: one call, one artefact, one run folder.

>>> artefact = paperhooks.compress(model, "evopress", data=texts, target="3.0bit", out="run/")  # doctest: +SKIP
>>> artefact.undo()  # the model has its old weights again  # doctest: +SKIP

The method's hook ``compression`` gets a :class:`CompressionRequest`. What could be done to a module, and at what cost,
is a :class:`Level`; any method may offer levels through ``compression_levels``, and a search may use those of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from paperhooks.errors import HookError, PluginConflict, PluginError, PluginIncompatible
from paperhooks.hooks.compression import CompressionRequest
from paperhooks.io.files import plain
from paperhooks.io.hashing import model_digest
from paperhooks.io.processes import Ranks
from paperhooks.models.batches import data_digest, has_text
from paperhooks.models.forward import evaluation_mode
from paperhooks.models.tokenizers import find_tokenizer
from paperhooks.models.view import ModelView
from paperhooks.plugins.installed import catalog
from paperhooks.plugins.methods import describe_method
from paperhooks.reports.blocks import Block, Heading, Paragraph, Table
from paperhooks.reports.run_folder import RunFolder
from paperhooks.sessions.method_set import MethodSet
from paperhooks.weights.artefact import Artefact

if TYPE_CHECKING:
    pass

__all__ = ["compress"]

_ARTEFACT: Final = "artefact.safetensors"


def compress(
    model: nn.Module,
    method: str | object,
    *,
    data: Any = None,
    target: Any = None,
    out: str | Path | None = None,
    levels_from: str | Sequence[str | object] = (),
    tokenizer: Any = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Artefact:
    """Compress ``model`` in place with a method and return the artefact that reproduces it.

    Afterwards the model holds the compressed weights; ``artefact.undo()`` restores it bit for bit. When anything fails,
    the model is as before.

    Processes of one launch (torchrun, accelerate) that have made their process group may call it together, each with
    its own copy of the model: all end with the same weights, one of them writes the run folder, and methods with the
    trait ``shared_work`` deal their work out.

    :param method: a method's name with ``options`` for its constructor, or an instance.
    :param data: calibration data: a ``.jsonl`` file, texts, token ids, or batches of inputs; or a mapping of several
        such parts, where a method needs them.
    :param target: what to reach, in the method's words.
    :param out: run folder for artefact, ``result.json`` and report. The artefact of a finished run there is applied
        again, an interrupted one goes on (as far as the method keeps checkpoints), one of other inputs is refused.
    :param levels_from: further methods whose levels a search may use, by name or as instances; without any, those that
        the search itself names for the target (``default_levels(view, target)``), if it does.
    :param tokenizer: for texts; found by the model's name or folder when missing.
    :raises PluginNotFound: an unknown name. :raises PluginIncompatible: a method that compresses nothing, or one in
        ``levels_from`` that offers no levels.
    :raises PluginConflict: the model is attached, or a method was given twice.
    :raises HookError: an answer that is no artefact of the edits made.
    :raises DataError: data or run folder that cannot be used.
    """
    from paperhooks.sessions.session import active_session

    if active_session(model) is not None:
        raise PluginConflict("the model is attached to a session; close it before compressing the model")
    main = _resolve(method, options)
    further = [levels_from] if isinstance(levels_from, str) else list(levels_from)
    view = ModelView.from_model(model)
    if not further and hasattr(main, "default_levels"):
        further = list(main.default_levels(view, target))
    methods = MethodSet([main, *further])
    request = _request(model, methods, data, tokenizer)
    request.target, request.seed, request.progress = target, seed, progress
    if out is not None:
        request.run = _started(RunFolder(out), _inputs(model, methods, data, target), seed)
    try:
        with _new_weights(), evaluation_mode(model):
            return _run(view, request, methods)
    except BaseException:
        _take_back(request)
        view.journal.abandon()
        raise
    finally:
        if request.run is not None:
            request.run.release()


@contextmanager
def _new_weights() -> Iterator[None]:
    """A block in which weights are exchanged: nothing that was made of the old ones is kept for them.

    Autocast would go on with its casts of what stood in a parameter before, and tensors of inference mode do not tell
    when they are written to.
    """
    kept = torch.is_autocast_cache_enabled()
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(kept)


def _started(run: RunFolder, inputs: dict[str, Any], seed: int) -> RunFolder:
    """The run, begun by the first process and then by the others, which find the folder as that one left it."""
    ranks = Ranks()
    for first in (True, False):
        error: Exception | None = None
        if ranks.first == first:
            try:
                run.start("compress", inputs=inputs, seed=seed, writes=first)
            except Exception as found:
                error = found
        try:
            ranks.meet(error)
        except BaseException:
            run.release()
            raise
    return run


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
    for other in list(methods.methods)[1:]:
        if "compression_levels" not in methods.hooks(other):
            hooks = ", ".join(sorted(methods.hooks(other)))
            raise PluginIncompatible(f"{other} in levels_from offers no levels; it implements {hooks}")
    if tokenizer is None and has_text(data):
        tokenizer = find_tokenizer(model)
    offers = [i.function for i in methods.implementations("compression_levels")]
    return CompressionRequest(name, describe_method(main)["options"], data, tokenizer, offers=offers)


def _run(view: ModelView, request: CompressionRequest, methods: MethodSet) -> Artefact:
    run = request.run
    if run is not None and run.finished:
        artefact = Artefact.load(run.path / _ARTEFACT)
        if artefact.applicable:
            artefact.apply(view.model, view.journal)
        return artefact
    view.journal.writer = request.method
    hook = next(i.function for i in methods.implementations("compression") if i.method == request.method)
    if run is None:
        return _answered(hook, view, request)
    with run.timed("compress"):
        artefact = _answered(hook, view, request)
    ranks = Ranks()
    if ranks.first:
        artefact.save(run.path)
    _report(run, artefact, request.blocks)
    run.finish()
    ranks.meet()  # what the first has written is there for all
    return artefact


def _answered(hook: Callable[..., Any], view: ModelView, request: CompressionRequest) -> Artefact:
    artefact = hook(view, request)
    _take_back(request)
    return _accepted(artefact, view, request)


def _take_back(request: CompressionRequest) -> None:
    """What a search has left the model at without writing it."""
    for levels in request.opened:
        levels.restore()


def _accepted(artefact: Any, view: ModelView, request: CompressionRequest) -> Artefact:
    """Check that the answer reproduces the edits made; make them if the method has left that to core."""
    if not isinstance(artefact, Artefact):
        raise HookError(f"compression of {request.method!r} returned {type(artefact).__name__}; expected an Artefact")
    changed = {*view.journal.changed, *view.journal.structure.skipped}
    told = {*artefact.edits, *artefact.skipped}
    if artefact.kind == "weights" and changed and changed != told:
        odd = min(changed ^ told)
        raise HookError(
            f"compression of {request.method!r}: the artefact and the edits made differ at {odd}; make it last, with "
            "request.artefact(view)"
        )
    if artefact.applicable and not changed:
        artefact.apply(view.model, view.journal)
    artefact.journal = view.journal
    return artefact


def _inputs(model: nn.Module, methods: MethodSet, data: Any, target: Any) -> dict[str, Any]:
    main, *others = methods.methods.values()
    return {
        "method": describe_method(main),
        "levels_from": [describe_method(method) for method in others],
        "target": plain(target),
        "model": model_digest(model),
        "data": data_digest(data),
    }


def _report(run: RunFolder, artefact: Artefact, added: Sequence[Block]) -> None:
    rows = [(name, edit.entries, _share(edit.entries, edit.shape)) for name, edit in artefact.edits.items()]
    skipped = list(artefact.skipped)
    told = {"skipped": skipped} if skipped else {}
    run.record(parameters=len(rows), entries=sum(row[1] for row in rows), data=plain(artefact.data), **told)
    blocks: list[Block] = [Heading("Edits"), Paragraph(str(artefact))]
    if rows:
        blocks.append(Table(("parameter", "entries written", "share"), rows, "What the artefact writes."))
    if skipped:
        blocks.append(Table(("module",), [(name,) for name in skipped], "What is left out."))
    run.report(f"Compression with {artefact.method}", [*added, *blocks])


def _share(entries: int, shape: Sequence[int]) -> float:
    return entries / max(1, torch.Size(shape).numel())
