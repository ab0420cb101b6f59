"""Reversible changes of a model's structure: layers, attentions and MLPs that are skipped.

A skipped module is exchanged for one that takes its calls: its parameters are not among ``parameters()``, caches stay
right for all other layers, and :meth:`Structure.restore` puts the very module back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from paperhooks import compat
from paperhooks.errors import PluginConflict, UnsupportedModel, did_you_mean
from paperhooks.weights.stand_ins import StandIn
from paperhooks.weights.sublayers import Sublayer, find_sublayers, stand_in_for

__all__ = ["Structure", "containing", "module_at", "skipped_modules"]


def skipped_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that are skipped in a model now, whoever did it, by their qualified names."""
    return {name: m.stands_for for name, m in model.named_modules() if isinstance(m, StandIn)}


def module_at(model: nn.Module, name: str) -> nn.Module:
    """The module of a qualified name, also one that is skipped or in one; raises LookupError with the nearest."""
    module = model
    for part in name.split("."):
        children = dict(compat.stood_for(module).named_children())
        if part not in children:
            near = did_you_mean(name, [n for n, _ in model.named_modules()]).partition("Known:")[0].strip()
            raise LookupError(f"{type(model).__name__} has no module {name!r}; {near}".rstrip("; "))
        module = children[part]
    return compat.stood_for(module)


def containing(name: str, others: Mapping[str, object] | set[str] | frozenset[str]) -> str:
    """The outermost of ``others`` that the module or parameter ``name`` is part of, without itself; empty for none."""
    parts = name.split(".")
    return next((outer for n in range(1, len(parts)) if (outer := ".".join(parts[:n])) in others), "")


def _flags(model: nn.Module) -> set[bool]:
    """Whether parameters of floating point have gradients: all, none, or some."""
    return {parameter.requires_grad for parameter in model.parameters() if parameter.is_floating_point()}


class Structure:
    """What of a model is skipped, and putting it back.

    >>> structure.skip("model.layers.3.mlp")  # doctest: +SKIP
    >>> structure.restore("model.layers.3.mlp")  # doctest: +SKIP

    :param model: a transformers model, as :attr:`paperhooks.ModelView.model`.
    :param known: gives its sublayers where these were found before.
    """

    def __init__(self, model: nn.Module, known: Callable[[], Mapping[str, Sublayer]] | None = None) -> None:
        self.model = model
        self._known = known
        self._sublayers: Mapping[str, Sublayer] | None = None
        self._skipped: dict[str, tuple[StandIn, nn.Module]] = {}
        self._frozen: set[bool] | None = None

    @property
    def sublayers(self) -> Mapping[str, Sublayer]:
        """What there is to skip, by qualified name; found at the first look, when the decoder reads two tokens.

        What was skipped at that time is not among it, nor what is in it.

        :raises UnsupportedModel: no decoder layers, or a model that is sharded.
        """
        if self._sublayers is None and self._known is not None:
            self._sublayers = self._known()
        if self._sublayers is None:
            if any(hasattr(parameter, "full_tensor") for parameter in self.model.parameters()):
                raise UnsupportedModel(
                    f"{type(self.model).__name__} is spread over processes (FSDP2 or tensor parallelism), and nobody "
                    "has run a part of such a model skipped; change its structure before it is sharded"
                )
            decoder: nn.Module = self.model.get_decoder()  # type: ignore[operator]
            self._sublayers = find_sublayers(self.model, compat.layer_list(decoder))
        return MappingProxyType(dict(self._sublayers))

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of what is skipped through this structure, in the order in which it was asked for."""
        return tuple(self._skipped)

    def check(self, name: str) -> Sublayer:
        """What :meth:`skip` would skip.

        :raises LookupError: no such module. :raises PluginConflict: somebody else has it skipped.
        :raises UnsupportedModel: it cannot be skipped; says why.
        """
        parent, child = self._place(name)
        module_at(self.model, name)
        held = parent.get_submodule(child)
        if compat.stood_for(held) is not held:
            raise PluginConflict(f"{name} is skipped already, by somebody else; have it put back first")
        found = self.sublayers.get(name)
        if found is None:  # perhaps it was skipped when they were found
            self._sublayers = self._known = None
            found = self.sublayers.get(name)
        if found is None:
            others = ", ".join(n for n, s in self.sublayers.items() if not s.refusal and s.layer == 0)
            raise UnsupportedModel(
                f"{name} is no layer, attention or MLP of this {type(self.model).__name__} that could be skipped; of "
                f"layer 0 these are {others or 'none'}"
            )
        if found.refusal:
            raise UnsupportedModel(f"{name} cannot be skipped: {found.refusal}")
        return found

    def skip(self, name: str) -> None:
        """Let the model run without a layer, or without the attention or the MLP of one.

        Again for what is skipped already does nothing. Hooks on it go on running, on what stands in its place. Raises
        what :meth:`check` raises.
        """
        if name in self._skipped:
            return
        sublayer, (parent, child) = self.check(name), self._place(name)
        held = parent.get_submodule(child)
        made = stand_in_for(sublayer, compat.inside(held), self.sublayers)
        self._skipped[name] = made, held
        setattr(parent, child, made)
        if self._frozen is None:
            self._frozen = _flags(self.model)

    def restore(self, name: str) -> None:
        """Put a skipped module back, in the mode and dtype and on the device that the model has got meanwhile.

        Nothing happens for what is not skipped through this structure, or stands at its place already.
        """
        if name not in self._skipped:
            return
        made, held = self._skipped[name]
        parent, child = self._place(name)
        if parent.get_submodule(child) is made:
            made.released()
            setattr(parent, child, held)
        del self._skipped[name]

    def undo(self) -> None:
        """Put back everything that is skipped through this structure, last skipped first.

        A model that was frozen, or unfrozen, as a whole meanwhile is so with what comes back.
        """
        if not self._skipped:
            return
        flags, modules = _flags(self.model), [made.stands_for for made, _ in self._skipped.values()]
        for name in reversed(self.skipped):
            self.restore(name)
        if len(flags) == 1 and self._frozen not in (None, flags):
            for parameter in (p for module in modules for p in module.parameters()):
                parameter.requires_grad_(next(iter(flags)))
        self._frozen = None

    def keep(self) -> None:
        """Make it final: forget what is skipped, which stays so."""
        self._skipped.clear()
        self._frozen = None

    def _place(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds ``name``, itself perhaps in what is skipped, and under which name it does."""
        outer, _, child = name.rpartition(".")
        return (module_at(self.model, outer) if outer else self.model), child
