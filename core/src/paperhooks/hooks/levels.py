"""Levels that modules can be brought to, and a live model that stands at one level of each.

A level knows what it costs before its values are made, and has them packed, so that a search holds all of them in
memory and opens no file; or it leaves a layer, an attention or an MLP out. :meth:`Levels.switch` moves only what
differs: a parameter's storage or a child module is exchanged, nothing is written twice, and the journal hears of the
final choice alone.

Units may contain one another, as a sublayer contains its matrices: a part of what is left out costs nothing and is
written to nobody, and no parameter has its values from two levels.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor, nn
from tqdm import tqdm

from paperhooks.errors import DataError, HookError, did_you_mean
from paperhooks.hooks.level import Level
from paperhooks.hooks.level_store import LevelStore
from paperhooks.io.memory import trim_memory
from paperhooks.io.processes import Ranks
from paperhooks.models.costs import module_cost
from paperhooks.weights.journal import WeightJournal, check_plain
from paperhooks.weights.packed_forms import Packed
from paperhooks.weights.structure import Structure, module_at

if TYPE_CHECKING:
    from paperhooks.models.view import ModelView

__all__ = ["Levels"]

#: Moved modules after which what unpacking has freed is given back; after each it would take longer than they do.
_MANY: Final = 32


class Levels(Mapping[str, Sequence[Level]]):
    """What is offered for each module, and the model at a choice of them.

        with request.levels(view, names) as levels:
            levels.switch({"model.layers.0.mlp.up_proj": "3 bits"})
            ...                                   # measure
            levels.write(view.journal)            # the choice that it stands at

    Modules that are not in a choice have their own weights. At the end of the block the model has its own weights
    again, bit for bit, but for what was written to the journal.

    :param offers: qualified module name to its levels.
    :raises HookError: two levels of one label for a module. :raises LookupError: no such module.
    :raises DataError: a parameter that two of the modules share, as tied embeddings are.
    :raises UnsupportedModel: a level that skips what cannot be skipped.
    """

    def __init__(self, view: ModelView, offers: Mapping[str, Sequence[Level]]) -> None:
        self.view = view
        #: Where :meth:`prepare` has put the values; None while they are held in memory.
        self.folder: Path | None = None
        self._offers = {name: tuple(levels) for name, levels in offers.items()}
        modules = {name: module_at(view.model, name) for name in offers}
        self._parameters = {name: dict(module.named_parameters()) for name, module in modules.items()}
        self._choice: dict[str, Level] = {}
        self._here: dict[str, Level] = {}  # of the choice, what the model shows
        self._unpacked = 0  # modules moved since memory was given back
        self._structure = Structure(view.model, lambda: view.sublayers)
        self._outer = {name: outer for name in offers if (outer := _outer_ones(name, offers))}
        self._nested = [(outer, name) for name, outers in self._outer.items() for outer in outers]
        self._packed: dict[tuple[str, str], Mapping[str, Packed]] = {}
        #: Own weights of what stands at a level, by the parameter's full name; and what was found to be plain.
        self._own: dict[str, tuple[nn.Parameter, Tensor]] = {}
        self._plain: set[str] = set()
        self._own_costs: dict[str, Mapping[str, float]] = {}
        self._written: dict[str, Packed] = {}
        self._chosen: dict[str, Level] = {}
        for name, levels in self._offers.items():
            labels = [level.label for level in levels]
            if twice := sorted({label for label in labels if labels.count(label) > 1}):
                raise HookError(f"two levels of {name} are called {twice[0]!r}; a label has to be a module's own")
            if any(level.skip for level in levels):
                self._structure.check(name)
        _check_shared(view.model, modules)

    # -- what there is -------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Sequence[Level]:
        return self._offers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._offers)

    def __len__(self) -> int:
        return len(self._offers)

    def level(self, name: str, label: str) -> Level:
        """A level by its label; raises DataError for a module or label that is not among the offers."""
        if name not in self._offers:
            raise DataError(f"there are no levels of {name!r}; {did_you_mean(name, self._offers)}")
        for level in self._offers[name]:
            if level.label == label:
                return level
        raise DataError(f"{name} has no level {label!r}; {did_you_mean(label, [one.label for one in self[name]])}")

    def cost(self, choice: Mapping[str, str], kind: str = "bytes", *, whole: bool = False) -> float:
        """What the chosen modules cost together; parts of what is skipped cost nothing.

        Raises DataError where a level does not tell this kind of cost. A module that others of the choice are part of
        has to tell the cost of what belongs to none of these, as :func:`paperhooks.models.module_cost` does.

        :param whole: count modules that are not in the choice too, at what they cost as they are.
        """
        chosen = {name: self.level(name, label) for name, label in choice.items()}
        total = 0.0
        for name, level in self._shown(chosen).items():
            if kind not in level.cost:
                told = ", ".join(level.cost)
                raise DataError(f"the level {level.label!r} of {name} tells no {kind!r}; it tells {told}")
            total += level.cost[kind]
        if whole:
            skipped = {name for name, level in chosen.items() if level.skip}
            left = (n for n in self if n not in chosen and skipped.isdisjoint(self._outer.get(n, ())))
            total += sum(self.own_cost(name)[kind] for name in left)
        return total

    def own_cost(self, name: str) -> Mapping[str, float]:
        """What a module costs as it is, without the other modules in it that have levels of their own; see
        :func:`paperhooks.models.module_cost`."""
        if name not in self._own_costs:
            self._own_costs[name] = module_cost(self.view, name, without=self)
        return self._own_costs[name]

    def packed(self, name: str, label: str) -> Mapping[str, Packed]:
        """The packed values of a level, made at the first time; raises HookError for what its method may not make."""
        key = name, label
        if key not in self._packed:
            level = self.level(name, label)
            with self._at_home(name):
                try:
                    made = {} if level.prepare is None else level.prepare()
                except Exception as error:
                    error.add_note(f"paperhooks: raised by prepare of {label!r} of {name} by {level.method!r}")
                    raise
            self._packed[key] = self._checked(name, level, made)
        return self._packed[key]

    def _checked(self, name: str, level: Level, made: Any) -> Mapping[str, Packed]:
        """What prepare has made, or what was stored of it: packed values of parameters, at the told bytes."""
        which, own = f"the level {level.label!r} of {name} by {level.method!r}", self._parameters[name]
        if not isinstance(made, Mapping):
            raise HookError(f"{which} gives {type(made).__name__}; expected a mapping such as {{'weight': Quantised}}")
        for parameter, packed in made.items():
            if parameter not in own or not isinstance(packed, Packed):
                raise HookError(
                    f"{which} gives {type(packed).__name__} for {parameter!r}; expected packed values (Quantised, "
                    f"Masked or Dense) of its parameters {', '.join(own)}"
                )
        told, held = level.cost.get("bytes"), sum(each.nbytes for each in made.values())
        if made and told is not None and told < held:
            raise HookError(f"{which} costs {told} bytes, and its values take {held}")
        return MappingProxyType(dict(made))

    def prepare(
        self, folder: str | Path | None = None, *, decides: Mapping[str, Any] | None = None, progress: bool = True
    ) -> None:
        """Make the values of all levels now, module by module, so that no switch has to.

        With a folder they are kept there, and read where they lie instead of held in memory; an interrupted preparation
        goes on with the modules that are missing. The model has its own weights afterwards. Of processes that share a
        run by torch.distributed the first makes them, and the others read what it has made.

        :param decides: what else the values depend on, as plain data: methods' options, a digest of calibration data.
        :raises DataError: the folder holds levels of another model, other levels, or other ``decides``.
        """
        self.restore()
        self.folder = None if folder is None else Path(folder).absolute()
        wanted = [name for name, levels in self.items() if any(level.prepare is not None for level in levels)]
        with ExitStack() as stack:
            store = None
            if folder is not None:
                store = stack.enter_context(LevelStore(folder, self._offers, decides or {}).begin(self.view.model))
            for name in tqdm(wanted, desc="prepare levels", unit="module", disable=not (progress and wanted)):
                made = self._stored(store, name) if store is not None else None
                for level in self[name]:
                    if made is None:
                        self.packed(name, level.label)
                    else:
                        self._packed[name, level.label] = self._checked(name, level, made[level.label])
                trim_memory()  # little is kept of much that is made for it

    def _stored(self, store: LevelStore, name: str) -> dict[str, dict[str, Packed]] | None:
        """The values of a module as they lie in a folder, where the first process puts them if they are not there."""
        ranks, error = Ranks(), None
        made = store.read(name)
        if made is None and ranks.first:
            try:
                store.write(name, {level.label: self.packed(name, level.label) for level in self[name]})
            except Exception as found:
                error = found
        ranks.meet(error)
        return store.read(name) if made is None else made

    # -- the live model ------------------------------------------------------------------------------------------------

    @property
    def choice(self) -> Mapping[str, str]:
        """The level of each module as it was chosen, parts of what is skipped too; modules that have their own weights
        are not among them."""
        return {name: level.label for name, level in self._choice.items()}

    def switch(self, choice: Mapping[str, str]) -> None:
        """Bring the live model to a choice of levels, module name to label; only what differs is moved.

        After an error, an interrupt included, the model stands where it stood before.

        :raises DataError: an unknown module or label, or two levels that have values for one parameter.
        :raises HookError: values of another shape or dtype than the parameter's. :raises UnsupportedModel: a parameter
            that a journal could not edit either. :raises PluginConflict: hooks on a layer that is to be skipped.
        """
        wanted = {name: self.level(name, label) for name, label in choice.items()}
        here = self._shown(wanted)
        moved = [name for name in {**self._here, **here} if self._here.get(name) is not here.get(name)]
        self._check_values(here, moved)
        before: list[Callable[[], object]] = []
        try:
            self._exchange([name for name in moved if name in self._here and self._here[name].skip], False, before)
            # Own weights first: what one level gives up may be another one's.
            for name in sorted(moved, key=lambda name: name in here):
                self._move(name, here.get(name), before)
            self._exchange([name for name in moved if name in here and here[name].skip], True, before)
        except BaseException:
            for put_back in reversed(before):
                put_back()
            raise
        self._choice, self._here = wanted, here
        self._unpacked += len(moved)
        if self._unpacked > _MANY:
            self._unpacked = 0
            trim_memory()

    def _shown(self, choice: Mapping[str, Level]) -> dict[str, Level]:
        """The choice without parts of what is skipped in it."""
        skipped = {name for name, level in choice.items() if level.skip}
        gone = {name for name, outer in self._outer.items() if not skipped.isdisjoint(outer)} if skipped else ()
        return {name: level for name, level in choice.items() if name not in gone}

    def _check_values(self, here: Mapping[str, Level], moved: Sequence[str]) -> None:
        """Refuse a choice in which a unit and one that it contains both have values for a parameter."""
        for outer, inner in self._nested:
            if outer in here and inner in here and (outer in moved or inner in moved):
                values, head = self.packed(outer, here[outer].label), inner.removeprefix(f"{outer}.")
                both = (p for p in self.packed(inner, here[inner].label) if f"{head}.{p}" in values)
                if (parameter := next(both, None)) is not None:
                    raise DataError(
                        f"{inner}.{parameter} would have values from {here[outer].label!r} of {outer} and from "
                        f"{here[inner].label!r} of {inner}; choose one of the two"
                    )

    def _exchange(self, names: Sequence[str], skip: bool, before: list[Callable[[], object]]) -> None:
        """Skip modules, or put them back; how to take it back goes to ``before``."""
        for name in names:
            there, back = self._structure.skip, self._structure.restore
            before.append(partial(back if skip else there, name))
            (there if skip else back)(name)

    def restore(self) -> None:
        """Give all modules their own weights again."""
        self.switch({})

    def write(self, journal: WeightJournal, *, method: str = "") -> None:
        """Write the choice that the model stands at through a journal, from which it can be undone.

        Afterwards the model stands at its own weights again, but for what was written. Raises what the journal raises,
        which holds what was written until then: undo it.

        :raises DataError: a choice was written before and not undone.
        """
        if set(self._written) & set(journal.changed) or {n for n, each in self._chosen.items() if each.skip} & set(
            journal.structure.skipped
        ):
            raise DataError("a choice of these levels is written already; undo it first (journal.undo())")
        choice = self._here
        self.restore()
        self._written, self._chosen = {}, dict(choice)
        for name, level in choice.items():
            for parameter, packed in self.packed(name, level.label).items():
                journal.write(f"{name}.{parameter}", packed.unpack(), method=method)
                self._written[f"{name}.{parameter}"] = packed
            trim_memory()
        for name in (name for name, level in choice.items() if level.skip):
            journal.structure.skip(name)

    @property
    def written(self) -> Mapping[str, Packed]:
        """Parameter name to the packed values that :meth:`write` wrote last, for an artefact that holds these."""
        return MappingProxyType(self._written)

    @property
    def chosen(self) -> dict[str, Any]:
        """Which levels :meth:`write` wrote last, as plain data: module name to method, label, cost and options."""
        return {
            name: {"method": each.method, "label": each.label, "cost": dict(each.cost), "options": dict(each.options)}
            for name, each in self._chosen.items()
        }

    def __enter__(self) -> Levels:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    @contextmanager
    def _at_home(self, name: str) -> Iterator[None]:
        """The module with its own weights: what a level is made from, wherever the model stands."""
        inside = [own for full, own in self._own.items() if full.startswith(f"{name}.")]
        here = [(parameter, parameter.data) for parameter, _ in inside]
        skipped = [each for each in self._structure.skipped if each.startswith(f"{name}.") or each == name]
        try:
            for each in skipped:
                self._structure.restore(each)
            for parameter, values in inside:
                parameter.data = values
            yield
        finally:
            for parameter, values in here:
                parameter.data = values
            for each in skipped:
                self._structure.skip(each)

    def _move(self, name: str, level: Level | None, before: list[Callable[[], object]]) -> None:
        """One module to a level, or to its own weights; how to take it back goes to ``before``."""
        now = self._here.get(name)
        values = self.packed(name, level.label) if level is not None else {}
        given_up = self.packed(name, now.label) if now is not None else {}
        for parameter_name in dict.fromkeys([*values, *given_up]):
            parameter, full = self._parameters[name][parameter_name], f"{name}.{parameter_name}"
            if full not in self._plain:  # once, and not at every switch
                check_plain(self.view.model, parameter, full)
                self._plain.add(full)
            if parameter_name in values:
                new = _fitting(name, parameter_name, parameter, values[parameter_name])
                if full not in self._own:
                    before.append(partial(self._own.pop, full, None))
                    self._own[full] = parameter, parameter.data
            else:
                own = self._own[full]
                new = own[1].to(parameter.device, parameter.dtype)  # moved or cast meanwhile
                before.append(partial(self._own.__setitem__, full, own))
            before.append(partial(setattr, parameter, "data", parameter.data))
            parameter.data = new
            if parameter_name not in values:
                del self._own[full]


def _outer_ones(name: str, others: Container[str]) -> tuple[str, ...]:
    """Those of ``others`` that the module ``name`` is part of."""
    parts = name.split(".")
    return tuple(outer for n in range(1, len(parts)) if (outer := ".".join(parts[:n])) in others)


def _fitting(name: str, parameter_name: str, parameter: nn.Parameter, packed: Packed) -> Tensor:
    new = packed.unpack()
    if new.shape != parameter.shape or new.dtype != parameter.dtype:
        raise HookError(
            f"the values for {name}.{parameter_name} are {new.dtype} {list(new.shape)}; expected {parameter.dtype} "
            f"{list(parameter.shape)}"
        )
    # What is written into the parameter while it stands there must not change the level.
    held = {tensor.data_ptr() for tensor in packed.tensors().values()}
    return (new.clone() if new.data_ptr() in held else new).to(parameter.device)


def _check_shared(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Refuse a parameter that two of the modules share, or that a module without levels shares and would change too."""
    names: dict[int, list[str]] = {}
    for full, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(full)
    holders: dict[int, str] = {}
    for name, module in modules.items():
        for own, parameter in module.named_parameters(recurse=False):
            other = holders.setdefault(id(parameter), name)
            if other != name:
                raise DataError(
                    f"{name} and {other} share a parameter; leave one of them out, so that it has one level at a time"
                )
            tied = [full for full in names.get(id(parameter), ()) if full != f"{name}.{own}"]
            if tied and not any(full.rpartition(".")[0] in modules for full in tied):
                raise DataError(f"{name}.{own} is {tied[0]} too, which would change with it; leave {name} out")
