"""Artefacts: a weight edit as one file that can be shared, checked and applied to the same model elsewhere.

An artefact is one safetensors file. Its header carries, as JSON, who made it from what: method, options, versions, the
model's config, and a SHA-256 of every touched tensor before and after, which decide whether a model is the right one.
Sparse edits are stored as positions and values, packed weights as they are packed. A file that was cut or changed, and
any other weights, are refused before anything is written; another config around the same weights is warned of. Nothing
is ever unpickled.

Names of tensors in the file: ``dense/NAME``, ``index/NAME`` with ``values/NAME``, ``packed/NAME/PART``, and
``extra/KEY`` for a method's own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from paperhooks.errors import ArtefactError, DataError, counted
from paperhooks.io.files import plain, versions, write_json
from paperhooks.io.hashing import class_name, config_entries, hash_json, held_tensor, tensor_digest
from paperhooks.io.tensors import read_tensors, write_tensors
from paperhooks.io.units import differences
from paperhooks.weights.entries import bits
from paperhooks.weights.packed_forms import Packed, read_packed
from paperhooks.weights.structure import containing, module_at, skipped_modules

if TYPE_CHECKING:
    from paperhooks.weights.entries import Change
    from paperhooks.weights.journal import WeightJournal

__all__ = ["Artefact", "Edit", "warn_of_config"]

_SCHEMA: Final = 1
_FILE: Final = "artefact.safetensors"


@dataclass(frozen=True, eq=False)
class Edit:
    """New values of one parameter.

    values
        The whole parameter, or [n] entries at the flat row-major positions ``index`` int64 [n]; None where ``packed``
        holds the whole parameter in less room.
    before, after
        SHA-256 of the whole parameter before and after the edit, see :func:`paperhooks.io.tensor_digest`. Packed
        values say themselves what stands there afterwards: ``after`` is empty then.
    """

    values: Tensor | None
    index: Tensor | None
    shape: tuple[int, ...]
    before: str
    after: str
    packed: Packed | None = None

    @property
    def entries(self) -> int:
        """How many entries of the parameter it writes."""
        return math.prod(self.shape) if self.index is None else len(self.index)

    def written(self) -> Tensor:
        """The new values: of all entries, or of those at ``index``."""
        if self.packed is not None:
            return self.packed.unpack()
        assert self.values is not None
        return self.values

    @property
    def dtype(self) -> torch.dtype:
        """That of the parameter."""
        return self.written().dtype if self.packed is None else self.packed.dtype


@dataclass(eq=False)
class Artefact:
    """The product of a compression or weight edit.

    method, options
        Who made it, and how it was configured (plain data).
    edits
        Parameter name to :class:`Edit`.
    skipped
        Layers, attentions and MLPs that are left out: the module's name to a SHA-256 of its parameters.
    data, tensors
        What the method adds: plain data (levels chosen, scores) and tensors by name.
    kind
        ``"weights"`` for edits that :meth:`apply` can replay; methods may use words of their own.
    model_class, config, versions
        Where it belongs and what it was made with; the config as :func:`paperhooks.io.config_entries` gives it.
    journal
        The open edits on a live model, if any; :meth:`undo` takes them back. Never saved.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    edits: Mapping[str, Edit] = field(default_factory=dict, repr=False)
    skipped: Mapping[str, str] = field(default_factory=dict, repr=False)
    data: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    kind: str = "weights"
    model_class: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    versions: Mapping[str, str] = field(default_factory=versions, repr=False)
    journal: WeightJournal | None = field(default=None, repr=False)

    @classmethod
    def from_journal(
        cls,
        journal: WeightJournal,
        *,
        method: str,
        options: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        kind: str = "weights",
        packed: Mapping[str, Packed] | None = None,
    ) -> Artefact:
        """The open edits of ``journal``, and what it has skipped, as an artefact that shares nothing with the model.

        :param packed: parameter name to the values that were written, where these take less room so than as they are;
            see :meth:`paperhooks.hooks.Levels.written`.
        """
        return cls(
            method=method,
            options=plain(dict(options or {})),
            edits={name: _edit(change, (packed or {}).get(name)) for name, change in journal.changed.items()},
            skipped={name: _skipped_digest(journal, name) for name in journal.structure.skipped},
            data=plain(dict(data or {})),
            tensors={name: tensor.detach().cpu().clone() for name, tensor in (tensors or {}).items()},
            kind=kind,
            model_class=class_name(journal.model),
            config=config_entries(journal.model),
            journal=journal,
        )

    # -- files -----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write atomically; returns the file.

        A path ending in ``.safetensors`` is one file. Any other is a folder, which gets ``artefact.safetensors`` and,
        for readers, a copy of its header as ``artefact.json``.
        """
        path = Path(path)
        single = path.suffix == ".safetensors"
        file, header = path if single else path / _FILE, self._header()
        write_tensors(file, self._stored(), header)
        if not single:
            write_json(path / "artefact.json", header)
        return file

    @classmethod
    def load(cls, path: str | Path) -> Artefact:
        """Read a file or folder written by :meth:`save`.

        Raises ArtefactError for what is missing, cut, changed or not an artefact; the file is left as it is.
        """
        file = Path(path) / _FILE if Path(path).is_dir() else Path(path)
        header, tensors = _read(file)
        try:
            return cls(
                method=header["method"],
                options=header["options"],
                edits={name: _stored_edit(name, entry, tensors) for name, entry in header["edits"].items()},
                skipped=header.get("skipped", {}),
                data=header["data"],
                tensors={n.removeprefix("extra/"): t for n, t in tensors.items() if n.startswith("extra/")},
                kind=header["kind"],
                model_class=header["model_class"],
                config=header["config"],
                versions=header["versions"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(f"{file} lacks {error} in its header; it is not an artefact of this version") from error

    def _stored(self) -> dict[str, Tensor]:
        stored = {f"extra/{name}": tensor for name, tensor in self.tensors.items()}
        for name, edit in self.edits.items():
            if edit.packed is not None:
                stored |= {f"packed/{name}/{part}": tensor for part, tensor in edit.packed.tensors().items()}
                continue
            stored["dense/" + name if edit.index is None else "values/" + name] = edit.written()
            if edit.index is not None:
                stored["index/" + name] = edit.index
        return stored

    def _header(self) -> dict[str, Any]:
        edits = {
            name: {"shape": list(edit.shape), "before": edit.before, "after": edit.after}
            | ({} if edit.packed is None else {"form": edit.packed.form, "settings": edit.packed.settings()})
            for name, edit in self.edits.items()
        }
        header = {"schema": _SCHEMA, "kind": self.kind, "method": self.method, "options": self.options, "edits": edits}
        header |= {"skipped": self.skipped} if self.skipped else {}
        header |= {"data": self.data, "model_class": self.model_class, "config": self.config}
        result: dict[str, Any] = plain(header | {"versions": self.versions})
        return result

    # -- models ----------------------------------------------------------------------------------------------------

    @property
    def applicable(self) -> bool:
        """Whether there is anything to apply: weights to write, or modules to skip."""
        return bool(self.edits or self.skipped)

    def check(self, model: nn.Module) -> None:
        """Raise ArtefactError naming the first thing in which ``model`` differs from the one this was made from.

        What decides is the weights that are edited; where they agree and the config does not, a warning names what
        differs. Of a model that is spread over processes, every process has to call this.
        """
        if class_name(model) != self.model_class:
            raise ArtefactError(f"this artefact belongs to a {self.model_class}, not to a {class_name(model)}")
        for name, edit in self.edits.items():
            _check_parameter(model, name, edit)
        for name, digest in self.skipped.items():
            _check_skipped(model, name, digest)
        warn_of_config("this artefact", self.config, model)

    def apply(self, model: nn.Module, journal: WeightJournal | None = None) -> WeightJournal:
        """Make the edits on ``model``, which must hold the very weights the artefact was made from, and skip what is.

        :param journal: an open journal of ``model`` to write through, such as ``view.journal``; a new one otherwise.
        :return: the journal; its ``undo()`` restores the model bit for bit.
        :raises ArtefactError: another model, other weights, or nothing to apply; then nothing was written.
        :raises UnsupportedModel: weights or modules of the right model in which nothing can be edited or skipped here.
        """
        from paperhooks.weights.journal import WeightJournal

        if not self.applicable:
            raise ArtefactError(f"this artefact of {self.method} (kind {self.kind!r}) holds no weight edits to apply")
        self.check(model)
        opened = journal if journal is not None else WeightJournal(model)
        for name in self.edits:
            opened.check(name, method=self.method)
        for name in self.skipped:
            opened.structure.check(name)
        self.journal = opened  # before the first write, so that an interrupt half-way can be undone
        for name, edit in self.edits.items():
            if edit.index is None:
                opened.write(name, edit.written(), method=self.method)
            else:
                opened.write_sparse(name, edit.index, edit.written(), method=self.method)
        for name in self.skipped:
            opened.structure.skip(name)
        return opened

    def undo(self) -> None:
        """Take back the open edits that this artefact was made from or applied with.

        Raises ArtefactError when there are none, as with an artefact that was only loaded.
        """
        if self.journal is None:
            raise ArtefactError("this artefact has no open edits: it was not applied here, or is undone already")
        self.journal.undo()
        self.journal = None

    def __str__(self) -> str:
        entries = sum(edit.entries for edit in self.edits.values())
        told = (
            [f"{counted(entries, 'entry', 'entries')} in {counted(len(self.edits), 'parameter')}"] if self.edits else []
        )
        told += [f"{counted(len(self.skipped), 'module')} skipped"] if self.skipped else []
        levels = self.data.get("levels")
        chosen = levels.values() if isinstance(levels, Mapping) else ()
        methods = sorted({str(each["method"]) for each in chosen if isinstance(each, Mapping) and "method" in each})
        by = f", levels of {', '.join(methods)}" if methods else ""
        return f"{self.kind} of {self.method}: {' and '.join(told) or 'nothing written'} of {self.model_class}{by}"


def _edit(change: Change, packed: Packed | None) -> Edit:
    parameter = change.parameter.detach()
    index = change.index
    before = tensor_digest(change.original())
    if packed is not None:
        if packed.dtype != parameter.dtype or not torch.equal(bits(packed.unpack()).cpu(), bits(parameter).cpu()):
            raise ArtefactError(f"the packed values of {change.name} are not those that were written to it")
        return Edit(None, None, tuple(parameter.shape), before, "", packed)
    values = parameter if index is None else parameter[torch.unravel_index(index, parameter.shape)]
    return Edit(
        values=values.cpu().clone(memory_format=torch.contiguous_format),
        index=None if index is None else index.cpu().clone(),
        shape=tuple(parameter.shape),
        before=before,
        after=tensor_digest(parameter),
    )


def _skipped_digest(journal: WeightJournal, name: str) -> str:
    """SHA-256 of the parameters of a skipped module, as they were before any edit."""
    edited = {id(change.parameter): change for change in journal.changed.values()}
    module = module_at(journal.model, name)

    def before(own: str, parameter: Tensor) -> Tensor:
        if id(parameter) in edited:
            return edited[id(parameter)].original()
        # Offloaded weights are kept by a module around it, or by one in it, which the model's names do not lead to now.
        return held_tensor(module, own, held_tensor(journal.model, f"{name}.{own}", parameter.detach()))

    return hash_json({own: tensor_digest(before(own, each)) for own, each in module.named_parameters()})


def _check_skipped(model: nn.Module, name: str, digest: str) -> None:
    if name in (there := skipped_modules(model)) or containing(name, there):
        raise ArtefactError(f"{name} is skipped in this model already; the artefact was applied before, or another one")
    try:
        parameters = module_at(model, name).named_parameters()
    except LookupError:
        raise ArtefactError(f"this model has no module {name}, which the artefact skips") from None
    found = {n: tensor_digest(held_tensor(model, f"{name}.{n}", p.detach())) for n, p in parameters}
    if hash_json(found) != digest:
        raise ArtefactError(f"{name} has other weights than in the model that the artefact was made from")


def warn_of_config(what: str, config: Mapping[str, Any], model: nn.Module) -> None:
    """Warn where ``what`` was made from a model of the same weights with another config, naming the entries."""
    odd = differences(config, config_entries(model)) if config else []
    if odd:
        warnings.warn(f"{what}: made with the same weights, but another config: {'; '.join(odd)}", stacklevel=3)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        header, tensors = read_tensors(file, "an artefact")
    except DataError as error:
        raise ArtefactError(f"{error}; copy or download it again") from error
    if header.get("schema") != _SCHEMA:
        raise ArtefactError(f"{file} is not an artefact of paperhooks (schema {_SCHEMA})")
    return header, tensors


def _stored_edit(name: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Edit:
    if "form" in entry:
        head = f"packed/{name}/"
        parts = {key.removeprefix(head): tensor for key, tensor in tensors.items() if key.startswith(head)}
        packed = read_packed(entry["form"], parts, entry["settings"])
        return Edit(None, None, tuple(entry["shape"]), entry["before"], entry["after"], packed)
    index = tensors.get(f"index/{name}")
    values = tensors[f"dense/{name}"] if index is None else tensors[f"values/{name}"]
    return Edit(values, index, tuple(entry["shape"]), entry["before"], entry["after"])


def _check_parameter(model: nn.Module, name: str, edit: Edit) -> None:
    try:
        parameter = model.get_parameter(name).detach()
    except AttributeError:
        raise ArtefactError(f"this model has no parameter {name}, which the artefact edits") from None
    if tuple(parameter.shape) != edit.shape or parameter.dtype != edit.dtype:
        raise ArtefactError(
            f"{name} is {parameter.dtype} {list(parameter.shape)}; the artefact was made from {edit.dtype} "
            f"{list(edit.shape)}"
        )
    if not _fits(edit):
        raise ArtefactError(f"the edit of {name} has positions or values that do not fit {list(edit.shape)}")
    found = tensor_digest(held_tensor(model, name, parameter))
    if found != edit.before and found == (edit.after or tensor_digest(edit.written())):
        raise ArtefactError(f"{name} holds the artefact's values already; it was applied before")
    if found != edit.before:
        raise ArtefactError(f"{name} has other values than in the model that the artefact was made from")


def _fits(edit: Edit) -> bool:
    """Whether values and positions are in order, so that applying cannot fail half way."""
    values = edit.written()
    if edit.index is None:
        return tuple(values.shape) == edit.shape
    if edit.index.dtype != torch.int64 or edit.index.ndim != 1 or values.shape != edit.index.shape:
        return False
    inside = not len(edit.index) or 0 <= int(edit.index.min()) <= int(edit.index.max()) < math.prod(edit.shape)
    return inside and len(torch.unique(edit.index)) == len(edit.index)
